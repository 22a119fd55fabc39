"""The TopK sparse autoencoder, after Gao et al., arXiv 2406.04093."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree

from pysel import _checks, _inputs, ops
from pysel.random import as_key

__all__ = ["SAEOutput", "TopKSAE", "geometric_median", "normal"]

_ACTIVATIONS = ("relu", "abs")
_FORM = "_extra_state"  # torch's name for what get_extra_state returns


def normal(shape: tuple[int, ...], *, key: Tensor | int, like: Tensor | None = None) -> Tensor:
    """Standard normal numbers as a function of a key, with no generator involved.

    Args:
        shape: of the result.
        key: int64 [2] or an int.
        like: gives dtype and device; float32 on the CPU by default.

    Returns:
        floating point, ``shape``.

    Example:
        >>> import pysel
        >>> normal((2, 3), key=pysel.key(0)).shape
        torch.Size([2, 3])
    """
    like = torch.empty(0, dtype=torch.float32, device="cpu") if like is None else like
    zeros = torch.zeros(shape, dtype=_wide(like), device=like.device)
    # The sigmoid of a logistic draw is uniform on (0, 1), ends excluded.
    uniform = ops.gumbel_sigmoid(zeros, key=key)
    return torch.special.ndtri(uniform).to(like.dtype)


@torch.no_grad()
def geometric_median(x: Any, iterations: int = 100, tolerance: float = 1e-6, max_rows: int = 65536) -> Tensor:
    """The point with the least summed distance to the rows of ``x``, by Weiszfeld's iteration.

    Unlike the mean it does not move far when a few rows are wild.

    Args:
        x: [N, d] floating point, a tensor or an array.
        iterations: at most this many.
        tolerance: stop when a step is shorter than this fraction of the mean distance.
        max_rows: larger inputs are thinned to at most this many evenly spaced rows; a median needs no more.

    Returns:
        [d], the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``x`` is not a matrix with rows, or one of them is not finite.

    Example:
        >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round()
        tensor([1.])
    """
    x = _matrix("geometric_median", "x", x)
    iterations = _checks.in_range("geometric_median", "iterations", iterations, 0)
    tolerance = _checks.within("geometric_median", "tolerance", tolerance, "[0, inf)")
    max_rows = _checks.in_range("geometric_median", "max_rows", max_rows, 1)
    rows = x[:: -(-x.size(0) // max_rows)].to(_wide(x))
    unit = power_of_two(rows.abs().max())  # squares of distances must neither overflow nor vanish
    rows = rows / unit
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
    return (median * unit).to(x.dtype)


class SAEOutput(NamedTuple):
    """What `TopKSAE` returns."""

    reconstruction: Tensor  # [..., d]
    values: Tensor  # [..., k] activations, largest (in magnitude) first; 0 where fewer than k units were positive
    indices: Tensor  # [..., k] int64 units


# Without a name to write, torch.export.save refuses a model that returns it.
_pytree._register_namedtuple(SAEOutput, serialized_type_name="pysel.SAEOutput")


class TopKSAE(nn.Module):
    """Sparse autoencoder that keeps the k largest activations of each row.

    ``z = TopK(relu(W_e (x - b) + b_e))`` and ``xhat = W_d^T z + b``, after Gao et al., arXiv 2406.04093:
    decoder rows of unit norm, the encoder starting as the decoder's transpose, and an auxiliary loss through
    which units that have gone dead model what the living ones leave over. The [B, num_factors] activations
    are never written: `encode` yields the k kept ones, and gradients flow through these alone.

    The form of arXiv 2603.04981 is ``activation="abs", tied=True, revive="dead"``: no relu, the k largest magnitudes
    with their signs, one matrix for both directions, and dead units that must each rebuild the row of the batch to
    which they respond most. A unit is then active where its value is not 0: count ``values.abs()``.

    Inputs of any floating-point dtype are centred in the wider of their dtype and the parameters', then computed in the
    parameters'. Starting values come from ``key``; data-dependent ones (``b``, the loss's scale) from `initialise_`.

    Under DistributedDataParallel call the wrapper, ``ddp(x, loss=True)``: it does not see a call of `loss`, and the
    replicas would drift apart. Set ``process_group`` to the group of the replicas, so that a unit is dead where all of
    them say so. ``torch.jit.trace`` works under ``torch.no_grad()``; ``torch.export`` anywhere.

    Args:
        in_features: d.
        num_factors: number of units, H.
        k: activations kept, 1 to H.
        activation: "relu", or "abs" for the k largest magnitudes.
        tied: decoder and encoder are one parameter.
        revive: what dead units learn from: "aux", together, what the living ones leave over (arXiv 2406.04093; damped
            when fewer than ``aux_k`` are dead); "dead", each alone, the row on which its pre-activation is largest
            (arXiv 2603.04981); None, nothing.
        aux_k: dead units that model the residual; default min(H, d // 2), at least 1.
        aux_weight: weight of either loss; 1/32 in the first paper, not told in the second.
        dead_after: a unit is dead after this many samples without activity (ours to choose; 1e7 tokens in the
            paper).
        key: int64 [2]; drawn from torch's default generator when missing.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: a size is not an int, or an argument is out of range.

    Example:
        >>> import pysel
        >>> sae = TopKSAE(8, 32, 4, key=pysel.key(0))
        >>> reconstruction, values, indices = sae(torch.ones(5, 8))
        >>> reconstruction.shape, indices.shape
        (torch.Size([5, 8]), torch.Size([5, 4]))
    """

    decoder: nn.Parameter  # [H, d]
    encoder: nn.Parameter  # [H, d]; the decoder itself when tied
    encoder_bias: nn.Parameter  # [H]
    bias: nn.Parameter  # [d]
    silent: Tensor  # [H] int64, samples since a unit was last active
    spread: Tensor  # [] root mean square of the features about their mean; scales the loss
    process_group: dist.ProcessGroup | None = None

    def __init__(
        self,
        in_features: int,
        num_factors: int,
        k: int,
        *,
        activation: str = "relu",
        tied: bool = False,
        revive: str | None = "aux",
        aux_k: int | None = None,
        aux_weight: float = 1 / 32,
        dead_after: int = 1_000_000,
        key: Tensor | int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _checks.in_range("TopKSAE", "in_features", in_features, 1)
        self.num_factors = _checks.in_range("TopKSAE", "num_factors", num_factors, 1)
        self.k = _checks.in_range("TopKSAE", "k", k, 1, self.num_factors)
        _checks.choice("TopKSAE", "activation", activation, _ACTIVATIONS)
        if revive is not None:
            _checks.choice("TopKSAE", "revive", revive, ("aux", "dead"))
        self.activation, self.tied, self.revive = activation, bool(tied), revive
        aux_k = max(1, min(self.num_factors, self.in_features // 2)) if aux_k is None else aux_k
        self.aux_k = _checks.in_range("TopKSAE", "aux_k", aux_k, 1, self.num_factors)
        self.aux_weight = _checks.within("TopKSAE", "aux_weight", aux_weight, "[0, inf)")
        self.dead_after = _checks.in_range("TopKSAE", "dead_after", dead_after, 1)

        like = torch.empty(0, device=device, dtype=dtype)
        key = as_key("TopKSAE", key)
        directions = nn.functional.normalize(normal((self.num_factors, self.in_features), key=key, like=like), dim=1)
        self.decoder = nn.Parameter(directions)
        self.encoder = self.decoder if tied else nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(like.new_zeros(self.num_factors))
        self.bias = nn.Parameter(like.new_zeros(self.in_features))
        self.register_buffer("silent", torch.zeros(self.num_factors, dtype=torch.int64, device=like.device))
        self.register_buffer("spread", torch.ones((), dtype=_wide(like), device=like.device))

    def get_extra_state(self) -> Tensor:
        """k, activation and tied, which a state's other tensors do not tell; a tensor, for files of tensors alone."""
        return torch.tensor([self.k, _ACTIVATIONS.index(self.activation), self.tied], dtype=torch.int64, device="cpu")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `torch.nn.Module.load_state_dict`; a state that is refused changes nothing.

        Raises:
            RuntimeError: the state is of a model with another k, activation or tied, or of other sizes. A state
                without the entry ``_extra_state`` does not tell the first three.
        """
        if strict:
            own = self.state_dict().keys()
            faults = [f"{name} must be there, got none" for name in own - state_dict.keys() - {_FORM}]
            faults += [f"{name} is unknown" for name in state_dict.keys() - own]
            if faults:
                raise RuntimeError(f"TopKSAE: state_dict: {'; '.join(sorted(faults))}")
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """What `load_state_dict` calls, of this module or of one that it is a part of."""
        form = state_dict.pop(prefix + _FORM, None)
        faults = [] if form is None else self._other_form(form)
        for name, own in (*self.named_parameters(remove_duplicate=False), *self.named_buffers()):
            value = state_dict.get(prefix + name, own)
            if not isinstance(value, Tensor):
                faults.append(f"{name} must be a Tensor, got {type(value).__name__}")
            elif value.shape != own.shape:
                faults.append(f"{name} must have shape {list(own.shape)}, got {list(value.shape)}")
        if self.tied and not faults and {prefix + "encoder", prefix + "decoder"} <= state_dict.keys():
            encoder, decoder = state_dict[prefix + "encoder"], state_dict[prefix + "decoder"]
            if not encoder.is_meta and not torch.equal(encoder, decoder):
                faults.append("encoder must equal decoder, which it is tied to")
        if faults:
            error_msgs += [f"TopKSAE: state_dict: {prefix}{fault}" for fault in faults]
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.tied:
            self.encoder = self.decoder  # assign=True has made two of them

    def _other_form(self, form: Any) -> list[str]:
        """In what the model differs from one whose `get_extra_state` this is."""
        if not isinstance(form, Tensor) or form.dtype != torch.int64 or form.shape != (3,):
            told = f"{form.dtype} {list(form.shape)}" if isinstance(form, Tensor) else type(form).__name__
            return [f"{_FORM} must be int64 [3], got {told}"]
        k, activation, tied = form.tolist()
        theirs = {"k": k, "activation": dict(enumerate(_ACTIVATIONS)).get(activation), "tied": bool(tied)}
        return [f"{n} must be {getattr(self, n)}, got {t}" for n, t in theirs.items() if getattr(self, n) != t]

    def extra_repr(self) -> str:
        options = ", activation='abs'" * (self.activation == "abs") + ", tied=True" * self.tied
        return f"{self.in_features}, {self.num_factors}, k={self.k}{options}"

    @property
    def variance(self) -> Tensor:
        """Variance of the features, summed over them, of which `loss` is a fraction: float64 []."""
        return self.spread.double().square() * self.in_features

    @torch.no_grad()
    def initialise_(self, x: Any) -> TopKSAE:
        """Set the bias to the geometric median of ``x`` [N, d], and the loss's scale to its variance."""
        x = _matrix("TopKSAE.initialise_", "x", x)
        self.bias.copy_(geometric_median(x))
        self.spread.fill_(root_mean_square(x) or 1.0)  # constant data has no scale of its own
        return self

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The k largest activations of each row and their units.

        Args:
            x: [..., d] floating point.

        Returns:
            values [..., k], largest (in magnitude) first, and indices [..., k] int64.
        """
        values, indices = self._encode(self._centre(x), self.encoder, self.encoder_bias, self.k)
        shape = (*x.shape[:-1], self.k)
        return values.reshape(shape), indices.reshape(shape)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """Rows [..., d] from activations [..., k] of units [..., k]."""
        return ops.sparse_decode(values, indices, self.decoder, self.bias)

    def forward(self, x: Tensor, loss: bool = False) -> SAEOutput | Tensor:
        """Encode and decode.

        Args:
            x: [..., d] floating point.
            loss: return `loss` instead.

        Returns:
            `SAEOutput` of reconstruction [..., d], values [..., k] and indices [..., k].
        """
        if loss:
            return self.loss(x)
        values, indices = self.encode(x)
        return SAEOutput(self.decode(values, indices), values, indices)

    def loss(self, x: Tensor) -> Tensor:
        """Squared error per row over the data's variance, plus the loss of the dead units when training.

        In training mode this also keeps account of which units are dead.

        Args:
            x: [..., d] floating point.

        Returns:
            scalar, float32 or float64; without the loss of the dead it is the fraction of variance unexplained.
        """
        centred = self._centre(x)
        values, indices = self._encode(centred, self.encoder, self.encoder_bias, self.k)
        residual = centred - ops.sparse_decode(values, indices, self.decoder)
        loss = self._mean_square(residual)
        if not self.training:
            return loss
        self._account(self.counts(values, indices), residual.size(0))
        if self.revive is None or self.aux_weight == 0:
            return loss
        dead = self.dead_units()
        if dead.numel() == 0:
            return loss
        # Detached, so that dead units learn and nothing else moves to make it easier.
        if self.revive == "aux":
            revival = self._model_residual(centred.detach(), residual.detach(), dead)
        else:
            revival = self._rebuild_rows(centred.detach(), dead)
        return loss + self.aux_weight * revival

    def counts(self, values: Tensor, indices: Tensor) -> Tensor:
        """int64 [H], in how many rows of a code each unit is active (not 0)."""
        values = values.detach()
        return ops.factor_counts(values.abs() if self.activation == "abs" else values, indices, self.num_factors)

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

    def _centre(self, x: Tensor) -> Tensor:
        """``x - b`` as rows [B, d] of the parameters' dtype."""
        if torch.jit.is_tracing() and torch.is_grad_enabled():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError("TopKSAE: torch.jit.trace records no gradients: trace it under torch.no_grad()")
        _checks.tensor("TopKSAE", "x", x)
        if x.dim() == 0 or x.size(-1) != self.in_features:
            raise ValueError(f"TopKSAE: x must be [..., {self.in_features}], got shape {list(x.shape)}")
        return (x.reshape(-1, self.in_features) - self.bias).to(self.bias.dtype)

    def _encode(self, centred: Tensor, encoder: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return ops.topk_encode(centred, encoder, bias, k, activation=self.activation)

    def _account(self, counts: Tensor, rows: int) -> None:
        """Note which units so many rows have left silent, those of all replicas together."""
        if self.process_group is not None:
            counts = torch.cat([counts, counts.new_tensor([rows])])
            dist.all_reduce(counts, group=self.process_group)
            counts, rows = counts[:-1], int(counts[-1])
        self.silent.add_(rows).masked_fill_(counts > 0, 0)

    def _mean_square(self, residual: Tensor) -> Tensor:
        """Squared error per row over the variance; in units of the spread, whose squares fit every dtype."""
        wide = _wide(residual)
        return (residual.to(wide) / self.spread.to(wide)).square().mean()

    def _model_residual(self, centred: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """AuxK: the ``aux_k`` most active of the dead units model the residual together."""
        k = min(self.aux_k, dead.numel())
        values, indices = self._encode(centred, self.encoder[dead], self.encoder_bias[dead], k)
        missing = residual - ops.sparse_decode(values, indices, self.decoder[dead])
        return self._mean_square(missing) * (k / self.aux_k)

    def _rebuild_rows(self, centred: Tensor, dead: Tensor) -> Tensor:
        """Each dead unit alone rebuilds the row on which its pre-activation is largest, counted as one row of the
        batch."""
        with torch.no_grad():  # a part at a time: [B, H] is not to exist when all are dead
            best = torch.cat([(centred @ self.encoder[part].mT).argmax(0) for part in dead.split(256)])
        rows = centred[best]
        # Without relu: a unit that responds to no row at all is the one that needs a gradient most.
        activation = (rows * self.encoder[dead]).sum(1, keepdim=True) + self.encoder_bias[dead, None]
        return self._mean_square(rows - activation * self.decoder[dead]) * (dead.numel() / centred.size(0))


@torch.no_grad()
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column of ``x`` [N, d]: float64 [d], a part of the rows at a time."""
    n, d = x.shape
    origin = x[0].double()  # so that little cancels where the mean is far from 0
    total, squares = torch.zeros(2, d, dtype=torch.float64, device=x.device)
    for rows in x.split(8192):
        wide = rows.double() - origin
        total += wide.sum(0)
        squares += wide.square().sum(0)
    mean = total / n
    return mean + origin, (squares / n - mean.square()).clamp_min(0)


def root_mean_square(x: Tensor) -> float:
    """Root mean square of the elements of ``x`` [N, d] about the means of their columns; 0 if rounding explains it."""
    mean, variance = moments(x)
    spread = float(variance.mean()) ** 0.5
    return spread if spread > torch.finfo(_wide(x)).eps * float(mean.square().mean()) ** 0.5 else 0.0


def power_of_two(x: Tensor) -> Tensor:
    """The power of two at or below ``x`` [], by which division is exact; 1 for 0."""
    _, exponent = torch.frexp(x)
    return torch.where(x > 0, torch.ldexp(torch.ones_like(x), exponent - 1), 1)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums over ``x``: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _matrix(op: str, name: str, value: Any) -> Tensor:
    """Finite rows [N, d], N > 0, of a floating-point dtype."""
    x = _inputs.tensor(op, name, value)
    _checks.tensor(op, name, x)
    if x.dim() != 2 or x.size(0) == 0:
        raise ValueError(f"{op}: {name} must be a matrix [N, d] with at least one row, got shape {list(x.shape)}")
    _inputs.finite(op, name, x)
    return x
