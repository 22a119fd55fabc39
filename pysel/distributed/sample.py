"""Exact weighted sampling from weights that are spread over ranks."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pysel import _checks, ops
from pysel.distributed.agree import Meeting, gather, meet
from pysel.distributed.race import PIECE, Shard, check_groups, winners
from pysel.random import resolve


def weighted_sample(
    weights: Tensor,
    k: int,
    replacement: bool = False,
    *,
    log_weights: bool = False,
    groups: Tensor | None = None,
    quotas: Tensor | None = None,
    key: Tensor | int,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Draw k indices in proportion to weights of which each rank holds a shard: `pysel.weighted_sample` of the whole.

    With replacement every rank goes through all k draws to find its own, and takes 8 bytes for each of its weights.

    Args:
        weights: [n], this rank's shard; n may differ between ranks and be 0. Dtypes and values as in
            `pysel.weighted_sample`.
        k: draws of all ranks together.
        replacement: draw with replacement.
        log_weights: ``weights`` are logarithms.
        groups: int64 or int32 [n], in [0, G): the group of each weight of the shard. Together with ``quotas``.
        quotas: int64 [G], draws from each group over all ranks, which sum to ``k``; G is at most 2,097,152.
        key: int64 [2] or an int; the same on all ranks.
        process_group: the ranks, in whose order the shards follow each other; default all.

    Returns:
        int64, ascending: the rows of this rank's shard that are drawn; with replacement as often as they are.

    Raises:
        ValueError: as `pysel.weighted_sample`, on the rank that holds the cause; ranks that differ in an argument, on
            all; no key.
        IndexError, TypeError: as `pysel.weighted_sample`.
        RuntimeError: torch.distributed is not initialised, or another rank has refused its shard.

    Example:
        >>> import tempfile, torch, pysel.distributed
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> pysel.distributed.weighted_sample(torch.tensor([0.0, 3.0, 1.0]), 2, key=0)
        tensor([1, 2])
        >>> torch.distributed.destroy_process_group()

    Source: as `pysel.weighted_sample`; sharding as in `pysel.distributed.select`.
    """
    op = "weighted_sample"
    least = -math.inf if log_weights else 0.0
    resolved = torch.empty(0, dtype=torch.int64, device="cpu")

    def prepare() -> tuple[dict[str, Any], int]:
        nonlocal weights, k, resolved
        _checks.tensor(op, "weights", weights)
        k, weights = _checks.in_range(op, "k", k, 0), weights.detach()
        if key is None:
            raise ValueError(f"{op}: key must be given, the same on all ranks, got None")
        resolved = resolve(op, key, None, weights.device)
        if weights.dim() != 1:
            raise ValueError(f"{op}: weights must have shape [n], got {list(weights.shape)}")
        if _checks.flag(op, "replacement", replacement) and groups is not None:
            raise ValueError(f"{op}: replacement must be False with groups, got True")
        check_groups(op, groups, quotas, k, "weights", weights)
        if _checks.flag(op, "log_weights", log_weights) and bool((weights.isnan() | (weights == math.inf)).any()):
            raise ValueError(f"{op}: weights must be below +inf and not NaN (log_weights=True), got +inf or NaN")
        if not log_weights and bool((~torch.isfinite(weights) | (weights < 0)).any()):
            raise ValueError(f"{op}: weights must be finite and at least 0, got a negative, infinite or NaN weight")
        options = {"k": k, "replacement": replacement, "log_weights": log_weights, "quotas": quotas, "key": resolved}
        most = float(weights.max()) if weights.numel() else least
        return {**options, "weights' dtype": str(weights.dtype)}, _as_bits(most)

    meeting = meet(op, weights, prepare, process_group)
    if replacement:
        return _inversion(op, meeting, weights, k, log_weights, resolved)
    total = sum(meeting.rows)
    if k > total:
        raise IndexError(f"{op}: k must be between 0 and {total}, got {k}")

    return drawn(op, meeting, weights, k, log_weights, groups, quotas, resolved)


def drawn(
    op: str,
    meeting: Meeting,
    weights: Tensor,
    k: int,
    log_weights: bool,
    groups: Tensor | None,
    quotas: Tensor | None,
    key: Tensor,
) -> Tensor:
    """What `weighted_sample` returns without replacement, once the ranks have met with arguments that are right."""
    least = -math.inf if log_weights else 0.0

    def race_keys(part: slice) -> Tensor:
        return torch.ops.pysel.race_keys(weights[part], log_weights, key, meeting.offset + part.start)

    wanted = torch.tensor([k], device="cpu") if quotas is None else quotas.cpu()
    shard = Shard(weights.numel(), True, race_keys, lambda part: weights[part] > least, groups, meeting.offset, key)
    mine = winners(op, meeting, shard, wanted, "the number of nonzero weights")
    return ops.weighted_sample(
        weights,
        int(mine.sum()),
        log_weights=log_weights,
        order="index",
        groups=groups,
        quotas=None if groups is None else mine.to(weights.device),
        key=key,
        start=meeting.offset,
    )


def _inversion(op: str, meeting: Meeting, weights: Tensor, k: int, log_weights: bool, key: Tensor) -> Tensor:
    """The draws that fall into this rank's part of the cumulative weights, which are exact integers."""
    most = max(map(_from_bits, meeting.notes))
    if k > 0 and most == (-math.inf if log_weights else 0.0):
        raise ValueError(f"{op}: weights must have at least one above 0, got zeros on all ranks")
    drawn = [weights.new_empty(0, dtype=torch.int64)]
    if k == 0:
        return drawn[0]
    upto = torch.ops.pysel.fixed_weights(weights, log_weights, most, sum(meeting.rows)).cumsum(0)
    own = upto[-1:] if len(upto) else upto.new_zeros(1)
    sums = [int(s) % 2**64 for s in gather(own, meeting.group).flatten()]
    below, total = sum(sums[: meeting.rank]), sum(sums)
    width = sums[meeting.rank]
    ordered = _ordered(upto)
    for first in range(0, k if width else 0, PIECE):
        count = min(PIECE, k - first)
        at = _ordered(torch.ops.pysel.draw_targets(key, first, count, _signed(total)) - _signed(below))
        drawn.append(torch.searchsorted(ordered, at[at < _ordered_int(width)], right=True))
    return torch.cat(drawn).sort().values


def _ordered(x: Tensor) -> Tensor:
    """int64 that ascend as the unsigned numbers of the same bits do."""
    return x ^ torch.iinfo(torch.int64).min


def _ordered_int(x: int) -> int:
    return x - 2**63


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def _as_bits(x: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", x))[0])


def _from_bits(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
