"""What the arguments of dynamic selection say without its tables: how large subsets are, and what weighs in them."""

from __future__ import annotations

from torch import Tensor

from pysel import _checks
from pysel.selection.protocol import Selector
from pysel.selection.schedule import Schedule, full_epochs, resolve
from pysel.selection.schedule import balance as checked_weight
from pysel.selection.subset import loss_weights, subset_size

_COLDEST = 1e-30  # below, scores over it could leave the range of float32


class Planned(Selector):
    """The part of `DynamicSelector` that is the same wherever the tables are; its docstring has the arguments."""

    _epoch: int  # selected last; -1 before any

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        epochs: int,
        *,
        balance: str | None,
        gamma: float,
        penalty: str,
        schedule: str | float | Schedule,
        refine: float,
        balance_losses: bool,
        normalise: str | None,
        temperature: float | None,
    ) -> None:
        name = type(self).__name__
        self._size = subset_size(keep_ratio, num_samples, op=name)
        self.keep_ratio = float(keep_ratio)
        self.epochs = _checks.in_range(name, "epochs", epochs, 1)
        self.gamma = _checks.within(name, "gamma", gamma, "[0, inf)")
        self.temperature = None if temperature is None else _checks.within(name, "temperature", temperature, "(0, inf)")
        if self.temperature is not None and self.temperature < _COLDEST:
            raise ValueError(f"{name}: temperature must be at least {_COLDEST} or None, got {temperature!r}")
        self.schedule = resolve(schedule, op=name)
        tail = _checks.written(name, "refine", refine, "[0, 1]")
        self._first_full = self.epochs - full_epochs(tail, self.epochs) if tail else None
        _checks.choice(name, "penalty", penalty, ("log", "linear", "exp", "rate"))
        self.penalty = penalty
        if balance is not None:
            _checks.choice(name, "balance", balance, ("equal", "proportional"))
        if normalise is not None:
            _checks.choice(name, "normalise", normalise, ("minmax", "clip", "rank"))
        super().__init__(
            num_samples,
            {
                "keep_ratio": keep_ratio,
                "epochs": self.epochs,
                "balance": balance,
                "gamma": self.gamma,
                "penalty": penalty,
                "schedule": schedule,
                "refine": refine,
                "balance_losses": bool(balance_losses),
                "normalise": normalise,
                "temperature": self.temperature,
            },
        )

    def _class_weights(self, quotas: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor] | None:
        """Weights [C] of the classes' losses, in subsets and in all samples; None for 1."""
        balance = self._arguments["balance"]
        if balance is None or not self._arguments["balance_losses"]:
            return None
        return loss_weights(quotas, sizes, balance), loss_weights(sizes, sizes, balance)

    def _is_full(self, epoch: int) -> bool:
        return self._first_full is not None and epoch >= self._first_full

    def size(self, epoch: int) -> int:
        """Samples in an epoch's subset."""
        return self.num_samples if self._is_full(epoch) else self._size

    def __len__(self) -> int:
        """Samples in the subset of the epoch that was selected last; before any, in the first."""
        return self.size(max(self._epoch, 0))

    @property
    def realised_ratio(self) -> float:
        """Samples that training sees over those that full data would take, over all epochs planned."""
        return sum(map(self.size, range(self.epochs))) / (self.num_samples * self.epochs)

    def total_steps(self, batch_size: int, drop_last: bool = False) -> int:
        """Batches in all epochs planned, see `steps_total`: what a learning-rate schedule runs over."""
        return self.steps_total(batch_size, self.epochs, drop_last)

    def weight(self, epoch: int) -> float:
        """alpha(t), the schedule's weight of representativeness in an epoch (t is ``epoch + 1``)."""
        name = type(self).__name__
        epoch = _checks.in_range(name, "epoch", epoch, 0)
        return checked_weight(self.schedule, min((epoch + 1) / self.epochs, 1.0), op=name)
