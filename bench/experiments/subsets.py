"""One subset for all of training: ASSS, its rivals, and what each is worth where labels are wrong.

    python -m bench.experiments.subsets           what is missing from bench/results/subsets.json, for 90 minutes
    python -m bench.experiments.subsets --only "diamonds/*/0.3/*/0" --list
    python -m bench.experiments.subsets_report    what is there, as bench/results/SUBSETS.md and pictures

A subset is chosen from each table, 0, 20 or 40 % of whose labels were drawn again (30 % of Fashion-MNIST's). A final
learner is trained on it from scratch: a perceptron, for as many epochs as the full data get, or gradient-boosted trees.
All subsets of a size take the same steps, and so does "fewer epochs" of everything.
Weighters train on all of the data for those steps. PRR is the subset's test metric, accuracy or R^2, over the full
data's; only the second is given all the steps. Nothing is tuned: methods have their defaults.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, as torch is loaded

import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from torch import Tensor, nn
from tqdm import tqdm

import pysel
from bench.datasets import DataError
from bench.experiments.run import load, save
from bench.experiments.tables import TABLES, Table, table
from pysel.selection import (
    ASSS,
    KMeans,
    MetaWeighter,
    NearestNeighbourThinning,
    ScoreSelector,
    StaticRandom,
    class_families,
    el2n,
    low_loss,
    subset_size,
)
from pysel.selection.learned.lookahead import default_loss

RESULTS = Path("bench/results/subsets.json")
NOISES = {"*": (0.2, 0.0, 0.4), "fashion-mnist": (0.3, 0.0)}  # shares of the labels that are drawn again, by table
KEEPS = (0.3, 0.5, 0.1, 0.05)
FULL = "full data"  # what the others are compared with, at keep ratio 1


@dataclass(frozen=True)
class Settings:
    """What a record depends on besides its name."""

    rows: int = 20_000
    epochs: int = 20
    batch_size: int = 256
    lr: float = 3e-3
    hidden: int = 64  # units of the perceptron
    proxy_epochs: int = 4  # of the networks whose losses and predictions score samples


@dataclass(frozen=True)
class Setting:
    """A task and what methods may use."""

    task: Table
    seed: int
    keep_ratio: float
    settings: Settings

    @property
    def key(self) -> Tensor:
        return pysel.key(self.seed)

    @property
    def labels(self) -> Tensor | None:
        return self.task.train_y if self.task.num_classes else None

    def network(self, number: int = 0) -> nn.Module:
        """A perceptron with one hidden layer; a function of the seed and the number."""
        task, hidden = self.task, self.settings.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000 * number + self.seed)
            return nn.Sequential(nn.Linear(task.train_x.size(1), hidden), nn.ReLU(), nn.Linear(hidden, task.outputs))

    def train(
        self,
        rows: Tensor,
        steps: int,
        *,
        number: int = 0,
        weigh: Callable[[nn.Module, Tensor, Any], Tensor] | None = None,
    ) -> nn.Module:
        """A network after so many steps on those rows; the learning rate falls to zero."""
        network, settings, task = self.network(number), self.settings, self.task
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
        loss = default_loss(task.train_y)
        done, epoch = 0, 0
        while done < steps:
            order = rows[pysel.permutation(len(rows), key=pysel.fold_in(pysel.key(7_000 + self.seed), epoch))]
            for batch in order.split(settings.batch_size)[: steps - done]:
                w = 1.0 if weigh is None else weigh(network, batch, optimiser)
                optimiser.zero_grad()
                (w * loss(network(task.train_x[batch]), task.train_y[batch])).mean().backward()
                optimiser.step()
                schedule.step()
                done += 1
            epoch += 1
        return network

    def steps(self, samples: int, epochs: int) -> int:
        return epochs * -(-samples // self.settings.batch_size)

    def everything(self) -> Tensor:
        return torch.arange(len(self.task.train_y))

    def judged(self, rows: Tensor, number: int = 0) -> Tensor:
        """Outputs for all training rows of a network that a few epochs on some of them have made."""
        network = self.train(rows, self.steps(len(rows), self.settings.proxy_epochs), number=number)
        with torch.no_grad():
            return network(self.task.train_x)

    def crossed(self) -> Tensor:
        """Outputs for each row of a network that has not seen it: two halves, each judged by the other's."""
        first = pysel.permutation(len(self.task.train_y), key=pysel.fold_in(self.key, 1)) % 2 == 0
        halves = [self.judged(torch.nonzero(half).flatten(), number) for number, half in enumerate((first, ~first))]
        return torch.where(first[:, None], halves[1], halves[0])


Chosen = Tensor | Callable[[nn.Module, Tensor, Any], Tensor]  # rows, or a weight for each row of a batch


def _asss(setting: Setting, make: Callable[..., ASSS] = ASSS, **options: Any) -> Tensor:
    fitted = make(setting.keep_ratio, key=setting.key, **options)
    return fitted.fit(setting.task.train_x, setting.task.train_y, setting.network, labels=setting.labels).select()


def _random(setting: Setting, *, stratified: bool = False) -> Tensor:
    labels = setting.labels if stratified else None
    return StaticRandom(len(setting.task.train_y), setting.keep_ratio, labels=labels, key=setting.key).select()


def _kmeans(setting: Setting) -> Tensor:
    clusters = min(100, subset_size(setting.keep_ratio, len(setting.task.train_y)))
    return KMeans(setting.task.train_x, setting.keep_ratio, clusters, key=setting.key).select()


def _small_loss(setting: Setting) -> Tensor:
    losses = default_loss(setting.task.train_y)(setting.judged(setting.everything()), setting.task.train_y)
    return ScoreSelector(losses, setting.keep_ratio, largest=False, labels=setting.labels).select()


def _el2n(setting: Setting) -> Tensor:
    outputs, y = setting.judged(setting.everything()), setting.task.train_y
    scores = el2n(outputs, y) if setting.task.num_classes else (outputs[:, 0] - y).abs()
    return ScoreSelector(scores, setting.keep_ratio).select()


def _confident(setting: Setting) -> Tensor:
    """Confident learning (Northcutt et al., arXiv 1911.00068), ranked: how much surer of the given label a network that
    has not seen the sample is than it is on average of samples of that class, less the same of the likeliest other."""
    y = setting.task.train_y
    p = torch.softmax(setting.crossed(), 1)
    mean = torch.stack([p[y == c, c].mean() if bool((y == c).any()) else p.new_ones(()) for c in range(p.size(1))])
    surer = p - mean
    own = surer.gather(1, y[:, None])[:, 0]
    others = surer.scatter(1, y[:, None], -torch.inf).amax(1)
    return ScoreSelector(own - others, setting.keep_ratio, labels=setting.labels).select()


def _weighter(setting: Setting, *, families: bool = False) -> Chosen:
    """MW-Net or CMW-Net on the low-loss samples of each class, as many as a batch, drawn anew now and then."""
    task, settings = setting.task, setting.settings
    loss = default_loss(task.train_y)
    groups = class_families(torch.bincount(task.train_y, minlength=task.num_classes)) if families else None
    weighter = MetaWeighter(families=groups, normalise=families, key=setting.key)
    refresh, state = -(-len(task.train_y) // settings.batch_size), {"step": 0, "meta": torch.empty(0)}

    def weigh(network: nn.Module, batch: Tensor, optimiser: torch.optim.Optimizer) -> Tensor:
        x, y = task.train_x[batch], task.train_y[batch]
        if state["step"] % refresh == 0:
            with torch.no_grad():
                losses = loss(network(task.train_x), task.train_y)
            share = settings.batch_size // (task.num_classes or 1)
            state["meta"] = low_loss(losses, task.train_y, per_class=max(1, share))
        state["step"] += 1
        meta = state["meta"]
        weighter.meta_step(network, (x, y), (task.train_x[meta], task.train_y[meta]), optimiser)
        with torch.no_grad():
            return weighter.weigh(loss(network(x), y), None if groups is None else y)

    return weigh


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    choose: Callable[[Setting], Chosen]
    classes_only: bool = False
    ablation: bool = False  # of ASSS: for 30 % of the commoner damage, by perceptrons
    blind: bool = False  # sees inputs only: one choice, however many labels are wrong
    at: tuple[float, ...] = KEEPS


METHODS: dict[str, Method] = {
    FULL: Method(Setting.everything, at=(1.0,)),
    "fewer epochs": Method(Setting.everything),
    "random": Method(_random),
    "stratified random": Method(partial(_random, stratified=True), classes_only=True),
    "k-means": Method(_kmeans, blind=True, at=(0.3,)),
    "nearest-neighbour thinning": Method(
        lambda s: NearestNeighbourThinning(s.task.train_x, s.keep_ratio).select(), blind=True, at=(0.3,)
    ),
    "EL2N": Method(_el2n),
    "small loss": Method(_small_loss),
    "confident learning": Method(_confident, classes_only=True),
    "MW-Net": Method(_weighter),
    "CMW-Net": Method(partial(_weighter, families=True), classes_only=True, at=(0.3,)),
    "ASSS": Method(_asss),
    "ASSS, published": Method(partial(_asss, make=ASSS.published), at=(0.3,)),
    "ASSS, best only": Method(partial(_asss, pool=None), at=(0.3,)),
}
for _name, _options in {
    "best only, not normalised": {"pool": None, "normalise": False},
    "input": {"attenuation": "input"},
    "input, best only": {"attenuation": "input", "pool": None},
    "network with labels": {"selector": "network", "see_labels": True},
    "k-hot": {"gate": "khot"},
    "lookahead": {"fidelity": "lookahead"},
    "lookahead, last layer": {"fidelity": "lookahead", "layers": "last"},
    "pool of 80 %": {"pool": 0.8},
    "20 epochs": {"epochs": 20},
    "adversarial, best only": {"game": "adversarial", "pool": None},
}.items():
    METHODS[f"ASSS, {_name}"] = Method(partial(_asss, **_options), ablation=True, at=(0.3,))
LEARNERS = ("perceptron", "trees")
NOT_FOR_TREES = ("fewer epochs", "MW-Net", "CMW-Net")  # which take a subset, and no steps


def metric(outputs: Tensor, y: Tensor) -> float:
    """Accuracy of classes [M, C], R^2 of numbers [M]."""
    if not y.is_floating_point():
        return float((outputs.argmax(1) == y).double().mean())
    return 1 - float((outputs.reshape(-1) - y).double().square().sum() / (y - y.mean()).double().square().sum())


def _trees(task: Table, rows: Tensor, seed: int) -> float:
    make = HistGradientBoostingClassifier if task.num_classes else HistGradientBoostingRegressor
    model = make(random_state=seed).fit(task.train_x[rows].numpy(), task.train_y[rows].numpy())
    predicted = torch.from_numpy(model.predict(task.test_x.numpy()))
    if task.num_classes:
        return float((predicted == task.test_y).double().mean())
    return metric(predicted, task.test_y)


def choose(setting: Setting, method: str) -> tuple[Chosen, float]:
    """Rows or weights, and the seconds that the choice took."""
    start = time.process_time()
    chosen = METHODS[method].choose(setting)
    return chosen, time.process_time() - start


def run(setting: Setting, method: str, learner: str, chosen: tuple[Chosen, float] | None = None) -> dict[str, Any]:
    """Choose, unless that is done, train, test: what came of it."""
    task, settings = setting.task, setting.settings
    choice, choosing = choose(setting, method) if chosen is None else chosen
    weigh = None if isinstance(choice, Tensor) else choice
    rows = choice if isinstance(choice, Tensor) else setting.everything()
    size = len(rows) if method == FULL else subset_size(setting.keep_ratio, len(task.train_y))
    start = time.process_time()
    if learner == "trees":
        value = _trees(task, rows, setting.seed)
    else:
        network = setting.train(rows, setting.steps(size, settings.epochs), weigh=weigh)
        with torch.no_grad():
            value = metric(network(task.test_x), task.test_y)
    return {
        "metric": round(value, 5),
        "kept": len(rows),
        "wrong": round(float(task.wrong[rows].double().mean()), 4),
        "choose_s": round(choosing, 3),
        "train_s": round(time.process_time() - start, 3),
    }


def names(seeds: int) -> list[str]:
    """All records, those most wanted first: table/noise/keep ratio/method/learner/seed."""

    def stage(name: str, keep: float, level: int, method: str, learner: str) -> int | None:
        of = METHODS[method]
        if of.ablation and (level or learner == "trees"):
            return None
        if learner == "trees" and (method in NOT_FOR_TREES or name == "fashion-mnist"):  # 784 pixels take minutes
            return None
        return 2 if of.ablation else 0 if keep in (1.0, KEEPS[0]) else 3 if learner == "trees" else 1

    return [
        f"{name}/{noises[level]:g}/{keep:g}/{method}/{learner}/{seed}"
        for now in range(4)
        for keep in (1.0, *KEEPS)
        for seed in range(seeds)
        for name in TABLES
        for noises in [NOISES.get(name, NOISES["*"])]
        for level in range(len(noises))
        for method in METHODS
        for learner in LEARNERS
        if keep in METHODS[method].at and stage(name, keep, level, method, learner) == now
    ]


@lru_cache(maxsize=1)
def _table(name: str, noise: str, seed: str, rows: int) -> Table:
    return table(name, int(seed), noise=float(noise), rows=rows)


def _make(records: list[str], settings: Settings, until: float) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Those records for which there was time, and the tables that are not there, with why."""
    made: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    choices: dict[tuple[str, ...], tuple[Chosen, float]] = {}
    for record in records:
        name, noise, keep, method, learner, seed = record.split("/")
        if time.time() > until or name in skipped:
            continue
        try:
            task = _table(name, noise, seed, settings.rows)
        except DataError as error:
            skipped[name] = str(error)
            continue
        if METHODS[method].classes_only and not task.num_classes:
            continue
        setting = Setting(task, int(seed), float(keep), settings)
        which = (method,) if METHODS[method].blind else (method, noise)
        if which not in choices:
            choices[which] = choose(setting, method)
        made[record] = run(setting, method, learner, choices[which])
    return made, skipped


def _place(record: str) -> tuple[str, str, str]:
    name, _, keep, _, _, seed = record.split("/")
    return name, keep, seed


def execute(wanted: list[str], path: Path, settings: Settings, *, workers: int = 2, until: float = math.inf) -> None:
    """Make the records that ``path`` lacks, and write those of a table, keep ratio and seed as they come.

    Args:
        wanted: records as `names` has them.
        path: the results file.
        settings: of all its records.
        workers: processes of one thread; 0 trains in this one.
        until: no run begins after this time.

    Raises:
        ValueError: the records there were made with other settings.
    """
    results = load(path)
    if results["records"] and results["settings"] != asdict(settings):
        raise ValueError(f"{path}: the records were made with other settings, {results['settings']}")
    results["settings"], results["scenarios"], results["skipped"] = asdict(settings), list(TABLES), {}
    wanted = [record for record in wanted if record not in results["records"]]
    places = [list(records) for _, records in groupby(wanted, _place)]
    make = partial(_make, settings=settings, until=until)
    with ExitStack() as stack:
        answers: Iterable[Any] = map(make, places)
        if workers:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))
            )
            answers = pool.map(make, places)
        for made, skipped in tqdm(answers, total=len(places), unit="place"):
            results["records"].update(made)
            results["skipped"].update(skipped)
            save(path, results)
    save(path, results)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.subsets", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of table/noise/keep/method/learner/seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=90, help="start nothing new after so long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=Settings.rows)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="only say which records there would be")
    options = parser.parse_args(arguments)
    wanted = [name for name in names(options.seeds) if any(fnmatch(name, pattern) for pattern in options.only)]
    if options.list:
        print("\n".join(wanted))
        return
    until = time.time() + 60 * options.minutes
    execute(wanted, options.results, Settings(rows=options.rows), workers=options.workers, until=until)
    made = load(options.results)["records"]
    print(
        f"{options.results} has {sum(name in made for name in wanted)} of {len(wanted)} records; "
        "methods for classes have none on real targets"
    )


if __name__ == "__main__":
    main()
