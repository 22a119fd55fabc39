"""A training as methods that go by losses see it, and what all of them must hold to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import Selector
from tests.epochs import through_a_file


def losses_of(epoch: int, batch: torch.Tensor) -> torch.Tensor:
    """Made-up losses of a batch, float64, the same whenever they are asked for."""
    generator = np.random.default_rng([epoch, 7])
    return torch.from_numpy(generator.gamma(1.0, size=1000))[batch]


def trained(selector: Selector, epochs: range) -> list[list[int]]:
    """Subsets of epochs, each of which tells its losses by batches in random order."""
    subsets = []
    for epoch in epochs:
        subset = selector.select(epoch)
        subsets.append(subset.tolist())
        for batch in torch.from_numpy(np.random.default_rng(epoch).permutation(subset.numpy())).split(17):
            selector.update(batch, losses=losses_of(epoch, batch))
    return subsets


def check(make: Callable[[int], Selector], tmp_path: Path) -> None:
    """Determinism by key, an epoch settled once, resuming in the middle of an epoch, and refusals without a trace.

    ``make`` gives a selector of a key, over at most 1,000 samples.
    """
    whole = trained(make(0), range(8))
    assert trained(make(0), range(8)) == whole
    assert trained(make(1), range(8)) != whole

    selector = make(0)
    trained(selector, range(3))
    middle = selector.select(3)
    batch = middle[: len(middle) // 2]
    selector.update(batch, losses=losses_of(5, batch))
    assert torch.equal(selector.select(3), middle), "an epoch's subset is settled when it is first asked for"
    resumed = make(9)
    resumed.load_state_dict(through_a_file(selector.state_dict()))
    selector.save(tmp_path)
    loaded = type(selector).load(tmp_path)
    for spoiled in selector.state_dict().values():  # which is a copy
        if isinstance(spoiled, torch.Tensor):
            spoiled.zero_()
    wanted = None
    for one in (selector, resumed, loaded):
        assert len(one) == len(middle) and torch.equal(one.select(3), middle)
        weights = one.weights(middle).tolist()
        later = trained(one, range(4, 8))
        assert (wanted or (weights, later)) == (weights, later)
        wanted = (weights, later)
    with pytest.raises(ValueError, match="epoch must be at least 7, the last one selected, got 6"):
        selector.select(6)

    fresh: Any = make(0)
    fresh.update([3, 5], losses=[2.0, 1.0])
    scores = fresh.scores(7)
    assert scores.isfinite().nonzero().flatten().tolist() == [3, 5] and scores[[3, 5]].tolist() == [2, 1]

    before = selector.state_dict()
    name, n = type(selector).__name__, selector.num_samples
    bad: list[tuple[Any, Any, type[Exception], str]] = [
        ([0, 2], [1.0, math.nan], ValueError, "losses must be finite, got nan in row 2"),
        ([0, 2], [1.0, 1e39], ValueError, "losses must be finite, got inf in row 2"),
        ([0, n], [1.0, 1.0], ValueError, f"indices must be between 0 and {n - 1}, got {n}"),
        ([0, -1], [1.0, 1.0], ValueError, f"indices must be between 0 and {n - 1}, got -1"),
        ([3, 3], [1.0, 1.0], ValueError, "indices must be distinct, got 3 more than once"),
        ([0, 1], [1.0], ValueError, r"losses must be \[B\] for indices \[B\], got \[1\] and \[2\]"),
        ([0, 1], None, ValueError, "losses must be given"),
    ]
    for indices, losses, error, message in bad:
        with pytest.raises(error, match=f"{name}.update: {message}"):
            selector.update(indices, losses=losses)
    after = selector.state_dict()
    for entry, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(after[entry].nan_to_num(-1), value.nan_to_num(-1)), entry
        else:
            assert after[entry] == value
