"""pysel/selection/subset.py: exact sizes, quotas by class, and selection within classes."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pysel
from pysel.reference.random import noise_like
from pysel.selection import (
    Strata,
    quotas,
    subset_size,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_subset_size_is_the_exact_ceiling() -> None:
    assert subset_size(0.07, 50_000) == 3_500  # math.ceil(0.07 * 50_000) is 3,501
    assert math.ceil(0.07 * 50_000) == 3_501
    for percent in range(1, 101):
        for n in (1, 7, 100, 1_000, 50_000, 60_000, 10**9, 3 * 10**15 + 1):
            assert subset_size(percent / 100, n) == -(-percent * n // 100)


@pytest.mark.parametrize(
    "ratio",
    [
        0.07,
        np.float64(0.07),
        np.float32(0.07),
        np.float16(0.07),
        np.array(0.07, np.float32),
        torch.tensor(0.07),
        torch.tensor(0.07, dtype=torch.float64),
        Decimal("0.07"),
        Fraction(7, 100),
    ],
    ids=repr,
)
def test_subset_size_takes_the_number_that_was_written(ratio: Any) -> None:
    assert subset_size(ratio, 50_000) == 3_500


def test_subset_size_edges() -> None:
    assert subset_size(1, 5) == subset_size(1.0, 5) == 5
    assert subset_size(1e-9, 5) == 1
    assert subset_size(1 / 3, 3) == 1


@pytest.mark.parametrize("ratio", [0, 0.0, -0.1, 1.0000001, 2, float("nan"), float("inf")])
def test_subset_size_refuses_ratios_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"keep_ratio, the fraction kept, must be in \(0, 1\], got"):
        subset_size(ratio, 10)


@pytest.mark.parametrize("ratio", ["0.5", None, True, torch.tensor([0.5]), np.array([0.5]), 1j])
def test_subset_size_refuses_other_types(ratio: Any) -> None:
    with pytest.raises(TypeError, match="keep_ratio, the fraction kept, must be a number, got"):
        subset_size(ratio, 10)


def proportional_quotas(counts: list[int], size: int) -> list[int]:
    """Largest remainder, at least one each; what is too much is taken from the largest, one at a time."""
    total = sum(counts)
    quota = [max(1, size * count // total) for count in counts]
    remainder = [size * count % total if size * count >= total else 0 for count in counts]
    for c in sorted(range(len(counts)), key=lambda c: -remainder[c])[: max(size - sum(quota), 0)]:
        quota[c] += 1
    while sum(quota) > size:
        quota[quota.index(max(quota))] -= 1
    return quota


def equal_quotas(counts: list[int], size: int) -> list[int]:
    """The next sample goes to the class that has given least and has one left, of those to the largest."""
    quota = [0] * len(counts)
    for _ in range(size):
        left = [c for c in range(len(counts)) if quota[c] < counts[c]]
        quota[min(left, key=lambda c: (quota[c], -counts[c], c))] += 1
    return quota


def test_quotas() -> None:
    g = generator()
    for case in range(400):
        most = 100 if case % 2 else 4  # many classes raised to one
        counts = torch.randint(1, most, (int(torch.randint(1, 40, (), generator=g)),), generator=g).tolist()
        size = int(torch.randint(len(counts), sum(counts) + 1, (), generator=g))
        if case % 3 == 0:
            counts[0], size = 1000, len(counts) + case % 5
        assert quotas(counts, size).tolist() == proportional_quotas(counts, size)
        if all(size * c >= sum(counts) for c in counts):
            exact = (size * c / sum(counts) for c in counts)
            assert all(abs(q - e) < 1 for q, e in zip(quotas(counts, size).tolist(), exact, strict=True))
        size = int(torch.randint(0, sum(counts) + 1, (), generator=g))
        assert quotas(torch.tensor(counts), size, "equal").tolist() == equal_quotas(counts, size)
    assert quotas([2**40, 2**40, 2**40], 2**41 + 2).sum() == 2**41 + 2, "products beyond 64 bits"
    many = quotas(torch.arange(1, 20_001), 60_000_000)  # in milliseconds, and not in minutes
    assert many.sum() == 60_000_000 and many.min() >= 1
    with pytest.raises(
        ValueError, match=r"quotas: size must give at least one sample of each of the 3 classes .* got a subset of 2"
    ):
        quotas([5, 5, 5], 2)
    with pytest.raises(ValueError, match=r"quotas: size must give at most all 15, got a subset of 16"):
        quotas([5, 5, 5], 16, "equal")
    with pytest.raises(ValueError, match="quotas: counts must be positive, got 0"):
        quotas([5, 0], 3)
    with pytest.raises(TypeError, match=r"quotas: counts must be integers, got torch.float64"):
        quotas([5.0, 1.0], 3)
    for counts in (np.array([90, 9, 1], np.uint8), torch.tensor([90, 9, 1], dtype=torch.int32), (90, 9, 1)):
        assert quotas(counts, np.int64(10)).tolist() == [8, 1, 1]


def test_a_ratio_barely_above_one_is_refused() -> None:
    """float() would make 1 of it, and the subset larger than the data."""
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        subset_size(Fraction(10**20 + 1, 10**20), 10)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_labels_of_any_integer_dtype(dtype: str) -> None:
    labels = np.array([0, 1, 1, 0, 1, 1], dtype)
    scores = [6.0, 5, 4, 3, 2, 1]
    for given in (labels, torch.from_numpy(labels), labels.tolist(), pd.Series(labels, index=range(7, 13))):
        strata = Strata(6, 3, given)
        for held in (scores, np.array(scores, np.float32), torch.tensor(scores, requires_grad=True)):
            assert strata.best(held).tolist() == [0, 1, 2]
            assert torch.equal(strata.sample(held, 3), strata.sample(torch.tensor(scores), pysel.key(3)))
    kept = torch.tensor([0, 1, 1, 0, 1, 1], dtype=torch.int32)
    strata = Strata(6, 3, kept)
    kept.zero_()
    assert strata.groups.tolist() == [0, 1, 1, 0, 1, 1], "labels are copied"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: subset_size(0.5, 0), ValueError, "subset_size: num_samples must be at least 1, got 0"),
        (lambda: subset_size(0.5, 1.5), TypeError, "subset_size: num_samples must be an int, got float"),
        (lambda: Strata(4, 5), ValueError, "Strata: size must be between 0 and 4, got 5"),
        (lambda: Strata(4, 2, [0.0] * 4), TypeError, "Strata: labels must be integers, got torch.float64"),
        (lambda: Strata(4, 2, [0] * 3), ValueError, r"Strata: labels must have shape \[4\], got \[3\]"),
        (lambda: Strata(4, 2, [0, 1, 2, 3]), ValueError, "Strata: size must give at least one sample of each of the 4"),
        (lambda: Strata(4, 2).best([1.0] * 3), ValueError, r"Strata.best: scores must be \[4\], got \[3\]"),
        (lambda: Strata(4, 2).best("a"), TypeError, "Strata.best: scores must be a tensor, an array or a list"),
        (
            lambda: Strata(4, 2).sample([[0.0] * 4], 0),
            ValueError,
            r"Strata.sample: log_weights must be \[4\]",
        ),
        (lambda: Strata(4, 2, [0] * 4, balance="x"), ValueError, "Strata: balance must be proportional or equal"),
    ],
)
def test_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_strata_without_labels_is_plain_selection() -> None:
    scores = torch.rand(100, generator=generator())
    assert torch.equal(Strata(100, 30).best(scores), pysel.ops.select(scores, 30))


def test_strata_is_selection_within_each_class() -> None:
    labels = torch.randint(-1, 3, (500,), generator=generator())
    scores = torch.rand(500, generator=generator(1))
    strata = Strata(500, 100, labels)
    chosen = strata.best(scores)
    assert torch.equal(chosen, chosen.sort().values) and len(chosen) == 100
    for c, quota in zip(range(-1, 3), strata.quotas.tolist(), strict=True):
        rows = torch.nonzero(labels == c).flatten()
        best = rows[scores[rows].argsort(descending=True)[:quota]].sort().values
        assert torch.equal(chosen[labels[chosen] == c], best)
    drawn = strata.sample(torch.zeros(500), pysel.key(0))
    assert len(drawn.unique()) == 100 and torch.equal(drawn, drawn.sort().values)
    assert torch.unique(labels[drawn], return_counts=True)[1].tolist() == strata.quotas.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inclusion_is_by_the_best_key_that_its_class_loses(dtype: torch.dtype) -> None:
    n, key = 300, pysel.key(4)
    labels = torch.randint(4, (n,), generator=generator())
    labels[:3] = 9  # all of a class are taken
    w = torch.randn(n, generator=generator(1), dtype=dtype)
    high, low = (torch.ops.pysel.random_words(key, stream, 0, n) for stream in (0, 1))
    race = w + torch.ops.pysel.noise(high << 32 | low, "gumbel", dtype == torch.float64)
    for classes in (labels, None):
        strata = Strata(n, 200, classes)
        chosen, probability = strata.sample(w, key), strata.inclusion(w, key)
        of = torch.zeros_like(labels) if classes is None else labels
        for c in of.unique().tolist():
            out = torch.ones(n, dtype=torch.bool).index_fill(0, chosen, False) & (of == c)
            mine = chosen[of[chosen] == c]
            best = race[out].max() if bool(out.any()) else torch.tensor(-math.inf)
            assert (race[mine] > best).all()
            expected = 1 - torch.exp(-torch.exp(w[mine].double() - best.double()))
            torch.testing.assert_close(probability[of[chosen] == c].double(), expected, rtol=1e-5, atol=1e-6)


def test_inclusion_is_the_same_however_the_race_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    w, key = torch.randn(500, generator=generator()), pysel.key(5)
    for strata in (Strata(500, 200), Strata(500, 200, torch.arange(500) % 3), Strata(500, 500)):
        whole = strata.inclusion(w, key)
        with monkeypatch.context() as patch:
            patch.setattr("pysel.ops.sample._PIECE", 7)
            assert torch.equal(strata.inclusion(w, key), whole)


def test_strata_order_ties_by_a_key() -> None:
    labels = torch.arange(1000) % 3
    strata = Strata(1000, 300, labels)
    first = strata.best(torch.zeros(1000))
    other = strata.best(torch.zeros(1000), pysel.key(1))
    assert first.max() < 310 and other.max() > 900
    assert torch.equal(torch.bincount(labels[other]), torch.bincount(labels[first]))


def test_ties_go_to_the_lowest_index() -> None:
    assert Strata(6, 3).best(torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, 1.0])).tolist() == [0, 1, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 30, 199, 200])
def test_inclusion_goes_by_the_best_key_that_lost(dtype: torch.dtype, size: int) -> None:
    log_weights, key = torch.rand(200, generator=generator()).to(dtype).log(), pysel.key(3)
    race = log_weights + noise_like(log_weights, key, 0, "gumbel")
    strata = Strata(200, size)
    probability = strata.inclusion(log_weights, key)
    assert probability.dtype == dtype
    if size == 200:
        assert (probability == 1).all()
        return
    threshold = race.sort(descending=True).values[size]
    chosen = strata.sample(log_weights, key)
    assert torch.equal(chosen, (race > threshold).nonzero()[:, 0])
    torch.testing.assert_close(probability, 1 - torch.exp(-torch.exp(log_weights[chosen] - threshold)))
