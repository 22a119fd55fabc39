"""Every method on one table, resumably: python -m bench.experiments.leaderboard

The protocol is that of `bench.experiments.protocol`, with the budget of the share kept and nothing else: "30 % kept"
means 30 % of the steps of 20 epochs on all of the data, for all methods, also for those that end on all of the data.
Records are written one by one, so that a run that is killed goes on where it was; --quick takes a corner of the table.
What is there at the end makes a page, as `python -m bench.experiments.leaderboard_page` does. Where torch finds a GPU
networks are trained there, and CIFAR-10 is a scenario, if PYSEL_DATA names the directory of its binary version.
"""

from __future__ import annotations

import argparse
import time
from fnmatch import fnmatch
from pathlib import Path

from bench.experiments import leaderboard_page, rivals
from bench.experiments.run import Run, execute
from bench.experiments.scenarios import ON_GPU, SCENARIOS
from bench.experiments.setting import DEVICE, Settings
from bench.run import machine

RESULTS, QUICK = Path("bench/results/leaderboard.json"), Path("build/leaderboard-quick.json")
KEEPS = (0.3, 0.1, 0.5, 0.7)
FIELDS = ("accuracy", "balanced", "ratio", "wrong", "train_s", "select_s", "memory_mb")


def plan(seeds: int, *, quick: bool = False) -> list[list[Run]]:
    """All cells; those of a scenario and a seed, which share data, together."""
    scenarios = ("clean", "noise", "diamonds, noise") if quick else tuple(SCENARIOS)
    if DEVICE.type == "cuda" and not quick:
        scenarios += tuple(ON_GPU)
    return [
        [
            Run(scenario, Settings(epochs=5 if quick else 20, keep_ratio=keep, refine=0.0), seed, method, "leaderboard")
            for keep in (KEEPS[:1] if quick else KEEPS)
            for method in rivals.METHODS
        ]
        for seed in range(1 if quick else seeds)
        for scenario in scenarios
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.leaderboard", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help=f"three scenarios, 30 %% kept, one seed, into {QUICK}")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of scenario/share kept/method/seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=180, help="start nothing new after so long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)

    def wanted(run: Run) -> bool:
        name = f"{run.scenario}/{run.settings.keep_ratio}/{run.method}/{run.seed}"
        return any(fnmatch(name, pattern) for pattern in options.only)

    groups = [[run for run in group if wanted(run)] for group in plan(options.seeds, quick=options.quick)]
    path = options.results or (QUICK if options.quick else RESULTS)
    until = time.time() + 60 * options.minutes
    head = {
        "methods": {name: {"kind": of.kind, "source": of.source} for name, of in rivals.METHODS.items()},
        "machine": machine(),
    }
    try:
        execute(groups, path, workers=options.workers, until=until, fields=FIELDS, head=head)
    finally:
        if path.exists():
            leaderboard_page.main(["--results", str(path)])


if __name__ == "__main__":
    main()
