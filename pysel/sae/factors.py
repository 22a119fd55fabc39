"""From the units of a sparse autoencoder to a score of representativeness and one of diversity for every sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.sae.model import TopKSAE
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
        features: [N, d], any source that can be read twice: see `Rows`.
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

    ids, groups = (None, 1) if classes is None else (classes.ids, classes.sizes.numel())
    codes = Codes(sae, rows, 0, n, batch_size)
    weights = weigh(codes.count(ids, groups), share, class_coverage)
    return weights.tables(codes.scores(weights))


@dataclass(frozen=True)
class Codes:
    """Consecutive rows of a larger matrix as a model encodes them, batch by batch.

    A matrix product may round a row's numbers by how many rows there are and by which of them it is, but not by what
    the others hold. So where a batch's other rows are elsewhere, zeros stand in for them, and the codes are those of
    the whole matrix, bit for bit.
    """

    sae: TopKSAE
    rows: Rows | None  # None: there are none
    first: int  # number of the first of them
    total: int  # rows of the whole
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """values [B, k] and indices [B, k]."""
        if self.rows is None:
            return
        device, at = self.sae.bias.device, self.first
        for batch in self.rows.batches(self.batch_size, self.batch_size - at % self.batch_size):
            before = at % self.batch_size
            own = slice(before, before + len(batch))
            size = min(self.batch_size, self.total - (at - before))
            if len(batch) < size:
                own_rows, batch = batch, batch.new_zeros(size, batch.size(1))
                batch[own] = own_rows
            with torch.autocast(device.type, enabled=False):  # the scores decide: no digits are given away
                values, indices = self.sae.encode(batch.to(device))
            yield values[own], indices[own]
            at += own.stop - own.start

    def count(self, ids: Tensor | None, groups: int) -> Tensor:
        """int64 [G, H]: rows of each class in which each factor is active; ``ids`` int32 [n] are the rows' classes."""
        sae, first = self.sae, 0
        counts = torch.zeros(groups, sae.num_factors, dtype=torch.int64, device=sae.bias.device)
        for values, indices in self:
            of = torch.zeros(len(values), dtype=torch.int32, device=counts.device)
            if ids is not None:
                of = ids[first : first + len(values)].to(counts.device)
            counts += ops.factor_counts(values, indices, sae.num_factors, groups=of, num_groups=groups)
            first += len(values)
        return counts

    def scores(self, weights: Weights) -> Tensor:
        """float32 [n, 2]: representativeness and diversity."""
        found = [torch.empty(0, 2, dtype=torch.float32, device=weights.counts.device)]
        found += [ops.factor_scores(*code, weights.of_factors).float() for code in self]
        return torch.cat(found)


class Weights(NamedTuple):
    """What an active factor adds to a row's scores."""

    of_factors: Tensor  # float64 [2, H], to representativeness and to diversity
    counts: Tensor  # int64 [H]
    classes: Tensor  # float64 [H]
    common: Tensor  # bool [H]

    def tables(self, scores: Tensor) -> FactorTables:
        """With the scores [n, 2] that they give."""
        representativeness, diversity = scores.unbind(1)
        return FactorTables(
            representativeness.contiguous(), diversity.contiguous(), self.counts, self.classes.float(), self.common
        )


def weigh(by_class: Tensor, share: Fraction, class_coverage: str) -> Weights:
    """From counts of all rows, int64 [G, H]."""
    counts = by_class.sum(0)
    live = int((counts > 0).sum())
    common = torch.zeros_like(counts, dtype=torch.bool)
    common[ops.select(counts, math.ceil(share * live))] = True
    classes = _coverage(by_class, counts, class_coverage)
    rare = counts.double().reciprocal().masked_fill_(counts == 0, 0)
    return Weights(torch.stack([classes.reciprocal().masked_fill_(~common, 0), rare]), counts, classes, common)


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
