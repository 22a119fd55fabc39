"""Samplers for ``torch.utils.data.DataLoader`` over the ops: weighted draws, and a selector's subset each
epoch.

Both follow one rule. An epoch has one global sequence of sample indices, a function of the key and the epoch
(and of the weights or the selector) and of nothing else, computed identically on every rank; rank r of W
takes elements r, r + W, r + 2W, ... of it. So the same key gives the same samples at any world size, without
communication, and a position in an epoch is one number that means the same at any world size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from pysel import _checks, ops
from pysel.random import as_key, fold_in
from pysel.random import key as new_key

__all__ = ["SelectionSampler", "Selects", "WeightedSampler"]

Elements = Callable[[slice], Tensor]
_PIECE = 1 << 13  # elements of the sequence made at a time: a list of 1e9 Python ints would take 40 GB


@runtime_checkable
class Selects(Protocol):
    """What `SelectionSampler` needs of a selector: a part of `pysel.selection.Selector`."""

    def select(self, epoch: int) -> Tensor:
        """Ascending int64 indices of the samples of this epoch; asking twice changes nothing."""
        ...

    def __len__(self) -> int:
        """How many samples the next epoch will hold."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to continue."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        ...


class _RankedSampler(Sampler[int]):
    """An epoch's global sequence split over ranks, with a position that can be saved."""

    def __init__(self, key: Tensor | int | None, rank: int, num_replicas: int, drop_last: bool) -> None:
        name = type(self).__name__
        _checks.integer(name, "num_replicas", num_replicas)
        _checks.integer(name, "rank", rank)
        if num_replicas < 1:
            raise ValueError(f"{name}: num_replicas must be at least 1, got {num_replicas}")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"{name}: rank must be between 0 and {num_replicas - 1}, got {rank}")
        if key is None and num_replicas > 1:
            raise ValueError(f"{name}: key must be given with num_replicas={num_replicas}, or ranks would disagree")
        self.rank, self.num_replicas, self.drop_last = rank, num_replicas, drop_last
        self._key = None if key is None else as_key(name, key)
        self._epoch = 0
        self._start = 0  # global position at which the latest pass began
        self._position = 0  # and the one it has reached
        self._resuming = False  # the next pass goes on from that position, as load_state_dict wants

    @property
    def epoch(self) -> int:
        """The epoch whose samples iteration yields."""
        return self._epoch

    def _sequence(self) -> Elements:
        """The epoch's global sequence of indices: a function that gives a slice of it, int64."""
        raise NotImplementedError

    def _total(self) -> int:
        """Length of the global sequence."""
        raise NotImplementedError

    def _share(self, count: int) -> int:
        """How many of ``count`` samples each rank yields."""
        return count // self.num_replicas if self.drop_last else -(-count // self.num_replicas)

    def __len__(self) -> int:
        return self._share(self._total())

    def __iter__(self) -> Iterator[int]:
        start = self._position if self._resuming else 0
        self._start, self._position, self._resuming = start, start, False
        sequence = self._sequence()
        n, world = self._total(), self.num_replicas
        stop = start + self._share(max(n - start, 0)) * world
        step = max(_PIECE // world, 1) * world
        for first in range(start, stop, step):
            last = min(first + step, stop)
            piece = sequence(slice(min(first + self.rank, n), min(last, n), world))
            if len(piece) < (last - first) // world:  # padding wraps around to the sequence's first samples
                place = (last - world + self.rank) % n
                piece = torch.cat([piece, sequence(slice(place, place + 1, 1))])
            for index in piece.tolist():
                self._position += world
                yield index

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch. Naming the current one again changes nothing, a loaded position included."""
        name = type(self).__name__
        _checks.integer(name, "epoch", epoch)
        if epoch < 0:
            raise ValueError(f"{name}: epoch must be at least 0, got {epoch}")
        if epoch != self._epoch:
            self._epoch = epoch
            self._start, self._position, self._resuming = 0, 0, False

    def state_dict(self, *, yielded: int | None = None) -> dict[str, Any]:
        """The epoch and the position in it; loaded into a fresh sampler, iteration yields exactly what
        remains.

        The position counts samples *yielded by the sampler*, on all ranks. With ``num_workers=0`` these are
        the samples of the batches that the loop has received. DataLoader workers fetch ahead: then pass the
        number received.

        Args:
            yielded: samples that this rank's loop has received since it began iterating; default: those
                yielded.

        Returns:
            a dictionary of numbers and tensors, independent of the sampler and fit for ``torch.save``. Ranks
            in step have equal ones, and it can be loaded at another ``num_replicas``.

        Raises:
            ValueError: ``yielded`` is more than the sampler has yielded.
        """
        position = self._position
        if yielded is not None:
            name = type(self).__name__
            most = (self._position - self._start) // self.num_replicas
            _checks.integer(name, "yielded", yielded)
            if not 0 <= yielded <= most:
                raise ValueError(f"{name}: yielded must be between 0 and {most}, got {yielded}")
            position = self._start + yielded * self.num_replicas
        key = None if self._key is None else self._key.clone()
        return {"epoch": self._epoch, "position": position, "key": key}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next pass yields what was left of that epoch.

        Raises:
            ValueError: the state has missing entries.
        """
        missing = [name for name in self.state_dict() if name not in state_dict]
        if missing:
            raise ValueError(f"{type(self).__name__}: state_dict must have {', '.join(missing)}")
        self._epoch = state_dict["epoch"]
        self._start = self._position = state_dict["position"]
        self._resuming = True
        self._key = None if state_dict["key"] is None else state_dict["key"].clone()


class WeightedSampler(_RankedSampler):
    """Draws indices in proportion to weights: a drop-in for ``torch.utils.data.WeightedRandomSampler``.

    It takes any number of categories, draws without replacement in time linear in their number, and puts the
    draws in uniformly random order by default (draw order would put heavy samples first).

    With a ``key`` the samples are a function of (key, epoch): call `set_epoch` before each epoch, as with
    ``DistributedSampler``. Without one every full pass draws a fresh key from ``generator``, or from torch's
    default generator, as torch's sampler does.

    Over ranks the ``num_samples`` draws are split evenly. What does not divide is padded with the first draws
    of the epoch, or dropped with ``drop_last=True``. Nothing is read from ``torch.distributed``: pass rank
    and world size.

    Args:
        weights: [N] non-negative and finite; a sequence of numbers becomes float64. Copied.
        num_samples: draws an epoch, over all ranks together.
        replacement: whether an index may come twice.
        generator: where keys come from; not with ``key``.
        key: int64 [2] or an int.
        order: "shuffled", "draw" or "index" (ascending), see `pysel.weighted_sample`.
        rank, num_replicas: this process and the number of processes.
        drop_last: drop instead of padding.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, ``key`` and ``generator`` together, or several ranks without a
            key.

    Example:
        >>> import pysel
        >>> sampler = WeightedSampler([0.0, 1.0, 3.0], 2, replacement=False, key=pysel.key(0))
        >>> sorted(sampler), len(sampler)
        ([1, 2], 2)
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
        *,
        key: Tensor | int | None = None,
        order: str = "shuffled",
        rank: int = 0,
        num_replicas: int = 1,
        drop_last: bool = False,
    ) -> None:
        super().__init__(key, rank, num_replicas, drop_last)
        if key is not None and generator is not None:
            raise ValueError("WeightedSampler: give key or generator, not both")
        _checks.integer("WeightedSampler", "num_samples", num_samples)
        if num_samples < 1:
            raise ValueError(f"WeightedSampler: num_samples must be at least 1, got {num_samples}")
        if not isinstance(replacement, bool):
            raise TypeError(f"WeightedSampler: replacement must be a bool, got {type(replacement).__name__}")
        _checks.choice("WeightedSampler", "order", order, ("shuffled", "draw", "index"))
        weights = torch.as_tensor(weights)
        if not weights.is_floating_point():
            weights = weights.double()
        if weights.dim() != 1 or weights.numel() == 0:
            raise ValueError(f"WeightedSampler: weights must be a vector [N], got shape {list(weights.shape)}")
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ValueError("WeightedSampler: weights must be finite and not negative")
        positive = int(torch.count_nonzero(weights))
        if positive == 0:
            raise ValueError("WeightedSampler: weights must not all be zero")
        if not replacement and num_samples > positive:
            raise ValueError(
                f"WeightedSampler: num_samples must be at most {positive} without replacement, "
                f"the number of nonzero weights, got {num_samples}"
            )
        self.weights = weights.detach().clone()
        self.num_samples = num_samples
        self.replacement = replacement
        self.order = order
        self._generator = generator
        self._fresh = key is None  # each full pass draws its key

    def _total(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        if self._fresh and (self._key is None or not self._resuming):
            self._key = new_key(generator=self._generator).cpu()
        yield from super().__iter__()

    def _sequence(self) -> Elements:
        assert self._key is not None  # set on construction or by __iter__
        drawn = ops.weighted_sample(
            self.weights,
            self.num_samples,
            self.replacement,
            order=self.order,
            key=fold_in(self._key, self._epoch),
        ).cpu()
        return drawn.__getitem__


class SelectionSampler(_RankedSampler):
    """Yields, in random order, the subset that a selector picks for each epoch.

    `set_epoch` makes the selector pick; iteration alone picks epoch 0. The order is a `pysel.permutation`
    under the key and the epoch, made in pieces as iteration goes on, so that the first sample of a subset of
    any size comes at once. Every rank runs the same selector, which must be in the same state on all of them
    (same scores, same key); the subset is split evenly, what does not divide is padded with the first samples
    of the epoch's order, or dropped with ``drop_last=True``. Nothing is read from ``torch.distributed``: pass
    rank and world size.

    Args:
        selector: a `pysel.selection.Selector`, for instance `pysel.selection.DynamicSelector`.
        shuffle: random order; False yields ascending indices.
        key: int64 [2] or an int, for the order; drawn once from torch's default generator when missing.
        rank, num_replicas: this process and the number of processes.
        drop_last: drop instead of padding.

    Raises:
        TypeError: ``selector`` lacks a method, or another argument has the wrong type.
        ValueError: an argument out of range, or several ranks without a key.

    Example:
        >>> import pysel
        >>> selector = pysel.selection.DynamicRandom(10, keep_ratio=0.3, key=pysel.key(0))
        >>> sampler = SelectionSampler(selector, key=pysel.key(1))
        >>> for epoch in range(2):
        ...     sampler.set_epoch(epoch)
        ...     print(len(list(sampler)))
        3
        3
    """

    def __init__(
        self,
        selector: Selects,
        *,
        shuffle: bool = True,
        key: Tensor | int | None = None,
        rank: int = 0,
        num_replicas: int = 1,
        drop_last: bool = False,
    ) -> None:
        if not isinstance(selector, Selects):
            raise TypeError(
                "SelectionSampler: selector must have select, __len__, state_dict and load_state_dict, "
                f"got {type(selector).__name__}"
            )
        super().__init__(key, rank, num_replicas, drop_last)
        if self._key is None:
            self._key = as_key("SelectionSampler", None)
        self.selector = selector
        self.shuffle = shuffle
        self._subset: Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch and have the selector pick its subset; the same epoch again changes nothing."""
        if epoch != self._epoch:
            self._subset = None
        super().set_epoch(epoch)
        self._pick()

    def _pick(self) -> Tensor:
        if self._subset is None:
            self._subset = self.selector.select(self._epoch).cpu()
        return self._subset

    def _total(self) -> int:
        return len(self.selector) if self._subset is None else self._subset.numel()

    def _sequence(self) -> Elements:
        subset = self._pick()
        if not self.shuffle:
            return subset.__getitem__
        assert self._key is not None
        n, key = subset.numel(), fold_in(self._key, self._epoch)
        return lambda part: subset[ops.permutation(n, key=key, start=part.start, stop=part.stop)[:: part.step]]

    def state_dict(self, *, yielded: int | None = None) -> dict[str, Any]:
        """Epoch, position and the selector's own state; see `WeightedSampler.state_dict`."""
        return {**super().state_dict(yielded=yielded), "selector": self.selector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, the selector included.

        Raises:
            ValueError: the state has missing entries, or does not fit the selector.
        """
        super().load_state_dict(state_dict)
        self.selector.load_state_dict(state_dict["selector"])
        self._subset = None  # the selector, asked again for its current epoch, answers from its state
