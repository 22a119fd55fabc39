"""How the balance of a selection moves over training.

A schedule maps progress in (0, 1] to the weight of representativeness, in [0, 1]; diversity has the rest. Progress is
t / T in epoch t = 1, 2, ..., T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

from pysel import _checks

Schedule = Callable[[float], float]


def sigmoid(progress: float, midpoint: float = 0.6, width: float = 0.1, floor: float = 0.2) -> float:
    """Logistic fall from near 1 to near ``floor``, half way at ``midpoint``; smaller ``width`` is steeper.

    The default is the schedule of arXiv 2603.04981. The paper states its steepness as 0.05 and its midpoint as 0.6, for
    200 epochs; ours is the reading that the midpoint is a fraction of training and the steepness is per epoch, hence a
    width of 0.1 at any length.

    Example:
        >>> round(sigmoid(0.6), 6), round(sigmoid(1 / 200), 3)
        (0.6, 0.998)
    """
    if not width > 0:
        raise ValueError(f"sigmoid: width must be positive, got {width!r}")
    fallen = 0.5 * (1.0 - math.tanh(0.5 * (progress - midpoint) / width))  # tanh cannot overflow, exp can
    return floor + (1.0 - floor) * fallen


def cosine(progress: float, start: float = 1.0, end: float = 0.0) -> float:
    """Half a cosine wave from ``start`` to ``end``, flat at both.

    Example:
        >>> cosine(0.0), cosine(1.0)
        (1.0, 0.0)
    """
    return start + (end - start) * 0.5 * (1.0 - math.cos(math.pi * progress))


def linear(progress: float, start: float = 1.0, end: float = 0.0) -> float:
    """A straight line from ``start`` to ``end``.

    Example:
        >>> linear(0.25)
        0.75
    """
    return start + (end - start) * progress


def constant(progress: float, value: float = 0.5) -> float:
    """The same balance throughout.

    Example:
        >>> constant(0.9)
        0.5
    """
    return value


def exponential_decay(time: float, start: float = 1.0, rate: float = 0.1, floor: float = 0.1) -> float:
    """Temperature ``max(floor, start * exp(-rate * time))``, the annealing of `ASSS`.

    Example:
        >>> exponential_decay(0.0), exponential_decay(1e9)
        (1.0, 0.1)
    """
    return max(floor, start * math.exp(-rate * time))


def full_epochs(refine: float | Fraction, epochs: int) -> int:
    """How many of ``epochs`` are in their last fraction ``refine``: those of number (from 1) above (1 - refine) epochs.

    Example:
        >>> full_epochs(0.15, 200), full_epochs(0.15, 10)
        (30, 2)
    """
    return epochs - math.floor((1 - Fraction(str(refine))) * epochs)


def tail(epochs: Any, refine: Any, *, op: str = "tail") -> tuple[int | None, float]:
    """The length of training, checked, and the first epoch of its full-data tail.

    Args:
        epochs: length of training, or None where no tail is wanted.
        refine: all samples are used in this last fraction of the epochs, and after them.
        op: whom error messages name.

    Returns:
        ``epochs`` as an int or None, and the first full epoch, infinite without a tail.

    Raises:
        TypeError: one of them is not a number.
        ValueError: one is out of range, or a tail is wanted and ``epochs`` is missing.

    Example:
        >>> tail(10, 0.15), tail(None, 0)
        ((10, 8), (None, inf))
    """
    epochs = None if epochs is None else _checks.in_range(op, "epochs", epochs, 1)
    share = _checks.written(op, "refine", refine, "[0, 1]")
    if share > 0 and epochs is None:
        raise ValueError(f"{op}: epochs must be given with refine={refine!r}: it says which are the last")
    return epochs, epochs - full_epochs(share, epochs) if epochs is not None and share > 0 else math.inf


_SCHEDULES: dict[str, Schedule] = {
    "sigmoid": sigmoid,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def resolve(schedule: str | float | Schedule, *, op: str = "resolve") -> Schedule:
    """The schedule meant by a name, a number in [0, 1] (held constant) or a function of progress.

    ``op`` is whom error messages name.

    Raises:
        ValueError: an unknown name, or a number out of range.
        TypeError: neither a name, a number nor a callable.

    Example:
        >>> resolve("linear")(0.25), resolve(0.25)(0.5)
        (0.75, 0.25)
    """
    if isinstance(schedule, str):
        if schedule not in _SCHEDULES:
            raise ValueError(f"{op}: schedule must be one of {', '.join(_SCHEDULES)}, got {schedule!r}")
        return _SCHEDULES[schedule]
    if callable(schedule):
        return schedule
    try:
        return partial(constant, value=_checks.within(op, "schedule", schedule, "[0, 1]"))
    except TypeError:
        raise TypeError(
            f"{op}: schedule must be a name, a number or a function, got {type(schedule).__name__}"
        ) from None


def balance(schedule: Schedule, progress: float, *, op: str = "balance") -> float:
    """``schedule(progress)``, checked to lie in [0, 1]; ``op`` is whom error messages name.

    Raises:
        TypeError: what the schedule gives is not a number.
        ValueError: the schedule left [0, 1] or is NaN; the message has both values.
    """
    value = _checks.number(op, "what schedule returns", schedule(progress))
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{op}: schedule must stay in [0, 1], got {value!r} at progress {progress:g}")
    return value
