"""DivBS: of a batch the samples whose gradients together say most of what the whole batch's sum does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key
from pysel.selection.state import lasting

PAIRS_AT_ONCE = 4096  # rows of which the products of all pairs take 128 MB


@lasting
def diverse_batch(errors: Any, features: Any, k: int, *, key: Tensor | int | None = None) -> Tensor:
    """Pick samples of a batch whose last-layer gradients add up to those of all, and are not alike.

    The gradient of sample i for the last layer's weight is the outer product ``g_i`` of its error, ``softmax(logits) -
    onehot(labels)``, and its features. One sample after the other is drawn with probability in proportion to
    ``|<g_i, r>|``, where r starts as the sum of all gradients and loses its component along each gradient picked, made
    orthogonal to those before it (Gram-Schmidt): what a sample shares with one that was picked counts no more.

    No [B, C * d] gradients are made: ``<g_i, g_j> = (error_i . error_j) (feature_i . feature_j)``, and all that the
    rule needs are these: in float64, of all pairs at once where B is at most 8 k and 4096, else O(B C d) operations for
    the first r and O(B (C + d)) a pick. Gram-Schmidt takes O(B k) a pick and memory for B k numbers. Nothing is read
    back from the device.

    Ours: no sample is picked twice, and once r is nothing but rounding, because what was picked spans the sum, the rest
    is drawn uniformly.

    Args:
        errors: [B, C] of any real dtype, tensor or array: the loss's gradient with respect to the logits.
        features: [B, d], the last layer's input.
        k: how many, between 1 and B.
        key: int64 [2] or an int; drawn from torch's default generator when missing. Another one for each batch:
            ``fold_in(key, step)``.

    Returns:
        int64 [k], on the device of ``errors``, in the order of the picks.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: shapes that do not match, a row that is not finite, or ``k`` out of range.

    Example:
        >>> errors = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-0.5, 0.5]])
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> picks = diverse_batch(errors, features, 2, key=0)
        >>> 2 in picks  # one of the first two alike, and the other kind
        True

    Source: Hong et al., arXiv 2406.04872.
    """
    op = "diverse_batch"
    e = _scaled(_inputs.matrix(op, "errors", errors))
    f = _scaled(_inputs.matrix(op, "features", features)).to(e.device)
    b = len(e)
    if len(f) != b:
        raise ValueError(f"{op}: features must have the rows of errors, {b}, got {len(f)}")
    k = _checks.in_range(op, "k", k, 1, b)
    key = as_key(op, key)
    # A product makes <g_i, g_j> of all pairs in less time than the rows of those picked, unless few are picked of many.
    gram = (e @ e.mT).mul_(f @ f.mT) if b <= min(8 * k, PAIRS_AT_ONCE) else None
    pull = ((e @ (e.mT @ f)).mul_(f) if gram is None else gram).sum(1)[None]  # [1, B]: <g_i, r>
    rounding = 1e-12 * pull.abs().amax().clamp_min(torch.finfo(e.dtype).tiny)
    least = 1e-10 * (e.square().sum(1) * f.square().sum(1))  # squares below are rounding
    free = torch.zeros_like(pull)  # -inf: picked
    basis = e.new_zeros(k, b)  # <g_i, u_j> of the orthonormal u_j
    picks = []
    for j in range(k):
        i = ops.gumbel_argmax(pull.abs().clamp_min_(rounding).log_().add_(free), key=key, start=j * b)  # [1]
        picks.append(i)
        free.index_fill_(1, i, -torch.inf)
        along = (e[i] @ e.mT).mul_(f[i] @ f.mT) if gram is None else gram[i]
        along = along.addmm_(basis[:j, i].mT, basis[:j], alpha=-1)  # <g, g_i's new part>
        square = along[:, i]
        # 0 where g_i is a combination of those before it
        scale = torch.where(square > least[i], square, torch.inf).rsqrt_()
        torch.mul(along, scale, out=basis[j : j + 1])
        pull.addcmul_(along, pull[:, i] * scale * scale, value=-1)
    return torch.cat(picks)


def _scaled(rows: Tensor) -> Tensor:
    """float64, the largest number 1: so that no product overflows. The rule asks for ratios alone."""
    rows = rows.double()
    return rows / rows.abs().amax().clamp_min(torch.finfo(rows.dtype).tiny)
