"""What methods share that go by the losses of training: these are stored, and an epoch is settled once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pysel import _checks, _inputs, ops
from pysel.random import as_key, fold_in
from pysel.selection.protocol import Selector
from pysel.selection.state import lasting


class LossSelector(Selector):
    """Chooses the subset of an epoch by the losses told so far: the base of such methods.

    A method defines `_choose`; one that keeps something else than the latest losses defines `_observe`, too. The
    subset is a function of (arguments, key, epoch, what was observed before that epoch was first selected): so it is
    chosen once, stays the same whatever arrives later, and earlier epochs cannot be selected again.

    Args:
        num_samples: N.
        arguments: the constructor's other arguments, by name.
        tables: those that are tensors, by name.
        salt: the method's own constant, which sets its draws apart from those of others with the same key.
        size: samples in an epoch, at most; default all.
        full_from: from this epoch on all samples are used.
        key: int64 [2] or an int; drawn from torch's default generator when missing.
    """

    def __init__(
        self,
        num_samples: int,
        arguments: Mapping[str, Any],
        tables: Mapping[str, Tensor | None] | None = None,
        *,
        salt: int,
        size: int | None = None,
        full_from: float = math.inf,
        key: Tensor | int | None = None,
    ) -> None:
        name = type(self).__name__
        num_samples = _checks.in_range(name, "num_samples", num_samples, 1)
        super().__init__(num_samples, {"num_samples": num_samples, **arguments}, tables)
        self._salt, self._full_from = salt, full_from
        self._size_before = num_samples if size is None else size
        self._key = as_key(name, key)
        self._epoch = -1
        with torch.inference_mode(False):
            # NaN: none yet
            self._losses = torch.full((num_samples,), math.nan, dtype=torch.float32, device="cpu")
        self._weights = torch.ones_like(self._losses)  # of the current epoch; 0: left out

    def __len__(self) -> int:
        """Samples of the epoch that was selected last; before any, of the first."""
        return self.size(0) if self._epoch < 0 else int(torch.count_nonzero(self._weights))

    def size(self, epoch: int) -> int:
        """Samples in the subset of an epoch to come, or the most that there can be where losses decide it."""
        return self.num_samples if epoch >= self._full_from else self._size_before

    def update(self, indices: Any, *, losses: Any = None, logits: Any = None) -> None:
        """Take over the losses of a batch.

        Where several ranks train, each has a selector of its own, and tells it the losses of all (gather the indices
        as integers: float32 does not hold those above 2^24).

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
        self._observe(indices, losses)

    def _observe(self, indices: Tensor, losses: Tensor) -> None:
        """Remember the losses, finite float32 [B], of distinct samples [B]."""
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
            self._weights = (
                self._choose(epoch, fold_in(fold_in(self._key, self._salt), epoch))
                if epoch < self._full_from
                else torch.ones_like(self._losses)
            )
            self._epoch = epoch
        return torch.nonzero(self._weights).flatten()

    def _choose(self, epoch: int, key: Tensor) -> Tensor:
        """Weights of an epoch's samples, float32 [N]; 0 for those left out. ``key`` is the epoch's own."""
        raise NotImplementedError

    def _only(self, indices: Tensor) -> Tensor:
        """What `_choose` gives for a subset whose samples weigh the same."""
        return torch.zeros_like(self._losses).index_fill_(0, indices, 1)

    @lasting
    def scores(self, epoch: int = 0) -> Tensor:
        """What samples are judged by as things stand, whatever the epoch: [N], infinite where no loss is known yet."""
        _checks.in_range(type(self).__name__, "epoch", epoch, 0)
        return torch.where(self._losses.isnan(), math.inf, self._losses)

    @lasting
    def weights(self, indices: Any) -> Tensor:
        """Factors for the losses of samples of the current subset: float32 [B] for integers [B]."""
        indices = self._samples("weights", indices)
        return self._weights[indices.cpu()].to(indices.device)

    def explain(self, i: int) -> dict[str, Any]:
        """What became of a sample in the epoch selected last: see `Selector.explain`; and its stored ``loss``.

        Raises:
            TypeError, IndexError: ``i`` is not an int in [0, N).
            ValueError: nothing has been selected yet: to ask would settle the first epoch.
        """
        i = self._sample(i)
        if self._epoch < 0:
            raise ValueError(f"{type(self).__name__}.explain: nothing has been selected yet: call select() first")
        loss = float(self._losses[i])
        return {**super().explain(i), "loss": None if math.isnan(loss) else loss}

    def stats(self) -> dict[str, Any]:
        """Realised ratio of the current epoch, the mean of the stored losses, and the share of samples below it."""
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


def random_part(num_samples: int, size: int, key: Tensor) -> Tensor:
    """Ascending indices of ``size`` random ones of all samples."""
    equal = torch.zeros(num_samples, dtype=torch.float32, device="cpu")
    return ops.weighted_sample(equal, size, log_weights=True, order="index", key=key)


def averaged(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    """``(1 - alpha) old + alpha new``, float64; ``new`` where ``old`` is NaN, that is where there is none yet."""
    old, new = old.double(), new.double()
    return torch.where(old.isnan(), new, (1 - alpha) * old + alpha * new)
