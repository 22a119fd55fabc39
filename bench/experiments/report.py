"""Make the table and the pictures from the results file, and from nothing else: python -m bench.experiments.report

Differences are taken seed by seed (a seed fixes the data, the first weights and the order), so their standard errors
are smaller than those of the accuracies.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RESULTS = Path("bench/results/experiments.json")
Runs = dict[str, dict[int, dict[str, Any]]]  # records by method and seed


def read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Runs]]:
    """The file's content, and its records by (settings, scenario), in the order in which they were planned."""
    results = json.loads(path.read_text())
    by_place: dict[tuple[str, str], Runs] = {}
    for settings in sorted(results["settings"], key=lambda name: results["settings"][name]["epochs"]):
        for scenario in results["scenarios"]:
            runs: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
            for record in results["records"].values():
                if (record["settings"], record["scenario"]) == (settings, scenario):
                    runs[record["method"]][record["seed"]] = record
            ordered = {method: runs[method] for method in results["methods"] if method in runs}
            if ordered:
                by_place[settings, scenario] = ordered
    return results, by_place


def mean_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN for the error of one value."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def difference(runs: Runs, method: str, other: str) -> tuple[float, float]:
    """Mean and standard error of the accuracy of one method less another's, in points, over the seeds of both."""
    seeds = runs[method].keys() & runs[other].keys()
    if not seeds:
        return math.nan, math.nan
    return mean_error([100 * (runs[method][s]["accuracy"] - runs[other][s]["accuracy"]) for s in sorted(seeds)])


def best(runs: Runs, kinds: dict[str, str], *wanted: str) -> str | None:
    """The method of the wanted kinds with the highest mean accuracy, of those with all seeds."""
    most = max(len(records) for records in runs.values())
    found = [m for m in runs if kinds[m] in wanted and len(runs[m]) == most]
    return max(found, key=lambda m: fmean(r["accuracy"] for r in runs[m].values()), default=None)


def points(mean: float, error: float, sign: str = "+") -> str:
    return f"{mean:{sign}.2f}" if math.isnan(error) else f"{mean:{sign}.2f} ± {error:.2f}"


def _in_errors(mean: float, error: float) -> str:
    if math.isnan(error):
        return "one seed"
    return f"{mean / error:+.1f} s.e." if error > 0 else "±0"


def in_words(runs: Runs, kinds: dict[str, str]) -> str:
    """What a table says, in a few sentences."""
    baseline = best(runs, kinds, "baseline")
    if baseline is None:
        return "No baseline yet."
    mean, error = mean_error([100 * r["accuracy"] for r in runs[baseline].values()])
    sentences = [f"Best baseline at equal steps: {baseline}, {points(mean, error, '')} %."]
    ours = [m for m in runs if kinds[m] in ("published", "default")]
    rest = [m for m in runs if kinds[m] in ("ablation", "variant")]
    for method in ours + sorted(rest, key=lambda m: -fmean(r["accuracy"] for r in runs[m].values()))[:2]:
        mean, error = difference(runs, method, baseline)
        if math.isnan(error):
            continue
        verdict = "level" if abs(mean) <= error else "below" if mean < 0 else "above"
        if abs(mean) > 2 * error:
            verdict = f"clearly {verdict}"
        sentences.append(f"{method} is {verdict}: {points(mean, error)} points ({_in_errors(mean, error)}).")
    if _over_classes(runs):
        means = (f"{m} {fmean(100 * r['balanced'] for r in runs[m].values()):.2f}" for m in [baseline, *ours])
        sentences.append(f"Test classes are uneven; accuracy averaged over them: {', '.join(means)} %.")
    return " ".join(sentences)


def _over_classes(runs: Runs) -> bool:
    """Whether accuracies were averaged over classes, too, and this makes a difference."""
    records = [r for by_seed in runs.values() for r in by_seed.values()]
    return all("balanced" in r for r in records) and any(abs(r["balanced"] - r["accuracy"]) > 1e-3 for r in records)


def table(runs: Runs, kinds: dict[str, str]) -> str:
    """One scenario's table in Markdown."""
    baseline = best(runs, kinds, "baseline")
    wrong = any("wrong" in r for records in runs.values() for r in records.values())
    natural = _over_classes(runs)
    head = [
        "method",
        "accuracy %",
        *(["mean over classes"] if natural else []),
        "less the best baseline",
        "in s.e.",
        "steps",
        "kept",
        "training s",
        "selecting s",
    ]
    head += ["unevenness", *(["wrong labels"] if wrong else []), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method, by_seed in runs.items():
        records = list(by_seed.values())

        def mean(field: str, records: list[dict[str, Any]] = records) -> float:
            return fmean(r[field] for r in records)

        accuracy, error = mean_error([100 * r["accuracy"] for r in records])
        cells = [method, points(accuracy, error, "")]
        if natural:
            cells.append(points(*mean_error([100 * r["balanced"] for r in records]), ""))
        if baseline is None or method == baseline:
            cells += ["best" if method == baseline else "", ""]
        else:
            less = difference(runs, method, baseline)
            cells += [points(*less), _in_errors(*less)]
        cells += [f"{mean('steps'):,.0f}", f"{mean('ratio'):.2f}", f"{mean('train_s'):.1f}", f"{mean('select_s'):.2f}"]
        cells += [f"{mean('unevenness'):.2f}", *([f"{mean('wrong'):.1%}"] if wrong else []), str(len(records))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def overview(by_place: dict[tuple[str, str], Runs], results: dict[str, Any]) -> str:
    """Every method against the best baseline of each scenario, in points (s.e.)."""
    kinds, places = results["methods"], list(by_place)
    head = ["method", *(f"{scenario}, {results['settings'][s]['epochs']}" for s, scenario in places)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    bests = {place: best(runs, kinds, "baseline") for place, runs in by_place.items()}
    for method in kinds:
        cells = [method]
        for place, runs in by_place.items():
            baseline = bests[place]
            if method not in runs or baseline is None:
                cells.append("")
            elif method == baseline:
                cells.append("**best**")
            else:
                mean, error = difference(runs, method, baseline)
                cells.append(f"{mean:+.2f} ({mean / error:+.1f})" if error > 0 else f"{mean:+.2f}")
        if any(cells[1:]):
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


REFERENCE = "full data, fewer epochs"
BRIEF = (
    "full data",
    "static random",
    "RS2",
    "RS2, balanced losses, tail",
    "InfoBatch",
    "DynamicSelector, as published",
    "DynamicSelector",
    "DynamicSelector, Div alone",
    "ASSS",
)


def brief(by_place: dict[tuple[str, str], Runs], results: dict[str, Any]) -> str:
    """The table of docs/science.md: points more than full data for as many steps, for which it has the accuracy."""
    head = ["method", *(f"{scenario}, {results['settings'][s]['epochs']}" for s, scenario in by_place)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    means = (mean_error([100 * r["accuracy"] for r in runs[REFERENCE].values()])[0] for runs in by_place.values())
    lines.append("| " + " | ".join([f"{REFERENCE}, %", *(f"{mean:.1f}" for mean in means)]) + " |")
    for method in BRIEF:
        cells = [points(*difference(runs, method, REFERENCE)) if method in runs else "" for runs in by_place.values()]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def write_page(path: Path, table: str, name: str = "experiments") -> None:
    """Put a table between a page's two marks of that name."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, rest = path.read_text().split(begin)
    path.write_text(before + begin + table + "\n" + end + rest.split(end)[1])


INTRODUCTION = """# Selection methods under one protocol

Written by `python -m bench.experiments.report` from `experiments.json`; `bench/experiments/protocol.py` says what is
the same for all methods, `scenarios.py` what the data are, `methods.py` what the methods are. "Full data" takes more
steps than all others, which take the same number. ± is one standard error over seeds; differences are taken seed by
seed. The best baseline is chosen by the same accuracies, so it is flattered a little; with five seeds, two standard
errors happen by chance one time in nine. "Kept" is the mean share of the samples in an epoch, tail included;
"selecting" includes all that a method needs before training (for DynamicSelector: principal components, sparse
autoencoder, scores); seconds are of processor time of one thread. "Unevenness" is the standard deviation of the
samples' uses over their mean. The network is a perceptron with one hidden layer, and nothing was tuned.
"""


def markdown(results: dict[str, Any], by_place: dict[tuple[str, str], Runs], pictures: list[Path]) -> str:
    """The whole page."""
    kinds = results["methods"]
    parts = [INTRODUCTION]
    parts.append("## Overview\n\nPoints of accuracy less the best baseline's, and in standard errors.\n")
    parts.append(overview(by_place, results) + "\n")
    parts += [f"![differences]({path.name})\n" for path in pictures]
    for (settings, scenario), runs in by_place.items():
        epochs = results["settings"][settings]["epochs"]
        parts.append(f"## {scenario}, {epochs} epochs\n\n{in_words(runs, kinds)}\n\n{table(runs, kinds)}\n")
    parts += [f"Skipped: {scenario}, as {reason}\n" for scenario, reason in sorted(results["skipped"].items())]
    return "\n".join(parts)


def draw(results: dict[str, Any], by_place: dict[tuple[str, str], Runs], folder: Path) -> list[Path]:
    """One picture for each length of training: all methods less full data for as many steps, in each scenario."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"reference": "black", "baseline": "tab:blue", "published": "tab:red", "default": "tab:red"}
    paths = []
    for settings in dict.fromkeys(settings for settings, _ in by_place):
        places = {sc: runs for (s, sc), runs in by_place.items() if s == settings and REFERENCE in runs}
        if not places:
            continue
        names = [m for m in results["methods"] if any(m in runs for runs in places.values())]
        figure, row = plt.subplots(
            1, len(places), figsize=(2 + 2.2 * len(places), 1 + 0.22 * len(names)), sharey=True, layout="constrained"
        )
        for axes, (scenario, runs) in zip([row] if len(places) == 1 else row, places.items(), strict=True):
            for y, method in enumerate(names):
                if method not in runs:
                    continue
                mean, error = difference(runs, method, REFERENCE)
                colour = colours.get(results["methods"][method], "tab:orange")
                axes.errorbar(mean, y, xerr=0 if math.isnan(error) else error, fmt="o", markersize=4, color=colour)
            axes.axvline(0, color="grey", linewidth=0.8)
            axes.set(title=scenario, yticks=range(len(names)), yticklabels=names)
            axes.tick_params(labelsize=8)
        figure.axes[0].invert_yaxis()
        epochs = results["settings"][settings]["epochs"]
        figure.suptitle(f"Test accuracy less that of full data for as many steps, points; {epochs} epochs", fontsize=10)
        paths.append(folder / f"experiments-{epochs}.png")
        figure.savefig(paths[-1], dpi=90)
        plt.close(figure)
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="put the brief table into this file, too")
    options = parser.parse_args(arguments)
    results, by_place = read(options.results)
    page = options.results.parent / "EXPERIMENTS.md"
    page.write_text(markdown(results, by_place, draw(results, by_place, page.parent)))
    print(f"wrote {page}")
    if options.page:
        write_page(options.page, brief(by_place, results))


if __name__ == "__main__":
    main()
