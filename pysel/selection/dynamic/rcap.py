"""RCAP: classes have their share by what they lose, and samples are drawn within their class by their loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.selection.dynamic.losses import LossSelector
from pysel.selection.schedule import tail
from pysel.selection.subset import subset_size


class RCAP(LossSelector):
    """Draws more samples of classes that lose more, and within a class more of larger loss.

    Losses are clipped to [0, log C], that of a network which knows nothing. Class c has a share of the subset in
    proportion to ``sqrt(loss_c * prior_c)``, of the mean clipped loss of its samples and its share of the data; one
    with fewer samples than that gives all it has, and the rest is spread over the others in the same proportion. Within
    the class, samples are drawn without replacement with odds ``exp(clipped loss / beta)``.

    Ours: the subset's size is exact (shares are rounded by largest remainder; the authors' code spreads the whole
    budget again when a class is full, and rounds each class up); every class has at least one sample where the subset
    has room for that; samples without a loss count with log C; the full-data tail.

    Args:
        labels: integers [N].
        keep_ratio: fraction **kept**, in (0, 1]; a subset holds exactly ``ceil(keep_ratio * N)``.
        beta: temperature of the draw, in the unit of the loss; the authors try 1/3 to 3. Large is uniform, small takes
            the largest losses.
        epochs: length of training; only ``refine`` needs it.
        refine: all samples are used in this last fraction of the epochs, and after them.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> selector = RCAP([0, 0, 0, 0, 1, 1, 1, 1], 0.5, key=0)
        >>> selector.update(range(8), losses=[0.6, 0.6, 0.6, 0.6, 0.07, 0.06, 0.07, 0.06])
        >>> len(selector.select(1)), selector.stats()["quotas"]
        (4, [3, 1])

    Source: arXiv 2606.11761.
    """

    def __init__(
        self,
        labels: Any,
        keep_ratio: float,
        *,
        beta: float = 1.0,
        epochs: int | None = None,
        refine: float = 0.0,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        num_samples = _inputs.integers(name, "labels", labels).numel()
        if num_samples == 0:
            raise ValueError(f"{name}: labels must be [N] with N > 0, got [0]")
        classes = _inputs.classes(name, "labels", labels, num_samples)
        self._size = subset_size(keep_ratio, num_samples, op=name)
        self.beta = _checks.within(name, "beta", beta, "(0, inf)")
        epochs, full_from = tail(epochs, refine, op=name)
        ids = classes.ids.cpu()
        super().__init__(
            num_samples,
            {"keep_ratio": keep_ratio, "beta": beta, "epochs": epochs, "refine": refine},
            {"labels": ids},
            salt=0x72636170,
            size=self._size,
            full_from=full_from,
            key=key,
        )
        self._arguments.pop("num_samples")  # the labels say it
        self._ids, self._sizes = ids, classes.sizes.cpu()
        self._clip = math.log(len(self._sizes))

    def _choose(self, epoch: int, key: Tensor) -> Tensor:
        clipped, quotas = self._clipped(), self._quotas()
        odds = (clipped - self._clip) / max(self.beta, 1e-30)  # which takes the largest, and stays finite
        drawn = ops.weighted_sample(
            odds, self._size, log_weights=True, order="index", groups=self._ids, quotas=quotas, key=key
        )
        return self._only(drawn)

    def _clipped(self) -> Tensor:
        return self._losses.nan_to_num(self._clip).clamp(0, self._clip)

    def _quotas(self) -> Tensor:
        loss = torch.zeros_like(self._sizes, dtype=torch.float64).index_add_(0, self._ids, self._clipped().double())
        # mean loss times prior; classes without any loss share as if they had the same
        return shares((loss / self._sizes).clamp_min(1e-12).mul(self._sizes).sqrt(), self._sizes, self._size)

    def stats(self) -> dict[str, Any]:
        """The figures of all methods by losses, and how many samples of each class the current subset holds."""
        held = torch.bincount(self._ids[self._weights > 0], minlength=len(self._sizes))
        return {**super().stats(), "quotas": held.tolist()}


def shares(importance: Tensor, sizes: Tensor, size: int) -> Tensor:
    """Split ``size`` in proportion to ``importance`` (positive float64 [C]), at most ``sizes`` (int64 [C]) each.

    And at least one each, where there is room for that. What is not whole is rounded by largest remainder.

    Example:
        >>> shares(torch.tensor([9.0, 2.0, 1.0], dtype=torch.float64), torch.tensor([4, 9, 9]), 10)
        tensor([4, 4, 2])
    """
    least = 1 if size >= len(sizes) else 0
    low, high = 0.0, float((sizes / importance).max())  # the scale at which the shares sum to size lies between
    for _ in range(64):
        scale = (low + high) / 2
        enough = float((scale * importance).clamp_min(least).minimum(sizes).sum()) > size
        low, high = (low, scale) if enough else (scale, high)
    share = (low * importance).clamp_min(least).minimum(sizes)
    quota = share.long()
    remainder = torch.where(quota < sizes, share - quota, -1.0)
    quota[remainder.argsort(descending=True, stable=True)[: size - int(quota.sum())]] += 1
    return quota
