"""The ``out=`` argument: results written into a tensor of the caller's, which saves its allocation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks


def write_out(op: str, out: Tensor, dtype: torch.dtype, *args: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """Call an op's out overload, through a plain copy if ``out`` is strided or lazily negated, and return ``out``.

    Args:
        op: the op's name.
        out: the caller's tensor; the overload checks its shape.
        dtype: of the result.
        args: the op's other arguments, the first a tensor.
        shape: of ``out`` where the op's result is a matrix of its rows.

    Raises:
        TypeError: ``out`` is not a tensor of ``dtype``.
        ValueError: its device is another than the first argument's, its elements share memory, or a gradient would have
            to pass through it.
    """
    _checks.tensor(op, "out", out, (dtype,))
    _checks.same_device(op, "out", out, "the input", args[0])
    if shape is not None and out.shape != shape:
        raise ValueError(f"{op}: out must have shape {list(shape)}, got {list(out.shape)}")
    _checks.no_grad(op, "out", out)
    if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError(f"{op}: out must not be an expanded tensor, whose elements share memory")
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        raise ValueError(f"{op}: out must be None when an argument requires grad (a gradient cannot pass through it)")
    plain = out.is_contiguous() and (torch.compiler.is_compiling() or not out.is_neg())
    target = out if plain else torch.empty_like(out, memory_format=torch.contiguous_format)
    as_result = target if shape is None or len(shape) == 2 else target.unsqueeze(0).flatten(0, -2)
    getattr(torch.ops.pysel, op).out(*args, out=as_result)
    return out if target is out else out.copy_(target)
