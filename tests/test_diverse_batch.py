"""pysel/selection/dynamic/diverse_batch.py: the law of the picks against gradients written out, in numpy."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import pysel
from pysel.selection import diverse_batch
from tests.statistics import accept, chi_square, reject

diverse = importlib.import_module("pysel.selection.dynamic.diverse_batch")  # of that name the package has the function


def batch(b: int, c: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(b, c))
    errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    errors[np.arange(b), generator.integers(c, size=b)] -= 1
    return errors, generator.normal(size=(b, d)) + 0.5


def law(errors: np.ndarray, features: np.ndarray, k: int, deflate: bool = True) -> dict[tuple[int, ...], float]:
    """How likely each sequence of picks is; what is left of the sum by least squares on the gradients picked."""
    g = np.einsum("bc,bd->bcd", errors, features).reshape(len(errors), -1)
    total, odds = g.sum(0), {}
    for picks in itertools.permutations(range(len(g)), k):
        p = 1.0
        for j in range(k):
            residual = total
            if j and deflate:
                before = g[list(picks[:j])].T
                residual = total - before @ np.linalg.lstsq(before, total, rcond=None)[0]
            pull = np.abs(g @ residual)
            pull[list(picks[:j])] = 0
            p *= pull[picks[j]] / pull.sum()
        odds[picks] = p
    assert abs(sum(odds.values()) - 1) < 1e-9
    return odds


@pytest.fixture(params=[4096, 0], ids=["all pairs at once", "row by row"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diverse, "PAIRS_AT_ONCE", request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(("c", "d"), [(3, 2), (9, 16)], ids=["in few directions", "in many"])
def test_the_law_of_the_picks(c: int, d: int) -> None:
    errors, features = batch(5, c, d)
    right, wrong = law(errors, features, 3), law(errors, features, 3, deflate=False)
    counts = dict.fromkeys(right, 0)
    for seed in range(3000):
        counts[tuple(diverse_batch(errors, features, 3, key=seed).tolist())] += 1
    accept({"sequences": chi_square(list(counts.values()), list(right.values()))})
    reject({"sequences": chi_square(list(counts.values()), list(wrong.values()))})


@pytest.mark.parametrize("k", [1, 3, 7, 32])  # 1 and 3 of 32 are row by row either way
def test_all_pairs_at_once_or_row_by_row(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, features = batch(32, 4, 6)
    picks = diverse_batch(errors, features, k, key=3)
    assert picks.dtype == torch.int64 and len(picks.unique()) == k
    monkeypatch.setattr(diverse, "PAIRS_AT_ONCE", 0)
    assert torch.equal(diverse_batch(errors, features, k, key=3), picks)


@pytest.mark.usefixtures("products")
def test_one_of_each_kind() -> None:
    """Forty samples of four kinds, each at right angles to the others: four picks are one of each."""
    kinds = np.repeat(np.arange(4), 10)
    errors, features = np.eye(4)[kinds] - 0.25, np.eye(4)[kinds]
    for seed in range(50):
        assert sorted(kinds[diverse_batch(errors, features, 4, key=seed)]) == [0, 1, 2, 3]


@pytest.mark.usefixtures("products")
def test_more_picks_than_directions_and_none_at_all() -> None:
    errors, features = batch(12, 2, 2)  # of errors that sum to 0: two directions
    for e in (errors, np.zeros_like(errors)):
        picks = torch.stack([diverse_batch(e, features, 12, key=seed) for seed in range(20)])
        assert torch.equal(picks.sort(1).values, torch.arange(12).expand(20, 12))
    last = np.bincount(
        [int(diverse_batch(np.zeros_like(errors), features, 2, key=seed)[1]) for seed in range(1000)], minlength=12
    )
    accept({"uniform": chi_square(last, np.full(12, 1 / 12))})


@pytest.mark.usefixtures("products")
def test_a_combination_of_those_picked_changes_nothing() -> None:
    """The first two picks span everything and the third is made of them: the fourth is any of the nine others."""
    errors, features = batch(12, 2, 2)
    places = np.zeros(9)
    for seed in range(1000):
        picks = diverse_batch(errors, features, 4, key=seed).tolist()
        places[sorted(set(range(12)) - set(picks[:3])).index(picks[3])] += 1
    accept({"uniform": chi_square(places, np.full(9, 1 / 9))})


def test_by_key_whatever_holds_the_numbers() -> None:
    errors, features = batch(20, 3, 5)
    first = diverse_batch(errors, features, 6, key=1)
    assert torch.equal(diverse_batch(errors.tolist(), torch.from_numpy(features), 6, key=pysel.key(1)), first)
    graph = torch.from_numpy(errors).requires_grad_()
    assert torch.equal(diverse_batch(graph, features * 1e150, 6, key=1), first), "only ratios count"
    assert any(not torch.equal(diverse_batch(errors, features, 6, key=seed), first) for seed in range(2, 5))
    with torch.inference_mode(), torch.device("meta"):
        assert torch.equal(diverse_batch(errors, features, 6, key=1), first)
    torch.manual_seed(0)
    drawn = diverse_batch(errors, features, 6)
    torch.manual_seed(0)
    assert torch.equal(diverse_batch(errors, features, 6), drawn)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e, f: diverse_batch(e, f[:-1], 2), ValueError, "features must have the rows of errors, 4, got 3"),
        (lambda e, f: diverse_batch(e, f, 5), ValueError, "k must be between 1 and 4, got 5"),
        (lambda e, f: diverse_batch(e, f, 0), ValueError, "k must be between 1 and 4, got 0"),
        (lambda e, f: diverse_batch(e, f, 1.0), TypeError, "k must be an int, got float"),
        (lambda e, f: diverse_batch(e[0], f, 1), ValueError, r"errors must be \[N, ...\]"),
        (lambda e, f: diverse_batch(e, f * np.nan, 1), ValueError, "features must be finite, got nan in row 0"),
        (lambda e, f: diverse_batch(e, f, 1, key="a"), TypeError, "key must be a Tensor or an int, got str"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"diverse_batch: {message}"):
        call(*batch(4, 2, 3))
