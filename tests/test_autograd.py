"""Derivatives of the topk family, to any order and however they are reached; what has none and says so."""

import pytest
import torch
import torch.nn.functional as F

import pysel
from pysel import _autograd
from tests.tensors import DTYPES, assert_same_bits, assert_within_ulps, name
from tests.test_topk import every_activation, generator, whole

OPS = torch.ops.pysel


def doubles(*shapes):
    return [
        torch.randn(shape, generator=generator(i), dtype=torch.float64).requires_grad_()
        for i, shape in enumerate(shapes)
    ]


INDICES = torch.tensor([[0, 4, 2], [2, 2, 1], [5, 0, 3], [1, 6, 6]])
NONE = torch.empty((4, 0), dtype=torch.int64)

DIFFERENTIABLE = {
    "topk": (lambda x: pysel.topk(x, 3)[0], doubles((2, 4, 7))),
    "topk_encode": (lambda x, w, b: pysel.topk_encode(x, w, b, 3)[0], doubles((4, 5), (9, 5), (9,))),
    "topk_encode_abs": (
        lambda x, w, b: pysel.topk_encode(x, w, b, 3, activation="abs")[0],
        doubles((4, 5), (9, 5), (9,)),
    ),
    "topk_encode_few_active": (lambda x, w: pysel.topk_encode(x, w, None, 8)[0], doubles((4, 5), (9, 5))),
    "sparse_decode": (lambda v, w, b: pysel.sparse_decode(v, INDICES, w, b), doubles((4, 3), (7, 5), (5,))),
    "sparse_decode_no_bias": (lambda v, w: pysel.sparse_decode(v, INDICES, w), doubles((4, 3), (7, 5))),
    # the parts of which their gradients are made
    "sddmm": (lambda w, g: _autograd.sddmm_op(INDICES, w, g), doubles((7, 5), (4, 5))),
    "spmm_t": (lambda v, r: _autograd.spmm_t_op(v, INDICES, r, 7), doubles((4, 3), (4, 5))),
    "sparse_decode_backward_values": (
        lambda g, v, w: _autograd.sparse_decode_backward_op(g, v, INDICES, w)[0],
        doubles((4, 5), (4, 3), (7, 5)),
    ),
    "sparse_decode_backward_weight": (
        lambda g, v, w: _autograd.sparse_decode_backward_op(g, v, INDICES, w)[1],
        doubles((4, 5), (4, 3), (7, 5)),
    ),
}
EMPTY = {
    "topk_no_k": (lambda x: pysel.topk(x, 0)[0], doubles((3, 7))),
    "topk_no_rows": (lambda x: pysel.topk(x, 2)[0], doubles((0, 7))),
    "topk_encode_no_k": (lambda x, w, b: pysel.topk_encode(x, w, b, 0)[0], doubles((4, 5), (9, 5), (9,))),
    "topk_encode_no_rows": (lambda x, w, b: pysel.topk_encode(x, w, b, 3)[0], doubles((0, 5), (9, 5), (9,))),
    "sparse_decode_no_k": (lambda v, w, b: pysel.sparse_decode(v, NONE, w, b), doubles((4, 0), (7, 5), (5,))),
    "sparse_decode_no_rows": (lambda v, w: pysel.sparse_decode(v, INDICES[:0], w), doubles((0, 3), (7, 5))),
}
differentiable = pytest.mark.parametrize("case", DIFFERENTIABLE)
OTHERS = {
    "gumbel_softmax": (lambda x: pysel.gumbel_softmax(x, 0.7, key=3), doubles((3, 4))),
    "gumbel_softmax hard": (lambda x: pysel.gumbel_softmax(x, 0.7, True, key=3), doubles((3, 4))),
    "gumbel_sigmoid": (lambda x: pysel.gumbel_sigmoid(x, 0.7, key=3), doubles((3, 4))),
    "gumbel_sigmoid hard": (lambda x: pysel.gumbel_sigmoid(x, 0.7, True, key=3), doubles((3, 4))),
    "usage_penalty exp": (lambda s: pysel.usage_penalty(s, torch.ones(3, 4), 0.1, "exp"), doubles((3, 4))),
}


@differentiable
def test_gradcheck(case):
    function, inputs = DIFFERENTIABLE[case]
    assert torch.autograd.gradcheck(function, inputs)


@every_activation
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_encoder_gradient_is_that_of_dense_torch(activation, dtype):
    x, weight, bias = whole((20, 6), -2, 2, dtype), whole((80, 6), -2, 2, dtype, 1), whole((80,), -3, 0, dtype, 2)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    values, indices = pysel.topk_encode(*inputs, 7, activation=activation)
    weights = whole(values.shape, -2, 2, dtype, 3)
    got = torch.autograd.grad(values, inputs, weights)
    dense = F.linear(*inputs)
    dense = (dense.relu() if activation == "relu" else dense).gather(1, indices)
    wanted = torch.autograd.grad(dense, inputs, weights)
    for g, w in zip(got, wanted, strict=True):
        assert_within_ulps(g, w, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_topk_gradient_is_that_of_torch(dtype):
    x = torch.stack([torch.randperm(200, generator=generator(i)) for i in range(5)]).to(dtype).requires_grad_()
    for k in (0, 1, 20, 200):
        weights = whole((5, k), -2, 2, dtype)
        got, wanted = (torch.autograd.grad(f(x, k)[0], x, weights)[0] for f in (pysel.topk, torch.topk))
        assert_same_bits(got, wanted)


def test_indices_have_no_gradient():
    x = torch.randn(3, 5, requires_grad=True)
    assert not pysel.topk(x, 2)[1].requires_grad
    assert not pysel.topk_encode(x, torch.randn(4, 5), None, 2)[1].requires_grad
    assert not pysel.select(x[0], 2).requires_grad
    assert not pysel.factor_counts(x, torch.zeros(3, 5, dtype=torch.int64), 2).requires_grad


FORWARD = r"forward mode|forward AD|jvp"


@differentiable
def test_forward_mode_raises(case):
    function, inputs = DIFFERENTIABLE[case]
    inputs = tuple(t.detach() for t in inputs)
    with pytest.raises((RuntimeError, NotImplementedError), match=FORWARD):
        torch.func.jvp(function, inputs, inputs)
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError), match=FORWARD):
        function(*(torch.autograd.forward_ad.make_dual(t, t) for t in inputs))


@differentiable
def test_functional_gradient_and_vmap(case):
    function, inputs = DIFFERENTIABLE[case]
    every = tuple(range(len(inputs)))
    wanted = torch.autograd.grad(function(*inputs).square().sum(), inputs)
    plain = tuple(t.detach() for t in inputs)
    got = torch.func.grad(lambda *a: function(*a).square().sum(), every)(*plain)
    batched = tuple(torch.stack([t, -t]) for t in plain)
    mapped = torch.vmap(torch.func.grad(lambda *a: function(*a).square().sum(), every))(*batched)
    values = torch.vmap(function)(*batched)
    for g, m, w in zip(got, mapped, wanted, strict=True):
        torch.testing.assert_close(g, w)
        torch.testing.assert_close(m[0], w)
    torch.testing.assert_close(values[0], function(*plain))
    torch.testing.assert_close(values[1], function(*(-t for t in plain)))


# --- second derivatives ---


@differentiable
def test_gradgradcheck(case):
    function, inputs = DIFFERENTIABLE[case]
    assert torch.autograd.gradgradcheck(function, inputs)


def test_third_derivative():
    # of a trilinear function, every one that mixes the three is a constant
    values, weight, rows = doubles((4, 3), (7, 5), (4, 5))
    (by_values,) = torch.autograd.grad(
        (pysel.sparse_decode(values, INDICES, weight) * rows).sum(), values, create_graph=True
    )
    (by_weight,) = torch.autograd.grad(by_values[1, 0], weight, create_graph=True)
    wanted = torch.zeros(7, 5, 4, 5, dtype=torch.float64)
    wanted[2, :, 1, :] = torch.eye(5)
    for f, d in ((2, 0), (2, 4), (0, 0)):
        (by_rows,) = torch.autograd.grad(by_weight[f, d], rows, retain_graph=True)
        assert torch.equal(by_rows, wanted[f, d])


@pytest.mark.parametrize("case", [*DIFFERENTIABLE, *OTHERS])
def test_second_derivatives_are_the_same_however_they_are_reached(case):
    function, inputs = (DIFFERENTIABLE | OTHERS)[case]
    every = tuple(range(len(inputs)))
    plain = tuple(t.detach() for t in inputs)

    def loss(*args):
        return function(*args).pow(3).sum()

    def slope(*args):
        return sum(g.square().sum() for g in torch.func.grad(loss, every)(*args))

    def recorded():
        leaves = [t.clone().requires_grad_() for t in plain]
        grads = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        return leaves, sum(g.square().sum() for g in grads)

    hessian = torch.autograd.functional.hessian(loss, plain)  # itself by finite differences in test_gradgradcheck
    gradient = torch.autograd.grad(loss(*inputs), inputs)
    wanted = [
        2
        * sum((g.flatten() @ hessian[j][i].reshape(g.numel(), -1)).view(plain[i].shape) for j, g in enumerate(gradient))
        for i in every
    ]
    assert any(w.abs().max() > 0.1 for w in wanted)
    leaves, total = recorded()
    reached = {"grad": torch.autograd.grad(total, leaves)}
    leaves, total = recorded()
    total.backward()
    reached["backward"] = [t.grad for t in leaves]
    leaves, total = recorded()
    total.backward(inputs=leaves)
    reached["backward(inputs=)"] = [t.grad for t in leaves]
    reached["func.grad of grad"] = torch.func.grad(slope, every)(*plain)
    batched = [torch.stack([t, t + 1]) for t in plain]
    reached["vmap of it"] = [g[0] for g in torch.vmap(torch.func.grad(slope, every))(*batched)]
    for way, got in reached.items():
        for g, w in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, w, msg=way)
    for row, func_row in zip(hessian, torch.func.jacrev(torch.func.grad(loss, every), every)(*plain), strict=True):
        for h, f in zip(row, func_row, strict=True):
            torch.testing.assert_close(h, f)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_second_derivatives_in_every_dtype_are_those_of_dense_torch(dtype):
    values, weight, bias = whole((4, 3), -2, 2, dtype), whole((7, 5), -2, 2, dtype, 1), whole((5,), -2, 2, dtype, 2)
    x, encoder = whole((4, 5), -1, 1, dtype, 3), whole((9, 5), -1, 1, dtype, 4)
    chosen = pysel.topk_encode(x, encoder, None, 3, activation="abs")[1]

    def decode(values, weight, bias):
        return pysel.sparse_decode(values, INDICES, weight, bias)

    def dense_decode(values, weight, bias):
        return (values.unsqueeze(2) * weight[INDICES]).sum(1) + bias

    def encode(x, encoder):
        return pysel.topk_encode(x, encoder, None, 3, activation="abs")[0]

    def dense_encode(x, encoder):
        return (x @ encoder.T).gather(1, chosen)

    for function, dense, inputs in (
        (decode, dense_decode, (values, weight, bias)),
        (encode, dense_encode, (x, encoder)),
        (lambda x: pysel.topk(x, 3)[0], lambda x: torch.topk(x, 3)[0], (torch.arange(7).to(dtype)[None],)),
    ):
        results = []
        for f in (function, dense):
            leaves = [t.clone().requires_grad_() for t in inputs]
            grads = torch.autograd.grad(f(*leaves).square().sum() / 8, leaves, create_graph=True)
            results.append(torch.autograd.grad(grads[0].sum(), leaves))
        for got, wanted in zip(*results, strict=True):
            assert got.dtype == dtype
            assert_within_ulps(got, wanted, 0)  # small whole numbers: exact in every order


@pytest.mark.parametrize("case", EMPTY)
def test_second_derivatives_of_nothing_are_zero(case):
    function, inputs = EMPTY[case]
    grads = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), inputs, allow_unused=True)
    for t, g, s in zip(inputs, grads, second, strict=True):
        assert g.shape == t.shape
        assert s is None or s.shape == t.shape
    if case == "sparse_decode_no_k":  # the bias alone: sum of b^2 over 4 rows, so 8 b, and 128 b
        assert_same_bits(grads[2], 8 * inputs[2].detach())
        assert_same_bits(second[2], 128 * inputs[2].detach())
    else:
        assert all(not g.any() for g in grads)
        assert all(s is None or not s.any() for s in second)


@pytest.mark.parametrize("case", ["topk_encode", "sparse_decode"])
def test_compiled_second_derivatives_raise(case):
    # torch.compile has none of any op
    function, inputs = DIFFERENTIABLE[case]
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    compiled = torch.compile(lambda *a: function(*a).square().sum(), backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"donated|double backward"):
        grads = torch.autograd.grad(compiled(*leaves), leaves, create_graph=True)
        torch.autograd.grad(grads[0].sum(), leaves)


TRACED = {
    "topk": lambda x: pysel.topk(x, 2)[0],
    "topk_encode": lambda x: pysel.topk_encode(x, torch.ones(9, 6), None, 3)[0],
    "sparse_decode": lambda x: pysel.sparse_decode(x[:, :3], INDICES, torch.ones(7, 5)),
    "gumbel_softmax": lambda x: pysel.gumbel_softmax(x, key=3),
    "gumbel_softmax hard": lambda x: pysel.gumbel_softmax(x, hard=True, key=3),
    "gumbel_sigmoid": lambda x: pysel.gumbel_sigmoid(x, key=3),
    "usage_penalty": lambda x: pysel.usage_penalty(x, torch.ones(4, 6), 0.1, "exp"),
}


@pytest.mark.filterwarnings("ignore")  # torch has deprecated torch.jit.trace
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("op", TRACED)
def test_traces_with_and_without_gradient(op, requires_grad):
    function, x = TRACED[op], torch.randn(4, 6, generator=generator())
    traced = torch.jit.trace(function, x.clone().requires_grad_(requires_grad))
    leaf = (2 * x).requires_grad_()
    results = [f(leaf) for f in (function, traced)]
    assert_same_bits(*(r.detach() for r in results))
    assert_same_bits(*(torch.autograd.grad(r.square().sum(), leaf)[0] for r in results))


# --- what is left out of a gradient says so ---

X, TAU, KEY = torch.randn(3, 4), torch.tensor(0.5), pysel.key(0)
CONSTANT = {
    "gumbel_softmax: tau": lambda x, c: OPS.gumbel_softmax(x, c, KEY, -1, False, 0, None),
    "gumbel_softmax_backward: tau": lambda x, c: OPS.gumbel_softmax_backward(x, X.softmax(-1), c, -1),
    "gumbel_sigmoid: tau": lambda x, c: OPS.gumbel_sigmoid(x, c, KEY, True, 0, None),
    "gumbel_sigmoid_backward: tau": lambda x, c: OPS.gumbel_sigmoid_backward(x, X, c, KEY, 0),
    "usage_penalty: counts": lambda x, c: OPS.usage_penalty(x, c.expand(3, 4), 0.1, "exp", 1),
}
PUBLIC = {
    "gumbel_softmax: tau": lambda c: pysel.gumbel_softmax(X, c, key=KEY),
    "gumbel_sigmoid: tau": lambda c: pysel.gumbel_sigmoid(X, c, True, key=KEY),
    "usage_penalty: counts": lambda c: pysel.usage_penalty(X, c.expand(3, 4), 0.1),
    "usage_penalty: gamma": lambda c: pysel.usage_penalty(X, X.abs(), c),
}


@pytest.mark.parametrize("argument", CONSTANT)
def test_raw_ops_refuse_an_argument_that_their_gradient_leaves_out(argument):
    needed = TAU.clone().requires_grad_()
    for x in (X, X.clone().requires_grad_()):
        with pytest.raises(ValueError, match=f"{argument} must not require grad"):
            CONSTANT[argument](x, needed)
    with torch.no_grad():
        assert not CONSTANT[argument](X, needed).requires_grad


@pytest.mark.parametrize("argument", PUBLIC)
def test_functional_gradients_refuse_it_too(argument):
    call = PUBLIC[argument]
    refused = pytest.raises(ValueError, match=f"{argument} must not require grad")
    with refused:
        call(TAU.clone().requires_grad_())
    with refused:
        torch.func.grad(lambda c: call(c).sum())(TAU)
    with refused:
        torch.vmap(torch.func.grad(lambda c: call(c).sum()))(TAU[None])
    with refused:
        torch.func.grad(lambda c: torch.func.grad(lambda x: x * call(c).sum())(torch.tensor(2.0)))(TAU)
