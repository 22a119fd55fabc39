"""Make the leaderboard's web page from its results file alone: python -m bench.experiments.leaderboard_page

The page is one file that asks for nothing else. All of its numbers and words stand in its HTML, so that it can be read
without its script, which sorts and filters. What it recommends is written from the numbers by the rule that it states.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from bench.experiments.report import REFERENCE, Runs, best, difference, mean_error, points

RESULTS = Path("bench/results/leaderboard.json")
TEMPLATE = Path(__file__).with_suffix(".html")
SIMPLE = (REFERENCE, "RS2", "static random")  # what a method has to beat
DATA = {
    "clean": "pictures",
    "noise": "pictures, 27 % of the labels wrong",
    "long tail": "pictures, classes of very different sizes",
    "duplicates": "pictures, most of them near copies",
    "diamonds": "a table, ten classes",
    "diamonds, noise": "a table, 27 % of the labels wrong",
    "flights": "a table, two classes of different sizes",
    "text": "short texts, 20 classes",
}
Cells = dict[tuple[str, float], Runs]  # by scenario and share kept


# --- from records to numbers ---


def read(path: Path) -> tuple[dict[str, Any], Cells]:
    """The file's content, of each method kind and source; and its records, in the order of the page."""
    results = json.loads(path.read_text())
    named = {name: about if isinstance(about, dict) else {"kind": about} for name, about in results["methods"].items()}
    results["methods"] = named
    found: Cells = {}
    for key, record in results["records"].items():
        scenario, settings, method, seed = key.split("/")
        runs = found.setdefault((scenario, results["settings"][settings]["keep_ratio"]), {})
        if int(seed) in runs.setdefault(method, {}):
            raise ValueError(f"{path}: {key} is there for two settings that keep the same share")
        runs[method][int(seed)] = record
    cells = {
        (scenario, keep): {method: runs[method] for method in named if method in runs}
        for scenario in results["scenarios"]
        for keep in sorted({keep for _, keep in found})
        if (runs := found.get((scenario, keep)))
    }
    return results, cells


def kinds_of(results: dict[str, Any]) -> dict[str, str]:
    return {method: about["kind"] for method, about in results["methods"].items()}


def clearly(mean: float, error: float) -> int:
    """1 or -1 for a difference of more than two standard errors, otherwise 0."""
    return 0 if math.isnan(error) or abs(mean) <= 2 * error else int(math.copysign(1, mean))


def accuracy(by_seed: dict[int, dict[str, Any]], field: str = "accuracy") -> tuple[float, float]:
    """Mean and standard error, in %; a field that is missing stands for the accuracy."""
    return mean_error([100 * record.get(field, record["accuracy"]) for record in by_seed.values()])


def ranks(runs: Runs, kinds: dict[str, str]) -> dict[str, int]:
    """Places by mean accuracy, equal ones shared, of the methods that have all seeds and no more steps than others."""
    most = max(len(by_seed) for by_seed in runs.values())
    means = {m: accuracy(r)[0] for m, r in runs.items() if len(r) == most and kinds[m] != "reference"}
    return {m: 1 + sum(other > mean for other in means.values()) for m, mean in means.items()}


class Verdict(NamedTuple):
    """Which method to take in one cell."""

    simple: str | None  # the strongest of the simple baselines; None: one is missing
    best: str | None  # of the other methods: the best one of the winners, otherwise of all
    winners: list[str]  # that beat each of the simple baselines by more than two standard errors, the best one first
    rivals: int  # other methods
    seeds: int


def verdict(runs: Runs, kinds: dict[str, str]) -> Verdict:
    """The rule that the page states."""
    place = ranks(runs, kinds)
    others = sorted((m for m in place if kinds[m] != "baseline"), key=place.__getitem__)
    winners = [m for m in others if all(s in runs and clearly(*difference(runs, m, s)) > 0 for s in SIMPLE)]
    simple = best({s: runs[s] for s in SIMPLE}, kinds, "baseline") if all(s in place for s in SIMPLE) else None
    seeds = max(len(by_seed) for by_seed in runs.values())
    return Verdict(simple, next(iter(winners or others), None), winners if simple else [], len(others), seeds)


# --- from numbers to words ---


def percent(keep: float) -> str:
    return f"{100 * keep:g} %"


def cell_words(runs: Runs, kinds: dict[str, str]) -> str:
    """Which method for that data and share: a sentence."""
    v = verdict(runs, kinds)
    if v.simple is None:
        missing = [s for s in SIMPLE if s not in ranks(runs, kinds)]
        return f"no verdict yet: {' and '.join(missing)} {'lacks' if len(missing) == 1 else 'lack'} seeds."
    simple = f"{v.simple} ({points(*accuracy(runs[v.simple]), '')} %)"
    if v.best is None:
        return f"only baselines so far; the strongest simple one is {simple}."
    ahead = f"{points(*difference(runs, v.best, v.simple))} points"
    if v.seeds < 2:
        return f"no verdict from one seed: {v.best}, {ahead} against {simple}."
    if v.winners:
        beat = "beats" if len(v.winners) == 1 else "beat"
        of = f"{len(v.winners)} of {v.rivals} methods {beat} all three."
        return f"{v.best}, {ahead} over {simple}, the strongest simple baseline. {of}"
    return f"no method beats the simple baselines: take {simple}. The best of {v.rivals} others: {v.best}, {ahead}."


def summary(cells: Cells, kinds: dict[str, str]) -> list[str]:
    """What all cells say together."""
    verdicts = [verdict(runs, kinds) for runs in cells.values()]
    judged = [v for v in verdicts if v.simple is not None and v.best is not None and v.seeds > 1]
    if not judged:
        return ["No kind of data has two seeds of the simple baselines and of another method yet: no verdict."]
    won = [v for v in judged if v.winners]
    baselines = counted(v.simple for v in judged)
    rule = "the three simple baselines by more than two standard errors"
    if not won:
        first = f"No method beats {rule} in any of the {len(judged)} cells, each a kind of data and a share kept."
        return [first, f"The strongest simple baseline: {baselines}."]
    rest = [f"None does in the other {len(judged) - len(won)}."] if len(won) < len(judged) else []
    return [
        f"A method beats {rule} in {len(won)} of {len(judged)} cells, each a kind of data and a share kept.",
        f"The best of those that do: {counted(v.best for v in won)}.",
        *rest,
        f"The strongest simple baseline: {baselines}.",
    ]


def counted(names: Any) -> str:
    """Names and how often they come, the commonest first and no more than five."""
    times = Counter(names).most_common()
    more = [f"{len(times) - 5} others"] if len(times) > 5 else []
    return "; ".join([*(f"{name} ({n}×)" for name, n in times[:5]), *more])


def seeds_and_gaps(results: dict[str, Any], cells: Cells) -> list[str]:
    """How many seeds there are, and what is missing of all methods on all data for all shares and seeds."""
    counts = Counter(len(by_seed) for runs in cells.values() for by_seed in runs.values())
    most, shares = max(counts, default=0), {keep for _, keep in cells}
    low = min(counts, default=0)
    seeds = f"{most} seed{'s' * (most != 1)}" if low == most else f"Between {low} and {most} seeds"
    kinds = len({scenario for scenario, _ in cells})
    words = [f"{seeds} of each method, on {kinds} kind{'s' * (kinds != 1)} of data."]
    expected, gaps = len(results["methods"]) * most, []
    for scenario in results["scenarios"]:
        here = {keep: sum(map(len, cells.get((scenario, keep), {}).values())) for keep in shares}
        reason = results.get("skipped", {}).get(scenario)
        if not any(here.values()):
            gaps.append(f"{scenario} (all{', ' + reason if reason else ''})")
        elif missing := [f"{expected - n} at {percent(keep)}" for keep, n in sorted(here.items()) if n < expected]:
            gaps.append(f"{scenario} ({', '.join(missing)})")
    return [*words, f"Missing records: {'; '.join(gaps)}." if gaps else "Nothing is missing."]


# --- HTML ---


def whole(text: str) -> str:
    """Text in HTML that does not break within a number and what belongs to it."""
    return escape(text).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")


def row(cells: list[str], attributes: dict[str, Any] | None = None, classes: dict[int, str] | None = None) -> str:
    """A table's row of cells in HTML, the first of them its heading."""
    data = "".join(f' data-{name}="{escape(str(value))}"' for name, value in (attributes or {}).items())
    marked = {number: f' class="{name}"' for number, name in (classes or {}).items()}
    rest = "".join(f"<td{marked.get(i, '')}>{cell}" for i, cell in enumerate(cells[1:], 1))
    return f'<tr{data}><th scope="row">{cells[0]}{rest}'


RUN_COLUMNS = (
    "Method", "Rank", "Accuracy, %", "Ahead of fewer epochs", "Ahead of RS2", "Mean over classes, %", "Selecting, s",
    "Training, s", "Memory, MB", "Realised ratio", "Seeds", "Data", "Kept", "Kind",
)  # fmt: skip


def run_rows(cells: Cells, kinds: dict[str, str]) -> list[str]:
    """A row for each method in each cell, the best one first."""
    rows = []
    for (scenario, keep), runs in cells.items():
        place = ranks(runs, kinds)
        for method, by_seed in sorted(runs.items(), key=lambda run: place.get(run[0], math.inf)):
            ahead = {
                column: difference(runs, method, other)
                for column, other in ((3, REFERENCE), (4, "RS2"))
                if other in runs and other != method
            }
            records = list(by_seed.values())
            costs = {"select_s": ".2f", "train_s": ".2f", "memory_mb": ".0f", "ratio": ".2f"}
            texts = [method, place.get(method, ""), points(*accuracy(by_seed), "")]
            texts += ["" if c not in ahead or math.isnan(ahead[c][0]) else points(*ahead[c]) for c in (3, 4)]
            texts += [f"{accuracy(by_seed, 'balanced')[0]:.2f}"]
            texts += [
                format((max if field == "memory_mb" else fmean)(r[field] for r in records), how)
                if all(field in r for r in records)
                else ""
                for field, how in costs.items()
            ]
            texts += [len(records), scenario, percent(keep), kinds[method]]
            marks = {c: "above" if side > 0 else "below" for c, d in ahead.items() if (side := clearly(*d))}
            about = {"scenario": scenario, "kept": keep, "kind": kinds[method]}
            rows.append(row([escape(str(text)) for text in texts], about, marks))
    return rows


def source(text: str) -> str:
    """Where a method is from, with a link if that is arXiv."""
    numbered = text.replace(".", "").isdigit()
    return f'<a href="https://arxiv.org/abs/{text}">{text}</a>' if numbered else escape(text)


def method_columns(shares: list[float]) -> list[str]:
    ahead = ["Above fewer epochs", "Below fewer epochs", "Above RS2", "Below RS2"]
    return [
        "Method",
        "Mean rank",
        *(f"At {percent(s)}" for s in shares),
        *ahead,
        "Selecting, s",
        "Cells",
        "Kind",
        "Source",
    ]


def method_rows(results: dict[str, Any], cells: Cells, shares: list[float]) -> list[str]:
    """A row for each method over the cells in which it has all seeds, by mean rank."""
    kinds = kinds_of(results)
    places = {cell: ranks(runs, kinds) for cell, runs in cells.items()}
    rows = []
    for method, about in results["methods"].items():
        here = {cell: place[method] for cell, place in places.items() if method in place}
        if not here:
            continue
        at = [[rank for (_, keep), rank in here.items() if keep == share] for share in shares]
        sides = [
            [clearly(*difference(cells[cell], method, other)) for cell in here if other in cells[cell]]
            for other in (REFERENCE, "RS2")
        ]
        select = fmean(r["select_s"] for cell in here for r in cells[cell][method].values())
        texts = [method, *(f"{fmean(found):.1f}" if found else "" for found in (list(here.values()), *at))]
        texts += [side.count(sign) for side in sides for sign in (1, -1)]
        texts += [f"{select:.2f}", len(here), about["kind"]]
        html = row([*(escape(str(text)) for text in texts), source(about.get("source") or "")])
        rows.append((fmean(here.values()), html))
    return [html for _, html in sorted(rows)]


def head(columns: Sequence[str], by: str = "") -> str:
    """A table's head; each of its buttons sorts, and the rows are in order ``by`` one of them."""
    html = ""
    for name in columns:
        order = ' aria-sort="ascending"' if name == by else ""
        text = whole(name).replace(", ", ",\N{NO-BREAK SPACE}")
        html += f'<th scope="col"{order}><button type="button">{text}</button>'
    return f"<tr>{html}"


def cards(cells: Cells, kinds: dict[str, str]) -> str:
    """For each kind of data, a sentence for each share kept."""
    html = []
    for scenario in dict.fromkeys(scenario for scenario, _ in cells):
        lines = []
        for (other, keep), runs in cells.items():
            if other == scenario:
                win = ' class="win"' if verdict(runs, kinds).winners else ""
                lines.append(f"<li{win}><b>{percent(keep)} kept:</b> {whole(cell_words(runs, kinds))}")
        about = DATA.get(scenario, "")
        html.append(f"<article><h3>{escape(scenario)}</h3><p>{escape(about)}<ul>{''.join(lines)}</ul></article>")
    return "".join(html)


def described(about: dict[str, Any]) -> str:
    """Names and values in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())


def options(values: list[tuple[str, str]]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(text)}' for value, text in values)


def page(results: dict[str, Any], cells: Cells) -> str:
    """The whole page."""
    kinds = kinds_of(results)
    shares = sorted({keep for _, keep in cells})
    settings = list(results["settings"].values())
    common = {name: value for name, value in (settings or [{}])[0].items() if all(s[name] == value for s in settings)}
    notes = [f"Settings: {described(common)}."] if common else []
    notes += [f"Machine: {described(results['machine'])}."] if results.get("machine") else []
    words = [" ".join(summary(cells, kinds)), " ".join(seeds_and_gaps(results, cells))]
    parts = {
        "words": "".join(f"<p>{whole(line)}" for line in words),
        "cards": cards(cells, kinds),
        "methods-head": head(method_columns(shares), "Mean rank"),
        "methods": "\n".join(method_rows(results, cells, shares)),
        "scenarios": options([(s, s) for s in dict.fromkeys(scenario for scenario, _ in cells)]),
        "shares": options([(str(keep), percent(keep)) for keep in shares]),
        "kinds": options([(kind, kind) for kind in dict.fromkeys(kinds.values())]),
        "runs-head": head(RUN_COLUMNS),
        "runs": "\n".join(run_rows(cells, kinds)),
        "notes": "".join(f"<p>{escape(line)}" for line in notes),
    }
    before, *rest = TEMPLATE.read_text().split("<!--=")
    named = (piece.split("-->", 1) for piece in rest)
    return before + "".join(parts[name] + after for name, after in named)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.leaderboard_page", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, help="default: beside the results")
    options = parser.parse_args(arguments)
    out = options.out or options.results.with_suffix(".html")
    out.write_text(page(*read(options.results)))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
