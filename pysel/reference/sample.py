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


def race_keys(weights: Tensor, log_weights: bool, key: Tensor, start: int) -> Tensor:
    """What the race without replacement is decided by: ``log w_i + g_i``, float64 for float64, else float32."""
    _fake.race_keys(weights, log_weights, key, start)
    g = noise_like(weights, key.to(weights.device), start, "gumbel")
    return (weights.to(g.dtype) if log_weights else log(weights.to(g.dtype))) + g


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
    z = race_keys(x, log_weights, key, start)
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


def fixed_weights(weights: Tensor, log_weights: bool, max: float, n: int) -> Tensor:
    """Weights as unsigned 64-bit integers, as int64, of which n sum to less than 2**64; ``max`` is the largest."""
    w = weights.double()
    bits = 64 - (n - 1).bit_length()
    if log_weights:
        w, shift = exp_nonpositive(w - max), bits - 1
    else:
        shift = bits - math.frexp(max)[1]
    # two exact factors, because 2**shift alone may overflow
    scaled = w * 2.0 ** (shift >> 1) * 2.0 ** (shift - (shift >> 1))
    rounded = scaled.round().clamp_max(float(2**bits - 1))
    rounded = torch.where(rounded > 0, rounded, 0.0)  # also for unchecked NaN and negative weights
    large = rounded >= 2.0**63
    low = torch.where(large, rounded - 2.0**63, rounded).to(torch.int64)
    return torch.where(large, low ^ _SIGN, low)


def draw_targets(key: Tensor, start: int, k: int, total: int) -> Tensor:
    """Where draws with replacement invert the cumulative weights, which reach up to ``total``, unsigned: int64 [k]."""
    _fake.draw_targets(key, start, k, total)
    draw = torch.arange(start, start + k, dtype=torch.int64, device=key.device)
    return _multiply_high(words64(key, WITH_REPLACEMENT, draw), torch.full_like(draw, total))


def _inversion(x: Tensor, k: int, log_weights: bool, order: str, key: Tensor, start: int) -> Tensor:
    n = x.shape[-1]
    cumulative = torch.stack([fixed_weights(w, log_weights, float(w.max()), n) for w in x]).cumsum(-1)
    totals = cumulative[:, -1].tolist()
    target = torch.stack([draw_targets(key, start + row * k, k, total) for row, total in enumerate(totals)])
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
