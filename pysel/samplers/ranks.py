"""Who am I, who deals out the samples, and do all ranks agree?

How the samplers work::

    key, weights or selector                       a Pass, made by iter(sampler)
      |                                              epoch, key, position: its own, with a state of its own
      v            set_epoch(e) ----> next pass      |
    one global sequence of indices an epoch ---------+--> rank r of W takes elements r, r + W, r + 2W, ...
                   load_state_dict -> next pass

- The sequence is a function of (key, epoch, weights or subset), the same on every rank and at any world size. So a
  position in it is one number, which means the same on all ranks and after a restart on more or fewer of them.
- The position belongs to the pass. ``set_epoch`` and ``load_state_dict`` say where the *next* one begins; one that runs
  is never disturbed. A pass begins with its first sample, not when it is made: loaders and trainers make iterators
  before they name the epoch. The sampler's state is that of the pass that began last, or of the coming one.
- Frameworks are of two kinds. Those that leave a sampler alone if it knows about ranks (Lightning, Fabric, Ray Train,
  Composer) ask ``isinstance(sampler, torch.utils.data.DistributedSampler)``: hence the base class. Those that deal out
  batches themselves, whatever the sampler is (Accelerate, Hugging Face's Trainer), need one that yields the whole
  sequence; dealing it out twice is refused.
- Processes along a mesh's tensor, context and pipeline dimensions have the same rank here, and the same samples. Where
  the whole mesh is given they are compared with all others, as each epoch begins.
- Who this process is, is asked anew at each ``len`` and with each pass, since samplers are made before process groups.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pysel import _checks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

# dimensions of a mesh along which all processes work on the same samples
_SAME_SAMPLES = frozenset(
    "tp cp pp sp mp tensor context pipeline sequence model "
    "tensor_parallel context_parallel pipeline_parallel sequence_parallel model_parallel".split()
)

_Result = TypeVar("_Result")


class Ranks(NamedTuple):
    """This process among those that split an epoch."""

    rank: int
    world: int
    groups: tuple[ProcessGroup | None, ...] = ()  # of all that are compared, one for each dimension; None: the world


class Where(NamedTuple):
    """What a sampler was told about its rank."""

    rank: int | None
    num_replicas: int | None
    mesh: DeviceMesh | None
    process_group: ProcessGroup | None


def where(
    name: str, rank: Any, num_replicas: Any, mesh: DeviceMesh | None, process_group: ProcessGroup | None
) -> Where:
    """The arguments, checked as far as they can be before there are process groups."""
    if rank is not None:
        rank = _checks.in_range(name, "rank", rank, 0)
    if num_replicas is not None:
        num_replicas = _checks.in_range(name, "num_replicas", num_replicas, 1)
    ways = (rank is not None or num_replicas is not None, mesh is not None, process_group is not None)
    if sum(ways) > 1:
        raise ValueError(f"{name}: give rank and num_replicas, or mesh, or process_group")
    if mesh is not None and not _split(mesh):
        raise ValueError(
            f"{name}: mesh must have a data-parallel dimension, got {', '.join(mesh.mesh_dim_names or ())}: pass the "
            "whole mesh, or rank=0, num_replicas=1 where all processes work on the same samples"
        )
    if rank is not None and (num_replicas is not None or not dist_ready()):
        _within(name, rank, num_replicas or 1)
    return Where(rank, num_replicas, mesh, process_group)


def _split(mesh: DeviceMesh) -> list[int]:
    """The dimensions of a mesh along which samples are split."""
    names = mesh.mesh_dim_names or ("",) * mesh.ndim
    return [dimension for dimension, name in enumerate(names) if name not in _SAME_SAMPLES]


def dist_ready() -> bool:
    """Whether there are process groups."""
    return dist.is_available() and dist.is_initialized()


def _within(name: str, rank: int, world: int) -> None:
    if rank >= world:
        raise ValueError(f"{name}: rank must be between 0 and {world - 1}, got {rank}")


def find(name: str, told: Where) -> Ranks:
    """Who this process is now.

    Raises:
        ValueError: it is in neither mesh nor group; or nothing was told, and Accelerate deals out batches.
    """
    if told.mesh is not None:
        place = told.mesh.get_coordinate()
        if place is None:
            raise ValueError(f"{name}: mesh must contain this process, got {told.mesh}")
        rank, world = 0, 1
        for dimension in _split(told.mesh):
            size = told.mesh.size(dimension)
            rank, world = rank * size + place[dimension], world * size
        return Ranks(rank, world, tuple(told.mesh.get_all_groups()))
    if told.process_group is not None:
        rank = dist.get_rank(told.process_group)
        if rank < 0:
            raise ValueError(f"{name}: process_group must contain this process")
        return Ranks(rank, dist.get_world_size(told.process_group), (told.process_group,))
    if told.rank is not None and told.num_replicas is not None:
        return Ranks(told.rank, told.num_replicas)
    if accelerated() > 1:
        raise ValueError(
            f"{name}: Accelerate and Hugging Face's Trainer deal out batches themselves: pass rank=0, num_replicas=1 "
            "(or, if the loader is not prepared by them, this process's rank and the number of processes)"
        )
    if not dist_ready():
        return Ranks(told.rank or 0, told.num_replicas or 1)
    rank = dist.get_rank() if told.rank is None else told.rank
    world = dist.get_world_size() if told.num_replicas is None else told.num_replicas
    _within(name, rank, world)
    return Ranks(rank, world, (None,) if told.rank is None and told.num_replicas is None else ())


def accelerated() -> int:
    """The number of processes that Accelerate runs; 1 where it does not."""
    state = getattr(sys.modules.get("accelerate.state"), "PartialState", None)
    return getattr(state, "_shared_state", {}).get("num_processes") or 1


def beneath_accelerate(name: str, who: Ranks) -> Ranks:
    """Look among the callers for the batch sampler by which Accelerate gives each process a share of the batches.

    There every process must draw the whole sequence, and the same one, so all are compared. (Where one process draws
    for all, as with ``dispatch_batches``, there is none.)

    Raises:
        ValueError: the share would be one of a share.
    """
    frame = sys._getframe() if accelerated() > 1 else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            shards = getattr(frame.f_locals.get("self"), "num_processes", 1)
            if isinstance(shards, int) and shards > 1:
                if who.world > 1:
                    raise ValueError(
                        f"{name}: Accelerate deals out the batches of this loader to {shards} processes: "
                        f"pass rank=0, num_replicas=1, got rank={who.rank}, num_replicas={who.world}"
                    )
                return who._replace(groups=(None,) if dist_ready() else ())
        frame = frame.f_back
    return who


def agree(name: str, ranks: Ranks, work: Callable[[], tuple[_Result, dict[str, str]]]) -> _Result:
    """What ``work`` gives, once it has been done on all ranks with the same report, which it gives second.

    Raises:
        what it raises; and on the other ranks what `compare` does.
    """
    try:
        result, report = work()
    except Exception as error:
        compare(name, ranks, error)  # the others are waiting
        raise
    compare(name, ranks, report)
    return result


def compare(name: str, ranks: Ranks, report: dict[str, str] | Exception) -> None:
    """Raise on every rank, and name those that differ by their numbers in the world, unless all have the same report.

    A collective over ``ranks.groups``: those that split an epoch, and those with the same samples. A rank on which
    making the samples has failed takes part, too, so that the others need not wait for it.

    Args:
        report: digests by what they are of, or what went wrong.
    """
    own = report if isinstance(report, dict) else {"error": f"{type(report).__name__}: {report}"}
    reports = [(dist.get_rank() if dist_ready() else 0, own)]
    for group in reversed(ranks.groups):
        size = dist.get_world_size(group)
        if size > 1:
            gathered: list[Any] = [None] * size
            dist.all_gather_object(gathered, reports, group=group)
            reports = [one for part in gathered for one in part]
    if isinstance(report, Exception):
        raise report
    for rank, one in reports:
        if "error" in one:
            raise RuntimeError(f"{name}: rank {rank} has failed with {one['error']}")
    first, wanted = reports[0]
    different = {what: [rank for rank, one in reports if one.get(what) != value] for what, value in wanted.items()}
    if any(different.values()):
        found = "; ".join(
            f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} in {what}" for what, odd in different.items() if odd
        )
        raise ValueError(f"{name}: all ranks must have the same samples, but from rank {first} differ {found}")


def digest(value: Any) -> str:
    """A short hash of numbers, strings and tensors, in lists and dictionaries: equal for equal ones in any process."""
    hashed = hashlib.blake2b(digest_size=8)

    def add(part: Any) -> None:
        if hasattr(part, "__create_chunk_list__"):  # a rank's shard: ranks have the whole in common
            hashed.update(f"{part.dtype} {list(part.size())} in shards".encode())
        elif isinstance(part, Tensor):
            hashed.update(f"{part.dtype} {list(part.shape)}".encode())
            for piece in part.detach().cpu().contiguous().view(-1).split(1 << 22):
                hashed.update(piece.view(torch.uint8).numpy())
        elif isinstance(part, dict):
            for name in sorted(part):
                hashed.update(f"{name}:".encode())
                add(part[name])
        elif isinstance(part, list | tuple):
            hashed.update(f"{len(part)} of".encode())
            for one in part:
                add(one)
        else:
            hashed.update(f"{getattr(part, '__qualname__', repr(part))};".encode())

    add(value)
    return hashed.hexdigest()
