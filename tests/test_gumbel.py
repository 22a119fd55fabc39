"""gumbel_softmax, gumbel_sigmoid and gumbel_argmax."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.utils.checkpoint
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

import pysel
from pysel import reference
from tests import golden
from tests.op_samples import RAW
from tests.statistics import accept, chi_square, independence, kolmogorov_smirnov, reject, scipy_stats
from tests.tensors import DTYPES, assert_same_bits, bits, name

SOFT = [pysel.gumbel_softmax, pysel.gumbel_sigmoid]
soft_ops = pytest.mark.parametrize("op", SOFT, ids=lambda f: f.__name__)
all_ops = pytest.mark.parametrize("op", [*SOFT, pysel.gumbel_argmax], ids=lambda f: f.__name__)
NO_JVP = r"jvp|forward"
hardness = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])


def noise_of(shape, key, kind, dtype=torch.float64, start=0):
    """The noise that an op adds to logits of this shape, by the raw ops."""
    n = math.prod(shape)
    high, low = (torch.ops.pysel.random_words(key, stream, start, n) for stream in (0, 1))
    return torch.ops.pysel.noise(high << 32 | low, kind, dtype == torch.float64).view(shape)


def random_logits(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- what they compute ---


@pytest.mark.parametrize(("shape", "dim"), [((7,), 0), ((5, 4), -1), ((5, 4), 0), ((3, 5, 4), 1), ((), 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_noise_goes_by_row_major_number_whatever_dim_is(shape, dim, dtype, key):
    x = random_logits(*shape, dtype=dtype)
    start = 6
    z = x + noise_of(shape, key, "gumbel", dtype, start)
    soft = pysel.gumbel_softmax(x, 0.5, dim=dim, key=key, start=start)
    torch.testing.assert_close(soft, torch.softmax(z / 0.5, dim), rtol=1e-5, atol=1e-7)
    index = pysel.gumbel_argmax(x, dim=dim, key=key, start=start)
    assert torch.equal(index, z.argmax(dim))
    hard = pysel.gumbel_softmax(x, 0.5, True, dim=dim, key=key, start=start)
    assert torch.equal(hard.argmax(dim), index)
    assert torch.equal(hard.sum(dim), torch.ones_like(hard.sum(dim)))
    assert set(hard.unique().tolist()) <= {0, 1}
    gates = pysel.gumbel_sigmoid(x, 0.5, key=key, start=start)
    t = x + noise_of(shape, key, "logistic", dtype, start)
    torch.testing.assert_close(gates, torch.sigmoid(t / 0.5), rtol=1e-5, atol=0)
    assert torch.equal(pysel.gumbel_sigmoid(x, 0.5, True, key=key, start=start), (t > 0).to(dtype))


@pytest.mark.parametrize("width", [1, 15, 16, 17, 1023, 1024, 1025, 3000])
def test_rows_sum_to_one_at_every_width(width, dtype, key):
    y = pysel.gumbel_softmax(random_logits(4, width, dtype=dtype), key=key)
    torch.testing.assert_close(
        y.double().sum(-1), torch.ones(4, dtype=torch.float64), rtol=0, atol=16 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("width", [*range(1, 36), 63, 64, 65, 100, 127, 128, 129])
def test_short_rows_are_what_each_would_be_alone(width, key):
    # Rows share a kernel's vectors, where a neighbour must not show: not even one that is very large, or NaN.
    rows = 3 * 1024 // width
    x = random_logits(rows, width, seed=width) * 3
    y = pysel.gumbel_softmax(x, key=key)
    z = x + noise_of(x.shape, key, "gumbel", x.dtype)
    torch.testing.assert_close(y, torch.softmax(z.double(), -1).float(), rtol=1e-5, atol=1e-12)
    x[1::3] += 80
    x[2::9] = torch.nan
    x[5::9, 1:] = -torch.inf
    mixed = pysel.gumbel_softmax(x, key=key)
    assert_same_bits(mixed[0::3], y[0::3])
    assert mixed[2::9].isnan().all()
    assert torch.equal(mixed[5::9], (torch.arange(width) == 0).float().expand_as(mixed[5::9]))
    for r in (0, 1, rows // 2, rows - 1):
        assert_same_bits(mixed[r], pysel.gumbel_softmax(x[r], key=key, start=r * width))
    x[5, 0] = -torch.inf
    with pytest.raises(ValueError, match="a row of only -inf"):
        pysel.gumbel_softmax(x, key=key)
    x[5, 0], x[rows // 2, -1] = 0, torch.inf
    with pytest.raises(ValueError, match=r"below \+inf"):
        pysel.gumbel_softmax(x, key=key)


@pytest.mark.parametrize("shape", [(200, 10), (3, 129), (2, 5000), (70_001,), (1500, 7, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_soft_samples_at_tau_1_are_right_to_four_ulp_down_to_the_smallest_subnormal(shape, dtype, key):
    # exp(x) / E over its sum, in long double; x in eighths, so that differences of logits are exact
    dim, info = min(1, len(shape) - 1), torch.finfo(dtype)
    step = torch.randint(
        -8 * 760 if dtype == torch.float64 else -8 * 120, 1, shape, generator=torch.Generator().manual_seed(1)
    )
    for x in (torch.round(8 * random_logits(*shape)) / 8, step / 8):
        x = x.to(dtype)
        x[torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.1] = -torch.inf
        x.select(dim, 2).copy_(3.0)
        y = pysel.gumbel_softmax(x, dim=dim, key=key, start=5)
        times = noise_of(shape, key, "exponential", dtype, 5).numpy().astype(np.longdouble)
        p = np.exp((x - 3).numpy().astype(np.longdouble)) / times
        wanted = p / p.sum(dim, keepdims=True)
        least = info.smallest_normal
        unit = np.exp2(np.floor(np.log2(np.maximum(wanted, least)))) * info.eps
        assert (np.abs(y.numpy().astype(np.longdouble) - wanted) <= 4 * unit).all()
        assert (y[x == -torch.inf] == 0).all()


@pytest.mark.parametrize(("dtype", "more", "near"), [(torch.float32, 2.0**-23, 1e-6), (torch.float64, 2.0**-52, 1e-14)])
@pytest.mark.parametrize("shape", [(300, 10), (3, 1500)], ids=str)
def test_soft_samples_are_continuous_in_tau_at_1(dtype, more, near, shape, key):
    x = random_logits(*shape, dtype=dtype)
    at, above, below = (pysel.gumbel_softmax(x, tau, key=key) for tau in (1.0, 1 + more, 1 - more / 2))
    for beside in (above, below):
        assert (beside != at).any()
        torch.testing.assert_close(beside, at, rtol=0, atol=near)


def test_a_tau_that_rounds_to_1_is_1(dtype, key):
    x = random_logits(20, 30, dtype=dtype)
    tau = 1 + (2.0**-53 if dtype == torch.float64 else 1e-9)
    assert_same_bits(pysel.gumbel_softmax(x, tau, key=key), pysel.gumbel_softmax(x, 1.0, key=key))


@pytest.mark.parametrize("row", golden.load("ops"), ids=lambda row: f"{row['op']}-{row['dtype']}")
@pytest.mark.parametrize("source", ["native", "reference"])
def test_golden_results(row, source):
    key = torch.tensor(row["key"])
    x = golden.INPUTS[row["input"]](row["shape"]).to(getattr(torch, row["dtype"]))
    if source == "native":
        out = getattr(pysel, row["op"])(x, key=key, **row["arguments"])
    else:
        out = reference.OPS[row["op"]](*RAW[row["op"]](x, key=key, **row["arguments"]))
    if out.is_floating_point():
        got = [f"{i % 2 ** (8 * out.element_size()):x}" for i in bits(out).flatten().tolist()]
    else:
        got = out.flatten().tolist()
    assert got == row["result"]


# --- shards ---


@pytest.mark.parametrize("cuts", [[5_001], [1, 2, 3, 7], [16_384, 40_000], list(range(0, 70_001, 9_999))], ids=str)
@hardness
def test_gates_of_shards_are_the_gates_of_the_whole(cuts, hard, dtype, key):
    x = random_logits(70_001, dtype=dtype)
    whole = pysel.gumbel_sigmoid(x, 0.4, hard, key=key, start=3)
    edges = [0, *cuts, 70_001]
    parts = [pysel.gumbel_sigmoid(x[begin:end], 0.4, hard, key=key, start=3 + begin) for begin, end in pairwise(edges)]
    assert_same_bits(torch.cat(parts), whole)


@pytest.mark.parametrize("sizes", [[1, 2, 9], [5, 5, 2], [12]], ids=str)
def test_rows_of_shards_are_the_rows_of_the_whole(sizes, dtype, key):
    x = random_logits(12, 333, dtype=dtype)
    ops = {
        "argmax": lambda x, start: pysel.gumbel_argmax(x, key=key, start=start),
        "soft": lambda x, start: pysel.gumbel_softmax(x, key=key, start=start),
        "hard": lambda x, start: pysel.gumbel_softmax(x, hard=True, key=key, start=start),
    }
    for op in ops.values():
        first = np.cumsum([0, *sizes]).tolist()
        parts = [op(part, 333 * begin) for part, begin in zip(x.split(sizes), first, strict=False)]
        assert_same_bits(torch.cat(parts), op(x, 0))


# --- extremes ---


@pytest.mark.parametrize("tau", [1e-320, 1e-45, 1e-30, 1e-3, 1.0, 1e30, 1e300])
@hardness
def test_no_temperature_or_logit_gives_nan(tau, hard, dtype, key):
    top = torch.finfo(dtype).max
    rows = [[0, top, -top, 1], [top, top, 0, -torch.inf], [0, 0, 0, 0], [-top, -top, -top, -torch.inf]]
    x = torch.tensor(rows, dtype=torch.float64).to(dtype)
    y = pysel.gumbel_softmax(x, tau, hard, key=key)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y.float().sum(-1), torch.ones(4), rtol=0, atol=1e-2)
    w = pysel.gumbel_sigmoid(x, tau, hard, key=key)
    assert ((w >= 0) & (w <= 1)).all()
    for op in SOFT:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(op(leaf, tau, hard, key=key)[..., :2].sum(), leaf)
        assert not torch.isnan(gradient).any()


def test_impossible_categories_have_probability_and_gradient_zero(dtype, key):
    x = random_logits(50, 6, dtype=dtype)
    x[:, 2] = -torch.inf
    x.requires_grad_()
    for hard in (False, True):
        y = pysel.gumbel_softmax(x, 2.0, hard, key=key)
        assert (y[:, 2] == 0).all()
        (gradient,) = torch.autograd.grad((y * torch.arange(6)).sum(), x)
        assert (gradient[:, 2] == 0).all()
        assert (gradient[:, :2] != 0).any()
        assert torch.isfinite(gradient).all()
    assert (pysel.gumbel_argmax(x, key=key) != 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=name)
@pytest.mark.parametrize("first", [0, 3, 1023, 1024, 3000, 40_000])
def test_ties_go_to_the_lowest_index(dtype, first, key):
    x = torch.zeros(50_000, dtype=dtype)
    x[first:] = 1e30  # too large for noise to tell them apart
    assert pysel.gumbel_argmax(x, key=key) == first
    assert pysel.gumbel_softmax(x, hard=True, key=key).nonzero().tolist() == [[first]]
    assert (pysel.gumbel_argmax(x.unsqueeze(1).expand(50_000, 3), dim=0, key=key) == first).all()
    soft = pysel.gumbel_softmax(x, 0.5, key=key)
    assert soft[first:].unique().numel() == 1
    # at tau = 1 logits and noise are not added up, and no noise is lost
    soft = pysel.gumbel_softmax(x, key=key)
    torch.testing.assert_close(soft[first:], pysel.gumbel_softmax(0 * x[first:], key=key, start=first))


def test_nan_logits_make_their_row_nan_and_no_other(dtype, key):
    x = random_logits(4, 2000, dtype=dtype)
    x[1, 1500] = torch.nan
    x[1, 1700] = torch.nan
    for hard in (False, True):
        y = pysel.gumbel_softmax(x, hard=hard, key=key)
        assert torch.isnan(y).all(-1).tolist() == [False, True, False, False]
        assert not torch.isnan(y[[0, 2, 3]]).any()
        w = pysel.gumbel_sigmoid(x, hard=hard, key=key)
        assert torch.equal(torch.isnan(w), torch.isnan(x))
        columns = pysel.gumbel_softmax(x, hard=hard, key=key, dim=0)
        assert torch.isnan(columns).all(0).nonzero().flatten().tolist() == [1500, 1700]
    index = pysel.gumbel_argmax(x, key=key)
    assert index[1] == 1500
    x[1] = 0
    assert torch.equal(pysel.gumbel_argmax(x, key=key)[[0, 2, 3]], index[[0, 2, 3]])


def test_soft_gates_stay_inside_the_open_interval(dtype, key):
    info = torch.finfo(dtype)
    top = float(torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0)))
    below_one = {torch.float32: 1 - 2**-24, torch.float64: top, torch.bfloat16: 1 - 2**-8, torch.float16: 1 - 2**-11}
    x = torch.tensor([-torch.inf, -3e4, 3e4], dtype=dtype).requires_grad_()
    w = pysel.gumbel_sigmoid(x, 0.1, key=key)
    assert w.tolist() == [info.smallest_normal, info.smallest_normal, below_one[dtype]]
    # the gradient is that of the gate before the clamp, which is 0 or 1 there
    (gradient,) = torch.autograd.grad(w.sum(), x)
    assert gradient.tolist() == [0, 0, 0]
    assert pysel.gumbel_sigmoid(x.detach(), 0.1, True, key=key).tolist() == [0, 0, 1]


def test_gate_gradient_comes_from_float32_even_for_half_types(key):
    # w = 1 - 2^-12 rounds to 1 in bfloat16, and the clamp makes it 1 - 2^-8; the gradient keeps 2^-12
    x = torch.full((100,), 8.0).requires_grad_()
    halved = x.detach().bfloat16().requires_grad_()
    exact, got = (torch.autograd.grad(pysel.gumbel_sigmoid(v, key=key).float().sum(), v)[0] for v in (x, halved))
    assert_same_bits(got, exact.bfloat16())


def test_hard_samples_pass_over_what_cannot_win_and_nothing_else(dtype, key):
    # Only elements that may win get their noise: rows on which such a shortcut could go wrong.
    width = 5000
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x[0, :2100] = -torch.inf  # more than a chunk
    x[1] = torch.finfo(dtype).min
    x[2, 4000] = 30
    x[3] = torch.linspace(-50, 50, width)
    x[4] = torch.linspace(50, -50, width)
    x[5, 3000:3010] = torch.nan
    x[6] = 6e4  # sums with noise tie
    x[7, 1:] = -torch.inf
    for start in range(5):
        raw = RAW["gumbel_argmax"](x, key=key, start=start)
        wanted = reference.OPS["gumbel_argmax"](*raw)
        assert torch.equal(pysel.gumbel_argmax(x, key=key, start=start), wanted)
        across = pysel.gumbel_argmax(x.T, dim=0, key=key, start=start)
        assert torch.equal(
            across, reference.OPS["gumbel_argmax"](*RAW["gumbel_argmax"](x.T, dim=0, key=key, start=start))
        )
        hard = pysel.gumbel_softmax(x, hard=True, key=key, start=start)
        rows = torch.tensor([0, 1, 2, 3, 4, 6, 7])
        assert torch.equal(hard[rows].argmax(-1), wanted[rows])


# --- tau ---


@soft_ops
@hardness
def test_tau_may_be_a_number_or_a_tensor(op, hard, dtype, key):
    x = random_logits(3, 50, dtype=dtype)
    wanted = op(x, 0.5, hard, key=key)
    for tau in (*(torch.tensor(0.5, dtype=d) for d in DTYPES), np.float64(0.5)):
        assert_same_bits(op(x, tau, hard, key=key), wanted)
    assert_same_bits(op(x, 2, hard, key=key), op(x, 2.0, hard, key=key))


@soft_ops
def test_tau_zero_with_hard_is_the_limit_and_has_zero_gradient(op, dtype, key):
    x = random_logits(4, 300, dtype=dtype).requires_grad_()
    for zero in (0, 0.0, -0.0, torch.tensor(0.0)):
        y = op(x, zero, True, key=key)
        assert_same_bits(y.detach(), op(x.detach(), 1.0, True, key=key))
        (gradient,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        assert torch.equal(gradient, torch.zeros_like(x))
        if gradient.requires_grad:
            (second,) = torch.autograd.grad(gradient.sum(), x, allow_unused=True)
            assert second is None or torch.equal(second, torch.zeros_like(x))


BAD_TAU = [
    (-1.0, ValueError, "tau must be finite and above 0 .0 only with hard=True., got -1"),
    (float("nan"), ValueError, "tau must be finite and above 0 .0 only with hard=True., got nan"),
    (float("inf"), ValueError, "tau must be finite and above 0 .0 only with hard=True., got inf"),
    (torch.tensor(-0.5), ValueError, "tau must be finite and above 0 .0 only with hard=True., got -0.5"),
    (torch.tensor([0.5]), ValueError, r"tau must be a number or a 0-d tensor, got shape \[1\]"),
    (torch.tensor(0.5, requires_grad=True), ValueError, "tau must not require grad"),
    (torch.tensor(1), TypeError, "tau must be float32, float64, bfloat16 or float16, got torch.int64"),
    (10**400, ValueError, "tau must fit into a float64, got an integer of 1329 bits"),
    ("1", TypeError, "tau must be a number, got str"),
    (True, TypeError, "tau must be a number, got bool"),
    (None, TypeError, "tau must be a number, got NoneType"),
]


@soft_ops
@hardness
@pytest.mark.parametrize(("tau", "error", "message"), BAD_TAU, ids=[str(b[0])[:20] for b in BAD_TAU])
def test_bad_tau_is_refused(op, hard, tau, error, message, key):
    with pytest.raises(error, match=f"{op.__name__}: {message}"):
        op(torch.zeros(4), tau, hard, key=key)


@soft_ops
def test_tau_zero_needs_hard(op, key):
    with pytest.raises(ValueError, match=f"{op.__name__}: tau must be finite and above 0 .0 only with hard"):
        op(torch.zeros(4), 0.0, key=key)


# --- bad logits ---


def with_value(value, *shape):
    x = random_logits(*shape)
    x[..., 0] = value
    return x


BAD_LOGITS = {
    "one +inf": (with_value(torch.inf, 3, 5), {}, ValueError, "logits must be below \\+inf, got \\+inf"),
    "NaN and +inf": (torch.tensor([torch.nan, torch.inf]), {}, ValueError, "logits must be below \\+inf"),
    "row of -inf": (
        torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]]), {}, ValueError,
        "logits must have a finite value in every row, got a row of only -inf",
    ),
    "column of -inf": (
        torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]]), {"dim": 0}, ValueError,
        "logits must have a finite value in every row, got a row of only -inf",
    ),
    "dim 2": (torch.zeros(2, 3), {"dim": 2}, IndexError, "dim must be between -2 and 1, got 2"),
    "dim -3": (torch.zeros(2, 3), {"dim": -3}, IndexError, "dim must be between -2 and 1, got -3"),
    "0-d dim 1": (torch.tensor(0.0), {"dim": 1}, IndexError, "dim must be between -1 and 0, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("op", [pysel.gumbel_softmax, pysel.gumbel_argmax], ids=lambda f: f.__name__)
@pytest.mark.parametrize("bad", [1.0, None, "0", True], ids=repr)
def test_dim_that_is_no_int_is_refused(op, bad, key):
    with pytest.raises(TypeError, match=f"{op.__name__}: dim must be an int, got {type(bad).__name__}"):
        op(torch.zeros(2, 3), dim=bad, key=key)


# gates have neither rows nor a dim
BAD_CALLS = [(op, case) for op in (*SOFT, pysel.gumbel_argmax) for case in BAD_LOGITS]
BAD_CALLS = [(op, case) for op, case in BAD_CALLS if op is not pysel.gumbel_sigmoid or "+inf" in case]


@pytest.mark.parametrize(("op", "case"), BAD_CALLS, ids=[f"{op.__name__}-{case}" for op, case in BAD_CALLS])
@pytest.mark.parametrize("source", ["native", "reference"])
def test_bad_logits_are_refused_and_left_alone(op, case, source, dtype, device, key):
    x, arguments, error, message = BAD_LOGITS[case]
    x = x.to(dtype).to(device)
    before = bits(x).clone()
    calls = [{}] if op is pysel.gumbel_argmax else [{"hard": False}, {"hard": True}]
    for more in calls:
        with pytest.raises(error, match=f"{op.__name__}: {message}"):
            if source == "native":
                op(x, key=key, validate=True, **arguments, **more)
            else:
                reference.OPS[op.__name__](*RAW[op.__name__](x, key=key, **arguments, **more))
        assert torch.equal(bits(x), before)
        assert key.tolist() == [20_240_601, 0]


@all_ops
@hardness
def test_bad_logits_that_another_thread_finds_are_refused(op, hard, dtype, key):
    x = torch.zeros(200_000, dtype=dtype)
    x[-1] = torch.inf
    more = {} if op is pysel.gumbel_argmax else {"hard": hard}
    for shaped in (x, x.view(20, -1), x.view(1000, -1)):
        with pytest.raises(ValueError, match=f"{op.__name__}: logits must be below .inf, got .inf"):
            op(shaped, key=key, **more)


@all_ops
def test_validate_false_skips_value_checks_alone(op, device, key):
    x = torch.tensor([[torch.inf, 0.0], [-torch.inf, -torch.inf], [1.0, 2.0]], device=device)
    got = op(x, key=key, validate=False)
    assert got.shape == (op(x[2:], key=key).shape[0] * 3, *got.shape[1:])
    assert not torch.isnan(got[2].float()).any()
    if op is pysel.gumbel_argmax:
        assert got[0] == 0  # +inf wins
        assert ((got >= 0) & (got < 2)).all()
    with pytest.raises(ValueError, match="start"):
        op(x, key=key, validate=False, start=-1)


@all_ops
def test_validate_true_and_none_give_the_same(op, key):
    x = random_logits(3, 40)
    assert_same_bits(op(x, key=key, validate=True), op(x, key=key))
    assert_same_bits(op(x, key=key, validate=False), op(x, key=key))


# --- gradients ---

GRADIENT_CASES = {
    "softmax": lambda x, k: pysel.gumbel_softmax(x, 0.7, key=k),
    "softmax cold": lambda x, k: pysel.gumbel_softmax(x, 0.1, key=k),
    "softmax dim 0": lambda x, k: pysel.gumbel_softmax(x, 1.3, dim=0, key=k, start=2),
    "softmax dim 1": lambda x, k: pysel.gumbel_softmax(x.reshape(2, -1, 2), torch.tensor(1.3), dim=1, key=k),
    "sigmoid": lambda x, k: pysel.gumbel_sigmoid(x, 0.7, key=k),
    "sigmoid tensor tau": lambda x, k: pysel.gumbel_sigmoid(x, torch.tensor(0.4), key=k, start=5),
}


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradcheck_and_gradgradcheck(case, key):
    x = random_logits(4, 5, dtype=torch.float64).requires_grad_()

    def f(x):
        return GRADIENT_CASES[case](x, key)

    assert gradcheck(f, x)
    assert gradgradcheck(f, x)
    strided = random_logits(5, 8, dtype=torch.float64).t()[::2].detach().requires_grad_()
    assert gradcheck(f, strided)
    assert gradgradcheck(f, strided)


@soft_ops
@pytest.mark.parametrize("shape", [(3, 1500), (4, 5)], ids=str)
def test_hard_has_the_gradient_of_soft(op, shape, dtype, key):
    x = random_logits(*shape, dtype=dtype).requires_grad_()
    weight = random_logits(*shape, seed=1, dtype=dtype)
    soft, hard = (torch.autograd.grad(op(x, 0.6, h, key=key, start=1), x, weight)[0] for h in (False, True))
    assert_same_bits(hard, soft)


@soft_ops
def test_hard_has_the_second_gradient_of_soft(op, key):
    x = random_logits(3, 8, dtype=torch.float64).requires_grad_()
    weight = random_logits(3, 8, seed=1, dtype=torch.float64)

    def second(hard):
        (first,) = torch.autograd.grad(op(x, 0.6, hard, key=key), x, weight, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), x)[0]

    torch.testing.assert_close(second(True), second(False), rtol=1e-12, atol=1e-14)
    assert second(False).abs().max() > 1e-3


@soft_ops
def test_gradient_of_an_expanded_or_strided_gradient(op, dtype, key):
    x = random_logits(6, 10, dtype=dtype).requires_grad_()
    weight = random_logits(10, 6, seed=1, dtype=dtype)
    (got,) = torch.autograd.grad(op(x, key=key), x, weight.t())
    (wanted,) = torch.autograd.grad(op(x, key=key), x, weight.t().contiguous())
    assert_same_bits(got, wanted)
    (got,) = torch.autograd.grad(op(x, key=key), x, weight[0, :1].expand(6, 10))
    (wanted,) = torch.autograd.grad(op(x, key=key), x, weight[0, :1].expand(6, 10).contiguous())
    assert_same_bits(got, wanted)


@soft_ops
@hardness
def test_changing_what_backward_saved_raises(op, hard, key):
    def fresh():
        leaf = random_logits(3, 5).requires_grad_()
        x, tau = leaf * 1, torch.tensor(0.5)
        return x, tau, op(x, tau, hard, key=key)

    changed = 0
    for which in range(3):
        saved = fresh()
        saved[which].detach().add_(1) if which != 1 else saved[which].add_(1)
        try:
            saved[2].sum().backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            changed += 1
    # tau, and the one of logits and output that the gradient is computed from
    assert changed == 2


def test_index_has_no_gradient_and_refuses_none(key):
    x = random_logits(3, 5).requires_grad_()
    assert not pysel.gumbel_argmax(x, key=key).requires_grad


@soft_ops
@hardness
def test_no_graph_is_recorded_without_need(op, hard, key):
    assert op(random_logits(3), hard=hard, key=key).grad_fn is None
    with torch.no_grad():
        assert op(random_logits(3).requires_grad_(), hard=hard, key=key).grad_fn is None


@soft_ops
@hardness
def test_forward_mode_raises(op, hard, key):
    x = random_logits(3, 5)

    def f(x):
        return op(x, hard=hard, key=key)

    with pytest.raises((RuntimeError, NotImplementedError), match=NO_JVP):
        torch.func.jvp(f, (x,), (torch.ones_like(x),))
    with pytest.raises((RuntimeError, NotImplementedError), match=NO_JVP):
        torch.func.jacfwd(f)(x)
    raw = getattr(torch.ops.pysel, op.__name__)
    for call in (f, lambda x: raw(*RAW[op.__name__](x, hard=hard, key=key))):
        with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError), match=NO_JVP):
            call(forward_ad.make_dual(x, torch.ones_like(x)))


@soft_ops
@hardness
def test_raw_op_under_functorch_is_right_or_raises(op, hard, key):
    x = random_logits(3, 5)
    raw = getattr(torch.ops.pysel, op.__name__)

    def loss(x):
        return raw(*RAW[op.__name__](x, 0.7, hard=hard, key=key))[..., 0].sum()

    wanted = torch.func.grad(lambda x: op(x, 0.7, hard, key=key)[..., 0].sum())(x)
    assert wanted.abs().max() > 0
    try:
        got = torch.func.grad(loss)(x)
    except (RuntimeError, NotImplementedError):
        return
    assert torch.equal(got, wanted)


@soft_ops
@hardness
def test_functorch_gradients_agree_with_autograd(op, hard, key, no_vmap_fallback):
    x = random_logits(4, 6, dtype=torch.float64)
    weight = torch.linspace(-1, 1, 6, dtype=torch.float64)
    keys = pysel.split(key, 4)

    def loss(x, k):
        return (op(x, 0.7, hard, key=k) * weight).sum()

    def by_autograd(x, k):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, k), leaf)[0]

    wanted = torch.stack([by_autograd(row, k) for row, k in zip(x, keys, strict=True)])
    single = torch.stack([torch.func.grad(loss)(row, k) for row, k in zip(x, keys, strict=True)])
    torch.testing.assert_close(single, wanted, rtol=1e-12, atol=0)
    per_sample = torch.vmap(torch.func.grad(loss))(x, keys)
    torch.testing.assert_close(per_sample, wanted, rtol=1e-12, atol=0)
    of_vmap = torch.func.grad(lambda x: torch.vmap(loss)(x, keys).sum())(x)
    torch.testing.assert_close(of_vmap, wanted, rtol=1e-12, atol=0)
    jacobian = torch.func.jacrev(lambda x: op(x, 0.7, hard, key=key))(x[0])
    torch.testing.assert_close(weight @ jacobian, by_autograd(x[0], key), rtol=1e-9, atol=1e-12)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: loss(x, key)))(x[0])
    torch.testing.assert_close(
        hessian, torch.autograd.functional.hessian(lambda x: loss(x, key), x[0]), rtol=1e-9, atol=1e-12
    )


@soft_ops
@hardness
def test_vmap_over_tau_equals_a_loop(op, hard, key, no_vmap_fallback):
    x, taus = random_logits(6), torch.tensor([0.3, 1.0, 4.0])
    got = torch.vmap(lambda tau: op(x, tau, hard, key=key))(taus)
    for i, tau in enumerate(taus):
        assert_same_bits(got[i], op(x, tau, hard, key=key))


@soft_ops
@hardness
def test_checkpointed_recomputation_draws_the_same_key(op, hard):
    x = random_logits(200)

    def checkpointed(f, x):
        return torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False)

    def gradient(run, **arguments):
        torch.manual_seed(4)
        leaf = x.clone().requires_grad_()
        y = run(lambda x: op(x, 0.5, hard, **arguments).square(), leaf)
        torch.randn(3)  # the generator has moved on by the time of the backward pass
        (y * torch.arange(200)).sum().backward()
        return leaf.grad

    def plain(f, x):
        return f(x)

    assert_same_bits(gradient(checkpointed), gradient(plain))
    assert_same_bits(gradient(checkpointed, key=7), gradient(plain, key=7))
    # as documented: torch puts back its own generators, and no others
    own = [gradient(run, generator=torch.Generator().manual_seed(4)) for run in (checkpointed, plain)]
    assert not torch.equal(*own)


def test_zeros_at_a_small_tau_are_those_of_softmax(dtype):
    logits, noiseless = torch.tensor([0.0, -200.0], dtype=dtype), []
    for f in (lambda x: pysel.gumbel_softmax(x, 0.01, key=0), lambda x: torch.softmax(x / 0.01, -1)):
        leaf = logits.clone().requires_grad_()
        y = f(leaf)
        noiseless.append(y.detach())
        (gradient,) = torch.autograd.grad(y.log().sum(), leaf)
        assert gradient.isnan().all()
    assert torch.equal(*noiseless)


# --- torch.compile ---


@soft_ops
@hardness
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_annealing_a_tensor_tau_compiles_once(op, hard, backend, key):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda x, tau, k: op(x, tau, hard, key=k), fullgraph=True, backend=counter)
    x = random_logits(3, 50)
    for epoch in range(20):
        tau, k = torch.tensor(2.0 * 0.8**epoch), pysel.fold_in(key, epoch)
        assert_same_bits(compiled(x, tau, k), op(x, tau, hard, key=k))
    assert counter.frame_count == 1


@soft_ops
@hardness
def test_annealing_a_float_tau_compiles_a_bounded_number_of_times(op, hard, key):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda x, tau: op(x, tau, hard, key=key), fullgraph=True, backend=counter)
    x = random_logits(3, 50)
    for epoch in range(20):
        assert_same_bits(compiled(x, 2.0 * 0.8**epoch), op(x, 2.0 * 0.8**epoch, hard, key=key))
    assert counter.frame_count <= 2


@soft_ops
@hardness
def test_compiled_training_step_has_the_eager_gradient(op, hard, key):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")

    def loss(x, tau, k):
        return (op(torch.tanh(x), tau, hard, key=k) * torch.arange(50)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in range(3):
        x, tau, k = random_logits(3, 50, seed=step), torch.tensor(0.9**step), pysel.fold_in(key, step)
        eager, leaf = (x.clone().requires_grad_() for _ in range(2))
        loss(eager, tau, k).backward()
        compiled(leaf, tau, k).backward()
        torch.testing.assert_close(leaf.grad, eager.grad, rtol=1e-4, atol=1e-4)
        assert leaf.grad.abs().max() > 0
    assert counter.frame_count == 1


# --- size ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_more_than_two_to_the_24_categories(dtype, key):
    n = 2**24 + 5
    x = torch.zeros(n, dtype=dtype)
    x[-1] = 100
    assert pysel.gumbel_argmax(x, key=key) == n - 1
    x[-1], x[2**24 + 1] = 0, 100
    assert pysel.gumbel_argmax(x, key=key) == 2**24 + 1
    y = pysel.gumbel_softmax(x, 0.1, True, key=key)
    assert y[2**24 + 1] == 1
    assert y.count_nonzero() == 1
    # every category can win, the last ones too
    x[2**24 + 1] = 0
    winners = torch.stack([pysel.gumbel_argmax(x, key=k) for k in pysel.split(key, 40)])
    accept({"uniform": kolmogorov_smirnov(winners.double() / n, scipy_stats().uniform.cdf)})
    assert winners.unique().numel() == 40


# --- distribution ---
#
# One call draws N rows, so a check costs one kernel call and one statistic.

N = 60_000
LOGITS = torch.tensor([0.0, 1.0, -1.0, 2.5, -torch.inf, 0.5], dtype=torch.float64)
PROBABILITIES = torch.softmax(LOGITS, 0)


def frequencies(index):
    """p-values of drawn categories, and of the independence of successive draws."""
    index = index.flatten()
    pairs = np.bincount((index[::2] * 6 + index[1::2]).numpy(), minlength=36).reshape(6, 6)
    possible = PROBABILITIES.numpy() > 0
    return {
        "frequencies": chi_square(np.bincount(index.numpy(), minlength=6), PROBABILITIES),
        "neighbours": independence(pairs[possible][:, possible]),
    }


def rows(logits, dtype=torch.float32):
    return logits.to(dtype).expand(N, 6)


def from_columns(logits, key):
    return pysel.gumbel_argmax(logits.float().unsqueeze(1).expand(6, N), dim=0, key=key)


def with_noise(draw):
    def sampler(logits, key):
        torch.manual_seed(int(key[0]))
        return (logits + draw((N, 6))).argmax(-1)

    return sampler


RIGHT_CATEGORICAL = {
    "argmax": lambda logits, key: pysel.gumbel_argmax(rows(logits), key=key),
    "argmax of columns": from_columns,
    "argmax float64": lambda logits, key: pysel.gumbel_argmax(rows(logits, torch.float64), key=key),
    "argmax bfloat16": lambda logits, key: pysel.gumbel_argmax(rows(logits, torch.bfloat16), key=key),
    "hard": lambda logits, key: pysel.gumbel_softmax(rows(logits), 0.5, True, key=key).argmax(-1),
    "hard at tau 0": lambda logits, key: pysel.gumbel_softmax(rows(logits), 0, True, key=key).argmax(-1),
    "soft": lambda logits, key: pysel.gumbel_softmax(rows(logits), 0.5, key=key).argmax(-1),
    "one key a row": lambda logits, key: torch.vmap(lambda k: pysel.gumbel_argmax(logits, key=k))(
        pysel.split(key, 6000)
    ),
}
WRONG_CATEGORICAL = {
    "too cold": lambda logits, key: pysel.gumbel_argmax(rows(logits * 1.05), key=key),
    "normal noise": with_noise(torch.randn),
    "logistic noise": with_noise(lambda shape: torch.rand(shape).logit()),
    "overlapping noise": lambda logits, key: torch.stack(
        [pysel.gumbel_argmax(rows(logits)[: N // 2], key=key, start=s) for s in (0, 3)], dim=1
    ),
    "impossible category": lambda logits, key: pysel.gumbel_argmax(rows(logits.clamp_min(-9)), key=key),
}


@pytest.mark.parametrize("sampler", RIGHT_CATEGORICAL)
def test_categories_have_their_probabilities(sampler, key):
    accept(frequencies(RIGHT_CATEGORICAL[sampler](LOGITS, key)))


@pytest.mark.parametrize("sampler", WRONG_CATEGORICAL)
def test_wrong_categorical_samplers_are_seen(sampler, key):
    reject(frequencies(WRONG_CATEGORICAL[sampler](LOGITS, key)))


def test_many_categories_have_their_probabilities(key):
    logits = random_logits(300, dtype=torch.float64)

    def check(logits):
        index = pysel.gumbel_argmax(logits.float().expand(200_000, 300), key=key)
        return {
            "all": chi_square(
                np.bincount(index, minlength=300), torch.softmax(random_logits(300, dtype=torch.float64), 0)
            )
        }

    accept(check(logits))
    reject(check(logits * 1.03))


def check_concrete(y, logits, tau):
    """p-values of soft samples [N, 3]: tau log(y_i / y_j) - (x_i - x_j) is logistic for every pair."""
    logs = y.double().log() * tau - logits
    pairs = {f"{i} and {j}": logs[:, i] - logs[:, j] for i, j in ((0, 1), (0, 2), (1, 2))}
    return {pair: kolmogorov_smirnov(difference, scipy_stats().logistic.cdf) for pair, difference in pairs.items()}


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_soft_samples_have_the_concrete_distribution(tau, dtype, key):
    logits = torch.tensor([0.3, -0.5, 1.2], dtype=torch.float64)
    x = logits.to(dtype).expand(N, 3)
    accept(check_concrete(pysel.gumbel_softmax(x, tau, key=key), logits, tau))
    columns = pysel.gumbel_softmax(x.t(), tau, dim=0, key=key).t()
    accept(check_concrete(columns, logits, tau))
    reject(check_concrete(pysel.gumbel_softmax(x, tau * 1.05, key=key), logits, tau))
    reject(check_concrete(pysel.gumbel_softmax(x * 0.9, tau, key=key), logits, tau))
    torch.manual_seed(0)
    reject(check_concrete(torch.softmax((x + torch.randn(N, 3)) / tau, -1), logits, tau))


def check_gates(w, logit, tau):
    """p-value of soft gates: the binary concrete distribution has P(W <= w) = sigmoid(tau logit(w) - s)."""
    return {"concrete": kolmogorov_smirnov(w.double(), lambda w: 1 / (1 + np.exp(logit - tau * np.log(w / (1 - w)))))}


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_soft_gates_have_the_binary_concrete_distribution(tau, dtype, key):
    x = torch.full((N,), 0.8, dtype=dtype)
    accept(check_gates(pysel.gumbel_sigmoid(x, tau, key=key), 0.8, tau))
    reject(check_gates(pysel.gumbel_sigmoid(x, tau * 1.05, key=key), 0.8, tau))
    reject(check_gates(pysel.gumbel_sigmoid(x + 0.05, tau, key=key), 0.8, tau))
    two_class = pysel.gumbel_softmax(torch.stack([x, torch.zeros_like(x)], 1), tau, key=key)[:, 0]
    accept(check_gates(two_class, 0.8, tau))  # the same distribution, from two draws
    torch.manual_seed(0)
    reject(check_gates(torch.sigmoid((x + torch.randn(N)) / tau), 0.8, tau))


def test_hard_gates_open_with_their_probabilities(dtype, key):
    logits = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0])

    def check(x):
        opened = pysel.gumbel_sigmoid(x.to(dtype).expand(N, 5), 0.7, True, key=key).sum(0, dtype=torch.float64)
        p = torch.sigmoid(logits.double())
        return {
            str(i): chi_square([n, N - n], [q, 1 - q]) for i, (n, q) in enumerate(zip(opened.tolist(), p, strict=True))
        }

    accept(check(logits))
    reject(check(logits * 1.1))
    reject(check(logits + 0.05))
