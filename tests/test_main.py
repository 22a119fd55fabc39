"""python -m pysel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from pysel import files
from pysel.__main__ import main
from pysel.selection import DynamicSelector, ScoreSelector


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", random.normal(size=(200, 6)).astype(np.float32))
    np.save(tmp_path / "labels.npy", np.arange(200) % 4)
    np.save(tmp_path / "scores.npy", random.normal(size=200))
    np.save(tmp_path / "ids.npy", np.array([f"{i:032x}" for i in range(200)]))
    return tmp_path


SCORE = "--keep-ratio 0.3 --epochs 10 --num-factors 16 --k 3 --key 7".split()


def test_score_select_explain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f = str(folder)
    assert main(["score", f"{f}/features.npy", "-o", f"{f}/selector", "--labels", f"{f}/labels.npy", *SCORE]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 200
    wanted = DynamicSelector.from_features(
        np.load(folder / "features.npy"), 0.3, 10, labels=np.load(folder / "labels.npy"), num_factors=16, k=3, key=7
    )

    assert main(["select", f"{f}/selector", "-o", f"{f}/selection", "--epoch", "4", "--parquet", f"{f}/s.parquet"]) == 0
    assert json.loads(capsys.readouterr().out)["selected"] == 60
    selection = files.Selection.load(folder / "selection")
    assert torch.equal(selection.rows, wanted.select(4))
    assert selection.about["epoch"] == 4
    assert selection.about["arguments"]["epochs"] == 10
    table = pyarrow.parquet.read_table(folder / "s.parquet")
    assert table["score"].to_pylist() == wanted.scores(4)[selection.rows].tolist()

    sample = int(selection.rows[0])
    assert main(["explain", f"{f}/selector", str(sample), "--epoch", "4"]) == 0
    why = json.loads(capsys.readouterr().out)
    assert (why["sample"], why["epoch"], why["taken"], why["label"]) == (sample, 4, True, sample % 4)


def test_score_takes_features_in_several_files(folder: Path) -> None:
    x, f = np.load(folder / "features.npy"), str(folder)
    np.save(folder / "features-0.npy", x[:120])
    np.save(folder / "features-1.npy", x[120:])
    assert main(["score", f"{f}/features-0.npy", f"{f}/features-1.npy", "-o", f"{f}/selector", *SCORE]) == 0
    wanted = DynamicSelector.from_features(x, 0.3, 10, num_factors=16, k=3, key=7)
    assert torch.equal(DynamicSelector.load(folder / "selector").select(4), wanted.select(4))


def test_select_from_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f = str(folder)
    options = ["--keep-ratio", "0.07", "--smallest", "--labels", f"{f}/labels.npy", "--ids", f"{f}/ids.npy"]
    outputs = ["-o", f"{f}/selection", "--datacomp", f"{f}/uids.npy", "--parquet", f"{f}/s.parquet"]
    assert main(["select", f"{f}/scores.npy", *options, *outputs]) == 0
    wanted = ScoreSelector(
        np.load(folder / "scores.npy"), 0.07, largest=False, labels=np.load(folder / "labels.npy")
    ).select()
    assert torch.equal(files.Selection.load(folder / "selection").rows, wanted)
    assert [low for _, low in np.load(folder / "uids.npy").tolist()] == wanted.tolist()
    assert pyarrow.parquet.read_table(folder / "s.parquet")["id"].to_pylist() == [f"{i:032x}" for i in wanted.tolist()]
    capsys.readouterr()
    assert main(["select", f"{f}/s.parquet:score", "--keep-ratio", "1/2", "-o", f"{f}/half"]) == 0
    assert json.loads(capsys.readouterr().out) == {"selected": 7, "of": 14, "output": f"{f}/half"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select", "scores.npy", "-o", "x"], "--keep-ratio must be given with a file of scores"),
        (
            ["select", "scores.npy", "-o", "x", "--keep-ratio", "1/2", "--epoch", "1"],
            "--epoch is for a selector's folder",
        ),
        (
            ["select", "scores.npy", "-o", "x", "--keep-ratio", "1/2", "--datacomp", "y"],
            "--ids must be given with --datacomp",
        ),
        (
            ["select", "scores.npy", "-o", "x", "--keep-ratio", "1/2", "--shards", "y"],
            "--index must be given with --shards",
        ),
        (["select", "none.npy", "-o", "x", "--keep-ratio", "1/2"], "which is not there"),
        (["select", "scores.npy", "-o", "x", "--keep-ratio", "50"], "keep_ratio"),
        (["score", "scores.npy", "-o", "x", *SCORE], "features must be a matrix"),
        (["explain", "none", "3"], "none"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(file.name for file in folder.iterdir())
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("pysel: ")
    assert error.count("\n") == 1
    assert sorted(file.name for file in folder.iterdir()) == before


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "pysel", "--help"], capture_output=True, text=True, check=True)
    for command in ("score", "select", "explain"):
        assert command in done.stdout
