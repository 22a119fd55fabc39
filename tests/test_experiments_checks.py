"""bench/experiments/checks.py: what is compared differs in what it says alone, and what is there is not done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.datasets import Dataset
from bench.experiments import checks, scenarios

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten classes of 4 x 4 pictures instead of Fashion-MNIST, and fewer of them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(9000) % 10
    centres = 1.5 * torch.randn(10, 1, 4, 4, generator=generator)
    pictures = centres[labels] + torch.randn(9000, 1, 4, 4, generator=generator)
    data = Dataset("small", "", pictures[:8000], labels[:8000], pictures[8000:], labels[8000:], 10)
    monkeypatch.setattr(scenarios, "_fashion_mnist", lambda: data)
    monkeypatch.setattr(scenarios, "TRAIN", 6000)
    for name, value in {"TUNED": 500, "LABELLED": 100, "MINED": (5, 40), "HIDDEN": 16, "SEEDS": 2}.items():
        monkeypatch.setattr(checks, name, value)


def test_a_memory_is_worth_something_and_each_method_is_its_own() -> None:
    found = dict(checks.tasks(0))
    assert len(found) == 5
    none = found["no memory"]
    for name in ("any samples, equal classes", "OCS"):
        assert found[name]["among ten classes, %"] > none["among ten classes, %"] + 2
    assert found["OCS"] != found["OCS's picks, equal classes at random"] != found["any samples, equal classes"]
    assert dict(checks.tasks(0)) == found, "a function of the seed"


def test_what_a_task_keeps_is_of_its_own_two_classes() -> None:
    class Scores(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    x = torch.tensor([[9.0, 1.0, 0.0], [9.0, 0.0, 1.0], [9.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
    y = torch.tensor([1, 2, 2, 0])
    assert checks.right(Scores(), x, y) == 25
    assert checks.right(Scores(), x, y, torch.tensor([2, 1])) == pytest.approx(100 * 2 / 3)


def test_features_and_their_new_labels() -> None:
    found = dict(checks.features(0))
    assert len(found) == 6 and all(set(figures) == {"test, %", "blurred, %"} for figures in found.values())
    for share in (0, 27):
        linear, plain, tuned = (
            found[f"{name}; features from {share} % wrong labels"]
            for name in ("linear", "small network", "small network, NMTune")
        )
        assert linear["test, %"] > 30 and plain != tuned


def test_labels_that_are_right_are_counted_against_the_true_ones() -> None:
    found = dict(checks.unlabelled(0))
    assert len(found) == 1 + 2 * 2
    for name in ("mining", "confidence"):
        few, many = (found[f"{name}, {each} of each class"]["labels right, %"] for each in (5, 40))
        assert 50 < many <= few <= 100, "the surest are right most often"
    assert "labels right, %" not in found["labelled pictures alone"]


def test_the_largest_of_each_label() -> None:
    rows = checks._of_each(torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([4, 4, 4, 2]), 2)
    assert rows.tolist() == [3, 1, 2]


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, page = tmp_path / "checks.json", tmp_path / "page.md"
    asked: list[tuple[str, int]] = []

    def check(name: str) -> object:
        def find(seed: int) -> object:
            asked.append((name, seed))
            yield "one", {"a": 1.0 + seed}
            yield "other", {"a": 2.0, "b": 3.0}

        return find

    monkeypatch.setattr(checks, "CHECKS", {"first": check("first")})
    checks.main(["--results", str(results)])
    monkeypatch.setattr(checks, "CHECKS", {"first": check("first"), "second": check("second")})
    page.write_text("".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("first", "second")))
    checks.main(["--results", str(results), "--page", str(page)])
    assert asked == [("first", 0), ("first", 1), ("second", 0), ("second", 1)]
    assert json.loads(results.read_text())["checks"]["first"] == {
        "one": {"a": [1, 2]},
        "other": {"a": [2, 2], "b": [3, 3]},
    }
    assert "| one | 1.50 ± 0.50 |  |\n| other | 2.00 ± 0.00 | 3.00 ± 0.00 |\n" in page.read_text()
    assert page.read_text().count("| one |") == 2
