"""DivBS: of a batch the samples whose gradients together say most of what the whole batch's sum does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key
from pysel.selection.state import lasting


@lasting
def diverse_batch(errors: Any, features: Any, k: int, *, key: Tensor | int | None = None) -> Tensor:
    """Pick samples of a batch whose last-layer gradients add up to those of all, and are not alike.

    The gradient of sample i for the last layer's weight is the outer product ``g_i`` of its error, ``softmax(logits) -
    onehot(labels)``, and its features. One sample after the other is drawn with probability in proportion to
    ``|<g_i, r>|``, where r starts as the sum of all gradients and loses its component along each gradient picked, made
    orthogonal to those before it (Gram-Schmidt): what a sample shares with one that was picked counts no more.

    No [B, C * d] gradients are made: ``<g_i, g_j> = (error_i . error_j) (feature_i . feature_j)``, and all that the
    rule needs are these. The first r takes O(B C d) or O(B^2 (C + d)) operations, whichever is less, and a pick
    O(B (C + d + k)), in float64, and reads nothing back from the device.

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
    (b, c), d = e.shape, f.size(1)
    if len(f) != b:
        raise ValueError(f"{op}: features must have the rows of errors, {b}, got {len(f)}")
    k = _checks.in_range(op, "k", k, 1, b)
    key = as_key(op, key)
    squares = e.square().sum(1) * f.square().sum(1)
    pull = ((e @ e.mT) * (f @ f.mT)).sum(1) if b * (c + d) < 2 * c * d else ((e @ (e.mT @ f)) * f).sum(1)  # <g_i, r>
    rounding = 1e-12 * pull.abs().amax().clamp_min(torch.finfo(e.dtype).tiny)
    free = torch.zeros_like(pull)  # -inf: picked
    basis = e.new_zeros(b, k)  # <g_i, u_j> of the orthonormal u_j
    picks = []
    for j in range(k):
        i = ops.gumbel_argmax((pull.abs().clamp_min(rounding).log() + free)[None], key=key, start=j * b)  # [1]
        picks.append(i)
        free = free.index_fill(0, i, -torch.inf)
        along = (e @ e[i].mT).mul_(f @ f[i].mT).sub_(basis[:, :j] @ basis[i, :j].mT).squeeze(1)  # <g, g_i's new part>
        square = along[i]
        new = square > 1e-10 * squares[i]  # else g_i is a combination of those before it
        basis[:, j] = torch.where(new, along * square.rsqrt(), 0.0)
        pull = pull - torch.where(new, along * (pull[i] / square), 0.0)
    return torch.cat(picks)


def _scaled(rows: Tensor) -> Tensor:
    """float64, the largest number 1: so that no product overflows. The rule asks for ratios alone."""
    rows = rows.double()
    return rows / rows.abs().amax().clamp_min(torch.finfo(rows.dtype).tiny)
