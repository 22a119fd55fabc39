"""pysel/selection/stream/replay.py: who stays, who is drawn, and that both are functions of the key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection.stream import ReplayMemory
from tests.epochs import through_a_file
from tests.statistics import accept, chi_square
from tests.streams import same_state

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_reservoir_is_the_same_however_the_stream_is_cut() -> None:
    whole = ReplayMemory(10, key=3)
    held = whole.add(range(300))
    assert torch.nonzero(held).flatten().tolist() == whole.indices.tolist()
    for sizes in ([1] * 300, [7] * 42 + [6], [299, 1], [5, 0, 295]):
        memory, start = ReplayMemory(10, key=3), 0
        for size in sizes:
            memory.add(range(start, start + size) if size else torch.empty(0, dtype=torch.int64))
            start += size
        assert memory.indices.tolist() == whole.indices.tolist()


def test_a_reservoir_is_uniform() -> None:
    counts = np.zeros(30)
    for key in range(2000):
        memory = ReplayMemory(6, key=key)
        for start in range(0, 30, 8):
            memory.add(range(start, min(start + 8, 30)))
        counts[memory.indices.numpy()] += 1
    accept({"who stays": chi_square(counts.tolist(), [1 / 30] * 30)})


def test_classes_share_the_places_whatever_comes_first() -> None:
    """Against a level found by counting: each class holds min(its size, level), but for one more where it divides."""
    labels = np.array([0] * 500 + [1] * 30 + [2] * 3 + [0] * 400 + [3] * 50)
    memory = ReplayMemory(40, keep="balanced", key=0)
    for part in np.split(np.arange(len(labels)), range(37, len(labels), 37)):
        memory.add(part, labels[part])
        seen = np.bincount(labels[: part[-1] + 1])
        room = min(40, seen.sum())
        level = max(level for level in range(room + 1) if np.minimum(seen, level).sum() <= room)
        held = np.bincount(memory.labels.numpy(), minlength=len(seen))
        assert (held >= np.minimum(seen, level)).all() and (held <= np.minimum(seen, level + 1)).all()
        assert held.sum() == room == len(memory)
        assert (labels[memory.indices.numpy()] == memory.labels.numpy()).all()
    assert memory.stats() == {"held": 40, "offered": 983, "capacity": 40, "classes": dict(enumerate(held.tolist()))}


def test_ranks_decide_and_may_change() -> None:
    memory = ReplayMemory(3, keep="balanced", key=0)
    held = memory.add([10, 11, 12, 13, 14], [0, 0, 0, 1, 1], ranks=[1.0, 3.0, 2.0, 9.0, 8.0])
    assert held.tolist() == [False, True, True, True, False], "two places for the larger class"
    memory.rerank([1.0, 2.0, 0.0])
    assert memory.add([20, 21], [0, 1], ranks=[1.5, -1.0]).tolist() == [True, False]
    assert memory.indices.tolist() == [12, 13, 20] and memory.labels.tolist() == [0, 1, 0]
    assert memory.add([13], [1], ranks=[-5.0]).tolist() == [True], "it stays as it is"
    assert memory.shrink(2).tolist() == [20] and memory.indices.tolist() == [12, 13]
    memory.add([30], [2], ranks=[0.0])
    assert len(memory) == 2, "of three classes for two places the larger keep theirs, and here all are alike"


def test_a_memory_larger_than_the_stream() -> None:
    memory = ReplayMemory(10**6, key=0)
    assert memory.add([4, 2]).all() and memory.indices.tolist() == [4, 2]
    assert sorted(memory.sample(2).tolist()) == [2, 4]
    with pytest.raises(ValueError, match=r"ReplayMemory.sample: n must be between 0 and 2, got 3"):
        memory.sample(3)


@pytest.mark.parametrize("draw", ["uniform", "uses"])
def test_draws(draw: str) -> None:
    """One at a time, over keys: the second draw against the weights that the first leaves."""
    seconds = np.zeros((4, 4))
    for key in range(10_000, 12_000):
        memory = ReplayMemory(4, draw=draw, key=key)
        memory.add([0, 1, 2, 3])
        first, second = int(memory.sample(1)), int(memory.sample(1))
        seconds[first, second] += 1
        assert memory.uses.sum() == 6
    same = 1 / 4 if draw == "uniform" else (1 / 2) / (3 + 1 / 2)
    expected = np.full((4, 4), (1 - same) / 3 / 4)
    np.fill_diagonal(expected, same / 4)
    accept({draw: chi_square(seconds.flatten().tolist(), expected.flatten().tolist())})
    memory = ReplayMemory(4, draw=draw, key=0)
    memory.add([5, 6, 7, 8])
    assert sorted(memory.sample(4).tolist()) == [5, 6, 7, 8], "none twice"


@pytest.mark.parametrize("keep", ["reservoir", "balanced"])
def test_it_resumes_exactly(keep: str, tmp_path: Path) -> None:
    def go_on(memory: ReplayMemory, steps: range) -> list[Any]:
        seen = []
        for step in steps:
            memory.add(range(step * 9, step * 9 + 9), [i % 4 for i in range(9)])
            seen.append((memory.indices.tolist(), memory.sample(3).tolist(), memory.uses.tolist()))
        return seen

    memory = ReplayMemory(11, keep=keep, draw="uses", key=0)
    go_on(memory, range(5))
    memory.shrink(8)
    resumed = ReplayMemory(11, keep=keep, draw="uses", key=1)
    resumed.load_state_dict(through_a_file(memory.state_dict()))
    memory.save(tmp_path)
    loaded = ReplayMemory.load(tmp_path)
    assert repr(loaded) == f"ReplayMemory(capacity=11, keep='{keep}', draw='uses')"
    later = go_on(memory, range(5, 10))
    assert go_on(resumed, range(5, 10)) == later == go_on(loaded, range(5, 10))
    with pytest.raises(ValueError, match=r"state_dict must be of a memory with capacity=12, got one with 11"):
        ReplayMemory(12, keep=keep, draw="uses").load_state_dict(memory.state_dict())


def test_what_is_refused_changes_nothing() -> None:
    memory = ReplayMemory(4, keep="balanced", key=0)
    memory.add(range(9), [0, 1, 2] * 3)
    before = memory.state_dict()
    bad: list[tuple[Any, type[Exception], str]] = [
        (lambda: memory.add([1, 1], [0, 0]), ValueError, "add: indices must be distinct, got 1 more than once"),
        (lambda: memory.add([-1], [0]), ValueError, "add: indices must be between 0"),
        (lambda: memory.add([1.5], [0]), TypeError, "add: indices must be integers"),
        (lambda: memory.add([1]), ValueError, "add: labels must be given with keep='balanced'"),
        (lambda: memory.add([1], [0, 1]), ValueError, r"add: labels must have shape \[1\], got \[2\]"),
        (lambda: memory.add([1], [0], ranks=[math.nan]), ValueError, "add: ranks must be finite, got nan in row 0"),
        (lambda: memory.add([1], [0], ranks=[1.0, 2.0]), ValueError, r"add: ranks must be \[1\], got \[2\]"),
        (lambda: memory.rerank([1.0]), ValueError, r"rerank: ranks must be \[4\], one for each sample held, got \[1\]"),
        (lambda: memory.rerank([math.inf] * 4), ValueError, "rerank: ranks must be finite, got inf in row 0"),
        (lambda: memory.shrink(5), ValueError, "shrink: capacity must be between 1 and 4, got 5"),
        (lambda: memory.shrink(0), ValueError, "shrink: capacity must be between 1 and 4, got 0"),
        (lambda: memory.sample(-1), ValueError, "sample: n must be between 0 and 4, got -1"),
        (lambda: memory.sample("a"), TypeError, "sample: n must be an int, got str"),
    ]
    for entry, value in (("held", 5), ("held", -1), ("places", 0), ("seen", -1), ("draws", -1)):
        state = {**before, entry: value}
        bad.append((lambda s=state: memory.load_state_dict(s), ValueError, rf"ReplayMemory: state_dict\['{entry}'\]"))
    for entry in ("indices", "uses", "ranks"):
        state = {**before, entry: before[entry] * (math.nan if entry == "ranks" else 0)}
        bad.append((lambda s=state: memory.load_state_dict(s), ValueError, rf"ReplayMemory: state_dict\['{entry}'\]"))
    for call, error, message in bad:
        with pytest.raises(error, match=message):
            call()
        assert same_state(memory.state_dict(), before), message
