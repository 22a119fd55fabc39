"""Rivals that any selection method has to be compared with.

Each is a `pysel.selection.Selector`. In all of them ``keep_ratio`` is the fraction **kept**, and nothing touches the
global random state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks, ops
from pysel.random import as_key
from pysel.selection.protocol import Selector
from pysel.selection.subset import Strata, subset_size


def _equal_sample(n: int, k: int, key: Tensor, order: str) -> Tensor:
    """``k`` of ``n`` indices, each set equally likely; in "draw" order with k = n, a uniform permutation."""
    return ops.weighted_sample(torch.ones(n), k, order=order, key=key)


class FixedSelector(Selector):
    """The same subset in every epoch: the base of all static selectors.

    Args:
        indices: int64 [k] ascending.
        num_samples: N, of which they are; default: just enough.

    Example:
        >>> FixedSelector(torch.tensor([2, 5])).select(7)
        tensor([2, 5])
    """

    def __init__(self, indices: Tensor, num_samples: int | None = None) -> None:
        _checks.tensor(type(self).__name__, "indices", indices, (torch.int64,))
        if num_samples is None:
            num_samples = int(indices.max()) + 1 if indices.numel() else 0
        super().__init__(num_samples, {})
        self._indices = indices

    def __len__(self) -> int:
        """Samples in each epoch's subset."""
        return self._indices.numel()

    def select(self, epoch: int = 0) -> Tensor:
        """int64 [len(self)] ascending indices, whatever the epoch."""
        return self._indices.clone()

    def _state(self) -> dict[str, Any]:
        return {"indices": self._indices.clone()}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._indices = state["indices"].clone()


class FullSelector(FixedSelector):
    """All of the data, every epoch.

    Example:
        >>> FullSelector(3).select(0)
        tensor([0, 1, 2])
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__(torch.arange(num_samples), num_samples)


class StaticRandomSelector(FixedSelector):
    """One random subset, kept throughout.

    Args:
        num_samples: N.
        keep_ratio: fraction kept.
        labels: integers [N]: each class keeps its share.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Example:
        >>> import pysel
        >>> StaticRandomSelector(10, 0.25, key=pysel.key(0)).select(0).shape
        torch.Size([3])
    """

    def __init__(
        self, num_samples: int, keep_ratio: float, *, labels: Tensor | None = None, key: Tensor | int | None = None
    ) -> None:
        strata = Strata(num_samples, subset_size(keep_ratio, num_samples), labels)
        super().__init__(strata.sample(torch.zeros(num_samples), as_key("StaticRandomSelector", key)), num_samples)


class ScoreSelector(FixedSelector):
    """The samples with the largest (or smallest) scores, throughout.

    Args:
        scores: [N] floating point, no NaN.
        keep_ratio: fraction kept.
        largest: False keeps the smallest.
        labels: integers [N]: each class keeps its share.

    Example:
        >>> ScoreSelector(torch.tensor([0.1, 0.9, 0.5]), 0.5).select(0)
        tensor([1, 2])
    """

    def __init__(
        self, scores: Tensor, keep_ratio: float, *, largest: bool = True, labels: Tensor | None = None
    ) -> None:
        strata = Strata(scores.numel(), subset_size(keep_ratio, scores.numel()), labels, device=scores.device)
        super().__init__(strata.best(scores if largest else -scores), scores.numel())


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N, the length of the error vector: ``||softmax(logits) - onehot(labels)||_2`` (Paul et al.,
    2107.07075).

    Average it over several networks after a few epochs, then keep the largest with `ScoreSelector`.

    Args:
        logits: [N, C].
        labels: int64 [N].

    Returns:
        [N], from 0 to sqrt(2).

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> el2n(torch.tensor([[9.0, -9.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        tensor([2.1538e-08, 7.0711e-01])
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"el2n: labels must be [N] for logits [N, C], got {list(labels.shape)}, {list(logits.shape)}")
    error = torch.softmax(logits, 1)
    # 1 - p as the sum of the others: subtracting would lose all digits of a confident prediction
    others = error.scatter(1, labels[:, None], 0).sum(1, keepdim=True)
    return torch.linalg.vector_norm(error.scatter(1, labels[:, None], others), dim=1)


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
    rows = _equal_sample(features.size(0), num_clusters, as_key("kmeans", key), "index").to(features.device)
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


class KMeansSelector(FixedSelector):
    """The samples nearest to the centroids of their clusters; each cluster keeps its share.

    Args:
        features: [N, d].
        keep_ratio: fraction kept.
        num_clusters: at most the number of samples kept.
        iterations, key: see `kmeans`.

    Example:
        >>> import pysel
        >>> features = torch.tensor([[0.0], [0.1], [0.3], [9.0], [9.1], [9.4]])
        >>> KMeansSelector(features, 1 / 3, 2, key=pysel.key(1)).select(0)
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
