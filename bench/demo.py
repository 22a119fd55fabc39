"""The demo: how fast the ops are, and when selection pays, in two minutes on two cores.

    python -m bench.demo            three seeds
    python -m bench.demo --quick    one seed of a shorter training: half a minute, to see that all of it works

First the ops against the plain PyTorch that they replace, as `bench.run` measures them. Then networks are trained on
real data, clean and with 30 % of the labels drawn again, under the protocol of `bench.experiments`: with all of the
data, and in several ways for a fraction of the steps. The table's last column says what a difference means.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from statistics import fmean

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, as torch is loaded

import pysel
from bench import datasets, run
from bench.experiments import report
from bench.experiments.protocol import Settings
from bench.experiments.run import Run, execute
from bench.report import Record, median, speed_up

OPS = ("gumbel_softmax soft", "topk", "select", "weighted_sample index", "usage_step_ log", "permutation")
METHODS = ("full data", "full data, fewer epochs", "RS2", "DynamicSelector", "ASSS")  # the last where labels are wrong
SAME_STEPS = METHODS[1]  # what the others are compared with


def measure_ops(pattern: str) -> list[Record]:
    """The ops of the chart against eager PyTorch, in a process of their own."""
    options = argparse.Namespace(only=pattern, contenders=["pysel", "eager"], quick=True, device="cpu", variant=None)
    results: Record = {"records": []}
    for results in run.measure_all(options):  # noqa: B007
        pass
    return results["records"]


def ops_table(records: list[Record]) -> str:
    lines = [f"{'op':<24} {'pysel':>10} {'PyTorch':>10} {'speed-up':>9}   replaces"]
    lines.append("-" * (len(lines[0]) + 12))
    for r in records:
        ours, eager = (f"{1e3 * median(r, name):.1f} ms" for name in ("pysel", "eager"))
        lines.append(f"{r['case']:<24} {ours:>10} {eager:>10} {speed_up(r, 'eager'):>8.1f}x   {r['eager']}")
    return "\n".join(lines)


def meaning(runs: report.Runs, method: str) -> str:
    """What a method's difference to full data for as many steps says."""
    if method == SAME_STEPS or SAME_STEPS not in runs:
        return "what the others are compared with"
    steps = {name: fmean(r["steps"] for r in runs[name].values()) for name in (method, SAME_STEPS)}
    cost = (
        "" if steps[method] == steps[SAME_STEPS] else f", for {steps[method] / steps[SAME_STEPS]:.1f} times the steps"
    )
    mean, error = report.difference(runs, method, SAME_STEPS)
    if math.isnan(error):
        return f"{mean:+.1f} points, of one seed: says nothing{cost}"
    if abs(mean) <= 2 * error:
        return f"{round(mean, 1) + 0.0:+.1f} points, no difference that {len(runs[method])} seeds could show{cost}"
    return f"{abs(mean):.1f} points {'better' if mean > 0 else 'worse'}, {abs(mean) / error:.0f} standard errors{cost}"


def training_table(runs: report.Runs) -> str:
    lines = [
        f"{'method':<24} {'test accuracy':>16} {'steps':>6} {'kept':>5} {'training':>9} {'selecting':>10}   "
        "the difference"
    ]
    lines.append("-" * (len(lines[0]) + 30))
    for method, by_seed in runs.items():
        records = by_seed.values()
        accuracy, error = report.mean_error([100 * r["accuracy"] for r in records])
        shown = f"{accuracy:.2f} %" if math.isnan(error) else f"{accuracy:.2f} ± {error:.2f} %"
        steps, kept, training, selecting = (
            fmean(r[name] for r in records) for name in ("steps", "ratio", "train_s", "select_s")
        )
        lines.append(
            f"{method:<24} {shown:>16} {steps:>6.0f} {kept:>5.2f} {training:>7.1f} s {selecting:>8.2f} s   "
            f"{meaning(runs, method)}"
        )
    return "\n".join(lines)


def draw(records: list[Record], places: dict[tuple[str, str], report.Runs], folder: Path) -> list[Path]:
    """The ops' chart, and each method's accuracy on each data set."""
    from matplotlib.figure import Figure

    paths = [folder / "ops.png", folder / "training.png"]
    figure = Figure(figsize=(7, 0.6 + 0.45 * len(records)), layout="constrained")
    axes = figure.subplots()
    ratios = [speed_up(r, "eager") or 0.0 for r in records]
    bars = axes.barh([f"{r['case']}\nfor {r['eager']}" for r in records], ratios, color="tab:red")
    axes.bar_label(bars, fmt=" %.1fx")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set(title="pysel's speed over PyTorch's, two threads", xlim=(0, 1.12 * max(ratios)))
    figure.savefig(paths[0], dpi=120)

    figure = Figure(figsize=(5 * len(places), 3.2), layout="constrained")
    row = figure.subplots(1, len(places), squeeze=False)[0]
    for axes, ((_, scenario), runs) in zip(row, places.items(), strict=True):
        for y, by_seed in enumerate(runs.values()):
            mean, error = report.mean_error([100 * r["accuracy"] for r in by_seed.values()])
            axes.errorbar(mean, y, xerr=0 if math.isnan(error) else error, fmt="o", color="C3" if y > 2 else "C0")
        axes.set(title=scenario, xlabel="test accuracy, %", yticks=range(len(runs)), yticklabels=list(runs))
        axes.invert_yaxis()
    figure.savefig(paths[1], dpi=120)
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer epochs")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where pictures and JSON go")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    print("pysel", ", ".join(f"{name} {value}" for name, value in pysel.build_info().items()))
    options.out.mkdir(parents=True, exist_ok=True)

    print("\nThe ops against the plain PyTorch that they replace")
    names = OPS[1:3] if options.quick else OPS
    records = measure_ops("^(" + "|".join(names) + ")$")
    (options.out / "ops.json").write_text(json.dumps(records, indent=1) + "\n")
    print("\n" + ops_table(records))

    pictures = datasets.find_fashion_mnist(datasets.fashion_mnist_directory()) is not None
    clean = ("clean", 20) if pictures else ("diamonds", 40)
    data = "20,000 pictures of Fashion-MNIST" if pictures else "20,000 diamonds, the decile of their price"
    print(
        f"\nTraining with and without selection: {data}; and 20,000 diamonds, the decile of their price, where 30 % of "
        "the labels were drawn again"
    )
    path = options.out / "training.json"
    path.unlink(missing_ok=True)
    groups = [
        [Run(scenario, Settings(epochs=3 if options.quick else epochs), seed, method) for method in methods]
        for seed in range(1 if options.quick else 3)
        for (scenario, epochs), methods in ((clean, METHODS[:-1]), (("diamonds, noise", 40), METHODS))
    ]
    try:
        execute(groups, path)
    except datasets.DataError as error:
        parser.exit(1, f"error: {error}\n")
    results, places = report.read(path)
    for (settings, scenario), runs in places.items():
        told = results["settings"][settings]
        print(f"\n{scenario}, {told['epochs']} epochs, keep_ratio {told['keep_ratio']}\n{training_table(runs)}")
    print(
        "\n± is one standard error over seeds; seconds are of processor time; selecting includes all that a method "
        "needs before training."
    )
    for picture in draw(records, places, options.out):
        print(picture)
    print(f"Total time {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
