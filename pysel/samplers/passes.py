"""One rank's way through an epoch: an iterator with a place that can be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pysel import _checks
from pysel.samplers import ranks

if TYPE_CHECKING:
    from pysel.samplers.ranked import RankedSampler

Elements = Callable[[slice], Tensor]
_PIECE = 1 << 13  # elements of the sequence made at a time: a list of 1e9 Python ints would take 40 GB


@dataclass
class Place:
    """How far an epoch has come; its fields are those of a state."""

    epoch: int
    key: Tensor
    position: int = 0  # in the global sequence
    length: int = 0  # of the global sequence; 0 before it was made

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return 0 < self.length <= self.position


class Watch:
    """Adds up the seconds that are spent within it; what is spent within it twice over counts once."""

    def __init__(self) -> None:
        self.total = 0.0
        self.unclaimed = 0.0  # by a pass
        self._since, self._depth = 0.0, 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._since = perf_counter()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            spent = perf_counter() - self._since
            self.total += spent
            self.unclaimed += spent

    def claim(self) -> float:
        """The seconds that nobody has claimed yet."""
        seconds, self.unclaimed = self.unclaimed, 0.0
        return seconds


class Pass(Iterator[int]):
    """One rank's way through one epoch. It begins with its first sample, and knows its place whatever else goes on."""

    def __init__(self, sampler: RankedSampler) -> None:
        self._sampler = sampler
        self._place: Place | None = None  # None: where the sampler says when it begins
        self.begun = False
        self._elements: Elements | None = None
        self._piece: Iterator[int] = iter(())
        self.rank, self.world = 0, 1
        self.first = self.stop = 0  # the global positions at which it begins and ends
        self.seconds = 0.0  # spent on its samples, what was spent before it began included

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        for index in self._piece:
            self._place.position += self.world  # type: ignore[union-attr]
            return index
        if not self.begun:
            self._begin()
        if self.done:
            raise StopIteration
        self._piece = iter(self._next_piece())
        return next(self)

    def _begin(self) -> None:
        sampler, name = self._sampler, type(self._sampler).__name__
        who = ranks.beneath_accelerate(name, ranks.find(name, sampler._where))
        try:
            place = self._start(who.world)
        except Exception as error:
            ranks.compare(name, who, error)  # the others are waiting
            raise
        if sampler._compared(place):
            who = who._replace(groups=())
        # before a selector's own collectives, in which ranks that are not at the same place would not meet
        ranks.compare(name, who, sampler._place_digests(place))
        if not place.done:
            self._elements, place.length = ranks.agree(name, who, lambda: self._opened(place, bool(who.groups)))
        left = place.length - place.position
        self._place, self.begun = place, True
        self.rank, self.world = who.rank, who.world
        self.first = place.position
        self.stop = place.position + sampler._share(left, who.world) * who.world
        sampler._began(self)
        self.seconds += sampler._watch.claim()

    def _start(self, world: int) -> Place:
        sampler = self._sampler
        sampler._agree(world)
        place = self._place or sampler._next_place()
        if (
            place.done and sampler._named and sampler._epoch > place.epoch
        ):  # set_epoch has gone on from a finished state
            place = sampler._next_place()
        return place

    def _opened(self, place: Place, compared: bool) -> tuple[tuple[Elements, int], dict[str, str]]:
        """The epoch's sequence; and what ranks must have in common of it, if they are compared."""
        sampler = self._sampler
        with sampler._watch:
            elements, length = sampler._sequence(place)
            if place.length not in (0, length):
                raise ValueError(
                    f"{type(sampler).__name__}: epoch {place.epoch} has {length} samples, "
                    f"the loaded state's had {place.length}"
                )
            return (elements, length), sampler._content_digests(place) if compared else {}

    def _next_piece(self) -> list[int]:
        with self._sampler._watch:
            piece = self._made()
        self.seconds += self._sampler._watch.claim()
        return piece

    def _made(self) -> list[int]:
        place, world = self._place, self.world
        assert place is not None
        if self._elements is None:  # the sequence has changed, or a copy was made of this pass
            self._elements, _ = self._sampler._sequence(place)
        n, first = place.length, place.position
        last = min(first + max(_PIECE // world, 1) * world, self.stop)
        piece = self._elements(slice(min(first + self.rank, n), min(last, n), world))
        if len(piece) < (last - first) // world:  # padding: the sequence's first samples again
            begin = self._sampler._padding_from(place)
            again = begin + (last - world + self.rank - begin) % (n - begin)
            piece = torch.cat([piece, self._elements(slice(again, again + 1, 1))])
        return piece.tolist()

    @property
    def epoch(self) -> int:
        """The epoch whose samples this is about."""
        return self._place.epoch if self._place is not None else self._sampler.epoch

    @property
    def done(self) -> bool:
        """Whether this rank has yielded all of its share."""
        if self._place is None:
            return False
        return self._place.position >= self.stop if self.begun else self._place.done

    def place(self, yielded: int | None = None) -> Place:
        """Where it is, or was when this rank had ``yielded`` so many samples."""
        if self._place is None:
            return self._sampler._next_place()
        if not self.begun:
            return replace(self._place)
        position = self._place.position
        if yielded is not None:
            least, most = (
                -(-(end - self.first) // self.world) for end in (self._sampler._padding_from(self._place), position)
            )
            yielded = _checks.in_range(type(self._sampler).__name__, "yielded", yielded, max(least, 0), most)
            position = self.first + yielded * self.world
        # what drop_last leaves over counts as passed
        return replace(self._place, position=position if position < self.stop else self._place.length)

    def changed(self, place: Place) -> None:
        """The sequence is another one from here on."""
        self._place, self._elements, self._piece = place, None, iter(())

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the position in it: numbers and tensors, the same on all ranks that are in step."""
        return self._sampler._place_state(self.place())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: the state is not one of a pass; nothing has changed.
        """
        place = self._sampler._read(state_dict, whole=False)
        self.changed(place)
        self.begun = False
        self._sampler._latest = self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_elements": None}
