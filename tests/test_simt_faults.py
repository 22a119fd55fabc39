"""Values that CUDA kernels must refuse, in the interpreter: they spoil results, and the next call raises."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from tests import simt
from tests.simt.cases import KEY
from tests.simt.run import set_order
from tests.tensors import assert_same_bits

pytestmark = pytest.mark.skipif(not simt.ON_THIS_MACHINE, reason="the interpreter switches stacks on x86-64 only")

INF, NAN = math.inf, math.nan
TAU = torch.tensor(1.0, dtype=torch.float64)
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [1.0, INF, 2.0], [-INF, -INF, -INF], [NAN, -INF, -INF]])
CODES = torch.ones(3, 2), torch.tensor([[0, 1], [2, 6], [4, 5]])
ROWS_13 = [False, True, False]


def spoiled_rows(*rows: bool) -> Callable:
    """NaN or -1 throughout those rows, and neither elsewhere."""

    def check(out):
        bad = torch.isnan(out) if out.is_floating_point() else out == -1
        assert torch.equal(bad.view(len(rows), -1).all(1), torch.tensor(rows))
        assert torch.equal(bad.view(len(rows), -1).any(1), torch.tensor(rows))

    return check


def all_spoiled(out):
    for part in out if isinstance(out, tuple) else (out,):
        assert (torch.isnan(part) if part.is_floating_point() else part == -1).all()


def nothing(out):
    assert out is None


@dataclasses.dataclass
class Refused:
    op: str
    args: tuple
    error: type[Exception]
    text: str
    check: Callable = all_spoiled
    validates: bool = True  # whether the last argument is validate
    always: bool = False  # even with validate=False

    def call(self, validate=None):
        args = (*self.args, validate) if self.validates else self.args
        return getattr(torch.ops.pysel_simt, self.op)(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))


def _refused():
    softmax = "gumbel_softmax: logits must"
    plus, minus = "be below +inf, got +inf", "have a finite value in every row, got a row of only -inf"
    for hard in (False, True):
        args = (LOGITS[:2], TAU, KEY, -1, hard, 0)
        yield Refused("gumbel_softmax", args, ValueError, f"{softmax} {plus}", spoiled_rows(False, True))
        args = (LOGITS[[0, 2, 0, 0]], TAU, KEY, -1, hard, 0)
        check = spoiled_rows(False, True, False, False)
        yield Refused("gumbel_softmax", args, ValueError, f"{softmax} {minus}", check)
        args = (LOGITS[[3, 2]], TAU, KEY, -1, hard, 0)
        yield Refused("gumbel_softmax", args, ValueError, f"{softmax} {minus}", lambda out: None)
        args = (LOGITS[[0, 2]].t(), TAU, KEY, 0, hard, 0)
        yield Refused("gumbel_softmax", args, ValueError, f"{softmax} {minus}", lambda out: None)
        for tau in (-1.0, NAN, INF) if hard else (-1.0, NAN, INF, 0.0):
            bad = torch.tensor(tau, dtype=torch.bfloat16 if tau != tau else torch.float32)
            for op in ("gumbel_softmax", "gumbel_sigmoid"):
                args = (LOGITS[:1], bad, KEY, *((-1, hard) if op == "gumbel_softmax" else (hard,)), 0)
                text = f"{op}: tau must be finite and above 0 (0 only with hard=True), got another value"
                yield Refused(op, args, ValueError, text)
    long = torch.zeros(2, 33_000, dtype=torch.float64)
    long[1] = -INF
    args = (long.clone(), TAU, KEY, -1, False, 0)
    yield Refused("gumbel_softmax", args, ValueError, f"{softmax} {minus}", spoiled_rows(False, True))
    long[1, 20_000] = INF
    args = (long, TAU, KEY, -1, False, 0)
    yield Refused("gumbel_softmax", args, ValueError, f"{softmax} {plus}", spoiled_rows(False, True))
    text = f"gumbel_argmax: logits must {plus}"
    yield Refused("gumbel_argmax", (LOGITS[[0, 1, 3]], KEY, -1, 0), ValueError, text, spoiled_rows(*ROWS_13))
    text = f"gumbel_argmax: logits must {minus}"
    yield Refused("gumbel_argmax", (LOGITS[[0, 2, 3]], KEY, -1, 0), ValueError, text, spoiled_rows(*ROWS_13))
    for hard in (False, True):
        text = f"gumbel_sigmoid: logits must {plus}"
        args = (LOGITS[1], TAU, KEY, hard, 0)
        yield Refused("gumbel_sigmoid", args, ValueError, text, spoiled_rows(*ROWS_13))
    for op in ("gumbel_softmax_backward", "gumbel_sigmoid_backward"):
        args = (torch.ones(2), torch.ones(2), torch.tensor(-1.0), *((-1,) if "softmax" in op else (KEY, 0)))
        text = f"{op}: tau must be finite and above 0 (0 only with hard=True), got another value"
        yield Refused(op, args, ValueError, text, validates=False)

    nan = torch.arange(300.0)
    nan[100] = NAN
    for largest in (True, False):
        for k in (0, 10):
            yield Refused(
                "select", (nan, k, largest, None, None, None), ValueError, "select: scores must not be NaN, got NaN"
            )

    weights = torch.ones(3, 40)
    text = "weighted_sample: weights must be finite and at least 0, got a negative, infinite or NaN weight"
    for bad in (-1.0, INF, NAN):
        broken = weights.clone()
        broken[1, 17] = bad
        for replacement in (False, True):
            for order in ("draw", "index", "shuffled"):
                args = (broken, 5, replacement, False, order, None, None, KEY, 0)
                yield Refused("weighted_sample", args, ValueError, text, spoiled_rows(*ROWS_13))
            args = (broken, 0, replacement, False, "draw", None, None, KEY, 0)
            yield Refused("weighted_sample", args, ValueError, text, lambda out: None)
    broken = weights.clone()
    broken[1, 17] = NAN
    text = "weighted_sample: weights must be below +inf and not NaN (log_weights=True), got +inf or NaN"
    for replacement in (False, True):
        args = (broken, 5, replacement, True, "draw", None, None, KEY, 0)
        yield Refused("weighted_sample", args, ValueError, text, spoiled_rows(*ROWS_13))
    few = weights.clone()
    few[1, 3:] = 0
    text = "weighted_sample: k must be at most the number of nonzero weights, 3, got 4"
    for order in ("draw", "index", "shuffled"):
        args = (few, 4, False, False, order, None, None, KEY, 0)
        yield Refused("weighted_sample", args, ValueError, text, spoiled_rows(*ROWS_13))
    few = few.clone()
    few[1] = 0
    text = "weighted_sample: weights must have at least one above 0 in every row, got a row of zeros"
    args = (few, 4, True, False, "draw", None, None, KEY, 0)
    yield Refused("weighted_sample", args, ValueError, text, spoiled_rows(*ROWS_13))

    # Groups and quotas, which indices depend on, are refused whatever is asked for.
    scores, of, quotas = torch.arange(300.0), torch.arange(300) % 3, torch.tensor([10, 0, 5])
    some = torch.where(torch.arange(300) < 30, 0.0, 1.0)  # 90 of each group are not 0
    ops = {
        "select": (lambda k, of, quotas: (scores, k, False, of, quotas, KEY), "the size", 100),
        "weighted_sample": (
            lambda k, of, quotas: (some, k, False, False, "draw", of, quotas, KEY, 0),
            "the number of nonzero weights",
            90,
        ),
        "usage_select_": (
            lambda k, of, quotas: (scores.clone(), scores, scores, 0.5, 0.1, "linear", 1, k, of, quotas, None),
            "the size",
            100,
        ),
    }
    for op, (args, limit, size) in ops.items():
        always = {"always": True}
        for group in (-1, 3, 2**31 - 1):
            text = f"{op}: groups must be between 0 and 2, got {group}"
            for dtype in (torch.int64, torch.int32):
                bad = of.index_fill(0, torch.tensor(100), group).to(dtype)
                yield Refused(op, args(15, bad, quotas), IndexError, text, **always)
        text = f"{op}: groups must be empty for empty quotas, got 0"
        yield Refused(op, args(0, 0 * of, quotas[:0]), IndexError, text, **always)
        text = f"{op}: quotas must be at least 0, got -1 for group 1"
        yield Refused(op, args(15, of, torch.tensor([10, -1, 6])), ValueError, text, **always)
        for k in (0, 14, 16):
            text = f"{op}: quotas must sum to k, {k}, got a sum of 15"
            yield Refused(op, args(k, of, quotas), ValueError, text, **always)
        text = f"{op}: quotas must sum to k, 0, got a sum of 1"
        yield Refused(op, args(0, of, torch.tensor([0, 0, 1])), ValueError, text, **always)
        text = f"{op}: quotas must be at most {limit} of each group, {size} for group 2, got 101"
        yield Refused(op, args(111, of, torch.tensor([10, 0, 101])), ValueError, text, **always)
        text = f"{op}: quotas must be at most {limit} of each group, 0 for group 3, got 1"
        yield Refused(op, args(16, of, torch.tensor([10, 0, 5, 1])), ValueError, text, **always)
    for k in (0, 15):
        text = "select: scores must not be NaN, got NaN"
        yield Refused("select", (nan, k, True, of, quotas * (k > 0), None), ValueError, text)
        text = "usage_select_: scores of first, second and counts must not be NaN, got NaN"
        for tables in ((scores, nan, scores), (nan, scores, scores)):
            args = (*tables, 0.5, 0.1, "linear", 1, k)
            yield Refused("usage_select_", (*args, of, quotas * (k > 0), KEY), ValueError, text)
            yield Refused("usage_select_", (*args, None, None, None), ValueError, text)
    text = "weighted_sample: weights must be finite and at least 0, got a negative, infinite or NaN weight"
    for order in ("draw", "index", "shuffled"):
        args = (some.index_fill(0, torch.tensor(250), -1.0), 15, False, False, order, of, quotas, KEY, 0)
        yield Refused("weighted_sample", args, ValueError, text)

    for decay in (1.0, 0.5):
        for selected in ([0, 3, 5], [5, 1], [-1, 2]):
            bad = next(i for i in selected if not 0 <= i < 5)
            text = f": selected must be between 0 and 4, got {bad}"
            counts, at = torch.arange(5.0), torch.tensor(selected)
            args = (counts, at, decay)
            yield Refused("usage_update_", args, IndexError, "usage_update_" + text, nothing, validates=False)
            args = (counts, at, torch.ones(5), 0.1, decay, "exp", 1)
            yield Refused("usage_step_", args, IndexError, "usage_step_" + text, validates=False)
        text, none = ": selected must be empty for empty counts, got 3", torch.zeros(0)
        args = (none, torch.tensor([3, 5]), decay)
        yield Refused("usage_update_", args, IndexError, "usage_update_" + text, nothing, validates=False)
        args = (none, torch.tensor([3, 5]), none, 0.1, decay, "exp", 1)
        yield Refused("usage_step_", args, IndexError, "usage_step_" + text, validates=False)

    values, indices = CODES
    weight, grad = torch.ones(6, 4), torch.ones(3, 4)
    text = ": indices must be between 0 and 5, got 6"
    for op, args, check in (
        ("sparse_decode", (values, indices, weight, None), spoiled_rows(*ROWS_13)),
        ("sddmm", (indices, weight, grad), spoiled_rows(False, False, False, True, False, False)),
        ("spmm_t", (values, indices, grad, 6), all_spoiled),
        ("sparse_decode_backward", (grad, values, indices, weight), lambda out: all_spoiled(out[1])),
        ("factor_counts", (values, indices, 6, None, None), all_spoiled),
        ("factor_scores", (values, indices, torch.ones(3, 6), "sum", True), all_spoiled),
    ):
        yield Refused(op, args, IndexError, op + text, check, validates=False)
    args = (values, indices % 6, 6, torch.tensor([0, -1, 1]), 2)
    text = "factor_counts: groups must be between 0 and 1, got -1"
    yield Refused("factor_counts", args, IndexError, text, validates=False)


def harmless():
    return torch.ops.pysel_simt.usage_penalty(torch.ones(2), torch.ones(2), 0.5, "linear", 1)


@pytest.fixture(scope="module", autouse=True)
def library():
    return simt.load("pysel_simt")


@pytest.mark.parametrize("refused", list(_refused()), ids=lambda r: r.op)
@pytest.mark.parametrize("order", ["ascending", "3"])
def test_refused_values_spoil_results_and_are_raised_by_the_next_call(library, refused, order):
    set_order(library, order)
    for _ in range(2):  # it is reported again
        refused.check(refused.call())
        with pytest.raises(refused.error) as raised:
            harmless()
        assert str(raised.value).splitlines()[0] == refused.text
        assert torch.equal(harmless(), torch.full((2,), 0.5))


@pytest.mark.parametrize("refused", [r for r in _refused() if r.validates], ids=lambda r: r.op)
def test_validate_raises_at_once_or_not_at_all(library, refused):
    set_order(library, "ascending")
    with pytest.raises(refused.error) as raised:
        refused.call(True)
    assert str(raised.value).splitlines()[0] == refused.text
    harmless()
    refused.call(False)
    if refused.always:
        with pytest.raises(refused.error):
            harmless()
    harmless()


@pytest.mark.parametrize("hard", [False, True])
def test_nan_is_not_refused(library, hard):
    for validate in (None, True):
        out = torch.ops.pysel_simt.gumbel_softmax(LOGITS[[0, 3, 0]], TAU, KEY, -1, hard, 0, validate)
        spoiled_rows(*ROWS_13)(out)
        harmless()


@pytest.mark.parametrize("op", ["usage_update_", "usage_step_"])
@pytest.mark.parametrize("selected", [[0, 3, 5], [5, 1, 1], [4, -1]])
def test_refused_indices_leave_counts_alone(library, op, selected):
    counts, at = torch.arange(5.0), torch.tensor(selected)
    more = (torch.ones(5), 0.1, 0.5, "linear", 1) if op == "usage_step_" else (0.5,)
    getattr(torch.ops.pysel_simt, op)(counts, at, *more)
    assert torch.equal(counts, torch.arange(5.0))
    with pytest.raises(IndexError):
        harmless()


@pytest.mark.parametrize("refused", [r for r in _refused() if r.op == "usage_select_"], ids=lambda r: r.text)
def test_refused_selections_leave_counts_alone(library, refused):
    set_order(library, "3")
    counts = refused.args[0].clone()
    torch.ops.pysel_simt.usage_select_(counts, *refused.args[1:], None)
    assert_same_bits(counts, refused.args[0])
    with pytest.raises(refused.error):
        harmless()


def test_the_first_fault_is_the_one_told(library):
    set_order(library, "ascending")
    counts = torch.zeros(5)
    # one call meets two
    torch.ops.pysel_simt.usage_update_(counts, torch.tensor([7, 8]), 1.0)
    with pytest.raises(IndexError, match="got 7"):
        harmless()
    harmless()


@pytest.mark.parametrize("refused", [r for r in _refused() if r.validates][::7], ids=lambda r: r.op)
def test_validate_cannot_be_asked_for_while_a_graph_is_captured(library, refused):
    waits = library.waits
    with library.capture():
        with pytest.raises(ValueError, match=r"validate must not be True while a CUDA graph is captured.*check\(\)"):
            refused.call(True)
        harmless()
    assert library.waits == waits  # it would have ruined the capture
    harmless()


def test_what_failed_before_does_not_fail_a_call(library):
    library.fail()
    assert torch.equal(harmless(), torch.full((2,), 0.5))


def test_a_fault_is_raised_once_though_its_kernel_still_runs(library):
    set_order(library, "ascending")
    logits = torch.zeros(300, 3)
    logits[0, 1] = logits[100, 1] = INF  # the second is met by another block
    with library.hold():
        out = torch.ops.pysel_simt.gumbel_softmax(logits, TAU, KEY, -1, False, 0, None)
        waits = library.waits
        with pytest.raises(ValueError, match=r"\+inf"):
            harmless()
        assert library.waits == waits + 1
        assert out[[0, 100]].isnan().all() and not out[1:100].isnan().any()
        harmless()
    harmless()


OUTSIDE = torch.full((30, 40), 7)
ROWS = torch.ones(7, 4)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("gumbel_sigmoid", (torch.full((4000,), INF), TAU, KEY, False, 0, None)),
        ("gumbel_softmax", (torch.full((380, 4), INF), TAU, KEY, -1, False, 0, None)),
        ("gumbel_softmax", (torch.full((380, 4), -INF), TAU, KEY, -1, True, 0, None)),
        ("gumbel_argmax", (torch.full((380, 4), INF), KEY, -1, 0, None)),
        ("usage_update_", (torch.ones(9), torch.full((4000,), 9), 1.0)),
        ("sparse_decode", (torch.ones(30, 40), OUTSIDE, ROWS, None)),
        ("sddmm", (OUTSIDE, ROWS, torch.ones(30, 4))),
        ("spmm_t", (torch.ones(30, 40), OUTSIDE, torch.ones(30, 4), 7)),
        ("factor_counts", (torch.ones(30, 40), OUTSIDE, 7, None, None)),
        ("select", (torch.ones(4000), 5, True, torch.full((4000,), 9), torch.tensor([5]), None, None)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_many_refused_values_are_few_reports(library, op, args):
    set_order(library, "ascending")
    threads, atomics = library.threads_run, library.atomics_run
    getattr(torch.ops.pysel_simt, op)(*args)
    warps = (library.threads_run - threads) // 32
    assert 1 <= library.atomics_run - atomics <= 2 * warps  # one to report, one to have others know
    with pytest.raises((ValueError, IndexError), match=op):
        harmless()


@pytest.mark.parametrize(
    ("op", "args", "text"),
    [
        ("weighted_sample", (2**31, False, "draw"), 'k must be below 2^31 for order="draw" on a GPU, got 2147483648'),
        ("weighted_sample", (2**31, False, "shuffled"), 'k must be below 2^31 for order="shuffled" on a GPU'),
        ("weighted_sample", (2**31, True, "index"), 'k must be below 2^31 for order="index" on a GPU'),
        ("topk", (2**31,), "k must be below 2^31 on a GPU, got 2147483648"),
        ("topk_encode", (2**31,), "k must be below 2^31 on a GPU, got 2147483648"),
    ],
)
def test_what_torch_cannot_sort_is_refused_before_anything_is_taken(library, op, args, text):
    many = torch.ones(1, dtype=torch.bfloat16).expand(2**31 + 1)
    with pytest.raises(ValueError) as raised:
        if op == "weighted_sample":
            k, replacement, order = args
            torch.ops.pysel_simt.weighted_sample(many, k, replacement, False, order, None, None, KEY, 0, None)
        elif op == "topk":
            torch.ops.pysel_simt.topk(many, *args)
        else:
            torch.ops.pysel_simt.topk_encode(torch.ones(1, 1).bfloat16(), many.view(-1, 1), None, *args, "relu")
    assert str(raised.value).splitlines()[0].startswith(f"{op}: {text}")
