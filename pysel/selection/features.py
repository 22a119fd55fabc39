"""Feature spaces for selection: from raw arrays, or from the layer before a model's head.

arXiv 2603.04981 works in "a plug-in feature space"; these are plain ones to plug in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pysel import _inputs
from pysel.nn import normal
from pysel.sae.model import moments, power_of_two


def standardise(x: Any, eps: float = 1e-6) -> Tensor:
    """Each column with mean 0 and variance 1; a column that never varies becomes 0.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        eps: standard deviations below this count as no variation.

    Returns:
        [N, d] float32, or float64 for float64.

    Raises:
        TypeError: ``x`` is not a tensor or array of real numbers.
        ValueError: ``x`` has no rows, or a row that is not finite.

    Example:
        >>> standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    x = _inputs.matrix("standardise", "x", x)
    mean, variance = moments(x)
    scale = variance.sqrt()
    scale = torch.where(scale > eps, scale, torch.inf)
    result = torch.empty_like(x)
    for rows, out in zip(x.split(8192), result.split(8192), strict=True):
        out.copy_((rows.double() - mean) / scale)
    return result


def pca(x: Any, dim: int, whiten: bool = False) -> Tensor:
    """Coordinates along the ``dim`` directions of largest variance.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        dim: number of directions, 1 to d.
        whiten: scale each coordinate to unit variance.

    Returns:
        [N, dim] float32, or float64 for float64; the sign of each column makes its largest loading positive, so it
        is reproducible.

    Raises:
        TypeError: ``x`` is not a tensor or array of real numbers.
        ValueError: ``x`` has no rows, or a row that is not finite; or ``dim`` is out of range.

    Example:
        >>> pca(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 1)
        tensor([[-2.5000],
                [ 2.5000]])
    """
    x = _inputs.matrix("pca", "x", x)
    if not 1 <= dim <= x.size(1):
        raise ValueError(f"pca: dim must be between 1 and {x.size(1)}, got {dim}")
    unit = power_of_two(x.abs().max())  # squares must neither overflow nor vanish
    centred = x / unit
    centred = centred - moments(centred)[0].to(x.dtype)
    variance, directions = torch.linalg.eigh(centred.mT @ centred / x.size(0))
    variance, directions = variance[-dim:].flip(0), directions[:, -dim:].flip(1)
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    if whiten:
        flat = variance <= variance[0].clamp_min(0) * torch.finfo(x.dtype).eps  # rounding, not data
        return centred @ (directions * torch.where(flat, torch.inf, variance).rsqrt())
    return (centred @ directions) * unit


def random_projection(x: Any, dim: int, *, key: Tensor | int) -> Tensor:
    """Gaussian random projection: distances are kept on average, at the cost of one matrix product.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        dim: number of outputs, at least 1.
        key: int64 [2] or an int; the same key gives the same projection.

    Returns:
        [N, dim] float32, or float64 for float64.

    Raises:
        TypeError: ``x`` is not a tensor or array of real numbers.
        ValueError: ``x`` has no rows, or a row that is not finite; or ``dim`` is below 1.

    Example:
        >>> import pysel
        >>> random_projection(torch.eye(4), 2, key=pysel.key(0)).shape
        torch.Size([4, 2])
    """
    x = _inputs.matrix("random_projection", "x", x)
    if dim < 1:
        raise ValueError(f"random_projection: dim must be at least 1, got {dim}")
    return x @ (normal((x.size(1), dim), key=key, like=x) / dim**0.5)


def penultimate(
    model: nn.Module, x: Tensor | Iterable[Any], *, layer: str | None = None, batch_size: int = 1024
) -> Tensor:
    """What a model feeds to one of its layers, by default to its last ``nn.Linear``.

    The model runs in evaluation mode without gradients and every part of it is left in the mode it was in.

    Args:
        model: any module, all of it on one device.
        x: [N, ...] inputs, cut into batches here, or an iterable of input batches (a DataLoader of inputs
            only). They are moved to the model's device.
        layer: name as in ``model.named_modules()`` of the layer whose input is wanted.
        batch_size: rows at a time when ``x`` is a tensor.

    Returns:
        [N, d] features, on the model's device.

    Raises:
        TypeError: a batch is not a tensor, nor a list or tuple of one.
        ValueError: no such layer, the layer was never reached or more than once in a pass, or ``x`` is empty.

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

    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append((*args, *kwargs.values())[0].flatten(1))  # an argument may be passed by its name

    batches = x.split(batch_size) if isinstance(x, Tensor) else x
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    training = {module: module.training for module in model.modules()}
    hook = modules[layer].register_forward_pre_hook(capture, with_kwargs=True)
    model.eval()
    passes = 0
    try:
        with torch.no_grad():
            for batch in batches:
                if isinstance(batch, list | tuple) and len(batch) == 1:
                    batch = batch[0]  # what a DataLoader over a TensorDataset yields
                if not isinstance(batch, Tensor):
                    raise TypeError(f"penultimate: x must give tensors of inputs alone, got a {type(batch).__name__}")
                model(batch.to(device))
                passes += 1
                if len(captured) > passes:
                    raise ValueError(
                        f"penultimate: layer {layer!r} is used more than once in a pass: name another one, whose input "
                        "is meant"
                    )
    finally:
        hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not captured:
        raise ValueError(
            f"penultimate: x must reach layer {layer!r}, but it is empty or the model does not use that layer"
        )
    return torch.cat(captured)
