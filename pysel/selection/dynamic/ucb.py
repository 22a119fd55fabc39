"""Dynamic data pruning as bandits do it: the largest averages of losses, and a bonus for what may have changed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, ops
from pysel.random import split
from pysel.selection.dynamic.losses import LossSelector, averaged
from pysel.selection.schedule import tail
from pysel.selection.state import lasting
from pysel.selection.subset import subset_size


class EpsilonGreedy(LossSelector):
    """Keeps the samples of largest average loss, and a few random others.

    Each sample has an exponential average of its losses, ``mu <- (1 - alpha) mu + alpha loss``. Of an epoch's k samples
    ``floor(epsilon * k)`` are drawn at random from those that are not among the k - floor(epsilon * k) largest mu.

    Ours: a sample's first loss is its mu (third-party code starts all at the same made-up value, which takes long to be
    forgotten); samples without a loss come first, so that each is soon seen, and they and ties are in a random order of
    the key's; the full-data tail; the defaults of ``epsilon`` and ``alpha``.

    Args:
        num_samples: N.
        keep_ratio: fraction **kept**, in (0, 1]; a subset holds exactly ``ceil(keep_ratio * N)``.
        epsilon: share of the subset that is random, in [0, 1].
        alpha: weight of the newest loss in the average, in (0, 1].
        epochs: length of training; only ``refine`` needs it.
        refine: all samples are used in this last fraction of the epochs, and after them.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> selector = EpsilonGreedy(4, 0.5, epsilon=0, key=0)
        >>> selector.update(range(4), losses=[0.1, 5.0, 0.2, 6.0])
        >>> selector.select(1)
        tensor([1, 3])

    Source: Raju et al., arXiv 2111.12621.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        *,
        epsilon: float = 0.1,
        alpha: float = 0.2,
        epochs: int | None = None,
        refine: float = 0.0,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        size = subset_size(keep_ratio, num_samples, op=name)
        self._random = math.floor(_checks.written(name, "epsilon", epsilon, "[0, 1]") * size)
        self._greedy = size - self._random
        self.alpha = _checks.within(name, "alpha", alpha, "(0, 1]")
        epochs, full_from = tail(epochs, refine, op=name)
        arguments = {"keep_ratio": keep_ratio, "epsilon": epsilon, "alpha": alpha, "epochs": epochs, "refine": refine}
        super().__init__(num_samples, arguments, salt=0x657073696C6F6E, size=size, full_from=full_from, key=key)

    def _observe(self, indices: Tensor, losses: Tensor) -> None:
        self._losses[indices] = averaged(self._losses[indices], losses, self.alpha).float()

    def _choose(self, epoch: int, key: Tensor) -> Tensor:
        ties, draws = split(key, 2)
        chosen = self._only(ops.select(self.scores(epoch), self._greedy, key=ties))
        if self._random:
            chosen[ops.weighted_sample(1 - chosen, self._random, order="index", key=draws)] = 1
        return chosen


class UCB(LossSelector):
    """Keeps the samples whose average loss, with a bonus for its variance, is largest.

    Each sample has an exponential average of its losses and one of their squared deviations from it::

        v  <- (1 - alpha) v + alpha (loss - mu)^2
        mu <- (1 - alpha) mu + alpha loss                  score = mu + c v

    The bonus is for samples whose loss changes, be it that they are being learned or forgotten; unlike what the name
    (upper confidence bound) is used for elsewhere it does not grow with the time that a sample is not looked at. So
    samples whose score is low once are not seen again: `EpsilonGreedy` looks at some of them.

    Ours: mu starts at a sample's first loss and v at 0 (third-party code starts both at 0, and has the first loss's
    square as the bonus); samples without a loss come first, so that each is soon seen, and they and ties are in a
    random order of the key's; the full-data tail; the defaults of ``c`` and ``alpha``.

    Args:
        num_samples: N.
        keep_ratio: fraction **kept**, in (0, 1]; a subset holds exactly ``ceil(keep_ratio * N)``.
        c: weight of the bonus, finite and at least 0; its unit is one over that of the loss.
        alpha: weight of the newest loss in the averages, in (0, 1].
        epochs: length of training; only ``refine`` needs it.
        refine: all samples are used in this last fraction of the epochs, and after them.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> selector = UCB(3, 1 / 3, c=4, alpha=0.5, key=0)
        >>> selector.update([0, 1, 2], losses=[2.0, 1.0, 1.0])
        >>> selector.update([1], losses=[3.0])  # mu = 2 as that of sample 0, and v = 2
        >>> selector.select(1)
        tensor([1])

    Source: Raju et al., arXiv 2111.12621.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        *,
        c: float = 1.0,
        alpha: float = 0.2,
        epochs: int | None = None,
        refine: float = 0.0,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        self._size = subset_size(keep_ratio, num_samples, op=name)
        self.c = _checks.within(name, "c", c, "[0, inf)")
        self.alpha = _checks.within(name, "alpha", alpha, "(0, 1]")
        epochs, full_from = tail(epochs, refine, op=name)
        arguments = {"keep_ratio": keep_ratio, "c": c, "alpha": alpha, "epochs": epochs, "refine": refine}
        super().__init__(num_samples, arguments, salt=0x756362, size=self._size, full_from=full_from, key=key)
        with torch.inference_mode(False):
            self._deviations = torch.zeros_like(self._losses, dtype=torch.float64)  # the square of a float32 fits

    def _observe(self, indices: Tensor, losses: Tensor) -> None:
        mean = self._losses[indices].double()
        square = torch.where(mean.isnan(), 0.0, (losses - mean) ** 2)
        self._deviations[indices] = averaged(self._deviations[indices], square, self.alpha)
        self._losses[indices] = averaged(mean, losses, self.alpha).float()

    def _choose(self, epoch: int, key: Tensor) -> Tensor:
        return self._only(ops.select(self.scores(epoch), self._size, key=key))

    @lasting
    def scores(self, epoch: int = 0) -> Tensor:
        """mu + c v as they stand, whatever the epoch: float64 [N], infinite where no loss is known yet."""
        return super().scores(epoch) + self.c * self._deviations

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "deviations": self._deviations.clone()}

    def _load_state(self, state: dict[str, Any]) -> None:
        deviations = state["deviations"]
        if not bool(torch.isfinite(deviations).all() and (deviations >= 0).all()):
            raise ValueError(f"{type(self).__name__}: state_dict['deviations'] must be finite and at least 0")
        super()._load_state(state)
        self._deviations = deviations
