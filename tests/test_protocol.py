"""pysel/selection/protocol.py: what every method must keep to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import pysel
from pysel.selection import (
    DynamicRandom,
    FullSelector,
    InfoBatch,
    KMeansSelector,
    NearestNeighbourThinning,
    ScoreSelector,
    Selector,
    StaticRandomSelector,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "make",
    [
        lambda: FullSelector(40),
        lambda: StaticRandomSelector(40, 0.3),
        lambda: DynamicRandom(40, 0.3),
        lambda: InfoBatch(40, 4),
        lambda: ScoreSelector(torch.rand(40), 0.3),
        lambda: KMeansSelector(torch.rand(40, 2), 0.3, 4),
        lambda: NearestNeighbourThinning(torch.rand(40, 2), 0.3),
    ],
)
def test_protocol(make: Callable[[], Selector]) -> None:
    selector, resumed = make(), make()
    assert isinstance(selector, pysel.samplers.Selects)
    chosen = selector.select(1)
    assert len(selector) == len(chosen) and chosen.dtype == torch.int64
    assert torch.equal(selector.select(1), chosen)
    resumed.load_state_dict(selector.state_dict())
    assert torch.equal(resumed.select(1), chosen) and torch.equal(resumed.select(2), selector.select(2))
