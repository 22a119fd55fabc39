"""Plain-torch oracle of the usage family."""

from __future__ import annotations

import torch
from torch import Tensor

from pysel import _fake
from pysel.reference.random import log1p, times_exp
from pysel.reference.select import check_groups, select


def _check_selected(op: str, selected: Tensor, n: int) -> None:
    outside = (selected < 0) | (selected >= n)
    if not bool(outside.any()):
        return
    first = int(selected[outside][0])
    if n == 0:
        raise IndexError(f"{op}: selected must be empty for empty counts, got {first}")
    raise IndexError(f"{op}: selected must be between 0 and {n - 1}, got {first}")


def _update(op: str, counts: Tensor, selected: Tensor, decay: float) -> None:
    _check_selected(op, selected, counts.shape[0])
    if decay != 1:
        counts.mul_(decay)
    if counts.dtype.is_floating_point:
        # one addition a duplicate, each rounded: a float32 count stays at 2**24
        counts.index_add_(0, selected, torch.ones_like(selected, dtype=counts.dtype))
        return
    times = torch.zeros_like(counts, dtype=torch.int64).index_add_(0, selected, torch.ones_like(selected))
    most = torch.iinfo(counts.dtype).max
    counts.copy_(torch.where(counts > most - times, most, counts + times))


def usage_update_(counts: Tensor, selected: Tensor, decay: float) -> None:
    """See :func:`pysel.usage_update_`."""
    _fake.usage_update_(counts, selected, decay)
    _update("usage_update_", counts, selected, decay)


def _minus_use(s: Tensor, used: Tensor) -> Tensor:
    """s - used; an infinite score stays what it is."""
    difference = s - used
    return torch.where(difference.isnan() & ~s.isnan() & ~used.isnan(), s, difference)


def usage_penalty(scores: Tensor, counts: Tensor, gamma: float, form: str, step: int) -> Tensor:
    """See :func:`pysel.usage_penalty`."""
    _fake.usage_penalty(scores, counts, gamma, form, step)
    wide = counts.dtype != torch.float32 or scores.dtype == torch.float64
    compute = torch.float64 if wide else torch.float32
    s, n = scores.to(compute), counts.to(compute)
    strength = min(gamma, torch.finfo(compute).max)
    use = n * strength
    if strength == 0:
        result = s
    elif form == "log":
        result = _minus_use(s, strength * log1p(n))
    elif form == "exp":
        result = times_exp(s, -use)
    elif form == "rate":
        # a tensor, because torch divides by a number through its reciprocal on some devices
        steps = torch.full((1,), step, dtype=compute, device=use.device)
        result = _minus_use(s, torch.where(use.isinf(), n / steps * strength, use / steps))
    else:
        result = _minus_use(s, use)
    if scores.dtype != torch.float64:
        result = result.float()  # halves by way of float, on every machine
    return result.to(scores.dtype).contiguous()


def usage_step_(
    counts: Tensor, selected: Tensor, scores: Tensor, gamma: float, decay: float, form: str, step: int
) -> Tensor:
    """See :func:`pysel.usage_step_`."""
    op = "usage_step_"
    _fake.usage_step_(counts, selected, scores, gamma, decay, form, step)
    _update(op, counts, selected, decay)
    return usage_penalty(scores, counts, gamma, form, step)


def usage_select_(
    counts: Tensor,
    first: Tensor,
    second: Tensor,
    mix: float,
    gamma: float,
    form: str,
    step: int,
    k: int,
    groups: Tensor | None,
    quotas: Tensor | None,
    key: Tensor | None,
    validate: bool | None,
) -> Tensor:
    """See :func:`pysel.usage_select_`."""
    op = "usage_select_"
    _fake.usage_select_(counts, first, second, mix, gamma, form, step, k, groups, quotas, key, validate)
    check_groups(op, k, groups, quotas, "the size", torch.ones_like(counts, dtype=torch.bool))
    weights = torch.tensor([1 - mix, mix], dtype=torch.float64, device=first.device).to(first.dtype)
    scores = usage_penalty(first * weights[0] + second * weights[1], counts, gamma, form, step)
    if validate is not False and bool(torch.isnan(scores).any()):
        raise ValueError(f"{op}: scores of first, second and counts must not be NaN, got NaN")
    chosen = select(scores, k, True, groups, quotas, key, False)
    _update(op, counts, chosen, 1)
    return chosen
