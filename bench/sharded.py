"""Selection from a vector that is spread over ranks: seconds, collectives, bytes, memory.

    python -m bench.sharded --n 1e8 --ranks 4           four minutes on two cores; prints JSON
    python -m bench.sharded --only codes                the codes of n samples in blocks, counted as they come

The ranks are processes on one machine with gloo between them, one thread each; so their seconds are those of all cores
working on all of the vector, and of messages that cross no network. What a machine a rank would take is about their
compute over the number of ranks, and the messages' time on its network. Beside them one process with all cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import pysel
from bench.run import machine

GROUPS, FACTORS, K, CODES = 1000, 65_536, 32, 1 << 20


def vector(first: int, n: int) -> Tensor:
    """Elements of one vector of log-normal numbers, from ``first`` on."""
    noise = torch.ops.pysel.race_keys(torch.zeros(n), True, pysel.key(1), first)
    return noise.exp()


def cases(first: int, n: int, total: int) -> dict[str, Callable[[Any], Any]]:
    """What each rank calls with its shard, by name; ``ops`` is pysel or pysel.distributed."""
    scores = vector(first, n)
    equal = torch.ones_like(scores)
    groups = (torch.arange(first, first + n) * 2_654_435_761 % 1_000_003 % GROUPS).int()
    k = total * 3 // 10
    quotas = torch.full((GROUPS,), k // GROUPS)
    quotas[: k % GROUPS] += 1
    counts = torch.zeros(n)
    values = torch.rand(min(n, CODES), K)
    indices = torch.randint(FACTORS, (min(n, CODES), K), generator=torch.Generator().manual_seed(0))
    selected = pysel.select(scores, n * 3 // 10)
    return {
        "select": lambda ops: ops.select(scores, k),
        "select, all equal, keyed": lambda ops: ops.select(equal, k, key=1),
        f"select, {GROUPS} groups": lambda ops: ops.select(scores, k, groups=groups, quotas=quotas),
        "weighted_sample": lambda ops: ops.weighted_sample(scores, k, key=1),
        "weighted_sample with replacement, k = 1e6": lambda ops: ops.weighted_sample(scores, 10**6, True, key=1),
        "usage_step_": lambda ops: ops.usage_step_(counts, selected, scores, 0.2),
        f"factor_counts of {CODES} rows a rank, k = {K}, H = {FACTORS}": lambda ops: ops.factor_counts(
            values, indices, FACTORS
        ),
    }


STREAMED = f"factor_counts of all rows, k = {K}, H = {FACTORS}, in blocks of {CODES} a rank"


def streamed(ops: Any, rank: int, world: int, n: int, barrier: Callable[[], Any]) -> tuple[float, Tensor]:
    """Seconds that counting random codes takes as they come, without the making of them, and the counts int64 [H]."""
    mine, most = n * (rank + 1) // world - n * rank // world, -(-n // world)
    values, total, seconds = torch.ones(CODES, K), torch.zeros(FACTORS, dtype=torch.int64), 0.0
    for block in range(-(-most // CODES)):
        rows = max(0, min(CODES, mine - block * CODES))
        generator = torch.Generator().manual_seed(rank << 32 | block)
        indices = torch.randint(FACTORS, (rows, K), generator=generator)
        barrier()
        began = time.perf_counter()
        total += ops.factor_counts(values[:rows], indices, FACTORS)
        barrier()
        seconds += time.perf_counter() - began
    return seconds, total


def measured(rank: int, world: int, n: int, folder: Path, only: str | None) -> dict[str, dict[str, float]]:
    """What this rank sees of each case."""
    torch.set_num_threads(1)
    hour = datetime.timedelta(hours=1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=hour)
    sent = {"collectives": 0, "bytes": 0}

    def counting(function: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            sent["collectives"] += 1
            sent["bytes"] += size(args[0])
            return function(*args, **kwargs)

        return call

    dist.all_gather = counting(dist.all_gather, lambda parts: sum(part.nbytes for part in parts))
    dist.all_reduce = counting(dist.all_reduce, lambda part: part.nbytes)
    found: dict[str, dict[str, float]] = {}
    if only != "ops":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken, counts = streamed(pysel.distributed, rank, world, n, dist.barrier)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        extra = {"extra_mib_a_rank": (peak - before) / 1024, "peak_mib_a_rank": peak / 1024}
        found[STREAMED] = {"seconds": taken, **sent, **extra}
        torch.save(counts, folder / f"{rank}.counts")
    if only == "codes":
        return found
    for name, case in cases(n * rank // world, n * (rank + 1) // world - n * rank // world, n).items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = []
        for _ in range(3):
            dist.barrier()
            sent.update(collectives=0, bytes=0)
            began = time.perf_counter()
            case(pysel.distributed)
            dist.barrier()
            seconds.append(time.perf_counter() - began)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        found[name] = {"seconds": sorted(seconds)[1], **sent, "extra_mib_a_rank": grown / 1024}
    return found


def alone(n: int) -> dict[str, float]:
    """Seconds of one process for each case, its ops being pysel's own."""
    found = {}
    for name, case in cases(0, n, n).items():
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            case(pysel)
            seconds.append(time.perf_counter() - began)
        found[name] = sorted(seconds)[1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=float, default=1e8)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--only", choices=["ops", "codes"])
    given = parser.parse_args()
    n = int(given.n)
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(given.ranks):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    found = measured(rank, given.ranks, n, Path(folder), given.only)
                    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        for child in children:
            _, status = os.waitpid(child, 0)
            if status:
                raise SystemExit("a rank has failed")
        table = json.loads((Path(folder) / "0.json").read_text())
        if STREAMED in table:
            parts = [streamed(pysel, rank, given.ranks, n, lambda: None) for rank in range(given.ranks)]
            counts = torch.stack([part for _, part in parts]).sum(0)
            for rank in range(given.ranks):
                assert torch.equal(torch.load(Path(folder) / f"{rank}.counts"), counts)
            table[STREAMED]["seconds_of_one_process"] = sum(seconds for seconds, _ in parts)
    if given.only != "codes":
        for name, seconds in alone(n).items():
            table[name]["seconds_of_one_process"] = seconds
    print(json.dumps({"n": n, "ranks": given.ranks, "machine": machine(), "cases": table}, indent=2))


if __name__ == "__main__":
    main()
