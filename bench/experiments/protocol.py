"""One protocol for all methods: train one method on one scenario with one seed, and say what came of it.

A scenario's network, batch size, optimiser and first learning rate are the same for all methods. All subset methods
take the same number of optimiser steps: those of ``epochs`` epochs of a subset of ``keep_ratio``, the last ``refine``
of them on all of the data. Methods without such a tail get more epochs, and the last one is cut where the steps are
used up. The learning rate falls linearly to zero over a method's own steps. The seed decides on the data drawn, the
network's first weights, the order and the selection, so that methods are compared seed by seed. Nothing is tuned: the
optimiser's settings are common ones, the methods' are their defaults. Seconds are of processor time of one thread,
which other programs on the machine disturb little.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pysel
from bench.experiments.scenarios import SCENARIOS, Task
from pysel.selection import Selector, factor_tables, subset_size
from pysel.selection.dynamic.random import full_epochs


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


class Setting:
    """A scenario with a seed and settings: what methods are made from."""

    def __init__(self, task: Task, seed: int, settings: Settings) -> None:
        self.task, self.seed, self.settings = task, seed, settings
        self.num_samples = len(task.train_y)
        self.labels = task.train_y
        order, self.key, self._sae_key = pysel.split(pysel.fold_in(pysel.key(seed), 0), 3)
        self.order_seed = int(order[0])

    def _batches(self, samples: int) -> int:
        return -(-samples // self.settings.batch_size)

    @property
    def full_steps(self) -> int:
        """Steps of all of the data for all epochs."""
        return self.settings.epochs * self._batches(self.num_samples)

    @property
    def steps(self) -> int:
        """Steps of every subset method."""
        settings = self.settings
        full = full_epochs(settings.refine, settings.epochs)
        subset = self._batches(subset_size(settings.keep_ratio, self.num_samples))
        return (settings.epochs - full) * subset + full * self._batches(self.num_samples)

    def epochs(self, samples: float | None = None) -> int:
        """Epochs in which a method that takes ``samples`` in each, by default a subset, has used up the steps."""
        if samples is None:
            samples = subset_size(self.settings.keep_ratio, self.num_samples)
        return -(-self.steps // self._batches(round(samples)))

    @cached_property
    def _encoder(self) -> tuple[Any, Tensor, float]:
        start = time.process_time()
        features = self.task.features()
        dim, settings = features.size(1), self.settings
        sae, _ = pysel.nn.train_sae(
            features,
            settings.factors_per_dim * dim,
            max(1, min(settings.active_factors, dim // 4)),
            epochs=settings.sae_epochs,
            key=self._sae_key,
        )
        return sae, features, time.process_time() - start

    @lru_cache(maxsize=4)  # noqa: B019 - a setting lives as long as its runs
    def tables(self, class_coverage: str = "once") -> tuple[Any, float]:
        """Factor tables, made once for all methods, and the seconds of all it took, charged to each of them."""
        sae, features, seconds = self._encoder
        start = time.process_time()
        tables = factor_tables(sae, features, labels=self.labels, class_coverage=class_coverage)
        return tables, seconds + time.process_time() - start


@lru_cache(maxsize=1)
def setting(scenario: str, seed: int, settings: Settings) -> Setting:
    """The setting, kept for the runs of other methods on it.

    Raises:
        bench.datasets.DataError: the scenario's data are not there.
    """
    return Setting(SCENARIOS[scenario](seed), seed, settings)


def make_network(task: Task, hidden: int, seed: int) -> nn.Module:
    """A perceptron with one hidden layer; a function of the seed."""
    with torch.random.fork_rng(devices=[]):  # the layers draw from the global generator: give it back as it was
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(task.train_x.size(1), hidden), nn.ReLU(), nn.Linear(hidden, task.num_classes))


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Fraction of samples classified rightly, and its mean over classes."""
    right = (torch.cat([network(part) for part in x.split(4096)]).argmax(1) == y).double()
    sizes = torch.bincount(y)
    by_class = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, y, right)
    return float(right.mean()), float((by_class / sizes)[sizes > 0].mean())


def train(setting: Setting, selector: Selector, steps: int) -> dict[str, Any]:
    """Train a fresh network on what a selector picks, for exactly ``steps`` steps.

    Returns:
        test accuracy, its mean over classes, steps, epochs begun, samples seen, the mean share of the data in these
        epochs' subsets, seconds of training and of selecting during it, how unevenly samples were used (the standard
        deviation of their uses over the mean), and where labels are wrong the share of uses that were of these.
    """
    task, settings = setting.task, setting.settings
    network = make_network(task, settings.hidden, setting.seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    shuffle = torch.Generator().manual_seed(setting.order_seed)
    uses = torch.zeros(setting.num_samples)
    done, epoch, kept, selecting, training = 0, 0, 0, 0.0, 0.0
    while done < steps:
        start = time.process_time()
        subset = selector.select(epoch)
        subset = subset[torch.randperm(len(subset), generator=shuffle)]
        selecting += time.process_time() - start

        start = time.process_time()
        for batch in subset.split(settings.batch_size)[: steps - done]:
            optimiser.zero_grad()
            losses = F.cross_entropy(network(task.train_x[batch]), task.train_y[batch], reduction="none")
            (losses * selector.weights(batch)).mean().backward()
            optimiser.step()
            schedule.step()
            selector.update(batch, losses=losses.detach())
            uses[batch] += 1
            done += 1
        training += time.process_time() - start
        epoch += 1
        kept += len(subset)
    seen = float(uses.sum())
    overall, by_class = accuracy(network, task.test_x, task.test_y)
    record = {
        "accuracy": round(overall, 5),
        "balanced": round(by_class, 5),
        "steps": done,
        "epochs": epoch,
        "samples": int(seen),
        "ratio": round(kept / epoch / setting.num_samples, 4),
        "train_s": round(training, 3),
        "select_s": round(selecting, 4),
        "unevenness": round(float(uses.std() / uses.mean()), 4),
    }
    if task.wrong is not None:
        record["wrong"] = round(float(uses[task.wrong].sum()) / seen, 4)
    return record
