"""pysel/selection/dynamic/rcap.py: shares of classes, and the draw within a class, against numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import RCAP
from pysel.selection.dynamic.rcap import shares
from tests.losses import check
from tests.statistics import accept, chi_square, reject

SIZES = [10, 60, 130]
LABELS = np.repeat([7, -2, 3], SIZES)  # in no order of size or label
ORDER = np.random.default_rng(0).permutation(len(LABELS))


def oracle(losses: np.ndarray, labels: np.ndarray, size: int) -> dict[int, float]:
    """Real-valued shares: full classes are taken out one after the other, and the others share what is left."""
    clip = math.log(len(set(labels.tolist())))
    importance = {}
    for c in set(labels.tolist()):
        of_class = np.clip(losses[labels == c], 0, clip)
        importance[c] = math.sqrt(of_class.mean() * (labels == c).mean())
    count = {c: int((labels == c).sum()) for c in importance}
    share: dict[int, float] = {}
    while True:
        open_ = [c for c in importance if c not in share]
        left = size - sum(share.values())
        wanted = {c: left * importance[c] / sum(importance[o] for o in open_) for c in open_}
        full = [c for c in open_ if wanted[c] > count[c]]
        if not full:
            return share | wanted
        share |= {c: count[c] for c in full}


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.61, 0.95, 1.0])
def test_shares_against_an_oracle(ratio: float) -> None:
    generator, labels = np.random.default_rng(int(100 * ratio)), LABELS[ORDER]
    size = math.ceil(ratio * len(labels))
    for seed in range(10):
        losses = generator.gamma(1.0, size=len(labels)) * np.where(labels == 7, 3.0, 0.3)
        selector = RCAP(labels, ratio, key=seed)
        selector.update(range(len(labels)), losses=losses)
        chosen = selector.select(0).numpy()
        assert len(chosen) == len(set(chosen.tolist())) == size == len(selector)
        held = {c: int((labels[chosen] == c).sum()) for c in (-2, 3, 7)}
        wanted = oracle(losses, labels, size)
        assert all(abs(held[c] - wanted[c]) < 1 for c in held), (held, wanted)
        assert selector.stats()["quotas"] == list(held.values())


def test_draw_within_a_class() -> None:
    """One is drawn of each of two classes of five: with odds exp(clipped loss / beta), and not those of another."""
    losses = np.array([0.0, 0.3, 0.5, 0.65, 9.0] * 2)
    clip, counts = math.log(2), np.zeros(10)
    for seed in range(3000):
        selector = RCAP([0] * 5 + [1] * 5, 0.2, beta=1 / 3, key=seed)
        selector.update(range(10), losses=losses)
        counts[selector.select(2).numpy()] += 1
    for beta, test in ((1 / 3, accept), (1 / 2, reject)):
        odds = np.exp(np.minimum(losses, clip) / beta)
        test({"draws": chi_square(counts, odds / odds.sum())})


def test_samples_without_a_loss_count_with_log_c() -> None:
    """A class that nothing is known of shares as one at chance does."""
    selector = RCAP([0] * 50 + [1] * 50, 0.4, key=0)
    selector.update(range(50), losses=torch.full((50,), math.log(2) / 9))
    selector.select(0)
    assert selector.stats()["quotas"] == [10, 30]


def test_each_class_keeps_one_where_there_is_room() -> None:
    sizes = torch.tensor([1000, 5, 5])
    importance = torch.tensor([1.0, 1e-9, 1e-6], dtype=torch.float64)
    assert shares(importance, sizes, 100).tolist() == [98, 1, 1]
    assert shares(importance, sizes, 2).tolist() == [2, 0, 0]
    assert shares(importance, sizes, 1010).tolist() == [1000, 5, 5]
    assert shares(importance, sizes, 1007).tolist() == [1000, 2, 5]


def test_without_any_loss_or_with_one_class() -> None:
    selector = RCAP([0] * 8 + [1] * 2, 0.5, key=0)
    selector.update(range(10), losses=torch.zeros(10))
    selector.select(0)
    assert selector.stats()["quotas"] == [3, 2]  # in proportion to the roots of their sizes, 2 to 1
    one = RCAP([4] * 10, 0.5, key=0)
    one.update(range(10), losses=torch.rand(10))
    assert len(one.select(0)) == 5


def test_a_tiny_beta_takes_the_largest() -> None:
    selector = RCAP([0] * 5 + [1] * 5, 0.4, beta=1e-300, key=0)
    selector.update(range(10), losses=[0.1, 0.2, 0.3, 0.4, 0.5] * 2)
    assert selector.select(0).tolist() == [3, 4, 8, 9]


def test_the_tail_is_full() -> None:
    selector = RCAP([0, 1] * 5, 0.3, epochs=10, refine=0.2, key=0)
    assert [len(selector.select(epoch)) for epoch in range(11)] == [3] * 8 + [10] * 3


def test_what_all_hold_to(tmp_path: Path) -> None:
    check(lambda key: RCAP(LABELS[ORDER], 0.3, epochs=9, refine=0.1, key=key), tmp_path)


def test_another_data_set() -> None:
    with pytest.raises(ValueError, match="state_dict must be of a selector with the same tables"):
        RCAP([0, 1], 0.5).load_state_dict(RCAP([0, 0], 0.5).state_dict())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RCAP(np.zeros(0, int), 0.5), ValueError, r"RCAP: labels must be \[N\] with N > 0, got \[0\]"),
        (lambda: RCAP([0.5], 0.5), TypeError, "RCAP: labels must be integers"),
        (lambda: RCAP([0, 1], 0.5, beta=0), ValueError, "RCAP: beta must be positive and finite, got 0"),
        (lambda: RCAP([0, 1], 0), ValueError, r"RCAP: keep_ratio, the fraction kept, must be in \(0, 1\], got 0"),
        (lambda: RCAP([0, 1], 0.5, refine=0.1), ValueError, "RCAP: epochs must be given with refine=0.1"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
