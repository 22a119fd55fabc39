"""OrderDP: the largest losses of a random part of the data."""

from __future__ import annotations

import math

from torch import Tensor

from pysel import _checks, ops
from pysel.random import split
from pysel.selection.dynamic.losses import LossSelector, random_part
from pysel.selection.schedule import tail
from pysel.selection.subset import subset_size


class OrderDP(LossSelector):
    """Draws a random part of the data, and keeps those of it with the largest latest losses.

    Samples of small loss are kept less often, and those that fell out of the random part rest for an epoch. Losses are
    not weighted: the expected gradient is that of a surrogate, in which each loss counts as its rank is likely to be
    kept. Samples without a loss yet come first, ties in the key's random order; so the first epoch is a random subset.

    Ours: the full-data tail (the authors' code announces one and never has it).

    Args:
        num_samples: N.
        keep_ratio: fraction **kept**, of all samples, in (0, 1]; a subset holds exactly ``ceil(keep_ratio * N)``. The
            paper's q of s is ``keep_ratio / pool``.
        pool: fraction of all samples that the random part holds, at least ``keep_ratio``. At ``pool=1`` the largest
            losses of all are kept, at ``pool=keep_ratio`` random ones.
        epochs: length of training; only ``refine`` needs it.
        refine: all samples are used in this last fraction of the epochs, and after them.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or ``pool`` below ``keep_ratio``.

    Example:
        >>> selector = OrderDP(4, 0.5, pool=1, key=0)
        >>> selector.update(range(4), losses=[0.1, 5.0, 0.2, 6.0])
        >>> selector.select(1)
        tensor([1, 3])

    Source: Jin et al., arXiv 2606.08574.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        *,
        pool: float = 0.8,
        epochs: int | None = None,
        refine: float = 0.0,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        self._size = subset_size(keep_ratio, num_samples, op=name)
        share = _checks.written(name, "pool", pool, "(0, 1]")
        if share < _checks.exact(keep_ratio):
            raise ValueError(f"{name}: pool must be at least keep_ratio, {keep_ratio!r}, got {pool!r}")
        epochs, full_from = tail(epochs, refine, op=name)
        arguments = {"keep_ratio": keep_ratio, "pool": pool, "epochs": epochs, "refine": refine}
        super().__init__(num_samples, arguments, salt=0x6F72646572, size=self._size, full_from=full_from, key=key)
        self._pool = math.ceil(share * self.num_samples)

    def _choose(self, epoch: int, key: Tensor) -> Tensor:
        draws, ties = split(key, 2)
        pool = random_part(self.num_samples, self._pool, draws)
        return self._only(pool[ops.select(self.scores(epoch)[pool], self._size, key=ties)])
