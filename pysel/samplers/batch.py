"""Batches of samples, for loaders that are given ``batch_sampler=``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch.utils.data

from pysel import _checks
from pysel.samplers.passes import Pass
from pysel.samplers.ranked import RankedSampler


class BatchSampler(torch.utils.data.BatchSampler):
    """Batches of a sampler's indices, with its epoch and state: torch's own drops the state.

    torchdata's ``StatefulDataLoader`` resumes with it within an epoch. Lightning and Fabric put a sampler of their own
    into the batch samplers of several processes, which is refused here: give them ``use_distributed_sampler=False``,
    or ``DataLoader(dataset, batch_size, sampler=sampler)``, which they leave alone.

    Args:
        sampler: a `pysel.WeightedSampler` or `pysel.SelectionSampler`.
        batch_size: indices in a batch.
        drop_last: leave out a last batch that is smaller.

    Raises:
        TypeError: ``sampler`` is another one, or an argument has the wrong type.
        ValueError: ``batch_size`` is below 1.

    Example:
        >>> import pysel
        >>> sampler = pysel.WeightedSampler([1.0, 1.0, 0.0], 5, key=0)
        >>> [len(batch) for batch in BatchSampler(sampler, 2)]
        [2, 2, 1]
    """

    def __init__(self, sampler: RankedSampler, batch_size: int, drop_last: bool = False) -> None:
        if not isinstance(sampler, RankedSampler):
            raise TypeError(
                "BatchSampler: sampler must be a WeightedSampler or a SelectionSampler, "
                f"got {type(sampler).__name__} (with Lightning and Fabric: use_distributed_sampler=False)"
            )
        batch_size = _checks.in_range("BatchSampler", "batch_size", batch_size, 1)
        super().__init__(sampler, batch_size, _checks.flag("BatchSampler", "drop_last", drop_last))
        self.sampler: RankedSampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        return _Batches(self)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch of the next pass; see `WeightedSampler.set_epoch`."""
        self.sampler.set_epoch(epoch)

    def stats(self) -> dict[str, int | float]:
        """The sampler's figures, see `WeightedSampler.stats`; what ``drop_last`` leaves out here is not among them."""
        return self.sampler.stats()

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state, see `WeightedSampler.state_dict`."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.sampler.load_state_dict(state_dict)


class _Batches(Iterator[list[int]]):
    """A pass in batches."""

    def __init__(self, batches: BatchSampler) -> None:
        self._size, self._drop_last = batches.batch_size, batches.drop_last
        self._pass = Pass(batches.sampler)

    def __next__(self) -> list[int]:
        batch = list(islice(self._pass, self._size))
        if not batch or (self._drop_last and len(batch) < self._size):
            raise StopIteration
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self._pass.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pass.load_state_dict(state_dict)
