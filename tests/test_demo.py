"""bench/demo.py: what its tables say of differences. The demo itself runs in CI, at the end of .ci/run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import demo


def runs(**accuracy: list[float]) -> dict[str, dict[int, dict[str, Any]]]:
    names = {"full": "full data", "fewer": "full data, fewer epochs", "rs2": "RS2"}
    return {
        names[name]: {
            seed: {
                "accuracy": a,
                "steps": 300 if name == "full" else 100,
                "ratio": 0.5,
                "train_s": 1.0,
                "select_s": 0.5,
            }
            for seed, a in enumerate(values)
        }
        for name, values in accuracy.items()
    }


def test_the_last_column_says_what_a_difference_means() -> None:
    three = runs(full=[0.90, 0.92, 0.91], fewer=[0.80, 0.82, 0.81], rs2=[0.80, 0.81, 0.82])
    three["RS2"][1]["accuracy"] = 0.83
    assert demo.meaning(three, "full data, fewer epochs") == "what the others are compared with"
    assert "+0.7 points, no difference that 3 seeds could show" in demo.meaning(three, "RS2")
    three["full data"][1]["accuracy"] = 0.915
    said = demo.meaning(three, "full data")
    assert said.startswith("9.8 points better, ") and said.endswith(" standard errors, for 3.0 times the steps")
    worse = runs(fewer=[0.80, 0.82, 0.81], rs2=[0.70, 0.71, 0.72])
    assert demo.meaning(worse, "RS2").startswith("10.0 points worse, ")
    one = runs(fewer=[0.8], rs2=[0.9])
    assert demo.meaning(one, "RS2") == "+10.0 points, of one seed: says nothing"
    assert len(demo.training_table(one).splitlines()) == 4


def test_pictures_show_all_rows(tmp_path: Path) -> None:
    records = [
        {"case": name, "eager": "torch", "contenders": {"pysel": {"median": 1e-3}, "eager": {"median": 5e-3}}}
        for name in ("topk", "select")
    ]
    assert demo.ops_table(records).count("5.0x") == 2
    places = {("3-abc", "clean"): runs(full=[0.9, 0.92], fewer=[0.8, 0.81]), ("3-abc", "noise"): runs(fewer=[0.7])}
    for path in demo.draw(records, places, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
