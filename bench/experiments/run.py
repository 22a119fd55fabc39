"""Run what is missing from the results file: python -m bench.experiments.run

Two processes of one thread each train side by side. Every record is written as it comes, so an interrupted run goes on
where it stopped; a record is never made twice. --redo forgets records first. The order is that of the stages below:
what is there at any time makes a table, which `python -m bench.experiments.report` writes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, as torch is loaded

import torch
from tqdm import tqdm

from bench.datasets import DataError
from bench.experiments import methods, protocol, report, rivals
from bench.experiments.scenarios import SCENARIOS
from bench.experiments.setting import Settings

RESULTS = Path("bench/results/experiments.json")
TABLES = {"experiments": methods.METHODS, "leaderboard": rivals.METHODS}
SHORT, LONG = Settings(epochs=10), Settings(epochs=40)
PICTURES = ("clean", "noise", "long tail", "duplicates")
STAGES: list[tuple[Settings, tuple[str, ...]]] = [
    (SHORT, PICTURES),
    (SHORT, ("diamonds",)),
    (LONG, PICTURES),
    (LONG, ("diamonds", "diamonds, noise")),
    (SHORT, ("flights", "text")),
    (LONG, ("flights", "text")),
]


class Run(NamedTuple):
    """What a record is made from."""

    scenario: str
    settings: Settings
    seed: int
    method: str
    table: str = "experiments"

    @property
    def name(self) -> str:
        """As --only and --redo know it."""
        return f"{self.scenario}/{self.settings.epochs}/{self.method}/{self.seed}"

    @property
    def key(self) -> str:
        """As the results file knows it."""
        return f"{self.scenario}/{self.settings.name}/{self.method}/{self.seed}"


Answer = tuple[Run, dict[str, Any] | str]  # a record, or why the scenario is skipped


def plan(seeds: int, stages: list[tuple[Settings, tuple[str, ...]]] = STAGES) -> list[list[Run]]:
    """All runs, those that share a setting together."""
    return [
        [Run(scenario, settings, seed, method) for method in methods.METHODS]
        for settings, scenarios in stages
        for seed in range(seeds)
        for scenario in scenarios
    ]


def load(path: Path) -> dict[str, Any]:
    """The results file, or an empty one's content."""
    if not path.exists():
        return {"methods": {}, "scenarios": [], "settings": {}, "skipped": {}, "records": {}}
    return json.loads(path.read_text())


def save(path: Path, results: dict[str, Any]) -> None:
    """Write the results file, a record a line, so that no reader ever sees half of it."""
    records = sorted(results["records"].items())
    lines = [f"{json.dumps(key)}:{json.dumps(record, separators=(',', ':'))}" for key, record in records]
    head = {name: part for name, part in results.items() if name != "records"}
    text = json.dumps(head, indent=1)[:-2] + ',\n "records": {\n' + ",\n".join(lines) + "\n}\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _train(groups: Iterable[list[Run]], until: float) -> Iterator[Answer]:
    for group in groups:
        for run in group:
            if time.time() > until:
                return
            try:
                method = TABLES[run.table][run.method]
                yield run, protocol.run(run.scenario, run.method, method, run.seed, run.settings)
            except DataError as error:
                yield run, str(error)
                break


def _work(todo: multiprocessing.Queue, done: multiprocessing.Queue, until: float) -> None:
    torch.set_num_threads(1)
    try:
        for answer in _train(iter(todo.get, None), until):
            done.put(answer)
        done.put(None)
    except Exception as error:
        done.put(error)


def _in_parallel(groups: list[list[Run]], workers: int, until: float) -> Iterator[Answer]:
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for group in [*groups, *[None] * workers]:
        todo.put(group)
    processes = [context.Process(target=_work, args=(todo, done, until), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    while workers:
        try:
            answer = done.get(timeout=5)
        except Empty:
            if codes := [process.exitcode for process in processes if process.exitcode]:
                raise RuntimeError(f"a worker ended with exit code {codes[0]}") from None
            continue
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            workers -= 1
        else:
            yield answer


def execute(
    groups: list[list[Run]],
    path: Path,
    *,
    workers: int = 2,
    until: float = math.inf,
    fields: Iterable[str] | None = None,
    head: dict[str, Any] | None = None,
) -> None:
    """Make the records of ``groups`` that ``path`` lacks, and write each as it comes.

    Args:
        groups: runs that share a setting together, the most wanted first.
        path: the results file.
        workers: processes; 0 trains in this one.
        until: no run begins after this time.
        fields: of the records, those to write; default all.
        head: what the file says beside records; default the kinds of methods in `METHODS`.
    """
    results = load(path)
    groups = [[run for run in group if run.key not in results["records"]] for group in groups]
    groups = [group for group in groups if group]
    planned = [run.scenario for group in groups for run in group]
    results |= head or {"methods": {name: method.kind for name, method in methods.METHODS.items()}}
    results["scenarios"] = list(dict.fromkeys([*SCENARIOS, *results["scenarios"], *planned]))
    results["settings"].update({run.settings.name: asdict(run.settings) for group in groups for run in group})
    answers = _in_parallel(groups, workers, until) if workers else _train(groups, until)
    with tqdm(total=sum(map(len, groups)), unit="run", smoothing=0.05) as bar:
        for run, record in answers:
            if isinstance(record, str):
                results["skipped"][run.scenario] = record
            else:
                results["skipped"].pop(run.scenario, None)
                wanted = record.keys() if fields is None else fields
                results["records"][run.key] = {name: record[name] for name in wanted if name in record}
                bar.set_postfix_str(f"{run.name} {record['accuracy']:.2%}")
                bar.update()
            save(path, results)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.run", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of scenario/epochs/method/seed")
    parser.add_argument("--redo", nargs="+", default=[], help="patterns of records to forget first")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=90, help="start nothing new after so long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)

    def matches(run: Run, patterns: list[str]) -> bool:
        return any(fnmatch(run.name, pattern) for pattern in patterns)

    groups = plan(options.seeds)
    results = load(options.results)
    forgotten = [run.key for group in groups for run in group if matches(run, options.redo)]
    if forgotten:
        results["records"] = {k: record for k, record in results["records"].items() if k not in set(forgotten)}
        save(options.results, results)
    groups = [[run for run in group if matches(run, options.only)] for group in groups]
    try:
        execute(groups, options.results, workers=options.workers, until=time.time() + 60 * options.minutes)
    finally:
        if options.results.exists():
            report.main(["--results", str(options.results)])


if __name__ == "__main__":
    main()
