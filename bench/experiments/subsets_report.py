"""Write bench/results/SUBSETS.md and its pictures from what `bench.experiments.subsets` has measured.

python -m bench.experiments.subsets_report
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.experiments.subsets import FULL, KEEPS, METHODS, RESULTS

OURS = "ASSS"
SHOWN = ("fewer epochs", "random", "EL2N", "small loss", "confident learning", "MW-Net", "ASSS, best only", OURS)
Runs = dict[str, dict[str, float]]  # PRR in % by method and seed; of FULL, the metric
Columns = dict[tuple[str, str], Runs]  # by table and noise

INTRODUCTION = """# One subset for all of training

`python -m bench.experiments.subsets_report` makes this page of subsets.json, which `make subsets` fills. PRR is the
test metric, accuracy or R^2, after training on the subset over that after training on all of the data, in %, with the
standard error over seeds; where those are not five, their number is in brackets. All that keep the same share take the
same steps, "fewer epochs" and the weighters on all of the data; "full data", whose line is the metric itself in %,
takes all of them. Every method has its defaults, and a seed its own rows, wrong labels, network and order.
"""


def columns_of(results: dict[str, Any], keep: float, learner: str) -> Columns:
    """What was measured for that share and learner, next to the full data's metric."""
    metrics: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for record, made in results["records"].items():
        name, noise, kept, method, by, seed = record.split("/")
        if by == learner and float(kept) in (keep, 1.0):
            metrics.setdefault((name, noise), {}).setdefault(method, {})[seed] = made["metric"]
    columns: Columns = {}
    for place, by_method in metrics.items():
        full = {seed: value for seed, value in by_method.pop(FULL, {}).items() if value > 0}  # R^2 may be below
        runs = {
            method: {seed: 100 * value / full[seed] for seed, value in sorted(values.items()) if seed in full}
            for method, values in by_method.items()
        }
        if any(runs.values()):
            columns[place] = {FULL: {seed: 100 * value for seed, value in full.items()}, **runs}
    return columns


def mean_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error; the latter of one value is not a number."""
    return fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def ahead(runs: Runs, method: str, other: str) -> tuple[float, float] | None:
    """Points of PRR that a method is ahead of another, seed by seed, and the standard error."""
    seeds = runs.get(method, {}).keys() & runs.get(other, {}).keys()
    return mean_error([runs[method][s] - runs[other][s] for s in sorted(seeds)]) if len(seeds) > 1 else None


def table(columns: Columns, methods: list[str]) -> str:
    """A line a method, a column a table and noise."""
    head = ["", *(f"{name}, {float(noise):.0%}" for name, noise in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in methods:
        cells = []
        for runs in columns.values():
            values = list(runs.get(method, {}).values())
            if not values:
                cells.append("")
                continue
            mean, error = mean_error(values)
            seeds = "" if len(values) == 5 else f" ({len(values)})"
            cells.append(f"{mean:.1f}" + (f" ± {error:.1f}" if len(values) > 1 else "") + seeds)
        if any(cells):
            lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def in_words(columns: Columns) -> str:
    """What `OURS` is worth, line by line: against random, and against the best of the others."""
    lines = []
    for (name, noise), runs in columns.items():
        rivals = {m: fmean(v.values()) for m, v in runs.items() if v and m != FULL and not m.startswith("ASSS")}
        if OURS not in runs or not rivals:
            continue
        best = max(rivals, key=lambda method: rivals[method])
        against = [(other, ahead(runs, OURS, other)) for other in dict.fromkeys(("random", best))]
        said = [
            f"{mean:+.1f} ± {error:.1f} from {other}" for other, found in against if found for mean, error in [found]
        ]
        if said:
            lines.append(f"- {name}, {float(noise):.0%} wrong: {fmean(runs[OURS].values()):.1f} %; " + ", ".join(said))
    return "\n".join(lines)


def markdown(results: dict[str, Any], pictures: list[Path]) -> str:
    """The whole page."""
    settings = results["settings"]
    parts = [INTRODUCTION, f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}.\n"]
    parts += [f"![{path.stem}]({path.name})\n" for path in pictures]
    plain = [method for method, of in METHODS.items() if not of.ablation]
    forms = [method for method in METHODS if method.startswith("ASSS")]
    for keep in KEEPS:
        for learner in ("perceptron", "trees"):
            columns = columns_of(results, keep, learner)
            if columns:
                parts.append(f"## {keep:.0%} kept, {learner}\n\n{in_words(columns)}\n\n{table(columns, plain)}\n")
    columns = {
        place: runs
        for place, runs in columns_of(results, KEEPS[0], "perceptron").items()
        if any(METHODS[method].ablation for method in runs)
    }
    if columns:
        parts.append(f"## Forms of ASSS, {KEEPS[0]:.0%} kept, perceptron\n\n{table(columns, forms)}\n")
    parts += [f"Left out: {name}, as {reason}\n" for name, reason in sorted(results["skipped"].items())]
    return "\n".join(parts)


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """A picture of all tables, clean and damaged, and one of PRR over the share kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    paths = []
    columns = columns_of(results, KEEPS[0], "perceptron")
    if columns:
        tables = list(dict.fromkeys(name for name, _ in columns))
        figure, row = plt.subplots(
            1, len(tables), figsize=(2 + 1.7 * len(tables), 3.2), sharey=True, layout="constrained"
        )
        for axes, name in zip([row] if len(tables) == 1 else row, tables, strict=True):
            levels = sorted((noise for table_name, noise in columns if table_name == name), key=float)
            for shift, noise in enumerate(levels):
                runs, shade = columns[name, noise], f"C{shift}"
                for y, method in enumerate(SHOWN):
                    if runs.get(method):
                        mean, error = mean_error(list(runs[method].values()))
                        place = y + 0.22 * (shift - (len(levels) - 1) / 2)
                        axes.errorbar(mean, place, xerr=error, fmt="o", markersize=3.5, color=shade)
                axes.plot([], [], "o", color=shade, label=f"{float(noise):.0%} wrong")
            axes.axvline(100, color="grey", linewidth=0.8)
            low = min(fmean(columns[name, noise].get("random", {"": 90.0}).values()) for noise in levels)
            axes.set(title=name, yticks=range(len(SHOWN)), yticklabels=SHOWN, xlim=(min(85.0, low - 8), None))
            axes.tick_params(labelsize=8)
        figure.axes[0].invert_yaxis()
        figure.axes[-1].legend(fontsize=7)
        figure.suptitle(
            "PRR in % of training on all of the data, 30 % kept; what is further left is cut off", fontsize=9
        )
        paths.append(folder / "subsets-30.png")
        figure.savefig(paths[-1], dpi=80)
        plt.close(figure)
    by_keep = {keep: columns_of(results, keep, "perceptron") for keep in sorted(KEEPS)}
    places = [place for place in by_keep[KEEPS[0]] if place[1] != "0" and place in by_keep[KEEPS[-1]]]
    worst = [place for place in places if place[1] in ("0.2", "0.3")]
    if worst:
        figure, row = plt.subplots(1, len(worst), figsize=(2 + 1.9 * len(worst), 3), layout="constrained")
        for axes, place in zip([row] if len(worst) == 1 else row, worst, strict=True):
            for method in ("fewer epochs", "random", "small loss", "MW-Net", OURS):
                points = [
                    (100 * keep, *mean_error(list(columns[place][method].values())))
                    for keep, columns in by_keep.items()
                    if columns.get(place, {}).get(method)
                ]
                if points:
                    shares, means, errors = zip(*points, strict=True)
                    axes.errorbar(shares, means, errors, marker="o", markersize=3, label=method)
            axes.axhline(100, color="grey", linewidth=0.8)
            axes.set(title=f"{place[0]}, {float(place[1]):.0%} wrong", xlabel="kept, %", ylim=(60, None))
            axes.tick_params(labelsize=8)
        figure.axes[0].legend(fontsize=7)
        figure.axes[0].set_ylabel("PRR, %")
        paths.append(folder / "subsets-shares.png")
        figure.savefig(paths[-1], dpi=80)
        plt.close(figure)
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.subsets_report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text())
    page = options.results.parent / "SUBSETS.md"
    page.write_text(markdown(results, draw(results, page.parent)))
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
