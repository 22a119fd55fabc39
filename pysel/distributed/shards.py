"""What ranks find out together about vectors of which each holds a shard; and a shard as a checkpoint takes it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pysel import _inputs
from pysel.distributed.agree import Meeting, gather
from pysel.distributed.select import chosen
from pysel.random import fold_in, key
from pysel.selection.dynamic.unit_interval import rescale

_PIECE = 1 << 22
_WORDS = 0  # the stream of a fingerprint's factors, under a key of its own
_FINGERPRINT = 0x66696E676572


def unit_interval(op: str, meeting: Meeting, scores: Tensor, how: str | None) -> Tensor:
    """This rank's part [n] of what `pysel.selection.to_unit_interval` makes of the whole; with None a copy."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if how is None:
        return scores.clone()
    low, high = _extremes(scores, meeting)
    if how == "rank":
        return torch.zeros_like(scores) if low == high else _mean_ranks(scores, meeting)
    ends = low, high
    if how == "clip":
        beyond = sum(meeting.rows) // 100  # on either side
        first = chosen(op, meeting, scores, beyond + 1, False, None, None, None)
        last = chosen(op, meeting, scores, beyond + 1, True, None, None, None)
        ends = _extremes(scores[first], meeting)[1], _extremes(scores[last], meeting)[0]
    return rescale(scores, torch.maximum(low.abs(), high.abs()), *ends)


def _extremes(x: Tensor, meeting: Meeting) -> tuple[Tensor, Tensor]:
    """The smallest and the largest number of all ranks, never -0: which zero comes first depends on the layout."""
    own = x.new_tensor([math.inf, -math.inf]) if not len(x) else torch.stack([x.min(), x.max()])
    told = gather(own, meeting.group)
    return told[:, 0].min() + 0.0, told[:, 1].max() + 0.0


def _mean_ranks(scores: Tensor, meeting: Meeting) -> Tensor:
    """Mean ranks of equal scores over N - 1, by holding this shard against each rank's, one after the other."""
    below = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    upto = below.clone()
    ordered = scores.sort().values
    for rank, rows in enumerate(meeting.rows):
        other = ordered if rank == meeting.rank else scores.new_empty(rows)
        dist.broadcast(other, group=meeting.group, group_src=rank)
        below += torch.searchsorted(other, scores)
        upto += torch.searchsorted(other, scores, right=True)
    mean = (upto - 1).double() - (upto - below - 1).double() / 2
    return (mean / (sum(meeting.rows) - 1)).to(scores.dtype)


def classes(labels: _inputs.Classes, meeting: Meeting) -> _inputs.Classes:
    """This rank's ids [n] among the classes of all ranks; ``labels`` are those of its shard alone."""
    count = labels.labels.new_tensor([len(labels.labels)], dtype=torch.int64)
    counts = gather(count, meeting.group).flatten().tolist()
    message = count.new_zeros(2, max(counts))
    message[0, :count], message[1, :count] = labels.labels.long(), labels.sizes
    told = gather(message, meeting.group)
    parts = torch.cat([part[:, :n] for part, n in zip(told, counts, strict=True)], 1)
    values, place = torch.unique(parts[0], return_inverse=True)
    sizes = torch.zeros_like(values).index_add_(0, place, parts[1])
    return _inputs.Classes(torch.searchsorted(values, labels.labels.long()).int()[labels.ids.long()], values, sizes)


def fingerprint(tables: dict[str, Tensor], meeting: Meeting) -> int:
    """63 bits of a hash of vectors, of which ``tables`` are this rank's shards: the same however these are cut.

    The sum modulo 2**64 of each number's bits times a random word that belongs to its place.
    """
    total = 0
    for at, (_, table) in enumerate(sorted(tables.items())):
        words = fold_in(key(_FINGERPRINT, device="cpu"), at)
        for first in range(0, len(table), _PIECE):
            part = table[first : first + _PIECE]
            bits = part.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[part.element_size()]).long()
            bits = bits ^ (bits >> 32)  # float64s may differ in their upper bits alone, which a product would push out
            index = torch.arange(first, first + len(part), device=part.device) + meeting.offset
            total += int((bits * torch.ops.pysel.words64(words, _WORDS, index)).sum())
    own = torch.tensor([(total + 2**63) % 2**64 - 2**63], dtype=torch.int64, device=next(iter(tables.values())).device)
    return (sum(gather(own, meeting.group).flatten().tolist()) % 2**64) >> 1


class VectorShard(Tensor):
    """This rank's part of a vector [N], which torch.distributed.checkpoint saves and loads at any world size.

    It is a tensor [N] because the checkpoint looks up nothing else by its place. It holds ``local`` alone, has no
    memory for the rest, and can do nothing but be copied (as asynchronous checkpoints do), moved and pickled.

    Args:
        local: [n], elements ``offset`` to ``offset + n``.
        total: N.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    local: Tensor  # in the same memory as what was given
    offset: int
    total: int

    @staticmethod
    def __new__(cls, local: Tensor, offset: int, total: int) -> VectorShard:
        shard: VectorShard = Tensor._make_wrapper_subclass(cls, (total,), dtype=local.dtype, device=local.device)
        shard.local, shard.offset, shard.total = local.detach(), offset, total
        return shard

    @classmethod
    def __torch_dispatch__(cls, op: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        shard, *rest = args
        if op is torch.ops.aten.copy_.default:
            shard.local.copy_(rest[0].local)
            return shard
        if op is torch.ops.aten.new_empty.default and list(rest[0]) == [shard.total]:
            local = shard.local.new_empty(shard.local.shape, **(kwargs or {}))
        elif op in _COPIES:
            local = op(shard.local, *rest, **(kwargs or {}))
        else:
            raise TypeError(f"VectorShard: {op} needs the whole vector, of which this rank has a part, .local")
        return VectorShard(local, shard.offset, shard.total)

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        return VectorShard, (self.local, self.offset, self.total)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"VectorShard({self.dtype}, [{self.total}], from {self.offset})"

    # --- the protocol torch.distributed._checkpointable ---

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        if not len(self.local):
            return []
        return [ChunkStorageMetadata(torch.Size([self.offset]), torch.Size([len(self.local)]))]

    def __create_write_items__(self, fqn: str, _: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties.create_from_tensor(self.local)
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, _: Any) -> Tensor:
        return self.local


_COPIES = {torch.ops.aten.detach.default, torch.ops.aten.clone.default, torch.ops.aten._to_copy.default}
torch.serialization.add_safe_globals([VectorShard])
