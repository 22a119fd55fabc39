"""A few processes with gloo between them, to which tests send functions."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(minutes=2)  # a rank that waits in vain says so


def _serve(rank: int, world: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world, timeout=PATIENCE)
    groups = {size: dist.new_group(list(range(size)), timeout=PATIENCE) for size in range(1, world + 1)}
    while (job := pipe.recv()) is not None:
        function, size, arguments = job
        answer: Any = None
        try:
            answer = function(rank, groups[size], *arguments) if rank < size else None
        except Exception as error:
            answer = (
                error if type(error) in (ValueError, TypeError, IndexError, RuntimeError) else traceback.format_exc()
            )
        pipe.send(answer)
    os._exit(0)  # torch takes a second to take itself apart


class Ranks:
    """Processes 0 to ``world - 1``."""

    def __init__(self, world: int, pipes: list[Any]) -> None:
        self.world, self._pipes = world, pipes

    def __call__(self, function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
        """What ``function(rank, group of the first size ranks, *arguments)`` gives on each; errors are answers, too."""
        for pipe in self._pipes:
            pipe.send((function, size, arguments))
        return [pipe.recv() for pipe in self._pipes][:size]


@contextlib.contextmanager
def ranks(world: int) -> Iterator[Ranks]:
    context = multiprocessing.get_context("forkserver")  # which imports torch once, and has no threads yet
    context.set_forkserver_preload(["pysel.distributed", "tests.ranks"])
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe() for _ in range(world)]
        processes = [
            context.Process(target=_serve, args=(rank, world, f"{folder}/store", end[1]), daemon=True)
            for rank, end in enumerate(ends)
        ]
        for process, (_, end) in zip(processes, ends, strict=True):
            process.start()
            end.close()  # so that a rank that is lost is noticed
        try:
            yield Ranks(world, [end[0] for end in ends])
        finally:
            for end, _ in ends:
                with contextlib.suppress(BrokenPipeError):
                    end.send(None)
            for process in processes:
                process.join(10)
                process.kill()
