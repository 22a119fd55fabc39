"""What `ASSS` tries before it trains, so that what does not fit is refused while nothing has happened yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pysel import _checks, _inputs
from pysel.nn import GumbelSelector
from pysel.selection.learned.batches import Batch
from pysel.selection.learned.lookahead import Loss, default_loss
from pysel.selection.subset import Strata, subset_size


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode in which each part was."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def outputs_of(task: nn.Module, loss: Loss, batch: Batch, targets: Tensor | None) -> Tensor:
    """A task network's outputs for the first batch, with which its losses must work.

    Args:
        targets: all of y, where it is known.
    """
    with evaluating(task):
        outputs = task(batch.x)
        if loss is default_loss(batch.y) and not batch.y.is_floating_point() and outputs.dim() > 1:
            known = batch.y if targets is None else targets
            low, high, classes = int(known.min()), int(known.max()), outputs.size(1)
            if low < 0 or high >= classes:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"ASSS: y must be between 0 and {classes - 1}, as network has {classes} outputs, got {wrong}"
                )
        each = loss(outputs, batch.y)
    if not isinstance(each, Tensor) or each.shape != (batch.rows,):
        got = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
        raise ValueError(f"ASSS: loss must return one number a sample, [{batch.rows}], got {got}")
    if not bool(torch.isfinite(each).all()):
        row = int(torch.nonzero(~torch.isfinite(each))[0])
        raise ValueError(f"ASSS: loss must be finite, got {float(each[row])} for sample {int(batch.indices[row])}")
    return outputs


@torch.no_grad()
def try_selector(gate: GumbelSelector, seen: Tensor) -> None:
    """Refuse a selector network that does not take what it will see, or gives more than a logit a sample."""
    with evaluating(gate):
        try:
            gate.logits(seen)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            n = len(seen)
            raise ValueError(
                f"ASSS: selector must take inputs of shape {list(seen.shape)} and return [{n}] or [{n}, 1]: {error}"
            ) from error


def strata_of(labels: Any, quantiles: int, num_samples: int, keep_ratio: Any) -> Strata:
    """The strata of the final subset: classes, or ``quantiles`` parts of a real target that are about as large.

    Example:
        >>> strata_of(torch.tensor([0.5, 9.0, 0.1, 3.0]), 2, 4, 0.5).groups
        tensor([0, 1, 0, 1], dtype=torch.int32)
    """
    size = subset_size(keep_ratio, num_samples, op="ASSS")
    if labels is None:
        return Strata(num_samples, size)
    classes = _inputs.tensor("ASSS", "labels", labels)
    if classes.is_floating_point():
        values = _inputs.vector("ASSS", "labels", classes, num_samples)
        parts = _checks.in_range("ASSS", "quantiles", quantiles, 1, num_samples)
        first = torch.arange(1, parts, device=values.device) * num_samples // parts  # rank at which a part begins
        classes = torch.bucketize(values, values.sort().values[first], right=True)
        held = torch.bincount(classes, minlength=parts)
        if int(held.min()) == 0:
            raise ValueError(
                f"ASSS: quantiles must be fewer for these labels, whose values repeat: stratum {int(held.argmin())} of "
                f"{parts} would be empty"
            )
    return Strata(num_samples, size, classes, op="ASSS", name="keep_ratio")
