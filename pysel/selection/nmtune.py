"""A regulariser for tuning on frozen features of a model that was trained with wrong labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pysel import _checks


def nmtune_loss(
    features: Tensor,
    z: Tensor,
    *,
    consistency: float = 1.0,
    covariance: float = 0.04,
    spectrum: float = 0.001,
    largest: int = 5,
) -> Tensor:
    """What NMTune adds to the loss of a classifier on ``z``, a small network's output on frozen ``features``.

    The mean squared difference of both, rows scaled to length 1; plus ``covariance`` times the sum of squared
    covariances of different columns of z, over D; less ``spectrum`` times the mean share of the ``largest`` singular
    values of z in the sum of all (Chen et al., 2309.17002 and 2403.06869; the factors and the five values are those of
    the released code). z of two views of a batch are one batch here: concatenate them.

    On features of small networks it did not help (docs/science.md): compare before you use it.

    The gradient is that of singular *values* and finite where some are equal or 0, as those of vectors would not be.
    Half types are computed in float32. O(B D min(B, D)).

    Args:
        features: [B, D] floating point, B at least 2; they get no gradient.
        z: [B, D] floating point on the same device.
        consistency, covariance, spectrum: factors, finite and at least 0.
        largest: 1 or more; all of them where there are not so many.

    Returns:
        [], float32 or float64 like z.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: shapes or devices that do not match, or a factor out of range.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
        >>> nmtune_loss(features, features, covariance=0.0, spectrum=1.0, largest=1)
        tensor(-0.6250)
    """
    op = "nmtune_loss"
    _checks.tensor(op, "features", features)
    _checks.tensor(op, "z", z)
    if z.dim() != 2 or len(z) < 2 or z.size(1) < 1:
        raise ValueError(f"{op}: z must be [B, D], B at least 2 and D at least 1, got {list(z.shape)}")
    if features.shape != z.shape:
        raise ValueError(f"{op}: features must have the shape of z, {list(z.shape)}, got {list(features.shape)}")
    _checks.same_device(op, "features", features, "z", z)
    consistency = _checks.within(op, "consistency", consistency, "[0, inf)")
    covariance = _checks.within(op, "covariance", covariance, "[0, inf)")
    spectrum = _checks.within(op, "spectrum", spectrum, "[0, inf)")
    largest = _checks.in_range(op, "largest", largest, 1)
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        same = F.mse_loss(_unit(z), _unit(features.detach().to(z.dtype)))
        centred = z - z.mean(0)
        products = centred.mT @ centred / (len(z) - 1)
        correlated = (products.square().sum() - products.diagonal().square().sum()) / z.size(1)
        values = torch.linalg.svdvals(z)
        total = values.sum()
        share = values[:largest].mean() / torch.where(total > 0, total, 1)
        return consistency * same + covariance * correlated - spectrum * share


def _unit(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1)  # an epsilon would give a row of zeros a gradient of its inverse
