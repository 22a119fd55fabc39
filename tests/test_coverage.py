"""pysel/selection/static/coverage.py: greedy maxima against brute force over the whole matrix of similarities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pysel.selection import FacilityLocation, GraphCut, quotas
from pysel.selection.static import coverage

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def similarities(x: np.ndarray) -> np.ndarray:
    """(1 + cosine) / 2 as whole multiples of 2^-31: Python's integers, whose sums are exact."""
    length = np.sqrt((x**2).sum(1, keepdims=True))
    unit = x / np.where(length > 0, length, 1)
    cosines = np.rint(unit @ unit.T * 2**30).astype(np.int64)
    return (cosines + 2**30).astype(object)


def facilities(s: np.ndarray, picks: list[int]) -> int:
    return int(s[:, picks].max(1).sum())


def cut(s: np.ndarray, picks: list[int], trade_off: int = 2) -> int:
    return int(trade_off * s[:, picks].sum() - s[np.ix_(picks, picks)].sum())


def greedy(x: np.ndarray, count: int, value: Callable[[np.ndarray, list[int]], int]) -> list[int]:
    s, picks = similarities(x), []
    while len(picks) < count:
        left = [i for i in range(len(x)) if i not in picks]
        picks.append(max(left, key=lambda i: (value(s, [*picks, i]), -i)))
    return picks


RULES: list[tuple[Any, dict[str, Any], Callable[[np.ndarray, list[int]], int]]] = [
    (FacilityLocation, {}, facilities),
    (GraphCut, {}, cut),
    (GraphCut, {"trade_off": 5}, lambda s, picks: cut(s, picks, 5)),
    (GraphCut, {"trade_off": 0}, lambda s, picks: cut(s, picks, 0)),
]
rules = pytest.mark.parametrize(("method", "options", "value"), RULES, ids=["facilities", "cut", "cut 5", "cut 0"])

CLOUDS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: torch.randn(50, 4, generator=generator()),
    "positive": lambda: torch.rand(50, 8, generator=generator(), dtype=torch.float64),
    "images of half": lambda: torch.randn(40, 2, 3, 3, generator=generator()).half(),
    "zeros among them": lambda: torch.randn(40, 3, generator=generator()) * (torch.arange(40) % 4 > 0)[:, None],
    "each twice": lambda: torch.randn(20, 3, generator=generator()).repeat(2, 1),
    "of any length": lambda: (
        torch.randn(40, 3, generator=generator()) * 10.0 ** torch.arange(-200.0, 200, 10, dtype=torch.float64)[:, None]
    ),
    "directions of a lattice": lambda: torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1])] * 3),
}  # fmt: skip


@rules
@pytest.mark.parametrize("cloud", CLOUDS)
def test_against_brute_force(
    method: Any, options: dict[str, Any], value: Callable[[np.ndarray, list[int]], int], cloud: str
) -> None:
    x = CLOUDS[cloud]()
    flat = x.double().flatten(1)
    flat = (flat / flat.abs().amax(1, keepdim=True).clamp_min(1e-250)).numpy()
    for ratio in (0.5, 0.1, 0.001):
        chosen = method(x, ratio, **options).select()
        assert chosen.tolist() == sorted(greedy(flat, math.ceil(ratio * len(x)), value))
    labels = torch.randint(3, (len(x),), generator=generator(2)) * 7
    shares = quotas(torch.unique(labels, return_counts=True)[1], math.ceil(0.3 * len(x)))
    wanted = []
    for label, share in zip((0, 7, 14), shares.tolist(), strict=True):
        own = np.flatnonzero(labels.numpy() == label)
        wanted += own[greedy(flat[own], share, value)].tolist()
    assert method(x, 0.3, labels=labels, **options).select().tolist() == sorted(wanted)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_how_many_gains_are_computed_at_once_changes_nothing(at_once: int) -> None:
    rows = torch.nn.functional.normalize(torch.randn(200, 5, generator=generator()).double())
    assert torch.equal(coverage._facilities(rows, 60, at_once), coverage._facilities(rows, 60))


def test_few_gains_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 picks among 1,000 samples a tenth of all gains at most, blobs being easy."""
    computed: list[int] = []
    cosines = coverage._cosines
    monkeypatch.setattr(coverage, "_cosines", lambda all, some: (computed.append(len(some)), cosines(all, some))[1])
    centres = torch.randn(20, 8, generator=generator())
    x = centres.repeat(50, 1) + torch.randn(1000, 8, generator=generator(1)) / 8
    chosen = FacilityLocation(x, 0.1).select()
    assert len((chosen % 20).unique()) == 20
    assert sum(computed) < 100 * 1000 / 10


def test_diversity_counts_for_more_where_the_trade_off_is_small() -> None:
    x = torch.randn(300, 6, generator=generator()) + 0.5
    unit = x / x.norm(dim=1, keepdim=True)
    alike = lambda chosen: float((unit[chosen] @ unit[chosen].T).mean())  # noqa: E731
    found = [alike(GraphCut(x, 0.1, trade_off=t).select()) for t in (0, 0.1, 0.3, 2)]
    assert found == sorted(found)
    assert found[0] < found[-1] - 0.3


def with_nan() -> Tensor:
    x = torch.ones(20, 3)
    x[13, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: FacilityLocation(with_nan(), 0.5),
            ValueError,
            "FacilityLocation: features must be finite, got nan in row 13",
        ),
        (lambda: GraphCut(torch.ones(9, 1), 2), ValueError, "GraphCut: keep_ratio, the fraction kept, must be in"),
        (lambda: GraphCut(torch.ones(9), 0.5), ValueError, r"GraphCut: features must be \[N, ...\]"),
        (
            lambda: GraphCut(torch.ones(9, 1), 0.5, trade_off=-1),
            ValueError,
            "GraphCut: trade_off must be finite and at least 0, got -1",
        ),
        (lambda: GraphCut(torch.ones(9, 1), 0.5, trade_off="1"), TypeError, "GraphCut: trade_off must be a number"),
        (
            lambda: FacilityLocation(torch.ones(9, 1), 0.2, labels=range(9)),
            ValueError,
            "FacilityLocation: keep_ratio must give at least one sample of each of the 9 classes",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_features_are_neither_changed_nor_kept() -> None:
    x = torch.randn(40, 2, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    selectors = [FacilityLocation(x, 0.3), GraphCut(x, 0.3)]
    chosen = [selector.select() for selector in selectors]
    assert torch.equal(x, before)
    x.data.zero_()
    for selector, subset in zip(selectors, chosen, strict=True):
        assert torch.equal(selector.select(), subset)


def test_a_state_loads() -> None:
    x = torch.randn(40, 3, generator=generator())
    state = GraphCut(x, 0.3).state_dict()
    with pytest.raises(ValueError, match=r"state_dict must be .* trade_off=1\.0, got one with 2\.0"):
        GraphCut(x, 0.3, trade_off=1.0).load_state_dict(state)
    other = GraphCut(-x, 0.3)
    other.load_state_dict(state)
    assert torch.equal(other.select(), GraphCut(x, 0.3).select())
