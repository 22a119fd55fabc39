"""Exact selection from one long vector, over all of it or by group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _autograd, _checks
from pysel.ops._out import write_out
from pysel.random import resolve

__all__ = ["select"]

_SCORES = (*_checks.FLOATING, torch.int64, torch.int32)


def select(
    scores: Tensor,
    k: int,
    largest: bool = True,
    *,
    groups: Tensor | None = None,
    quotas: Tensor | None = None,
    key: Tensor | int | None = None,
    start: int = 0,
    validate: bool | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Select exactly k elements of one long vector, and return their indices in ascending order.

    Without a key ties go to the lowest index; with one they are ordered by its random words, element ``i`` having word
    ``i`` of the stream of shuffles. -0 equals 0. With groups, that many of each group's elements as its quota says are
    selected, at a cost that does not grow with the number of groups as a loop over them would.

    Args:
        scores: [n], float32, float64, bfloat16, float16, int64 or int32.
        k: between 0 and n.
        largest: select the largest; else the smallest.
        groups: [n], int64 or int32, in [0, G): the group of each element. Given together with ``quotas``.
        quotas: int64 [G], how many of each group, which sum to ``k``. Any may be 0, and a group may be empty.
        key: int64 [2] or an int, see :func:`pysel.key`.
        start: number of the first element, for shards: the word that orders ties is that of ``start + i``.
        validate: as in :func:`gumbel_softmax`; what is refused later on a GPU holds -1. Unrefused, NaN is the largest.
            Groups and quotas are always checked.
        out: int64 [k]: write the indices here and return it. On the CPU untouched by an error.

    Returns:
        int64 [k].

    Raises:
        ValueError: a NaN score, a shape other than [n]; groups without quotas or the reverse; quotas that do not sum to
            ``k``, a negative one, or one above the number of elements in its group; a device or key that does not fit.
        IndexError: ``k`` or a group is out of range.
        TypeError: a wrong type or dtype.

    Example:
        >>> import torch, pysel
        >>> scores = torch.tensor([0.3, 0.9, 0.9, 0.1, 0.9])
        >>> pysel.select(scores, 2)
        tensor([1, 2])
        >>> pysel.select(scores, 2, groups=torch.tensor([0, 0, 0, 1, 1]), quotas=torch.tensor([1, 1]))
        tensor([1, 4])
    """
    op = "select"
    _checks.tensor(op, "scores", scores, _SCORES)
    k = _checks.integer(op, "k", k)
    largest, validate = _checks.flag(op, "largest", largest), _checks.validate(op, validate)
    start = _checks.integer(op, "start", start)
    _checks.groups(op, groups, quotas, "scores", scores)
    resolved = None if key is None else resolve(op, key, None, scores.device)
    rest: tuple[Any, ...] = (k, largest)
    if not (groups is None and resolved is None and validate is None and start == 0):
        # left out where they can be: the dispatcher looks at each argument it is given, which a small call feels
        rest = (*rest, groups, quotas, resolved, validate, start)
    if out is not None:
        return write_out(op, out, torch.int64, scores.detach(), *rest)
    return _autograd.select_op(scores, *rest)
