"""SeTa: a window over groups of like losses slides from the easy to the hard, again and again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysel import _checks
from pysel.selection.dynamic.losses import LossSelector, random_part


class SeTa(LossSelector):
    """Keeps a random part of the data, and of that the samples whose losses lie in a sliding window of groups.

    Each epoch draws a random ``1 - prune_ratio`` of the data, splits it by k-means of the latest losses into ``groups``
    groups, and keeps ``round(groups * window)`` neighbouring ones. In epoch e the window begins at group
    ``e mod (groups - window size + 1)``: it slides from the smallest losses to the largest and starts again. In the
    last ``1 - delta`` of the epochs the random part is kept whole. Losses are not weighted.

    How many samples an epoch holds is the groups' affair, and told by ``len``, ``steps`` and `stats`: groups of large
    losses are small. Only the random part's size is exact, ``ceil((1 - prune_ratio) * N)``.

    Ours: samples without a loss pass as if they were in the window; so the first epoch is the random part. k-means
    starts at quantiles of the distinct losses, and draws nothing. Where there are fewer groups than were asked for (of
    equal losses there is one), the window is that share of them.

    Args:
        num_samples: N.
        epochs: length of training.
        prune_ratio: in [0, 1), the share of all samples **left out** at random.
        groups: G, at least 1.
        window: share of the groups that is kept, in (0, 1]; at least one group is.
        delta: the share of the epochs in which the window slides; in epoch e while ``e < delta * epochs``.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> selector = SeTa(6, epochs=10, prune_ratio=0, groups=3, window=0.6, key=0)
        >>> selector.update(range(6), losses=[0.1, 9.0, 0.2, 4.0, 4.2, 0.3])
        >>> selector.select(0), selector.select(1)
        (tensor([0, 2, 3, 4, 5]), tensor([1, 3, 4]))

    Source: Zhou et al., arXiv 2503.13385.
    """

    def __init__(
        self,
        num_samples: int,
        epochs: int,
        *,
        prune_ratio: float = 0.1,
        groups: int = 5,
        window: float = 0.9,
        delta: float = 0.875,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        num_samples = _checks.in_range(name, "num_samples", num_samples, 1)
        epochs = _checks.in_range(name, "epochs", epochs, 1)
        left_out = _checks.written(name, "prune_ratio, the fraction left out,", prune_ratio, "[0, 1)")
        self.groups = _checks.in_range(name, "groups", groups, 1)
        self._window = _checks.written(name, "window", window, "(0, 1]")
        share = _checks.written(name, "delta", delta, "[0, 1]")
        self._size = math.ceil((1 - left_out) * num_samples)
        self._whole_from = math.ceil(share * epochs)
        arguments = {
            "epochs": epochs,
            "prune_ratio": prune_ratio,
            "groups": self.groups,
            "window": window,
            "delta": delta,
        }
        super().__init__(num_samples, arguments, salt=0x53655461, size=self._size, key=key)

    def _choose(self, epoch: int, key: Tensor) -> Tensor:
        part = random_part(self.num_samples, self._size, key)
        weights = self._only(part)
        part = part[~self._losses[part].isnan()]
        if epoch < self._whole_from and len(part):
            ordered, order = self._losses[part].double().sort()
            bounds = like_groups(ordered, self.groups)
            groups = len(bounds) - 1
            kept = max(1, round(groups * self._window))
            first = epoch % (groups - kept + 1)
            weights[part[order[: bounds[first]]]] = 0
            weights[part[order[bounds[first + kept] :]]] = 0
        return weights


def like_groups(ordered: Tensor, groups: int, iterations: int = 100) -> list[int]:
    """Split ascending numbers (float64 [n], n > 0) by k-means: where the groups begin, and n.

    No group is empty, and equal numbers are in the same one: there may be fewer than ``groups``.

    Example:
        >>> like_groups(torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 9.0], dtype=torch.float64), 3)
        [0, 3, 5, 6]
    """
    n = len(ordered)
    distinct = torch.unique_consecutive(ordered)
    quantiles = (2 * torch.arange(groups, device="cpu") + 1) * len(distinct) // (2 * groups)
    centres = distinct[quantiles]
    sums = torch.nn.functional.pad(ordered.cumsum(0), (1, 0))
    bounds = torch.zeros(groups + 1, dtype=torch.int64, device="cpu")
    for _ in range(iterations):
        cuts = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        previous, bounds = bounds, torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=n)
        if torch.equal(previous, bounds):
            break
        sizes = bounds.diff()
        centres = torch.where(sizes > 0, sums[bounds].diff() / sizes.clamp_min(1), centres)
    return bounds.unique_consecutive().tolist()
