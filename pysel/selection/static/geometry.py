"""One subset for all of training, by where samples lie: nearest to centroids, or no two of them close."""

from __future__ import annotations

import torch
from torch import Tensor

from pysel import ops
from pysel.random import as_key
from pysel.selection.static.scores import FixedSelector
from pysel.selection.subset import Strata, subset_size


def kmeans(
    features: Tensor,
    num_clusters: int,
    *,
    iterations: int = 20,
    batch_size: int = 8192,
    key: Tensor | int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lloyd's algorithm from randomly chosen rows.

    Args:
        features: [N, d] floating point.
        num_clusters: 1 to N.
        iterations: at most this many; it ends early when no sample changes its cluster.
        batch_size: rows at a time, so that memory stays O(batch_size * num_clusters).
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Returns:
        centroids [C, d], each sample's cluster int64 [N], and its squared distance to the centroid [N].

    Raises:
        IndexError: more clusters than samples.

    Example:
        >>> import pysel
        >>> _, cluster, _ = kmeans(torch.tensor([[0.0], [0.1], [9.0]]), 2, key=pysel.key(1))
        >>> cluster[0] == cluster[1], cluster[0] == cluster[2]
        (tensor(True), tensor(False))
    """
    weights = torch.ones(features.size(0))
    rows = ops.weighted_sample(weights, num_clusters, order="index", key=as_key("kmeans", key)).to(features.device)
    centroids = features[rows]
    cluster = features.new_full((features.size(0),), -1, dtype=torch.int64)
    for _ in range(iterations):
        previous, (cluster, distance) = cluster, _nearest(features, centroids, batch_size)
        if torch.equal(previous, cluster):
            break
        size = torch.bincount(cluster, minlength=num_clusters)
        sums = torch.zeros_like(centroids).index_add_(0, cluster, features)
        centroids = torch.where(size[:, None] > 0, sums / size.clamp_min(1)[:, None], centroids)
    cluster, distance = _nearest(features, centroids, batch_size)
    return centroids, cluster, distance


def _nearest(x: Tensor, points: Tensor, batch_size: int, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Index of and squared distance to the nearest of ``points`` [M, d] for each row of ``x`` [N, d].

    ``skip`` [N] names one point for each row that does not count, itself for instance.
    """
    norms = points.square().sum(1)
    index, distance = [], []
    for first in range(0, x.size(0), batch_size):
        batch = x[first : first + batch_size]
        square = torch.addmm(norms, batch, points.mT, alpha=-2)  # less the row's own norm, the same for all points
        if skip is not None:
            square.scatter_(1, skip[first : first + batch_size, None], torch.inf)
        least = square.min(1)
        index.append(least.indices)
        distance.append((least.values + batch.square().sum(1)).clamp_min(0))
    return torch.cat(index), torch.cat(distance)


class KMeans(FixedSelector):
    """The samples nearest to the centroids of their clusters; each cluster keeps its share.

    Args:
        features: [N, d].
        keep_ratio: fraction kept.
        num_clusters: at most the number of samples kept.
        iterations, key: see `kmeans`.

    Example:
        >>> import pysel
        >>> features = torch.tensor([[0.0], [0.1], [0.3], [9.0], [9.1], [9.4]])
        >>> KMeans(features, 1 / 3, 2, key=pysel.key(1)).select(0)
        tensor([1, 4])
    """

    def __init__(
        self,
        features: Tensor,
        keep_ratio: float,
        num_clusters: int = 100,
        *,
        iterations: int = 20,
        key: Tensor | int | None = None,
    ) -> None:
        n = features.size(0)
        _, cluster, distance = kmeans(features, num_clusters, iterations=iterations, key=key)
        super().__init__(Strata(n, subset_size(keep_ratio, n), cluster).best(-distance), n)


class NearestNeighbourThinning(FixedSelector):
    """Drops one of each pair of closest samples until as many are left as wanted.

    In rounds (ours, in place of the classic one-at-a-time loop): find every sample's nearest neighbour among
    those left, and of each pair that are each other's nearest drop the later sample, closest pairs first. A
    round costs O(M^2 d) for M samples left and O(batch_size * M) memory.

    Args:
        features: [N, d].
        keep_ratio: fraction kept.
        batch_size: rows at a time.

    Example:
        >>> NearestNeighbourThinning(torch.tensor([[0.0], [0.1], [5.0], [9.0]]), 0.75).select(0)
        tensor([0, 2, 3])
    """

    def __init__(self, features: Tensor, keep_ratio: float, *, batch_size: int = 2048) -> None:
        size = subset_size(keep_ratio, features.size(0))
        left = torch.arange(features.size(0), device=features.device)
        while left.numel() > size:
            x = features[left]
            own = torch.arange(left.numel(), device=left.device)
            neighbour, distance = _nearest(x, x, batch_size, skip=own)
            later = torch.nonzero((neighbour[neighbour] == own) & (neighbour < own)).flatten()
            if later.numel() == 0:  # rounding can leave equal distances without a mutual pair
                later = distance.argmin().reshape(1)
            closest = distance[later].argsort(stable=True)[: left.numel() - size]
            keep = torch.ones_like(left, dtype=torch.bool)
            keep[later[closest]] = False
            left = left[keep]
        super().__init__(left, features.size(0))
