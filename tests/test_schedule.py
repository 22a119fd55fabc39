"""pysel/selection/schedule.py: the curves at known points, and what is refused."""

from __future__ import annotations

import math

import pytest

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
    assert schedule.resolve(0.25)(0.9) == 0.25
    with pytest.raises(ValueError, match="must be one of sigmoid, cosine, linear, constant, got 'step'"):
        schedule.resolve("step")
    with pytest.raises(TypeError, match="must be a name, a number or a function, got NoneType"):
        schedule.resolve(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must stay in \[0, 1\], got 1.5 at progress 0.5"):
        schedule.balance(lambda p: 1.5, 0.5)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        schedule.sigmoid(0.5, width=0)
