"""InfoBatch: leave out some of what is learned already, and weigh the rest of it accordingly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key, fold_in
from pysel.selection.protocol import Selector, lasting

_COINS = 0x636F696E73  # sets the coins' keys apart from those of other draws with the same key


class InfoBatch(Selector):
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
    ``len``, ``steps`` and `stats`, not chosen. A learning rate that follows the steps must be sized to the real ones.

    The draws are a function of (key, epoch), the subset of what was observed before its epoch was first selected, too;
    so earlier epochs cannot be selected again. Ours: samples without a loss yet are kept, and count in no mean (the
    authors' code gives all samples the same made-up loss, whose rounded mean can exceed it).

    Args:
        num_samples: N.
        epochs: length of training.
        prune_ratio: r in [0, 1), the share **left out** of the samples of small loss.
        delta: the share of the epochs in which samples are left out; in epoch e while ``e < delta * epochs``.
        key: int64 [2] or an int; drawn from torch's default generator when missing.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

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
        prune_ratio: float = 0.5,
        delta: float = 0.875,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        num_samples = _checks.in_range(name, "num_samples", num_samples, 1)
        self.epochs = _checks.in_range(name, "epochs", epochs, 1)
        self.prune_ratio = _checks.within(name, "prune_ratio, the fraction left out,", prune_ratio, "[0, 1)")
        share = _checks.written(name, "delta", delta, "[0, 1]")
        self.delta = float(share)
        super().__init__(
            num_samples,
            {"num_samples": num_samples, "epochs": self.epochs, "prune_ratio": self.prune_ratio, "delta": delta},
        )
        self._full_from = math.ceil(share * self.epochs)
        self._key = as_key(name, key)
        self._epoch = -1
        with torch.inference_mode(False):
            # the latest; NaN: none yet
            self._losses = torch.full((num_samples,), math.nan, dtype=torch.float32, device="cpu")
        self._weights = torch.ones_like(self._losses)  # of the current epoch; 0: left out

    def __len__(self) -> int:
        """Samples of the epoch that was selected last; before any, of the first."""
        return int(torch.count_nonzero(self._weights))

    @property
    def realised_ratio(self) -> float:
        """Fraction kept in the epoch that was selected last."""
        return len(self) / self.num_samples

    def update(self, indices: Any, *, losses: Any = None, logits: Any = None) -> None:
        """Take over the losses of a batch.

        Args:
            indices: integers [B], each sample once.
            losses: [B], unweighted.
            logits: not used.

        Raises:
            TypeError: indices that are not integers, losses that are not numbers.
            ValueError: no losses, or not one for each index; a loss that is not finite (in float32), or an index that
                is out of range or comes twice. Nothing has changed then.
        """
        op = f"{type(self).__name__}.update"
        if losses is None:
            raise ValueError(f"{op}: losses must be given")
        indices = _inputs.indices(op, "indices", indices, self.num_samples).cpu()
        losses = _inputs.tensor(op, "losses", losses).to(self._losses)
        if losses.shape != indices.shape:
            raise ValueError(
                f"{op}: losses must be [B] for indices [B], got {list(losses.shape)} and {list(indices.shape)}"
            )
        _inputs.finite(op, "losses", losses, rows=indices)
        self._losses[indices] = losses

    @lasting
    def select(self, epoch: int = 0) -> Tensor:
        """The subset of an epoch.

        Args:
            epoch: from 0; the one selected last or a later one. The same again gives the same subset, whatever has been
                observed in between.

        Returns:
            int64 [len(self)] ascending indices.

        Raises:
            ValueError: an earlier epoch, whose losses are gone.
        """
        name = type(self).__name__
        epoch = _checks.in_range(name, "epoch", epoch, 0)
        if epoch < self._epoch:
            raise ValueError(
                f"{name}: epoch must be at least {self._epoch}, the last one selected, got {epoch}: its losses are gone"
            )
        if epoch > self._epoch:
            self._weights = torch.ones_like(self._losses)
            if epoch < self._full_from and self.prune_ratio > 0:
                self._prune(fold_in(fold_in(self._key, _COINS), epoch))
            self._epoch = epoch
        return torch.nonzero(self._weights).flatten()

    def _prune(self, key: Tensor) -> None:
        seen = ~self._losses.isnan()
        if not bool(seen.any()):
            return
        low = self._losses.double() < self._losses[seen].double().mean()  # NaN is not below anything
        r = self.prune_ratio
        odds = torch.full_like(self._losses, math.log1p(-r) - math.log(r), dtype=torch.float64)
        stays = ops.gumbel_sigmoid(odds, 0.0, True, key=key).float()  # 1 with probability 1 - r, otherwise 0
        self._weights = torch.where(low, stays / (1 - r), self._weights)

    @lasting
    def weights(self, indices: Any) -> Tensor:
        """Factors for the losses of samples of the current subset: float32 [B] for integers [B]."""
        indices = self._samples("weights", indices)
        return self._weights[indices.cpu()].to(indices.device)

    def stats(self) -> dict[str, Any]:
        """Realised ratio of the current epoch, the mean loss, and the share of samples below it."""
        losses = self._losses[~self._losses.isnan()].double()
        mean = float(losses.mean()) if losses.numel() else math.nan
        below = float((losses < mean).double().mean()) if losses.numel() else math.nan
        return {"realised_ratio": self.realised_ratio, "mean_loss": mean, "below_mean": below}

    def _state(self) -> dict[str, Any]:
        return {
            "key": self._key.clone(),
            "epoch": self._epoch,
            "losses": self._losses.clone(),
            "weights": self._weights.clone(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        name = type(self).__name__
        epoch = _checks.in_range(name, "state_dict['epoch']", state["epoch"], -1)
        if bool(state["losses"].isinf().any()):
            raise ValueError(f"{name}: state_dict['losses'] must be finite, or NaN where there is none yet")
        if not bool(torch.isfinite(state["weights"]).all() and (state["weights"] >= 0).all()):
            raise ValueError(f"{name}: state_dict['weights'] must be finite and at least 0")
        self._key, self._epoch = state["key"], epoch
        self._losses, self._weights = state["losses"], state["weights"]
