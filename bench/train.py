"""The demo: train a real model on real data with all of it, with random subsets, and with selected ones.

    python -m bench.train            about three minutes on two cores
    python -m bench.train --quick    about one

Each method gets the same initial network, the same number of epochs and the same optimiser, whose learning rate
falls to zero over the method's own steps. Methods take turns, an epoch each, so that whatever else the machine is
doing slows all of them alike. Time is split into training and selecting; selecting includes all that a method needs
before training (for DynamicSelector: features, sparse autoencoder, scores). Test accuracy is taken after every epoch,
off the clock, and the table shows the last one, not the best.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Read once, as torch is loaded: idle threads sleep instead of spinning. Where other programs want the same cores,
# spinning slows these small steps about tenfold (measured).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import pysel
from bench import datasets
from pysel.selection import DynamicRandom, DynamicSelector, FullSelector, Selector, factor_tables
from pysel.selection.features import pca


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its data."""

    epochs: int
    batch_size: int
    sae_epochs: int
    lr: float = 1e-3
    seed: int = 0
    feature_dim: int = 64
    num_factors: int = 1024
    active_factors: int = 16
    keep_ratios: tuple[float, ...] = (0.5, 0.3)


@dataclass
class Result:
    """One method's run."""

    method: str
    keep_ratio: float
    select_seconds: float  # starts as the time spent before the first epoch
    train_seconds: float = 0.0
    samples_seen: int = 0
    seconds: list[float] = field(default_factory=list)  # on the clock, at the end of each epoch
    accuracy: list[float] = field(default_factory=list)  # on the test data, after each epoch
    usage: list[int] = field(default_factory=list)  # how many samples were used 0, 1, 2, ... times
    rare_coverage: list[float] = field(default_factory=list)  # by the subset of each epoch: see Coverage
    common_coverage: list[float] = field(default_factory=list)


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """Tensors that a DataLoader reads a batch at a time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)
        return self.x[rows], self.y[rows]


class Coverage:
    """The share of a factor's samples that a subset holds, averaged over the rarest and commonest quarter."""

    def __init__(self, sae: pysel.nn.TopKSAE, features: Tensor) -> None:
        with torch.no_grad():
            codes = [sae.encode(batch) for batch in features.split(8192)]
        self.values = torch.cat([values for values, _ in codes])
        self.indices = torch.cat([indices for _, indices in codes])
        self.num_factors = sae.num_factors
        self.counts = pysel.ops.factor_counts(self.values, self.indices, self.num_factors)
        alive = torch.nonzero(self.counts).flatten()
        by_rate = alive[self.counts[alive].argsort()]
        quarter = max(1, len(by_rate) // 4)
        self.rare, self.common = by_rate[:quarter], by_rate[-quarter:]

    def __call__(self, subset: Tensor) -> tuple[float, float]:
        """Coverage of rare and of common factors by the samples ``subset``, int64 [k]."""
        counts = pysel.ops.factor_counts(self.values[subset], self.indices[subset], self.num_factors)
        share = counts / self.counts.clamp_min(1)
        return float(share[self.rare].mean()), float(share[self.common].mean())


def make_model(data: datasets.Dataset, seed: int) -> nn.Module:
    """A small convolutional network for pictures, a small perceptron for tables; a function of the seed."""
    with torch.random.fork_rng(devices=[]):  # the layers draw from the global generator: give it back as it was
        torch.manual_seed(seed)
        if data.train_x.dim() == 4:
            side = math.ceil(data.train_x.size(2) / 4) * math.ceil(data.train_x.size(3) / 4)
            return nn.Sequential(
                nn.Conv2d(1, 32, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64 * side, 128),
                nn.ReLU(),
                nn.Linear(128, data.num_classes),
            )
        return nn.Sequential(
            nn.Linear(data.train_x.size(1), 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, data.num_classes),
        )


@torch.no_grad()
def test_accuracy(model: nn.Module, data: datasets.Dataset) -> float:
    """Fraction of test samples classified rightly."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(data.test_x.split(2048), data.test_y.split(2048), strict=True)
    )
    model.train()
    return right / len(data.test_y)


class Training:
    """One method's training, an epoch at a time: a fresh model on what a selector picks."""

    def __init__(self, result: Result, selector: Selector, data: datasets.Dataset, settings: Settings) -> None:
        self.result, self.selector, self.data = result, selector, data
        self.model = make_model(data, settings.seed)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        self.sampler = pysel.SelectionSampler(selector, key=pysel.fold_in(pysel.key(settings.seed), 0))
        self.loader = DataLoader(
            InMemory(data.train_x, data.train_y),
            batch_size=settings.batch_size,
            sampler=self.sampler,
            collate_fn=lambda batch: batch,
        )
        self.total_steps = settings.epochs * len(self.loader)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1 - step / self.total_steps)
        self.usage = torch.zeros(len(data.train_y), dtype=torch.int64)

    def epoch(self, epoch: int, coverage: Coverage, bar: tqdm[None]) -> None:
        """Train for one epoch, then look at what came of it off the clock."""
        result = self.result
        start = time.perf_counter()
        self.sampler.set_epoch(epoch)
        result.select_seconds += time.perf_counter() - start

        start = time.perf_counter()
        for x, y in self.loader:
            self.optimiser.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimiser.step()
            self.schedule.step()
            bar.update()
        result.train_seconds += time.perf_counter() - start

        chosen = self.selector.select(epoch)
        pysel.ops.usage_update_(self.usage, chosen)
        rare, common = coverage(chosen)
        result.samples_seen += len(chosen)
        result.usage = torch.bincount(self.usage).tolist()
        result.seconds.append(result.train_seconds + result.select_seconds)
        result.accuracy.append(test_accuracy(self.model, self.data))
        result.rare_coverage.append(rare)
        result.common_coverage.append(common)


def run(data: datasets.Dataset, settings: Settings) -> list[Result]:
    """All methods, side by side."""
    sae_key, walk_key = pysel.split(pysel.fold_in(pysel.key(settings.seed), 1), 2)
    n = len(data.train_y)

    # The score tables do not depend on keep_ratio: they are made once, and charged in full to both DynamicSelectors.
    start = time.perf_counter()
    features = pca(data.train_x, min(settings.feature_dim, data.train_x[0].numel()))
    with tqdm(total=settings.sae_epochs, desc=f"{'sparse autoencoder':20}", unit="epoch") as bar:

        def show(epoch: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}")
            bar.update()

        sae, report = pysel.nn.train_sae(
            features,
            settings.num_factors,
            settings.active_factors,
            epochs=settings.sae_epochs,
            key=sae_key,
            progress=show,
        )
    tables = factor_tables(sae, features)
    offline_seconds = time.perf_counter() - start
    print(
        f"Sparse autoencoder on {features.size(1)} principal components: {report}; {offline_seconds:.1f} s with scoring"
    )
    coverage = Coverage(sae, features)

    def dynamic(ratio: float) -> Selector:
        return DynamicSelector.from_scores(tables.representativeness, tables.rarity, ratio, settings.epochs)

    methods: list[tuple[str, float, float, Callable[[float], Selector]]] = [
        ("full data", 1.0, 0.0, lambda ratio: FullSelector(n)),
        *(
            ("dynamic random", ratio, 0.0, lambda ratio: DynamicRandom(n, ratio, key=walk_key))
            for ratio in settings.keep_ratios
        ),
        *(("DynamicSelector", ratio, offline_seconds, dynamic) for ratio in settings.keep_ratios),
    ]
    trainings = []
    for name, ratio, seconds, make in methods:
        start = time.perf_counter()
        selector = make(ratio)
        seconds += time.perf_counter() - start
        trainings.append(Training(Result(name, ratio, seconds), selector, data, settings))

    with tqdm(total=sum(t.total_steps for t in trainings), unit="step", mininterval=0.5) as bar:
        for epoch in range(settings.epochs):
            for training in trainings:
                result = training.result
                bar.set_description_str(f"epoch {epoch + 1}/{settings.epochs}, {result.method} {result.keep_ratio:g}")
                training.epoch(epoch, coverage, bar)
                bar.set_postfix_str(f"test accuracy {result.accuracy[-1]:.1%}")
    return [training.result for training in trainings]


def table(results: list[Result], num_test: int) -> str:
    """The results as text."""
    full = results[0]
    lines = [
        f"{'method':<16} {'keep_ratio':>10} {'test accuracy':>14} {'training s':>11} {'selecting s':>12} "
        f"{'samples seen':>13} {'speed-up':>9}"
    ]
    lines.append("-" * len(lines[0]))
    for r in results:
        speed_up = full.seconds[-1] / r.seconds[-1]
        lines.append(
            f"{r.method:<16} {r.keep_ratio:>10g} {r.accuracy[-1]:>14.2%} {r.train_seconds:>11.1f} "
            f"{r.select_seconds:>12.2f} {r.samples_seen:>13,} {speed_up:>8.2f}x"
        )
    accuracy = full.accuracy[-1]
    error = math.sqrt(accuracy * (1 - accuracy) / num_test)
    lines.append(
        f"One seed; the standard error of a test accuracy is {error:.2%}: differences below {2 * error:.1%} say little."
    )
    return "\n".join(lines)


def plot(results: list[Result], title: str, directory: Path) -> list[Path]:
    """Draw accuracy over time, usage counts and factor coverage; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # colour tells the method, line the ratio
    colours = dict(zip(dict.fromkeys(r.method for r in results), ("black", "tab:blue", "tab:red"), strict=False))
    dashes = dict(zip(dict.fromkeys(r.keep_ratio for r in results), ("-", "-", "--"), strict=False))
    style: list[dict[str, Any]] = [{"color": colours[r.method], "linestyle": dashes[r.keep_ratio]} for r in results]
    labels = [r.method if r.keep_ratio == 1 else f"{r.method}, {r.keep_ratio:g}" for r in results]
    paths = [directory / f"{name}.png" for name in ("accuracy", "usage", "coverage")]

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for r, look, label in zip(results, style, labels, strict=True):
        axes.plot(r.seconds, [100 * a for a in r.accuracy], marker="o", markersize=3, label=label, **look)
    axes.set(title=f"{title}: test accuracy over time", xlabel="seconds of training and selecting", ylabel="%")
    axes.legend()
    figure.savefig(paths[0], dpi=150)

    figure, rows = plt.subplots(1, len(results), figsize=(3 * len(results), 3.2), sharex=True, layout="constrained")
    for axes, r, label in zip(rows, results, labels, strict=True):
        total = sum(r.usage)
        axes.bar(range(len(r.usage)), [100 * u / total for u in r.usage], color=colours[r.method])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(title=label, xlabel="times used", ylabel="% of samples")
    figure.suptitle(f"{title}: how often each sample was used")
    figure.savefig(paths[1], dpi=150)

    figure, pair = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, kind in zip(pair, ("rare", "common"), strict=True):
        for r, look, label in zip(results, style, labels, strict=True):
            share = r.rare_coverage if kind == "rare" else r.common_coverage
            axes.plot(range(1, len(share) + 1), [100 * s for s in share], label=label, **look)
        axes.xaxis.get_major_locator().set_params(integer=True)
        which = "rarest" if kind == "rare" else "commonest"
        axes.set(
            title=f"the {which} quarter of factors",
            xlabel="epoch",
            ylabel="% of a factor's samples in the subset",
        )
    pair[1].legend()
    figure.suptitle(f"{title}: factor coverage by the subset of each epoch")
    figure.savefig(paths[2], dpi=150)
    plt.close("all")
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs: under two minutes")
    parser.add_argument("--dataset", choices=("auto", "fashion-mnist", "flights"), default="auto")
    parser.add_argument("--epochs", type=int, help="training epochs of every method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where pictures and results.json go")
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")

    began = time.perf_counter()
    print("pysel", ", ".join(f"{name} {value}" for name, value in pysel.build_info().items()))
    try:
        data = datasets.load(options.dataset)
    except datasets.DataError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{data.name}: {data.description}")

    pictures = data.train_x.dim() == 4
    epochs = options.epochs or (3 if options.quick else 10)
    sae_epochs = (2 if options.quick else 5) if pictures else (1 if options.quick else 2)
    settings = Settings(epochs, batch_size=256 if pictures else 512, sae_epochs=sae_epochs, seed=options.seed)
    results = run(data, settings)

    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "dataset": data.name,
        "build": pysel.build_info(),
        "settings": asdict(settings),
        "results": [asdict(result) for result in results],
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    paths = plot(results, data.name, options.out)
    print(f"\n{table(results, len(data.test_y))}\n")
    for path in [*paths, options.out / "results.json"]:
        print(path)
    print(f"Total time {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
