"""Feature spaces for selection: from raw arrays, or from the layer before a model's head.

arXiv 2603.04981 works in "a plug-in feature space"; these are plain ones to plug in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pysel import _checks, _inputs
from pysel.random import as_key
from pysel.sae.model import moments, normal, power_of_two
from pysel.selection.state import lasting


@lasting
def standardise(x: Any, eps: float = 1e-6) -> Tensor:
    """Each column with mean 0 and variance 1; a column that never varies becomes 0.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        eps: standard deviations below this count as no variation.

    Returns:
        [N, d] float32, or float64 for float64.

    Raises:
        TypeError: ``x`` is not a tensor or array of real numbers, or ``eps`` not a number.
        ValueError: ``x`` has no rows, or a row that is not finite; or ``eps`` is negative.

    Example:
        >>> standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    x = _inputs.matrix("standardise", "x", x)
    eps = _checks.within("standardise", "eps", eps, "[0, inf)")
    mean, variance = moments(x)
    scale = variance.sqrt()
    scale = torch.where(scale > eps, scale, torch.inf)
    result = torch.empty_like(x)
    for rows, out in zip(x.split(8192), result.split(8192), strict=True):
        out.copy_((rows.double() - mean) / scale)
    return result


@lasting
def unit_length(x: Any) -> Tensor:
    """Each row with length 1, so that products of rows are the cosines of the angles between them.

    A row of zeros stays one: its cosine with any other is 0.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].

    Returns:
        [N, d] float32, or float64 for float64.

    Raises:
        TypeError: ``x`` is not a tensor or array of real numbers.
        ValueError: ``x`` has no rows, or a row that is not finite.

    Example:
        >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = _inputs.matrix("unit_length", "x", x)
    largest = x.abs().amax(1, keepdim=True)  # squares must neither overflow nor vanish
    x = x / torch.where(largest > 0, largest, 1)
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1)


@lasting
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
        TypeError: ``x`` is not a tensor or array of real numbers, or another argument has the wrong type.
        ValueError: ``x`` has no rows, or a row that is not finite; or ``dim`` is out of range.

    Example:
        >>> pca(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 1)
        tensor([[-2.5000],
                [ 2.5000]])
    """
    x = _inputs.matrix("pca", "x", x)
    dim = _checks.in_range("pca", "dim", dim, 1, x.size(1))
    unit = power_of_two(x.abs().max())  # squares must neither overflow nor vanish
    centred = x / unit
    centred = centred - moments(centred)[0].to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        variance, directions = torch.linalg.eigh(centred.mT @ centred / x.size(0))
        variance, directions = variance[-dim:].flip(0), directions[:, -dim:].flip(1)
        directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        if whiten:
            flat = variance <= variance[0].clamp_min(0) * torch.finfo(x.dtype).eps  # rounding, not data
            return centred @ (directions * torch.where(flat, torch.inf, variance).rsqrt())
        return (centred @ directions) * unit


@lasting
def random_projection(x: Any, dim: int, *, key: Tensor | int) -> Tensor:
    """Gaussian random projection: distances are kept on average, at the cost of one matrix product.

    Args:
        x: [N, ...] any real dtype; flattened to [N, d].
        dim: number of outputs, at least 1.
        key: int64 [2] or an int; the same key gives the same projection.

    Returns:
        [N, dim] float32, or float64 for float64.

    Raises:
        TypeError: ``x`` is not a tensor or array of real numbers, or another argument has the wrong type.
        ValueError: ``x`` has no rows, or a row that is not finite; or ``dim`` is below 1.

    Example:
        >>> import pysel
        >>> random_projection(torch.eye(4), 2, key=pysel.key(0)).shape
        torch.Size([4, 2])
    """
    x = _inputs.matrix("random_projection", "x", x)
    dim = _checks.in_range("random_projection", "dim", dim, 1)
    with torch.autocast(x.device.type, enabled=False):
        return x @ (normal((x.size(1), dim), key=as_key("random_projection", key), like=x) / dim**0.5)


@lasting
def penultimate(model: nn.Module, x: Any, *, layer: str | None = None, batch_size: int = 1024) -> Tensor:
    """What a model feeds to one of its layers, by default to its last ``nn.Linear``.

    The model runs in evaluation mode without gradients and every part of it is left in the mode it was in.

    Args:
        model: any module, all of it on one device.
        x: [N, ...] inputs, a tensor or an array, cut into batches here, or an iterable of input batches (a DataLoader
            of inputs only). They are moved to the model's device, and arrays take its floating-point dtype.
        layer: name as in ``model.named_modules()`` of the layer whose input is wanted.
        batch_size: rows at a time when ``x`` is a tensor or an array.

    Returns:
        [N, d] features, on the model's device.

    Raises:
        TypeError: a batch is not a tensor or an array, nor a list or tuple of one.
        ValueError: no such layer, the layer was not reached or reached more than once in a pass, or ``x`` is empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> penultimate(model, torch.ones(5, 4)).shape
        torch.Size([5, 3])
    """
    op = "penultimate"
    batch_size = _checks.in_range(op, "batch_size", batch_size, 1)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a Module, got {type(model).__name__}")
    modules = dict(model.named_modules())
    if layer is None:
        layer = next((name for name in reversed(modules) if isinstance(modules[name], nn.Linear)), None)
        if layer is None:
            raise ValueError(f"{op}: layer must be given, as the model has no nn.Linear")
    if not isinstance(layer, str) or layer not in modules:
        raise ValueError(f"{op}: layer must be a name in model.named_modules(), got {layer!r}")
    if isinstance(x, Tensor | np.ndarray):
        x = _batch(x, model)
        if x.dim() == 0:
            raise ValueError(f"{op}: x must be [N, ...], got a single number")

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
                model(_batch(batch, model).to(device))
                passes += 1
                if len(captured) != passes:
                    how = "is not used" if len(captured) < passes else "is used more than once"
                    raise ValueError(f"{op}: layer {layer!r} {how} in a pass: name another one, whose input is meant")
    finally:
        hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not captured:
        raise ValueError(f"{op}: x must give at least one batch")
    return torch.cat(captured)


def _batch(batch: Any, model: nn.Module) -> Tensor:
    """Inputs as the model takes them: arrays in its floating-point dtype."""
    if isinstance(batch, list | tuple) and len(batch) == 1:
        batch = batch[0]  # what a DataLoader over a TensorDataset yields
    if isinstance(batch, np.ndarray):
        batch = _inputs.tensor("penultimate", "x", batch)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), batch.dtype)
        return batch.to(dtype) if batch.is_floating_point() else batch
    if not isinstance(batch, Tensor):
        raise TypeError(f"penultimate: x must give tensors of inputs alone, got a {type(batch).__name__}")
    return batch
