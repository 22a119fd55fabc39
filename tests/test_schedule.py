"""pysel/selection/schedule.py: the curves at known points, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import schedule


def test_schedule_end_points() -> None:
    assert schedule.sigmoid(1.0) == pytest.approx(0.2 + 0.8 / (1 + math.exp(4)))
    assert schedule.sigmoid(0.3, midpoint=0.3, floor=0.0) == 0.5
    assert schedule.sigmoid(0.0, width=1e-300) == 1.0 and schedule.sigmoid(1.0, width=1e-300) == 0.2
    assert schedule.cosine(0.0) == 1.0 and schedule.cosine(1.0) == 0.0
    assert schedule.cosine(0.5) == pytest.approx(0.5)
    assert schedule.linear(0.0, 0.8, 0.2) == 0.8 and schedule.linear(1.0, 0.8, 0.2) == pytest.approx(0.2)
    assert schedule.constant(0.0) == schedule.constant(1.0) == 0.5


def test_the_published_schedule() -> None:
    """arXiv 2603.04981 at 200 epochs, by our reading of its constants."""
    values = {1: 0.998, 80: 0.905, 100: 0.785, 120: 0.6, 160: 0.295, 170: 0.261}
    for t, alpha in values.items():
        assert schedule.sigmoid(t / 200) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("curve", [schedule.sigmoid, schedule.cosine, schedule.linear])
def test_schedules_fall_and_stay_in_range(curve: schedule.Schedule) -> None:
    values = [curve(p / 100) for p in range(101)]
    assert values == sorted(values, reverse=True) and 0 <= values[-1] < values[0] <= 1


def test_temperature() -> None:
    values = [schedule.exponential_decay(t, 2.0, 0.5, 0.3) for t in range(10)]
    assert values[0] == 2.0 and values[1] == pytest.approx(2 * math.exp(-0.5)) and values[-1] == 0.3


def test_resolve() -> None:
    assert schedule.resolve("cosine") is schedule.cosine
    for number in (0.25, np.float32(0.25), torch.tensor(0.25), np.array(0.25), Fraction(1, 4)):
        assert schedule.resolve(number)(0.9) == 0.25
    assert schedule.resolve(1)(0.9) == 1
    assert schedule.balance(lambda p: np.float32(p), 0.5) == 0.5
    assert type(schedule.balance(lambda p: torch.tensor(p), 0.5)) is float


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: schedule.resolve("step"), ValueError, "resolve: schedule must be one of sigmoid, .*, got 'step'"),
        (lambda: schedule.resolve("step", op="Mine"), ValueError, "Mine: schedule must be one of sigmoid"),
        (
            lambda: schedule.resolve(None),
            TypeError,
            "schedule must be a name, a number or a function, got None",
        ),
        (
            lambda: schedule.resolve(True),
            TypeError,
            "schedule must be a name, a number or a function, got bool",
        ),
        (lambda: schedule.resolve(1.5), ValueError, "resolve: schedule must be between 0 and 1, got 1.5"),
        (lambda: schedule.resolve(math.nan), ValueError, "resolve: schedule must be between 0 and 1, got nan"),
        (
            lambda: schedule.balance(lambda p: 1.5, 0.5),
            ValueError,
            r"balance: schedule must stay in \[0, 1\], got 1.5 at progress 0.5",
        ),
        (lambda: schedule.balance(lambda p: math.nan, 0.5), ValueError, r"schedule must stay in \[0, 1\], got nan"),
        (lambda: schedule.balance(lambda p: None, 0.5), TypeError, "balance: what schedule returns must be a number"),
        (lambda: schedule.sigmoid(0.5, width=0), ValueError, "sigmoid: width must be positive, got 0"),
    ],
)
def test_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
