"""The ``out=`` argument: results written into a tensor of the caller's, which saves its allocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pysel import _checks


def write_out(
    op: str, overload: Callable[..., None], out: Tensor, shape: Sequence[int], like: Tensor, *args: Any
) -> Tensor:
    """Call an op's out overload, through a contiguous copy if ``out`` is strided, and return ``out``.

    Raises:
        TypeError, ValueError: ``out`` does not fit ``shape`` or the dtype and device of ``like``, or a gradient would
            have to pass.
    """
    _checks.out(op, out, shape, like)
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        raise ValueError(f"{op}: out must be None when an argument requires grad (a gradient cannot pass through it)")
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    overload(*args, out=target)
    return out if target is out else out.copy_(target)
