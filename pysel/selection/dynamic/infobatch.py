"""InfoBatch: leave out some of what is learned already, and weigh the rest of it accordingly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysel import _checks, ops
from pysel.random import split
from pysel.selection.dynamic.losses import LossSelector
from pysel.selection.subset import subset_size

_COINS = 0x636F696E73  # sets the coins' keys apart from those of other draws with the same key


class InfoBatch(LossSelector):
    """Leaves out samples of small loss at random, and scales up those of them that stay.

    Before each epoch the samples whose latest loss lies below the mean are left out with probability ``prune_ratio``
    r, independently of each other; those that stay weigh ``1 / (1 - r)``, so that the expected sum of weighted losses,
    and with it the expected gradient, is that of all samples. In the last ``1 - delta`` of the epochs nothing is left
    out. Tell it the losses, unweighted, as training sees them, and multiply them by the weights::

        losses = F.cross_entropy(model(x), y, reduction="none")
        (losses * selector.weights(indices)).mean().backward()
        selector.update(indices, losses=losses)

    ``prune_ratio`` is the share left out of the samples *below the mean*: of all samples it is r times the share that
    lies there, commonly 0.6 to 0.8, and changes from epoch to epoch, and so does the number of steps. It is told by
    ``len``, ``steps`` and `stats`, not chosen.

    With ``keep_ratio`` it is chosen: each epoch before the last ones holds exactly ``ceil(keep_ratio * N)`` samples,
    from the first on. r is found for the epoch: of the m samples below the mean as many are drawn, all subsets alike,
    as there is room for beside the others, and they weigh m over that number. The expected gradient is that of all
    samples, as before. Where so few lie below the mean that this is more than ``max_weight``, the bar rises: then the
    samples of smallest loss are drawn from, just enough of them for that weight. (If even all samples together are not
    enough, because ``keep_ratio`` is below ``1 / max_weight``, all are drawn from and weigh ``N / k``.)

    A learning rate that follows the steps must be sized to the real ones. And as it is the epoch's sum that stays that
    of all samples, steps are fewer and larger: weighted losses have ``1 / realised_ratio`` times the mean
    of all samples' losses. Where much is left out that may be too large a step; ``realised_ratio`` times the weights
    keeps the size of steps, and is as unbiased.

    The draws are a function of (key, epoch), the subset of what was observed before its epoch was first selected, too;
    so earlier epochs cannot be selected again. Ours: ``keep_ratio``; and samples without a loss yet, which count in no
    mean (the authors' code gives all samples the same made-up loss, whose rounded mean can exceed it). With
    ``prune_ratio`` they are kept; with ``keep_ratio``, which has no room for that, they count as below the mean.

    Args:
        num_samples: N.
        epochs: length of training.
        prune_ratio: r in [0, 1), the share **left out** of the samples of small loss; 0.5 unless ``keep_ratio`` is
            given.
        keep_ratio: in place of it, the fraction **kept** of all samples, in (0, 1].
        max_weight: above 1, the largest weight that ``keep_ratio`` may lead to.
        delta: the share of the epochs in which samples are left out; in epoch e while ``e < delta * epochs``.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or both ratios.

    Example:
        >>> selector = InfoBatch(4, epochs=10, key=0)
        >>> selector.update(torch.arange(4), losses=torch.tensor([0.1, 5.0, 0.2, 6.0]))
        >>> subset = selector.select(1)
        >>> subset, selector.weights(subset)
        (tensor([0, 1, 3]), tensor([2., 1., 1.]))

    Source: Qin et al., arXiv 2303.04947.
    """

    def __init__(
        self,
        num_samples: int,
        epochs: int,
        *,
        prune_ratio: float | None = None,
        keep_ratio: float | None = None,
        max_weight: float = 4.0,
        delta: float = 0.875,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        num_samples = _checks.in_range(name, "num_samples", num_samples, 1)
        self.epochs = _checks.in_range(name, "epochs", epochs, 1)
        if keep_ratio is None:
            prune_ratio = 0.5 if prune_ratio is None else prune_ratio
            self.prune_ratio = _checks.within(name, "prune_ratio, the fraction left out,", prune_ratio, "[0, 1)")
            self._size = None
        elif prune_ratio is not None:
            raise ValueError(f"{name}: prune_ratio must be None with keep_ratio={keep_ratio!r}, got {prune_ratio!r}")
        else:
            self._size = subset_size(keep_ratio, num_samples, op=name)
        self.max_weight = _checks.within(name, "max_weight", max_weight, "(1, inf)")
        share = _checks.written(name, "delta", delta, "[0, 1]")
        self.delta = float(share)
        arguments = {
            "epochs": self.epochs,
            "prune_ratio": prune_ratio,
            "keep_ratio": keep_ratio,
            "max_weight": max_weight,
            "delta": delta,
        }
        full_from = math.ceil(share * self.epochs)
        super().__init__(num_samples, arguments, salt=_COINS, size=self._size, full_from=full_from, key=key)

    def _choose(self, epoch: int, key: Tensor) -> Tensor:
        known = self._losses[~self._losses.isnan()].double()
        mean = known.mean()  # of nothing: NaN, which nothing is below, as a NaN is not below anything
        return self._by_coins(mean, key) if self._size is None else self._exactly(mean, self._size, key)

    def _by_coins(self, mean: Tensor, key: Tensor) -> Tensor:
        r = self.prune_ratio
        weights = torch.ones_like(self._losses)
        if r == 0:
            return weights
        odds = torch.full_like(self._losses, math.log1p(-r) - math.log(r), dtype=torch.float64)
        stays = ops.gumbel_sigmoid(odds, 0.0, True, key=key).float()  # 1 with probability 1 - r, otherwise 0
        return torch.where(self._losses.double() < mean, stays / (1 - r), weights)

    def _exactly(self, mean: Tensor, size: int, key: Tensor) -> Tensor:
        weights = torch.ones_like(self._losses)
        leave = self.num_samples - size
        if leave == 0:
            return weights
        draws, ties = split(key, 2)
        low = ~(self._losses.double() >= mean)  # with those that have no loss
        enough = math.ceil(leave * (self.max_weight / (self.max_weight - 1)))
        enough = min(max(enough, leave + 1), self.num_samples)
        if int(low.sum()) < enough:
            smallest = ops.select(self._losses.nan_to_num(-math.inf), enough, largest=False, key=ties)
            low = torch.zeros_like(low).index_fill_(0, smallest, True)
        m = int(low.sum())
        weights[low] = 0
        weights[ops.weighted_sample(low.float(), m - leave, order="index", key=draws)] = m / (m - leave)
        return weights
