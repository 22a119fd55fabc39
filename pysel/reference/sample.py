"""Plain-torch oracle of weighted index sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysel import _fake
from pysel.reference.random import (
    ORDER,
    WITH_REPLACEMENT,
    exp_nonpositive,
    log,
    noise_like,
    unsigned_order,
    words64,
)
from pysel.reference.select import best, check_groups, ranking

_SIGN = -(2**63)
_MASK = 0xFFFFFFFF


def _validate(x: Tensor, k: int, replacement: bool, log_weights: bool, grouped: bool) -> None:
    op = "weighted_sample"
    if log_weights:
        if bool((torch.isnan(x) | (x == math.inf)).any()):
            raise ValueError(f"{op}: weights must be below +inf and not NaN (log_weights=True), got +inf or NaN")
        nonzero = (x > -math.inf).sum(-1)
    else:
        if bool((~torch.isfinite(x) | (x < 0)).any()):
            raise ValueError(f"{op}: weights must be finite and at least 0, got a negative, infinite or NaN weight")
        nonzero = (x > 0).sum(-1)
    least = int(nonzero.min()) if nonzero.numel() else k
    if not replacement and not grouped and k > least:
        raise ValueError(f"{op}: k must be at most the number of nonzero weights, {least}, got {k}")
    if replacement and k > 0 and least == 0:
        raise ValueError(f"{op}: weights must have at least one above 0 in every row, got a row of zeros")


def _race(
    x: Tensor,
    k: int,
    log_weights: bool,
    order: str,
    groups: Tensor | None,
    quotas: Tensor | None,
    key: Tensor,
    start: int,
) -> Tensor:
    g = noise_like(x, key, start, "gumbel")
    z = (x.to(g.dtype) if log_weights else log(x.to(g.dtype))) + g
    words = words64(key, ORDER, start + torch.arange(x.numel(), device=x.device)).view(x.shape)
    ranked = ranking(z, True, words)
    chosen = ranked[:, :k] if groups is None else best(ranked[0], k, groups, quotas).unsqueeze(0)
    if order == "draw":
        return chosen
    chosen = chosen.sort(dim=-1).values
    if order == "shuffled":
        chosen = chosen.gather(1, ranking(unsigned_order(words.gather(1, chosen)), False, None))
    return chosen


def _multiply_high(a: Tensor, b: Tensor) -> Tensor:
    """High 64 bits of the product of unsigned 64-bit words."""
    a1, a0, b1, b0 = (a >> 32) & _MASK, a & _MASK, (b >> 32) & _MASK, b & _MASK
    middle = a1 * b0 + (((a0 * b0) >> 32) & _MASK)
    middle_low = a0 * b1 + (middle & _MASK)
    return a1 * b1 + ((middle >> 32) & _MASK) + ((middle_low >> 32) & _MASK)


def fixed_point(w: Tensor) -> Tensor:
    """Rows of float64 weights as unsigned 64-bit integers whose sum fits in 64 bits too (int64 bit patterns)."""
    n = w.shape[-1]
    bits = 64 - (n - 1).bit_length()
    shift = bits - torch.frexp(w.amax(-1, keepdim=True)).exponent.to(torch.int64)
    half = shift >> 1
    # two exact factors, because 2**shift alone may overflow
    scaled = w * torch.exp2(half.double()) * torch.exp2((shift - half).double())
    rounded = scaled.round().clamp_max(float(2**bits - 1))
    rounded = torch.where(rounded > 0, rounded, 0.0)  # also for unchecked NaN and negative weights
    large = rounded >= 2.0**63
    low = torch.where(large, rounded - 2.0**63, rounded).to(torch.int64)
    return torch.where(large, low ^ _SIGN, low)


def _inversion(x: Tensor, k: int, log_weights: bool, order: str, key: Tensor, start: int) -> Tensor:
    w = x.double()
    if log_weights:
        w = exp_nonpositive(w - w.amax(-1, keepdim=True))
    cumulative = fixed_point(w).cumsum(-1)
    draw = torch.arange(x.shape[0] * k, dtype=torch.int64, device=x.device).view(x.shape[0], k) + start
    target = _multiply_high(words64(key, WITH_REPLACEMENT, draw), cumulative[:, -1:])
    index = torch.searchsorted(unsigned_order(cumulative), unsigned_order(target), right=True)
    index = torch.where(cumulative[:, -1:] == 0, -1, index)  # unchecked weights
    return index.sort(dim=-1).values if order == "index" else index


def weighted_sample(
    weights: Tensor,
    k: int,
    replacement: bool,
    log_weights: bool,
    order: str,
    groups: Tensor | None,
    quotas: Tensor | None,
    key: Tensor,
    start: int,
    validate: bool | None,
) -> Tensor:
    """See :func:`pysel.weighted_sample`."""
    out = _fake.weighted_sample(weights, k, replacement, log_weights, order, groups, quotas, key, start, validate)
    if validate is not False:
        _validate(weights, k, replacement, log_weights, groups is not None)
    counted = weights > (-math.inf if log_weights else 0)
    if validate is False:
        counted.fill_(True)
    check_groups("weighted_sample", k, groups, quotas, "the number of nonzero weights", counted)
    if out.numel() == 0:
        return out
    rows, key = weights.reshape(-1, weights.shape[-1]), key.to(weights.device)
    if replacement:
        drawn = _inversion(rows, k, log_weights, order, key, start)
    else:
        drawn = _race(rows, k, log_weights, order, groups, quotas, key, start)
    return drawn.view(out.shape)
