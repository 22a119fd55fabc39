"""What methods share that choose from a stream and hold a memory of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysel import _checks, _inputs
from pysel.random import as_key
from pysel.selection.protocol import StreamSelector
from pysel.selection.state import lasting
from pysel.selection.stream.replay import ReplayMemory

_PART = "memory_"  # begins the names of the memory's entries in a state


class Arrivals(NamedTuple):
    """What a call offers, checked: B rows, without graphs."""

    logits: Tensor  # [B, C] finite, float32 or float64
    labels: Tensor  # int64 [B] in [0, C), where the logits are
    indices: Tensor  # int64 [B], distinct, on the CPU
    known: Tensor  # bool [B], on the CPU: held already


class Remembering(StreamSelector):
    """A stream selector with a `ReplayMemory`, its ``memory``.

    Args:
        num_classes: C, the logits' width.
        capacity: places in the memory.
        arguments: the constructor's other arguments, by name.
        keep, draw, key: see `ReplayMemory`.
    """

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        arguments: Mapping[str, Any],
        *,
        keep: str,
        draw: str,
        key: Tensor | int | None,
    ) -> None:
        name = type(self).__name__
        self.num_classes = _checks.in_range(name, "num_classes", num_classes, 2)
        capacity = _checks.in_range(name, "capacity", capacity, 1)
        _checks.choice(name, "draw", draw, ("uniform", "uses"))
        super().__init__({"num_classes": self.num_classes, "capacity": capacity, **arguments, "draw": draw})
        self.memory = ReplayMemory(capacity, keep=keep, draw=draw, key=as_key(name, key))

    def __len__(self) -> int:
        """Samples held."""
        return len(self.memory)

    @property
    def indices(self) -> Tensor:
        """int64 [len(self)]: which samples are held, in the order in which they came."""
        return self.memory.indices

    @property
    def labels(self) -> Tensor:
        """int64 [len(self)]: their labels."""
        return self.memory.labels

    @lasting
    def replay(self, n: int) -> Tensor:
        """Draw samples held, each at most once: int64 [n] indices on the CPU.

        Raises:
            TypeError: ``n`` is not an int.
            ValueError: below 0, or more than there are; nothing has changed then.
        """
        return self.memory._sample(f"{type(self).__name__}.replay", n, len(self.memory))

    def _arrivals(self, logits: Any, labels: Any, indices: Any) -> Arrivals:
        op = f"{type(self).__name__}.offer"
        logits = self._logits(op, logits)
        labels = _inputs.integers(op, "labels", labels, len(logits)).to(logits.device, torch.int64)
        outside = (labels < 0) | (labels >= self.num_classes)
        if bool(outside.any()):
            row = int(torch.nonzero(outside)[0])
            raise ValueError(
                f"{op}: labels must be between 0 and {self.num_classes - 1}, got {int(labels[row])} in row {row}"
            )
        if indices is None:
            indices = torch.arange(self._offered, self._offered + len(logits), device="cpu")
        indices = _inputs.indices(op, "indices", indices, 2**63).cpu()
        if len(indices) != len(logits):
            raise ValueError(f"{op}: indices must be [{len(logits)}], one for each row, got [{len(indices)}]")
        return Arrivals(logits, labels, indices, self.memory._holds(indices))

    def _logits(self, op: str, logits: Any, rows: int | None = None) -> Tensor:
        """[B, C] numbers, finite."""
        logits = _inputs.tensor(op, "logits", logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.dim() != 2 or logits.size(1) != self.num_classes or rows not in (None, len(logits)):
            wanted = f"[{'B' if rows is None else rows}, {self.num_classes}]"
            raise ValueError(f"{op}: logits must be {wanted}, got {list(logits.shape)}")
        if not logits.is_floating_point():
            logits = logits.double()
        _inputs.finite(op, "logits", logits)
        return logits

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), **{_PART + name: value for name, value in self.memory._state().items()}}

    def _load_state(self, state: dict[str, Any]) -> None:
        part = {name.removeprefix(_PART): value for name, value in state.items() if name.startswith(_PART)}
        self.memory._check_state(part)
        super()._load_state(state)
        self.memory._load_state(part)


def errors(logits: Tensor, labels: Tensor) -> Tensor:
    """``softmax(logits) - onehot(labels)`` [B, C]: the gradient of the cross-entropy by the logits."""
    error = torch.softmax(logits, 1)
    error.scatter_(1, labels[:, None], 0)
    # p - 1 as the sum of the others: subtracting would lose all digits of a confident prediction
    return error.scatter_(1, labels[:, None], -error.sum(1, keepdim=True))
