"""Does representativeness select what the data look like? Unbiased MMD^2 between a subset and all of the data.

    python -m bench.experiments.faithfulness            a minute on two cores; prints JSON

For each class-wise share p of Fashion-MNIST the samples of highest representativeness are compared with those of greedy
k-centre and with random ones, as arXiv 2603.04981 does with its first two: squared maximum mean discrepancy to the
whole set (5,000 samples a side at most), RBF kernel exp(-|x - y|^2 / d) on l2-normalised features. Smaller is more like
the whole. Random ones are what an unbiased subset gives: 0 up to chance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor

import pysel
from bench import datasets
from pysel.selection import factor_tables
from pysel.selection.features import pca

SHARES = (0.01, 0.05, 0.1, 0.3, 0.5, 0.7)
SIDE = 5_000


def rbf_sum(x: Tensor, y: Tensor) -> float:
    """Sum of exp(-|x_i - y_j|^2 / d) over all pairs."""
    total = 0.0
    for part in x.split(1024):
        square = part.square().sum(1)[:, None] + y.square().sum(1) - 2 * part @ y.mT
        total += float(torch.exp(-square.clamp_min(0) / x.size(1)).sum(dtype=torch.float64))
    return total


def mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al., JMLR 13, 2012)."""
    n, m = len(x), len(y)
    within = (rbf_sum(x, x) - n) / (n * (n - 1)) + (rbf_sum(y, y) - m) / (m * (m - 1))
    return within - 2 * rbf_sum(x, y) / (n * m)


def k_centre(x: Tensor, k: int, first: int) -> Tensor:
    """Greedy k-centre: again and again the row farthest from all chosen (Sener and Savarese, arXiv 1708.00489)."""
    chosen = torch.empty(k, dtype=torch.int64)
    distance = torch.full((len(x),), torch.inf, dtype=x.dtype)
    at = first
    for j in range(k):
        chosen[j] = at
        distance = torch.minimum(distance, (x - x[at]).square().sum(1))
        at = int(distance.argmax())
    return chosen


def of_each_class(labels: Tensor, share: float, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """What ``choose`` takes of each class's rows, as many as its share says."""
    parts = []
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        parts.append(rows[choose(rows, max(1, round(share * len(rows))))])
    return torch.cat(parts)


def run(num_samples: int, seed: int = 0) -> dict[str, object]:
    data = datasets.load("fashion-mnist")
    sae_key, data_key, random_key, side_key = pysel.split(pysel.key(seed), 4)
    chosen = pysel.permutation(len(data.train_y), key=data_key, stop=num_samples)
    features, labels = pca(data.train_x[chosen], 64), data.train_y[chosen]
    sae, report = pysel.nn.train_sae(features, 1024, 16, key=sae_key, progress=None)
    tables = factor_tables(sae, features, labels=labels)
    unit = torch.nn.functional.normalize(features, dim=1)
    uniform = pysel.gumbel_sigmoid(torch.zeros(num_samples), key=random_key)

    def side(rows: Tensor) -> Tensor:
        if len(rows) <= SIDE:
            return unit[rows]
        return unit[rows[pysel.permutation(len(rows), key=side_key, stop=SIDE)]]

    methods: dict[str, Callable[[Tensor, int], Tensor]] = {
        "representativeness": lambda rows, k: pysel.select(tables.representativeness[rows], k, key=random_key),
        "diversity": lambda rows, k: pysel.select(tables.diversity[rows], k, key=random_key),
        "k-centre": lambda rows, k: k_centre(unit[rows], k, 0),
        "random": lambda rows, k: pysel.select(uniform[rows], k),
    }
    whole = side(torch.arange(num_samples))
    results = {
        name: {f"{share:g}": mmd2(side(of_each_class(labels, share, choose)), whole) for share in SHARES}
        for name, choose in methods.items()
    }
    return {"num_samples": num_samples, "seed": seed, "sae": str(report), "mmd2": results}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.samples, options.seed), indent=2))
