"""pysel/selection/stream/peaks.py: the rule in numpy, one by one and by calls."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pysel.selection.stream import Peaks
from tests.streams import C, arrivals, check

pytestmark = pytest.mark.usefixtures("one_thread")


class Oracle:
    """The rule as written, over all scores since the last refresh, or the latest of them."""

    def __init__(self, accept_ratio: float, capacity: int, window: int = 10**9) -> None:
        self.ratio, self.capacity, self.window = accept_ratio, capacity, window
        self.scores: list[float] = []
        self.taken = np.zeros(C, int)

    def offer(self, logits: np.ndarray, labels: np.ndarray) -> list[bool]:
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        length = np.abs(np.eye(C)[labels] - p).sum(1)
        n = self.taken[labels]
        score = logits[np.arange(len(labels)), labels] * length / np.maximum(n, 1)
        pool = np.array(self.scores[-self.window :] + score.tolist())
        # the share of scores at or below one's own is at least 1 - ratio
        share = (pool[None, :] <= score[:, None]).mean(1) if len(score) else score
        mask = share >= 1 - self.ratio - 1e-12
        best = np.where(mask, score, -np.inf)
        for c in np.unique(labels):
            if self.taken[c] == 0:
                mask[np.flatnonzero(labels == c)[0]] = True
                best[np.flatnonzero(labels == c)[0]] = np.inf
        room = self.capacity - self.taken.sum()
        if mask.sum() > room:
            mask[np.argsort(-best, kind="stable")[room:]] = False
        self.scores += score.tolist()
        self.taken += np.bincount(labels[mask], minlength=C)
        return mask.tolist()


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize(
    ("ratio", "capacity", "window"), [(0.2, 10**6, 10**9), (0.3, 40, 100), (1.0, 30, 5), (0.01, 100, 50)]
)
def test_the_rule_in_numpy(size: int, ratio: float, capacity: int, window: int) -> None:
    selector = Peaks(C, capacity, accept_ratio=ratio, window=min(window, 1000), key=0)
    oracle = Oracle(ratio, capacity, window)
    for step in range(280 // size):
        batch = arrivals(step, size)
        assert selector.offer(**batch).tolist() == oracle.offer(batch["logits"], batch["labels"]), step
        if step % 5 == 4:
            selector.refresh()
            oracle.scores = []
    assert selector.stats()["classes"] == oracle.taken.tolist()
    assert selector.stats()["accepted"] == len(selector) == oracle.taken.sum() <= capacity


def test_it_holds_to_what_every_method_for_streams_does(tmp_path: Path) -> None:
    for draw in ("uniform", "uses"):
        check(lambda key, draw=draw: Peaks(C, 30, accept_ratio=0.3, window=50, draw=draw, key=key), tmp_path)


def test_replay_is_of_what_was_there_at_the_last_refresh() -> None:
    selector = Peaks(C, 100, accept_ratio=0.5, key=0)
    first = selector.offer(**arrivals(0))
    with pytest.raises(ValueError, match=r"Peaks.replay: n must be between 0 and 0, got 1"):
        selector.replay(1)
    selector.refresh()
    held = torch.nonzero(first).flatten().tolist()
    selector.offer(**arrivals(1))
    assert sorted(selector.replay(len(held)).tolist()) == held
    selector.refresh()
    assert torch.equal(selector.replay(len(selector)).sort().values, selector.indices)


def test_a_sample_that_is_held_is_not_taken_again() -> None:
    selector = Peaks(C, 100, accept_ratio=1.0, key=0)
    batch = arrivals(0)
    assert selector.offer(**batch, indices=range(50, 70)).all()
    assert not selector.offer(**batch, indices=range(50, 70)).any()
    assert selector.offer(**batch, indices=range(60, 80)).tolist() == [False] * 10 + [True] * 10
    assert selector.indices.tolist() == list(range(50, 80)) and sum(selector.stats()["classes"]) == 30


def test_what_is_held_sets_no_bar() -> None:
    """A stream that repeats itself: the best are held, and nothing else would be among the best fifth of the rest."""
    selector = Peaks(2, 100, accept_ratio=0.2, key=0)
    assert selector.offer([[5.0, 4.9], [4.9, 5.0]], [0, 1], indices=[0, 1]).all()
    for index in range(2, 12):
        again = selector.offer([[5.0, 4.9], [4.9, 5.0], [0.1, 0.0]], [0, 1, 0], indices=[0, 1, index])
        assert not again[:2].any()
    assert len(selector) > 2
    state = selector.state_dict()
    assert not selector.offer([[5.0, 4.9]], [0], indices=[0]).any()
    assert selector.state_dict()["scored"] == state["scored"]


def test_the_accepted_share_is_told_as_it_is() -> None:
    """Scores fall as n_y grows: with a window over the whole stream fewer are taken than were asked for."""
    long, short = (Peaks(C, 10**4, accept_ratio=0.2, window=window, key=0) for window in (5000, 64))
    for step in range(100):
        for selector in (long, short):
            selector.offer(**arrivals(step, 50))
    assert long.stats()["realised_ratio"] < short.stats()["realised_ratio"] < 0.3
    assert long.stats()["realised_ratio"] == long.stats()["accepted"] / 5000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    batch = arrivals(0)
    rounded = torch.from_numpy(batch["logits"]).to(dtype)
    one, other = Peaks(C, 9, key=0), Peaks(C, 9, key=0)
    assert torch.equal(one.offer(rounded, batch["labels"]), other.offer(rounded.double(), batch["labels"]))


def test_extreme_logits_leave_a_state_that_loads() -> None:
    selector = Peaks(C, 9, accept_ratio=1.0, key=0)
    assert selector.offer([[1e308, -1e308, 0.0]] * 3, [0, 1, 2]).all()
    other = Peaks(C, 9, accept_ratio=1.0, key=1)
    other.load_state_dict(selector.state_dict())
    assert not bool(other.state_dict()["scores"].isnan().any())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"accept_ratio": 0.0}, r"accept_ratio must be in \(0, 1\], got 0.0"),
        ({"accept_ratio": math.nan}, "accept_ratio must be"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"draw": "best"}, "draw must be uniform or uses, got 'best'"),
    ],
)
def test_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"Peaks: {message}"):
        Peaks(**{"num_classes": C, "capacity": 3, **arguments})  # type: ignore[arg-type]
