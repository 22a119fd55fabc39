"""Argument checks shared by the public functions, the fakes and the reference.

Messages follow csrc/common/checks.h: op, argument, what was wanted, what came. They raise through
:mod:`torch._check` variants, which also work on symbolic sizes under ``torch.compile``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysel import _library

_STRIDED = torch.strided
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    names = [str(d).removeprefix("torch.") for d in dtypes]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def tensor(op: str, name: str, value: object, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    """Refuse anything but a strided tensor of one of ``dtypes``, with TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if value.layout is not _STRIDED:
        raise TypeError(f"{op}: {name} must be a strided tensor, got {value.layout}")
    if value.dtype not in dtypes:
        raise TypeError(f"{op}: {name} must be {_names(dtypes)}, got {value.dtype}")


def same_dtype(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse mixed dtypes, with TypeError."""
    if value.dtype != other.dtype:
        raise TypeError(f"{op}: {name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}")


def same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse tensors on different devices, with ValueError."""
    if value.device != other.device:
        raise ValueError(f"{op}: {name} must be on the device of {other_name}, {other.device}, got {value.device}")


def integer(op: str, name: str, value: Any, any_size: bool = False) -> int:
    """``value`` as Python's int: an int, numpy's, or a 0-d tensor or array of one; symbolic ints pass as they are.

    TypeError for anything else (bool is none), and ValueError, unless ``any_size``, for what int64 does not hold.
    """
    if type(value) is not int:  # the rest takes a microsecond
        if isinstance(value, torch.SymInt):
            return value  # type: ignore[return-value]
        whole = hasattr(value, "__index__") and not isinstance(value, bool) and not getattr(value, "ndim", 0)
        if not whole or (isinstance(value, Tensor) and (value.dtype == torch.bool or value.dtype.is_floating_point)):
            raise TypeError(f"{op}: {name} must be an int, got {_kind(value)}")
        try:
            value = operator.index(value)
        except TypeError:  # numpy's 0-d array of floats, a complex tensor
            raise TypeError(f"{op}: {name} must be an int, got {_kind(value)}") from None
    if not any_size and not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must fit into 64 bits, got {value}")
    return value


def in_range(op: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as Python's int: TypeError unless it is one, ValueError outside [low, high]."""
    value = integer(op, name, value)
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{op}: {name} must be {wanted}, got {value}")
    return value


def number(op: str, name: str, value: Any) -> float:
    """``value`` as Python's float: any real number, or a 0-d tensor or array of one; symbolic numbers pass as they are.

    TypeError for anything else (bool is none), and ValueError for what float64 does not hold.
    """
    if type(value) is float or isinstance(value, torch.SymInt | torch.SymFloat):
        return value  # type: ignore[return-value]
    odd = isinstance(value, bool | complex | np.complexfloating | np.bool_ | type) or getattr(value, "ndim", 0) > 0
    odd = odd or (isinstance(value, Tensor) and (value.is_complex() or value.dtype == torch.bool))
    if odd or not hasattr(value, "__float__"):
        raise TypeError(f"{op}: {name} must be a number, got {_kind(value)}")
    if isinstance(value, Tensor):
        no_grad(op, name, value)
        value = value.detach()
    try:
        return float(value)
    except OverflowError:
        got = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else repr(value)
        raise ValueError(f"{op}: {name} must fit into a float64, got {got}") from None


_INTERVALS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "(0, inf)": ("positive and finite", lambda x: 0 < x < math.inf),
    "[0, inf)": ("finite and at least 0", lambda x: 0 <= x < math.inf),
    "(1, inf)": ("above 1 and finite", lambda x: 1 < x < math.inf),
    "[0, 1]": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "(0, 1]": ("in (0, 1]", lambda x: 0 < x <= 1),
    "[0, 1)": ("in [0, 1)", lambda x: 0 <= x < 1),
    "(0.5, 1]": ("in (0.5, 1]", lambda x: 0.5 < x <= 1),
}


def within(op: str, name: str, value: Any, interval: str) -> float:
    """``value`` as Python's float: TypeError unless it is a number, ValueError outside the interval, NaN included."""
    return _inside(op, name, value, number(op, name, value), interval)


def written(op: str, name: str, value: Any, interval: str) -> Fraction:
    """As `within`, but the decimal number that was written, see `exact`."""
    finite = math.isfinite(number(op, name, value))
    return _inside(op, name, value, exact(value) if finite else value, interval)


def exact(value: Any) -> Fraction:
    """The decimal number that was written: 0.07, and not the float32 or float64 nearest to it."""
    if isinstance(value, Tensor):
        value = value.item() if value.dtype == torch.bfloat16 else value.detach().cpu().numpy()
    return Fraction(str(value))  # unlike float(), str() also takes a float32 at its word


def _inside(op: str, name: str, value: Any, x: Any, interval: str) -> Any:
    wanted, inside = _INTERVALS[interval]
    if not inside(x):
        raise ValueError(f"{op}: {name} must be {wanted}, got {value!r}")
    return x


def _kind(value: object) -> str:
    """What a message calls a value of the wrong type."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {list(value.shape)} and {value.dtype}"
    return type(value).__name__


def flag(op: str, name: str, value: Any) -> bool:
    """``value`` as Python's bool: a bool, numpy's, a 0-d tensor of one, or 0 or 1; else TypeError."""
    if type(value) is bool:
        return value
    scalar = isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() == 0
    if not (scalar or isinstance(value, bool | np.bool_) or (type(value) is int and value in (0, 1))):
        raise TypeError(f"{op}: {name} must be a bool, got {_kind(value)}")
    return bool(value)


def validate(op: str, value: Any) -> bool | None:
    """``value`` as None or Python's bool; else TypeError."""
    return None if value is None else flag(op, "validate", value)


def choice(op: str, name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a string that is not one of ``allowed``, with ValueError."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{op}: {name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}")


def no_grad(op: str, name: str, value: Tensor) -> None:
    """Refuse a tensor whose gradient the op would silently drop, with ValueError."""
    if value.requires_grad and torch.is_grad_enabled():
        raise needs_grad(op, name)


def needs_grad(op: str, name: str) -> ValueError:
    """The error for an argument that requires a gradient which the op does not have."""
    return ValueError(f"{op}: {name} must not require grad (the op is not differentiable there): detach it")


def groups(op: str, groups: object, quotas: object, like_name: str, like: Tensor) -> None:
    """Refuse groups without quotas or the reverse, wrong types and foreign devices."""
    if groups is None and quotas is None:
        return
    for name, value, other in (("groups", groups, "quotas"), ("quotas", quotas, "groups")):
        if value is None:
            raise ValueError(f"{op}: {name} must be given with {other}, got None")
    tensor(op, "groups", groups, (torch.int64, torch.int32))
    tensor(op, "quotas", quotas, (torch.int64,))
    for name, value in (("groups", groups), ("quotas", quotas)):
        assert isinstance(value, Tensor)
        same_device(op, name, value, like_name, like)


def out_shape(op: str, value: Tensor, shape: Sequence[int]) -> None:
    """Refuse an ``out`` that has not the shape of the result, with ValueError."""
    torch._check_value(
        list(value.shape) == list(shape),
        lambda: f"{op}: out must have shape {list(shape)}, got {list(value.shape)}",
    )


def start(op: str, value: int) -> None:
    """Refuse a negative element number, with ValueError."""
    torch._check_value(value >= 0, lambda: f"{op}: start must be at least 0, got {value}")


def k(op: str, value: int, n: int) -> None:
    """Refuse a k outside [0, n], with IndexError."""
    torch._check_index(value >= 0, lambda: f"{op}: k must be between 0 and {n}, got {value}")
    torch._check_index(value <= n, lambda: f"{op}: k must be between 0 and {n}, got {value}")


def positions(op: str, n: int, start: int, stop: int) -> None:
    """Refuse a negative n, with ValueError, and anything but 0 <= start <= stop <= n, with IndexError."""
    torch._check_value(n >= 0, lambda: f"{op}: n must be at least 0, got {n}")
    torch._check_index(start >= 0, lambda: f"{op}: start must be between 0 and {n}, got {start}")
    torch._check_index(start <= n, lambda: f"{op}: start must be between 0 and {n}, got {start}")
    torch._check_index(start <= stop, lambda: f"{op}: stop must be between {start} and {n}, got {stop}")
    torch._check_index(stop <= n, lambda: f"{op}: stop must be between {start} and {n}, got {stop}")


def dim(op: str, value: int, ndim: int) -> int:
    """Return ``value`` wrapped into [0, ndim), or raise IndexError."""
    n = max(ndim, 1)
    torch._check_index(-n <= value < n, lambda: f"{op}: dim must be between {-n} and {n - 1}, got {value}")
    return value % n


def check() -> None:
    """Wait for all GPUs that ops have run on, and raise if an earlier call met values that it had to refuse.

    CUDA kernels run behind the host, which does not wait for them: what they must refuse leaves NaN and -1 in results
    and in-place arguments untouched, and is raised by the next call (outside of a graph capture) or by this one.

    Raises:
        ValueError, IndexError: what that call would have raised with ``validate=True``.

    Example:
        >>> import pysel
        >>> pysel.check()
    """
    if torch.cuda.is_initialized():  # not in a process forked from one that has used a GPU
        _library.wait_and_raise()
