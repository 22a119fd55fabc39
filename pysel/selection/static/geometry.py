"""One subset for all of training, by where samples lie: near centroids, at a middling distance, far from each other.

Distances are those of the differences of rows, in double, whatever the features' dtype, unit and offset are, and
whatever precision torch has been allowed for its matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key
from pysel.sae.model import power_of_two
from pysel.selection.static.scores import FixedSelector
from pysel.selection.subset import Strata, subset_size


def kmeans(
    features: Any,
    num_clusters: int,
    *,
    iterations: int = 20,
    batch_size: int = 8192,
    key: Tensor | int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lloyd's algorithm from randomly chosen rows.

    It starts from rows that differ from each other, as far as there are so many. A cluster that loses all its samples
    keeps its centroid, and may stay empty.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        num_clusters: C, 1 to N.
        iterations: at most this many; it ends early when no sample changes its cluster.
        batch_size: rows at a time, so that memory beyond two copies of the features in double stays
            O(batch_size * num_clusters).
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Returns:
        centroids [C, d], float32 or float64 like the features, each sample's cluster, int64 [N], and its squared
        distance to the centroid, float64 [N] (above 1e154 the square of a distance is infinite).

    Raises:
        TypeError: ``features`` is not a tensor or array of real numbers, or another argument has the wrong type.
        ValueError: a row that is not finite, or an argument out of range.

    Example:
        >>> import pysel
        >>> _, cluster, _ = kmeans(torch.tensor([[0.0], [0.1], [9.0]]), 2, key=pysel.key(1))
        >>> cluster[0] == cluster[1], cluster[0] == cluster[2]
        (tensor(True), tensor(False))
    """
    op = "kmeans"
    x = _inputs.matrix(op, "features", features)
    num_clusters = _checks.in_range(op, "num_clusters", num_clusters, 1, len(x))
    iterations = _checks.in_range(op, "iterations", iterations, 0)
    batch_size = _checks.in_range(op, "batch_size", batch_size, 1)
    rows, unit = _scaled(x)
    centroids, cluster, distance = _lloyd(rows, num_clusters, iterations, batch_size, as_key(op, key))
    return (centroids * unit).to(x.dtype), cluster, distance * unit * unit


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in double and of order 1, so that squares neither overflow nor vanish, and their unit []."""
    rows = x.double()
    unit = power_of_two(rows.abs().max())
    return rows / unit, unit


def _lloyd(
    rows: Tensor, num_clusters: int, iterations: int, batch_size: int, key: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Centroids, clusters and squared distances of rows [N, d], float64 of order 1."""
    origin = rows.mean(0)  # far from 0 the squares would cancel
    rows = rows - origin
    centroids = rows[_distinct(rows, num_clusters, key)]
    cluster = _nearest(rows, centroids, batch_size)
    for _ in range(iterations):
        size = torch.bincount(cluster, minlength=num_clusters)
        sums = torch.zeros_like(centroids).index_add_(0, cluster, rows)
        centroids = torch.where(size[:, None] > 0, sums / size.clamp_min(1)[:, None], centroids)
        previous, cluster = cluster, _nearest(rows, centroids, batch_size)
        if torch.equal(previous, cluster):
            break
    return centroids + origin, cluster, (rows - centroids[cluster]).square().sum(1)


def _nearest(rows: Tensor, points: Tensor, batch_size: int) -> Tensor:
    """Index of the nearest of ``points`` [M, d] for each of ``rows`` [N, d]."""
    norms = points.square().sum(1)
    # less the row's own norm, the same for all points
    return torch.cat([torch.addmm(norms, part, points.mT, alpha=-2).argmin(1) for part in rows.split(batch_size)])


def _distinct(rows: Tensor, count: int, key: Tensor) -> Tensor:
    """Indices of ``count`` random rows, no two of them equal unless there are not enough."""
    n, drawn = len(rows), count
    while True:
        order = ops.permutation(n, key=key, stop=drawn).to(rows.device)
        first = _first_equal(rows[order]) == torch.arange(drawn, device=rows.device)
        if drawn == n or int(first.sum()) >= count:
            return torch.cat([order[first], order[~first]])[:count]
        drawn = min(2 * drawn, n)


def _first_equal(rows: Tensor) -> Tensor:
    """For each row the first one that equals it: int64 [N]."""
    own = torch.arange(len(rows), device=rows.device)
    kinds, kind = torch.unique(rows, dim=0, return_inverse=True)
    return own.new_full((len(kinds),), len(rows)).scatter_reduce(0, kind, own, "amin")[kind]


class KMeans(FixedSelector):
    """The samples nearest to the centroids of their clusters; each cluster keeps its share.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        keep_ratio: fraction kept.
        num_clusters: at most the number of samples kept.
        iterations, key: see `kmeans`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, or an argument out of range.

    Example:
        >>> import pysel
        >>> features = torch.tensor([[0.0], [0.1], [0.3], [9.0], [9.1], [9.4]])
        >>> KMeans(features, 1 / 3, 2, key=pysel.key(1)).select(0)
        tensor([1, 4])
    """

    def __init__(
        self,
        features: Any,
        keep_ratio: float,
        num_clusters: int = 100,
        *,
        iterations: int = 20,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        x = _inputs.matrix(name, "features", features)
        size = subset_size(keep_ratio, len(x), op=name)
        num_clusters = _checks.in_range(name, "num_clusters", num_clusters, 1, size)
        iterations = _checks.in_range(name, "iterations", iterations, 0)
        _, cluster, distance = _lloyd(_scaled(x)[0], num_clusters, iterations, 8192, as_key(name, key))
        arguments = {"keep_ratio": keep_ratio, "num_clusters": num_clusters, "iterations": iterations}
        super().__init__(Strata(len(x), size, cluster).best(-distance), len(x), arguments=arguments)


class NearestNeighbourThinning(FixedSelector):
    """Drops one of each pair of closest samples until as many are left as wanted.

    In rounds (ours, in place of the classic one-at-a-time loop). First of all equal samples only the first stay. Then
    each round drops, of each two samples that are each other's nearest, the later one, closest pairs first, and looks
    for new neighbours of those that have lost theirs. The first round costs O(N^2 d), the others together a few times
    as much; memory is O(batch_size * N) beside two copies of the features in double.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        keep_ratio: fraction kept.
        batch_size: rows at a time.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, or an argument out of range.

    Example:
        >>> NearestNeighbourThinning(torch.tensor([[0.0], [0.1], [5.0], [9.0]]), 0.75).select(0)
        tensor([0, 2, 3])
    """

    def __init__(self, features: Any, keep_ratio: float, *, batch_size: int = 1024) -> None:
        name = type(self).__name__
        x = _inputs.matrix(name, "features", features)
        size = subset_size(keep_ratio, len(x), op=name)
        batch_size = _checks.in_range(name, "batch_size", batch_size, 1)
        super().__init__(_thinned(_scaled(x)[0], size, batch_size), len(x), arguments={"keep_ratio": keep_ratio})


def _thinned(rows: Tensor, size: int, batch_size: int) -> Tensor:
    """Ascending indices of the ``size`` samples left of rows [N, d], float64 of order 1."""
    own = torch.arange(len(rows), device=rows.device)
    centred = rows - rows.mean(0)  # far from 0 the squares would cancel
    norms = centred.square().sum(1)  # infinite: dropped
    neighbour, distance = own.clone(), torch.zeros_like(norms)
    dropped = torch.nonzero(_first_equal(rows) != own).flatten()[: len(rows) - size]
    while True:
        norms[dropped] = torch.inf
        left = torch.nonzero(norms.isfinite()).flatten()
        if len(left) == size:
            return left
        lost = left[(neighbour[left] == left) | norms[neighbour[left]].isinf()]  # who has no neighbour any more
        for asking in lost.split(batch_size):
            neighbour[asking], distance[asking] = _neighbours(rows, centred, norms, asking)
        later = left[(neighbour[neighbour[left]] == left) & (neighbour[left] < left)]
        dropped = later[distance[later].argsort(stable=True)][: len(left) - size]


def _neighbours(rows: Tensor, centred: Tensor, norms: Tensor, asking: Tensor) -> tuple[Tensor, Tensor]:
    """Index of and squared distance to the nearest other row of finite norm, for the rows ``asking`` [B].

    A matrix product finds all that rounding could let be the nearest, and these are looked at closely. Of rows
    equally near it is the one of least (index XOR own index): an order of pairs, so that among samples of equal
    distances many are each other's nearest, and not only the first two.
    """
    bound = _expansion_error(rows)
    here = centred[asking]
    # the least that each squared distance can be, less the own norm, which is the same for all
    least = torch.addmm(norms * (1 - bound), here, centred.mT, alpha=-2)
    least.scatter_(1, asking[:, None], torch.inf)
    most = (least + 2 * bound * norms).amin(1) + 2 * bound * norms[asking]
    row, near = torch.nonzero(least <= most[:, None], as_tuple=True)
    square = _square_distances(rows, asking[row], near)
    distance = torch.full_like(most, torch.inf).scatter_reduce(0, row, square, "amin")
    row, near = row[square == distance[row]], near[square == distance[row]]
    rank = near ^ asking[row]
    return torch.full_like(asking, len(rows) ** 2).scatter_reduce(0, row, rank, "amin") ^ asking, distance


def _square_distances(rows: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """[n] between rows of indices ``i`` [n] and ``j`` [n]."""
    at_once = max(1, (1 << 20) // rows.size(1))
    pairs = zip(i.split(at_once), j.split(at_once), strict=True)
    return torch.cat([(rows[first] - rows[second]).square_().sum(1) for first, second in pairs])


class Moderate(FixedSelector):
    """The samples whose distance to the mean of their class is nearest to the median of the class's distances.

    Neither the typical ones nor the outliers (Xia et al., "Moderate Coreset", ICLR 2023). Each class keeps its share.
    Of an even number of distances the median is the middle of the two in the middle. O(N d), and memory for two copies
    of the features in double.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        keep_ratio: fraction kept.
        labels: integers [N]; None takes all samples for one class.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, an argument out of range, or more classes than samples kept.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0]])  # 3, 2, 1, 0 and 6 from their mean
        >>> Moderate(features, 0.4).select()
        tensor([0, 1])
    """

    def __init__(self, features: Any, keep_ratio: float, *, labels: Any = None) -> None:
        name = type(self).__name__
        x, strata = _classes(name, features, labels, keep_ratio)
        super().__init__(strata.pick(_scaled(x)[0], _middling), len(x), arguments={"keep_ratio": keep_ratio})


def _middling(rows: Tensor, count: int) -> Tensor:
    distance = _distances(rows, rows.mean(0))
    ordered = distance.sort().values
    median = (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2
    return ops.select((distance - median).abs(), count, largest=False)


class KCentre(FixedSelector):
    """Farthest first: each pick is the sample farthest from all that are picked.

    The greedy 2-approximation of the k centres that leave no sample far from all of them (Gonzalez 1985; as a core-set
    Sener and Savarese, 1708.00489), exactly. It begins with the sample nearest to the mean; of samples equally far the
    first is picked, and equal samples are picked only when nothing else is left. With labels each class keeps its share
    and is covered by itself. O(k N d), or O(k N d / C) for C classes as large as each other, and memory for three
    copies of the features in double.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        keep_ratio: fraction kept.
        labels: integers [N].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, an argument out of range, or more classes than samples kept.

    Example:
        >>> KCentre(torch.tensor([[0.0], [0.1], [5.0], [5.2], [9.0]]), 0.6).select()
        tensor([0, 2, 4])
    """

    def __init__(self, features: Any, keep_ratio: float, *, labels: Any = None) -> None:
        name = type(self).__name__
        x, strata = _classes(name, features, labels, keep_ratio)
        super().__init__(strata.pick(_scaled(x)[0], _farthest), len(x), arguments={"keep_ratio": keep_ratio})


def _farthest(rows: Tensor, count: int) -> Tensor:
    rows = rows - rows.mean(0)
    columns, norms, bound = rows.mT.contiguous(), rows.square().sum(1), _expansion_error(rows)
    norms *= 1 - bound
    nearest = torch.full_like(norms, torch.inf)  # squared distance of each row to the nearest one picked
    picked = norms.argmin()[None]
    order = [picked]
    while len(order) < count:
        point = rows[picked]
        # a product with all rows finds those that may be nearer to this one, which are looked at closely
        least = torch.sub(norms + norms[picked], point[0] @ columns, alpha=2)
        near = torch.nonzero(least < nearest).flatten()
        nearest[near] = torch.minimum(nearest[near], _distances(rows[near], point).square())
        nearest[picked] = -1  # below all others, even where those are equal to it
        picked = nearest.argmax()[None]
        order.append(picked)
    return torch.cat(order)


class Herding(FixedSelector):
    """Each pick brings the mean of all that are picked nearest to the mean of the class.

    Greedily (Welling 2009; as exemplars of a class in iCaRL, 1611.07725), but from the features as they are: scale them
    to length 1 for iCaRL's. Of samples equally good the first is picked. Each class keeps its share. O(k N d / C) for
    C classes as large as each other, and memory for three copies of the features in double.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        keep_ratio: fraction kept.
        labels: integers [N]; None takes all samples for one class.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, an argument out of range, or more classes than samples kept.

    Example:
        >>> Herding(torch.tensor([[0.0], [4.0], [5.0], [11.0]]), 0.5).select()  # 5 alone, then 4 and 5
        tensor([1, 2])
    """

    def __init__(self, features: Any, keep_ratio: float, *, labels: Any = None) -> None:
        name = type(self).__name__
        x, strata = _classes(name, features, labels, keep_ratio)
        super().__init__(strata.pick(_scaled(x)[0], _herd), len(x), arguments={"keep_ratio": keep_ratio})


def _herd(rows: Tensor, count: int) -> Tensor:
    rows = rows - rows.mean(0)
    columns, norms, bound = rows.mT.contiguous(), rows.square().sum(1), _expansion_error(rows)
    missing = torch.zeros_like(rows[0])  # what the next row should be, for the mean to be right
    order: list[Tensor] = []
    while len(order) < count:
        # the least and the most that each squared distance to it can be, less its own norm
        least = torch.sub(norms * (1 - bound), missing @ columns, alpha=2)
        most = (least + 2 * bound * norms).min() + 2 * bound * missing.square().sum()
        near = torch.nonzero(least <= most).flatten()
        picked = near[_distances(rows[near], missing).argmin()][None]
        missing -= rows[picked[0]]
        norms[picked] = torch.inf
        order.append(picked)
    return torch.cat(order)


def _expansion_error(rows: Tensor) -> float:
    """Of squared distances as norms less twice the product: at most this, over the norms of both rows."""
    return 4 * (rows.size(1) + 4) * torch.finfo(rows.dtype).eps


def _distances(rows: Tensor, point: Tensor) -> Tensor:
    """[N] of each row [N, d] to one point, from differences: exactly 0 where they are equal, in one pass."""
    return torch.cdist(rows, point.view(1, -1), compute_mode="donot_use_mm_for_euclid_dist").flatten()


def _classes(op: str, features: Any, labels: Any, keep_ratio: float) -> tuple[Tensor, Strata]:
    """Features [N, d] and how many of each class are kept."""
    x = _inputs.matrix(op, "features", features)
    size = subset_size(keep_ratio, len(x), op=op)
    return x, Strata(len(x), size, labels, device=x.device, op=op, name="keep_ratio")
