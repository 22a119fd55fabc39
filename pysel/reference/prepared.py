"""Plain-torch oracle of prepared weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pysel import _fake
from pysel.reference.sample import fixed_weights

_FAN = 64


def _check(op: str, name: str, weights: Tensor) -> None:
    if bool((~torch.isfinite(weights) | (weights < 0)).any()):
        raise ValueError(f"{op}: {name} must be finite and at least 0, got a negative, infinite or NaN weight")


def _blocks(x: Tensor) -> Tensor:
    return pad(x, (0, -len(x) % _FAN)).view(-1, _FAN)


def prepare(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Running sums of blocks in fixed point, and the largest weight of each; see csrc/common/prepared.h."""
    _fake.prepare(weights)
    _check("prepare", "weights", weights)
    sums, largest = fixed_weights(weights, False, float(weights.max()), len(weights)), weights
    levels: list[tuple[Tensor, Tensor]] = []
    while not levels or len(sums) > _FAN:
        sums, largest = _blocks(sums).sum(1), _blocks(largest).amax(1)
        levels.append((_blocks(sums).cumsum(1).flatten()[: len(sums)], largest))
    return torch.cat([level[0] for level in levels]), torch.cat([level[1] for level in levels])


def update_prepared_(weights: Tensor, sums: Tensor, largest: Tensor, index: Tensor, weight: Tensor) -> None:
    """See :meth:`pysel.ops.PreparedWeights.update_`; all sums are made anew."""
    _fake.update_prepared_(weights, sums, largest, index, weight)
    n = len(weights)
    outside = index[(index < 0) | (index >= n)]
    if outside.numel():
        raise IndexError(f"update_: index must be between 0 and {n - 1}, got {int(outside[0])}")
    _check("update_", "weight", weight)
    listed, place = index.unique(return_inverse=True)
    last = torch.zeros_like(listed).scatter_reduce_(0, place, torch.arange(len(index), device=index.device), "amax")
    weights[listed] = weight[last]
    for old, new in zip((sums, largest), prepare(weights), strict=True):
        old.copy_(new)


def sample_prepared(
    weights: Tensor, sums: Tensor, largest: Tensor, k: int, order: str, key: Tensor, start: int
) -> Tensor:
    """Draws from the weights themselves."""
    return torch.ops.pysel.weighted_sample(weights, k, True, False, order, None, None, key, start, None)
