"""How often each sample has been used, and the penalty that makes samples rotate."""

from __future__ import annotations

import torch
from torch import Tensor

from pysel import _autograd, _checks
from pysel.ops._out import write_out
from pysel.random import resolve

__all__ = ["usage_penalty", "usage_select_", "usage_step_", "usage_update_"]

_FORMS = ("log", "linear", "exp", "rate")
COUNTS = (torch.float32, torch.float64, torch.int32, torch.int64)


def _check_counts(op: str, counts: Tensor) -> None:
    _checks.tensor(op, "counts", counts, COUNTS)
    _checks.no_grad(op, "counts", counts)
    if not torch.compiler.is_compiling() and counts.is_neg():
        raise ValueError(f"{op}: counts must not be a lazily negated view, which torch cannot change in place")


def _check_update(op: str, counts: Tensor, selected: Tensor, decay: float) -> float:
    _check_counts(op, counts)
    _checks.tensor(op, "selected", selected, (torch.int64,))
    _checks.same_device(op, "selected", selected, "counts", counts)
    return _checks.number(op, "decay", decay)


def _check_penalty(
    op: str, scores: Tensor, counts: Tensor, gamma: float, form: str, step: int
) -> tuple[float, str, int]:
    _checks.tensor(op, "scores", scores)
    _checks.tensor(op, "counts", counts, COUNTS)
    _checks.same_device(op, "counts", counts, "scores", scores)
    return _check_form(op, gamma, form, step)


def _check_form(op: str, gamma: float, form: str, step: int) -> tuple[float, str, int]:
    gamma = _checks.number(op, "gamma", gamma)
    _checks.choice(op, "form", form, _FORMS)
    return gamma, form, _checks.integer(op, "step", step)


def usage_update_(counts: Tensor, selected: Tensor, decay: float = 1.0) -> Tensor:
    """Multiply counts by ``decay``, then add 1 at each selected index, in place.

    An index that is listed twice counts twice. Everything is checked before anything is written. Ascending indices, as
    :func:`select` gives them, are fastest.

    Args:
        counts: [n], float32 (exact up to 2**24, where it stays), float64, or, with ``decay`` 1, int32 or int64 (which
            stay at their largest).
        selected: [m], int64, in [0, n), in any order.
        decay: in [0, 1].

    Returns:
        ``counts``.

    Raises:
        ValueError: ``decay`` out of range, or not 1 for integer counts; a wrong shape or device; counts that require
            grad.
        IndexError: an index out of range.
        TypeError: a wrong type or dtype; half types would stop counting at 256 or 2048.

    Example:
        >>> import torch, pysel
        >>> pysel.usage_update_(torch.tensor([4.0, 2.0, 0.0]), torch.tensor([0, 2, 2]), decay=0.5)
        tensor([3., 1., 2.])

    Source: arXiv 2603.04981 (usage-frequency penalty); the decay is ours.
    """
    op = "usage_update_"
    decay = _check_update(op, counts, selected, decay)
    torch.ops.pysel.usage_update_(counts, selected, decay)
    return counts


def usage_penalty(
    scores: Tensor,
    counts: Tensor,
    gamma: float,
    form: str = "log",
    step: int = 1,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Lower the scores of samples that have been used.

    With n the count of a sample and s its score: ``log`` is ``s - gamma log(1 + n)``, ``linear`` is ``s - gamma n``,
    ``exp`` is ``s exp(-gamma n)``, ``rate`` is ``s - gamma n / step``. Computed in float32 if counts are float32 and
    scores are not float64, else in float64, so that counts beyond 2**24 keep their precision. An infinite score stays
    what it is, and so do all with ``gamma`` 0, whatever the counts. A count below 0, which none of these ops makes, is
    a bonus; to ``log``, an infinite one at -1, and NaN below.

    Args:
        scores: any shape, float32, float64, bfloat16 or float16.
        counts: the shape of ``scores``, float32, float64, int32 or int64.
        gamma: strength, finite, 0 or more.
        form: log, linear, exp or rate.
        step: how many selections have been made, 1 or more (rate only).
        out: like ``scores``, which may be ``out`` itself: write the penalised scores here and return it. Untouched by
            an error. No gradient passes through it.

    Returns:
        Penalised scores like ``scores``, contiguous. Differentiable in scores, to any order.

    Raises:
        ValueError: ``gamma``, ``form`` or ``step`` out of range; a shape or device that does not fit; counts that
            require grad.
        TypeError: a wrong type or dtype.

    Example:
        >>> import torch, pysel
        >>> pysel.usage_penalty(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 3.0]), gamma=0.25)
        tensor([1.0000, 0.6534])

    Source: arXiv 2603.04981 (usage-frequency penalty, log with gamma 0.2); the other forms are ours.
    """
    op = "usage_penalty"
    penalty = _check_penalty(op, scores, counts, gamma, form, step)
    if out is not None:
        return write_out(op, out, scores.dtype, scores, counts, *penalty)
    return _autograd.usage_penalty_op(scores, counts, *penalty)


def usage_step_(
    counts: Tensor,
    selected: Tensor,
    scores: Tensor,
    gamma: float,
    decay: float = 1.0,
    form: str = "log",
    step: int = 1,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Update counts in place and penalise scores with the updated counts, in one pass.

    The same as :func:`usage_update_` followed by :func:`usage_penalty`.

    Args:
        counts: [n], float32, float64, or, with ``decay`` 1, int32 or int64. Updated in place.
        selected: [m], int64, in [0, n), in any order.
        scores: [n], float32, float64, bfloat16 or float16.
        gamma: strength, finite, 0 or more.
        decay: in [0, 1].
        form: log, linear, exp or rate.
        step: how many selections have been made, 1 or more (rate only).
        out: [n], like ``scores``, which may be ``out`` itself: write the penalised scores here and return it. On the
            CPU untouched by an error, as ``counts`` is everywhere.

    Returns:
        Penalised scores [n] like ``scores``. Not differentiable.

    Raises:
        ValueError, IndexError, TypeError: as the two functions; ValueError also for scores that require grad.

    Example:
        >>> import torch, pysel
        >>> counts = torch.zeros(3)
        >>> pysel.usage_step_(counts, torch.tensor([1]), torch.ones(3), gamma=0.5), counts
        (tensor([1.0000, 0.6534, 1.0000]), tensor([0., 1., 0.]))

    Source: arXiv 2603.04981 (usage-frequency penalty, log with gamma 0.2); the other forms and the decay are ours.
    """
    op = "usage_step_"
    decay = _check_update(op, counts, selected, decay)
    gamma, form, step = _check_penalty(op, scores, counts, gamma, form, step)
    _checks.no_grad(op, "scores", scores)
    args = (counts, selected, scores.detach(), gamma, decay, form, step)
    return torch.ops.pysel.usage_step_(*args) if out is None else write_out(op, out, scores.dtype, *args)


def usage_select_(
    counts: Tensor,
    first: Tensor,
    second: Tensor,
    mix: float,
    k: int,
    gamma: float,
    form: str = "log",
    step: int = 1,
    *,
    groups: Tensor | None = None,
    quotas: Tensor | None = None,
    key: Tensor | int | None = None,
    validate: bool | None = None,
) -> Tensor:
    """Mix two tables of scores, penalise by use, select, and count the selected as used: an epoch in one pass.

    The same, bit for bit, as the steps it stands for, without a temporary of n elements::

        scores = usage_penalty(first * (1 - mix) + second * mix, counts, gamma, form, step)
        selected = select(scores, k, groups=groups, quotas=quotas, key=key)
        usage_update_(counts, selected)

    with ``1 - mix`` and ``mix`` rounded once to the tables' dtype.

    Args:
        counts: [n], float32, float64, int32 or int64. Updated in place.
        first: [n], float32 or float64.
        second: [n], like ``first``.
        mix: share of ``second``, in [0, 1].
        k: between 0 and n.
        gamma: strength, finite, 0 or more.
        form: log, linear, exp or rate, as in :func:`usage_penalty`.
        step: how many selections have been made, 1 or more (rate only).
        groups: [n], int64 or int32, and
        quotas: int64 [G]: as in :func:`select`.
        key: int64 [2] or an int: orders equal scores, as in :func:`select`.
        validate: as in :func:`gumbel_softmax`.

    Returns:
        int64 [k], ascending.

    Raises:
        ValueError, IndexError, TypeError: as the three functions; ``mix`` out of range; a table that requires grad.
            ``counts`` is then unchanged.

    Example:
        >>> import torch, pysel
        >>> counts, common = torch.zeros(4), torch.tensor([3.0, 2.0, 1.0, 0.0])
        >>> rare = common.flip(0)
        >>> pysel.usage_select_(counts, common, rare, 0.25, 2, gamma=4.0)
        tensor([0, 1])
        >>> pysel.usage_select_(counts, common, rare, 0.25, 2, gamma=4.0), counts
        (tensor([2, 3]), tensor([1., 1., 1., 1.]))

    Source: arXiv 2603.04981 (algorithm 1); the fusion is ours.
    """
    op = "usage_select_"
    _check_counts(op, counts)
    for name, table in (("first", first), ("second", second)):
        _checks.tensor(op, name, table, (torch.float32, torch.float64))
        _checks.same_device(op, name, table, "counts", counts)
        _checks.no_grad(op, name, table)
    _checks.same_dtype(op, "second", second, "first", first)
    mix = _checks.number(op, "mix", mix)
    k = _checks.integer(op, "k", k)
    gamma, form, step = _check_form(op, gamma, form, step)
    validate = _checks.validate(op, validate)
    _checks.groups(op, groups, quotas, "counts", counts)
    resolved = None if key is None else resolve(op, key, None, counts.device)
    return torch.ops.pysel.usage_select_(
        counts, first.detach(), second.detach(), mix, gamma, form, step, k, groups, quotas, resolved, validate
    )
