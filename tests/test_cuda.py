"""What only CUDA has: streams, graphs, a host that does not wait, and values refused behind its back.

That the kernels compute the right thing is tested where `device` is a fixture, and by tests/identity.py.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pysel
from tests.tensors import assert_same_bits

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not pysel.build_info()["cuda"], reason="needs a GPU and a build with CUDA"
)

ROOT = Path(__file__).parent.parent
Call = Callable[[Tensor], Any]
RANDOM = ("gumbel_softmax", "gumbel_softmax hard", "gumbel_sigmoid", "gumbel_argmax", "race", "races", "draws", "rows")
FACTORS = ("topk", "topk_encode", "sparse_decode", "factor_counts", "factor_scores")
USAGE = ("usage_update_", "usage_penalty", "usage_step_", "usage_select_")
ALL = (*RANDOM, *FACTORS, "select", "select by key", "select in groups", *USAGE)


@pytest.fixture(autouse=True)
def nothing_is_left_to_report():
    yield
    torch.cuda.synchronize()
    pysel.check()


def calls(seed: int = 0, flat: bool = False, device: str = "cuda") -> dict[str, Call]:
    """Calls of all ops, functions of a key; on random data, or with `flat` on data full of ties."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device) if flat else torch.randn(shape, generator=generator, device=device)

    def below(n: int, *shape: int) -> Tensor:
        return torch.randint(n, shape, generator=generator, device=device)

    n = 200_000
    logits, weights, scores, counts = normal(64, 5000), normal(n).exp(), normal(n), normal(n).abs()
    x, encoder, bias = normal(50, 64), normal(2000, 64), normal(2000)
    values, indices, groups, tables = normal(50, 8).relu(), below(2000, 50, 8), below(4, 50), normal(3, 2000)
    selected = below(n, 1000)
    classes, quotas = below(50, n), torch.full((50,), 1000, device=device)
    return {
        "gumbel_softmax": lambda key: pysel.gumbel_softmax(logits, 0.5, key=key),
        "gumbel_softmax hard": lambda key: pysel.gumbel_softmax(logits, 0.5, hard=True, key=key),
        "gumbel_sigmoid": lambda key: pysel.gumbel_sigmoid(logits, 0.5, key=key),
        "gumbel_argmax": lambda key: pysel.gumbel_argmax(logits, key=key),
        "race": lambda key: pysel.weighted_sample(weights, 3000, key=key),
        "races": lambda key: pysel.weighted_sample(weights, 50_000, groups=classes, quotas=quotas, key=key),
        "draws": lambda key: pysel.weighted_sample(weights, 3000, True, key=key),
        "rows": lambda key: pysel.weighted_sample(logits, 100, log_weights=True, order="shuffled", key=key),
        "topk": lambda key: pysel.topk(logits, 30),
        "topk_encode": lambda key: pysel.topk_encode(x, encoder, bias, 16),
        "sparse_decode": lambda key: pysel.sparse_decode(values, indices, encoder),
        "factor_counts": lambda key: pysel.factor_counts(values, indices, 2000, groups=groups, num_groups=4),
        "factor_scores": lambda key: pysel.factor_scores(values, indices, tables, reduce="mean", weighted=True),
        "select": lambda key: pysel.select(scores, n // 3),
        "select by key": lambda key: pysel.select(scores, n // 3, key=key),
        "select in groups": lambda key: pysel.select(scores, 50_000, groups=classes, quotas=quotas, key=key),
        "usage_select_": lambda key: pysel.usage_select_(
            counts.clone(), scores, weights, 0.3, 50_000, 0.1, groups=classes, quotas=quotas, key=key
        ),
        "usage_update_": lambda key: pysel.usage_update_(counts.clone(), selected, 0.9),
        "usage_penalty": lambda key: pysel.usage_penalty(scores, counts, 0.1),
        "usage_step_": lambda key: pysel.usage_step_(counts.clone(), selected, scores, 0.1, 0.9),
    }


def assert_same(got: Any, wanted: Any) -> None:
    pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
    for g, w in pairs:
        assert_same_bits(g, w)


def gpu_key(seed: int = 1) -> Tensor:
    return pysel.key(seed, device="cuda")


# --- streams, graphs, compiled code ---


@pytest.mark.parametrize("name", ALL)
def test_work_is_on_the_current_stream(name):
    calls(1)[name](gpu_key())  # whatever starts up does so here, and other data lie where the next will be
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # on another stream the op would not find its data yet
        got = calls(2)[name](gpu_key())
    stream.synchronize()
    assert_same(got, calls(2)[name](gpu_key()))


@pytest.mark.parametrize("name", ALL)
def test_graph_replays_with_the_key_of_the_moment(name):
    call, key = calls()[name], gpu_key(1)
    call(key)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(key)
    for seed in (1, 2, 3):
        key.copy_(pysel.key(seed))
        graph.replay()
        assert_same(got, call(key))


def test_graph_draws_anew_at_every_replay():
    logits = torch.randn(100, 100, device="cuda")
    pysel.gumbel_softmax(logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = pysel.gumbel_softmax(logits)
    graph.replay()
    first = got.clone()
    graph.replay()
    assert not torch.equal(got, first)


def test_graph_follows_tau_on_the_gpu():
    logits, tau = torch.randn(100, 100, device="cuda"), torch.tensor(1.0, device="cuda")
    pysel.gumbel_softmax(logits, tau, key=gpu_key())
    graph = torch.cuda.CUDAGraph()
    key = gpu_key()
    with torch.cuda.graph(graph):
        got = pysel.gumbel_softmax(logits, tau, key=key)
    for value in (1.0, 0.3):
        tau.fill_(value)
        graph.replay()
        assert_same_bits(got, pysel.gumbel_softmax(logits, value, key=key))


@pytest.mark.parametrize("name", ["gumbel_softmax", "race", "topk_encode", "usage_step_"])
def test_compiled_with_graphs(name):
    call = calls()[name]
    compiled = torch.compile(call, mode="reduce-overhead", fullgraph=True)
    for seed in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        assert_same(compiled(gpu_key(seed)), call(gpu_key(seed)))


def test_autocast_gives_the_dtypes_of_torch():
    x, weight = torch.randn(8, 16, device="cuda"), torch.randn(32, 16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        values, indices = pysel.topk_encode(x, weight, k=4)
        assert values.dtype == F.linear(x, weight).dtype == torch.bfloat16
        assert pysel.sparse_decode(values, indices, weight).dtype == torch.bfloat16
        assert pysel.gumbel_softmax(x.half()).dtype == torch.softmax(x.half(), -1).dtype == torch.float32


# --- the host ---


@pytest.mark.parametrize("name", ALL)
def test_host_does_not_wait(name):
    call, key = calls()[name], gpu_key()
    call(key)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # finds torch's own waits
    try:
        torch.cuda._sleep(1_000_000_000)
        call(key)
        assert not torch.cuda.current_stream().query()  # still asleep, so nothing has waited for the op
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ALL)
def test_memory_does_not_depend_on_the_data(name):
    key = gpu_key()

    def taken(call: Call) -> tuple[int, int, int]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()
        call(key)
        torch.cuda.synchronize()
        after = torch.cuda.memory_stats()
        return (
            after["allocation.all.allocated"] - before["allocation.all.allocated"],
            after["allocated_bytes.all.allocated"] - before["allocated_bytes.all.allocated"],
            after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"],
        )

    calls()[name](key)
    assert taken(calls(1)[name]) == taken(calls(2)[name]) == taken(calls(flat=True)[name])


def test_nothing_leaks():
    key, made = gpu_key(), calls()

    def used() -> tuple[int, int]:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]

    def all_of_them(times: int) -> None:
        for call in made.values():
            for _ in range(times):
                call(key)

    all_of_them(20)
    before = used()
    all_of_them(10_000 // len(made) + 1)
    assert used() == before


# --- several GPUs ---

several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@several
@pytest.mark.parametrize("name", ALL)
def test_another_gpu_than_the_current_one(name):
    got = calls(device="cuda:1")[name](pysel.key(1))
    assert torch.cuda.current_device() == 0
    with torch.cuda.device(1):
        assert_same(got, calls(device="cuda:1")[name](pysel.key(1)))


@several
def test_gpus_are_not_mixed():
    with pytest.raises(ValueError, match="device"):
        pysel.gumbel_softmax(torch.zeros(3, device="cuda:0"), key=pysel.key(0, device="cuda:1"))
    with pytest.raises(ValueError, match="device"):
        pysel.usage_update_(torch.zeros(3, device="cuda:0"), torch.zeros(1, dtype=torch.int64, device="cuda:1"))


# --- values that must be refused ---


@dataclasses.dataclass(frozen=True)
class Bad:
    """A call that must be refused: what it is given, with which error, and how its result shows it."""

    call: Callable[..., Any]  # of whether it is bad, and validate= if the op has it
    argument: str  # that the message names
    shows: Callable[[Any], Tensor]
    error: type[Exception] = ValueError
    validate: bool = True  # whether the op has it


def spoilt(x: Tensor, bad: bool, value: float, at: Any = (1, 7)) -> Tensor:
    y = x.clone()
    if bad:
        y[at] = value
    return y


def refusals(device: str = "cuda") -> dict[str, Bad]:
    logits, key = torch.randn(6, 300, device=device), pysel.key(1, device=device)
    weights, scores = torch.rand(5000, device=device) + 0.1, torch.randn(5000, device=device)
    values, weight, tables = (torch.rand(shape, device=device) for shape in ((4, 3), (10, 5), (2, 10)))
    indices, groups = torch.randint(10, (4, 3), device=device), torch.arange(4, device=device) % 3
    selected, counts = torch.arange(0, 5000, 50, device=device), torch.ones(5000, device=device)
    classes, quotas = torch.arange(5000, device=device) % 4, torch.full((4,), 25, device=device)

    def tau(bad: bool) -> Tensor:
        return torch.tensor(-1.0 if bad else 1.0, device=device)

    def sample(value: float, at: Any = 7, **more: Any) -> Bad:
        given = weights.log() if more.get("log_weights") else weights
        return Bad(
            lambda bad, **v: pysel.weighted_sample(spoilt(given, bad, value, at), 40, key=key, **more, **v),
            "weights",
            lambda result: (result == -1).all(),
        )

    def epoch(bad: bool, **v: Any) -> tuple[Tensor, Tensor]:
        changed = counts.clone()
        return pysel.usage_select_(changed, spoilt(scores, bad, math.nan, 7), scores, 0.5, 100, 0.1, **v), changed

    def row_is_nan(result: Tensor) -> Tensor:
        return torch.isnan(result[1]).all() & ~torch.isnan(result[0]).any()

    def step(bad: bool) -> tuple[Tensor, Tensor]:
        changed = counts.clone()
        return pysel.usage_step_(changed, spoilt(selected, bad, 5000, 3), scores, 0.1, 0.9), changed

    table = {
        "softmax, a row of only -inf": Bad(
            lambda bad, **v: pysel.gumbel_softmax(spoilt(logits, bad, -math.inf, 1), key=key, **v),
            "logits",
            row_is_nan,
        ),
        "argmax, +inf": Bad(
            lambda bad, **v: pysel.gumbel_argmax(spoilt(logits, bad, math.inf), key=key, **v),
            "logits",
            lambda result: (result[1] == -1) & (result[0] >= 0),
        ),
        "argmax, a row of only -inf": Bad(
            lambda bad, **v: pysel.gumbel_argmax(spoilt(logits, bad, -math.inf, 1), key=key, **v),
            "logits",
            lambda result: (result[1] == -1) & (result[0] >= 0),
        ),
        "sigmoid, +inf": Bad(
            lambda bad, **v: pysel.gumbel_sigmoid(spoilt(logits, bad, math.inf), key=key, **v),
            "logits",
            lambda result: torch.isnan(result[1, 7]),
        ),
        "select, NaN": Bad(
            lambda bad, **v: pysel.select(spoilt(scores, bad, math.nan, 7), 100, **v),
            "scores",
            lambda result: (result == -1).all(),
        ),
        "select, a group": Bad(
            lambda bad: pysel.select(scores, 100, groups=spoilt(classes, bad, 4, 7), quotas=quotas),
            "groups",
            lambda result: (result == -1).all(),
            IndexError,
            validate=False,
        ),
        "select, a quota": Bad(
            lambda bad: pysel.select(scores, 100, groups=spoilt(classes, bad, 0, slice(None)), quotas=quotas),
            "quotas",
            lambda result: (result == -1).all(),
            validate=False,
        ),
        "usage_select_, NaN": Bad(
            epoch,
            "scores",
            lambda result: (result[0] == -1).all() & (result[1] == 1).all(),
        ),
        "sample, negative": sample(-1.0),
        "sample, infinite": sample(math.inf),
        "sample, NaN": sample(math.nan),
        "sample, log +inf": sample(math.inf, log_weights=True),
        "sample, only zeros": sample(0.0, slice(None), replacement=True),
        "sample, k above the number of nonzero weights": dataclasses.replace(
            sample(0.0, slice(20, None)), argument="k"
        ),
        "sample, one of two rows": Bad(
            lambda bad, **v: pysel.weighted_sample(spoilt(weights.view(2, -1), bad, -1.0), 40, key=key, **v),
            "weights",
            lambda result: (result[1] == -1).all(),
        ),
        "factor_scores, index": Bad(
            lambda bad: pysel.factor_scores(values, spoilt(indices, bad, 10, (1, 1)), tables),
            "indices",
            lambda result: torch.isnan(result).any(),
            IndexError,
            validate=False,
        ),
        "factor_counts, index": Bad(
            lambda bad: pysel.factor_counts(values, spoilt(indices, bad, -1, (1, 1)), 10),
            "indices",
            lambda result: (result == -1).any(),
            IndexError,
            validate=False,
        ),
        "factor_counts, group": Bad(
            lambda bad: pysel.factor_counts(values, indices, 10, groups=spoilt(groups, bad, 3, 1), num_groups=3),
            "groups",
            lambda result: (result == -1).any(),
            IndexError,
            validate=False,
        ),
        "sparse_decode, index": Bad(
            lambda bad: pysel.sparse_decode(values, spoilt(indices, bad, 10, (1, 1)), weight),
            "indices",
            lambda result: torch.isnan(result[1]).all(),
            IndexError,
            validate=False,
        ),
        "usage_update_, index": Bad(
            lambda bad: pysel.usage_update_(counts.clone(), spoilt(selected, bad, -1, 3), 0.9),
            "selected",
            lambda result: (result == 1).all(),
            IndexError,
            validate=False,
        ),
        "usage_step_, index": Bad(
            step,
            "selected",
            lambda result: torch.isnan(result[0]).all() & (result[1] == 1).all(),
            IndexError,
            validate=False,
        ),
    }
    for hard in (False, True):
        name = f"softmax{' hard' if hard else ''}"
        table[f"{name}, +inf"] = Bad(
            lambda bad, hard=hard, **v: pysel.gumbel_softmax(spoilt(logits, bad, math.inf), hard=hard, key=key, **v),
            "logits",
            row_is_nan,
        )
        table[f"{name}, tau on the GPU"] = Bad(
            lambda bad, hard=hard, **v: pysel.gumbel_softmax(logits, tau(bad), hard, key=key, **v),
            "tau",
            lambda result: torch.isnan(result).all(),
        )
    table["sigmoid, tau on the GPU"] = Bad(
        lambda bad, **v: pysel.gumbel_sigmoid(logits, tau(bad), key=key, **v),
        "tau",
        lambda result: torch.isnan(result).all(),
    )
    return table


@pytest.fixture(params=refusals("cpu").keys())
def bad(request):
    return refusals()[request.param]


def test_refused_later_and_shown_in_the_result(bad):
    result = bad.call(True)
    assert bool(bad.shows(result))  # waits
    with pytest.raises(bad.error, match=bad.argument):
        pysel.check()
    pysel.check()
    assert not bool(bad.shows(bad.call(False)))
    torch.cuda.synchronize()
    pysel.check()


def test_next_call_raises_and_the_one_after_works(bad):
    bad.call(True)
    torch.cuda.synchronize()
    with pytest.raises(bad.error, match=bad.argument):
        bad.call(False)
    assert not bool(bad.shows(bad.call(False)))


def test_validate_raises_at_once(bad):
    if not bad.validate:
        pytest.skip("the op has no validate=")
    with pytest.raises(bad.error, match=bad.argument):
        bad.call(True, validate=True)
    pysel.check()
    assert not bool(bad.shows(bad.call(False, validate=True)))


def test_validate_false_reports_nothing(bad):
    if not bad.validate:
        pytest.skip("the op has no validate=")
    bad.call(True, validate=False)
    torch.cuda.synchronize()
    pysel.check()


def test_nothing_is_raised_while_a_graph_is_captured():
    bad = refusals()["softmax, +inf"]
    good = torch.randn(6, 300, device="cuda")
    key = gpu_key()
    pysel.gumbel_softmax(good, key=key)
    bad.call(True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = pysel.gumbel_softmax(good, key=key)
    with pytest.raises(ValueError, match="logits"):
        pysel.check()
    graph.replay()
    assert_same_bits(got, pysel.gumbel_softmax(good, key=key))


def test_validate_is_refused_in_a_capture_which_goes_on():
    bad, key = refusals()["softmax, +inf"], gpu_key()
    good = torch.randn(6, 300, device="cuda")
    wanted = pysel.gumbel_softmax(good, key=key)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(ValueError, match="validate must not be True while a CUDA graph is captured"):
            bad.call(True, validate=True)
        got = pysel.gumbel_softmax(good, key=key)
    graph.replay()
    assert_same_bits(got, wanted)
    assert_same_bits(pysel.gumbel_softmax(good, key=key), wanted)


@pytest.mark.parametrize("name", ["gumbel_softmax", "race", "usage_step_"])
def test_the_first_call_of_a_process_may_be_captured(name):
    """Whatever starts up, kernels that are loaded when they are first launched included, may do so there."""
    code = (
        "import torch, pysel\n"
        "from tests.test_cuda import assert_same, calls, gpu_key\n"
        f"call, key = calls()[{name!r}], gpu_key()\n"
        "torch.cuda.synchronize()\n"
        "graph = torch.cuda.CUDAGraph()\n"
        "with torch.cuda.graph(graph):\n"
        "    got = call(key)\n"
        "graph.replay()\n"
        "assert_same(got, call(key))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_fault_of_a_kernel_that_still_runs_is_raised_once():
    logits, key = torch.zeros(20_000_000, 3, device="cuda"), gpu_key()
    logits[0, 1] = logits[-1, 1] = math.inf  # met at the beginning and at the end
    small = torch.zeros(3, 3, device="cuda")
    pysel.gumbel_softmax(small, key=key)
    torch.cuda.synchronize()
    for _ in range(20):
        pysel.gumbel_softmax(logits, key=key)
        with pytest.raises(ValueError, match=r"below \+inf, got \+inf$"):
            while torch.cuda.current_stream().query() is False:
                pysel.gumbel_softmax(small, key=key)
            pysel.check()
        torch.cuda.synchronize()
        pysel.check()


def test_many_bad_values_do_not_take_long():
    """A report crosses the bus to the host; one for each of these would take seconds."""
    n, counts = 10_000_000, torch.zeros(10_000_000, device="cuda")
    logits, outside = torch.full((n,), math.inf, device="cuda"), torch.full((n,), n, device="cuda")
    pysel.gumbel_sigmoid(logits[:3].clone().fill_(0), key=gpu_key())
    for call, error in (
        (lambda: pysel.gumbel_sigmoid(logits, key=gpu_key()), ValueError),
        (lambda: pysel.gumbel_softmax(logits.view(-1, 4), key=gpu_key()), ValueError),
        (lambda: pysel.gumbel_argmax(logits.view(-1, 4), key=gpu_key()), ValueError),
        (lambda: pysel.usage_update_(counts, outside), IndexError),
    ):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        with pytest.raises(error):
            pysel.check()
        assert time.perf_counter() - begun < 0.5


def test_check_waits_whoever_holds_the_memory(monkeypatch):
    """Memory of a pluggable allocator is not what torch's own has reserved."""
    bad = refusals()["softmax, +inf"]
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    bad.call(True)
    with pytest.raises(ValueError, match="logits"):
        pysel.check()


def test_graph_reports_what_its_replay_meets():
    logits, key = torch.randn(6, 300, device="cuda"), gpu_key()
    pysel.gumbel_softmax(logits, key=key)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = pysel.gumbel_softmax(logits, key=key)
    logits[1, 7] = math.inf
    graph.replay()
    assert bool(torch.isnan(got[1]).all())
    with pytest.raises(ValueError, match="logits"):
        pysel.check()


# --- sizes beyond 32 bits ---


def needs_memory(gibibytes: int) -> None:
    if torch.cuda.mem_get_info()[0] < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory")


def test_noise_beyond_2_to_31_elements():
    needs_memory(16)
    row = 2**30 + 3
    logits = torch.zeros(2, row, dtype=torch.bfloat16, device="cuda")
    got = pysel.gumbel_argmax(logits, key=gpu_key())
    assert_same_bits(got[1:], pysel.gumbel_argmax(logits[1:], key=gpu_key(), start=row))


def test_select_beyond_2_to_31_elements():
    needs_memory(32)
    n = 2**31 + 5
    scores = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    scores[n - 1] = 1
    assert pysel.select(scores, 2).tolist() == [0, n - 1]


def test_groups_beyond_2_to_31_elements():
    needs_memory(32)
    n = 2**31 + 5
    scores = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    groups = torch.zeros(n, dtype=torch.int32, device="cuda")
    scores[n - 1], groups[n - 2 :] = 1, 1
    quotas = torch.tensor([2, 1], device="cuda")
    assert pysel.select(scores, 3, groups=groups, quotas=quotas).tolist() == [0, 1, n - 1]


def test_counts_beyond_2_to_31_elements():
    needs_memory(32)
    n = 2**31 + 5
    counts = torch.zeros(n, device="cuda")
    pysel.usage_update_(counts, torch.tensor([0, n - 1, n - 1], device="cuda"))
    assert [counts[i].item() for i in (0, 1, n - 2, n - 1)] == [1, 0, 0, 2]
