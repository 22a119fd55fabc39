"""The ``out=`` argument: results written into a tensor of the caller's, which saves its allocation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks


def write_out(op: str, out: Tensor, dtype: torch.dtype, *args: Any) -> Tensor:
    """Call an op's out overload, through a contiguous copy if ``out`` is strided, and return ``out``.

    Args:
        op: the op's name.
        out: the caller's tensor; the overload checks its shape.
        dtype: of the result.
        args: the op's other arguments, the first a tensor.

    Raises:
        TypeError: ``out`` is not a tensor of ``dtype``.
        ValueError: its device is another than the first argument's, or a gradient would have to pass through it.
    """
    _checks.tensor(op, "out", out, (dtype,))
    _checks.same_device(op, "out", out, "the input", args[0])
    _checks.no_grad(op, "out", out)
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        raise ValueError(f"{op}: out must be None when an argument requires grad (a gradient cannot pass through it)")
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    getattr(torch.ops.pysel, op).out(*args, out=target)
    return out if target is out else out.copy_(target)
