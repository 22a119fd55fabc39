"""pysel/selection/mining.py: who is mined, against brute force, and how many of them rightly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pysel.selection import class_centres, mine

pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(n: int, spread: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 4
    return torch.eye(4, 6)[labels] * 2 + torch.randn(
        n, 6, generator=torch.Generator().manual_seed(seed)
    ) * spread, labels


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(1, keepdims=True))


@pytest.mark.parametrize("quantile", [0, 0.3, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_centres(dtype: torch.dtype, quantile: float) -> None:
    x, y = clusters(50)
    x, y = x.to(dtype), y * 3 - 5
    y[7] = 90  # alone
    centres, least, labels = class_centres(x, y, quantile=quantile)
    assert labels.tolist() == [-5, -2, 1, 4, 90]
    rows = unit(x.double().numpy())
    for c, label in enumerate(labels.tolist()):
        own = rows[y.numpy() == label]
        wanted = unit(own.mean(0)[None])[0]
        np.testing.assert_allclose(centres[c].numpy(), wanted, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(float(least[c]), np.quantile(own @ wanted, quantile), rtol=1e-12)


def brute_force(
    x: np.ndarray, centres: np.ndarray, per_class: list[int], margin: float, least: list[float]
) -> dict[int, tuple[int, float]]:
    cosines = unit(x) @ unit(centres).T
    mined: dict[int, tuple[int, float]] = {}
    for c in range(len(centres)):
        found = []
        for i, row in enumerate(cosines):
            second = max((s for j, s in enumerate(row) if j != row.argmax()), default=-math.inf)
            if row.argmax() == c and row[c] >= least[c] and row[c] - second >= margin:
                found.append((-row[c], i))
        mined.update({i: (c, -s) for s, i in sorted(found)[: per_class[c]]})
    return mined


@pytest.mark.parametrize("margin", [0, 0.3, 2])
@pytest.mark.parametrize("least", [-1.0, 0.8, [0.0, 0.9, 1.0, 0.5]])
@pytest.mark.parametrize("per_class", [0, 7, 1000, [0, 5, 3, 100]])
def test_against_brute_force(margin: float, least: Any, per_class: Any) -> None:
    x, _ = clusters(300, seed=1)
    centres = class_centres(*clusters(40)).centres
    for batch_size in (8192, 7):
        mined = mine(x, centres, per_class, margin=margin, least=least, batch_size=batch_size)
        wanted = brute_force(
            x.double().numpy(),
            centres.numpy(),
            per_class if isinstance(per_class, list) else [per_class] * 4,
            margin,
            least if isinstance(least, list) else [least] * 4,
        )
        assert mined.indices.tolist() == sorted(wanted)
        assert mined.labels.tolist() == [wanted[i][0] for i in sorted(wanted)]
        np.testing.assert_allclose(mined.scores.numpy(), [wanted[i][1] for i in sorted(wanted)], rtol=1e-12)


def test_ties_go_to_the_lowest_index_and_the_first_centre() -> None:
    x = torch.ones(6, 2)
    mined = mine(x, torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 3)
    assert (mined.indices.tolist(), mined.labels.tolist()) == ([0, 1, 2], [0, 0, 0])
    assert mine(x, torch.ones(1, 2), 2, margin=2).indices.tolist() == [0, 1], "one centre has no second"


def test_numbers_in_any_container() -> None:
    x, _ = clusters(60, seed=1)
    centres = class_centres(*clusters(40)).centres
    wanted = mine(x, centres, 5, margin=0.1, least=0.5)
    per_class: list[Any] = [[5] * 4, np.array([5] * 4), pd.Series([5] * 4), np.int64(5), torch.tensor(5)]
    for given in per_class:
        mined = mine(x.numpy(), centres.tolist(), given, margin=np.float64(0.1), least=torch.full((4,), 0.5))
        assert all(torch.equal(a, b) for a, b in zip(mined, wanted, strict=True))


def test_a_stricter_rule_is_right_more_often() -> None:
    centres, least, _ = class_centres(*clusters(80), quantile=0.5)
    x, y = clusters(4000, seed=1, spread=1.2)
    right = lambda mined: float((mined.labels == y[mined.indices]).double().mean())  # noqa: E731
    loose, strict = mine(x, centres, 4000), mine(x, centres, 4000, margin=0.3, least=least)
    assert len(loose.indices) == 4000
    assert 100 < len(strict.indices) < 4000
    assert right(strict) > right(loose) + 0.1


def with_nan() -> Tensor:
    x = torch.ones(20, 3)
    x[13, 1] = math.nan
    return x


ROWS = torch.ones(5, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mine(with_nan(), ROWS, 2), ValueError, "mine: features must be finite, got nan in row 13"),
        (lambda: mine(ROWS, with_nan(), 2), ValueError, "mine: centres must be finite, got nan in row 13"),
        (
            lambda: mine(ROWS, torch.ones(2, 4), 2),
            ValueError,
            "mine: centres must have as many columns as features, 3, got 4",
        ),
        (lambda: mine(ROWS, ROWS, 2.0), TypeError, "mine: per_class must be an int, got float"),
        (lambda: mine(ROWS, ROWS, -2), ValueError, "mine: per_class must be at least 0, got -2"),
        (lambda: mine(ROWS, ROWS, [1, 2]), ValueError, r"mine: per_class must have shape \[5\], got \[2\]"),
        (lambda: mine(ROWS, ROWS, 2, margin=-1), ValueError, "mine: margin must be between 0 and 2, got -1"),
        (lambda: mine(ROWS, ROWS, 2, margin=math.nan), ValueError, "mine: margin must be between 0 and 2, got nan"),
        (lambda: mine(ROWS, ROWS, 2, least=1.5), ValueError, "mine: least must be between -1 and 1, got 1.5"),
        (lambda: mine(ROWS, ROWS, 2, least=math.nan), ValueError, "mine: least must be between -1 and 1, got nan"),
        (lambda: mine(ROWS, ROWS, 2, batch_size=0), ValueError, "mine: batch_size must be at least 1, got 0"),
        (lambda: class_centres(with_nan(), [0] * 20), ValueError, "class_centres: features must be finite"),
        (lambda: class_centres(ROWS, [0]), ValueError, r"class_centres: labels must have shape \[5\]"),
        (
            lambda: class_centres(ROWS, [0] * 5, quantile=2),
            ValueError,
            "class_centres: quantile must be between 0 and 1, got 2",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
