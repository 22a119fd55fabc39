"""Usage counts and the penalty.

`python -m tests.test_usage` prints hashes of what the ops give, under the variant that PYSEL_CPU_VARIANT names.
"""

import functools
import hashlib
import json
import math
import os
import subprocess
import sys
from decimal import MAX_EMAX, Decimal, localcontext
from pathlib import Path

import pytest
import torch

import pysel
from pysel import reference
from tests.tensors import DTYPES, LAYOUTS, assert_same_bits, assert_within_ulps, bits, laid_out, name

ROOT = Path(__file__).parent.parent
INFO = pysel.build_info()
OPS = torch.ops.pysel
FLOAT_COUNTS = [torch.float32, torch.float64]
COUNT_DTYPES = [*FLOAT_COUNTS, torch.int32, torch.int64]
FORMS = ["log", "linear", "exp", "rate"]
MUTABLE = [layout for layout in LAYOUTS if layout != "negated"]
ORDERS = ["ascending", "random", "descending", "duplicates", "one", "none"]

every_count = pytest.mark.parametrize("counts_dtype", COUNT_DTYPES, ids=name)
every_form = pytest.mark.parametrize("form", FORMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@functools.cache
def _used(n):
    return torch.randint(50, (n,), generator=generator(n))


@functools.cache
def _score(n):
    return torch.rand(n, generator=generator(n + 1), dtype=torch.float64)


def used(n, dtype=torch.float32):
    return _used(n).to(dtype, copy=True)


def score(n, dtype=torch.float32):
    return _score(n).to(dtype, copy=True)


@functools.cache
def indices(n, order):
    """Selected indices, some in each block of a long vector."""
    if order == "none" or n == 0:
        return torch.zeros(0, dtype=torch.int64)
    if order == "one":
        return torch.tensor([n - 1])
    if order == "duplicates":
        return torch.randint(n, (n + 5,), generator=generator(n)) // 3 * 3
    chosen = torch.randperm(n, generator=generator(n))[: n // 3 + 1]
    return chosen if order == "random" else chosen.sort(descending=order == "descending").values


def decay_of(dtype):
    return 0.9 if dtype.is_floating_point else 1.0


# --- values ---


@every_count
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [0, 1, 7, 1025, 50_000])
def test_update_equals_the_reference(n, order, counts_dtype, device):
    selected = indices(n, order).to(device)
    for decay in {1.0, 0.0, 0.9} if counts_dtype.is_floating_point else {1}:
        got, wanted = (used(n, counts_dtype).to(device) for _ in range(2))
        assert pysel.usage_update_(got, selected, decay) is got
        reference.usage_update_(wanted, selected, decay)
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("counts_dtype", [torch.float32, torch.int64], ids=name)
@pytest.mark.parametrize("layout", MUTABLE)
def test_update_writes_any_memory(layout, counts_dtype):
    n = 40_000
    got, wanted = laid_out(used(n, counts_dtype), layout), used(n, counts_dtype)
    selected = indices(n, "random")
    decay = decay_of(counts_dtype)
    pysel.usage_update_(got, laid_out(selected, layout), decay)
    reference.usage_update_(wanted, selected, decay)
    assert torch.equal(got, wanted)


def test_update_leaves_the_memory_between_strided_counts():
    memory = torch.full((3 * 20_000,), 7.0)
    pysel.usage_update_(memory[1::3], indices(20_000, "random"), 0.5)
    assert (memory.view(-1, 3)[:, [0, 2]] == 7).all()


@pytest.mark.parametrize("counts_dtype", [torch.int32, torch.int64], ids=name)
@pytest.mark.parametrize("order", ["ascending", "random", "duplicates"])
def test_whole_counts_stay_at_their_largest(order, counts_dtype, device):
    n, most = 1000, torch.iinfo(counts_dtype).max
    selected = {"ascending": torch.arange(n), "random": torch.arange(n).flip(0)}.get(order, torch.arange(n) // 9 * 9)
    counts = most - torch.arange(n, dtype=counts_dtype) % 5
    counts[::7] = torch.iinfo(counts_dtype).min  # and these are far from it
    times = selected.bincount(minlength=n)
    wanted = [min(most, c + t) for c, t in zip(counts.tolist(), times.tolist(), strict=True)]
    assert wanted.count(most) > n / 10
    for update in (
        lambda c, s: pysel.usage_update_(c, s),
        lambda c, s: pysel.usage_step_(c, s, torch.zeros(n, device=device), 0.1),
        lambda c, s: reference.usage_update_(c, s, 1.0),
    ):
        got = counts.to(device, copy=True)
        update(got, selected.to(device))
        assert got.tolist() == wanted
    got = counts.to(device, copy=True)
    chosen = pysel.usage_select_(got, *torch.rand(2, n, device=device), 0.5, n, 0.0)
    assert chosen.tolist() == list(range(n))
    assert got.tolist() == [min(most, c + 1) for c in counts.tolist()]


@every_form
@every_count
@pytest.mark.parametrize("n", [0, 1, 3000])
def test_penalty_equals_the_reference(n, counts_dtype, form, dtype, device):
    scores, counts = score(n, dtype).to(device), used(n, counts_dtype).to(device)
    for gamma, step in ((0.0, 1), (0.013, 1), (0.3, 7), (2.5, 1000)):
        got = pysel.usage_penalty(scores, counts, gamma, form, step)
        assert_same_bits(got, reference.usage_penalty(scores, counts, gamma, form, step))


@pytest.mark.parametrize(("dtype", "half_ulp"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_float64_becomes_a_half_by_way_of_float32(dtype, half_ulp, device):
    """The last little bit is lost in float32, which leaves a tie; aarch64 would round up at once."""
    counts = torch.full((40,), 1 + half_ulp + 2**-40, dtype=torch.float64, device=device)
    scores = torch.zeros(40, dtype=dtype, device=device)
    for penalty in (
        pysel.usage_penalty(scores, counts, 1.0, "linear"),
        reference.usage_penalty(scores, counts, 1.0, "linear", 1),
    ):
        assert (penalty == -1).all()


@every_form
def test_penalty_in_any_memory_and_shape(form, layout, dtype):
    scores, counts = score(60, dtype).view(3, 4, 5), used(60).view(3, 4, 5)
    got = pysel.usage_penalty(laid_out(scores, layout), laid_out(counts, layout), 0.1, form, 3)
    assert got.is_contiguous()
    assert_same_bits(got, reference.usage_penalty(scores, counts, 0.1, form, 3))


@every_form
@every_count
@pytest.mark.parametrize("order", ORDERS)
def test_step_is_update_then_penalty(order, counts_dtype, form, dtype):
    for n in (1, 33_000):
        scores, selected, decay = score(n, dtype), indices(n, order), decay_of(counts_dtype)
        counts, wanted = used(n, counts_dtype), used(n, counts_dtype)
        got = pysel.usage_step_(counts, selected, scores, 0.2, decay, form, 3)
        pysel.usage_update_(wanted, selected, decay)
        assert_same_bits(counts, wanted)
        assert_same_bits(got, pysel.usage_penalty(scores, wanted, 0.2, form, 3))


@pytest.mark.parametrize("layout", MUTABLE)
def test_step_in_any_memory(layout, dtype):
    n = 20_000
    given = laid_out(used(n), layout)
    got = pysel.usage_step_(given, indices(n, "random"), laid_out(score(n, dtype), layout), 0.2, 0.9, "exp")
    counts = used(n)
    assert_same_bits(got, reference.usage_step_(counts, indices(n, "random"), score(n, dtype), 0.2, 0.9, "exp", 1))
    assert torch.equal(given, counts)


def test_penalty_formulas():
    scores, counts = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64), torch.tensor([0, 3, 10])
    wanted = {
        "log": scores - 0.3 * torch.log1p(counts.double()),
        "linear": scores - 0.3 * counts.double(),
        "exp": scores * torch.exp(-0.3 * counts.double()),
        "rate": scores - 0.3 * counts.double() / 4,
    }
    for form, expected in wanted.items():
        torch.testing.assert_close(pysel.usage_penalty(scores, counts, 0.3, form, 4), expected, rtol=1e-15, atol=0)


def test_penalty_at_extremes():
    for dtype in FLOAT_COUNTS:
        ones, counts = torch.ones(4, dtype=dtype), torch.tensor([0, 1, 1e30, math.inf], dtype=dtype)
        for form in FORMS:
            assert pysel.usage_penalty(ones, counts, 1e300, form)[:1].tolist() == [1]
        assert pysel.usage_penalty(ones, counts, 1e300, "exp").tolist() == [1, 0, 0, 0]
        assert pysel.usage_penalty(ones, counts, 1e10, "linear")[2:].tolist() == [
            -1e10 * 1e30 if dtype == torch.float64 else -math.inf,
            -math.inf,
        ]
        # a count below zero is a bonus, not garbage
        below = torch.tensor([-1.0, -50.0, -1000.0, math.nan], dtype=dtype)
        got = pysel.usage_penalty(ones, below, 1.0, "exp")
        torch.testing.assert_close(got, torch.exp(-below), equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_exp_penalty_is_right_where_its_factor_leaves_the_range(dtype):
    info = torch.finfo(dtype)
    scores = [info.max, 1e19, 3.5, info.tiny, info.smallest_normal * info.eps, 0.0, -0.0, -2.5, -info.max]
    uses = [0.0, 1.0, 87.0, 88.5, 100.0, 103.0, 150.0, 190.0, 217.0, 219.0, 708.0, 745.0, 1000.0, 1418.0, 2000.0, 1e30]
    uses = torch.tensor([*uses, *(-u for u in uses)], dtype=dtype)
    for score in torch.tensor(scores, dtype=dtype):
        with localcontext() as context:
            context.prec, context.Emin, context.Emax = 40, -MAX_EMAX, MAX_EMAX
            exact = [Decimal(score.item()) * Decimal(-max(min(u, 5000), -5000)).exp() for u in uses.tolist()]
        # beyond the largest number a Decimal that is rounded to half an ulp above it becomes infinite
        wanted = torch.tensor([float(e) for e in exact], dtype=torch.float64).to(dtype)
        got = pysel.usage_penalty(score.expand(len(uses)), uses, 1.0, "exp")
        assert_within_ulps(got, wanted, 2)
        assert_same_bits(got.signbit(), score.signbit().expand(len(uses)))
        if dtype == torch.float32:  # integers and half types go other ways to the same formula
            got = pysel.usage_penalty(score.expand(len(uses)), uses.double(), 1.0, "exp")
            assert_within_ulps(got, wanted, 1)


@pytest.mark.parametrize("form", FORMS)
def test_infinite_scores_stay_infinite(form, dtype):
    for counts_dtype in FLOAT_COUNTS:
        counts = torch.tensor([0, 1, 200, 1e30, torch.finfo(counts_dtype).max, math.inf], dtype=counts_dtype)
        for infinite in (math.inf, -math.inf):
            scores = torch.full(counts.shape, infinite, dtype=dtype)
            for gamma in (0.0, 1e-3, 1.0, 1e30, 1e300):
                assert pysel.usage_penalty(scores, counts, gamma, form, 3).tolist() == [infinite] * len(counts)
            if form != "log":
                assert pysel.usage_penalty(scores, -counts, 1.0, form).tolist() == [infinite] * len(counts)
        nan = pysel.usage_penalty(scores[:1], torch.full((1,), math.nan, dtype=counts_dtype), 1.0, form)
        assert math.isnan(nan)


@pytest.mark.parametrize("form", FORMS)
def test_without_strength_scores_stay_what_they_are(form, dtype):
    scores = torch.tensor([1.5, -0.0, -math.inf, 3.0, 2.0, math.nan], dtype=dtype)
    for counts_dtype in FLOAT_COUNTS:
        counts = torch.tensor([math.inf, 2.0, math.inf, -7.0, -math.inf, 1.0], dtype=counts_dtype)
        assert_same_bits(pysel.usage_penalty(scores, counts, 0.0, form), scores)
    assert_same_bits(pysel.usage_penalty(scores, torch.full((6,), 2**62), 0.0, form), scores)


def test_rate_of_counts_whose_product_with_gamma_leaves_the_range():
    for dtype, big in ((torch.float32, 1e38), (torch.float64, 1e307)):
        counts = torch.tensor([big, -big], dtype=dtype)
        got = pysel.usage_penalty(torch.zeros(2, dtype=dtype), counts, 1000.0, "rate", 10_000)
        torch.testing.assert_close(got, -counts / 10)


@every_count
def test_log_penalty_of_many_uses_and_of_a_few_decayed_ones(counts_dtype):
    """Distinct counts get distinct penalties, and small ones are not lost in 1 + n."""
    ones = torch.ones(1, dtype=torch.float64)
    for count in [1e-30, 1e-9, 0.3, 0.5] if counts_dtype.is_floating_point else [1, 2**24 + 1, 2**30]:
        counts = torch.tensor([count], dtype=counts_dtype)
        wanted = torch.log1p(counts.double())
        torch.testing.assert_close(-pysel.usage_penalty(0 * ones, counts, 1.0), wanted, rtol=1e-15, atol=0)
        single = -pysel.usage_penalty(torch.zeros(1), counts, 1.0)
        torch.testing.assert_close(single, wanted.float(), rtol=2e-7, atol=0)
    uses = torch.arange(4000).to(counts_dtype)
    assert (pysel.usage_penalty(torch.ones(4000), uses, 0.2).diff() < 0).all()


def test_log_penalty_of_counts_below_zero():
    for dtype in FLOAT_COUNTS:
        below = torch.tensor([-0.5, -1.0, -1.5], dtype=dtype)
        got = pysel.usage_penalty(torch.zeros(3, dtype=dtype), below, 1.0, "log")
        assert got[0].item() == pytest.approx(math.log(2))
        assert got[1].item() == math.inf
        assert math.isnan(got[2])


def test_counts_beyond_24_bits():
    big = 2**24
    selected = torch.tensor([0, 0, 1])
    for dtype in (torch.float64, torch.int32, torch.int64):
        counts = torch.tensor([big, big + 1, big], dtype=dtype)
        pysel.usage_update_(counts, selected)
        assert counts.tolist() == [big + 2, big + 2, big]
    for dtype in (torch.float64, torch.int64):
        counts = torch.tensor([2**52, 2**52 + 1], dtype=dtype)
        assert pysel.usage_update_(counts, torch.tensor([1])).tolist() == [2**52, 2**52 + 2]
    single = torch.tensor([big], dtype=torch.float32)
    assert pysel.usage_update_(single, torch.tensor([0, 0])).tolist() == [big]  # where float32 stays, as documented
    # float32 scores against counts that float32 would merge
    scores = torch.tensor([0.5 * big, 0.5 * big])
    for dtype in (torch.float64, torch.int32, torch.int64):
        penalised = pysel.usage_penalty(scores, torch.tensor([big, big + 1], dtype=dtype), 0.5, "linear")
        assert penalised.tolist() == [0, -0.5]


# --- threads and instruction sets ---


def calls(dtype):
    """Calls large enough for several threads: {name: function}."""
    n = 70_003
    result = {}
    for order in ("ascending", "random"):
        for counts_dtype in COUNT_DTYPES:
            for form in FORMS:

                def step(order=order, counts_dtype=counts_dtype, form=form):
                    counts = used(n, counts_dtype)
                    decay = decay_of(counts_dtype)
                    penalised = pysel.usage_step_(counts, indices(n, order), score(n, dtype), 0.07, decay, form, 3)
                    return counts, penalised, pysel.usage_penalty(score(n, dtype), counts, 0.07, form, 3)

                result[f"{order} {name(counts_dtype)} {form}"] = step
    return result


def test_bits_do_not_depend_on_threads(dtype, threads):
    for call in calls(dtype).values():
        threads(1)
        one = call()
        threads(2)
        for a, b in zip(one, call(), strict=True):
            assert_same_bits(a, b)


def fingerprint():
    """{call and dtype: hash}."""
    result = {}
    for dtype in DTYPES:
        for call_name, call in calls(dtype).items():
            digest = hashlib.sha256()
            for out in call():
                digest.update((bits(out) if out.is_floating_point() else out).numpy().tobytes())
            result[f"{call_name} {name(dtype)}"] = digest.hexdigest()
    return result


def runnable_variants():
    flags = Path("/proc/cpuinfo").read_text()
    has = {"portable": True, "avx2": " avx2" in flags, "avx512": all(f" avx512{s}" in flags for s in ("f", "bw", "vl"))}
    return [v for v in INFO["cpu_variants"] if has[v] and v != INFO["cpu_variant"]]


@pytest.mark.parametrize("variant", runnable_variants())
def test_bits_do_not_depend_on_the_instruction_set(variant):
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_usage"],
        env=os.environ | {"PYSEL_CPU_VARIANT": variant},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == fingerprint()


# --- gradients and in-place ---


@every_form
def test_gradcheck_to_any_order(form):
    scores = score(6, torch.float64).requires_grad_()

    def penalised(s):
        return pysel.usage_penalty(s, used(6), 0.1, form, 3)

    assert torch.autograd.gradcheck(penalised, (scores,))
    assert torch.autograd.gradgradcheck(penalised, (scores,))


@every_form
@every_count
def test_gradient_in_each_dtype(counts_dtype, form, dtype):
    scores, counts = score(9, dtype).requires_grad_(), used(9, counts_dtype)
    weights = score(10, dtype)[:9]
    (got,) = torch.autograd.grad(pysel.usage_penalty(scores, counts, 0.1, form, 2), scores, weights)
    wanted = reference.usage_penalty(weights, counts, 0.1, "exp", 2) if form == "exp" else weights
    assert_same_bits(got, wanted)


@every_form
def test_forward_mode_raises(form):
    def penalised(s):
        return pysel.usage_penalty(s, used(6), 0.1, form)

    with pytest.raises((RuntimeError, NotImplementedError), match=r"forward mode|forward AD|jvp"):
        torch.func.jvp(penalised, (score(6),), (score(6),))


@every_form
def test_functional_gradient_and_vmap(form):
    counts = used(6)

    def loss(s):
        return pysel.usage_penalty(s, counts, 0.1, form).square().sum()

    batch = torch.stack([score(6), -score(6)])
    gradients = torch.vmap(torch.func.grad(loss))(batch)
    for row, gradient in zip(batch, gradients, strict=True):
        leaf = row.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0])
    slope = torch.func.grad(lambda s: pysel.usage_penalty(s, counts, 0.1, form).sum())(
        batch[0]
    )  # the penalty is affine
    second = torch.func.grad(lambda s: torch.func.grad(loss)(s).sum())(batch[0])
    torch.testing.assert_close(second, 2 * slope**2)


@pytest.mark.parametrize("op", ["usage_update_", "usage_step_"])
def test_a_backward_that_saved_the_counts_raises(op):
    selected = torch.tensor([1])
    for raw in (False, True):
        counts, weight = used(5), torch.ones(5, requires_grad=True)
        loss = (counts * weight).sum()
        if op == "usage_update_":
            OPS.usage_update_(counts, selected, 0.5) if raw else pysel.usage_update_(counts, selected, 0.5)
        else:
            extra = (0.1, 0.5, "linear", 1)
            OPS.usage_step_(counts, selected, score(5), *extra) if raw else pysel.usage_step_(
                counts, selected, score(5), *extra
            )
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_counts_and_saved_scores_are_not_disturbed_by_the_penalty():
    counts, scores = used(5), score(5).requires_grad_()
    loss = (scores * counts).sum() + pysel.usage_penalty(scores, counts, 0.1).sum()
    loss.backward()
    assert torch.equal(scores.grad, counts + 1)


# --- torch's machinery ---


def raw_calls(requires_grad=False):
    selected = torch.tensor([4, 1, 1])
    return {
        "usage_update_": (used(6), selected, 0.5),
        "usage_penalty": (score(6).requires_grad_(requires_grad), used(6), 0.1, "exp", 2),
        "usage_step_": (used(6), selected, score(6), 0.1, 0.5, "rate", 2),
    }


@pytest.mark.parametrize("requires_grad", [False, True], ids=["constant", "requires_grad"])
@pytest.mark.parametrize("op", raw_calls())
def test_opcheck(op, requires_grad):
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static",
                 "test_aot_dispatch_dynamic"]  # fmt: skip
    torch.library.opcheck(getattr(OPS, op).default, raw_calls(requires_grad)[op], test_utils=utilities)


def epoch(counts, scores, selected):
    penalised = pysel.usage_step_(counts, selected, 2 * scores, 0.1, 0.9, "exp", 2)
    again = pysel.usage_update_(counts, selected)
    return penalised.sum() + (pysel.usage_penalty(scores, counts, 0.2, "rate", 3) * again).sum()


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_to_one_graph(dynamic):
    results = []
    for f in (epoch, torch.compile(epoch, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
        counts = used(40)
        results.append((f(counts, score(40), indices(40, "random")), counts))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_compiles_with_inductor():
    def f(counts, scores, selected):
        return pysel.usage_step_(counts, selected, scores + 1, 0.1) * 2

    counts, wanted = used(40), used(40)
    got = torch.compile(f, fullgraph=True)(counts, score(40), indices(40, "ascending"))
    torch.testing.assert_close(got, f(wanted, score(40), indices(40, "ascending")))
    assert torch.equal(counts, wanted)


def test_compiled_gradient():
    def f(scores, counts):
        return pysel.usage_penalty(scores, counts, 0.1, "exp").square().sum()

    gradients = []
    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        scores = score(12).requires_grad_()
        g(scores, used(12)).backward()
        gradients.append(scores.grad)
    torch.testing.assert_close(*gradients)


# --- bad input ---


def update(counts=None, selected=None, **more):
    counts = used(6) if counts is None else counts
    return pysel.usage_update_(counts, torch.tensor([1, 2]) if selected is None else selected, **more)


def penalty(scores=None, counts=None, gamma=0.1, **more):
    return pysel.usage_penalty(
        score(6) if scores is None else scores, used(6) if counts is None else counts, gamma, **more
    )


def step(counts=None, selected=None, scores=None, gamma=0.1, **more):
    counts = used(6) if counts is None else counts
    selected = torch.tensor([1, 2]) if selected is None else selected
    return pysel.usage_step_(counts, selected, score(6) if scores is None else scores, gamma, **more)


BAD = [
    (TypeError, "counts must be a Tensor, got list", {"counts": [1.0]}, (update, step, penalty)),
    (TypeError, "counts must be .* got torch.bfloat16", {"counts": used(6).bfloat16()}, (update, step, penalty)),
    (TypeError, "counts must be .* got torch.float16", {"counts": used(6).half()}, (update, step, penalty)),
    (TypeError, "counts must be .* got torch.int16", {"counts": used(6).short()}, (update, step, penalty)),
    (TypeError, "selected must be int64, got torch.int32", {"selected": torch.tensor([1]).int()}, (update, step)),
    (TypeError, "scores must be .* got torch.int64", {"scores": torch.arange(6)}, (step, penalty)),
    (TypeError, "decay must be a number, got str", {"decay": "1"}, (update, step)),
    (TypeError, "gamma must be a number, got Tensor", {"gamma": torch.ones(2)}, (step, penalty)),
    (TypeError, "step must be an int, got float", {"step": 1.0}, (step, penalty)),
    (ValueError, r"counts must have shape \[n\], got \[2, 3\]", {"counts": used(6).view(2, 3)}, (update,)),
    (ValueError, "counts must not be an expanded", {"counts": torch.zeros(1).expand(6)}, (update, step)),
    (ValueError, "counts must not be a lazily negated", {"counts": torch._neg_view(used(6))}, (update, step)),
    (ValueError, r"selected must have shape \[m\], got \[1\, 1]",
     {"selected": torch.ones(1, 1).long()}, (update, step)),
    (ValueError, r"scores must have the shape of counts, \[6\], got \[5\]", {"scores": score(5)}, (step, penalty)),
    (ValueError, "decay must be between 0 and 1, got 1.5", {"decay": 1.5}, (update, step)),
    (ValueError, "decay must be between 0 and 1, got -0.25", {"decay": -0.25}, (update, step)),
    (ValueError, "decay must be between 0 and 1, got nan", {"decay": math.nan}, (update, step)),
    (ValueError, "decay must be 1 for integer counts, got 0.5",
     {"counts": used(6, torch.int64), "decay": 0.5}, (update, step)),
    (ValueError, "gamma must be finite and at least 0, got -0.5", {"gamma": -0.5}, (step, penalty)),
    (ValueError, "gamma must be finite and at least 0, got inf", {"gamma": math.inf}, (step, penalty)),
    (ValueError, "gamma must be finite and at least 0, got nan", {"gamma": math.nan}, (step, penalty)),
    (ValueError, "form must be log, linear, exp or rate, got 'cubic'", {"form": "cubic"}, (step, penalty)),
    (ValueError, "step must be at least 1, got 0", {"step": 0}, (step, penalty)),
    (ValueError, "counts must not require grad", {"counts": used(6).requires_grad_()}, (update, step, penalty)),
    (ValueError, "scores must not require grad", {"scores": score(6).requires_grad_()}, (step,)),
    (IndexError, "selected must be between 0 and 5, got 6", {"selected": torch.tensor([0, 6])}, (update, step)),
    (IndexError, "selected must be between 0 and 5, got -1", {"selected": torch.tensor([3, -1, 2])}, (update, step)),
    (IndexError, "selected must be empty for empty counts, got 3",
     {"counts": torch.zeros(0), "selected": torch.tensor([3])}, (update,)),
]  # fmt: skip
BAD = [(error, message, arguments, f) for error, message, arguments, functions in BAD for f in functions]


@pytest.mark.parametrize(
    ("error", "message", "arguments", "function"), BAD, ids=[f"{f.__name__}-{m[:32]}" for _, m, _, f in BAD]
)
def test_bad_input(error, message, arguments, function):
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    counts = arguments.get("counts")
    counts = used(6) if counts is None else counts
    untouched = counts.clone() if isinstance(counts, torch.Tensor) else None
    with pytest.raises(error, match=message):
        function(**arguments | {"counts": counts})
    for k, v in before.items():
        assert torch.equal(arguments[k], v)
    assert untouched is None or torch.equal(counts, untouched)


def test_one_bad_index_among_many_changes_nothing():
    n = 200_000
    for order in ("ascending", "random"):
        selected = indices(n, order).clone()
        selected[-1] = n
        for f in (
            lambda c, s: pysel.usage_update_(c, s, 0.5),
            lambda c, s: pysel.usage_step_(c, s, score(n), 0.1, 0.5),
        ):
            counts = used(n)
            with pytest.raises(IndexError, match=f"selected must be between 0 and {n - 1}, got {n}"):
                f(counts, selected)
            assert torch.equal(counts, used(n))


RAW_BAD = [
    ("usage_update_", (used(6).half(), torch.tensor([1]), 1.0)),
    ("usage_update_", (used(6), torch.tensor([1]).int(), 1.0)),
    ("usage_update_", (used(6), torch.tensor([6]), 1.0)),
    ("usage_update_", (used(6, torch.int64), torch.tensor([1]), 0.5)),
    ("usage_penalty", (score(5), used(6), 0.1, "linear", 1)),
    ("usage_penalty", (score(6), used(6).half(), 0.1, "linear", 1)),
    ("usage_penalty", (score(6), used(6), math.nan, "linear", 1)),
    ("usage_penalty", (score(6), used(6), 0.1, "rate", 0)),
    ("usage_step_", (used(6), torch.tensor([-7]), score(6), 0.1, 1.0, "linear", 1)),
    ("usage_step_", (used(6), torch.tensor([1]), score(7), 0.1, 1.0, "linear", 1)),
]


@pytest.mark.parametrize(("op", "arguments"), RAW_BAD, ids=[f"{i}-{op}" for i, (op, _) in enumerate(RAW_BAD)])
def test_raw_ops_and_the_reference_raise_the_same_errors(op, arguments):
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises((ValueError, IndexError), match=f"^{op}: ") as native:
        getattr(OPS, op)(*arguments)
    with pytest.raises(type(native.value)) as plain:
        reference.OPS[op](*arguments)
    assert str(plain.value) == str(native.value)
    for a, b in zip(arguments, before, strict=True):
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)


if __name__ == "__main__":
    print(json.dumps(fingerprint()))
