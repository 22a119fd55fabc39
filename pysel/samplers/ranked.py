"""What both samplers are: an epoch's global sequence split over ranks, in passes, with a state."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import Generator, Tensor
from torch.utils.data import DistributedSampler

from pysel import _checks
from pysel.random import as_key
from pysel.random import key as new_key
from pysel.samplers import ranks
from pysel.samplers.passes import Elements, Pass, Place, Watch
from pysel.samplers.ranks import digest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class RankedSampler(DistributedSampler[int]):
    """An epoch's global sequence split over ranks; see `pysel.samplers.ranks` for the whole picture."""

    seed = 0  # part of DistributedSampler: here the key decides
    shuffle = True
    _place_type: type[Place] = Place
    _rest: tuple[str, ...] = ()  # entries of a state beside those of a place

    def __init__(
        self,
        key: Tensor | int | None,
        generator: Generator | None,
        rank: int | None,
        num_replicas: int | None,
        mesh: DeviceMesh | None,
        process_group: ProcessGroup | None,
        drop_last: bool,
    ) -> None:
        name = type(self).__name__
        if key is not None and generator is not None:
            raise ValueError(f"{name}: give key or generator, not both")
        if generator is not None and not isinstance(generator, Generator):
            raise TypeError(f"{name}: generator must be a torch.Generator, got {type(generator).__name__}")
        self._where = ranks.where(name, rank, num_replicas, mesh, process_group)
        self.drop_last = _checks.flag(name, "drop_last", drop_last)
        self.generator = generator  # public: Accelerate gives one, alike on all processes, to samplers that have none
        self._keyless = key is None  # each pass has a key of its own
        self._key = None if key is None else as_key(name, key)  # of the passes to come; None: yet to be drawn
        if (self._where.num_replicas or 1) > 1:
            self._agree(self._where.num_replicas or 1)
        self._epoch = 0  # of the next pass
        self._named = False  # by set_epoch, since a pass of it began
        self._mark: Place | None = None  # where the epoch of a loaded state goes on, until that is done
        self._mark_first = False  # whether it does so before ``_epoch``
        self._latest: Pass | None = None  # the pass that began last
        self._usual = 0  # samples in the first epoch seen
        self._warned: set[str] = set()
        self._watch = Watch()  # runs while samples are picked

    # --- what a sampler defines ---

    def _sequence(self, place: Place) -> tuple[Elements, int]:
        """The epoch's global sequence, as a function that gives a slice of it, int64 on the CPU, and its length."""
        raise NotImplementedError

    def _length(self) -> int:
        """Length of the coming pass's global sequence."""
        raise NotImplementedError

    def _arguments(self) -> list[Any]:
        """Those that all ranks must have in common."""
        raise NotImplementedError

    def _content_digests(self, place: Place) -> dict[str, str]:
        """What an epoch's samples come from, which all ranks must have in common, by name."""
        raise NotImplementedError

    def _place_digests(self, place: Place) -> dict[str, str]:
        """What all ranks must have in common before an epoch's samples are known, by name."""
        at = {name: value for name, value in vars(place).items() if not isinstance(value, Tensor) and name != "length"}
        return {
            "epoch and position": digest(at),
            "key": digest(place.key),
            "arguments": digest(self._arguments()),
        }

    def _padding_from(self, place: Place) -> int:
        """The position from which samples are taken again to fill the last round."""
        return 0

    def _repeats(self) -> bool:
        """Whether a second pass over an epoch is the first one again, though a new order was wanted."""
        return not self._keyless

    def _new_place(self, epoch: int, key: Tensor) -> Place:
        """The beginning of an epoch."""
        return Place(epoch, key)

    def _check_rest(self, state: dict[str, Any]) -> None:
        """Refuse impossible entries of a state beside those of a place."""

    # --- ranks ---

    def _ranks(self) -> ranks.Ranks:
        who = ranks.find(type(self).__name__, self._where)
        self._agree(who.world)
        return who

    def _compared(self, place: Place) -> bool:
        """Whether ranks were compared for this epoch already: one may have had a look at it before the others came."""
        latest = self._latest
        if latest is None or not latest.begun or latest.done or self._keyless:
            return False
        return latest.epoch == place.epoch

    def _agree(self, world: int) -> None:
        """Refuse several processes without a key, unless a generator, alike on all of them, draws it."""
        if self._keyless and self.generator is None and (world > 1 or ranks.accelerated() > 1):
            raise ValueError(
                f"{type(self).__name__}: key must be given with num_replicas={max(world, ranks.accelerated())}, or a "
                "generator with the same seed on every process, or ranks would disagree"
            )

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process's number among those that split an epoch."""
        return self._ranks().rank

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """The number of processes that split an epoch."""
        return self._ranks().world

    @property
    def dataset(self) -> range:  # type: ignore[override]
        """Stands for the samples of an epoch, those of all ranks and without padding: trainers take its length."""
        return range(self._length())

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Samples of all ranks together, with padding."""
        who = self._ranks()
        return self._share(self._length(), who.world) * who.world

    def _share(self, count: int, world: int) -> int:
        """How many of ``count`` samples each rank yields."""
        return max(count // world if self.drop_last else -(-count // world), 0)

    def __len__(self) -> int:
        """Samples of this rank in the coming epoch, also where a state was loaded and fewer are left of it."""
        return self._share(self._length(), self._ranks().world)

    # --- epochs ---

    def __iter__(self) -> Iterator[int]:
        return Pass(self)

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        mark = self._resumes()
        return self._epoch if mark is None else mark.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch of the next pass to begin. One that has begun goes on undisturbed.

        Naming the epoch of a loaded state keeps the loaded position.

        Raises:
            TypeError, ValueError: ``epoch`` is not an int, or negative; nothing has changed.
        """
        epoch = _checks.in_range(type(self).__name__, "epoch", epoch, 0)
        self._epoch, self._named, self._mark_first = epoch, True, False

    def _resumes(self) -> Place | None:
        """The loaded place, if the next pass begins there."""
        mark, latest = self._mark, self._latest
        if mark is not None and latest is not None and latest.done and latest.epoch == mark.epoch:
            mark = self._mark = None
            self._mark_first = False
        return mark if mark is not None and (self._mark_first or mark.epoch == self._epoch) else None

    def _next_place(self) -> Place:
        mark = self._resumes()
        return replace(mark) if mark is not None else self._new_place(self._epoch, self._coming_key())

    def _coming_key(self) -> Tensor:
        if self._key is None:
            self._key = new_key(generator=self.generator, device=None if self.generator else "cpu").cpu()
        return self._key

    def _began(self, now: Pass) -> None:
        """Take note of a pass that begins, and warn of what loops get wrong."""
        before, mark = self._latest, self._mark
        self._usual = self._usual or now.place().length
        if before is not None and before is not now:
            there = before.place()
            if before.done and before.epoch == now.epoch and not self._named and self._repeats():
                self._warn("again", f"epoch {now.epoch} is yielded again: call set_epoch before each epoch")
            elif not before.done and before.epoch != now.epoch and there.length > self._usual:
                self._warn(
                    "cut",
                    f"epoch {there.epoch} ended after {there.position} of its {there.length} samples. A loop that "
                    f"counts its batches once, here for {self._usual} samples, cuts longer epochs (with Lightning: "
                    "reload_dataloaders_every_n_epochs=1, and set_epoch in train_dataloader)",
                )
        if mark is not None and now.epoch != mark.epoch:
            if now.epoch < mark.epoch and not mark.done:
                self._warn(
                    "back",
                    f"set_epoch({now.epoch}) has dropped the loaded position {mark.position} of epoch {mark.epoch} "
                    f"(with Accelerate call set_epoch({mark.epoch}) of the prepared loader)",
                )
            self._mark, self._mark_first = None, False
        if self._keyless and now.first == 0:
            self._key = None
        if now.epoch == self._epoch:
            self._named = False
        self._latest = now

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{type(self).__name__}: {message}", stacklevel=5)

    # --- figures ---

    def stats(self) -> dict[str, int | float]:
        """Figures of the pass that began last; before there is one, of the coming one, whose length is found as by len.

        They are this process's own: no rank waits for another, and they are no part of the state.

        Returns:
            ``epoch``; ``position``, how many samples of it all ranks together have been given; ``num_samples`` in it
            for all ranks together; ``rank`` and ``num_replicas``; how many samples are ``padded``, that is repeated so
            that all ranks have equally many, and how many ``dropped`` to that end; ``selection_seconds``, spent in this
            process on picking or drawing the epoch's samples, comparing them between ranks not included, and
            ``selection_seconds_total``, over all epochs so far.

        Example:
            >>> import pysel
            >>> sampler = pysel.WeightedSampler([1.0, 2.0, 3.0], 5, key=0, rank=0, num_replicas=2)
            >>> sampler.set_epoch(4)
            >>> share = list(sampler)
            >>> stats = sampler.stats()
            >>> stats["epoch"], stats["position"], stats["num_samples"], stats["padded"]
            (4, 5, 5, 1)
            >>> 0 < stats["selection_seconds"] <= stats["selection_seconds_total"]
            True
        """
        latest, watch = self._latest, self._watch
        place = self._resumes() if latest is None else latest.place()
        epoch, position, length = (place.epoch, place.position, place.length) if place else (self._epoch, 0, 0)
        if latest is not None and latest.begun:
            rank, world, stop, seconds = latest.rank, latest.world, latest.stop, latest.seconds
        else:
            rank, world, _ = self._ranks()
            length = length or self._length()
            stop, seconds = position + self._share(length - position, world) * world, watch.unclaimed
        return {
            "epoch": epoch,
            "position": position,
            "num_samples": length,
            "rank": rank,
            "num_replicas": world,
            "padded": max(stop - length, 0),
            "dropped": max(length - stop, 0),
            "selection_seconds": seconds,
            "selection_seconds_total": watch.total,
        }

    # --- state ---

    def state_dict(self, *, yielded: int | None = None) -> dict[str, Any]:
        """The epoch and the position in it; loaded into a fresh sampler, iteration yields exactly what remains.

        The position counts samples *yielded by the sampler*, on all ranks. In a plain loop with ``num_workers=0`` these
        are the samples of the batches that the loop has received. DataLoader workers fetch ahead, and so does
        Accelerate, by one batch of every process: then pass the number received, or take the state of torchdata's
        ``StatefulDataLoader``, which holds this one as of the batch received.

        A finished epoch's state is followed by the next epoch, or the one that `set_epoch` names.

        Args:
            yielded: samples that this rank's loop has received since it began iterating; default: those yielded.

        Returns:
            numbers and tensors in a dictionary, fit for ``torch.save`` and for ``torch.distributed.checkpoint``, whose
            shapes never change. Large tensors are shared with the sampler, which never writes into them. Ranks in step
            have equal ones, and it can be loaded at another ``num_replicas``.

        Raises:
            ValueError: ``yielded`` is more than the sampler has yielded.
        """
        latest = self._latest
        if latest is None or (latest.done and latest.epoch != self._epoch and yielded is None):
            if yielded is not None:
                _checks.in_range(type(self).__name__, "yielded", yielded, 0, 0)
            return self._place_state(self._next_place())
        return self._place_state(latest.place(yielded))

    def _place_state(self, place: Place) -> dict[str, Any]:
        key = self._coming_key() if place.done else place.key
        return {**{field.name: getattr(place, field.name) for field in fields(place)}, "key": key.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next pass yields what was left of that epoch.

        If nothing was left, it is the next epoch, in full. A later epoch that `set_epoch` has named before stays the
        one that follows: loaders load states late.

        Raises:
            ValueError: the state has missing or impossible entries; nothing has changed.
        """
        self._load(self._read(state_dict, whole=True))

    def _load(self, place: Place) -> None:
        part = 0 < place.position < place.length
        on = place.position > 0 and not self._keyless  # without a key the epoch is not counted on
        if not (self._named and self._epoch >= place.epoch):
            self._epoch, self._named = place.epoch + on, False
        self._key = None if self._keyless and part else place.key
        self._mark = place if part or on else None
        self._mark_first = part
        self._latest = None

    def _read(self, state_dict: Any, *, whole: bool) -> Place:
        """The place in a state of the sampler or, not ``whole``, of a pass, once all is checked."""
        name = type(self).__name__
        if not isinstance(state_dict, dict):
            raise ValueError(f"{name}: state_dict must be a dictionary, got {type(state_dict).__name__}")
        wanted = [field.name for field in fields(self._place_type)] + [*self._rest] * whole
        missing = [entry for entry in wanted if entry not in state_dict]
        if missing:
            raise ValueError(f"{name}: state_dict must have {', '.join(missing)}")
        try:
            place = self._place_of(state_dict)
            if whole:
                self._check_rest(state_dict)
        except TypeError as error:
            raise ValueError(str(error)) from None
        return place

    def _place_of(self, state: dict[str, Any]) -> Place:
        name = type(self).__name__
        if not isinstance(state["key"], Tensor):
            raise TypeError(f"{name}: state_dict['key'] must be a Tensor, got {type(state['key']).__name__}")
        epoch = _checks.in_range(name, "state_dict['epoch']", state["epoch"], 0)
        length = _checks.in_range(name, "state_dict['length']", state["length"], 0)
        position = _checks.in_range(name, "state_dict['position']", state["position"], 0, length)
        return Place(epoch, as_key(name, state["key"]), position, length)
