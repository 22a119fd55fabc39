"""What factors cost, and how far the scores made from them depend on chance: python -m bench.experiments.factors

Prints JSON. For each data set and form of autoencoder, five are trained: on all rows, on a tenth of them and on the
default sample, with two keys. For each: seconds of training and of the two scoring passes, variance explained, dead
units. Then Spearman's rank correlation of the scores of arXiv 2603.04981, representativeness and diversity, of all rows
between pairs of them. Two keys on all rows are the honest yardstick: no sample can be asked to agree better with the
whole than the whole does with itself. For pictures an epoch of a small convolutional network is timed in the same
process.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

# Read once, as torch is loaded: where other programs want the same cores, spinning slows these small steps tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import pysel
from bench import datasets
from pysel.sae import Rows, TopKSAE, train_sae
from pysel.selection.features import pca

FORMS: dict[str, dict[str, Any]] = {
    "512 factors": {"num_factors": 512, "k": 16},
    "1024 factors": {"num_factors": 1024, "k": 16},
    "512 factors, abs, tied, dead": {
        "num_factors": 512,
        "k": 16,
        "activation": "abs",
        "tied": True,
        "revive": "dead",
    },
}
COMMON_SHARE = 0.1  # of the live units are common ones


class Problem(NamedTuple):
    """Features, and the classes that they are of."""

    features: Tensor  # [N, d]
    labels: Tensor  # [N]
    num_classes: int


def problem(name: str) -> Problem:
    """A data set and what is taken for its features."""
    data = datasets.load("flights" if name == "flights" else "fashion-mnist")
    features = data.train_x.flatten(1)
    if name == "principal components":
        features = pca(features, 64)
    return Problem(features, data.train_y, data.num_classes)


@torch.no_grad()
def scores(sae: TopKSAE, data: Problem, batch_size: int = 8192) -> Tensor:
    """Representativeness and diversity, float64 [N, 2], in two passes over the features."""
    rows = Rows(data.features, "scores", "features")
    by_class = torch.zeros(data.num_classes, sae.num_factors, dtype=torch.int64)
    for batch, labels in zip(rows.batches(batch_size), data.labels.split(batch_size), strict=True):
        values, indices = sae.encode(batch)
        by_class += pysel.factor_counts(
            values.abs(), indices, sae.num_factors, groups=labels, num_groups=data.num_classes
        )
    count, classes = by_class.sum(0), (by_class > 0).sum(0)
    common = count.argsort(descending=True, stable=True)[: max(1, int(COMMON_SHARE * int((count > 0).sum())))]
    tables = torch.zeros(2, sae.num_factors, dtype=torch.float64)
    tables[0, common] = 1 / classes[common].clamp_min(1).double()
    tables[1] = 1 / count.clamp_min(1).double()
    found = []
    for batch in rows.batches(batch_size):
        values, indices = sae.encode(batch)
        found.append(pysel.factor_scores(values.abs(), indices, tables))
    return torch.cat(found)


def measure(data: Problem, form: dict[str, Any], max_rows: int | None, key: int) -> tuple[dict[str, Any], Tensor]:
    """Train one autoencoder and score with it."""
    limit = {} if max_rows == 0 else {"max_rows": max_rows}
    began = time.perf_counter()
    sae, report = train_sae(data.features, key=key, **limit, **form)
    trained = time.perf_counter()
    table = scores(sae, data)
    record = {
        "train_seconds": round(trained - began, 2),
        "score_seconds": round(time.perf_counter() - trained, 2),
        "explained_variance": round(report.explained_variance, 4),
        "dead": report.dead,
        "epochs": len(report.losses),
        "correlation_of_both_scores": round(float(spearmanr(*table.T).statistic), 3),
    }
    return record, table


def epoch_of_the_demo() -> float:
    """Seconds of one pass of the demo's network over Fashion-MNIST."""
    data = datasets.load("fashion-mnist")
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, data.num_classes),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    began = time.perf_counter()
    for rows in torch.randperm(len(data.train_y)).split(256):
        optimiser.zero_grad()
        F.cross_entropy(model(data.train_x[rows]), data.train_y[rows]).backward()
        optimiser.step()
    return round(time.perf_counter() - began, 2)


def run(name: str) -> dict[str, Any]:
    """All forms on one data set."""
    data = problem(name)
    n = len(data.features)
    sizes = {"all": None, "tenth": n // 10, "default": 0}
    result: dict[str, Any] = {"rows": n, "width": data.features.size(1), "forms": {}}
    if name != "flights":
        result["demo_epoch_seconds"] = epoch_of_the_demo()
    for form_name, form in FORMS.items():
        made = {
            f"{size}, key {key}": measure(data, form, rows, key)
            for size, rows in sizes.items()
            for key in ((0,) if size == "tenth" else (0, 1))
        }

        def agreement(a: str, b: str, made: dict[str, Any] = made) -> dict[str, float]:
            (_, first), (_, second) = made[a], made[b]
            return {
                score: round(float(spearmanr(first[:, i], second[:, i]).statistic), 3)
                for i, score in enumerate(("representativeness", "diversity"))
            }

        result["forms"][form_name] = {
            "runs": {run_name: record for run_name, (record, _) in made.items()},
            "rank_correlation": {
                "all rows, two keys": agreement("all, key 0", "all, key 1"),
                "a tenth against all, one key": agreement("tenth, key 0", "all, key 0"),
                "a tenth against all, two keys": agreement("tenth, key 0", "all, key 1"),
                "the default sample against all, one key": agreement("default, key 0", "all, key 0"),
                "the default sample, two keys": agreement("default, key 0", "default, key 1"),
            },
        }
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.factors", description=__doc__.splitlines()[0])
    names = ("flights", "principal components", "pixels")
    parser.add_argument("--only", choices=names, action="append", help="one of the data sets; all by default")
    parser.add_argument("--out", type=Path, help="write the JSON to this file, too")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "data": {}}
    for name in options.only or names:
        result["data"][name] = run(name)
    result["load_average"] = round(os.getloadavg()[1], 1)  # above the number of cores, seconds say little
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
