"""What users hold, as tensors: every sampler and selector takes its scores, labels and features through here.

A tensor, a numpy array, a pandas or Arrow column, or a list will do. What comes back is detached, strided and on the
CPU unless it was a tensor elsewhere, whatever torch's default device and dtype are. It may share memory with what was
given: who keeps it, copies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)


def tensor(op: str, name: str, value: Any) -> Tensor:
    """Real numbers of any shape and dtype; a list of floats becomes float64, one of ints int64.

    Raises:
        TypeError: something else.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{op}: {name} must be a strided tensor, got {value.layout}")
        if value.is_complex():
            raise TypeError(f"{op}: {name} must be real, got {value.dtype}")
        if value.is_meta:
            raise TypeError(f"{op}: {name} must hold numbers, got a tensor on the meta device")
        return value.detach()
    array = None
    if hasattr(value, "__array__") or (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError):  # rows of different lengths, tensors that require grad
            raise TypeError(
                f"{op}: {name} must be a tensor, an array or a list of numbers, "
                f"got a {type(value).__name__} that makes no array"
            ) from None
    if array is None or array.dtype.kind not in "fiub":
        got = type(value).__name__ if array is None else f"{type(value).__name__} of {array.dtype}"
        raise TypeError(f"{op}: {name} must be a tensor, an array or a list of numbers, got {got}")
    if np.ma.is_masked(value):
        raise TypeError(f"{op}: {name} must not have masked entries")
    dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    whole = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if whole and array.dtype == dtype else np.array(array, dtype, order="C"))


def matrix(op: str, name: str, value: Any) -> Tensor:
    """Features [N, d], neither of them 0, finite, float32 or float64; dimensions after the first are flattened.

    Raises:
        TypeError: not real numbers.
        ValueError: no rows or columns, or a row that is not finite.
    """
    x = tensor(op, name, value)
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"{op}: {name} must be [N, ...] with at least one row and column, got shape {list(x.shape)}")
    x = x.flatten(1)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    finite(op, name, x)
    return x


def vector(
    op: str,
    name: str,
    value: Any,
    size: int | None = None,
    *,
    may_be_infinite: bool = False,
    may_be_empty: bool = False,
) -> Tensor:
    """Scores, losses or weights [N], N > 0, floating point: half types stay, whole numbers become float64.

    Args:
        size: the N that is wanted.
        may_be_infinite: refuse NaN alone.
        may_be_empty: as a rank's shard may.

    Raises:
        TypeError: not real numbers.
        ValueError: another shape, or a number that is not finite.
    """
    x = tensor(op, name, value)
    if x.dim() != 1 or (x.numel() == 0 and not may_be_empty) or (size is not None and x.numel() != size):
        raise ValueError(f"{op}: {name} must be [{size or 'N'}]{'' if size else ' with N > 0'}, got {list(x.shape)}")
    x = x if x.is_floating_point() else x.to(torch.float64)
    finite(op, name, x, may_be_infinite)
    return x


def finite(op: str, name: str, x: Tensor, may_be_infinite: bool = False, rows: int | Tensor = 0) -> None:
    """Refuse NaN and infinity, by the row that holds the first; ``rows`` are the numbers of all, or of the first."""
    if bool(torch.isfinite(x.sum())):  # one fast pass: a sum forgets neither, but may be too large itself
        return
    bad = x.isnan() if may_be_infinite else ~torch.isfinite(x)
    if bool(bad.any()):
        at = int(torch.nonzero(bad.reshape(len(bad), -1).any(1))[0])
        got = float(x[at][bad[at]].flatten()[0])
        row = rows + at if isinstance(rows, int) else int(rows[at])
        wanted = "a number" if may_be_infinite else "finite"
        raise ValueError(f"{op}: {name} must be {wanted}, got {got} in row {row}")


def integers(op: str, name: str, value: Any, size: int | None = None) -> Tensor:
    """Whole numbers [N], int64 or narrower: of any integer dtype, or bool.

    Raises:
        TypeError: other dtypes.
        ValueError: another shape, or numbers beyond int64.
    """
    x = tensor(op, name, value)
    if x.is_floating_point():
        raise TypeError(f"{op}: {name} must be integers, got {x.dtype}")
    if x.dim() != 1 or (size is not None and x.numel() != size):
        raise ValueError(f"{op}: {name} must have shape [{'N' if size is None else size}], got {list(x.shape)}")
    if x.dtype not in (*_SIGNED, torch.uint8):
        wide = x.long()
        if x.dtype == torch.uint64 and bool((wide < 0).any()):
            raise ValueError(f"{op}: {name} must fit into int64, got {int(wide[wide < 0][0]) + 2**64}")
        x = wide
    return x


def indices(op: str, name: str, value: Any, num_samples: int, *, distinct: bool = True) -> Tensor:
    """Which samples, int64 [k]: of ``num_samples``, in the order given, and unless told otherwise none twice.

    Raises:
        TypeError: not integers (a boolean mask is none).
        ValueError: not a vector, an index out of range, or one that comes twice.
    """
    x = tensor(op, name, value)
    if x.dtype == torch.bool:
        raise TypeError(f"{op}: {name} must be indices, got a boolean mask: pass torch.nonzero(mask).flatten()")
    x = integers(op, name, x.new_empty(0, dtype=torch.int64) if x.numel() == 0 and x.dim() == 1 else x).long()
    if x.numel():
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= num_samples:
            raise ValueError(f"{op}: {name} must be between 0 and {num_samples - 1}, got {low if low < 0 else high}")
        if distinct and not bool((x.diff() > 0).all()):
            ordered = x.sort().values
            again = torch.nonzero(ordered.diff() == 0)
            if len(again):
                raise ValueError(f"{op}: {name} must be distinct, got {int(ordered[int(again[0])])} more than once")
    return x


class Classes(NamedTuple):
    """Labels as numbers from 0 on."""

    ids: Tensor  # int32 [N]
    labels: Tensor  # [C] ascending: what the ids stand for
    sizes: Tensor  # int64 [C] members, none of them 0


def classes(op: str, name: str, value: Any, num_samples: int) -> Classes:
    """Labels [N] of any integer dtype, or bool, as classes; copies."""
    labels = integers(op, name, value, num_samples)
    low, high = int(labels.min()), int(labels.max())
    if high - low > 4 * num_samples:  # too thinly spread to count
        values, ids, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
        return Classes(ids.int(), values, sizes)
    shifted = labels if low == 0 else labels.long() - low
    counts = torch.bincount(shifted)
    values = torch.nonzero(counts).flatten()
    if values.numel() < counts.numel():
        place = torch.zeros_like(counts, dtype=torch.int32)
        place[values] = torch.arange(values.numel(), dtype=torch.int32, device=place.device)
        shifted = place[shifted.long()]
    return Classes(shifted.to(torch.int32, copy=True), (values + low).to(labels.dtype), counts[values])
