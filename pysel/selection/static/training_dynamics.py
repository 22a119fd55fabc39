"""Scores of samples by how the network's answers to them changed over a training run.

Each is told of the batches as selectors are, and holds a fixed number of values for each sample, whatever the length of
training. Its scores choose a subset by `ScoreSelector`::

    dynamics = TDDS(labels)
    for epoch in range(epochs):
        for indices, x, y in loader:
            logits = model(x)
            ...
            dynamics.update(indices, logits=logits)
    selector = ScoreSelector(dynamics.scores(), keep_ratio)

Every sample has a clock of its own: its t-th epoch is the t-th time that it was seen. One that was left out of an epoch
is compared with when it was seen last, and has fewer windows. One of which too little has been seen has a score of NaN,
which `ScoreSelector` refuses by its row: it is for the caller to say what becomes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs
from pysel.selection.state import Stateful, lasting

_LEAST = math.log(torch.finfo(torch.float32).smallest_normal)  # a probability of 0 has no logarithm


def _deviation(windows: Tensor) -> Tensor:
    """Length float64 [B] of each window [B, J] less its mean."""
    windows = windows.double()
    return torch.linalg.vector_norm(windows - windows.mean(1, keepdim=True), dim=1)


class TrainingDynamics(Stateful):
    """What all of them do: check a batch, hand it on, keep the state.

    Args:
        labels: integers [N] in [0, C).
        num_classes: C, the logits' width; default: one more than the largest label.
        arguments: of a derived class, see `Stateful`. What it keeps for each sample it adds to ``_memory``.

    Raises:
        TypeError: labels that are not integers, or an argument of the wrong type.
        ValueError: no labels, a label or an argument out of range.
    """

    _kind = "recorder"

    def __init__(
        self,
        labels: Any,
        num_classes: int | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        name = type(self).__name__
        labels = _inputs.integers(name, "labels", labels).to("cpu", torch.int64, copy=True)
        if labels.numel() == 0:
            raise ValueError(f"{name}: labels must be [N] with N > 0, got [0]")
        low, high = int(labels.min()), int(labels.max())
        most = 2**31 if num_classes is None else _checks.in_range(name, "num_classes", num_classes, 2, 2**31)
        if low < 0 or high >= most:
            raise ValueError(f"{name}: labels must be between 0 and {most - 1}, got {low if low < 0 else high}")
        self.num_classes = max(2, high + 1) if num_classes is None else most
        self.num_samples = len(labels)
        super().__init__({"num_classes": self.num_classes, **(arguments or {})}, tables={"labels": labels})
        self._memory = {"seen": self._zeros(torch.int32)}

    @lasting
    def _zeros(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(self.num_samples, *shape, dtype=dtype, device="cpu")

    @lasting
    def update(self, indices: Any, *, losses: Any = None, logits: Any = None) -> None:
        """Tell what training has seen of samples.

        Args:
            indices: integers [B], each sample once.
            losses: not used.
            logits: [B, C], the network's outputs, finite in float32.

        Raises:
            TypeError: indices that are not integers, logits that are not numbers.
            ValueError: no logits, or not C for each index; one that is not finite; an index that is out of range or
                comes twice. Nothing has changed then.
        """
        op = f"{type(self).__name__}.update"
        if logits is None:
            raise ValueError(f"{op}: logits must be given")
        indices = _inputs.indices(op, "indices", indices, self.num_samples).cpu()
        logits = _inputs.tensor(op, "logits", logits)
        if logits.shape != (len(indices), self.num_classes):
            raise ValueError(
                f"{op}: logits must be [B, C], here [{len(indices)}, {self.num_classes}], got {list(logits.shape)}"
            )
        logits = logits.to(torch.float32)
        _inputs.finite(op, "logits", logits, rows=indices)
        self._learn(indices, logits, self._tables["labels"][indices].to(logits.device))
        self._memory["seen"][indices] += 1

    def _learn(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Bring the memory of samples up to date; ``seen`` is how often they were seen before."""
        raise NotImplementedError

    def scores(self) -> Tensor:
        """float64 [N] on the CPU; NaN for samples of which too little has been seen."""
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        return {name: values.clone() for name, values in self._memory.items()}

    def _load_state(self, state: dict[str, Any]) -> None:
        for name, values in state.items():
            wrong = ~torch.isfinite(values) if values.is_floating_point() else values < 0
            if bool(wrong.any()):
                wanted = "finite" if values.is_floating_point() else "at least 0"
                raise ValueError(
                    f"{type(self).__name__}: state_dict[{name!r}] must be {wanted}, got {values[wrong][0].item()}"
                )
        self._memory = state


class Forgetting(TrainingDynamics):
    """How often a sample went from right to wrong; infinity for one that has never been right.

    Keep the largest: samples that are never forgotten are the ones to do without. What was seen but never learned is
    taken first, as in the paper; where labels are wrong, these are the wrong ones, too.

    Args:
        labels: integers [N] in [0, C).
        num_classes: C, the logits' width; default: one more than the largest label.

    Raises:
        TypeError: labels that are not integers, or an argument of the wrong type.
        ValueError: no labels, a label or an argument out of range.

    Example:
        >>> forgetting = Forgetting([0, 0, 1])
        >>> for logits in ([[1, 0], [1, 0], [1, 0]], [[0, 1], [1, 0], [1, 0]]):
        ...     forgetting.update(range(3), logits=logits)
        >>> forgetting.scores()
        tensor([1., 0., inf], dtype=torch.float64)

    Source: Toneva et al., arXiv 1812.05159.
    """

    def __init__(self, labels: Any, num_classes: int | None = None) -> None:
        super().__init__(labels, num_classes)
        self._memory |= {"right": self._zeros(torch.uint8), "learned": self._zeros(torch.uint8)}
        self._memory["events"] = self._zeros(torch.int32)

    def _learn(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        right = (logits.argmax(1) == labels).to("cpu", torch.uint8)
        self._memory["events"][indices] += (self._memory["right"][indices] > right).int()
        self._memory["learned"][indices] |= right
        self._memory["right"][indices] = right

    @lasting
    def scores(self) -> Tensor:
        """float64 [N] on the CPU; NaN for samples that have not been seen."""
        scores = self._memory["events"].double().masked_fill(self._memory["learned"] == 0, math.inf)
        return scores.masked_fill(self._memory["seen"] == 0, math.nan)


class AUM(TrainingDynamics):
    """Area under the margin: the label's logit less the largest other, its mean over training.

    Keep the largest: samples whose label is wrong have the smallest.

    Args:
        labels: integers [N] in [0, C).
        num_classes: C, the logits' width; default: one more than the largest label.

    Raises:
        TypeError: labels that are not integers, or an argument of the wrong type.
        ValueError: no labels, a label or an argument out of range.

    Example:
        >>> aum = AUM([0, 1])
        >>> aum.update([0, 1], logits=[[3.0, 1.0], [2.0, 1.0]])
        >>> aum.scores()
        tensor([ 2., -1.], dtype=torch.float64)

    Source: Pleiss et al., arXiv 2001.10528.
    """

    def __init__(self, labels: Any, num_classes: int | None = None) -> None:
        super().__init__(labels, num_classes)
        self._memory["total"] = self._zeros(torch.float64)

    def _learn(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        self._memory["total"][indices] += (own.double() - others.double()).cpu()

    @lasting
    def scores(self) -> Tensor:
        """float64 [N] on the CPU; NaN for samples that have not been seen."""
        return self._memory["total"] / self._memory["seen"]


class DynamicUncertainty(TrainingDynamics):
    """Dyn-Unc: how much the label's probability varies within a window of epochs, on average over all windows.

    In each window of J successive epochs the standard deviation is taken, with J - 1 in the denominator; windows slide
    by one epoch. Keep the largest: neither what is always right nor what never is varies.

    Args:
        labels: integers [N] in [0, C).
        num_classes: C, the logits' width; default: one more than the largest label.
        window: J.

    Raises:
        TypeError: labels that are not integers, or an argument of the wrong type.
        ValueError: no labels, a label or an argument out of range.

    Example:
        >>> uncertainty = DynamicUncertainty([0, 0], window=2)
        >>> for logits in ([[0.0, 0.0], [9.0, 0.0]], [[1.0, 0.0], [9.0, 0.0]]):
        ...     uncertainty.update([0, 1], logits=logits)
        >>> uncertainty.scores()
        tensor([0.1634, 0.0000], dtype=torch.float64)

    Source: He et al., arXiv 2306.05175.
    """

    def __init__(self, labels: Any, num_classes: int | None = None, *, window: int = 10) -> None:
        self.window = _checks.in_range(type(self).__name__, "window", window, 2)
        super().__init__(labels, num_classes, arguments={"window": self.window})
        self._memory |= {"latest": self._zeros(torch.float32, self.window), "total": self._zeros(torch.float64)}

    def _learn(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        seen, latest = self._memory["seen"][indices], self._memory["latest"]
        latest[indices, seen % self.window] = torch.softmax(logits, 1).gather(1, labels[:, None]).squeeze(1).cpu()
        full = indices[seen >= self.window - 1]
        self._memory["total"][full] += _deviation(latest.index_select(0, full)) / (self.window - 1) ** 0.5

    @lasting
    def scores(self) -> Tensor:
        """float64 [N] on the CPU; NaN for samples that have been seen fewer than J times."""
        windows = self._memory["seen"] - (self.window - 1)
        return self._memory["total"] / windows.clamp_min(0)  # without a window 0 / 0


class TDDS(TrainingDynamics):
    """Temporal dual-depth scoring: how unsteadily the predictions move within windows of epochs, the last above all.

    From one epoch to the next a sample moves by the sum over classes of ``|p' log(p' / p)|``. In a window of J epochs
    the J - 1 moves less their mean are a vector, whose length counts; windows slide by one epoch, and their
    exponentially moving average, from 0, is the score. Keep the largest.

    A move needs no more than the probabilities before it, and a window no more than its moves: C + J - 1 numbers are
    kept for each sample, and the result is that of all probabilities of the run. Probabilities below float32's normal
    numbers count as the smallest of these (the authors add 1e-8 to all).

    Args:
        labels: integers [N] in [0, C); only their number, and C, matter here.
        num_classes: C, the logits' width; default: one more than the largest label.
        window: J, at least 3: a single move deviates from nothing.
        decay: in (0, 1], the share of the newest window in the average.

    Raises:
        TypeError: labels that are not integers, or an argument of the wrong type.
        ValueError: no labels, a label or an argument out of range.

    Example:
        >>> tdds = TDDS([0, 1], window=3)
        >>> for logits in ([[0.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]]):
        ...     tdds.update([0, 1], logits=logits)
        >>> tdds.scores()
        tensor([0.4262, 0.0000], dtype=torch.float64)

    Source: Zhang et al., arXiv 2311.13613.
    """

    def __init__(self, labels: Any, num_classes: int | None = None, *, window: int = 10, decay: float = 0.9) -> None:
        name = type(self).__name__
        self.window = _checks.in_range(name, "window", window, 3)
        self.decay = _checks.within(name, "decay", decay, "(0, 1]")
        super().__init__(labels, num_classes, arguments={"window": self.window, "decay": self.decay})
        self._memory |= {
            "log_p": self._zeros(torch.float32, self.num_classes),
            "moves": self._zeros(torch.float32, self.window - 1),
            "average": self._zeros(torch.float64),
        }

    def _learn(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        seen, moves, average = self._memory["seen"][indices], self._memory["moves"], self._memory["average"]
        log_p = torch.log_softmax(logits, 1).clamp_min(_LEAST)
        before = self._memory["log_p"].index_select(0, indices).to(logits.device)
        move = (log_p.exp() * (log_p - before)).abs().sum(1).cpu()
        self._memory["log_p"][indices] = log_p.cpu()
        moves[indices, seen % (self.window - 1)] = (
            move  # the first is none: another has its place when a window is full
        )
        full = indices[seen >= self.window - 1]
        average[full] = self.decay * _deviation(moves.index_select(0, full)) + (1 - self.decay) * average[full]

    @lasting
    def scores(self) -> Tensor:
        """float64 [N] on the CPU; NaN for samples that have been seen fewer than J times."""
        return self._memory["average"].masked_fill(self._memory["seen"] < self.window, math.nan)
