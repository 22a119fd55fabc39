"""From the units of a sparse autoencoder to a score of representativeness and one of diversity for every sample."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.sae import TopKSAE
from pysel.sae.model import power_of_two
from pysel.sae.rows import Rows


class FactorTables(NamedTuple):
    """What dynamic selection needs to know of a data set, computed once. Factors are the units of an autoencoder."""

    representativeness: Tensor  # [N]
    diversity: Tensor  # [N]
    counts: Tensor  # int64 [H] samples in which each factor is active
    classes: Tensor  # [H] classes in which it is; 1 without labels
    common: Tensor  # bool [H] the factors that representativeness is about


@torch.no_grad()
def factor_tables(
    sae: TopKSAE,
    features: Any,
    *,
    labels: Any = None,
    common: float = 0.1,
    class_coverage: str = "once",
    batch_size: int = 8192,
) -> FactorTables:
    """Score every sample by the factors active in it, in two passes and without storing the codes.

    With A_i the factors active in sample i (their activation is positive), count_j the samples in which factor j is
    active, c_j the classes in which it is, and F the common factors, those of highest count::

        representativeness_i = sum over j in F and A_i of 1 / c_j
        diversity_i = sum over j in A_i of 1 / count_j

    so that the sum of all diversities is the number of live factors.

    Args:
        sae: trained on these features, or on ones like them.
        features: [N, d], any source that can be read twice: see `pysel.sae.rows.Rows`.
        labels: integers [N]; without them every c_j is 1.
        common: the share of live factors that F holds, in (0, 1]. The paper does not state it; a figure of its suggests
            about a tenth.
        class_coverage: c_j counts the classes in which a factor is active at least "once", as in the paper; on large
            data sets that is nearly all of them for every common factor. "effective" (ours) is the exponential of the
            entropy of the factor's activity over classes.
        batch_size: rows at a time.

    Returns:
        `FactorTables`; scores are float32.

    Raises:
        TypeError, ValueError: ``features`` does not fit the model or is not finite; another argument is out of range.

    Example:
        >>> import pysel
        >>> sae = pysel.nn.TopKSAE(4, 16, 2, key=pysel.key(0))
        >>> tables = factor_tables(sae, torch.randn(10, 4), labels=torch.arange(10) % 2)
        >>> round(float(tables.diversity.sum())) == int((tables.counts > 0).sum())
        True

    Source: arXiv 2603.04981, equations 3, 5 and 6.
    """
    op = "factor_tables"
    check_model(op, sae)
    rows = features if isinstance(features, Rows) else Rows(features, op, "features")
    n, d = rows.shape
    if d != sae.in_features:
        raise ValueError(f"{op}: features must be [N, {sae.in_features}] like the model's, got {[n, d]}")
    share = check_options(op, common, class_coverage)
    batch_size = _checks.in_range(op, "batch_size", batch_size, 1)
    classes = None if labels is None else _inputs.classes(op, "labels", labels, n)

    device = sae.bias.device

    def encode(batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, enabled=False):  # the scores decide: no digits are given away
            return sae.encode(batch.to(device))

    groups = 1 if classes is None else classes.sizes.numel()
    by_class = torch.zeros(groups, sae.num_factors, dtype=torch.int64, device=device)
    first = 0
    for batch in rows.batches(batch_size):
        values, indices = encode(batch)
        of = torch.zeros(len(batch), dtype=torch.int32, device=device)
        if classes is not None:
            of = classes.ids[first : first + len(batch)].to(device)
        by_class += ops.factor_counts(values, indices, sae.num_factors, groups=of, num_groups=groups)
        first += len(batch)
    counts = by_class.sum(0)
    live = int((counts > 0).sum())
    is_common = torch.zeros(sae.num_factors, dtype=torch.bool, device=device)
    is_common[ops.select(counts, math.ceil(share * live))] = True
    spread = _coverage(by_class, counts, class_coverage)

    reciprocal = counts.double().reciprocal().masked_fill_(counts == 0, 0)
    weight = spread.reciprocal().masked_fill_(~is_common, 0)
    tables = torch.stack([weight, reciprocal])
    scores = [ops.factor_scores(*encode(batch), tables).float() for batch in rows.batches(batch_size)]
    representativeness, diversity = torch.cat(scores).unbind(1)
    return FactorTables(representativeness.contiguous(), diversity.contiguous(), counts, spread.float(), is_common)


def check_model(op: str, sae: Any) -> None:
    """Refuse what is no autoencoder."""
    if not isinstance(sae, TopKSAE):
        raise TypeError(f"{op}: sae must be a TopKSAE, got {type(sae).__name__}")


def check_options(op: str, common: Any, class_coverage: str) -> Fraction:
    """Refuse what `factor_tables` would; ``common`` as it was written."""
    _checks.choice(op, "class_coverage", class_coverage, ("once", "effective"))
    return _checks.written(op, "common", common, "(0, 1]")


def _coverage(by_class: Tensor, counts: Tensor, how: str) -> Tensor:
    """float64 [H]: in how many classes each factor is active; 1 for factors that never are."""
    if how == "once":
        return (by_class > 0).sum(0).clamp_min(1).double()
    share = by_class.double() / counts.clamp_min(1)
    return torch.exp(-torch.special.xlogy(share, share).sum(0))


def to_unit_interval(scores: Any, how: str | None = "minmax", *, quantile: float = 0.99) -> Tensor:
    """Bring scores to [0, 1].

    Args:
        scores: [N] numbers, tensor, array or list.
        how: "minmax" (linear), "clip" (linear, after clipping to the quantiles ``1 - quantile`` and ``quantile``, so
            that a single score cannot flatten all others), "rank" (mean rank of equal scores, over N - 1), or None:
            they must be there already.
        quantile: for "clip", in (0.5, 1].

    Returns:
        [N], a copy, float32 or wider; all 0 if every score is the same.

    Raises:
        TypeError: scores that are not numbers.
        ValueError: an unknown ``how``, a score that is not finite, or with None one outside [0, 1].

    Example:
        >>> to_unit_interval(torch.tensor([1.0, 3.0, 3.0, 9.0]), "rank")
        tensor([0.0000, 0.5000, 0.5000, 1.0000])
    """
    op = "to_unit_interval"
    if how is not None:
        _checks.choice(op, "how", how, ("minmax", "clip", "rank"))
    clipped = 1 - _checks.written(op, "quantile", quantile, "(0.5, 1]")
    scores = _inputs.vector(op, "scores", scores)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    low, high = scores.min(), scores.max()
    if how is None:
        if low < 0 or high > 1:
            raise ValueError(f"{op}: scores must lie in [0, 1], got {low:g} to {high:g}")
        return scores.clone()
    if how == "rank":
        if low == high:
            return torch.zeros_like(scores)
        _, group, size = torch.unique(scores, return_inverse=True, return_counts=True)
        last = size.cumsum(0) - 1
        mean_rank = last.double() - (size - 1).double() / 2
        return (mean_rank / (scores.numel() - 1))[group].to(scores.dtype)
    ends = low, high
    if how == "clip":
        beyond = math.floor(clipped * scores.numel())  # on either side
        ordered = scores.sort().values
        ends = ordered[beyond], ordered[-1 - beyond]
    return rescale(scores, torch.maximum(low.abs(), high.abs()), *ends)


def rescale(scores: Tensor, most: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Scores [N] from [low, high] to [0, 1], what is beyond clipped; ``most`` is the largest magnitude of all."""
    unit = power_of_two(most)  # differences must neither overflow nor vanish
    scores, low, high = scores / unit, low / unit, high / unit
    if low == high:
        return (scores > high).to(scores.dtype)  # "clip": what is above the one value that nearly all have
    return ((scores - low) / (high - low)).clamp_(0, 1)
