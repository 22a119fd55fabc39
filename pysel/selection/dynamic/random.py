"""Dynamic random selection: a fresh subset each epoch from a walk through permutations of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key, fold_in
from pysel.selection.protocol import Selector
from pysel.selection.schedule import tail
from pysel.selection.state import lasting
from pysel.selection.subset import loss_weights, quotas, subset_size

_AFRESH = 0x6672657368  # sets its keys apart from those of walks


class DynamicRandom(Selector):
    """A fresh random subset each epoch, walking through permutations of the data.

    Repeated random sampling without replacement (RS2): the strongest simple method, on a par with many elaborate ones.
    Samples are used as evenly as can be: within what is walked (all samples, or those of a class) their numbers of uses
    differ by at most 1 after any epoch.

    Ours: where an epoch reaches over the end of a permutation no sample comes twice; class balance; the full-data tail
    (of arXiv 2603.04981) and the weights. The subset is a function of the arguments, the key and the epoch alone: any
    epoch can be asked for, at the cost of one. With balance every class costs a few calls an epoch.

    With ``replacement`` each epoch's subset is drawn from all samples, whatever the others held (no sample comes twice
    within an epoch): RS2 with replacement, in which a sample may rest for long.

    Args:
        num_samples: N.
        keep_ratio: fraction **kept**, in (0, 1]; a subset holds exactly ``ceil(keep_ratio * N)``.
        epochs: length of training; only ``refine`` needs it.
        labels: integers [N], for ``balance``.
        balance: None walks through all samples together. With "equal" every class gives as many as the others (one
            smaller than that gives all that it has, and the rest is spread over the others), with "proportional" its
            share.
        refine: all samples are used in this last fraction of the epochs, and after them.
        balance_losses: with ``balance``, `weights` gives every class exactly its share of the loss in each epoch, also
            where one has too few samples for it, and in the tail. Without, the tail, the last and most decisive epochs,
            takes back nearly all that ``balance="equal"`` wins on a long tail of classes.
        replacement: epochs are drawn independently of each other, instead of walking through permutations.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, labels of another length, or an argument that needs another one.

    Example:
        >>> selector = DynamicRandom(10, 0.5, key=0)
        >>> torch.cat([selector.select(0), selector.select(1)]).sort().values
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    Source: Okanovic et al., arXiv 2305.18424.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        *,
        epochs: int | None = None,
        labels: Any = None,
        balance: str | None = None,
        refine: float = 0.0,
        balance_losses: bool = True,
        replacement: bool = False,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        num_samples = _checks.in_range(name, "num_samples", num_samples, 1)
        self._size = subset_size(keep_ratio, num_samples, op=name)
        epochs, self._full_from = tail(epochs, refine, op=name)
        if balance is not None:
            _checks.choice(name, "balance", balance, ("equal", "proportional"))
            if labels is None:
                raise ValueError(f"{name}: labels must be given with balance={balance!r}")
        classes = None if labels is None else _inputs.classes(name, "labels", labels, num_samples)
        super().__init__(
            num_samples,
            {
                "num_samples": num_samples,
                "keep_ratio": keep_ratio,
                "epochs": epochs,
                "balance": balance,
                "refine": refine,
                "balance_losses": bool(balance_losses),
                "replacement": _checks.flag(name, "replacement", replacement),
            },
            {"labels": None if classes is None else classes.ids.cpu()},
        )
        self.replacement = bool(replacement)
        self.keep_ratio, self.epochs, self.refine = float(keep_ratio), epochs, float(refine)
        self._members: list[Tensor | None] = [None]  # ascending indices of each class; None are all samples
        self._quotas = [self._size]
        self._classes: Tensor | None = None  # [N], counted from 0
        self._loss_weights: tuple[Tensor, Tensor] | None = None  # [C], of subsets and of all samples
        if balance is not None:
            assert classes is not None
            self._classes, sizes = classes.ids.cpu(), classes.sizes.cpu()
            taken = quotas(sizes, self._size, balance, op=name, name="keep_ratio")
            by_class = torch.argsort(self._classes, stable=True)
            self._members, self._quotas = list(by_class.split(sizes.tolist())), taken.tolist()
            if balance_losses:
                self._loss_weights = loss_weights(taken, sizes, balance), loss_weights(sizes, sizes, balance)
        self._key = as_key(name, key)
        self._epoch = 0

    def __len__(self) -> int:
        """Samples of the epoch that was selected last; before any, of the first."""
        return self.size(self._epoch)

    def size(self, epoch: int) -> int:
        """Samples in an epoch's subset."""
        return self.num_samples if epoch >= self._full_from else self._size

    @property
    def realised_ratio(self) -> float:
        """Fraction kept, on average over the planned epochs where ``epochs`` is given."""
        if self.epochs is None:
            return self._size / self.num_samples
        full = self.epochs - min(self._full_from, self.epochs)
        return (full + (self.epochs - full) * self._size / self.num_samples) / self.epochs

    @lasting
    def select(self, epoch: int = 0) -> Tensor:
        """int64 ascending indices of an epoch, in any order of epochs."""
        epoch = self._epoch = _checks.in_range(type(self).__name__, "epoch", epoch, 0)
        if epoch >= self._full_from:
            return torch.arange(self.num_samples, device="cpu")
        parts = []
        for c, (members, quota) in enumerate(zip(self._members, self._quotas, strict=True)):
            n = self.num_samples if members is None else members.numel()
            draw = _afresh if self.replacement else _walk
            rows = draw(n, quota, epoch, fold_in(self._key, c))
            parts.append(rows if members is None else members[rows])
        return torch.cat(parts).sort().values

    @lasting
    def weights(self, indices: Any) -> Tensor:
        """Factors for the losses of samples of the current subset: float32 [B] for integers [B]."""
        if self._loss_weights is None:
            return super().weights(indices)
        assert self._classes is not None
        indices = self._samples("weights", indices)
        weights = self._loss_weights[self._epoch >= self._full_from]
        return weights[self._classes[indices.cpu()].long()].to(indices.device)

    def stats(self) -> dict[str, Any]:
        """Realised ratio, samples in the current epoch and quotas of the classes."""
        return {"realised_ratio": self.realised_ratio, "samples": len(self), "quotas": list(self._quotas)}

    def _state(self) -> dict[str, Any]:
        return {"key": self._key.clone(), "epoch": self._epoch}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._epoch = _checks.in_range(type(self).__name__, "state_dict['epoch']", state["epoch"], 0)
        self._key = state["key"]


def _afresh(n: int, k: int, epoch: int, key: Tensor) -> Tensor:
    """``k`` distinct ones of ``n``, independent of other epochs."""
    return ops.permutation(n, key=fold_in(fold_in(key, _AFRESH), epoch), stop=k)


def _walk(n: int, k: int, epoch: int, key: Tensor) -> Tensor:
    """``k`` distinct ones of ``n``: elements [epoch * k, (epoch + 1) * k) of a walk from one permutation to the next.

    ::

        |<----- permutation 0 ----->|<----- permutation 1 ----->| ...
        |  epoch 0  |  epoch 1  |  epoch 2  |  epoch 3  |
                                |old|  new  |
                                    |   first k     |            where 1 is put in order

    An epoch that reaches over the end takes ``old`` elements from one permutation and ``new`` from the next, whose
    first k are put in order: those that the old one has given come last. As there are at most ``old`` of them, they
    miss the epoch; and as 2 k <= n they stay clear of the end, so that no permutation depends on one before the last.
    """
    if 2 * k > n:  # walk through those that are left out: their uses differ by at most 1, and so do the others'
        kept = torch.ones(n, dtype=torch.bool, device="cpu")
        kept[_walk(n, n - k, epoch, key)] = False
        return torch.nonzero(kept).flatten()
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    walk, first = divmod(epoch * k, n)
    chosen = _order(n, k, walk, first, min(first + k, n), key)
    missing = k - chosen.numel()
    return torch.cat([chosen, _order(n, k, walk + 1, 0, missing, key)]) if missing else chosen


def _order(n: int, k: int, walk: int, start: int, stop: int, key: Tensor) -> Tensor:
    """Elements ``start`` to ``stop`` of a walk's permutation, put in order where an epoch of ``k`` reaches into it."""
    this = fold_in(key, walk)
    old = walk * n % k
    if old == 0 or start >= k:
        return ops.permutation(n, key=this, start=start, stop=stop)
    head = ops.permutation(n, key=this, stop=k)
    given = torch.zeros(n, dtype=torch.bool, device="cpu")
    given[ops.permutation(n, key=fold_in(key, walk - 1), start=n - old)] = True
    late = given[head]
    rest = ops.permutation(n, key=this, start=k, stop=max(k, stop))
    return torch.cat([head[~late], head[late], rest])[start:stop]
