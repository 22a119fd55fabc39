"""The TopK sparse autoencoder, after Gao et al., arXiv 2406.04093."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pysel import _checks, ops
from pysel.random import key as new_key

__all__ = ["SAEOutput", "TopKSAE", "geometric_median", "normal"]


def normal(shape: tuple[int, ...], *, key: Tensor, like: Tensor | None = None) -> Tensor:
    """Standard normal numbers as a function of a key, with no generator involved.

    Args:
        shape: of the result.
        key: int64 [2].
        like: gives dtype and device; float32 on the CPU by default.

    Returns:
        floating point, ``shape``.

    Example:
        >>> import pysel
        >>> normal((2, 3), key=pysel.key(0)).shape
        torch.Size([2, 3])
    """
    like = torch.empty(0) if like is None else like
    zeros = torch.zeros(shape, dtype=_wide(like), device=like.device)
    # The sigmoid of a logistic draw is uniform on (0, 1), ends excluded.
    uniform = ops.gumbel_sigmoid(zeros, key=key)
    return torch.special.ndtri(uniform).to(like.dtype)


@torch.no_grad()
def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-6, max_rows: int = 65536) -> Tensor:
    """The point with the least summed distance to the rows of ``x``, by Weiszfeld's iteration.

    Unlike the mean it does not move far when a few rows are wild.

    Args:
        x: [N, d] floating point.
        iterations: at most this many.
        tolerance: stop when a step is shorter than this fraction of the mean distance.
        max_rows: larger inputs are thinned to at most this many evenly spaced rows; a median needs no more.

    Returns:
        [d], the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: ``x`` is not a matrix with rows.

    Example:
        >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round()
        tensor([1.])
    """
    _check_matrix("geometric_median", "x", x)
    rows = x[:: -(-x.size(0) // max_rows)].to(_wide(x))
    median = rows.mean(0)
    for _ in range(iterations):
        distance = torch.linalg.vector_norm(rows - median, dim=1)
        scale = distance.mean()
        if scale == 0:
            break
        inverse = 1 / distance.clamp_min(1e-7 * scale)  # the median may be one of the rows
        previous, median = median, (inverse @ rows) / inverse.sum()
        if torch.linalg.vector_norm(median - previous) <= tolerance * scale:
            break
    return median.to(x.dtype)


class SAEOutput(NamedTuple):
    """What `TopKSAE` returns."""

    reconstruction: Tensor  # [B, d]
    values: Tensor  # [B, k] activations, descending; 0 where fewer than k units were positive
    indices: Tensor  # [B, k] int64 units


class TopKSAE(nn.Module):
    """Sparse autoencoder that keeps the k largest activations of each row.

    ``z = TopK(relu(W_e (x - b) + b_e))`` and ``xhat = W_d^T z + b``, after Gao et al., arXiv 2406.04093:
    decoder rows of unit norm, the encoder starting as the decoder's transpose, and an auxiliary loss through
    which units that have gone dead model what the living ones leave over. The [B, num_factors] activations
    are never written: `encode` yields the k kept ones, and gradients flow through these alone.

    Starting values come from ``key``; data-dependent ones (``b``, the loss's scale) from `initialise_`.

    Args:
        in_features: d.
        num_factors: number of units, H.
        k: activations kept, 1 to H.
        aux_k: dead units that model the residual; default min(H, d // 2), at least 1.
        aux_weight: weight of that loss; 1/32 in the paper.
        dead_after: a unit is dead after this many samples without activity (ours to choose; 1e7 tokens in the
            paper).
        key: int64 [2]; drawn from torch's default generator when missing.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: a size is not an int or is out of range.

    Example:
        >>> import pysel
        >>> sae = TopKSAE(8, 32, 4, key=pysel.key(0))
        >>> reconstruction, values, indices = sae(torch.ones(5, 8))
        >>> reconstruction.shape, indices.shape
        (torch.Size([5, 8]), torch.Size([5, 4]))
    """

    decoder: nn.Parameter  # [H, d]
    encoder: nn.Parameter  # [H, d]
    encoder_bias: nn.Parameter  # [H]
    bias: nn.Parameter  # [d]
    silent: Tensor  # [H] int64, samples since a unit was last active
    variance: Tensor  # [] summed over features; scales the loss

    def __init__(
        self,
        in_features: int,
        num_factors: int,
        k: int,
        *,
        aux_k: int | None = None,
        aux_weight: float = 1 / 32,
        dead_after: int = 1_000_000,
        key: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.in_range("TopKSAE", "in_features", in_features, 1, None)
        _checks.in_range("TopKSAE", "num_factors", num_factors, 1, None)
        _checks.in_range("TopKSAE", "k", k, 1, num_factors)
        aux_k = max(1, min(num_factors, in_features // 2)) if aux_k is None else aux_k
        _checks.in_range("TopKSAE", "aux_k", aux_k, 1, num_factors)
        _checks.in_range("TopKSAE", "dead_after", dead_after, 1, None)
        self.in_features, self.num_factors, self.k = in_features, num_factors, k
        self.aux_k, self.aux_weight, self.dead_after = aux_k, aux_weight, dead_after

        like = torch.empty(0, device=device, dtype=dtype)
        key = new_key(device="cpu") if key is None else key
        directions = nn.functional.normalize(normal((num_factors, in_features), key=key, like=like), dim=1)
        self.decoder = nn.Parameter(directions)
        self.encoder = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(like.new_zeros(num_factors))
        self.bias = nn.Parameter(like.new_zeros(in_features))
        self.register_buffer("silent", torch.zeros(num_factors, dtype=torch.int64, device=device))
        self.register_buffer("variance", torch.ones((), dtype=_wide(like), device=like.device))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.num_factors}, k={self.k}"

    @torch.no_grad()
    def initialise_(self, x: Tensor) -> TopKSAE:
        """Set the bias to the geometric median of ``x`` [N, d] and the loss's scale to its variance."""
        self.bias.copy_(geometric_median(x))
        wide = x.to(_wide(x))
        total = wide.var(0, correction=0).sum()
        rounding = torch.finfo(wide.dtype).eps ** 2 * wide.square().mean(0).sum()
        self.variance.copy_(torch.where(total > rounding, total, 1))  # constant data has no scale of its own
        return self

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest activations of each row and their units.

        Args:
            x: [B, d].

        Returns:
            values [B, k], descending, and indices [B, k] int64.
        """
        return ops.topk_encode(x - self.bias, self.encoder, self.encoder_bias, self.k)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """Rows [B, d] from activations [B, k] of units [B, k]."""
        return ops.sparse_decode(values, indices, self.decoder, self.bias)

    def forward(self, x: Tensor) -> SAEOutput:
        """Encode and decode.

        Args:
            x: [B, d].

        Returns:
            `SAEOutput` of reconstruction [B, d], values [B, k] and indices [B, k].
        """
        values, indices = self.encode(x)
        return SAEOutput(self.decode(values, indices), values, indices)

    def loss(self, x: Tensor) -> Tensor:
        """Squared error per row over the data's variance, plus the auxiliary loss when training.

        In training mode this also keeps account of which units are dead.

        Args:
            x: [B, d].

        Returns:
            scalar; without the auxiliary term it is the fraction of variance unexplained.
        """
        reconstruction, values, indices = self(x)
        residual = x - reconstruction
        scale = x.size(0) * self.variance
        loss = residual.square().sum(dtype=_wide(x)) / scale
        if not self.training:
            return loss

        active = ops.factor_counts(values.detach(), indices, self.num_factors) > 0
        self.silent.add_(x.size(0)).masked_fill_(active, 0)
        dead = self.dead_units()
        if dead.numel() == 0:
            return loss
        # The target is detached: dead units learn to explain the residual, nothing else moves to make it
        # easier.
        target = residual.detach()
        aux_values, aux_indices = ops.topk_encode(
            x - self.bias, self.encoder[dead], self.encoder_bias[dead], min(self.aux_k, dead.numel())
        )
        missing = target - ops.sparse_decode(aux_values, aux_indices, self.decoder[dead])
        return loss + self.aux_weight * missing.square().sum(dtype=_wide(x)) / scale

    def dead_units(self) -> Tensor:
        """int64 indices of units without activity for ``dead_after`` training samples."""
        return torch.nonzero(self.silent >= self.dead_after).flatten()

    @torch.no_grad()
    def project_decoder_grad_(self) -> None:
        """Remove from the decoder's gradient what would only change the length of its rows."""
        if self.decoder.grad is not None:
            along = (self.decoder.grad * self.decoder).sum(1, keepdim=True)
            self.decoder.grad.addcmul_(along, self.decoder, value=-1)

    @torch.no_grad()
    def normalise_decoder_(self) -> None:
        """Give every decoder row unit length again after a step."""
        self.decoder.copy_(nn.functional.normalize(self.decoder, dim=1))


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums over ``x``: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_matrix(op: str, name: str, value: Tensor) -> None:
    _checks.tensor(op, name, value)
    if value.dim() != 2 or value.size(0) == 0:
        raise ValueError(f"{op}: {name} must be a matrix [N, d] with at least one row, got shape {list(value.shape)}")
