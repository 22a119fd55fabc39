"""One subset for all of training: samples that look like their label says, and unlike each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.selection.features import unit_length
from pysel.selection.static.scores import FixedSelector
from pysel.selection.subset import subset_size


class SemanticScores(NamedTuple):
    """What `semantic_scores` gives."""

    alignment: Tensor  # float64 [N] cosine of a sample with its class, -1 to 1
    diversity: Tensor  # float64 [N] mean distance to its nearest neighbours in the class, 0 to 2


def semantic_scores(
    features: Any, labels: Any, class_features: Any = None, *, neighbours: int = 10, batch_size: int = 1024
) -> SemanticScores:
    """Semantic alignment and sample diversity of each sample (Yang et al., 2410.11215).

    All features are scaled to length 1. Alignment is the cosine of a sample with the vector of its class: an encoded
    text such as "a photo of a cat", or, where there is none, the mean of the *other* samples of its class, which is
    ours. Diversity is the mean Euclidean distance to the nearest samples of the same class, as many as there are up to
    ``neighbours``. Of a class's only sample both are 0 without ``class_features``. O(N^2 d / C) for C classes as large
    as each other, and memory O(batch_size * N / C) beside two copies of the features in double.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        labels: integers [N].
        class_features: [C, d] in the same space, row c for label c; labels are below C then.
        neighbours: at least 1.
        batch_size: rows at a time.

    Returns:
        alignment and diversity, float64 [N] each.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, shapes that do not match, or an argument out of range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> semantic_scores(features, [0, 0, 0], neighbours=1).diversity
        tensor([0.0000, 0.0000, 1.4142], dtype=torch.float64)
    """
    return _scores("semantic_scores", features, labels, class_features, neighbours, batch_size)


def _scores(
    op: str, features: Any, labels: Any, class_features: Any, neighbours: int, batch_size: int
) -> SemanticScores:
    x = _inputs.matrix(op, "features", features)
    classes = _inputs.classes(op, "labels", labels, len(x))
    neighbours = _checks.in_range(op, "neighbours", neighbours, 1)
    batch_size = _checks.in_range(op, "batch_size", batch_size, 1)
    rows, ids = unit_length(x.double()), classes.ids.to(x.device, torch.int64)
    if class_features is None:
        sums = rows.new_zeros(len(classes.sizes), rows.size(1)).index_add_(0, ids, rows)
        own = sums[ids] - rows
        alone = classes.sizes.to(x.device)[ids] == 1
        alignment = (rows * unit_length(own)).sum(1).masked_fill(alone, 0)
    else:
        vectors = _inputs.matrix(op, "class_features", class_features).to(x.device)
        if vectors.size(1) != x.size(1):
            raise ValueError(
                f"{op}: class_features must have as many columns as features, {x.size(1)}, got {vectors.size(1)}"
            )
        low, high = int(classes.labels[0]), int(classes.labels[-1])
        if low < 0 or high >= len(vectors):
            got = low if low < 0 else high
            raise ValueError(f"{op}: labels must be rows of class_features, 0 to {len(vectors) - 1}, got {got}")
        label = classes.labels.to(x.device, torch.int64)[ids]
        alignment = (rows * unit_length(vectors.double())[label]).sum(1)
    diversity = torch.zeros_like(alignment)
    for members in ids.argsort(stable=True).split(classes.sizes.tolist()):
        count = min(neighbours, len(members) - 1)
        if count:
            diversity[members] = _mean_distance(rows[members], count, batch_size)
    return SemanticScores(alignment, diversity)


def _mean_distance(rows: Tensor, count: int, batch_size: int) -> Tensor:
    """[n] of each row of length 1 to the ``count`` others nearest to it."""
    means = []
    for start in range(0, len(rows), batch_size):
        cosines = rows[start : start + batch_size] @ rows.mT
        cosines.diagonal(start).fill_(-torch.inf)  # not its own neighbour
        means.append((2 - 2 * cosines.topk(count).values).clamp_min_(0).sqrt_().mean(1))
    return torch.cat(means)


class SemanticDiversity(FixedSelector):
    """The samples of largest alignment with their label plus ``alpha`` times their distance from their neighbours.

    Alignment keeps wrong labels out, diversity near-duplicates (2410.11215, with CLIP's encoders; see
    `semantic_scores`). The paper *learns* an indicator for each sample by SGD on both scores and a penalty of the
    count. The scores are fixed and the penalty is the same for all, so that what it learns is the subset of the largest
    sums, which is taken here at once. Over all samples: classes are not balanced.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        labels: integers [N].
        keep_ratio: fraction kept.
        class_features: [C, d], row c for label c, of a text encoder in the same space; default: the mean of the other
            samples of the class.
        alpha: weight of diversity, finite and at least 0. It and ``neighbours`` are our defaults: the paper's depend on
            the ratio and are not known to us.
        neighbours: at least 1.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, shapes that do not match, or an argument out of range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.2]])
        >>> labels = [0, 0, 1, 1, 1]  # the last is wrong
        >>> SemanticDiversity(features, labels, 0.8, neighbours=1, alpha=0.1).select()
        tensor([0, 1, 2, 3])
    """

    def __init__(
        self,
        features: Any,
        labels: Any,
        keep_ratio: float,
        class_features: Any = None,
        *,
        alpha: float = 0.5,
        neighbours: int = 10,
    ) -> None:
        name = type(self).__name__
        x = _inputs.matrix(name, "features", features)
        size = subset_size(keep_ratio, len(x), op=name)
        weight = _checks.within(name, "alpha", alpha, "[0, inf)")
        alignment, diversity = _scores(name, x, labels, class_features, neighbours, 1024)
        arguments = {"keep_ratio": keep_ratio, "alpha": alpha, "neighbours": neighbours}
        super().__init__(ops.select(alignment + weight * diversity, size), len(x), arguments=arguments)
