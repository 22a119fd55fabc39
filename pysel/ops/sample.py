"""Weighted index sampling, exact and without a limit on the number of weights."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pysel import _autograd, _checks
from pysel.ops._out import write_out
from pysel.ops.prepared import PreparedWeights
from pysel.random import resolve

__all__ = ["weighted_sample"]


def weighted_sample(
    weights: Tensor | PreparedWeights,
    k: int,
    replacement: bool = False,
    *,
    log_weights: bool = False,
    order: str = "draw",
    groups: Tensor | None = None,
    quotas: Tensor | None = None,
    key: Tensor | int | None = None,
    generator: Generator | None = None,
    start: int = 0,
    validate: bool | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw ``k`` indices with probability proportional to their weights; a drop-in for :func:`torch.multinomial`.

    Without replacement the draw is a race: item ``i`` gets the key ``log w_i + g_i`` with ``g_i ~ Gumbel(0, 1)``, and
    the ``k`` largest win; equal keys are ordered by further random words, so that a longer draw begins with the shorter
    one. With groups, each group holds a race of its own. With replacement, draw ``j`` inverts its own 64-bit uniform
    over the weights in fixed point, scaled by a power of two so that their sum is an exact 64-bit integer: every
    probability ``p`` is right to ``(1 + n p) n 2**-63``, and a longer run begins with the shorter one.

    On the CPU it takes, beside the result, n / 8 bytes and usually under n / 6 of keys near the k-th largest (with
    replacement n / 128 bytes), and for draw and shuffled order (with replacement, for these alone) another 8 k bytes.

    Args:
        weights: [n] or [B, n], float32, float64, bfloat16 or float16; 0 or more (with ``log_weights`` anything below
            +inf), need not sum to 1. An item of weight 0 is never drawn. Or :func:`pysel.prepare` of them: the same
            draws, and with replacement without reading them all.
        k: draws a row.
        replacement: draw with replacement.
        log_weights: ``weights`` are logarithms.
        order: what the order of a row means; the set (with replacement, the multiset) is the same for all three.
            ``draw``: successive draws, as torch.multinomial's. ``index``: ascending. ``shuffled``: uniformly random,
            for feeding a loader (in draw order heavy items come first).
        groups: [n], int64 or int32, in [0, G): the group of each of one row's weights. Given together with ``quotas``,
            and without replacement only.
        quotas: int64 [G], draws from each group, which sum to ``k``. Any may be 0, and a group may be empty.
        key: int64 [2] or an int, see :func:`pysel.key`.
        generator: draw the key from this generator instead; with neither, from torch's default one.
        start: number of the first weight (with replacement: of the first draw), for shards.
        validate: as in :func:`gumbel_softmax`; on a GPU, rows that are refused later hold -1.
        out: int64, the result's shape: write the indices here and return it. On the CPU untouched by an error.

    Returns:
        int64 indices, [k] or [B, k].

    Raises:
        ValueError: a negative, infinite or NaN weight; ``k`` above the number of weights that are not 0; no weight
            above 0; groups without quotas or the reverse, for rows or with replacement; quotas that do not sum to
            ``k``, a negative one, or one above the number of weights in its group that are not 0; a wrong shape, order
            or key; key and generator together.
        IndexError: ``k`` is negative or, without replacement, above n; a group is out of range.
        TypeError: a wrong dtype.

    Example:
        >>> import torch, pysel
        >>> pysel.weighted_sample(torch.tensor([0.0, 3.0, 1.0]), 2, order="index", key=pysel.key(0))
        tensor([1, 2])

    Source: Efraimidis and Spirakis (Information Processing Letters 97, 2006) for the race.
    """
    op = "weighted_sample"
    tables = None
    if isinstance(weights, PreparedWeights):
        tables = weights.tables
        weights = tables[0]
    _checks.tensor(op, "weights", weights)
    k = _checks.integer(op, "k", k)
    start = _checks.integer(op, "start", start)
    replacement = _checks.flag(op, "replacement", replacement)
    log_weights = _checks.flag(op, "log_weights", log_weights)
    validate = _checks.validate(op, validate)
    _checks.choice(op, "order", order, ("draw", "index", "shuffled"))
    _checks.groups(op, groups, quotas, "weights", weights)
    if tables and log_weights:
        raise ValueError(f"{op}: log_weights must be False with prepared weights, got True")
    resolved = resolve(op, key, generator, weights.device)
    if tables and replacement and groups is None and out is None:
        return torch.ops.pysel.sample_prepared(*tables, k, order, resolved, start)
    rest = (k, replacement, log_weights, order, groups, quotas, resolved, start, validate)
    if out is not None:
        return write_out(op, out, torch.int64, weights.detach(), *rest)
    return _autograd.weighted_sample_op(weights, *rest)


_PIECE = 1 << 20  # race keys at a time


def best_losers(
    log_weights: Tensor,
    drawn: Tensor,
    key: Tensor,
    groups: Tensor | None = None,
    num_groups: int = 1,
    *,
    offset: int = 0,
) -> Tensor:
    """The largest race key of each group among the items that a draw without replacement left out.

    Args:
        log_weights: [n], those of the draw.
        drawn: int64, its indices, ascending.
        key: of the draw.
        groups: [n] in [0, num_groups), those of the draw.
        num_groups: G, 1 where there are no groups.
        offset: items before these, in a draw of which they are a part.

    Returns:
        [G], float64 for float64 and else float32; -inf where all of a group were drawn.

    Example:
        >>> import pysel
        >>> w, key = torch.tensor([0.0, 1.0, 2.0]), pysel.key(0)
        >>> drawn = pysel.weighted_sample(w, 2, log_weights=True, order="index", key=key)
        >>> drawn, best_losers(w, drawn, key)
        (tensor([1, 2]), tensor([0.0848]))
    """
    at = range(0, log_weights.numel(), _PIECE)
    bounds = torch.searchsorted(drawn, torch.tensor([*at, log_weights.numel()], device=drawn.device)).tolist()
    dtype = torch.promote_types(log_weights.dtype, torch.float32)
    best = log_weights.new_full((num_groups,), -torch.inf, dtype=dtype)
    for start, low, high in zip(at, bounds, bounds[1:], strict=False):
        part = slice(start, start + _PIECE)
        race = torch.ops.pysel.race_keys(log_weights[part], True, key, offset + start)
        race[drawn[low:high] - start] = -torch.inf
        of = torch.zeros_like(race, dtype=torch.int64) if groups is None else groups[part].long()
        best.scatter_reduce_(0, of, race, "amax")
    return best
