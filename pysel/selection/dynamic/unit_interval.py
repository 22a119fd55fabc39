"""Scores of any scale, brought to [0, 1]."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs
from pysel.sae.model import power_of_two


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
