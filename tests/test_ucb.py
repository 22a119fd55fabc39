"""pysel/selection/dynamic/ucb.py: averages, bonus and random part against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import UCB, EpsilonGreedy
from tests.losses import check, losses_of
from tests.statistics import accept, chi_square

N = 400


def largest(scores: np.ndarray, k: int) -> set[int]:
    """Indices of the k largest, which are all different."""
    return set(np.argsort(-scores)[:k].tolist())


@pytest.mark.parametrize("c", [0.0, 0.7, 5.0])
def test_ucb_against_an_oracle(c: float) -> None:
    """The rule in numpy, sample by sample. Who comes first of those without a loss is the selector's own affair."""
    selector, alpha, k = UCB(N, 0.31, c=c, alpha=0.3, key=1), 0.3, 124
    mu, v = np.full(N, np.nan), np.zeros(N)
    for epoch in range(12):
        chosen = selector.select(epoch).tolist()
        assert len(chosen) == len(selector) == k
        unseen = np.isnan(mu)
        if unseen.sum() >= k:
            assert unseen[chosen].all()
        else:
            assert set(np.flatnonzero(unseen)) <= set(chosen)
            assert set(chosen) - set(np.flatnonzero(unseen)) == largest(
                np.where(unseen, -np.inf, mu + c * v), k - unseen.sum()
            )
        losses = losses_of(epoch, torch.tensor(chosen))
        selector.update(chosen, losses=losses)
        for i, loss in zip(chosen, losses.float().tolist(), strict=True):
            if np.isnan(mu[i]):
                mu[i] = loss
            else:
                v[i] = (1 - alpha) * v[i] + alpha * (loss - mu[i]) ** 2
                mu[i] = (1 - alpha) * mu[i] + alpha * loss
    assert not np.isnan(mu).any()
    np.testing.assert_allclose(selector.scores(3), mu + c * v, rtol=1e-5)
    np.testing.assert_allclose(selector.state_dict()["losses"], mu, rtol=1e-5)
    np.testing.assert_allclose(selector.state_dict()["deviations"], v, rtol=1e-5, atol=1e-7)


def test_epsilon_greedy_against_an_oracle() -> None:
    """The largest averages are in; those of the others that are in are a uniform draw."""
    mu, counts, next_in = np.full(N, np.nan), np.zeros(4), 0
    for seed in range(60):
        selector = EpsilonGreedy(N, 0.25, epsilon=0.29, alpha=0.3, key=seed)
        for pass_ in range(3):
            losses = losses_of(pass_, torch.arange(N))
            selector.update(range(N), losses=losses)
            mu = losses.numpy() if pass_ == 0 else 0.7 * mu + 0.3 * losses.numpy()
        chosen = set(selector.select(0).tolist())
        greedy = largest(mu, 71)  # 100 less 29; floor(0.29 * 100) in binary floating point is 28
        assert len(chosen) == len(selector) == 100
        assert greedy <= chosen
        next_in += largest(mu, 72) <= chosen
        order = np.argsort(mu)[: N - 71]  # quarters of the others, by rank
        for quarter, members in enumerate(np.array_split(order, 4)):
            counts[quarter] += len((chosen - greedy) & set(members.tolist()))
    sizes = [len(part) for part in np.array_split(np.arange(N - 71), 4)]
    assert next_in < 20, "the next largest has no better chance than the rest, 29 in 329"
    accept({"quarters of the rest": chi_square(counts, np.array(sizes) / (N - 71))})


def test_all_random_and_none() -> None:
    assert len(EpsilonGreedy(10, 0.5, epsilon=1, key=0).select(0)) == 5
    nothing = EpsilonGreedy(10, 0.5, epsilon=0, key=0)
    nothing.update(range(10), losses=range(10))
    assert nothing.select(0).tolist() == [5, 6, 7, 8, 9]


def test_every_sample_is_seen_first() -> None:
    """At a ratio of 0.3 four epochs see all, whatever the losses were."""
    for selector in (UCB(N, 0.3, key=0), EpsilonGreedy(N, 0.3, epsilon=0, key=0)):
        seen: set[int] = set()
        for epoch in range(4):
            chosen = selector.select(epoch)
            assert len(seen & set(chosen.tolist())) == max(0, (epoch + 1) * 120 - N)
            seen |= set(chosen.tolist())
            selector.update(chosen, losses=torch.full((len(chosen),), 1e30))
        assert len(seen) == N


def test_ties_are_not_by_place() -> None:
    selector = UCB(1000, 0.5, key=0)
    selector.update(range(1000), losses=torch.ones(1000))
    first, second = selector.select(0), selector.select(1)
    assert not torch.equal(first, second)
    assert 200 < int((first < 500).sum()) < 300


def test_the_tail_is_full() -> None:
    selector = UCB(10, 0.3, epochs=10, refine=0.15, key=0)
    assert [len(selector.select(epoch)) for epoch in range(11)] == [3] * 8 + [10] * 3


@pytest.mark.parametrize("method", [UCB, EpsilonGreedy])
def test_what_all_hold_to(method: Any, tmp_path: Path) -> None:
    check(lambda key: method(200, 0.3, epochs=9, refine=0.1, key=key), tmp_path)


def test_huge_losses_have_finite_scores() -> None:
    selector = UCB(3, 1 / 3, key=0)
    selector.update([0, 1, 2], losses=[3e38, 1.0, 2.0])
    selector.update([0, 1, 2], losses=[-3e38, 1.0, 2.0])
    assert bool(selector.state_dict()["deviations"].isfinite().all()) and selector.select(0).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UCB(5, 0.5, c=-1), "UCB: c must be finite and at least 0, got -1"),
        (lambda: UCB(5, 0.5, alpha=0), r"UCB: alpha must be in \(0, 1\], got 0"),
        (lambda: UCB(5, 0), r"UCB: keep_ratio, the fraction kept, must be in \(0, 1\], got 0"),
        (lambda: UCB(5, 0.5, refine=0.1), "UCB: epochs must be given with refine=0.1"),
        (lambda: EpsilonGreedy(5, 0.5, epsilon=2), "EpsilonGreedy: epsilon must be between 0 and 1, got 2"),
        (lambda: EpsilonGreedy(0, 0.5), "EpsilonGreedy: num_samples must be at least 1, got 0"),
    ],
)
def test_bad_calls(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_state_with_impossible_deviations() -> None:
    selector = UCB(3, 0.5, key=0)
    state = selector.state_dict()
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"UCB: state_dict\['deviations'\] must be finite and at least 0"):
            selector.load_state_dict({**state, "epoch": 3, "deviations": state["deviations"] + value})
        assert selector.state_dict()["epoch"] == -1
