"""pysel/selection/dynamic/random.py: who is used how often, and what the weights make of it."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pysel
from pysel import ops
from pysel.selection import DynamicRandom, DynamicRandomSelector
from pysel.selection.dynamic import random
from pysel.selection.schedule import full_epochs
from tests.statistics import accept, chi_square, reject

RATIOS = [0.01, 0.3, 1 / 3, 0.5, 0.7, 0.99, 1.0]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("num_samples", [1, 2, 7, 101])
def test_a_walk_uses_samples_evenly(num_samples: int, ratio: float) -> None:
    selector = DynamicRandom(num_samples, ratio, key=0)
    counts = torch.zeros(num_samples, dtype=torch.int64)
    for epoch in range(50):
        chosen = selector.select(epoch)
        assert len(chosen) == len(chosen.unique()) == len(selector) == math.ceil(Fraction(str(ratio)) * num_samples)
        assert chosen.dtype == torch.int64 and torch.equal(chosen, chosen.sort().values)
        counts[chosen] += 1
        assert int(counts.max() - counts.min()) <= 1
    if ratio < 1 and num_samples == 101:
        assert not torch.equal(selector.select(0), selector.select(1))


def test_every_subset_is_equally_likely() -> None:
    """Of 5 samples in epochs of 2, also where an epoch reaches over the end of a permutation (epoch 2)."""
    pairs = {pair: i for i, pair in enumerate((a, b) for a in range(5) for b in range(a + 1, 5))}
    p_values = {}
    for epoch in range(4):
        counts = np.zeros(10)
        for seed in range(2000):
            counts[pairs[tuple(DynamicRandom(5, 0.4, key=seed).select(epoch).tolist())]] += 1
        p_values[f"epoch {epoch}"] = chi_square(counts, np.full(10, 0.1))
    accept(p_values)
    reject({"one pair twice as likely": chi_square([2000 * 2 / 11, *[2000 / 11] * 9], np.full(10, 0.1))})


def test_with_replacement_epochs_are_independent() -> None:
    """Of 5 samples in epochs of 2 any two subsets follow each other as often; in a walk they do not."""
    pairs = {pair: i for i, pair in enumerate((a, b) for a in range(5) for b in range(a + 1, 5))}
    for replacement, test in ((True, accept), (False, reject)):
        counts = np.zeros((10, 10))
        for seed in range(4000):
            selector = DynamicRandom(5, 0.4, replacement=replacement, key=seed)
            first, second = (pairs[tuple(selector.select(epoch).tolist())] for epoch in (3, 4))
            counts[first, second] += 1
        test({"pairs of epochs": chi_square(counts, np.full(100, 0.01))})


def test_with_replacement_and_balance() -> None:
    """Each class gives its share, and any epoch can be asked for."""
    labels = [0] * 60 + [1] * 20
    options: dict[str, Any] = {"labels": labels, "balance": "proportional", "replacement": True}
    forward, jumping = (DynamicRandom(80, 0.3, key=1, **options) for _ in range(2))
    expected = [forward.select(epoch) for epoch in range(6)]
    assert all(((subset < 60).sum(), len(subset)) == (18, 24) for subset in expected)
    assert all(torch.equal(jumping.select(epoch), expected[epoch]) for epoch in (5, 0, 3))
    walking = DynamicRandom(80, 0.3, key=1)
    with pytest.raises(ValueError, match="state_dict must be of a selector with"):
        walking.load_state_dict(forward.state_dict())


def test_epochs_in_any_order() -> None:
    forward = DynamicRandom(101, 0.3, key=pysel.key(0))
    expected = [forward.select(epoch) for epoch in range(20)]
    jumping = DynamicRandom(101, 0.3, key=0)
    for epoch in (19, 3, 3, 11, 0, 19):
        assert torch.equal(jumping.select(epoch), expected[epoch])
    resumed = DynamicRandom(101, 0.3)
    resumed.load_state_dict(forward.state_dict())
    assert torch.equal(resumed.select(7), expected[7])
    assert DynamicRandomSelector is DynamicRandom
    key = pysel.key(0)
    own = DynamicRandom(101, 0.3, key=key)
    key += 1
    assert torch.equal(own.select(0), expected[0]), "the key is copied"


@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_a_late_epoch_costs_as_much_as_the_first(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in elements of permutations that are made, and in keys derived."""
    made: list[int] = []
    permutation, fold_in = ops.permutation, random.fold_in

    def counted(n: int, *, key: Any, start: int = 0, stop: int | None = None) -> torch.Tensor:
        result = permutation(n, key=key, start=start, stop=stop)
        made.append(len(result))
        return result

    monkeypatch.setattr(ops, "permutation", counted)
    monkeypatch.setattr(random, "fold_in", lambda *a: (made.append(1), fold_in(*a))[1])
    selector = DynamicRandom(1000, ratio, key=0)
    for epoch in (20_000, 20_001, 10**9 + 1):
        made.clear()
        assert len(selector.select(epoch)) == 1000 * ratio
        assert sum(made) < 1000


@pytest.mark.parametrize("balance", ["equal", "proportional"])
def test_balance(balance: str) -> None:
    sizes = [60, 3, 25, 1, 11]
    labels = torch.arange(5).repeat_interleave(torch.tensor(sizes))[torch.randperm(100)] * 7 - 3
    selector = DynamicRandom(100, 0.4, labels=labels, balance=balance, key=1)
    wanted = {"equal": [13, 3, 12, 1, 11], "proportional": [24, 1, 10, 1, 4]}[balance]
    counts = torch.zeros(100, dtype=torch.int64)
    for epoch in range(30):
        chosen = selector.select(epoch)
        assert [int((labels[chosen] == 7 * c - 3).sum()) for c in range(5)] == wanted
        counts[chosen] += 1
        for c in range(5):
            uses = counts[labels == 7 * c - 3]
            assert int(uses.max() - uses.min()) <= 1
    assert selector.stats()["quotas"] == wanted
    unbalanced = DynamicRandom(100, 0.4, labels=labels, key=1)
    assert torch.equal(unbalanced.select(5), DynamicRandom(100, 0.4, key=1).select(5))


def test_weights_balance_the_losses() -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor([60, 3, 25, 1, 11]))[torch.randperm(100)]
    even = torch.arange(100) % 5
    for options, shares in (
        ({}, [0.2] * 5),
        ({"balance": "proportional"}, [0.6, 0.03, 0.25, 0.01, 0.11]),
        ({"balance_losses": False}, None),
        ({"balance": None}, None),
        ({"labels": even}, None),
    ):
        arguments = {"labels": labels, "balance": "equal", **options}
        selector = DynamicRandom(100, 0.4, epochs=4, refine=0.25, key=1, **arguments)
        for epoch, size in ((2, 40), (3, 100)):
            chosen = selector.select(epoch)
            weights = selector.weights(chosen)
            assert len(chosen) == size and float(weights.mean()) == pytest.approx(1)
            if shares is None:
                torch.testing.assert_close(weights, torch.ones(size))
            else:
                sums = torch.zeros(5).index_add_(0, labels[chosen], weights)
                torch.testing.assert_close(sums / size, torch.tensor(shares))
        some = torch.tensor([3, 3])
        assert selector.weights(some).tolist() == [float(selector.weights(torch.arange(100))[3])] * 2


def test_the_tail_uses_everything() -> None:
    selector = DynamicRandom(100, 0.3, epochs=20, refine=0.15, key=0)
    sizes = [len(selector.select(epoch)) for epoch in range(22)]
    assert sizes == [30] * 17 + [100] * 5
    assert selector.realised_ratio == pytest.approx((17 * 0.3 + 3) / 20)
    selector.select(16)
    assert len(selector) == 30 and selector.steps(7) == 5 and selector.steps(7, drop_last=True) == 4
    selector.select(17)
    assert len(selector) == 100 and selector.steps(7) == 15
    resumed = DynamicRandom(100, 0.3, epochs=20, refine=0.15)
    resumed.load_state_dict(selector.state_dict())
    assert len(resumed) == 100
    without = DynamicRandom(100, 0.3, epochs=20, key=0)
    assert [len(without.select(epoch)) for epoch in range(22)] == [30] * 22 and without.realised_ratio == 0.3
    assert [full_epochs(refine, 10) for refine in (0.0, 0.01, 0.1, 0.15, 0.3, 1.0)] == [0, 1, 1, 2, 3, 10]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keep_ratio": 0}, ValueError, r"keep_ratio, the fraction kept, must be in \(0, 1\], got 0"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"refine": 0.1}, ValueError, "epochs must be given with refine=0.1"),
        ({"refine": 1.5, "epochs": 3}, ValueError, "refine must be between 0 and 1, got 1.5"),
        ({"balance": "equal"}, ValueError, "labels must be given with balance='equal'"),
        ({"balance": "even", "labels": torch.zeros(10).long()}, ValueError, "balance must be equal or proportional"),
        ({"labels": torch.zeros(9).long()}, ValueError, r"labels must have shape \[10\], got \[9\]"),
        ({"labels": torch.zeros(10)}, TypeError, "DynamicRandom: labels must be integers, got torch.float32"),
    ],
)
def test_bad_random_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DynamicRandom(10, **{"keep_ratio": 0.5, **arguments})
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        DynamicRandom(10, 0.5).select(-1)


def test_saved_and_loaded(tmp_path: Path) -> None:
    labels = torch.arange(100) % 3
    walk = DynamicRandom(100, 0.3, epochs=10, labels=labels, balance="equal", refine=0.2, key=4)
    walk.save(tmp_path / "walk")
    again = DynamicRandom.load(tmp_path / "walk")
    assert all(torch.equal(again.select(epoch), walk.select(epoch)) for epoch in (0, 5, 9))
