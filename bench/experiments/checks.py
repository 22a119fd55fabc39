"""Methods that are no rows of the leaderboard, in the settings that they are for: python -m bench.experiments.checks

Fashion-MNIST, perceptrons with one hidden layer, five seeds that decide on everything; nothing is tuned.

tasks       Two classes at a time, a memory of 100 samples. A network sees each sample once, 20 at a time, and trains on
            10 of them and on 10 that the memory holds: does it matter what is picked and what is held?
features    2,000 right labels, on features of a network that was trained on 18,000 others, 27 % of them wrong or none:
            does NMTune's loss help a small network on them? Also on test pictures that are blurred.
unlabelled  500 pictures with labels, 19,500 without: how many labels are right that mining gives to those most like a
            class, or those of the highest confidence, and do they help?

A few minutes on two cores. Writes bench/results/checks.json; --page docs/science.md puts the tables there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from bench.experiments import scenarios
from bench.experiments.feeds import looked_at
from bench.experiments.report import mean_error, points, write_page
from bench.run import machine
from pysel.selection import class_centres, mine, nmtune_loss
from pysel.selection.stream import OnlineCoreset, ReplayMemory

RESULTS = Path("bench/results/checks.json")
SEEDS, HIDDEN, CLASSES = 5, 128, 10
TUNED, LABELLED, MINED = 2000, 500, (50, 200, 800)  # pictures, and how many of each class
Found = Iterator[tuple[str, dict[str, float]]]  # a method, and its figures by name


def perceptron(inputs: int, seed: int) -> nn.Sequential:
    """A function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def fit(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    seed: int,
    *,
    epochs: int = 30,
    regulariser: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train by AdamW in batches of 64, as the released NMTune does; the regulariser is one of the inputs."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-len(x) // 64))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(x[batch]), y[batch])
            if regulariser is not None:
                loss = loss + regulariser(x[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
    return network


@torch.no_grad()
def right(network: nn.Module, x: Tensor, y: Tensor, classes: Tensor | None = None) -> float:
    """Percent classified rightly; with ``classes`` of the samples of these, no other taken for possible."""
    if classes is None:
        return 100 * float((network(x).argmax(1) == y).double().mean())
    rows = torch.isin(y, classes)
    return 100 * float((classes[network(x[rows])[:, classes].argmax(1)] == y[rows]).double().mean())


# --- tasks ---


class AtRandom:
    """Picks the first ten: samples come in a random order. Holds them in a `ReplayMemory`."""

    def __init__(self, keep: str, seed: int) -> None:
        self.memory = ReplayMemory(100, keep=keep, key=seed)

    def pick(self, network: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        picked = rows[:10]
        self.memory.add(picked, y[picked])
        return picked

    def end_task(self, network: nn.Module, x: Tensor) -> None:
        pass


class ByGradient:
    """Picks by `OnlineCoreset`; holds what that holds, or the picks at random."""

    def __init__(self, keep: str | None, seed: int) -> None:
        self._coreset = OnlineCoreset(CLASSES, HIDDEN, 100, batch_size=10, key=seed)
        self.memory = ReplayMemory(100, keep=keep, key=seed) if keep else self._coreset.memory

    def pick(self, network: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        logits, hidden = looked_at(network, x[rows])
        picked = rows[self._coreset.offer(logits, y[rows], features=hidden, indices=rows)]
        if self.memory is not self._coreset.memory:
            self.memory.add(picked, y[picked])
        return picked

    def end_task(self, network: nn.Module, x: Tensor) -> None:
        logits, hidden = looked_at(network, x[self._coreset.indices])
        self._coreset.refresh(logits, features=hidden)


def tasks(seed: int) -> Found:
    """Five tasks of two classes each, drawn for the seed."""
    task = scenarios.clean(seed)
    yield "no memory", _in_tasks(task, AtRandom("reservoir", seed), seed, again=0)
    yield "any samples, a reservoir", _in_tasks(task, AtRandom("reservoir", seed), seed)
    yield "any samples, equal classes", _in_tasks(task, AtRandom("balanced", seed), seed)
    yield "OCS's picks, equal classes at random", _in_tasks(task, ByGradient("balanced", seed), seed)
    yield "OCS", _in_tasks(task, ByGradient(None, seed), seed)


def _in_tasks(task: scenarios.Task, chooser: AtRandom | ByGradient, seed: int, again: int = 10) -> dict[str, float]:
    x, y, test = task.train_x, task.train_y, (task.test_x, task.test_y)
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(CLASSES, generator=generator).view(-1, 2)
    network = perceptron(x.size(1), seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    learned = []
    for number, pair in enumerate(pairs):
        rows = torch.nonzero(torch.isin(y, pair)).flatten()
        for arriving in rows[torch.randperm(len(rows), generator=generator)].split(20):
            older = chooser.memory.sample(min(again, len(chooser.memory)) if number else 0)
            batch = torch.cat([chooser.pick(network, x, y, arriving), older])
            optimiser.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimiser.step()
        chooser.end_task(network, x)
        learned.append(right(network, *test, pair))
    last = [right(network, *test, pair) for pair in pairs]
    return {
        "among ten classes, %": right(network, *test),
        "among a task's two, %": sum(last) / len(last),
        "forgotten of that": (sum(learned) - sum(last)) / (len(last) - 1),  # of the last task nothing can be
    }


# --- features ---


class Residual(nn.Module):
    """x + f(x), and a classifier on it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Sequential(nn.Linear(HIDDEN, HIDDEN // 4), nn.ReLU(), nn.Linear(HIDDEN // 4, HIDDEN))
            self.classify = nn.Linear(HIDDEN, CLASSES)

    def z(self, x: Tensor) -> Tensor:
        return x + self.inner(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.z(x))


def features(seed: int) -> Found:
    """The same labelled pictures on features that were learned from right and from wrong labels."""
    for share, make in ((0, scenarios.clean), (27, scenarios.noise)):
        task, known = make(seed), scenarios.clean(seed)
        x, rest = task.train_x, slice(TUNED, None)
        body = fit(perceptron(x.size(1), seed), x[rest], task.train_y[rest], seed)
        blurred = F.avg_pool2d(task.test_x.view(-1, 1, *_side(x)), 3, 1, 1).flatten(1)
        given, test, shifted = (looked_at(body, part)[1] for part in (x[:TUNED], task.test_x, blurred))
        labels = known.train_y[:TUNED]
        small, tuned = Residual(seed), Residual(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            linear = nn.Linear(HIDDEN, CLASSES)
        fit(linear, given, labels, seed)
        fit(small, given, labels, seed)
        fit(tuned, given, labels, seed, regulariser=lambda f, net=tuned: nmtune_loss(f, net.z(f)))
        for name, network in (("linear", linear), ("small network", small), ("small network, NMTune", tuned)):
            found = {"test, %": right(network, test, task.test_y), "blurred, %": right(network, shifted, task.test_y)}
            yield f"{name}; features from {share} % wrong labels", found


def _side(x: Tensor) -> tuple[int, int]:
    side = round(x.size(1) ** 0.5)
    return side, side


# --- unlabelled ---


def unlabelled(seed: int) -> Found:
    """Labels for the pictures that have none, 50, 200 and 800 of each class."""
    task = scenarios.clean(seed)
    x, y, given = task.train_x, task.train_y, slice(LABELLED)
    network = fit(perceptron(x.size(1), seed), x[given], y[given], seed)
    yield "labelled pictures alone", {"test, %": right(network, task.test_x, task.test_y)}
    logits, hidden = looked_at(network, x)
    of = class_centres(hidden[given], y[given])
    best = torch.softmax(logits, 1).max(1)
    for each in MINED:
        mined = mine(hidden[LABELLED:], of.centres, each)
        confident = _of_each(best.values[LABELLED:], best.indices[LABELLED:], each)
        for name, rows, labels in (
            ("mining", mined.indices, of.labels[mined.labels]),
            ("confidence", confident, best.indices[LABELLED:][confident]),
        ):
            rows = rows + LABELLED
            more = torch.cat([x[given], x[rows]]), torch.cat([y[given], labels])
            yield (
                f"{name}, {each} of each class",
                {
                    "test, %": right(fit(perceptron(x.size(1), seed), *more, seed), task.test_x, task.test_y),
                    "labels right, %": 100 * float((labels == y[rows]).double().mean()),
                },
            )


def _of_each(scores: Tensor, labels: Tensor, most: int) -> Tensor:
    """Rows of the largest scores of each label."""
    rows = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    return torch.cat([part[scores[part].topk(min(most, len(part))).indices] for part in rows])


# --- results ---

CHECKS: dict[str, Callable[[int], Found]] = {"tasks": tasks, "features": features, "unlabelled": unlabelled}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Means over seeds and their standard errors, a method a row."""
    columns = list(dict.fromkeys(name for figures in found.values() for name in figures))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, figures in found.items():
        cells = [points(*mean_error(figures[name]), sign="") if name in figures else "" for name in columns]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.checks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), help="measure these; default: those not there yet")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="put the tables into this file, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads only wait for each other on networks this small
    results = json.loads(options.results.read_text()) if options.results.exists() else {"seeds": SEEDS, "checks": {}}
    for check in options.only or [name for name in CHECKS if name not in results["checks"]]:
        found: dict[str, dict[str, list[float]]] = {}
        for seed in tqdm(range(SEEDS), desc=check, unit="seed"):
            for method, figures in CHECKS[check](seed):
                for name, value in figures.items():
                    found.setdefault(method, {}).setdefault(name, []).append(round(value, 3))
        results["checks"][check] = found
        results["machine"] = machine()
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    for check, found in results["checks"].items():
        print(f"{check}\n{table(found)}\n")
        if options.page:
            write_page(options.page, table(found), check)


if __name__ == "__main__":
    main()
