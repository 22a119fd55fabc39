"""Plain-torch oracle of the topk family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pysel import _fake
from pysel.reference.random import log


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_indices(op: str, indices: Tensor, n: int) -> None:
    outside = (indices < 0) | (indices >= n)
    if bool(outside.any()):
        raise IndexError(f"{op}: indices must be between 0 and {n - 1}, got {int(indices[outside][0])}")


def _descending(x: Tensor) -> Tensor:
    """Indices in the order of top-k: a stable sort leaves ties by lowest index, and torch sorts NaN as largest."""
    return x.sort(dim=-1, descending=True, stable=True).indices


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`pysel.topk`."""
    _fake.topk(x, k)
    indices = _descending(x)[..., :k].contiguous()
    return x.gather(-1, indices), indices


def topk_encode(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`pysel.topk_encode`."""
    _fake.topk_encode(x, weight, bias, k)
    z = F.linear(x, weight, bias)
    return topk(torch.where(z <= 0, 0.0, z), k)


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


def _active(values: Tensor, indices: Tensor, num_factors: int) -> Tensor:
    """Each row's active factors, once each; num_factors where there is none."""
    factors = torch.where(values > 0, indices, num_factors).sort(dim=1).values
    first = torch.ones_like(factors, dtype=torch.bool)
    first[:, 1:] = factors[:, 1:] != factors[:, :-1]
    return torch.where(first, factors, num_factors)


def factor_counts(values: Tensor, indices: Tensor, num_factors: int) -> Tensor:
    """See :func:`pysel.factor_counts`."""
    _fake.factor_counts(values, indices, num_factors)
    _check_indices("factor_counts", indices, num_factors)
    return torch.bincount(_active(values, indices, num_factors).reshape(-1), minlength=num_factors + 1)[:num_factors]


def factor_scores(
    values: Tensor, indices: Tensor, rate: Tensor, eps: float, validate: bool | None
) -> tuple[Tensor, Tensor]:
    """See :func:`pysel.factor_scores`."""
    op = "factor_scores"
    _fake.factor_scores(values, indices, rate, eps, validate)
    _check_indices(op, indices, rate.shape[0])
    if validate is not False:
        outside = ~((rate >= 0) & (rate <= 1))
        if bool(outside.any()):
            raise ValueError(f"{op}: rate must be between 0 and 1, got {float(rate[outside][0]):g}")
    factors = _active(values, indices, rate.shape[0])
    count = (factors < rate.shape[0]).sum(1).clamp_min(1)

    def mean(table: Tensor) -> Tensor:
        padded = F.pad(table.double(), (0, 1))
        return (padded[factors].sum(1) / count).to(rate.dtype)

    return mean(rate), mean(-log(rate + eps))


def select(scores: Tensor, k: int, largest: bool, validate: bool | None) -> Tensor:
    """See :func:`pysel.select`."""
    _fake.select(scores, k, largest, validate)
    if validate is not False and scores.dtype.is_floating_point and bool(torch.isnan(scores).any()):
        raise ValueError("select: scores must not be NaN, got NaN")
    order = _descending(scores) if largest else scores.sort(stable=True).indices
    return order[:k].sort().values
