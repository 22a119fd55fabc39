"""A memory of samples of a stream, to train on again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key, fold_in
from pysel.selection.state import Stateful, lasting
from pysel.selection.subset import quotas

_RANKS = 0x72616E6B73  # sets the keys of what decides who stays apart from those of draws
_DRAWS = 0x6472617773


class ReplayMemory(Stateful):
    """Indices of at most ``capacity`` samples of a stream of any length.

    Every sample has a rank, by default a random one, and those of the largest ranks stay: of the whole stream, which
    makes them a uniform sample of it (a reservoir), or with ``keep="balanced"`` of each class, all of which have as
    many places as the others; a class that has less leaves its places to them. With random ranks a reservoir is the
    same however the stream is cut into calls.

    Only indices, labels and counts are kept. Whoever holds the samples themselves lets go of those that are not in
    `indices` any more.

    Args:
        capacity: places, 1 or more.
        keep: "reservoir" or "balanced".
        draw: "uniform", or "uses": in `sample` a sample comes with probability in proportion to 1 over its uses so far,
            its arrival counted as one.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> memory = ReplayMemory(3, keep="balanced", key=0)
        >>> stays = memory.add(range(6), labels=[0, 0, 0, 0, 0, 1])
        >>> memory.labels, len(memory.sample(2))
        (tensor([0, 0, 1]), 2)

    Source: Vitter, Random sampling with a reservoir, 1985, here by random ranks (Efraimidis and Spirakis, 2006); 1 over
    uses as in arXiv 2504.05250. That classes share the places out exactly is ours.
    """

    _kind = "memory"

    def __init__(
        self,
        capacity: int,
        *,
        keep: str = "reservoir",
        draw: str = "uniform",
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        self.capacity = _checks.in_range(name, "capacity", capacity, 1)
        _checks.choice(name, "keep", keep, ("reservoir", "balanced"))
        _checks.choice(name, "draw", draw, ("uniform", "uses"))
        self.keep, self.draw = keep, draw
        super().__init__({"capacity": self.capacity, "keep": keep, "draw": draw})
        self._key = as_key(name, key)
        self.places = self.capacity  # less once it has shrunk
        self._held = self._seen = self._draws = 0
        self._sorted: Tensor | None = None  # the indices held, in order
        with torch.inference_mode(False):
            self._indices, self._labels, self._uses = torch.zeros(3, self.capacity, dtype=torch.int64, device="cpu")
            self._ranks = torch.zeros(self.capacity, dtype=torch.float64, device="cpu")

    def __len__(self) -> int:
        """Samples held."""
        return self._held

    @property
    def indices(self) -> Tensor:
        """int64 [len(self)]: which samples are held, in the order in which they came."""
        return self._indices[: self._held].clone()

    @property
    def labels(self) -> Tensor:
        """int64 [len(self)]: their labels; 0 for those that came without."""
        return self._labels[: self._held].clone()

    @property
    def uses(self) -> Tensor:
        """int64 [len(self)]: how often each was used, its arrival included."""
        return self._uses[: self._held].clone()

    @lasting
    def add(self, indices: Any, labels: Any = None, *, ranks: Any = None) -> Tensor:
        """Offer samples to the memory. One that is held already stays as it is.

        Args:
            indices: integers [B], 0 or more, distinct.
            labels: integers [B]; needed for "balanced".
            ranks: [B], finite: those with the largest stay; default: random ones. Either all calls have them or none.

        Returns:
            bool [B], on the CPU: which are held now.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape or out of range, an index that comes twice, a rank that is not
                finite, or no labels where they are needed. Nothing has changed then.
        """
        op = f"{type(self).__name__}.add"
        indices = _inputs.indices(op, "indices", indices, 2**63).cpu()
        n = len(indices)
        if labels is None:
            if self.keep == "balanced":
                raise ValueError(f"{op}: labels must be given with keep='balanced'")
            labels = torch.zeros_like(indices)
        labels = _inputs.integers(op, "labels", labels, n).to("cpu", torch.int64)
        if ranks is None:
            key = fold_in(self._key, _RANKS)
            even = torch.zeros(n, dtype=torch.float64, device="cpu")
            ranks = ops.gumbel_sigmoid(even, key=key, start=self._seen)  # uniform
        else:
            ranks = _inputs.vector(op, "ranks", ranks, n, may_be_empty=True).to("cpu", torch.float64)
        self._seen += n
        fresh = ~self._holds(indices)
        new = indices[fresh], labels[fresh], ranks[fresh], torch.ones_like(indices[fresh])
        self._take(*(torch.cat(pair) for pair in zip(self._tables_held(), new, strict=True)))
        return self._holds(indices)

    def _holds(self, indices: Tensor) -> Tensor:
        """bool [B], on the CPU: which of them are held."""
        if self._sorted is None:
            self._sorted = self._indices[: self._held].sort().values
        if self._held == 0:
            return torch.zeros_like(indices, dtype=torch.bool)
        place = torch.searchsorted(self._sorted, indices).clamp_max_(self._held - 1)
        return self._sorted[place] == indices

    def _tables_held(self) -> list[Tensor]:
        return [table[: self._held] for table in (self._indices, self._labels, self._ranks, self._uses)]

    def _take(self, indices: Tensor, labels: Tensor, ranks: Tensor, uses: Tensor) -> None:
        """Hold as many of these as there are places."""
        if len(indices) > self.places:
            if self.keep == "balanced":
                classes = _inputs.classes("ReplayMemory", "labels", labels, len(labels))
                shares = quotas(classes.sizes, self.places, "equal")
                stay = ops.select(ranks, self.places, groups=classes.ids, quotas=shares)
            else:
                stay = ops.select(ranks, self.places)
            indices, labels, ranks, uses = indices[stay], labels[stay], ranks[stay], uses[stay]
        self._held, self._sorted = len(indices), None
        for table, values in zip(self._tables_of(), (indices, labels, ranks, uses), strict=True):
            table[: self._held] = values
            table[self._held :] = 0

    def _tables_of(self) -> tuple[Tensor, ...]:
        return self._indices, self._labels, self._ranks, self._uses

    @lasting
    def rerank(self, ranks: Any) -> None:
        """Give the samples held new ranks [len(self)], in the order of `indices`: finite, the largest stay longest.

        Raises:
            TypeError: they are no numbers.
            ValueError: another shape, or a rank that is not finite; nothing has changed then.
        """
        op = f"{type(self).__name__}.rerank"
        ranks = _inputs.vector(op, "ranks", ranks, may_be_empty=True)
        if len(ranks) != self._held:
            raise ValueError(f"{op}: ranks must be [{self._held}], one for each sample held, got {list(ranks.shape)}")
        self._ranks[: self._held] = ranks.to(self._ranks)

    @lasting
    def sample(self, n: int) -> Tensor:
        """Draw samples held, each at most once, and count their uses.

        Args:
            n: how many, between 0 and ``len(self)``.

        Returns:
            int64 [n] indices on the CPU, in random order.

        Raises:
            TypeError: ``n`` is not an int.
            ValueError: out of range; nothing has changed then.
        """
        return self._sample(f"{type(self).__name__}.sample", n, self._held)

    def _sample(self, op: str, n: int, among: int) -> Tensor:
        """Of those that came first."""
        n = _checks.in_range(op, "n", n, 0, among)
        weights = torch.ones(among, dtype=torch.float64, device="cpu")
        if self.draw == "uses":
            weights /= self._uses[:among]
        rows = ops.weighted_sample(weights, n, key=fold_in(fold_in(self._key, _DRAWS), self._draws))
        self._draws += 1
        ops.usage_update_(self._uses, rows)
        return self._indices[rows]

    @lasting
    def shrink(self, capacity: int) -> Tensor:
        """Leave it fewer places from now on, for instance because another task needs some.

        Args:
            capacity: between 1 and the present one.

        Returns:
            int64 indices of the samples that were let go.

        Raises:
            TypeError: ``capacity`` is not an int.
            ValueError: out of range; nothing has changed then.
        """
        self.places = _checks.in_range(f"{type(self).__name__}.shrink", "capacity", capacity, 1, self.places)
        before = self.indices
        self._take(*(table.clone() for table in self._tables_held()))
        return before[~self._holds(before)]

    def stats(self) -> dict[str, Any]:
        """Samples ``held``, in how many places (``capacity``), of how many ``offered``; and held of each class."""
        labels, held = self._labels[: self._held].unique(return_counts=True)
        classes = dict(zip(labels.tolist(), held.tolist(), strict=True))
        return {"held": self._held, "offered": self._seen, "capacity": self.places, "classes": classes}

    def _state(self) -> dict[str, Any]:
        return {
            "key": self._key.clone(),
            "places": self.places,
            "held": self._held,
            "seen": self._seen,
            "draws": self._draws,
            "indices": self._indices.clone(),
            "labels": self._labels.clone(),
            "ranks": self._ranks.clone(),
            "uses": self._uses.clone(),
        }

    def _check_state(self, state: dict[str, Any]) -> None:
        name = type(self).__name__
        places = _checks.in_range(name, "state_dict['places']", state["places"], 1, self.capacity)
        held = _checks.in_range(name, "state_dict['held']", state["held"], 0, places)
        for entry in ("seen", "draws"):
            _checks.in_range(name, f"state_dict['{entry}']", state[entry], 0)
        _inputs.indices(name, "state_dict['indices']", state["indices"][:held], 2**63)
        if not bool(torch.isfinite(state["ranks"]).all()):
            raise ValueError(f"{name}: state_dict['ranks'] must be finite")
        if bool((state["uses"][:held] < 1).any()):
            raise ValueError(f"{name}: state_dict['uses'] must be at least 1")

    def _load_state(self, state: dict[str, Any]) -> None:
        self._check_state(state)
        self._key, self._sorted = state["key"], None
        self.places, self._held, self._seen, self._draws = (state[name] for name in ("places", "held", "seen", "draws"))
        self._indices, self._labels, self._ranks = state["indices"], state["labels"], state["ranks"]
        self._uses = state["uses"]
