"""pysel/selection/dynamic/seta.py: groups and window against numpy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import SeTa
from pysel.selection.dynamic.seta import like_groups
from tests.losses import check, losses_of

N = 300


def lloyd(x: np.ndarray, groups: int) -> list[list[float]]:
    """k-means of numbers, each compared with each centre: the members of the groups from low to high, none empty."""
    distinct = np.unique(x)
    centres = np.array([distinct[int((g + 0.5) / groups * len(distinct))] for g in range(groups)])
    own = np.full(len(x), -1)
    for _ in range(100):
        nearest = np.abs(x[:, None] - centres).argmin(1)
        if (nearest == own).all():
            break
        own = nearest
        centres = np.array([x[own == g].mean() if (own == g).any() else centres[g] for g in range(groups)])
    return [sorted(x[own == g].tolist()) for g in np.argsort(centres, kind="stable") if (own == g).any()]


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("kind", ["uniform", "lognormal", "few values"])
def test_groups_against_an_oracle(groups: int, kind: str) -> None:
    generator = np.random.default_rng(groups)
    x = {
        "uniform": generator.random(N),
        "lognormal": generator.lognormal(sigma=1.5, size=N),
        "few values": generator.integers(0, 4, N) ** 2 * 1.0,
    }[kind]
    ordered = torch.from_numpy(x).sort().values
    bounds = like_groups(ordered, groups)
    assert bounds[0] == 0 and bounds[-1] == N and sorted(set(bounds)) == bounds
    parts = [ordered[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert parts == lloyd(x, groups)
    for lower, upper in itertools.pairwise(parts):
        assert lower[-1] < upper[0], "equal losses are in the same group"


@pytest.mark.parametrize(
    ("groups", "window", "kept"), [(5, 0.9, 4), (5, 0.5, 2), (4, 0.1, 1), (3, 1.0, 3), (10, 0.35, 4)]
)
def test_window_against_an_oracle(groups: int, window: float, kept: int) -> None:
    """The random part is that of the same key with a window over all; a window of 4.5 groups has 4, of 3.5 has 4."""
    selector = SeTa(N, 14, prune_ratio=0.3, groups=groups, window=window, delta=0.8, key=2)
    part_of = SeTa(N, 14, prune_ratio=0.3, groups=1, window=1, delta=0.8, key=2)
    latest = np.full(N, np.nan)
    for epoch in range(14):
        chosen, part = selector.select(epoch).tolist(), part_of.select(epoch).tolist()
        assert len(part) == 210 and len(chosen) == len(selector)
        if epoch < 12:
            unseen = [i for i in part if np.isnan(latest[i])]
            seen = [i for i in part if not np.isnan(latest[i])]
            wanted = set(unseen)
            if seen:
                found = lloyd(latest[seen], groups)
                assert len(found) == groups
                first = epoch % (groups - kept + 1)
                inside = {loss for group in found[first : first + kept] for loss in group}
                wanted |= {i for i in seen if latest[i] in inside}
            assert set(chosen) == wanted
        else:
            assert chosen == part, "the last part keeps a random part whole"
        losses = losses_of(epoch, torch.tensor(chosen)).float()
        selector.update(chosen, losses=losses)
        latest[chosen] = losses.numpy()


def test_the_random_part_is_exact() -> None:
    """In binary floating point 1 - 0.9 of 100 is a little less than 10, and 1 - 0.1 of 10 is 9."""
    assert [len(SeTa(n, 3, prune_ratio=r, key=0).select(0)) for n, r in ((100, 0.9), (10, 0.1), (101, 0.1))] == [
        10,
        9,
        91,
    ]


def test_equal_losses_are_one_group() -> None:
    selector = SeTa(10, 10, prune_ratio=0, key=0)
    selector.update(range(10), losses=torch.full((10,), 0.1))
    assert [len(selector.select(epoch)) for epoch in range(4)] == [10] * 4


def test_what_all_hold_to(tmp_path: Path) -> None:
    check(lambda key: SeTa(200, 9, groups=3, window=0.7, key=key), tmp_path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SeTa(0, 3), ValueError, "SeTa: num_samples must be at least 1, got 0"),
        (lambda: SeTa(5, 0), ValueError, "SeTa: epochs must be at least 1, got 0"),
        (
            lambda: SeTa(5, 3, prune_ratio=1),
            ValueError,
            r"SeTa: prune_ratio, the fraction left out, must be in \[0, 1\)",
        ),
        (lambda: SeTa(5, 3, groups=0), ValueError, "SeTa: groups must be at least 1, got 0"),
        (lambda: SeTa(5, 3, groups=2.0), TypeError, "SeTa: groups must be an int, got float"),
        (lambda: SeTa(5, 3, window=0), ValueError, r"SeTa: window must be in \(0, 1\], got 0"),
        (lambda: SeTa(5, 3, window=math.nan), ValueError, r"SeTa: window must be in \(0, 1\], got nan"),
        (lambda: SeTa(5, 3, delta=2), ValueError, "SeTa: delta must be between 0 and 1, got 2"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
