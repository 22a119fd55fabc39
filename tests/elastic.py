"""Training that loses ranks: ``python -m tests.elastic --runs 5``.

A run trains on a few ranks, which count every sample that they see and save their counts and the sampler's state by
torch.distributed.checkpoint. At some moment, be it within a save, one of them is killed by SIGKILL; the rest is
stopped, as torchrun does it, and training goes on from the last whole checkpoint on another number of ranks, until it
ends. What the counts then say of each epoch must be what an undisturbed run's say: its samples, all, and no others.

Where the selector is sharded each number of ranks cuts it in a way of its own, with empty shards among them, and ranks
also die in the midst of its collectives.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.utils.data import DataLoader

import pysel
from pysel.distributed import ShardedDynamicSelector

N, EPOCHS, BATCH, EVERY = 240, 3, 4, 3  # samples, epochs, a rank's batch, steps between saves
KINDS = ("selection", "weighted", "sharded")


class Death(NamedTuple):
    """Which rank dies, and when: after so many seconds, or in which save."""

    rank: int
    seconds: float
    save: int | None  # then ``seconds`` count from its beginning


def make_sampler(kind: str) -> pysel.SelectionSampler | pysel.WeightedSampler:
    """Without a generator of its own, so that every rank of every attempt has the same."""
    if kind == "weighted":
        return pysel.WeightedSampler(torch.arange(1.0, N + 1), N // 4, replacement=False, key=3)
    scores, labels = torch.arange(N) * 7919 % 1009 / 1009, torch.arange(N) % 5
    options = {"keep_ratio": 0.3, "epochs": EPOCHS, "temperature": 0.5, "key": 1}
    if kind == "sharded" and dist.is_initialized():
        part = shard(dist.get_rank(), dist.get_world_size())
        scores, labels = scores[part], labels[part]
        return pysel.SelectionSampler(ShardedDynamicSelector(scores, 1 - scores, labels=labels, **options), key=2)
    selector = pysel.selection.DynamicSelector.from_scores(scores, 1 - scores, labels=labels, **options)
    return pysel.SelectionSampler(selector, key=2)


def shard(rank: int, world: int) -> slice:
    """A rank's samples: uneven parts, and of three or more one is empty."""
    dice = random.Random(world)
    ends = [0, *sorted(dice.randrange(N) for _ in range(world - 1)), N]
    if world > 2:
        ends[2] = ends[1]
    return slice(ends[rank], ends[rank + 1])


def epochs_of(kind: str) -> list[Tensor]:
    """The samples of each epoch, ascending."""
    sampler = make_sampler(kind)
    found = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        found.append(torch.tensor(list(sampler)).sort().values)
    return found


def train(rank: int, world: int, folder: Path, store: Path, kind: str, death: Death | None) -> None:
    """What every rank does: go on from the last whole checkpoint to the end."""
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=30)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), world), rank=rank, world_size=world, timeout=patience
    )
    mine = death if death is not None and death.rank == rank else None
    if mine is not None and mine.save is None:
        die_after(mine.seconds)
    sampler = make_sampler(kind)
    seen = torch.zeros(EPOCHS, N, dtype=torch.int64)
    progress = {"step": torch.zeros(1, dtype=torch.int64)}
    state = {"sampler": sampler, "seen": seen, **progress}
    latest = folder / "latest"
    if latest.exists():
        dcp.load(state, checkpoint_id=folder / latest.read_text())
    loader = DataLoader(range(N), batch_size=BATCH, sampler=sampler)
    saves = 0
    while (epoch := sampler.epoch) < EPOCHS:
        for batch in loader:
            counts = torch.bincount(batch, minlength=N)
            dist.all_reduce(counts)
            seen[epoch] += counts
            progress["step"] += 1
            if int(progress["step"]) % EVERY == 0:
                if mine is not None and mine.save == saves:
                    die_after(mine.seconds)
                save(state, folder, int(progress["step"]), rank)
                saves += 1
        sampler.set_epoch(epoch + 1)
    if rank == 0:
        torch.save(seen, folder / "seen.part")
        (folder / "seen.part").replace(folder / "seen.pt")
    dist.destroy_process_group()


def save(state: dict[str, object], folder: Path, step: int, rank: int) -> None:
    """A checkpoint becomes the latest when all ranks have written theirs."""
    name = f"step-{step}-{dist.get_world_size()}"
    dcp.save(state, checkpoint_id=folder / name)
    dist.barrier()
    if rank == 0:
        (folder / "latest.part").write_text(name)
        (folder / "latest.part").replace(folder / "latest")


def die_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def attempt(world: int, folder: Path, number: int, kind: str, death: Death | None) -> bool:
    """Let so many ranks train; whether all came to the end. When one is lost the others are stopped."""
    ranks = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                train(rank, world, folder, folder / f"store-{number}", kind, death)
            except BaseException:
                (folder / f"error-{number}-{rank}").write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        ranks.append(child)
    living, whole = set(ranks), True
    while living:
        child, status = os.wait()
        living.discard(child)
        if status != 0:
            whole = False
            for other in living:
                os.kill(other, signal.SIGKILL)
    return whole


def run(seed: int, kind: str, folder: Path) -> tuple[int, str]:
    """One training with one to three deaths: how many there were, and what went wrong, or nothing."""
    dice = random.Random(seed)
    world, number, padding = 4, 0, 0
    deaths = dice.randint(1, 3)
    while True:
        death = None
        if number < deaths:
            in_save = dice.random() < 0.5
            death = Death(
                dice.randrange(world),
                dice.uniform(0, 0.03) if in_save else dice.uniform(0.02, 0.6),
                dice.randrange(4) if in_save else None,
            )
        padding += EPOCHS * (world - 1)
        if attempt(world, folder, number, kind, death):
            break
        if death is None:
            return number, "".join(file.read_text() for file in folder.glob(f"error-{number}-*"))
        world, number = dice.randint(1, 6), number + 1
    seen = torch.load(folder / "seen.pt")
    for epoch, (counts, subset) in enumerate(zip(seen, epochs_of(kind), strict=True)):
        if not torch.equal(counts.nonzero().flatten(), subset):
            return number, f"epoch {epoch}: {int((counts > 0).sum())} samples seen, {len(subset)} wanted"
    if int(seen.sum()) - sum(map(len, epochs_of(kind))) > padding:
        return number, "samples were seen again that no padding explains"
    return number, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failed = deaths = 0
    for seed in range(given.seed, given.seed + given.runs):
        kind = KINDS[seed % len(KINDS)]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            lost, wrong = run(seed, kind, Path(folder))
        failed, deaths = failed + bool(wrong), deaths + lost
        print(
            f"run {seed}, {kind}: {lost} ranks lost, {time.monotonic() - began:.1f} s, {wrong or 'right'}", flush=True
        )
    print(f"{given.runs - failed} of {given.runs} right, {deaths} ranks lost")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
