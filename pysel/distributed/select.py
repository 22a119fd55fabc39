"""Exact selection from one vector that is spread over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pysel import _checks, ops
from pysel.distributed.agree import Meeting, meet
from pysel.distributed.race import Shard, check_groups, winners
from pysel.random import resolve


def select(
    scores: Tensor,
    k: int,
    largest: bool = True,
    *,
    groups: Tensor | None = None,
    quotas: Tensor | None = None,
    key: Tensor | int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Select exactly k elements of a vector of which each rank holds a shard: `pysel.select` of the whole.

    Args:
        scores: [n], this rank's shard; n may differ between ranks and be 0. Dtypes as in `pysel.select`.
        k: of all ranks together, between 0 and N.
        largest: select the largest; else the smallest.
        groups: int64 or int32 [n], in [0, G): the group of each element of the shard. Together with ``quotas``.
        quotas: int64 [G], how many of each group over all ranks, which sum to ``k``; G is at most 2,097,152.
        key: int64 [2] or an int: orders ties at random; without one they go to the lowest index.
        process_group: the ranks, in whose order the shards follow each other; default all.

    Returns:
        int64, ascending: the rows of this rank's shard that are selected.

    Raises:
        ValueError: as `pysel.select`, on the rank that holds the cause; ranks that differ in an argument, on all.
        IndexError, TypeError: as `pysel.select`.
        RuntimeError: torch.distributed is not initialised, or another rank has refused its shard.

    Example:
        >>> import tempfile, torch, pysel.distributed
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> pysel.distributed.select(torch.tensor([0.3, 0.9, 0.9, 0.1]), 2)
        tensor([1, 2])
        >>> torch.distributed.destroy_process_group()

    Source: the idea of rounds of pivots is that of Huebschle-Schneider, Sanders and Mueller, arXiv 1502.03942.
    """
    op = "select"
    resolved: Tensor | None = None

    def prepare() -> tuple[dict[str, Any], int]:
        nonlocal scores, k, resolved
        _checks.tensor(op, "scores", scores, (*_checks.FLOATING, torch.int64, torch.int32))
        k, scores = _checks.integer(op, "k", k), scores.detach()
        if scores.dim() != 1:
            raise ValueError(f"{op}: scores must have shape [n], got {list(scores.shape)}")
        if scores.is_floating_point() and bool(scores.isnan().any()):
            raise ValueError(f"{op}: scores must not be NaN, got NaN")
        check_groups(op, groups, quotas, k, "scores", scores)
        resolved = None if key is None else resolve(op, key, None, scores.device)
        options = {"k": k, "largest": _checks.flag(op, "largest", largest), "quotas": quotas, "key": resolved}
        return {**options, "scores' dtype": str(scores.dtype)}, 0

    meeting = meet(op, scores, prepare, process_group)
    total = sum(meeting.rows)
    if not 0 <= k <= total:
        raise IndexError(f"{op}: k must be between 0 and {total}, got {k}")

    return chosen(op, meeting, scores, k, largest, groups, quotas, resolved)


def chosen(
    op: str,
    meeting: Meeting,
    scores: Tensor,
    k: int,
    largest: bool,
    groups: Tensor | None,
    quotas: Tensor | None,
    key: Tensor | None,
) -> Tensor:
    """What `select` returns, once the ranks have met with arguments that are right."""
    wanted = torch.tensor([k], device="cpu") if quotas is None else quotas.cpu()
    shard = Shard(scores.numel(), largest, scores.__getitem__, None, groups, meeting.offset, key)
    mine = winners(op, meeting, shard, wanted, "the size")
    return ops.select(
        scores,
        int(mine.sum()),
        largest,
        groups=groups,
        quotas=None if groups is None else mine.to(scores.device),
        key=key,
        start=meeting.offset,
    )
