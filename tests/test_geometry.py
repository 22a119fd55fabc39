"""pysel/selection/static/geometry.py: who is chosen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pysel
from pysel.selection import KMeans, NearestNeighbourThinning, kmeans

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    chosen = KMeans(x, 0.3, 3, key=pysel.key(3)).select(0)
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
