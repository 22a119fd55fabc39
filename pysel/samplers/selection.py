"""A selector's subset, in a new order each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Generator, Tensor

from pysel import _checks, _inputs, ops
from pysel.random import fold_in
from pysel.samplers import ranks
from pysel.samplers.passes import Elements, Place
from pysel.samplers.ranked import RankedSampler
from pysel.samplers.ranks import digest
from pysel.selection.bitmap import Bitmap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

_ORDER = 0x6F72646572  # sets the order's keys apart from those of a selector that was given the same key


@runtime_checkable
class Selects(Protocol):
    """What `SelectionSampler` needs of a selector: a part of `pysel.selection.Selector`.

    One that also has ``bitmap(epoch)``, as `pysel.distributed.ShardedDynamicSelector` has, is asked for a
    `pysel.selection.Bitmap` instead of indices, and for its length by ``size(epoch)``, which may not be collective.
    """

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


@runtime_checkable
class _HasBitmap(Protocol):
    def bitmap(self, epoch: int) -> Bitmap: ...

    def size(self, epoch: int) -> int: ...


class SelectionSampler(RankedSampler):
    """Yields, in random order, the subset that a selector picks for each epoch.

    Call `set_epoch` before each epoch. The selector picks when the epoch's first sample or its length is asked for. The
    order is a `pysel.permutation` under the key and the epoch, made in pieces as iteration goes on, so that the first
    sample of a subset of any size comes at once.

    Over ranks the subset is split evenly; what does not divide is padded with the first samples of the epoch's order,
    or dropped with ``drop_last=True``. Every rank runs the same selector, in the same state (same scores, same key):
    this is compared as each epoch begins. Rank and world size are found as `WeightedSampler` says.

    Loaders and trainers fill or cut the last round of batches: with W ranks and batches of B, an epoch has up to
    W B - 1 samples more or fewer than were selected. ``round_to=W * B`` leaves nothing for them to do: the largest
    multiple that the subset holds is yielded, and what is beyond it stays out, other samples at random each epoch.

    Args:
        selector: a `pysel.selection.Selector`, for instance `pysel.selection.DynamicSelector`, or any object with
            ``select(epoch)``, ``__len__``, ``state_dict`` and ``load_state_dict``.
        shuffle: random order; False yields the indices as the selector gives them, ascending.
        key: int64 [2] or an int, for the order. It may be the selector's own. Without one every pass draws a fresh key
            from ``generator``, or from torch's default generator.
        generator: where keys come from; not with ``key``.
        rank, num_replicas, mesh, process_group: see `WeightedSampler`.
        drop_last: drop instead of padding.
        round_to: samples of an epoch, over all ranks together, are a multiple of this, at most as many as are selected.
            It is part of what an epoch is: within one, a state is resumed with the same.

    Raises:
        TypeError: ``selector`` lacks a method, or another argument has the wrong type.
        ValueError: an argument out of range, or several ranks with neither key nor generator. In iteration: what
            ``select`` gave is not a set of indices, or has fewer than ``round_to`` of them, or ranks differ.

    Example:
        >>> import pysel
        >>> selector = pysel.selection.DynamicRandom(10, keep_ratio=0.3, key=pysel.key(0))
        >>> sampler = SelectionSampler(selector, key=pysel.key(0))
        >>> for epoch in range(2):
        ...     sampler.set_epoch(epoch)
        ...     print(len(list(sampler)))
        3
        3
    """

    _rest = ("selector",)

    def __init__(
        self,
        selector: Selects,
        *,
        shuffle: bool = True,
        key: Tensor | int | None = None,
        generator: Generator | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
        mesh: DeviceMesh | None = None,
        process_group: ProcessGroup | None = None,
        drop_last: bool = False,
        round_to: int = 1,
    ) -> None:
        if not isinstance(selector, Selects):
            raise TypeError(
                "SelectionSampler: selector must have select, __len__, state_dict and load_state_dict, "
                f"got {type(selector).__name__}"
            )
        super().__init__(key, generator, rank, num_replicas, mesh, process_group, drop_last)
        self.selector = selector
        self.shuffle = _checks.flag("SelectionSampler", "shuffle", shuffle)
        self.round_to = _checks.in_range("SelectionSampler", "round_to", round_to, 1)
        self._picked: tuple[int, Tensor | Bitmap] | None = None  # an epoch and its subset
        self._left_out = 0  # by rounding, of the epoch whose sequence was made last

    def _subset(self, epoch: int) -> Tensor | Bitmap:
        """What the selector picks, checked, and asked for once."""
        if self._picked is None or self._picked[0] != epoch:
            with self._watch:
                self._picked = epoch, self._asked(epoch)
        return self._picked[1]

    def _asked(self, epoch: int) -> Tensor | Bitmap:
        name, whose = "SelectionSampler", type(self.selector).__name__
        if isinstance(self.selector, _HasBitmap):
            bitmap = self.selector.bitmap(epoch)
            if not isinstance(bitmap, Bitmap):
                raise TypeError(f"{name}: what {whose}.bitmap returns must be a Bitmap, got {type(bitmap).__name__}")
            return bitmap
        known = getattr(self.selector, "num_samples", None)
        subset = self.selector.select(epoch)
        most = known if isinstance(known, int) else 2**63
        return _inputs.indices(name, f"what {whose}.select returns", subset, most).cpu().clone()

    def _selected(self, epoch: int) -> int:
        """How many samples the selector picks; no rank waits for others here."""
        return self.selector.size(epoch) if isinstance(self.selector, _HasBitmap) else self._subset(epoch).numel()

    def _sequence(self, place: Place) -> tuple[Elements, int]:
        subset = self._subset(place.epoch)
        n, rounded = subset.numel(), self._rounded(subset.numel())
        self._left_out = n - rounded
        key = fold_in(fold_in(place.key, _ORDER), place.epoch)
        if self.shuffle:
            return lambda part: subset[
                ops.permutation(n, key=key, start=part.start, stop=part.stop)[:: part.step]
            ], rounded
        if rounded < n:
            subset = subset[ops.permutation(n, key=key, stop=rounded).sort().values]
        return subset.__getitem__, rounded

    def _rounded(self, n: int) -> int:
        """How many of so many selected samples are yielded."""
        if 0 < n < self.round_to:
            raise ValueError(
                f"SelectionSampler: round_to must be at most {n}, the size of the subset, got {self.round_to}"
            )
        return n - n % self.round_to

    def _length(self) -> int:
        return self._rounded(self._selected(self.epoch))

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Samples in the coming epoch, over all ranks together."""
        return self._length()

    def _repeats(self) -> bool:
        return self.shuffle and super()._repeats()

    def _arguments(self) -> list[Any]:
        return [type(self.selector).__qualname__, self.shuffle, self.drop_last, self.round_to]

    def _content_digests(self, place: Place) -> dict[str, str]:
        subset = self._subset(place.epoch)
        return {
            "selector": digest(self.selector.state_dict()),
            "subset": digest(subset.words if isinstance(subset, Bitmap) else subset),
        }

    def stats(self, *, selector: bool = True) -> dict[str, int | float]:
        """Figures of the pass that began last, as of `WeightedSampler.stats`, and of the selector.

        Args:
            selector: ask the selector, too, which may take longer: `pysel.selection.DynamicSelector` goes through all
                samples' uses and, if it was made from features, encodes its subset. The sampler's own figures cost
                nothing.

        Returns:
            beside those of every sampler, where ``round_to`` is among the reasons to be ``dropped``,
            ``realised_ratio``, if the selector has a ``num_samples``: the samples that all ranks together yield in the
            epoch, with padding, over those that there are. With ``selector`` the
            numbers in its ``stats()``, if it has any, as ``selector/...``; its lists are left out.

        Example:
            >>> import pysel
            >>> selector = pysel.selection.DynamicRandom(10, keep_ratio=0.3, key=0)
            >>> sampler = SelectionSampler(selector, key=0, rank=0, num_replicas=2)
            >>> samples = list(sampler)
            >>> stats = sampler.stats()
            >>> stats["num_samples"], stats["padded"], stats["realised_ratio"], stats["selector/realised_ratio"]
            (3, 1, 0.4, 0.3)
        """
        stats = super().stats()
        there = getattr(self.selector, "num_samples", None)
        if isinstance(there, int) and there > 0:
            stats["realised_ratio"] = (stats["num_samples"] + stats["padded"] - stats["dropped"]) / there
        begun = self._latest is not None and self._latest.begun
        left_out = self._left_out if begun else self._selected(int(stats["epoch"])) % self.round_to
        stats["dropped"] += left_out
        own = getattr(self.selector, "stats", None)
        if selector and callable(own):
            stats |= _numbers("selector", own())
        return stats

    def state_dict(self, *, yielded: int | None = None) -> dict[str, Any]:
        """Epoch, position and the selector's own state; see `WeightedSampler.state_dict`."""
        return {**super().state_dict(yielded=yielded), "selector": self.selector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, the selector included; see `WeightedSampler.load_state_dict`.

        Raises:
            ValueError: the state has missing or impossible entries, or does not fit the selector; nothing has changed.
        """
        place = self._read_together(state_dict)
        self.selector.load_state_dict(state_dict["selector"])
        self._load(place)
        self._picked = None  # the selector, asked again for its current epoch, answers from its state

    def _read_together(self, state_dict: dict[str, Any]) -> Place:
        """The place in a state; where the selector's loading is collective, once all ranks have read the same."""

        def read() -> tuple[Place, dict[str, str]]:
            place = self._read(state_dict, whole=True)
            return place, self._place_digests(place)

        if not isinstance(self.selector, _HasBitmap):
            return read()[0]
        return ranks.agree(type(self).__name__, self._ranks(), read)

    def _check_rest(self, state: dict[str, Any]) -> None:
        if not isinstance(state["selector"], dict):
            got = type(state["selector"]).__name__
            raise ValueError(f"SelectionSampler: state_dict['selector'] must be a dictionary, got {got}")


def _numbers(name: str, value: Any) -> dict[str, int | float]:
    """The numbers in dictionaries within one another, by the way to each."""
    if isinstance(value, Mapping):
        return {path: x for entry, one in value.items() for path, x in _numbers(f"{name}/{entry}", one).items()}
    if isinstance(value, Integral):
        return {name: int(value)}
    return {name: float(value)} if isinstance(value, Real) else {}
