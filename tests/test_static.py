"""pysel/selection/baselines.py: who is chosen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pysel
from pysel.selection import (
    FixedSelector,
    FullSelector,
    KMeansSelector,
    NearestNeighbourThinning,
    ScoreSelector,
    StaticRandomSelector,
    el2n,
    kmeans,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_full_and_fixed() -> None:
    assert FullSelector(4).select(3).tolist() == [0, 1, 2, 3] and len(FullSelector(4)) == 4
    fixed = FixedSelector(torch.tensor([1, 3]))
    fixed.select(0)[:] = 9
    assert fixed.select(1).tolist() == [1, 3]


def test_static_random() -> None:
    selector = StaticRandomSelector(1000, 0.3, key=pysel.key(0))
    assert torch.equal(selector.select(0), selector.select(5)) and len(selector.select(0).unique()) == 300
    assert not torch.equal(selector.select(0), StaticRandomSelector(1000, 0.3, key=pysel.key(1)).select(0))
    labels = torch.arange(1000) % 4
    even = StaticRandomSelector(1000, 0.1, labels=labels, key=pysel.key(0)).select(0)
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


def blobs() -> tuple[Tensor, Tensor]:
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    which = torch.arange(300) % 3
    return centres[which] + torch.randn(300, 2, generator=generator()), which


def test_kmeans() -> None:
    x, which = blobs()
    for seed in range(20):
        centroids, cluster, distance = kmeans(x, 3, key=pysel.key(seed), batch_size=64)
        torch.testing.assert_close(distance, (x - centroids[cluster]).square().sum(1), atol=1e-3, rtol=1e-3)
        found = {(int(a), int(b)) for a, b in zip(which, cluster, strict=True)}
        if len(found) == 3:  # an unlucky start may end in a local optimum
            torch.testing.assert_close(centroids[int(cluster[0])], x[which == 0].mean(0), atol=1e-3, rtol=1e-3)
            break
    else:
        pytest.fail("no start of twenty found the three blobs")


def test_kmeans_selector_keeps_the_middles() -> None:
    x, which = blobs()
    chosen = KMeansSelector(x, 0.3, 3, key=pysel.key(3)).select(0)
    assert len(chosen) == 90
    rest = torch.ones(300, dtype=torch.bool)
    rest[chosen] = False
    for blob in range(3):
        centre = x[which == blob].mean(0)
        inside = (x[chosen][which[chosen] == blob] - centre).norm(dim=1)
        outside = (x[rest & (which == blob)] - centre).norm(dim=1)
        assert float(inside.mean()) < float(outside.mean())


def test_thinning_drops_near_duplicates() -> None:
    x = torch.randn(60, 4, generator=generator())
    doubled = torch.cat([x, x + 1e-4])
    chosen = NearestNeighbourThinning(doubled, 0.5, batch_size=7).select(0)
    assert chosen.tolist() == list(range(60)), "of each pair the first stays"
    for ratio in (0.9, 0.2, 0.01):
        assert len(NearestNeighbourThinning(doubled, ratio)) == math.ceil(ratio * 120)
    assert len(NearestNeighbourThinning(torch.ones(50, 2), 0.1)) == 5, "even if all are equal"
