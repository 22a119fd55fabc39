"""What a learned selector is made of: a network from samples to logits, and gates with an exact budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysel import _checks
from pysel.nn import normal
from pysel.random import as_key, fold_in, gumbel_at


def gumbel_khot(
    logits: Tensor,
    k: int,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    *,
    key: Tensor | int | None = None,
    start: int = 0,
) -> Tensor:
    """Gates in (0, 1) that add up to ``k``: the relaxation of the ``k`` largest of ``logits + Gumbel noise``.

    With z the noisy logits, the gates are ``sigmoid((z_i - nu) / tau)``, and nu is where they add up to k: what
    maximises ``<w, z>`` plus tau times the entropies of the w_i under that budget. As tau falls they become the k
    largest, which are a draw of k without replacement in proportion to ``exp(logits)``. The gradient is that of the
    gates with nu moving along.

    Args:
        logits: [B] floating point.
        k: the budget, 0 to B.
        tau: temperature above 0, a number or a 0-d tensor.
        hard: exactly k gates of 1 and the others 0, with the soft gates' gradient.
        key: int64 [2] or an int; drawn from torch's default generator when missing.
        start: number of the first element, for shards.

    Returns:
        [B] gates.

    Raises:
        TypeError, ValueError: ``logits`` are not a vector, or ``k`` is out of range.

    Example:
        >>> import pysel
        >>> gates = gumbel_khot(torch.zeros(5), 2, tau=0.5, key=pysel.key(0))
        >>> round(gates.sum().item(), 5), gumbel_khot(torch.zeros(5), 2, hard=True, key=pysel.key(0)).sum()
        (2.0, tensor(2.))

    Source: the projection of Amos, Koltun and Kolter, arXiv 1906.08707; with noise and annealed, ours.
    """
    _checks.tensor("gumbel_khot", "logits", logits)
    if logits.dim() != 1:
        raise ValueError(f"gumbel_khot: logits must be [B], got {list(logits.shape)}")
    k = _checks.in_range("gumbel_khot", "k", k, 0, logits.numel())
    places = torch.arange(start, start + logits.numel(), device=logits.device)
    noise = gumbel_at(places, as_key("gumbel_khot", key), torch.float64) if places.numel() else logits.double()
    noisy = logits.double() + noise
    gates = budgeted(noisy, k, tau).to(logits.dtype)
    if hard:
        best = torch.zeros_like(gates).index_fill(0, noisy.topk(k).indices, 1)
        gates = best + (gates - gates.detach())
    return gates


def budgeted(logits: Tensor, k: int, tau: float | Tensor = 1.0) -> Tensor:
    """``sigmoid((logits - nu) / tau)`` [B] float64 with the nu for which they add up to ``k``; differentiable."""
    n = logits.numel()
    if k in (0, n):
        return torch.full_like(logits, float(k > 0))
    z = logits.double() / tau
    with torch.no_grad():
        # all gates at most k / n when nu is above every logit by this much, and at least k / n when below
        apart = torch.logit(torch.tensor(1 - k / n, dtype=torch.float64, device=z.device))
        low, high = z.min() + apart, z.max() + apart
        for _ in range(60):
            middle = (low + high) / 2
            above = torch.sigmoid(z - middle).sum() > k
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        nu = (low + high) / 2
        slope = torch.sigmoid(z - nu)
        slope = (slope * (1 - slope)).sum().clamp_min(torch.finfo(torch.float64).tiny)
    # one step of Newton's method changes nothing in nu's value and gives it its gradient
    nu = nu + (torch.sigmoid(z - nu).sum() - k) / slope
    return torch.sigmoid(z - nu)


def perceptron(widths: Sequence[int], *, key: Tensor | int) -> nn.Sequential:
    """The default selector network: standardised inputs, ReLU layers, one logit; all logits are 0 at first.

    Args:
        widths: of the input and of the hidden layers.
        key: int64 [2] or an int, for the weights.

    Example:
        >>> perceptron((4, 8), key=0)(torch.randn(3, 4)).flatten().tolist()
        [0.0, 0.0, 0.0]
    """
    key = as_key("perceptron", key)
    with torch.device("cpu"):
        # what the data look like is learned from the batches: every sample counts the same
        layers: list[nn.Module] = [
            nn.BatchNorm1d(widths[0], affine=False, momentum=None, eps=1e-8, dtype=torch.float32)
        ]
        for depth, (narrow, wide) in enumerate(zip(widths, [*widths[1:], 1], strict=True)):
            linear = nn.utils.skip_init(nn.Linear, narrow, wide, dtype=torch.float32)
            last = depth == len(widths) - 1
            with torch.no_grad():
                weight = normal((wide, narrow), key=fold_in(key, depth)) * (2 / narrow) ** 0.5
                linear.weight.copy_(torch.zeros_like(weight) if last else weight)
                linear.bias.zero_()
            layers += [linear] if last else [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def with_label(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """[B, d + C]: inputs, flattened, beside the label: one-hot of ``num_classes``, or the numbers of a real target."""
    label = F.one_hot(y.long().flatten(), num_classes) if num_classes else y.reshape(len(y), -1)
    return torch.cat([x.flatten(1), label.to(x.dtype)], 1)
