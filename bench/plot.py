"""Pictures of what bench.run wrote, made from that file alone.

python -m bench.plot build/bench/results.json
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import matplotlib

from bench.report import Record, copy_share, curve, find, median, on_gpu, speed_up, variants

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DPI = 110


def case_names(results: Record) -> list[str]:
    return list(dict.fromkeys(r["case"] for r in results["records"] if r["n"] is None))


def speed_ups(results: Record, path: Path) -> None:
    """Bars: how much longer the torch op takes, with both kinds of pages, and what the target is."""
    names = case_names(results)[::-1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * len(names)), layout="constrained")
    pages = "" if on_gpu(results) else ", huge pages"
    title = "A rival's time over pysel's" + ("" if on_gpu(results) else f", {variants(results)[0]}")
    series = (
        (f"torch eager{pages}", "tab:blue", [speed_up(find(results, c), "eager") for c in names]),
        (
            "torch eager, default pages",
            "tab:cyan",
            [speed_up(find(results, c, huge_pages=False), "eager") for c in names],
        ),
        (f"torch.compile{pages}", "tab:orange", [speed_up(find(results, c), "compile") for c in names]),
    )
    for shift, (label, colour, values) in enumerate(series):
        rows = [(y - 0.25 * (shift - 1), value) for y, value in enumerate(values) if value]
        if rows:
            # from 1 on, so that what is slower points to the left
            axes.barh([y for y, _ in rows], [v - 1 for _, v in rows], 0.24, left=1, color=colour, label=label)
    for y, name in enumerate(names):
        record = find(results, name)
        goals = [t["ratio"] for t in record["targets"] if t["against"] == "eager"] if record else []
        if goals:
            axes.plot(goals, [y] * len(goals), "k|", markersize=11, label="target, against eager")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", title=title, yticks=range(len(names)), ylim=(-0.6, len(names) - 0.4))
    axes.set_yticklabels(names)
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter(lambda value, _: f"{value:g}x" if f"{value:e}"[0] in "125" else "")
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=DPI)


def copy_shares(results: Record, path: Path) -> None:
    """Bars: unavoidable bytes a second against a copy's."""
    rows = [(c, copy_share(r)) for c in case_names(results)[::-1] if (r := find(results, c)) and copy_share(r)]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.25 * len(rows)), layout="constrained")
    axes.barh([name for name, _ in rows], [100 * (share or 0) for _, share in rows], color="tab:blue")
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set(title="Inputs and outputs, each moved once: % of the speed of a copy", xlabel="%")
    figure.savefig(path, dpi=DPI)


def curves(results: Record, path: Path) -> None:
    """Seconds a call over n, both logarithmic, pysel and its rivals."""
    names = list(dict.fromkeys(r["case"] for r in results["records"] if r["n"] is not None))
    columns = min(3, len(names)) or 1
    figure, grid = plt.subplots(
        max(1, math.ceil(len(names) / columns)), columns, figsize=(12, 8), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, names, strict=False):
        points = curve(results, name)
        for contender in dict.fromkeys(c for p in points for c in p["contenders"]):
            at = [(p["n"], median(p, contender)) for p in points if contender in p["contenders"]]
            label = points[0]["eager"] if contender == "eager" else contender
            axes.plot(*zip(*at, strict=True), marker="o", markersize=3, label=label)
        axes.set(xscale="log", yscale="log", title=name, xlabel="n", ylabel="seconds a call")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=DPI)


def draw(results: Record, directory: Path) -> list[Path]:
    """Draw what there is to draw; returns the files."""
    cases = any(r["n"] is None for r in results["records"])
    points = any(r["n"] is not None for r in results["records"])
    pictures = ((speed_ups, cases), (copy_shares, cases), (curves, points))
    paths = []
    for picture, present in pictures:
        if present:
            paths.append(directory / f"{picture.__name__}.png")
            picture(results, paths[-1])
    plt.close("all")
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="where pictures go (default: beside the results)")
    options = parser.parse_args(arguments)
    for path in draw(json.loads(options.results.read_text()), options.out or options.results.parent):
        print(path)


if __name__ == "__main__":
    main()
