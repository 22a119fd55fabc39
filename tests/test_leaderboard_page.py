"""bench/experiments/leaderboard_page.py: what it says follows from the numbers, and a browser sorts and filters it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.experiments import leaderboard, leaderboard_page
from bench.experiments.leaderboard_page import SIMPLE, cell_words, page, ranks, read, verdict
from bench.experiments.run import save
from tests.browser import Browser

KINDS = {
    "full data": "reference",
    **dict.fromkeys(SIMPLE, "baseline"),
    "A <b>": "scores",
    "B": "dynamic",
}
SHIFTS = (-0.1, 0.0, 0.1)  # of accuracy in points, by seed: they cancel in differences
SMALL = {"full data": 85.0, SIMPLE[0]: 80.0, "RS2": 79.0, "static random": 70.0}


def runs_of(means: dict[str, float], seeds: int = 3, spread: dict[str, float] | None = None) -> dict[str, Any]:
    """Records of made-up mean accuracies; a method's own spread does not cancel in differences."""
    return {
        method: {
            seed: {
                "accuracy": (mean + SHIFTS[seed] + (spread or {}).get(method, 0.0) * (seed - 1)) / 100,
                "balanced": mean / 100 - 0.2, "ratio": 0.3, "train_s": 2.0, "select_s": seed + 1.0,
                "memory_mb": 0.0 if seed else 12.0,
            }
            for seed in range(seeds)
        }
        for method, mean in means.items()
    }  # fmt: skip


def written(path: Path, cells: dict[tuple[str, float], Any], **head: Any) -> Path:
    """A results file of those cells, as runs write it."""
    records = {
        f"{scenario}/20-{keep}/{method}/{seed}": record
        for (scenario, keep), runs in cells.items()
        for method, by_seed in runs.items()
        for seed, record in by_seed.items()
    }
    results = {
        "methods": {method: {"kind": kind, "source": "2107.07075"} for method, kind in KINDS.items()},
        "scenarios": ["noise", "new & strange", "text"],
        "settings": {f"20-{keep}": {"epochs": 20, "keep_ratio": keep} for _, keep in cells},
        "machine": {"processor": "a processor"},
        "skipped": {"text": "apt-cache is not there"},
        **head,
        "records": records,
    }
    save(path, results)
    return path


# --- words from numbers -----------------------------------------------------------------


def test_a_method_that_beats_all_simple_baselines() -> None:
    runs = runs_of({**SMALL, "A <b>": 81.0, "B": 80.5})
    v = verdict(runs, KINDS)
    assert (v.simple, v.best, v.winners, v.rivals, v.seeds) == (SIMPLE[0], "A <b>", ["A <b>", "B"], 2, 3)
    words = cell_words(runs, KINDS)
    assert words.startswith(f"A <b>, +1.00 ± 0.00 points over {SIMPLE[0]} (80.00 ± 0.06 %), the strongest simple")
    assert words.endswith("2 of 2 methods beat all three.")


def test_no_method_beats_them() -> None:
    for mean, spread, ahead in ((79.5, 0.0, "-0.50 ± 0.00"), (80.3, 0.5, "+0.30 ± 0.29")):
        runs = runs_of({**SMALL, "A <b>": mean, "B": 60.0}, spread={"A <b>": spread})
        assert not verdict(runs, KINDS).winners
        words = cell_words(runs, KINDS)
        assert words.startswith(f"no method beats the simple baselines: take {SIMPLE[0]} (80.00 ± 0.06 %).")
        assert words.endswith(f"The best of 2 others: A <b>, {ahead} points.")


def test_two_standard_errors_are_the_border() -> None:
    for mean, wins in ((80.58, True), (80.57, False)):  # s.e. is 0.5 / sqrt(3) = 0.2887
        runs = runs_of({**SMALL, "A <b>": mean}, spread={"A <b>": 0.5})
        assert bool(verdict(runs, KINDS).winners) == wins


def test_a_method_has_to_beat_the_third_strongest_too() -> None:
    """One whose differences to a weaker baseline vary more."""
    spread = {"static random": 3.0}
    runs = runs_of({**SMALL, "static random": 79.0, "A <b>": 81.0}, spread=spread)
    assert not verdict(runs, KINDS).winners and verdict(runs_of({**SMALL, "A <b>": 81.0}), KINDS).winners


def test_the_best_that_is_recommended_is_one_that_beats_them() -> None:
    runs = runs_of({**SMALL, "A <b>": 82.0, "B": 81.0}, spread={"A <b>": 4.0})
    assert verdict(runs, KINDS).best == "B" and ranks(runs, KINDS)["A <b>"] == 1


def test_too_little_for_a_verdict() -> None:
    assert "no verdict from one seed: A <b>, +1.00 points against" in cell_words(
        runs_of({**SMALL, "A <b>": 81.0}, seeds=1), KINDS
    )
    without = runs_of({"RS2": 79.0, "A <b>": 81.0})
    assert cell_words(without, KINDS) == "no verdict yet: full data, fewer epochs and static random lack seeds."
    short = runs_of({**SMALL, "A <b>": 81.0})
    del short["RS2"][2]
    assert cell_words(short, KINDS) == "no verdict yet: RS2 lacks seeds."
    assert cell_words(runs_of(SMALL), KINDS).startswith("only baselines so far; the strongest simple one is full data,")
    partly = runs_of({**SMALL, "A <b>": 81.0, "B": 99.0})
    del partly["B"][0]
    assert verdict(partly, KINDS).best == "A <b>" and "B" not in ranks(partly, KINDS)


def test_ranks_are_shared_by_equals_and_full_data_has_none() -> None:
    assert ranks(runs_of({**SMALL, "A <b>": 80.0, "B": 70.0}), KINDS) == {
        SIMPLE[0]: 1, "RS2": 3, "static random": 4, "A <b>": 1, "B": 4,
    }  # fmt: skip


WON, LOST = runs_of({**SMALL, "A <b>": 81.0, "B": 79.0}), runs_of({**SMALL, "RS2": 82.0, "A <b>": 81.0, "B": 60.0})


def body_of(path: Path) -> str:
    return page(*read(path)).replace("\N{NO-BREAK SPACE}", " ")


def test_what_all_cells_say_together(tmp_path: Path) -> None:
    both = body_of(written(tmp_path / "r.json", {("noise", 0.3): WON, ("new & strange", 0.3): LOST}))
    assert "A method beats the three simple baselines by more than two standard errors in 1 of 2 cells" in both
    assert "The best of those that do: A &lt;b&gt; (1×). None does in the other 1." in both
    assert "The strongest simple baseline: full data, fewer epochs (1×); RS2 (1×)." in both
    none = body_of(written(tmp_path / "r.json", {("noise", 0.3): LOST}))
    assert "No method beats the three simple baselines by more than two standard errors in any of the 1 cells" in none
    one = {("noise", 0.3): runs_of({**SMALL, "A <b>": 99.0}, seeds=1)}
    assert "no verdict" in body_of(written(tmp_path / "r.json", one)).split("<h2>")[0]
    assert "1 seed of each method" in body_of(written(tmp_path / "r.json", one))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    short = runs_of({**SMALL, "A <b>": 81.0, "B": 79.0})
    del short["B"][0]
    text = body_of(written(tmp_path / "r.json", {("noise", 0.3): WON, ("noise", 0.1): short}))
    assert "Between 2 and 3 seeds of each method, on 1 kind of data." in text
    assert "noise (1 at 10 %); new &amp; strange (all); text (all, apt-cache is not there)." in text
    whole = written(tmp_path / "r.json", {("noise", 0.3): WON}, scenarios=["noise"], skipped={})
    assert "3 seeds of each method, on 1 kind of data. Nothing is missing." in body_of(whole)


def test_two_settings_for_one_share_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", {("noise", 0.3): WON})
    results = json.loads(path.read_text())
    results["settings"]["5-x"] = {"epochs": 5, "keep_ratio": 0.3}
    results["records"]["noise/5-x/RS2/0"] = WON["RS2"][0]
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="noise/5-x/RS2/0 is there for two settings that keep the same share"):
        read(path)


# --- the page -----------------------------------------------------------------------------


def test_the_numbers_of_a_row(tmp_path: Path) -> None:
    text = body_of(written(tmp_path / "r.json", {("noise", 0.3): WON}))
    line = next(line for line in text.splitlines() if "noise" in line and "A &lt;b&gt;</" not in line and ">A " in line)
    assert 'data-scenario="noise" data-kept="0.3" data-kind="scores"' in line
    assert re.findall(r'<td(?: class="(\w+)")?>([^<]*)', line) == [
        ("", "1"), ("", "81.00 ± 0.06"), ("above", "+1.00 ± 0.00"), ("above", "+2.00 ± 0.00"), ("", "61.00"),
        ("", "2.00"), ("", "2.00"), ("", "12"), ("", "0.30"), ("", "3"), ("", "noise"), ("", "30 %"), ("", "scores"),
    ]  # fmt: skip
    assert "A <b>" not in text, "names are escaped"
    assert '<a href="https://arxiv.org/abs/2107.07075">2107.07075</a>' in text and "a processor" in text


def test_a_page_of_many_methods_is_small_and_whole(tmp_path: Path) -> None:
    names = {**KINDS, **{f"a method of some length, {i}": "scores" for i in range(40)}}
    cells = {
        (f"kind {k}", keep): runs_of({**SMALL, **dict.fromkeys(names, 75.0)})
        for k in range(8)
        for keep in (0.1, 0.3, 0.5)
    }
    head = {"methods": names, "scenarios": [f"kind {k}" for k in range(8)]}
    leaderboard_page.main(["--results", str(written(tmp_path / "r.json", cells, **head))])
    made = tmp_path / "r.html"
    assert made.stat().st_size < 1_000_000
    loaded = re.findall(r'(?:src|href)="([^"]*)"|url\(|@import|fetch\(', made.read_text())
    assert all(where.startswith(("https://arxiv.org/abs/", "data:")) for where in loaded), "nothing comes from outside"


def test_what_was_not_measured_is_left_blank(tmp_path: Path) -> None:
    runs = runs_of(SMALL)
    del runs["RS2"][1]["memory_mb"], runs["RS2"][1]["balanced"]
    text = body_of(written(tmp_path / "r.json", {("noise", 0.3): runs}))
    line = next(line for line in text.splitlines() if ">RS2<" in line and "noise" in line)
    assert "<td>2.00<td>2.00<td><td>0.30<td>3" in line and text.count("<td>2.00<td>2.00<td>12<td>0.30<td>3") == 3


def test_an_empty_table_makes_a_page(tmp_path: Path) -> None:
    assert "no verdict" in body_of(written(tmp_path / "r.json", {}))


def test_a_run_ends_with_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "r.json", {("noise", 0.3): WON})
    monkeypatch.setattr(leaderboard, "execute", lambda *_, **__: None)
    leaderboard.main(["--results", str(path), "--only", "nothing"])
    assert "Which method for which data" in path.with_suffix(".html").read_text()


# --- in a browser -------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    cells = {("noise", 0.3): WON, ("noise", 0.1): LOST, ("new & strange", 0.3): LOST}
    path = written(tmp_path / "r.json", cells)
    leaderboard_page.main(["--results", str(path)])
    return path.with_suffix(".html").as_uri()


BY_RANK = ["A <b>", SIMPLE[0], "RS2", "B", "static random", "full data"]
HEAD = "#runs thead th:nth-child({}) button"


def sorts(browser: Browser) -> list[str | None]:
    return browser.js("[...document.querySelectorAll('#runs thead th')].map(h => h.getAttribute('aria-sort'))")


def with_mouse(browser: Browser, number: int) -> None:
    browser.click(HEAD.format(number))


def with_enter(browser: Browser, number: int) -> None:
    browser.press(HEAD.format(number), "Enter", 13)


@pytest.mark.parametrize("act", [with_mouse, with_enter])
def test_a_head_sorts(browser: Browser, url: str, act: Callable[[Browser, int], None]) -> None:
    browser.open(url)
    assert browser.column("runs", 0) == BY_RANK, "the first kind of data at 30 %, by rank"
    assert set(sorts(browser)) == {None}
    act(browser, 3)
    assert browser.column("runs", 2)[:2] == ["85.00 ± 0.06", "81.00 ± 0.06"], "numbers from the largest on"
    assert sorts(browser)[:4] == [None, None, "descending", None]
    act(browser, 3)
    assert browser.column("runs", 0)[0] == "static random" and sorts(browser)[2] == "ascending"
    act(browser, 4)
    ahead = browser.column("runs", 3)
    assert ahead == ["+5.00 ± 0.00", "+1.00 ± 0.00", "-1.00 ± 0.00", "-1.00 ± 0.00", "-10.00 ± 0.00", ""]
    act(browser, 4)
    assert browser.column("runs", 3) == [*ahead[-2::-1], ""], "what is not there stays last"
    act(browser, 1)
    assert browser.column("runs", 0) == sorted(BY_RANK, key=str.lower) and sorts(browser)[0] == "ascending"
    assert "sort=runs.0.ascending" in browser.js("location.hash"), "the address keeps it"


def test_the_address_sorts_and_filters(browser: Browser, url: str) -> None:
    browser.open(url + "#scenario=noise&kept=0.1&sort=runs.2.ascending&sort=methods.0.descending")
    assert browser.column("runs", 0) == ["B", "static random", SIMPLE[0], "A <b>", "RS2", "full data"]
    assert set(browser.column("runs", 12)) == {"10 %"}
    assert browser.column("methods", 0)[0] == "static random"
    browser.open(url + "#kind=dynamic&sort=nothing.7.up")
    assert browser.column("runs", 0) == ["B"] * 3
    assert browser.column("methods", 1) == sorted(browser.column("methods", 1), key=float)


def test_filters_choose_rows(browser: Browser, url: str) -> None:
    browser.open(url)
    choose = "(() => {{ const s = document.querySelector('select[name={}]'); s.value = '{}'; s.dispatchEvent("
    choose += "new Event('change', {{bubbles: true}})); }})()"
    browser.js(choose.format("scenario", "new & strange"))
    assert set(browser.column("runs", 11)) == {"new & strange"} and len(browser.column("runs", 0)) == 6
    browser.js(choose.format("kept", "0.1"))
    assert browser.column("runs", 0) == [] and browser.js("document.querySelector('output').textContent") == "0 rows"
    for name in ("scenario", "kept"):
        browser.js(choose.format(name, ""))
    assert len(browser.column("runs", 0)) == 18


def test_it_fits_narrow_screens_in_both_themes_and_asks_for_nothing(browser: Browser, url: str) -> None:
    browser.requests.clear()
    grounds = []
    for theme in ("light", "dark"):
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        browser("Emulation.setDeviceMetricsOverride", width=340, height=700, deviceScaleFactor=1, mobile=True)
        browser.open(url)
        assert browser.js("document.documentElement.scrollWidth") <= 340, "tables scroll, the page does not"
        assert browser.js("document.querySelector('#runs').parentNode.scrollWidth") > 340
        grounds.append(browser.js("getComputedStyle(document.body).backgroundColor"))
    browser("Emulation.clearDeviceMetricsOverride")
    assert grounds[0] == "rgb(255, 255, 255)" != grounds[1]
    assert {request.split("#")[0] for request in browser.requests} <= {url, "about:blank", "data:,"}
