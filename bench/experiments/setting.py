"""What a method is made from: a scenario for one seed, how long it may train, and what may be looked at beforehand."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import pysel
from bench.experiments.scenarios import ON_GPU, SCENARIOS, Task
from pysel.selection import factor_tables, subset_size
from pysel.selection.schedule import full_epochs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # of networks and what they see


@dataclass(frozen=True)
class Settings:
    """What a record depends on besides scenario, method and seed."""

    epochs: int
    keep_ratio: float = 0.3
    refine: float = 0.15
    batch_size: int = 128
    lr: float = 1e-3
    hidden: int = 128
    factors_per_dim: int = 16  # units of the sparse autoencoder
    active_factors: int = 16  # of which a sample has these active, or a quarter of its dimensions if that is less
    sae_epochs: int = 5

    @property
    def name(self) -> str:
        """Epochs and a hash of everything: records of other settings never pass for these."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.epochs}-{digest[:6]}"


class Shared:
    """Values that several methods use: made once, and each who uses one is charged for it as if it had been alone."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, dict[Any, float]]] = {}
        self._making = 0.0  # seconds; they lie within those of who asked first
        self._bill: dict[Any, float] = {}  # seconds of all that has been used since it was opened, each once

    def get(self, name: Any, make: Callable[[], Any]) -> Any:
        """The value of that name, made where it is not there yet; what it is made from may be of others."""
        if name not in self._made:
            outer, self._bill = self._bill, {}
            start, before = time.process_time(), self._making
            value = make()
            own = time.process_time() - start - (self._making - before)
            self._making += own
            self._made[name] = value, {**self._bill, name: own}
            self._bill = outer
        value, bill = self._made[name]
        self._bill.update(bill)
        return value

    def timed(self, make: Callable[[], Any]) -> tuple[Any, float]:
        """What ``make`` gives, and the seconds that takes where nothing is there yet."""
        self._bill = {}
        start, before = time.process_time(), self._making
        value = make()
        own = time.process_time() - start - (self._making - before)
        return value, own + sum(self._bill.values())


class Data:
    """A scenario for one seed, with what methods of all shares may look at; nothing in it depends on the share."""

    def __init__(self, task: Task, seed: int, settings: Settings) -> None:
        self.task, self.seed = task, seed
        self.settings = settings
        order, self.key, self.sae_key = pysel.split(pysel.fold_in(pysel.key(seed), 0), 3)
        self.order_seed = int(order[0])
        self.shared = Shared()

    @property
    def features(self) -> Tensor:
        """[N, d] on the CPU, made without labels."""
        return self.shared.get("features", lambda: self.task.features().cpu())

    def tables(self, class_coverage: str = "once") -> Any:
        """Factor tables of a sparse autoencoder trained on the features."""
        return self.shared.get(
            ("tables", class_coverage),
            lambda: factor_tables(
                self._autoencoder(), self.features, labels=self.task.train_y.cpu(), class_coverage=class_coverage
            ),
        )

    def _autoencoder(self) -> Any:
        return self.shared.get("autoencoder", self._train_autoencoder)

    def _train_autoencoder(self) -> Any:
        features, settings = self.features, self.settings
        dim = features.size(1)
        sae, _ = pysel.nn.train_sae(
            features,
            settings.factors_per_dim * dim,
            max(1, min(settings.active_factors, dim // 4)),
            epochs=settings.sae_epochs,
            key=self.sae_key,
        )
        return sae


class Setting:
    """A scenario with a seed and settings: what methods are made from."""

    def __init__(self, data: Data, settings: Settings) -> None:
        self.data, self.settings = data, settings
        self.task, self.seed, self.key, self.order_seed = data.task, data.seed, data.key, data.order_seed
        self.num_samples = len(data.task.train_y)
        self.labels = data.task.train_y.cpu()  # selection is at home there

    def batches(self, samples: float) -> int:
        """Steps of an epoch of so many samples."""
        return -(-round(samples) // self.settings.batch_size)

    @property
    def subset_size(self) -> int:
        """Samples kept."""
        return subset_size(self.settings.keep_ratio, self.num_samples)

    @property
    def full_steps(self) -> int:
        """Steps of all of the data for all epochs."""
        return self.settings.epochs * self.batches(self.num_samples)

    @property
    def steps(self) -> int:
        """Steps of every subset method."""
        return self._steps(self.settings.epochs, self.subset_size, self.settings.refine)

    def _steps(self, epochs: int, samples: float, refine: float) -> int:
        full = full_epochs(refine, epochs)
        return (epochs - full) * self.batches(samples) + full * self.batches(self.num_samples)

    def epochs(self, samples: float | None = None, *, refine: float = 0.0) -> int:
        """Epochs in which a method has used up the steps.

        Args:
            samples: it takes so many in each; by default a subset.
            refine: and all of them in this last part of the epochs.
        """
        samples = self.subset_size if samples is None else samples
        epochs = 1
        while self._steps(epochs, samples, refine) < self.steps:
            epochs += 1
        return epochs


@lru_cache(maxsize=1)
def data(scenario: str, seed: int, settings: Settings) -> Data:
    """A scenario's data, kept for other methods and shares.

    Raises:
        bench.datasets.DataError: they are not there.
    """
    return Data({**SCENARIOS, **ON_GPU}[scenario](seed).to(DEVICE), seed, settings)


def setting(scenario: str, seed: int, settings: Settings) -> Setting:
    """The setting of a run; those that differ in the share kept have their data in common."""
    return Setting(data(scenario, seed, replace(settings, keep_ratio=1.0, refine=0.0)), settings)
