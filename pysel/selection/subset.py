"""How many samples a subset holds, over all and per class, and which ones a ranking puts into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.ops.sample import best_losers


def subset_size(keep_ratio: Any, num_samples: int, *, op: str = "subset_size") -> int:
    """Exact ``ceil(keep_ratio * num_samples)``.

    The ratio means the decimal number that was written: in binary floating point 0.07 of 50,000 comes to
    3,501.

    Args:
        keep_ratio: fraction kept, in (0, 1]: any number, 0-d arrays and tensors included.
        num_samples: size of the data set, at least 1.
        op: whom error messages name.

    Raises:
        TypeError: ``keep_ratio`` is not a number, or ``num_samples`` not an int.
        ValueError: one of them is out of range.

    Example:
        >>> subset_size(0.07, 50_000)
        3500
        >>> subset_size(0.07, 50_001)
        3501
    """
    num_samples = _checks.in_range(op, "num_samples", num_samples, 1)
    return math.ceil(_checks.written(op, "keep_ratio, the fraction kept,", keep_ratio, "(0, 1]") * num_samples)


def quotas(counts: Any, size: int, balance: str = "proportional", *, op: str = "quotas", name: str = "size") -> Tensor:
    """Split ``size`` over classes.

    Args:
        counts: members of each class, integers [C], all positive.
        size: number of samples to split.
        balance: "proportional" to ``counts``, by largest remainder and at least one each; or "equal": a class smaller
            than its share gives all it has, the others share the rest, and what does not divide goes to the largest.
        op, name: of the function and of the argument that sets the size, for error messages.

    Returns:
        int64 [C], on the device of ``counts``.

    Raises:
        TypeError: ``counts`` are not integers, or ``size`` is not an int.
        ValueError: a count is not positive; ``size`` is above the number of members, or with "proportional" below the
            number of classes.

    Example:
        >>> quotas([90, 9, 1], 10), quotas([90, 9, 1], 10, "equal")
        (tensor([8, 1, 1]), tensor([5, 4, 1]))
    """
    _checks.choice(op, "balance", balance, ("proportional", "equal"))
    counts = _inputs.integers(op, "counts", counts).long()
    size = _checks.integer(op, name, size)
    if bool((counts < 1).any()):
        raise ValueError(f"{op}: counts must be positive, got {int(counts.min())}")
    total = sum(counts.tolist())  # which int64 need not hold
    least = counts.numel() if balance == "proportional" else 0
    if not least <= size <= total:
        one_each = f"at least one sample of each of the {least} classes and " if least else ""
        raise ValueError(f"{op}: {name} must give {one_each}at most all {total}, got a subset of {size}")
    split = _proportional if balance == "proportional" else _equal
    return split(counts.cpu(), size).to(counts.device)


def _proportional(counts: Tensor, size: int) -> Tensor:
    total = int(counts.sum())
    share = counts.numpy().astype(object) * size  # Python's integers, which have no largest
    quota = torch.from_numpy((share // total).astype(np.int64)).clamp_min(1)
    missing = size - int(quota.sum())
    if missing > 0:
        # a class raised to 1 already has more than its share
        remainder = np.where(share >= total, share % total, 0)
        quota[sorted(range(len(remainder)), key=lambda c: -remainder[c])[:missing]] += 1
    elif missing < 0:
        # of the largest, one after the other
        level = _level(lambda level: int((quota - level).clamp_min(0).sum()) <= -missing, int(quota.max()))
        quota = quota.clamp_max(level)
        left = -missing - (size - missing - int(quota.sum()))
        quota[torch.nonzero(quota == level).flatten()[:left]] -= 1
    return quota


def _equal(counts: Tensor, size: int) -> Tensor:
    above = _level(lambda level: int(counts.clamp_max(level).sum()) > size, int(counts.max()) + 1)
    quota = counts.clamp_max(above - 1)  # the highest level that fits
    left = size - int(quota.sum())
    quota[counts.argsort(descending=True, stable=True)[:left]] += 1
    return quota


def _level(reached: Callable[[int], bool], high: int) -> int:
    """The lowest level from 0 to ``high`` that reaches; from there on all do, and ``high`` where none else does."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return low


def loss_weights(taken: Tensor, sizes: Tensor, balance: str) -> Tensor:
    """Weights that give each class its share of the loss, where so many samples of each are used.

    Args:
        taken: int64 [C], samples of each class in use.
        sizes: int64 [C], those that there are.
        balance: "equal", every class in use has the same share, or "proportional", it has that of its size.

    Returns:
        float32 [C], 1 on average over the samples in use.

    Example:
        >>> loss_weights(torch.tensor([3, 1]), torch.tensor([9, 1]), "equal")
        tensor([0.6667, 2.0000])
    """
    used = taken > 0
    share = used.double() if balance == "equal" else sizes.double() * used
    return torch.where(used, share / share.sum() * taken.sum() / taken.clamp_min(1), 1.0).float()


class Strata:
    """The subset that a ranking gives, over all samples or with a fixed share for each class.

    Args:
        num_samples: N.
        size: samples in a subset.
        labels: integers [N]; None ranks all samples together.
        balance: how the subset is split over classes, see `quotas`.
        device: of the scores to come; default that of ``labels``.
        op, name: of the function and of the argument that sets the size, for error messages.

    Raises:
        TypeError, ValueError: ``labels`` is not an integer vector [N], or there are more classes than
            ``size`` and each must have one.

    Example:
        >>> strata = Strata(4, 2, torch.tensor([0, 0, 0, 1]))
        >>> strata.best(torch.tensor([3.0, 2.0, 1.0, 0.0]))
        tensor([0, 3])
    """

    def __init__(
        self,
        num_samples: int,
        size: int,
        labels: Any = None,
        *,
        balance: str = "proportional",
        device: torch.device | str | None = None,
        op: str = "Strata",
        name: str = "size",
    ) -> None:
        self.num_samples = num_samples = _checks.in_range(op, "num_samples", num_samples, 1)
        self.size = _checks.in_range(op, name, size, 0, num_samples)
        self.groups: Tensor | None = None  # int32 [N], the class of each sample, counted from 0
        self.quotas: Tensor | None = None  # int64 [C]
        if labels is None:
            return
        classes = _inputs.classes(op, "labels", labels, num_samples)
        self.groups = classes.ids.to(device)
        self.sizes = classes.sizes.to(device)
        self.quotas = quotas(self.sizes, self.size, balance, op=op, name=name)

    def best(self, scores: Any, key: Tensor | int | None = None) -> Tensor:
        """Ascending int64 indices [size] of the largest scores [N]; ties by lowest index, or by the key's words."""
        scores = self._numbers("best", "scores", scores)
        return ops.select(scores, self.size, groups=self.groups, quotas=self.quotas, key=key)

    def sample(self, log_weights: Any, key: Tensor | int) -> Tensor:
        """Ascending int64 indices [size] drawn without replacement, in proportion to exp(log_weights [N])."""
        log_weights = self._numbers("sample", "log_weights", log_weights)
        return ops.weighted_sample(
            log_weights, self.size, log_weights=True, order="index", groups=self.groups, quotas=self.quotas, key=key
        )

    def pick(self, rows: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """int64 indices [size] of what ``choose(rows of a class, how many)`` finds among ``rows`` [N, d], as indices of
        its own; not sorted."""
        if self.groups is None or self.quotas is None:
            return choose(rows, self.size)
        members = self.groups.long().argsort(stable=True).split(self.sizes.tolist())
        shares = zip(members, self.quotas.tolist(), strict=True)
        return torch.cat([own[choose(rows[own], quota)] for own, quota in shares])

    def _numbers(self, method: str, name: str, value: Any) -> Tensor:
        """One number for each sample, which the op then looks at."""
        x = _inputs.tensor(f"Strata.{method}", name, value)
        if x.shape != (self.num_samples,):
            raise ValueError(f"Strata.{method}: {name} must be [{self.num_samples}], got {list(x.shape)}")
        return x

    def inclusion(self, log_weights: Tensor, key: Tensor) -> Tensor:
        """How likely each of `sample`'s indices was to be drawn, given the best key that lost: [size] in (0, 1].

        With t the largest race key of its class among those not drawn, i was drawn with probability
        P(log w_i + g_i > t). The sum of x_i / probability_i over the drawn is an unbiased estimate of the sum of all
        x_i (Duffield, Lund and Thorup, J. ACM 54(6), 2007; for Gumbel keys Kool et al., arXiv 1903.06059).
        """
        chosen = self.sample(log_weights, key)
        num_groups = 1 if self.quotas is None else len(self.quotas)
        threshold = best_losers(log_weights, chosen, key, self.groups, num_groups)
        own = threshold if self.groups is None else threshold[self.groups[chosen].long()]
        return inclusion(log_weights[chosen], own)


def inclusion(log_weights: Tensor, threshold: Tensor) -> Tensor:
    """How likely what was drawn had been to be, given the best key that lost to it: see `Strata.inclusion`."""
    return -torch.expm1(-torch.exp(log_weights - threshold))
