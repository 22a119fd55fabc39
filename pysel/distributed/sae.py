"""Sparse autoencoders of features that are spread over ranks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pysel import _checks, _inputs
from pysel.distributed.agree import add, gather, meet, message_device, together
from pysel.sae.factors import Codes, FactorTables, check_model, check_options, weigh
from pysel.sae.model import TopKSAE
from pysel.sae.rows import Rows
from pysel.sae.train import SAEReport, Training

_PIECE = 1 << 22  # numbers in a message
_DTYPES = {4: torch.float32, 8: torch.float64}  # that `Rows` gives, by their sizes


class Shard(NamedTuple):
    """A rank's rows, and what it knows of the others'."""

    rows: Rows | None  # None: there are none
    sizes: list[int]  # rows of each rank
    width: int
    dtype: torch.dtype
    rank: int

    @property
    def offset(self) -> int:
        """Rows of the ranks before."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        return sum(self.sizes)


def train_sae(
    features: Any,
    num_factors: int,
    k: int,
    *,
    activation: str = "relu",
    tied: bool = False,
    revive: str | None = "aux",
    max_rows: int | None = 32768,
    epochs: int | None = None,
    batch_size: int = 512,
    lr: float = 3e-3,
    aux_k: int | None = None,
    aux_weight: float = 1 / 32,
    dead_after: int | None = None,
    key: Tensor | int,
    device: torch.device | str | None = None,
    progress: bool | Callable[[int, float], None] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[TopKSAE, SAEReport]:
    """Train a `TopKSAE` on features of which each rank holds a shard: `pysel.sae.train_sae` of the whole.

    The rows to train and judge on are drawn by key from all, and the first rank receives those that others hold: with
    the defaults at most 49,152 rows, 4 bytes a number or 8 for float64. It trains while the others wait, which the
    process group's timeout must allow for, and sends the model to all: every rank has the bits that one process on the
    first rank's machine gets, with as many threads.

    Args:
        features: [n, d], this rank's shard, of any kind that `pysel.sae.Rows` reads; n may differ between ranks and be
            0 (for what has a length).
        num_factors, k, activation, tied, revive, max_rows, epochs, batch_size, lr, aux_k, aux_weight, dead_after: see
            `pysel.sae.train_sae`; the same on all ranks. ``max_rows=None`` brings all rows to the first rank.
        key: int64 [2] or an int; the same on all ranks.
        device: where the first rank trains, and where the others put the model; default where the features are, each
            rank its own.
        progress: see `pysel.sae.train_sae`; of the first rank.
        process_group: the ranks, in whose order the shards follow each other; default all.

    Returns:
        the model and its report, the same on all ranks.

    Raises:
        TypeError, ValueError, FloatingPointError: as `pysel.sae.train_sae`, on the rank that holds the cause, whose own
            row is named; ranks that differ in an argument or in the width of their features, on all; no key.
        RuntimeError: torch.distributed is not initialised, or another rank has failed.

    Warns:
        UserWarning: as `pysel.sae.train_sae`, on the first rank.

    Example:
        >>> import tempfile, torch, pysel.distributed
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> model, report = pysel.distributed.train_sae(torch.eye(16), 16, 2, epochs=2, lr=0.1, key=0)
        >>> len(report.losses)
        2
        >>> torch.distributed.destroy_process_group()
    """
    op = "train_sae"
    asked: list[Training] = []
    where = torch.device("cpu")

    def prepare(rows: Rows | None) -> dict[str, Any]:
        nonlocal where
        if key is None:
            raise ValueError(f"{op}: key must be given, the same on all ranks, got None")
        training = Training(
            num_factors=num_factors,
            k=k,
            activation=activation,
            tied=tied,
            revive=revive,
            max_rows=max_rows,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            aux_k=aux_k,
            aux_weight=aux_weight,
            dead_after=dead_after,
            key=key,
            progress=progress,
        )
        asked.append(training)
        if device is not None:
            where = torch.device(device)
        elif rows is not None:
            where = rows.device
        return {name: value for name, value in vars(training).items() if name != "progress"}

    shard = _meet(op, features, prepare, process_group)
    training = asked[0]
    draws = training.draw(shard.total, op, "features")
    began = time.perf_counter()

    def take() -> list[Tensor]:
        if shard.rows is None:
            return [torch.empty(0, shard.width, dtype=shard.dtype, device="cpu")] * 2
        if draws.trained.numel() < shard.total:
            for _ in shard.rows.batches(8192):  # whose checks find a bad row now, and not when all are scored
                pass
        return [shard.rows.take(_own(numbers, shard)) for numbers in draws]

    parts = together(op, take, process_group)
    whole = [_to_first(part, numbers, shard, process_group) for part, numbers in zip(parts, draws, strict=True)]

    def train() -> tuple[TopKSAE, SAEReport | None]:
        if shard.rank:
            return training.model(shard.width, draws.trained.numel(), where).eval(), None
        return training.run(lambda numbers: whole[numbers is draws.judged], draws, where, op, "features")

    model, report = together(op, train, process_group)
    at = message_device(process_group)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            message = tensor.detach().to(at).contiguous()
            dist.broadcast(message, group_src=0, group=process_group)
            tensor.copy_(message)
    reports = [report and replace(report, seconds=time.perf_counter() - began)]
    dist.broadcast_object_list(reports, group_src=0, group=process_group, device=at)
    assert reports[0] is not None
    return model, reports[0]


@torch.no_grad()
def factor_tables(
    sae: TopKSAE,
    features: Any,
    *,
    labels: Any = None,
    common: float = 0.1,
    class_coverage: str = "once",
    batch_size: int = 8192,
    process_group: dist.ProcessGroup | None = None,
) -> FactorTables:
    """Score features of which each rank holds a shard by their factors: `pysel.sae.factor_tables` of the whole.

    Between two passes over its shard a rank adds up with the others how many rows of each class activate each factor,
    which is all that they exchange: 8 bytes times factors times classes. Scores have the bits of one process on a
    machine of the same kind, with as many threads.

    Args:
        sae: the same on all ranks.
        features: [n, d], this rank's shard, of any kind that `pysel.sae.Rows` reads; n may differ between ranks and be
            0 (for what has a length).
        labels: integers [n], of this shard; on all ranks or on none.
        common, class_coverage, batch_size: see `pysel.sae.factor_tables`; the same on all ranks.
        process_group: the ranks, in whose order the shards follow each other; default all.

    Returns:
        `FactorTables`: scores [n] of this shard; counts, classes and common [H] of the whole, the same on all ranks.

    Raises:
        TypeError, ValueError: as `pysel.sae.factor_tables`, on the rank that holds the cause, whose own row is named;
            ranks that differ in an argument, on all.
        RuntimeError: torch.distributed is not initialised, or another rank has failed.

    Example:
        >>> import tempfile, torch, pysel.distributed
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> sae = pysel.sae.TopKSAE(4, 16, 2, key=0)
        >>> pysel.distributed.factor_tables(sae, torch.eye(4)).diversity.shape
        torch.Size([4])
        >>> torch.distributed.destroy_process_group()

    Source: arXiv 2603.04981, equations 3, 5 and 6.
    """
    op = "factor_tables"
    own_labels = torch.empty(0, dtype=torch.int64, device="cpu")

    def prepare(rows: Rows | None) -> dict[str, Any]:
        nonlocal own_labels
        check_model(op, sae)
        n = 0 if rows is None else len(rows)
        if rows is not None and rows.shape[1] != sae.in_features:
            raise ValueError(f"{op}: features must be [n, {sae.in_features}] like the model's, got {list(rows.shape)}")
        if labels is not None and not (n == 0 and _is_empty(labels)):  # of no numbers the kind cannot be told
            own_labels = _inputs.integers(op, "labels", labels, n).long()
        return {
            "sae": _digest(sae),
            "common": check_options(op, common, class_coverage),
            "class_coverage": class_coverage,
            "batch_size": _checks.in_range(op, "batch_size", batch_size, 1),
            "whether labels are given": labels is not None,
        }

    shard = _meet(op, features, prepare, process_group)
    ids, groups = (None, 1) if labels is None else _classes(own_labels, process_group)
    codes = Codes(sae, shard.rows, shard.offset, shard.total, batch_size)
    by_class = together(op, lambda: codes.count(ids, groups), process_group)
    by_class.copy_(add(by_class.to(message_device(process_group)), process_group))
    weights = weigh(by_class, check_options(op, common, class_coverage), class_coverage)
    return together(op, lambda: weights.tables(codes.scores(weights)), process_group)


def _meet(
    op: str, features: Any, prepare: Callable[[Rows | None], dict[str, Any]], group: dist.ProcessGroup | None
) -> Shard:
    """Compare the ranks' arguments and the kinds of their features.

    Raises:
        ValueError: they differ, or no rank has any rows. And what ``prepare`` and `Rows` raise.
    """
    read: list[Rows] = []

    def prepare_all() -> tuple[dict[str, Any], int]:
        if not _is_empty(features):
            read.append(features if isinstance(features, Rows) else Rows(features, op, "features"))
        return prepare(read[0] if read else None), 0

    meeting = meet(op, None, prepare_all, group)
    rows = read[0] if read else None
    own = (0, 0, 0) if rows is None else (*rows.shape, rows.dtype.itemsize)
    told = gather(torch.tensor(own, dtype=torch.int64, device=message_device(group)), group).cpu()
    holders = told[:, 0].nonzero().flatten().tolist()
    if not holders:
        raise ValueError(f"{op}: features must have at least one row, got none on all ranks")
    first = holders[0]
    for column, what in ((1, "equally wide"), (2, "of one dtype")):
        for other in holders:
            got = [int(told[rank, column]) for rank in (first, other)]
            if got[0] != got[1]:
                shown = [str(_DTYPES[size]) if column == 2 else str(size) for size in got]
                raise ValueError(
                    f"{op}: features must be {what} on all ranks, got {shown[0]} on rank {first} and {shown[1]} on "
                    f"rank {other}"
                )
    return Shard(rows, told[:, 0].tolist(), int(told[first, 1]), _DTYPES[int(told[first, 2])], meeting.rank)


def _is_empty(source: Any) -> bool:
    try:
        return len(source) == 0 and not isinstance(source, str | bytes | dict)
    except TypeError:  # it has no length
        return False


def _own(numbers: Tensor, shard: Shard) -> Tensor:
    """Those of ascending row numbers that are of this shard, as its own rows."""
    bounds = torch.tensor([shard.offset, shard.offset + shard.sizes[shard.rank]], device=numbers.device)
    first, last = torch.searchsorted(numbers, bounds).tolist()
    return numbers[first:last] - shard.offset


def _to_first(part: Tensor, numbers: Tensor, shard: Shard, group: dist.ProcessGroup | None) -> Tensor:
    """On the first rank the rows of all these numbers; each rank has its part of them. Elsewhere ``part``."""
    at, device = message_device(group), part.device
    rows = max(1, _PIECE // shard.width)
    if shard.rank:
        for piece in part.split(rows) if len(part) else ():
            dist.send(piece.to(at).contiguous(), group_dst=0, group=group)
        return part
    pieces = [part]
    for rank in range(1, len(shard.sizes)):
        count = _own(numbers, shard._replace(rank=rank)).numel()
        for first in range(0, count, rows):
            piece = torch.empty(min(rows, count - first), shard.width, dtype=shard.dtype, device=at)
            dist.recv(piece, group_src=rank, group=group)
            pieces.append(piece.to(device))
    return torch.cat(pieces)


def _classes(labels: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, int]:
    """int32 [n], the place of each label among those of all ranks, and how many these are."""
    at = message_device(group)
    own = labels.unique()
    sizes = gather(torch.tensor([len(own)], dtype=torch.int64, device=at), group).flatten().tolist()
    message = torch.zeros(max(sizes), dtype=torch.int64, device=at)
    message[: len(own)] = own
    told = gather(message, group)
    known = torch.cat([row[:size] for row, size in zip(told, sizes, strict=True)]).unique().to(labels.device)
    return torch.searchsorted(known, labels).int(), len(known)


def _digest(sae: TopKSAE) -> str:
    """Equal for models that encode alike."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (*sae.parameters(), sae.get_extra_state()):
        numbers = tensor.detach().cpu().contiguous()
        digest.update(repr((str(numbers.dtype), list(numbers.shape))).encode())
        digest.update(numbers.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
