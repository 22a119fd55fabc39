"""pysel/selection/dynamic/orderdp.py: the largest losses of a random part, against probabilities worked out."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import OrderDP
from tests.losses import check
from tests.statistics import accept, chi_square, reject


def kept(n: int, s: int, k: int) -> np.ndarray:
    """How likely each rank (0: the largest loss) is to be kept: to be among s of n, with less than k larger ones."""
    odds = []
    for rank in range(n):
        larger = (comb(rank, j) * comb(n - 1 - rank, s - 1 - j) for j in range(min(rank, k - 1) + 1) if s - 1 - j >= 0)
        odds.append(Fraction(sum(larger), comb(n, s)))
    assert sum(odds) == k
    return np.array([float(p) for p in odds])


def test_inclusion_by_rank() -> None:
    """Over keys each rank is kept as often as the hypergeometric law has it, and not as with another part."""
    n, losses = 20, torch.from_numpy(np.random.default_rng(0).permutation(20)).double()
    rank = (n - 1 - losses).long().numpy()
    counts = np.zeros(n)
    for seed in range(2000):
        selector = OrderDP(n, 0.3, pool=0.6, key=seed)
        selector.update(range(n), losses=losses)
        chosen = selector.select(1).numpy()
        assert len(chosen) == 6
        counts[rank[chosen]] += 1
    p = {"ranks": chi_square(counts, kept(n, 12, 6) / 6)}
    accept(p)
    reject({"ranks": chi_square(counts, kept(n, 13, 6) / 6)})


def test_it_is_the_top_of_the_part() -> None:
    """Nobody who is left out of the part's top has a larger loss than one who is in: from two sizes of one draw."""
    n = 300
    losses = torch.from_numpy(np.random.default_rng(1).random(n))
    for seed in range(20):
        all_of_it, top = (OrderDP(n, ratio, pool=0.5, key=seed) for ratio in (0.5, 0.2))
        for selector in (all_of_it, top):
            selector.update(range(n), losses=losses)
        part, chosen = all_of_it.select(0), top.select(0)
        assert len(part) == 150 and len(chosen) == 60
        assert torch.equal(chosen, part[losses[part].argsort(descending=True)[:60]].sort().values)


def test_the_part_is_exact() -> None:
    """In binary floating point 0.07 of 100 is a little more than 7: of eight, sample 0 would always be left out."""
    kept = 0
    for seed in range(200):
        selector = OrderDP(100, 0.07, pool=0.07, key=seed)
        selector.update(range(100), losses=range(100))
        chosen = selector.select(0).tolist()
        assert len(chosen) == 7
        kept += 0 in chosen
    assert 2 <= kept <= 35  # 14 are expected


def test_samples_without_a_loss_come_first() -> None:
    selector = OrderDP(10, 0.5, pool=1, key=0)
    selector.update(range(6), losses=torch.full((6,), 1e30))
    assert {6, 7, 8, 9} < set(selector.select(0).tolist())


def test_the_tail_is_full() -> None:
    selector = OrderDP(10, 0.3, epochs=10, refine=0.2, key=0)
    assert [len(selector.select(epoch)) for epoch in range(11)] == [3] * 8 + [10] * 3


def test_what_all_hold_to(tmp_path: Path) -> None:
    check(lambda key: OrderDP(200, 0.3, epochs=9, refine=0.1, key=key), tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OrderDP(5, 0.5, pool=0.4), "OrderDP: pool must be at least keep_ratio, 0.5, got 0.4"),
        (lambda: OrderDP(5, 0.5, pool=2), r"OrderDP: pool must be in \(0, 1\], got 2"),
        (lambda: OrderDP(5, 2), r"OrderDP: keep_ratio, the fraction kept, must be in \(0, 1\], got 2"),
        (lambda: OrderDP(5, 0.5, refine=0.1), "OrderDP: epochs must be given with refine=0.1"),
    ],
)
def test_bad_calls(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
