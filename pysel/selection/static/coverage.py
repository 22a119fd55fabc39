"""One subset for all of training that covers the others: the greedy maximum of a submodular function of cosines.

Similarity is (1 + cosine) / 2, in [0, 1]; a row of zeros has cosine 0 with all. Cosines are rounded to multiples of
2^-30, so that their sums are exact: of samples of equal gain the first is picked. No matrix of all pairs is made.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs
from pysel.selection.features import unit_length
from pysel.selection.static.scores import FixedSelector
from pysel.selection.subset import Strata, subset_size

_ONE = 2.0**30  # a cosine of 1: they are kept in multiples of 2^-30


class FacilityLocation(FixedSelector):
    """Every sample is to have one like it in the subset: the largest sum over all of their best similarity to a pick.

    Greedily, which comes within 1 - 1/e of the best subset (Nemhauser et al. 1978; for training data Mirzasoleiman et
    al., 1906.01827), and exactly so: gains only fall, hence those that were too small when last computed are not
    computed again (Minoux 1978). With labels, each class keeps its share and is covered by itself. O(k N^2 d) at worst,
    in practice a few dozen or a hundred gains, O(N d) each, for a pick: with many samples pass labels. Memory for three
    copies of the features in double and 64 numbers a sample.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        keep_ratio: fraction kept.
        labels: integers [N].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, an argument out of range, or more classes than samples kept.

    Example:
        >>> features = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-0.1, 1.0], [0.0, 1.0]])
        >>> FacilityLocation(features, 0.4).select()
        tensor([0, 3])
    """

    def __init__(self, features: Any, keep_ratio: float, *, labels: Any = None) -> None:
        name = type(self).__name__
        rows, strata = _unit_rows(name, features, labels, keep_ratio)
        super().__init__(strata.pick(rows, _facilities), len(rows), arguments={"keep_ratio": keep_ratio})


class GraphCut(FixedSelector):
    """Picks like all of the samples, and not like each other.

    The greedy maximum of ``trade_off * sum(s[i, j] for all i, picks j) - sum(s[i, j] for picks i, j)`` (as in Iyer et
    al., 2006.15412). From a ``trade_off`` of 2 on the sum never falls; below it, diversity counts for more. With labels
    each class keeps its share and is covered by itself. O(k N d), or O(k N d / C) for C classes as large as each other,
    and memory for three copies of the features in double.

    Args:
        features: [N, ...] of any real dtype, tensor or array; flattened to [N, d].
        keep_ratio: fraction kept.
        labels: integers [N].
        trade_off: weight of being like all, finite and at least 0.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row that is not finite, an argument out of range, or more classes than samples kept.

    Example:
        >>> features = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-0.1, 1.0], [0.0, 1.0]])
        >>> GraphCut(features, 0.4, trade_off=0.2).select()
        tensor([0, 3])
    """

    def __init__(self, features: Any, keep_ratio: float, *, labels: Any = None, trade_off: float = 2.0) -> None:
        name = type(self).__name__
        factor = _checks.within(name, "trade_off", trade_off, "[0, inf)")
        rows, strata = _unit_rows(name, features, labels, keep_ratio)
        arguments = {"keep_ratio": keep_ratio, "trade_off": trade_off}
        super().__init__(strata.pick(rows, partial(_cut, factor)), len(rows), arguments=arguments)


def _unit_rows(op: str, features: Any, labels: Any, keep_ratio: float) -> tuple[Tensor, Strata]:
    """Features [N, d] in double and of length 1, and how many of each class are kept."""
    x = _inputs.matrix(op, "features", features)
    size = subset_size(keep_ratio, len(x), op=op)
    strata = Strata(len(x), size, labels, device=x.device, op=op, name="keep_ratio")
    return unit_length(x.double()), strata


def _cosines(columns: Tensor, some: Tensor) -> Tensor:
    """[M, N] of columns ``some`` [M] with all of [d, N], in multiples of 2^-30."""
    rows = columns[:, some].mT * _ONE
    return (rows @ columns if len(some) > 1 else (rows[0] @ columns)[None]).round_()


def _facilities(rows: Tensor, count: int, at_once: int = 32) -> Tensor:
    columns = rows.mT.contiguous()
    best = torch.full_like(rows[:, 0], -_ONE)  # cosine of each row with the pick most like it
    bound = (rows @ rows.sum(0) + len(rows)) * _ONE + len(rows)  # of each gain: what it was when last computed
    taken = torch.zeros_like(best, dtype=torch.bool)
    order: list[Tensor] = []
    while len(order) < count:
        computed = taken.clone()
        while not bool(computed[picked := bound.argmax()]):
            asking = bound.masked_fill(computed, -torch.inf).topk(min(at_once, len(rows))).indices
            asking = asking[~computed[asking]]
            bound[asking] = _cosines(columns, asking).sub_(best).clamp_min_(0).sum(1)
            computed[asking] = True
        torch.maximum(best, _cosines(columns, picked[None])[0], out=best)
        taken[picked] = True
        bound[picked] = -torch.inf
        order.append(picked)
    return torch.stack(order)


def _cut(trade_off: float, rows: Tensor, count: int) -> Tensor:
    columns = rows.mT.contiguous()
    # the constant part of a similarity is the same for all, and left out
    gain = trade_off * (rows @ rows.sum(0) * _ONE).round() - (rows.square().sum(1) * _ONE).round()
    order: list[Tensor] = []
    while len(order) < count:
        picked = gain.argmax()[None]
        gain.sub_(_cosines(columns, picked)[0], alpha=2)
        gain[picked] = -torch.inf
        order.append(picked)
    return torch.cat(order)
