"""pysel/selection/static/scores.py: who is chosen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import pysel
from pysel.selection import FixedSelector, Full, ScoreSelector, StaticRandom, el2n

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_full_and_fixed() -> None:
    assert Full(4).select(3).tolist() == [0, 1, 2, 3] and len(Full(4)) == 4
    fixed = FixedSelector(torch.tensor([1, 3]))
    fixed.select(0)[:] = 9
    assert fixed.select(1).tolist() == [1, 3]


def test_static_random() -> None:
    selector = StaticRandom(1000, 0.3, key=pysel.key(0))
    assert torch.equal(selector.select(0), selector.select(5)) and len(selector.select(0).unique()) == 300
    assert not torch.equal(selector.select(0), StaticRandom(1000, 0.3, key=pysel.key(1)).select(0))
    labels = torch.arange(1000) % 4
    even = StaticRandom(1000, 0.1, labels=labels, key=pysel.key(0)).select(0)
    assert torch.bincount(labels[even]).tolist() == [25] * 4


def test_el2n_and_score_selector() -> None:
    logits = torch.randn(20, 5, generator=generator(), dtype=torch.float64)
    labels = torch.arange(20) % 5
    expected = (torch.softmax(logits, 1) - F.one_hot(labels, 5)).norm(dim=1)
    scores = el2n(logits, labels)
    torch.testing.assert_close(scores, expected)
    hardest = ScoreSelector(scores, 0.25)
    assert hardest.select(0).tolist() == sorted(scores.topk(5).indices.tolist())
    easiest = ScoreSelector(scores, 0.25, largest=False)
    assert easiest.select(0).tolist() == sorted(scores.topk(5, largest=False).indices.tolist())
    confident = el2n(torch.tensor([[30.0, 0.0]]), torch.tensor([0]))
    assert float(confident) == pytest.approx(2**0.5 * math.exp(-30), rel=1e-4), "digits survive near 0"
    with pytest.raises(ValueError, match=r"labels must be \[N\] for logits \[N, C\]"):
        el2n(logits, labels[:3])
