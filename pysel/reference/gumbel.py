"""Plain-torch oracle of the gumbel family."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysel import _fake
from pysel.reference.random import exp_nonpositive, exp_over, noise_like, two_sum


def _tau(op: str, tau: Tensor, zero_allowed: bool, like: Tensor) -> Tensor:
    value = float(tau)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        raise ValueError(f"{op}: tau must be finite and above 0 (0 only with hard=True), got {value:g}")
    # a tensor on the same device, because torch divides by a number through its reciprocal there
    info = torch.finfo(like.dtype)
    return torch.full((), min(max(value, info.tiny), info.max), dtype=like.dtype, device=like.device)


def _check_rows(op: str, logits: Tensor, z: Tensor, dim: int, validate: bool | None) -> None:
    if validate is False or logits.numel() == 0:
        return
    if bool((logits == math.inf).any()):
        raise ValueError(f"{op}: logits must be below +inf, got +inf")
    if bool((z == -math.inf).all(dim).any()):
        raise ValueError(f"{op}: logits must have a finite value in every row, got a row of only -inf")


def _perturbed(op: str, logits: Tensor, key: Tensor, dim: int, start: int, validate: bool | None) -> Tensor:
    g = noise_like(logits, key, start, "gumbel")
    z = logits.to(g.dtype) + g
    _check_rows(op, logits, z, dim, validate)
    return z


def _first_max(z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The first maximum (NaN counts as largest) and whether it is NaN, dim kept."""
    nan = torch.isnan(z)
    top = torch.where(nan.any(dim, keepdim=True), nan, z == z.amax(dim, keepdim=True))
    return top.to(torch.uint8).argmax(dim, keepdim=True), nan.any(dim, keepdim=True)


def _row_sum(e: Tensor, dim: int) -> Tensor:
    """Sum along dim (kept), in the kernels' order: 16 lanes in a chunk of 1024, then the chunks.

    In float64, and for float64 with the rounding errors kept.
    """
    rows = (e.movedim(dim, -1) if e.dim() else e.view(1)).double()
    width = rows.shape[-1]
    chunk = 1024 if width > 1024 else -(-width // 16) * 16
    lanes = torch.nn.functional.pad(rows, (0, -width % chunk)).unflatten(-1, (-1, chunk // 16, 16))

    def add(sum_: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if e.dtype == torch.float64:
            high, error = two_sum(sum_[0], other[0])
            return high, sum_[1] + error + other[1]
        return sum_[0] + other[0], sum_[1]

    zero = torch.zeros_like(lanes[..., 0, :])
    lane = (zero, zero)
    for step in lanes.unbind(-2):
        lane = add(lane, (step, zero))
    for half in (8, 4, 2, 1):
        lane = add((lane[0][..., :half], lane[1][..., :half]), (lane[0][..., half:], lane[1][..., half:]))
    total = (torch.zeros_like(rows[..., 0]),) * 2
    for chunk_sum in zip(lane[0][..., 0].unbind(-1), lane[1][..., 0].unbind(-1), strict=True):
        total = add(total, chunk_sum)
    result = (total[0] + total[1]).to(e.dtype)
    return result.unsqueeze(-1).movedim(-1, dim) if e.dim() else result


def gumbel_softmax(
    logits: Tensor, tau: Tensor, key: Tensor, dim: int, hard: bool, start: int, validate: bool | None
) -> Tensor:
    """See :func:`pysel.gumbel_softmax`."""
    op = "gumbel_softmax"
    out = _fake.gumbel_softmax(logits, tau, key, dim, hard, start, validate)
    z = _perturbed(op, logits, key, dim, start, validate)
    t = _tau(op, tau, hard, z)
    if logits.numel() == 0:
        return out
    if hard:
        index, nan = _first_max(z, dim)
        one_hot = torch.zeros_like(z).scatter_(dim, index, 1.0)
        return torch.where(nan, math.nan, one_hot).to(logits.dtype).contiguous()
    if float(t) == 1:
        x = logits.to(z.dtype)
        e = exp_over(x - x.amax(dim, keepdim=True), noise_like(logits, key, start, "exponential"))
        return (e / _row_sum(e, dim)).to(logits.dtype).contiguous()
    e = exp_nonpositive((z - z.amax(dim, keepdim=True)) / t)
    return (e * (1 / _row_sum(e, dim))).to(logits.dtype).contiguous()


def gumbel_argmax(logits: Tensor, key: Tensor, dim: int, start: int, validate: bool | None) -> Tensor:
    """See :func:`pysel.gumbel_argmax`."""
    out = _fake.gumbel_argmax(logits, key, dim, start, validate)
    z = _perturbed("gumbel_argmax", logits, key, dim, start, validate)
    return out if logits.numel() == 0 else _first_max(z, dim)[0].squeeze(dim)


def gumbel_softmax_backward(grad: Tensor, y: Tensor, tau: Tensor, dim: int) -> Tensor:
    """``y * (grad - sum(grad * y)) / tau``; zero at tau = 0."""
    out = _fake.gumbel_softmax_backward(grad, y, tau, dim)
    compute = torch.float64 if y.dtype == torch.float64 else torch.float32
    g, p = grad.to(compute), y.to(compute)
    t = _tau("gumbel_softmax_backward", tau, True, p)
    if float(tau) == 0 or y.numel() == 0:
        return out.zero_()
    mean = (g * p).sum(dim, keepdim=True)
    return (p * (g - mean) / t).to(y.dtype).contiguous()


def gate_range(dtype: torch.dtype) -> tuple[float, float]:
    """Smallest normal and largest value below 1 of a floating dtype."""
    info = torch.finfo(dtype)
    return info.tiny, 1 - info.eps / 2


def _sigmoid(t: Tensor) -> Tensor:
    e = exp_nonpositive(torch.where(t > 0, -t, t))
    w = 1 / (1 + e)
    return torch.where(t > 0, w, e * w)


def gumbel_sigmoid(logits: Tensor, tau: Tensor, key: Tensor, hard: bool, start: int, validate: bool | None) -> Tensor:
    """See :func:`pysel.gumbel_sigmoid`."""
    op = "gumbel_sigmoid"
    _fake.gumbel_sigmoid(logits, tau, key, hard, start, validate)
    if validate is not False and bool((logits == math.inf).any()):
        raise ValueError(f"{op}: logits must be below +inf, got +inf")
    noise = noise_like(logits, key, start, "logistic")
    z = logits.to(noise.dtype) + noise
    t = _tau(op, tau, hard, z)
    if hard:
        w = torch.where(torch.isnan(z), z, (z > 0).to(z.dtype))
    else:
        w = _sigmoid(z / t).clamp(*gate_range(logits.dtype))
    return w.to(logits.dtype).contiguous()


def gumbel_sigmoid_backward(grad: Tensor, logits: Tensor, tau: Tensor, key: Tensor, start: int) -> Tensor:
    """``grad * w * (1 - w) / tau`` with the unclamped w; zero at tau = 0."""
    out = _fake.gumbel_sigmoid_backward(grad, logits, tau, key, start)
    noise = noise_like(logits, key, start, "logistic")
    t = _tau("gumbel_sigmoid_backward", tau, True, noise)
    if float(tau) == 0:
        return out.zero_()
    w = _sigmoid((logits.to(noise.dtype) + noise) / t)
    return (grad.to(noise.dtype) * (w * (1 - w)) / t).to(logits.dtype).contiguous()
