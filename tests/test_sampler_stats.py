"""stats() of samplers: what they tell about a pass, against what ranks really yield, on a clock of the tests' own."""

from __future__ import annotations

import copy
import pickle
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pysel import BatchSampler, SelectionSampler, WeightedSampler, ops
from pysel.samplers import passes
from pysel.selection import DynamicRandom, DynamicSelector, Full, InfoBatch

N, K = 41, 23
FIGURES = {
    "epoch",
    "position",
    "num_samples",
    "rank",
    "num_replicas",
    "padded",
    "dropped",
    "selection_seconds",
    "selection_seconds_total",
}


def weighted(**options: Any) -> WeightedSampler:
    return WeightedSampler(torch.arange(1.0, N + 1), K, replacement=False, **{"key": 3, **options})


def selection(**options: Any) -> SelectionSampler:
    return SelectionSampler(DynamicRandom(N, 0.56, key=1), **{"key": 2, **options})


BOTH = pytest.mark.parametrize("make", [weighted, selection])


@BOTH
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 7, 30])
def test_figures_are_those_of_what_ranks_yield(make: Any, world: int, drop_last: bool) -> None:
    samplers = [make(rank=rank, num_replicas=world, drop_last=drop_last) for rank in range(world)]
    shares = [list(sampler) for sampler in samplers]
    yielded = [index for share in shares for index in share]
    for rank, sampler in enumerate(samplers):
        stats = sampler.stats()
        assert stats.keys() >= FIGURES
        assert (stats["rank"], stats["num_replicas"], stats["num_samples"]) == (rank, world, K)
        assert stats["padded"] == len(yielded) - len(set(yielded)), "both draw without replacement"
        assert stats["dropped"] == K - len(set(yielded))
        assert stats["position"] == K
        if make is selection:
            assert stats["realised_ratio"] == len(yielded) / N
        assert all(type(value) in (int, float) for value in stats.values())


@BOTH
def test_it_speaks_of_the_pass_that_began_last(make: Any) -> None:
    sampler = make(rank=1, num_replicas=2)
    sampler.set_epoch(3)
    before = sampler.stats()
    assert (before["epoch"], before["position"], before["num_samples"], before["padded"]) == (3, 0, K, 1)
    running = iter(sampler)
    list(islice(running, 5))
    sampler.set_epoch(4)
    assert (sampler.stats()["epoch"], sampler.stats()["position"]) == (3, 10)
    list(running)
    len(sampler)  # of the coming epoch
    assert (sampler.stats()["epoch"], sampler.stats()["position"]) == (3, K)
    next(iter(sampler))
    assert (sampler.stats()["epoch"], sampler.stats()["position"]) == (4, 2)


@BOTH
def test_after_a_restart_on_other_ranks(make: Any) -> None:
    before = make(rank=0, num_replicas=2)
    list(islice(iter(before), 3))
    state = before.state_dict()
    after = [make(rank=rank, num_replicas=4, drop_last=True) for rank in range(4)]
    for sampler in after:
        sampler.load_state_dict(state)
        stats = sampler.stats()
        # 17 are left for four
        assert (stats["position"], stats["num_samples"], stats["padded"], stats["dropped"]) == (6, K, 0, 1)
    left = [len(list(sampler)) for sampler in after]
    assert left == [4] * 4
    assert all((one.stats()["position"], one.stats()["dropped"]) == (K, 1) for one in after)


@BOTH
def test_a_pass_that_was_loaded_itself(make: Any) -> None:
    running = iter(make(rank=1, num_replicas=2))
    list(islice(running, 3))
    fresh = make(rank=1, num_replicas=2)
    resumed = iter(fresh)
    resumed.load_state_dict(running.state_dict())
    for taken in range(2):
        stats = fresh.stats()
        assert (stats["rank"], stats["num_replicas"], stats["num_samples"], stats["padded"]) == (1, 2, K, 1)
        assert stats["position"] == 6 + 2 * taken
        next(resumed)


@BOTH
def test_asking_changes_nothing(make: Any) -> None:
    for key in (3, None):
        asked, left_alone = make(key=key), make(key=key)
        torch.manual_seed(0)
        torch.rand(3)
        whole = list(left_alone)
        torch.manual_seed(0)
        asked.stats()
        torch.rand(3)  # a loop's own: the key is not drawn before
        running = iter(asked)
        begun = list(islice(running, 7))
        asked.stats()
        assert begun + list(running) == whole
        asked.stats()
        state, other = asked.state_dict(), left_alone.state_dict()
        assert state.keys() == other.keys() and state["position"] == other["position"]


def test_a_batch_sampler_gives_those_of_its_sampler() -> None:
    batches = BatchSampler(selection(), 4)
    assert sum(len(batch) for batch in batches) == K
    assert batches.stats() == batches.sampler.stats() and batches.stats()["num_samples"] == K


def test_workers_leave_the_figures_here() -> None:
    sampler = selection()
    for _ in DataLoader(range(N), 4, sampler=sampler, num_workers=1):
        pass
    assert sampler.stats()["position"] == K and sampler.stats()["selection_seconds"] > 0
    for copied in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert copied.stats() == sampler.stats()


# --- the selector's own ---


def test_a_selectors_figures_have_a_prefix() -> None:
    scores = torch.rand(2, N, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    selector = DynamicSelector.from_scores(scores[0], scores[1], 0.5, 6, key=5)
    sampler = SelectionSampler(selector, key=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        list(sampler)
    stats, own = sampler.stats(), selector.stats()
    for name in ("epochs", "realised_ratio", "imbalance"):
        assert stats[f"selector/{name}"] == own[name]
    assert "selector/uses" not in stats and isinstance(own["uses"], list)
    assert stats.keys() - sampler.stats(selector=False).keys() == {
        "selector/epochs",
        "selector/realised_ratio",
        "selector/imbalance",
    }
    infobatch = SelectionSampler(InfoBatch(N, epochs=4, key=0), key=0)
    list(infobatch)
    assert infobatch.stats()["selector/realised_ratio"] == 1.0
    assert "selector/mean_loss" in infobatch.stats()


class Own:
    """A user's selector."""

    def __init__(self, stats: Any = None) -> None:
        if stats is not None:
            self.stats = lambda: stats

    def __len__(self) -> int:
        return 4

    def select(self, epoch: int) -> torch.Tensor:
        return torch.arange(4)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def test_a_users_selector() -> None:
    without = SelectionSampler(Own(), key=0)
    assert list(without) and without.stats().keys() == FIGURES
    told = {"a": np.float32(0.5), "b": {"c": np.int64(3), "d": {"e": True}}, "f": [1], "g": None, "h": "x"}
    stats = SelectionSampler(Own(told), key=0).stats()
    own = {name: value for name, value in stats.items() if name.startswith("selector/")}
    assert own == {"selector/a": 0.5, "selector/b/c": 3, "selector/b/d/e": 1}
    assert [type(value) for value in own.values()] == [float, int, int]


# --- seconds ---


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the samplers take for the time: it stands still, but where a test moves it."""
    now = [100.0]
    monkeypatch.setattr(passes, "perf_counter", lambda: now[0])
    return now


def slow(monkeypatch: pytest.MonkeyPatch, clock: list[float], owner: Any, name: str, seconds: float) -> None:
    """Let a function take so long."""
    function = getattr(owner, name)

    def slowly(*arguments: Any, **options: Any) -> Any:
        clock[0] += seconds
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, slowly)


def test_seconds_are_those_of_picking_and_ordering(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(passes, "_PIECE", 8)  # so that an epoch takes three
    sampler = SelectionSampler(Full(K), key=0)
    slow(monkeypatch, clock, sampler.selector, "select", 5.0)
    slow(monkeypatch, clock, ops, "permutation", 0.25)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        len(sampler)  # picks before the pass begins
        for _ in sampler:
            clock[0] += 1.0  # training
        stats = sampler.stats(selector=False)
        assert stats["selection_seconds"] == 5.75
        assert stats["selection_seconds_total"] == (epoch + 1) * 5.75
    sampler.set_epoch(3)
    len(sampler)
    stats = sampler.stats(selector=False)
    assert (stats["selection_seconds"], stats["selection_seconds_total"]) == (5.75, 4 * 5.75 - 0.75)


def test_seconds_before_the_first_pass_and_of_a_failed_one(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    sampler = selection()
    slow(monkeypatch, clock, sampler.selector, "select", 5.0)
    assert sampler.stats()["selection_seconds"] == 5.0, "as len, it makes the selector pick"
    assert sampler.stats()["selection_seconds_total"] == 5.0, "once"

    def fails(epoch: int) -> torch.Tensor:
        clock[0] += 2.0
        raise OSError("disk gone")

    monkeypatch.setattr(sampler.selector, "select", fails)
    sampler.set_epoch(1)
    with pytest.raises(OSError, match="disk gone"):
        next(iter(sampler))
    sampler.set_epoch(0)
    assert len(list(sampler)) == K
    assert sampler.stats()["selection_seconds_total"] == 7.0


def test_seconds_of_draws_and_of_changed_weights(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    sampler = weighted()
    slow(monkeypatch, clock, ops, "weighted_sample", 3.0)
    running = iter(sampler)
    list(islice(running, 4))
    assert sampler.stats()["selection_seconds"] == 3.0
    sampler.set_weights(torch.arange(N, 0, -1.0))  # asks the old weights what they drew
    list(running)
    assert sampler.stats()["selection_seconds"] == sampler.stats()["selection_seconds_total"] == 9.0


def test_each_pass_has_its_own_seconds(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """Also without a key, where all passes may be of epoch 0."""
    sampler = weighted(key=None)
    slow(monkeypatch, clock, ops, "weighted_sample", 3.0)
    for passed in range(3):
        list(sampler)
        stats = sampler.stats()
        assert (stats["epoch"], stats["selection_seconds"]) == (0, 3.0)
        assert stats["selection_seconds_total"] == 3.0 * (passed + 1)


def test_waiting_for_other_ranks_is_not_selection(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    sampler = selection()
    slow(monkeypatch, clock, sampler.selector, "select", 5.0)
    slow(monkeypatch, clock, passes.ranks, "compare", 60.0)
    list(sampler)
    assert sampler.stats()["selection_seconds"] == 5.0


def test_an_empty_epoch(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    sampler = SelectionSampler(Own(), key=0)
    monkeypatch.setattr(sampler.selector, "select", lambda epoch: torch.empty(0, dtype=torch.int64))
    slow(monkeypatch, clock, sampler.selector, "select", 5.0)
    assert list(sampler) == []
    stats = sampler.stats()
    assert (stats["num_samples"], stats["position"], stats["selection_seconds"]) == (0, 0, 5.0)


def test_a_watch_counts_what_is_within_itself_once(clock: list[float]) -> None:
    watch = passes.Watch()
    with watch:
        clock[0] += 1.0
        with watch:
            clock[0] += 2.0
    assert (watch.total, watch.claim(), watch.claim(), watch.total) == (3.0, 3.0, 0.0, 3.0)


def test_asking_takes_no_pass_over_the_samples() -> None:
    """The sampler's own figures come from numbers it has: 1e12 samples would fit into no memory."""

    class Sizes:
        def numel(self) -> int:
            return 10**12

        def __getitem__(self, order: torch.Tensor) -> torch.Tensor:
            return order

    sampler = SelectionSampler(Full(3), key=0, rank=1, num_replicas=7)
    sampler._picked = 0, Sizes()  # type: ignore[assignment]
    list(islice(iter(sampler), 2))
    stats = sampler.stats(selector=False)
    assert (stats["num_samples"], stats["position"], stats["padded"]) == (10**12, 14, -(10**12) % 7)
