"""How the balance of a selection moves over training.

A schedule maps progress in [0, 1] to a number in [0, 1]: the weight of rarity against representativeness.
arXiv 2603.04981 asks for "a smooth scheduler"; the curves and their constants are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

Schedule = Callable[[float], float]


def sigmoid(progress: float, midpoint: float = 0.5, width: float = 0.1) -> float:
    """Logistic rise from near 0 to near 1, half way at ``midpoint``; smaller ``width`` is steeper.

    Example:
        >>> sigmoid(0.5)
        0.5
    """
    if not width > 0:
        raise ValueError(f"sigmoid: width must be positive, got {width!r}")
    return 0.5 * (1.0 + math.tanh(0.5 * (progress - midpoint) / width))  # tanh cannot overflow, exp can


def cosine(progress: float, start: float = 0.0, end: float = 1.0) -> float:
    """Half a cosine wave from ``start`` to ``end``, flat at both.

    Example:
        >>> cosine(0.0), cosine(1.0)
        (0.0, 1.0)
    """
    return start + (end - start) * 0.5 * (1.0 - math.cos(math.pi * progress))


def linear(progress: float, start: float = 0.0, end: float = 1.0) -> float:
    """A straight line from ``start`` to ``end``.

    Example:
        >>> linear(0.25)
        0.25
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


_SCHEDULES: dict[str, Schedule] = {
    "sigmoid": sigmoid,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def resolve(schedule: str | float | Schedule) -> Schedule:
    """The schedule meant by a name, a number (held constant) or a function of progress.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name, a number nor a callable.

    Example:
        >>> resolve("linear")(0.5), resolve(0.25)(0.5)
        (0.5, 0.25)
    """
    if isinstance(schedule, str):
        if schedule not in _SCHEDULES:
            raise ValueError(f"resolve: schedule must be one of {', '.join(_SCHEDULES)}, got {schedule!r}")
        return _SCHEDULES[schedule]
    if isinstance(schedule, (int, float)):
        return partial(constant, value=float(schedule))
    if not callable(schedule):
        raise TypeError(f"resolve: schedule must be a name, a number or a function, got {type(schedule).__name__}")
    return schedule


def balance(schedule: Schedule, progress: float) -> float:
    """``schedule(progress)``, checked to lie in [0, 1].

    Raises:
        ValueError: the schedule left [0, 1] or is not a number; the message has both values.
    """
    value = float(schedule(progress))
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"balance: schedule must stay in [0, 1], got {value!r} at progress {progress:g}")
    return value
