"""PEAKS: take from a stream what the network gets wrong and whose class it knows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.selection.state import lasting
from pysel.selection.stream.remembering import Remembering, errors


class Peaks(Remembering):
    """Takes the samples of a stream whose score is among the highest of late, until it holds ``capacity`` of them.

    With y the label of a sample, p the network's softmax and n_y the number of samples of its class that are held::

        score = 2 logit_y (1 - p_y) / n_y        logit_y times the length of the error in L1

    A sample is taken if its score is at or above the ``1 - accept_ratio`` quantile of the latest ``window`` scores and
    those of its own call, samples that are held left aside; the first of a class is always taken. Train on what is
    taken with samples held from before, and call `refresh` now and then (in the paper every 100 steps)::

        with torch.no_grad():
            taken = selector.offer(model(x), y, indices=index)
        older = selector.replay(120)  # train on x[taken] and on these

    `replay` draws from what was held at the last `refresh`, which also empties the window. The accepted share depends
    on how scores drift: `stats` has it as ``realised_ratio``. Scores prefer wrong labels that are confidently denied:
    where labels are noisy, look at what is taken.

    Ours: a call is decided as a whole, by the n_y before it, the best first where places run out; calls of one sample
    are the published rule. The window has a fixed size; the published one holds all scores since the last refresh.

    Args:
        num_classes: C, the logits' width.
        capacity: samples to hold at most.
        accept_ratio: the share that is to be taken, in (0, 1].
        window: how many of the latest scores to compare with.
        draw: "uniform", or "uses" for 1 over the uses so far, see `pysel.selection.stream.ReplayMemory`.
        key: int64 [2] or an int, for the draws; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> selector = Peaks(num_classes=2, capacity=2, accept_ratio=0.5, key=0)
        >>> selector.offer([[2.0, 0.0], [1.0, 0.0], [1.0, 1.0]], labels=[0, 0, 1])
        tensor([ True, False,  True])
        >>> selector.refresh()
        >>> selector.replay(2).sort().values
        tensor([0, 2])

    Source: arXiv 2504.05250.
    """

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        *,
        accept_ratio: float = 0.2,
        window: int = 4096,
        draw: str = "uniform",
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        self._accept = _checks.written(name, "accept_ratio", accept_ratio, "(0, 1]")
        self.window = _checks.in_range(name, "window", window, 1)
        arguments = {"accept_ratio": accept_ratio, "window": self.window}
        super().__init__(num_classes, capacity, arguments, keep="reservoir", draw=draw, key=key)
        self._joined = 0  # samples held at the last refresh
        self._scored = 0  # scores since then
        with torch.inference_mode(False):
            self._scores = torch.zeros(self.window, dtype=torch.float64, device="cpu")  # the latest is at _scored - 1
            self._taken = torch.zeros(self.num_classes, dtype=torch.int64, device="cpu")  # of each class

    @lasting
    def offer(self, logits: Any, labels: Any, *, features: Any = None, indices: Any = None) -> Tensor:
        """Decide on samples as they arrive.

        Args:
            logits: [B, C] the network's outputs for them, in eval mode.
            labels: integers [B] in [0, C).
            features: not used.
            indices: integers [B], 0 or more, distinct, to call them by; default: their numbers in the stream. One that
                is held already is not taken again.

        Returns:
            bool [B], where the logits are: which to train on. They are held now.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument of the wrong shape, a logit that is not finite, a label or an index out of range, or
                an index that comes twice. Nothing has changed then.
        """
        logits, labels, indices, known = self._arrivals(logits, labels, indices)
        scores, labels = self._score(logits, labels), labels.cpu()
        new = scores[~known]  # what is held, which may come again, sets no bar: else nothing else might ever reach it
        passes = ~known
        if len(new):
            passes &= scores >= self._bar(new)
        first = self._first_of_class(labels, ~known)
        passes[first] = True
        room = self.memory.places - len(self.memory)
        if int(passes.sum()) > room:
            ranks = scores.masked_fill(~passes, -math.inf)
            ranks[first] = math.inf
            passes = torch.zeros_like(passes).index_fill_(0, ops.select(ranks, room), True)
        self._remember(new)
        self._taken += torch.bincount(labels[passes], minlength=self.num_classes)
        self._offered += len(scores)
        self._accepted += int(passes.sum())
        self.memory.add(indices[passes], labels[passes])
        return passes.to(logits.device)

    def _score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float64 [B], on the CPU."""
        error = -errors(logits, labels).gather(1, labels[:, None])[:, 0]  # 1 - p_y
        logit = logits.gather(1, labels[:, None])[:, 0]
        scores = (logit.double() * (2 * error.double())).cpu()
        return scores / self._taken.clamp_min(1)[labels.cpu()]

    def _bar(self, scores: Tensor) -> Tensor:
        """What a score has to reach, 0-d."""
        latest = torch.cat([self._scores[: min(self._scored, self.window)], scores])
        place = math.ceil((1 - self._accept) * len(latest))
        return latest.kthvalue(max(place, 1)).values

    def _first_of_class(self, labels: Tensor, new: Tensor) -> Tensor:
        """Rows, one for each class of which none is held and some arrive."""
        rows = torch.nonzero(new & (self._taken[labels] == 0)).flatten()
        first = torch.full((self.num_classes,), len(labels), dtype=torch.int64, device="cpu")
        first.scatter_reduce_(0, labels[rows], rows, "amin")
        return first[first < len(labels)]

    def _remember(self, scores: Tensor) -> None:
        """Put the latest scores into the window, over the oldest."""
        latest = scores[-self.window :]
        end = self._scored + len(scores)
        self._scores[torch.arange(end - len(latest), end, device="cpu") % self.window] = latest
        self._scored = end

    @lasting
    def replay(self, n: int) -> Tensor:
        """Draw from the samples that were held at the last `refresh`, each at most once: int64 [n] indices on the CPU.

        Raises:
            TypeError: ``n`` is not an int.
            ValueError: below 0, or more than there were; nothing has changed then.
        """
        return self.memory._sample(f"{type(self).__name__}.replay", n, min(self._joined, len(self)))

    def refresh(self, logits: Any = None, *, features: Any = None) -> None:
        """Let `replay` draw from all that is held, and forget the scores so far.

        Args:
            logits, features: not used.
        """
        self._joined, self._scored = len(self.memory), 0
        self._scores.zero_()

    def stats(self) -> dict[str, Any]:
        """Those of every stream selector, and the ``classes`` held: of each so many."""
        return {**super().stats(), "classes": self._taken.tolist()}

    def _state(self) -> dict[str, Any]:
        own = {"joined": self._joined, "scored": self._scored, "scores": self._scores.clone()}
        return {**super()._state(), **own, "taken": self._taken.clone()}

    def _load_state(self, state: dict[str, Any]) -> None:
        name = type(self).__name__
        joined = _checks.in_range(name, "state_dict['joined']", state["joined"], 0, max(0, state["memory_held"]))
        scored = _checks.in_range(name, "state_dict['scored']", state["scored"], 0)
        _inputs.finite(name, "state_dict['scores']", state["scores"], may_be_infinite=True)
        if bool((state["taken"] < 0).any()):
            raise ValueError(f"{name}: state_dict['taken'] must be at least 0")
        super()._load_state(state)
        self._joined, self._scored, self._scores, self._taken = joined, scored, state["scores"], state["taken"]
