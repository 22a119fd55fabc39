"""Feature spaces for selection: from raw arrays, or from the layer before a model's head.

arXiv 2603.04981 works in "a plug-in feature space"; these are plain ones to plug in.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pysel.nn import normal


def _matrix(op: str, x: Tensor) -> Tensor:
    """``x`` as a floating-point matrix [N, d]: everything but the first dimension flattened."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a Tensor, got {type(x).__name__}")
    if x.dim() < 2 or x.size(0) == 0:
        raise ValueError(f"{op}: x must be [N, ...] with at least one row, got shape {list(x.shape)}")
    return x.flatten(1) if x.is_floating_point() else x.flatten(1).float()


def standardise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Each column with mean 0 and variance 1; a column that never varies becomes 0.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        eps: standard deviations below this count as no variation.

    Returns:
        [N, d] floating point.

    Raises:
        TypeError, ValueError: ``x`` is not a tensor with rows.

    Example:
        >>> standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    x = _matrix("standardise", x)
    centred = x - x.mean(0)
    scale = centred.square().mean(0).sqrt()
    return centred / torch.where(scale > eps, scale, torch.inf)


def pca(x: Tensor, dim: int, whiten: bool = False) -> Tensor:
    """Coordinates along the ``dim`` directions of largest variance.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        dim: number of directions, 1 to d.
        whiten: scale each coordinate to unit variance.

    Returns:
        [N, dim] floating point; the sign of each column makes its largest loading positive, so it is
        reproducible.

    Raises:
        TypeError, ValueError: ``x`` is not a tensor with rows, or ``dim`` is out of range.

    Example:
        >>> pca(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 1)
        tensor([[-2.5000],
                [ 2.5000]])
    """
    x = _matrix("pca", x)
    if not 1 <= dim <= x.size(1):
        raise ValueError(f"pca: dim must be between 1 and {x.size(1)}, got {dim}")
    centred = x - x.mean(0)
    variance, directions = torch.linalg.eigh(centred.mT @ centred / x.size(0))
    variance, directions = variance[-dim:].flip(0), directions[:, -dim:].flip(1)
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    if whiten:
        flat = variance <= variance[0].clamp_min(0) * torch.finfo(x.dtype).eps  # rounding, not data
        directions = directions * torch.where(flat, torch.inf, variance).rsqrt()
    return centred @ directions


def random_projection(x: Tensor, dim: int, *, key: Tensor) -> Tensor:
    """Gaussian random projection: distances are kept on average, at the cost of one matrix product.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        dim: number of outputs, at least 1.
        key: int64 [2]; the same key gives the same projection.

    Returns:
        [N, dim] floating point.

    Raises:
        TypeError, ValueError: ``x`` is not a tensor with rows, or ``dim`` is below 1.

    Example:
        >>> import pysel
        >>> random_projection(torch.eye(4), 2, key=pysel.key(0)).shape
        torch.Size([4, 2])
    """
    x = _matrix("random_projection", x)
    if dim < 1:
        raise ValueError(f"random_projection: dim must be at least 1, got {dim}")
    return x @ (normal((x.size(1), dim), key=key, like=x) / dim**0.5)


def penultimate(
    model: nn.Module, x: Tensor | Iterable[Tensor], *, layer: str | None = None, batch_size: int = 1024
) -> Tensor:
    """What a model feeds to one of its layers, by default to its last ``nn.Linear``.

    The model runs in evaluation mode without gradients and every part of it is left in the mode it was in.

    Args:
        model: any module.
        x: [N, ...] inputs, cut into batches here, or an iterable of input batches (a DataLoader of inputs
            only).
        layer: name as in ``model.named_modules()`` of the layer whose input is wanted.
        batch_size: rows at a time when ``x`` is a tensor.

    Returns:
        [N, d] features, on the device that the model computes on.

    Raises:
        ValueError: no such layer, the layer was never reached, or ``x`` is empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> penultimate(model, torch.ones(5, 4)).shape
        torch.Size([5, 3])
    """
    modules = dict(model.named_modules())
    if layer is None:
        layer = next((name for name in reversed(modules) if isinstance(modules[name], nn.Linear)), None)
        if layer is None:
            raise ValueError("penultimate: layer must be given, as the model has no nn.Linear")
    if layer not in modules:
        raise ValueError(f"penultimate: layer must be a name in model.named_modules(), got {layer!r}")

    captured: list[Tensor] = []
    batches = x.split(batch_size) if isinstance(x, Tensor) else x
    training = {module: module.training for module in model.modules()}
    hook = modules[layer].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].flatten(1)))
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not captured:
        raise ValueError(
            f"penultimate: x must reach layer {layer!r}, but it is empty or the model does not use that layer"
        )
    return torch.cat(captured)
