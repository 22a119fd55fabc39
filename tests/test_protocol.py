"""pysel/selection/protocol.py: what every method must keep to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import pysel
from pysel.selection import (
    DynamicRandom,
    Full,
    InfoBatch,
    KMeans,
    NearestNeighbourThinning,
    ScoreSelector,
    Selector,
    StaticRandom,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Full(40),
        lambda: StaticRandom(40, 0.3),
        lambda: DynamicRandom(40, 0.3),
        lambda: InfoBatch(40, 4),
        lambda: ScoreSelector(torch.rand(40), 0.3),
        lambda: KMeans(torch.rand(40, 2), 0.3, 4),
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
