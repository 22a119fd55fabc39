"""Plain-torch oracle of selection from one long vector, over all of it or by group."""

from __future__ import annotations

import torch
from torch import Tensor

from pysel import _fake
from pysel.reference.random import ORDER, unsigned_order, words64


def check_groups(
    op: str, k: int, groups: Tensor | None, quotas: Tensor | None, size_name: str, counted: Tensor
) -> None:
    """Refuse groups and quotas that do not fit; ``counted`` [n] says which elements a group's size counts."""
    if groups is None or quotas is None:
        return
    total = sum(quotas.tolist())  # of any size
    for g, quota in enumerate(quotas.tolist()):
        if quota < 0:
            raise ValueError(f"{op}: quotas must be at least 0, got {quota} for group {g}")
    if total != k:
        raise ValueError(f"{op}: quotas must sum to k, {k}, got a sum of {total}")
    outside = (groups < 0) | (groups >= len(quotas))
    if bool(outside.any()):
        group = int(groups[outside][0])
        if len(quotas) == 0:
            raise IndexError(f"{op}: groups must be empty for empty quotas, got {group}")
        raise IndexError(f"{op}: groups must be between 0 and {len(quotas) - 1}, got {group}")
    sizes = torch.bincount(groups[counted], minlength=len(quotas))
    for g in (quotas > sizes).nonzero().flatten().tolist():
        size, quota = int(sizes[g]), int(quotas[g])
        raise ValueError(f"{op}: quotas must be at most {size_name} of each group, {size} for group {g}, got {quota}")


def ranking(x: Tensor, largest: bool, words: Tensor | None) -> Tensor:
    """Indices of rows, largest (or smallest) first; equal elements by their unsigned words, then by index."""
    if words is None:
        return x.sort(dim=-1, descending=largest, stable=True).indices
    by_word = unsigned_order(words).sort(dim=-1, stable=True).indices
    return by_word.gather(-1, x.gather(-1, by_word).sort(dim=-1, descending=largest, stable=True).indices)


def best(ranked: Tensor, k: int, groups: Tensor | None, quotas: Tensor | None) -> Tensor:
    """The first k of a ranking [n], or as many of each group as its quota says, in the ranking's order."""
    if groups is None or quotas is None:
        return ranked[..., :k]
    group = groups.long()[ranked]
    by_group = group.sort(stable=True).indices
    sizes = torch.bincount(group, minlength=len(quotas))
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(by_group)  # of each element within its group
    place[by_group] = torch.arange(len(ranked), device=ranked.device) - first[group[by_group]]
    return ranked[place < quotas[group]]


def select(
    scores: Tensor,
    k: int,
    largest: bool,
    groups: Tensor | None = None,
    quotas: Tensor | None = None,
    key: Tensor | None = None,
    validate: bool | None = None,
    start: int = 0,
) -> Tensor:
    """See :func:`pysel.select`."""
    op = "select"
    _fake.select(scores, k, largest, groups, quotas, key, validate, start)
    check_groups(op, k, groups, quotas, "the size", torch.ones_like(scores, dtype=torch.bool))
    if validate is not False and scores.dtype.is_floating_point and bool(torch.isnan(scores).any()):
        raise ValueError(f"{op}: scores must not be NaN, got NaN")
    n = scores.shape[0]
    words = None if key is None else words64(key, ORDER, start + torch.arange(n, device=scores.device))
    return best(ranking(scores, largest, words), k, groups, quotas).sort().values
