"""What makes calls of a few elements cheap: shortcuts, which must not show."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import pysel
from pysel.ops import gumbel
from tests.tensors import assert_same_bits

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
KEY = pysel.key(3)
SOFT = [pysel.gumbel_softmax, pysel.gumbel_sigmoid]
soft_ops = pytest.mark.parametrize("op", SOFT, ids=lambda f: f.__name__)

CONSTANT = {
    "gumbel_argmax": lambda x: pysel.gumbel_argmax(x, key=KEY),
    "weighted_sample": lambda x: pysel.weighted_sample(x, 2, log_weights=True, key=KEY),
    "select": lambda x: pysel.select(x.flatten(), 4),
    "factor_counts": lambda x: pysel.factor_counts(x, torch.arange(5).expand(3, 5), 5),
}
constants = pytest.mark.parametrize("op", CONSTANT)


def fresh(op, tau):
    """With a tau that no call has had."""
    return op(X, torch.tensor(tau, dtype=torch.float64), key=KEY)


# --- the last temperature is kept ---


@soft_ops
def test_each_temperature_is_its_own(op):
    for tau in (0.5, 2.0, 0.5, 0.5, 2.0):
        assert_same_bits(op(X, tau, key=KEY), fresh(op, tau))


@soft_ops
def test_a_temperature_of_inference_mode_can_be_differentiated_by(op):
    with torch.inference_mode():
        assert_same_bits(op(X, 0.37, key=KEY).clone(), fresh(op, 0.37))
    leaf = X.clone().requires_grad_()
    op(leaf, 0.37, key=KEY).sum().backward()
    with torch.inference_mode():  # and one from outside serves there
        assert op(X, 0.37, key=KEY).is_inference()


@soft_ops
def test_a_temperature_of_a_mode_stays_in_it(op):
    for tau in (0.41, 0.43):
        if tau == 0.43:
            op(X, tau, key=KEY)
        with FakeTensorMode():
            assert isinstance(op(torch.empty(3, 5), tau, key=torch.zeros(2, dtype=torch.int64)), FakeTensor)
        assert_same_bits(op(X, tau, key=KEY), fresh(op, tau))


@soft_ops
def test_a_temperature_of_a_transform_stays_in_it(op):
    for tau in (0.31, 0.33):
        if tau == 0.33:
            op(X, tau, key=KEY)
        torch.func.grad(lambda x, t=tau: op(x, t, key=KEY).square().sum())(X)
        torch.vmap(lambda x, t=tau: op(x, t, key=KEY))(X)
        assert not torch._C._functorch.is_functorch_wrapped_tensor(gumbel._last_tau[1])
        assert_same_bits(op(X, tau, key=KEY), fresh(op, tau))
        leaf = X.clone().requires_grad_()
        op(leaf, tau, key=KEY).square().sum().backward()
        assert leaf.grad.abs().max() > 0


# --- calls that need no gradient are made below autograd ---


def test_an_error_leaves_autograd_on():
    with pytest.raises(IndexError) as kept:  # and with it the frames of the call
        pysel.topk(X, 99)
    leaf = X.clone().requires_grad_()
    (2 * leaf).sum().backward()
    assert leaf.grad.eq(2).all()
    assert kept.tb is not None


@constants
def test_no_gradient_and_no_warning(op, recwarn):
    leaf = X.clone().requires_grad_()
    got = CONSTANT[op](leaf * 1)
    assert not got.requires_grad
    assert_same_bits(got, CONSTANT[op](X))
    assert not recwarn.list


@constants
def test_the_same_under_every_transform(op):
    wanted = CONSTANT[op](X)
    got = []
    torch.func.grad(lambda x: (got.append(CONSTANT[op](x)), x.sum())[1])(X)
    torch.func.grad(lambda y: torch.func.grad(lambda x: (got.append(CONSTANT[op](x)), (x * y).sum())[1])(X).sum())(X)
    with torch.inference_mode():
        got.append(CONSTANT[op](X))
    with forward_ad.dual_level():
        got.append(CONSTANT[op](forward_ad.make_dual(X, torch.ones_like(X))))
    got.append(torch.vmap(CONSTANT[op])(X[None])[0])
    assert len(got) == 5
    for g in got:
        assert torch.equal(g, wanted)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("op", [*CONSTANT, "topk", "gumbel_softmax"])
def test_modes_and_the_profiler_see_the_op(op):
    call = CONSTANT.get(op) or (lambda x: getattr(pysel, op)(x, **({"k": 2} if op == "topk" else {"key": KEY})))
    with Seen() as seen:
        call(X)
    assert getattr(torch.ops.pysel, op).default in seen.ops
    with torch.profiler.profile() as profile:
        call(X)
    assert f"pysel::{op}" in {event.name for event in profile.events()}
