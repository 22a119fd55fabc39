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

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.experiments import setting as settings_of
from bench.experiments.networks import make_network
from bench.experiments.setting import Setting, Settings
from pysel.selection import Selector

Batch = tuple[Tensor, Tensor]  # indices [B] of samples, and factors [B] for their losses


class Feed:
    """What a training is fed with: a selector's subsets, shuffled and cut into batches.

    Methods that choose within a batch, or as samples come, override `batches`.
    """

    def __init__(self, setting: Setting, selector: Selector) -> None:
        self.setting, self.selector = setting, selector
        self.epochs, self.kept = 0, 0  # begun, and the samples of their subsets together
        self._shuffle = torch.Generator().manual_seed(setting.order_seed)

    def subsets(self) -> Iterator[Tensor]:
        """Each epoch's subset, in a random order."""
        while True:
            subset = self.selector.select(self.epochs)
            self.epochs += 1
            self.kept += len(subset)
            yield subset[torch.randperm(len(subset), generator=self._shuffle)]

    def batches(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[Batch]:
        """Batches without end. The network is the one that is trained, as it stands after each of them."""
        for subset in self.subsets():
            for batch in subset.split(self.setting.settings.batch_size):
                yield batch, self.selector.weights(batch)

    def update(self, batch: Tensor, losses: Tensor, logits: Tensor) -> None:
        """Hear of a step that has been taken."""
        self.selector.update(batch, losses=losses, logits=logits)

    @property
    def ratio(self) -> float:
        """The mean share of the data in an epoch's subset."""
        return self.kept / self.epochs / self.setting.num_samples


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    kind: str
    make: Callable[[Setting], Selector | Feed]
    source: str = ""  # where the rule is from


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Fraction of samples classified rightly, and its mean over classes."""
    network.eval()
    right = (torch.cat([network(part) for part in x.split(4096)]).argmax(1) == y).double().cpu()
    y = y.cpu()
    sizes = torch.bincount(y)
    by_class = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, y, right)
    return float(right.mean()), float((by_class / sizes)[sizes > 0].mean())


def train(setting: Setting, feed: Feed, steps: int) -> dict[str, Any]:
    """Train a fresh network on what it is fed with, for exactly ``steps`` steps.

    Returns:
        test accuracy, its mean over classes, steps, epochs begun, samples seen, the mean share of the data in these
        epochs' subsets, seconds of training and of selecting during it, how unevenly samples were used (the standard
        deviation of their uses over the mean), and where labels are wrong the share of uses that were of these.
    """
    task, settings = setting.task, setting.settings
    network = make_network(task, settings.hidden, setting.seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    uses = torch.zeros(setting.num_samples)
    batches = feed.batches(network, optimiser)
    selecting, start = 0.0, time.process_time()
    for _ in range(steps):
        before = time.process_time()
        batch, weights = next(batches)
        selecting += time.process_time() - before
        optimiser.zero_grad()
        logits = network(task.train_x[batch])
        losses = F.cross_entropy(logits, task.train_y[batch], reduction="none")
        (losses * weights.to(losses)).mean().backward()
        optimiser.step()
        schedule.step()
        before = time.process_time()
        feed.update(batch, losses.detach().cpu(), logits.detach().cpu())
        selecting += time.process_time() - before
        uses[batch] += 1
    training = time.process_time() - start - selecting
    seen = float(uses.sum())
    overall, by_class = accuracy(network, task.test_x, task.test_y)
    record = {
        "accuracy": round(overall, 5),
        "balanced": round(by_class, 5),
        "steps": steps,
        "epochs": feed.epochs,
        "samples": int(seen),
        "ratio": round(feed.ratio, 4),
        "train_s": round(training, 3),
        "select_s": round(selecting, 4),
        "unevenness": round(float(uses.std() / uses.mean()), 4),
    }
    if task.wrong is not None:
        record["wrong"] = round(float(uses[task.wrong].sum()) / seen, 4)
    return record


def run(scenario: str, name: str, method: Method, seed: int, settings: Settings) -> dict[str, Any]:
    """Train, and return the record: what it is of, and what `train` says.

    Seconds of selecting include those before training, and those of what was made for several methods.
    """
    setting = settings_of.setting(scenario, seed, settings)
    resident = _memory("VmRSS", forget_peak=True)
    made, offline = setting.data.shared.timed(lambda: method.make(setting))
    feed = made if isinstance(made, Feed) else Feed(setting, made)
    record = train(setting, feed, setting.full_steps if method.kind == "reference" else setting.steps)
    record["select_s"] = round(record["select_s"] + offline, 3)
    if resident is not None:
        record["memory_mb"] = round(_memory("VmHWM") - resident, 1)
    return {"scenario": scenario, "settings": settings.name, "method": name, "seed": seed, **record}


def _memory(field: str, *, forget_peak: bool = False) -> float | None:
    """MiB of this process's memory, of which VmHWM is the most since ``forget_peak``; None where Linux does not say."""
    if forget_peak:
        gc.collect()
        with suppress(AttributeError):  # what earlier runs have freed the C library keeps, to give it to this one
            ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        if forget_peak:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return None
