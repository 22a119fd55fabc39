"""The first collective of every call: whether all ranks mean the same, and how long their shards are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_OP, _ROWS, _REFUSED, _NOTE = range(4)  # of a header; the options follow
_OPTIONS = 16

_Result = TypeVar("_Result")


class Meeting(NamedTuple):
    """What the ranks have told each other."""

    group: dist.ProcessGroup | None
    rank: int
    world: int
    rows: list[int]  # of each rank's shard
    notes: list[int]  # what each rank had to add

    @property
    def offset(self) -> int:
        """Rows of the shards before this rank's."""
        return sum(self.rows[: self.rank])


def meet(
    op: str, shard: Tensor | None, prepare: Callable[[], tuple[dict[str, Any], int]], group: dist.ProcessGroup | None
) -> Meeting:
    """Compare the ranks' arguments.

    Args:
        op: name of the function, for messages.
        shard: this rank's; messages live on its device, as the group's backend wants. None if it is no tensor.
        prepare: raises what this rank has to refuse, so that the others need not wait for it. Returns the arguments
            that must be equal on all ranks, by name, and an integer that all are to know.
        group: the ranks; None are all.

    Raises:
        RuntimeError: there is no process group, or another rank has refused its shard.
        ValueError: ranks differ in an argument, or this process is not of the group. And what ``prepare`` raises.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"{op}: torch.distributed must be initialised first, by init_process_group")
    if dist.get_rank(group) < 0:
        raise ValueError(f"{op}: process_group must contain this process")
    own: Exception | None = None
    options: dict[str, Any] = {}
    rows, note = 0, 0
    device = shard.device if isinstance(shard, Tensor) else message_device(group)
    try:
        if isinstance(shard, Tensor):
            rows = shard.size(0) if shard.dim() else 0
        options, note = prepare()
    except Exception as error:  # whatever it is, the others wait
        own = error
    values = [_hash(op), rows, int(own is not None), note, *map(_hash, options.values())]
    header = torch.zeros(_NOTE + 1 + _OPTIONS, dtype=torch.int64, device="cpu")
    header[: len(values)] = torch.tensor(values, dtype=torch.int64, device="cpu")
    told = gather(header.to(device), group).cpu()
    if own is not None:
        raise own
    if not bool((told[:, _OP] == told[0, _OP]).all()):
        raise ValueError(f"{op}: all ranks must call the same function, but rank {_first(told[:, _OP])} calls another")
    refused = told[:, _REFUSED].nonzero().flatten().tolist()
    if refused:
        raise RuntimeError(f"{op}: refused on rank {', '.join(map(str, refused))}, whose own error says why")
    for at, (name, value) in enumerate(options.items()):
        column = told[:, _NOTE + 1 + at]
        if not bool((column == column[0]).all()):
            other = _first(column)
            raise ValueError(
                f"{op}: {name} must be the same on all ranks, but differs between rank 0 and rank {other} "
                f"(here it is {_shown(value)})"
            )
    return Meeting(group, dist.get_rank(group), len(told), told[:, _ROWS].tolist(), told[:, _NOTE].tolist())


def together(op: str, work: Callable[[], _Result], group: dist.ProcessGroup | None) -> _Result:
    """What ``work`` gives on this rank, once it has been done on all.

    Raises:
        RuntimeError: it has failed on another rank. And what it raises.
    """
    done: list[_Result] = []

    def prepare() -> tuple[dict[str, Any], int]:
        done.append(work())
        return {}, 0

    meet(op, None, prepare, group)
    return done[0]


def message_device(group: dist.ProcessGroup | None) -> torch.device:
    """Where messages that are of no tensor's device live: on the CPU, unless the group's backend does not reach it."""
    if "cpu" in dist.get_backend_config(group):
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def gather(row: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The ranks' rows [...], stacked: [W, ...]."""
    out = row.new_empty((dist.get_world_size(group), *row.shape))
    dist.all_gather(list(out.unbind(0)), row.contiguous(), group=group)
    return out


def add(counts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of the ranks' counts."""
    total = counts.clone()
    dist.all_reduce(total, group=group)
    return total


def _hash(value: Any) -> int:
    """63 bits that are equal for equal options."""
    if isinstance(value, Tensor):
        value = (str(value.dtype), list(value.shape), value.tolist())
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little") >> 1


def _first(column: Tensor) -> int:
    return int((column != column[0]).nonzero()[0])


def _shown(value: Any) -> str:
    return str(value.tolist() if isinstance(value, Tensor) else value)[:200]
