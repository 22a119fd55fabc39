"""Draws in proportion to weights, which may change while training goes on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from pysel import _checks, _inputs, ops
from pysel.random import fold_in
from pysel.samplers.passes import Elements, Place
from pysel.samplers.ranked import RankedSampler
from pysel.samplers.ranks import digest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class DrawPlace(Place):
    """A place in draws whose weights may have changed on the way."""

    since: int = 0  # the position from which the present weights hold
    drawn: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8, device="cpu"))
    # without replacement, a bit for each sample drawn before that, packed as by numpy.packbits


class WeightedSampler(RankedSampler):
    """Draws indices in proportion to weights: a drop-in for ``torch.utils.data.WeightedRandomSampler``.

    It takes any number of categories, draws without replacement in time linear in their number, and puts the draws in
    uniformly random order by default (draw order would put heavy samples first).

    Every rank holds all weights and, while it goes through an epoch, all of its draws: 8 ``num_samples`` bytes.

    With a ``key`` the samples are a function of (key, epoch): call `set_epoch` before each epoch, as with
    ``DistributedSampler``. Without one every pass draws a fresh key from ``generator``, or from torch's default
    generator, as torch's sampler does.

    Over ranks the ``num_samples`` draws are split evenly. What does not divide is padded with the first draws of the
    epoch, or dropped with ``drop_last=True``. ``len`` is this rank's share. Rank and world size are those of
    ``torch.distributed``, if it is initialised when the sampler is used. Under tensor, context or pipeline parallelism
    pass the mesh: ranks along its dimensions of those names (tp, cp, pp, sp, mp, or tensor_parallel and so on) have the
    same samples, the others split them. As each epoch begins, ranks compare digests of key, arguments and weights, and
    all name those that differ; so all ranks of the mesh must draw. Where only some do and hand on what they have, pass
    the data-parallel part, ``mesh["dp"]``, or its group: each such part is compared by itself. Where ``rank`` and
    ``num_replicas`` say who they are, none waits for another and nothing is compared.

    Lightning, Fabric, Ray Train and plain DDP or FSDP leave the sampler alone. Accelerate and Hugging Face's Trainer
    deal out batches themselves: pass ``rank=0, num_replicas=1``; global batches are the same then as with the others.
    As in torch's sampler, a generator that they make and synchronise will do in place of a key.

    Args:
        weights: [N] non-negative and finite, any array or list of numbers; a list becomes float64. Copied.
        num_samples: draws an epoch, over all ranks together (``DistributedSampler.num_samples`` is a rank's share).
        replacement: whether an index may come twice.
        generator: where keys come from; not with ``key``. On several processes it must have the same seed.
        key: int64 [2] or an int. Copied.
        order: "shuffled", "draw" or "index" (ascending), see `pysel.weighted_sample`.
        rank, num_replicas: this process and the number of processes that split an epoch.
        mesh: a ``DeviceMesh`` with at least one data-parallel dimension, in place of these.
        process_group: the data-parallel group, in place of these.
        drop_last: drop instead of padding.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, ``key`` and ``generator`` together, or several processes with neither.

    Example:
        >>> import pysel
        >>> sampler = WeightedSampler([0.0, 1.0, 3.0], 2, replacement=False, key=pysel.key(0))
        >>> sorted(sampler), len(sampler)
        ([1, 2], 2)
    """

    _place_type = DrawPlace
    _rest = ("weights", "version")

    def __init__(
        self,
        weights: Any,
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
        *,
        key: Tensor | int | None = None,
        order: str = "shuffled",
        rank: int | None = None,
        num_replicas: int | None = None,
        mesh: DeviceMesh | None = None,
        process_group: ProcessGroup | None = None,
        drop_last: bool = False,
    ) -> None:
        name = "WeightedSampler"
        super().__init__(key, generator, rank, num_replicas, mesh, process_group, drop_last)
        self.num_samples = _checks.in_range(name, "num_samples", num_samples, 1)
        _checks.choice(name, "order", order, ("shuffled", "draw", "index"))
        self.replacement = _checks.flag(name, "replacement", replacement)
        self.order = order
        self._weights = self._checked(_inputs.vector(name, "weights", weights))
        self._version = 0
        self._digest = ""  # of the weights, once it was asked for
        bits = 0 if self.replacement else -(-self._weights.numel() // 8)
        self._none_drawn = torch.zeros(bits, dtype=torch.uint8, device="cpu")

    def _checked(self, weights: Tensor) -> Tensor:
        """A copy of finite weights that can be drawn from."""
        if bool((weights < 0).any()):
            row = int(torch.nonzero(weights < 0)[0])
            raise ValueError(f"WeightedSampler: weights must not be negative, got {float(weights[row])} in row {row}")
        positive = int(torch.count_nonzero(weights))
        if positive == 0:
            raise ValueError("WeightedSampler: weights must not all be zero")
        if not self.replacement and self.num_samples > positive:
            raise ValueError(
                f"WeightedSampler: num_samples must be at most {positive} without replacement, "
                f"the number of nonzero weights, got {self.num_samples}"
            )
        return weights.clone()

    def _converted(self, name: str, weights: Any) -> Tensor:
        """A copy of weights [N] in the dtype of the present ones, where they are."""
        now = _inputs.vector("WeightedSampler", name, weights, self._weights.numel()).to(self._weights)
        _inputs.finite("WeightedSampler", name, now)
        return self._checked(now)

    @property
    def weights(self) -> Tensor:
        """The present weights, [N]; assigning to it is `set_weights`. Not to be written into."""
        return self._weights

    @weights.setter
    def weights(self, weights: Any) -> None:
        self.set_weights(weights)

    @property
    def version(self) -> int:
        """How often the weights were changed."""
        return self._version

    def set_weights(self, weights: Any) -> None:
        """Draw all further samples from other weights, those of a running pass, too.

        A running pass goes on from the position it has reached, which is further than the loop where workers fetch
        ahead. Without replacement it leaves out what it has drawn already. Call it at the same step on all ranks, with
        the same weights. They are part of the state.

        Args:
            weights: [N], as many as before; they take on the dtype and device of those.

        Raises:
            TypeError, ValueError: they do not fit; nothing has changed.
        """
        now = self._converted("weights", weights)
        running = self._latest if self._latest is not None and not self._latest.done else None
        mark = self._mark if self._latest is None else None
        with self._watch:
            if running is not None:
                running.changed(self._redrawn(running.place()))
            elif mark is not None and not mark.done:
                self._mark = self._redrawn(mark)
        self._weights, self._digest = now, ""
        self._version += 1

    def _redrawn(self, place: Place) -> DrawPlace:
        """A place from which on the draws are new ones."""
        assert isinstance(place, DrawPlace)
        drawn = place.drawn
        if not self.replacement:
            elements, _ = self._sequence(place)
            bits = _unpacked(drawn, self._weights.numel())
            bits[elements(slice(place.since, place.position, 1))] = True
            drawn = torch.from_numpy(np.packbits(bits.numpy()))
        return replace(place, since=place.position, drawn=drawn)

    def _length(self) -> int:
        return self.num_samples

    def _new_place(self, epoch: int, key: Tensor) -> Place:
        return DrawPlace(epoch, key, length=self.num_samples, drawn=self._none_drawn)

    def _padding_from(self, place: Place) -> int:
        assert isinstance(place, DrawPlace)
        return place.since

    def _sequence(self, place: Place) -> tuple[Elements, int]:
        assert isinstance(place, DrawPlace)
        since, weights, key = place.since, self._weights, fold_in(place.key, place.epoch)
        if since > 0:
            key = fold_in(key, since)
            if not self.replacement:
                bits = _unpacked(place.drawn, weights.numel())
                weights = weights.masked_fill(bits.to(weights.device), 0)
        drawn = ops.weighted_sample(
            weights, self.num_samples - since, self.replacement, order=self.order, key=key
        ).cpu()
        return lambda part: drawn[part.start - since : part.stop - since : part.step], self.num_samples

    def _arguments(self) -> list[Any]:
        return [self.num_samples, self.replacement, self.order, self.drop_last]

    def _content_digests(self, place: Place) -> dict[str, str]:
        assert isinstance(place, DrawPlace)
        self._digest = self._digest or digest(self._weights)
        return {"weights": digest([self._digest, self._version, place.drawn])}

    def state_dict(self, *, yielded: int | None = None) -> dict[str, Any]:
        return {**super().state_dict(yielded=yielded), "weights": self._weights, "version": self._version}

    state_dict.__doc__ = RankedSampler.state_dict.__doc__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._weights, self._digest = self._converted("state_dict['weights']", state_dict["weights"]), ""
        self._version = int(state_dict["version"])

    load_state_dict.__doc__ = RankedSampler.load_state_dict.__doc__

    def _place_of(self, state: dict[str, Any]) -> Place:
        name = "WeightedSampler"
        place = super()._place_of(state)
        if place.length != self.num_samples:
            raise ValueError(
                f"{name}: state_dict must be of a sampler with num_samples={self.num_samples}, "
                f"got one with {place.length}"
            )
        since = _checks.in_range(name, "state_dict['since']", state["since"], 0, place.position)
        drawn = state["drawn"]
        _checks.tensor(name, "state_dict['drawn']", drawn, (torch.uint8,))
        if drawn.shape != self._none_drawn.shape:
            raise ValueError(
                f"{name}: state_dict['drawn'] must have shape {list(self._none_drawn.shape)}, got {list(drawn.shape)}: "
                f"replacement={self.replacement}"
            )
        return DrawPlace(place.epoch, place.key, place.position, place.length, since, drawn.cpu().clone())

    def _check_rest(self, state: dict[str, Any]) -> None:
        name = "WeightedSampler"
        _checks.in_range(name, "state_dict['version']", state["version"], 0)
        self._converted("state_dict['weights']", state["weights"])


def _unpacked(bits: Tensor, n: int) -> Tensor:
    """bool [n] of packed bits; none are none set."""
    if bits.numel() == 0:
        return torch.zeros(n, dtype=torch.bool, device="cpu")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=n).view(np.bool_))
