"""The arguments of `ASSS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pysel import _checks
from pysel.selection.schedule import Schedule, cosine, exponential_decay, linear

_PLAYED_FOR = 0.8  # the share that is found where the pool is chosen later: the ranking hardly depends on it
_FALLING: dict[str, Schedule] = {"linear": linear, "cosine": cosine}


@dataclass(frozen=True)
class Settings:
    """The arguments of `ASSS`, checked; numbers are Python's."""

    keep_ratio: Any
    pool: Any
    epochs: int
    batch_size: int
    task_lr: float
    selector_lr: float
    warmup_epochs: int
    attenuation: str
    normalise: bool | None
    fidelity: str
    layers: str
    trusted: float | None
    game: str
    gate: str
    sparsity: str
    sparsity_weight: float
    tau: float
    tau_rate: float
    tau_min: float
    tau_schedule: str | Schedule
    hard: bool
    patience: int | None
    turnover: float

    def __post_init__(self) -> None:
        op = "ASSS"
        kept = _checks.written(op, "keep_ratio, the fraction kept,", self.keep_ratio, "(0, 1]")
        if isinstance(self.pool, str):
            if self.pool != "auto":
                raise ValueError(f"{op}: pool must be 'auto', a share of the data or None, got {self.pool!r}")
        elif self.pool is not None and _checks.written(op, "pool", self.pool, "(0, 1]") < kept:
            raise ValueError(f"{op}: pool must be at least keep_ratio, {self.keep_ratio!r}, got {self.pool!r}")
        if self.normalise is None:
            object.__setattr__(self, "normalise", self.attenuation == "loss")
        whole = {"epochs": 1, "batch_size": 1, "warmup_epochs": 0}
        if self.patience is not None:
            whole["patience"] = 1
        within = dict.fromkeys(("task_lr", "selector_lr", "tau", "tau_min"), "(0, inf)")
        within |= dict.fromkeys(("sparsity_weight", "tau_rate"), "[0, inf)") | {"turnover": "[0, 1]"}
        if self.trusted is not None:
            within["trusted"] = "(0, 1]"
        taken: dict[str, Any] = {
            name: _checks.in_range(op, name, getattr(self, name), low) for name, low in whole.items()
        }
        taken |= {name: _checks.flag(op, name, getattr(self, name)) for name in ("normalise", "hard")}
        taken |= {name: _checks.within(op, name, getattr(self, name), interval) for name, interval in within.items()}
        for name, value in taken.items():
            object.__setattr__(self, name, value)
        _checks.choice(op, "attenuation", self.attenuation, ("loss", "input"))
        _checks.choice(op, "fidelity", self.fidelity, ("task", "lookahead"))
        _checks.choice(op, "layers", self.layers, ("all", "last"))
        _checks.choice(op, "gate", self.gate, ("sigmoid", "khot"))
        _checks.choice(op, "sparsity", self.sparsity, ("target", "absolute", "mean"))
        _checks.choice(op, "game", self.game, ("cooperative", "adversarial"))
        if not callable(self.tau_schedule):
            _checks.choice(op, "tau_schedule", self.tau_schedule, ("exponential", *_FALLING))
        for epoch in range(self.epochs):
            self.temperature(epoch)  # a function may leave its range late
        if self.attenuation == "input":
            for name, wrong, right in (("normalise", True, False), ("fidelity", "lookahead", "task")):
                if getattr(self, name) == wrong:
                    raise ValueError(f"{op}: {name} must be {right!r} with attenuation='input', got {wrong!r}")
        free = self.sparsity == "mean" and self.game == "cooperative" and self.gate == "sigmoid"
        if free and self.fidelity == "task" and self.attenuation == "loss" and not self.normalise:
            raise ValueError(
                f"{op}: sparsity must be 'target' or 'absolute', got 'mean', which together with the loss would send "
                "all weights to 0; normalise=True and attenuation='input' allow it"
            )

    @property
    def target(self) -> Any:
        """The share of the samples that the selector is to find."""
        if isinstance(self.pool, str):
            return self.keep_ratio if float(self.keep_ratio) > _PLAYED_FOR else _PLAYED_FOR
        return self.keep_ratio if self.pool is None else self.pool

    def temperature(self, epoch: int) -> float:
        """tau in an epoch, counted from 0."""
        if self.tau_schedule == "exponential":
            return exponential_decay(epoch, self.tau, self.tau_rate, self.tau_min)
        fall = self.tau_schedule if callable(self.tau_schedule) else _FALLING[self.tau_schedule]
        progress = min(1.0, (epoch + 1) / self.epochs)
        share = float(fall(progress))
        if not 0 <= share <= 1:
            raise ValueError(f"ASSS: tau_schedule must stay in [0, 1], got {share!r} at progress {progress:g}")
        return self.tau_min + (self.tau - self.tau_min) * share
