"""What every selection method offers: of a fixed set of samples, of a stream, and as weights of losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysel import _checks, _inputs
from pysel.selection.state import Stateful, lasting


class Selector(Stateful):
    """A rule for which samples to train on in each epoch: the base of all selection methods.

    A method defines `select` and `__len__`, and passes to this constructor what it was built from; one whose subsets
    differ in size defines `size`, too. One that ranks samples has ``scores(epoch)``, [N]. State and files come from
    `pysel.selection.state.Stateful`. `pysel.SelectionSampler` takes any object with the first two and the state's two
    methods, derived from this class or not.

    Args:
        num_samples: N.
        arguments: the constructor's other arguments, by name: numbers, names, functions.
        tables: those that are tensors, by name; they must be the selector's own, and not the caller's.
    """

    _epoch = 0  # selected last: a method whose subsets differ sets it

    def __init__(
        self, num_samples: int, arguments: Mapping[str, Any], tables: Mapping[str, Tensor | None] | None = None
    ) -> None:
        self.num_samples = _checks.integer(type(self).__name__, "num_samples", num_samples)
        super().__init__(arguments, tables)

    def select(self, epoch: int = 0) -> Tensor:
        """The samples of an epoch: int64 indices, ascending. Asking again, or backwards, gives the same answer."""
        raise NotImplementedError

    def __len__(self) -> int:
        """How many samples the epoch that was selected last holds; before any, the first epoch."""
        raise NotImplementedError

    def update(self, indices: Any, *, losses: Any = None, logits: Any = None) -> None:
        """Tell what training has seen of samples; methods that learn nothing from it do nothing.

        Args:
            indices: integers [B], samples of a batch.
            losses: [B] their losses, unweighted.
            logits: [B, C] the network's outputs.
        """

    @lasting
    def weights(self, indices: Any) -> Tensor:
        """Factors [B] for the losses of samples ``indices``, integers [B], of the current subset: here all 1."""
        indices = self._samples("weights", indices)
        return torch.ones(indices.shape, dtype=torch.float32, device=indices.device)

    def _samples(self, method: str, indices: Any) -> Tensor:
        """What a method was given as indices of samples, which may come twice: int64 [B]."""
        op = f"{type(self).__name__}.{method}"
        return _inputs.indices(op, "indices", indices, self.num_samples, distinct=False)

    # --- how much it is ---

    def size(self, epoch: int) -> int:
        """Samples in the subset of an epoch to come; where training will decide that, the most that there can be.

        A method that says nothing of it may take all.
        """
        return self.num_samples

    def steps(self, batch_size: int, drop_last: bool = False) -> int:
        """Batches in the epoch that ``len`` speaks of."""
        batch_size = _checks.in_range(f"{type(self).__name__}.steps", "batch_size", batch_size, 1)
        return _batches(len(self), batch_size, drop_last)

    def steps_total(self, batch_size: int, epochs: int, drop_last: bool = False) -> int:
        """Batches in the first ``epochs`` epochs: the length of a learning-rate schedule that goes by steps.

        Exact where arguments fix the size of every subset. Where losses will decide it (`InfoBatch` and `SeTa` by
        ``prune_ratio``), the most that there can be: such a schedule never runs out of steps, but training ends before
        its end. For an exact one choose the size (``keep_ratio``), or let the schedule go by epochs.

        Args:
            batch_size: of all ranks together.
            epochs: length of training.
            drop_last: an epoch's last batch is left out if it is smaller.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument below 1.

        Example:
            >>> import pysel
            >>> pysel.selection.DynamicRandom(100, 0.3, epochs=10, refine=0.2, key=0).steps_total(8, 10)
            58
        """
        op = f"{type(self).__name__}.steps_total"
        batch_size = _checks.in_range(op, "batch_size", batch_size, 1)
        epochs = _checks.in_range(op, "epochs", epochs, 1)
        drop_last = _checks.flag(op, "drop_last", drop_last)
        return sum(_batches(self.size(epoch), batch_size, drop_last) for epoch in range(epochs))

    @property
    def realised_ratio(self) -> float:
        """Fraction kept in the epoch that was selected last; before any, in the first."""
        return len(self) / max(self.num_samples, 1)

    # --- what it did, and why ---

    def explain(self, i: int) -> dict[str, Any]:
        """What became of a sample in the epoch selected last.

        Args:
            i: index of the sample.

        Returns:
            ``sample``, ``epoch``, whether it was ``taken``, and its ``weight`` in the loss, 0 if not. Methods that have
            reasons add them.

        Raises:
            TypeError, IndexError: ``i`` is not an int in [0, N).
        """
        i = self._sample(i)
        taken = bool((self.select(self._epoch) == i).any())
        weight = float(self.weights([i])[0]) if taken else 0.0
        return {"sample": i, "epoch": self._epoch, "taken": taken, "weight": weight}

    def _sample(self, i: int) -> int:
        name = f"{type(self).__name__}.explain"
        i = _checks.integer(name, "i", i)
        if not 0 <= i < self.num_samples:
            raise IndexError(f"{name}: i must be between 0 and {self.num_samples - 1}, got {i}")
        return i

    def stats(self) -> dict[str, Any]:
        """Figures of what was selected so far: at least ``realised_ratio``."""
        return {"realised_ratio": self.realised_ratio}


def _batches(samples: int, batch_size: int, drop_last: bool) -> int:
    return samples // batch_size if drop_last else -(-samples // batch_size)


class StreamSelector(Stateful):
    """A rule for which samples of a stream to train on and to keep: the base of such methods.

    A method defines `offer`, `replay` and `__len__`. Samples go by indices of the caller's, or by their number in the
    stream: the caller keeps the samples themselves, and can let go of what is not in ``indices`` any more.
    """

    _kind = "stream selector"

    def __init__(self, arguments: Mapping[str, Any], tables: Mapping[str, Tensor | None] | None = None) -> None:
        super().__init__(arguments, tables)
        self._offered = self._accepted = 0

    def offer(self, logits: Any, labels: Any, *, features: Any = None, indices: Any = None) -> Tensor:
        """Decide on samples as they arrive, all of a call at the same time.

        Args:
            logits: [B, C] the network's outputs for them.
            labels: integers [B] in [0, C).
            features: [B, d] what the last layer saw, for methods that need it.
            indices: integers [B], distinct, to call them by later; default: their numbers in the stream.

        Returns:
            bool [B], where the logits are: which to train on.
        """
        raise NotImplementedError

    def replay(self, n: int) -> Tensor:
        """Indices of ``n`` samples held, to train on again: int64 [n]."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Samples held."""
        raise NotImplementedError

    def refresh(self, logits: Any = None, *, features: Any = None) -> None:
        """Begin a new section of the stream: what that changes, and whether outputs are needed, is the method's."""

    def stats(self) -> dict[str, Any]:
        """``realised_ratio``, samples ``accepted`` over those ``offered``, and how many are ``held``."""
        ratio = self._accepted / max(self._offered, 1)
        return {
            "realised_ratio": ratio,
            "offered": self._offered,
            "accepted": self._accepted,
            "held": len(self),
        }

    def _state(self) -> dict[str, Any]:
        return {"offered": self._offered, "accepted": self._accepted}

    def _load_state(self, state: dict[str, Any]) -> None:
        name = type(self).__name__
        offered = _checks.in_range(name, "state_dict['offered']", state["offered"], 0)
        self._accepted = _checks.in_range(name, "state_dict['accepted']", state["accepted"], 0, offered)
        self._offered = offered


@runtime_checkable
class Weighter(Protocol):
    """What gives losses weights that it learns: `MetaWeighter`, or any object with these two methods."""

    def weigh(self, losses: Any, labels: Any = None) -> Tensor:
        """Factors [B] for losses [B], of samples with labels [B]."""
        ...

    def meta_step(self, model: Any, batch: Any, meta_batch: Any, lr: Any) -> Tensor:
        """Learn from what a step on the weighted batch would do to the meta batch: the meta loss, 0-d."""
        ...
