"""Plain-torch oracle of the topk family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pysel import _fake


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_indices(op: str, indices: Tensor, n: int, argument: str = "indices") -> None:
    outside = (indices < 0) | (indices >= n)
    if bool(outside.any()):
        raise IndexError(f"{op}: {argument} must be between 0 and {n - 1}, got {int(indices[outside][0])}")


def _descending(x: Tensor) -> Tensor:
    """Indices in the order of top-k: a stable sort leaves ties by lowest index, and torch sorts NaN as largest."""
    return x.sort(dim=-1, descending=True, stable=True).indices


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`pysel.topk`."""
    _fake.topk(x, k)
    indices = _descending(x)[..., :k].contiguous()
    return x.gather(-1, indices), indices


def topk_encode(x: Tensor, weight: Tensor, bias: Tensor | None, k: int, activation: str) -> tuple[Tensor, Tensor]:
    """See :func:`pysel.topk_encode`."""
    _fake.topk_encode(x, weight, bias, k, activation)
    z = F.linear(x, weight, bias)
    if activation == "relu":
        return topk(torch.where(z <= 0, 0.0, z), k)
    indices = topk(z.abs(), k)[1]
    return z.gather(1, indices), indices


def sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See :func:`pysel.sparse_decode`."""
    out = _fake.sparse_decode(values, indices, weight, bias)
    _check_indices("sparse_decode", indices, weight.shape[0])
    total = torch.zeros(out.shape, dtype=_compute(out.dtype), device=out.device)
    if bias is not None:
        total += bias
    for v, i in zip(values.to(total.dtype).unbind(1), indices.unbind(1), strict=True):
        total += v.unsqueeze(1) * weight[i].to(total.dtype)
    return total.to(out.dtype)


def sddmm(indices: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Sampled products: ``weight[indices[b, j]] . grad[b]``, the gradient of sparse_decode to its values."""
    out = _fake.sddmm(indices, weight, grad)
    _check_indices("sddmm", indices, weight.shape[0])
    g = grad.to(_compute(grad.dtype))
    for j, i in enumerate(indices.unbind(1)):
        out[:, j] = (weight[i].to(g.dtype) * g).sum(1)
    return out


def spmm_t(values: Tensor, indices: Tensor, rows: Tensor, num_factors: int) -> Tensor:
    """Transposed product: row f is the sum of ``values[b, j] * rows[b]`` over (b, j) with ``indices[b, j] == f``."""
    out = _fake.spmm_t(values, indices, rows, num_factors)
    _check_indices("spmm_t", indices, num_factors)
    total = torch.zeros(out.shape, dtype=_compute(out.dtype), device=out.device)
    r = rows.to(total.dtype)
    for v, i in zip(values.to(total.dtype).unbind(1), indices.unbind(1), strict=True):
        if out.device.type == "cpu":
            total.index_add_(0, i, v.unsqueeze(1) * r)
        else:  # the deterministic one of the two there
            total.index_put_((i,), v.unsqueeze(1) * r, accumulate=True)
    return total.to(out.dtype)


def sparse_decode_backward(grad: Tensor, values: Tensor, indices: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of sparse_decode to values and weight."""
    _fake.sparse_decode_backward(grad, values, indices, weight)
    _check_indices("sparse_decode_backward", indices, weight.shape[0])
    return sddmm(indices, weight, grad), spmm_t(values, indices, grad, weight.shape[0])


def _active(values: Tensor, indices: Tensor) -> Tensor:
    """Which entries count: active (above 0), and the first of their factor in the row that are."""
    factors, order = torch.where(values > 0, indices, -1).sort(dim=1, stable=True)
    first = factors >= 0
    first[:, 1:] &= factors[:, 1:] != factors[:, :-1]
    return torch.zeros_like(first).scatter(1, order, first)


def factor_counts(
    values: Tensor, indices: Tensor, num_factors: int, groups: Tensor | None, num_groups: int | None
) -> Tensor:
    """See :func:`pysel.factor_counts`."""
    out = _fake.factor_counts(values, indices, num_factors, groups, num_groups)
    _check_indices("factor_counts", indices, num_factors)
    counted = indices
    if groups is not None and num_groups is not None:
        _check_indices("factor_counts", groups, num_groups, "groups")
        counted = indices + num_factors * groups.unsqueeze(1)
    return torch.bincount(counted[_active(values, indices)], minlength=out.numel()).view(out.shape)


def factor_scores(values: Tensor, indices: Tensor, tables: Tensor, reduce: str, weighted: bool) -> Tensor:
    """See :func:`pysel.factor_scores`."""
    _fake.factor_scores(values, indices, tables, reduce, weighted)
    _check_indices("factor_scores", indices, tables.shape[-1])
    active = _active(values, indices)
    weights = values.double().where(active, 0.0) if weighted else active.double()
    wide = tables.double()
    sums = wide.new_zeros((*tables.shape[:-1], values.shape[0]))
    total = wide.new_zeros(values.shape[0])
    for i, on, weight in zip(indices.unbind(1), active.unbind(1), weights.unbind(1), strict=True):
        sums += (weight * wide[..., i]).where(on, 0.0)
        total += weight
    if reduce == "mean":
        sums /= total.where(total > 0, 1.0)
    return sums.movedim(-1, 0).to(tables.dtype).contiguous()
