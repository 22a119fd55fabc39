"""DynamicSelector made from features: what it is made of, its explanations, and what is refused before any work."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysel
from pysel.nn import TopKSAE
from pysel.selection import DynamicSelector, factor_tables
from tests.test_dynamic import generator, tables

pytestmark = pytest.mark.usefixtures("one_thread")


def made_from_features(**options: Any) -> tuple[DynamicSelector, Tensor, Tensor]:
    g = generator()
    common = torch.randn(480, 8, generator=g) * torch.tensor([3.0, 3, 3, 3, 0, 0, 0, 0])
    rare = torch.randn(20, 8, generator=g) * torch.tensor([0.0, 0, 0, 0, 3, 3, 3, 3])
    features, labels = torch.cat([common, rare]), torch.arange(500) % 2
    selector = DynamicSelector.from_features(
        features, 0.2, 5, labels=labels, key=0, num_factors=32, k=2,
        sae_options={"epochs": 10, "batch_size": 50, "lr": 1e-2}, **options,
    )  # fmt: skip
    return selector, features, labels


def test_from_features() -> None:
    before = torch.get_rng_state()
    options: dict[str, Any] = {"gamma": 0.0, "refine": 0, "schedule": "linear"}
    selector, features, _ = made_from_features(balance=None, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert selector.report is not None and selector.report.explained_variance > 0.5
    assert selector.sae is not None and selector.factors is not None and len(selector.factors.counts) == 32
    assert float(selector.diversity[480:].mean()) > 5 * float(selector.diversity[:480].mean())
    first, last = selector.select(0), selector.select(4)
    assert int((first >= 480).sum()) <= 2 and int((last >= 480).sum()) >= 15, "the rare ones come late"
    assert torch.equal(made_from_features(balance=None, **options)[0].select(0), first)
    given = DynamicSelector.from_features(features.numpy(), 0.2, 5, sae=selector.sae, key=0, **options)
    assert given.report is None and torch.equal(given.diversity, selector.diversity)


def test_explain() -> None:
    selector, features, labels = made_from_features()
    for epoch in (0, 3):
        chosen = set(selector.select(epoch).tolist())
        scores = selector.scores(epoch)
        assert selector.sae is not None and selector.factors is not None
        for i in (0, 7, 250, 499):
            why = selector.explain(i)
            assert why["taken"] == (i in chosen) and why["epoch"] == epoch and why["label"] == int(labels[i])
            assert why["score"] == float(scores[i]) and why["uses"] == int(selector.uses[i]) - why["taken"]
            mixed = why["weight"] * why["representativeness"] + (1 - why["weight"]) * why["diversity"]
            assert why["score"] == pytest.approx(mixed - why["penalty"], abs=1e-6)
            assert why["penalty"] == pytest.approx(0.2 * math.log1p(why["uses"]), abs=1e-6)
            rivals = [
                float(s) for j, s in enumerate(scores) if labels[j] == labels[i] and (j in chosen) != (i in chosen)
            ]
            assert why["margin"] == pytest.approx(why["score"] - (max(rivals) if i in chosen else min(rivals)))
            assert (why["margin"] >= 0) == why["taken"] or why["margin"] == 0
            order = selector.diversity.argsort(descending=True, stable=True).tolist()
            assert why["diversity_rank"] <= 1 + order.index(i)
            assert selector.diversity[order[why["diversity_rank"] - 1]] == selector.diversity[i]
            values, indices = selector.sae.encode(features[i : i + 1])
            assert [f["factor"] for f in why["factors"]] == indices[0][values[0] > 0].tolist()
            for factor in why["factors"]:
                assert factor["rate"] == int(selector.factors.counts[factor["factor"]]) / 500
    tables_of = factor_tables(selector.sae, features, labels=labels)
    why = selector.explain(490)
    for name in ("representativeness", "diversity"):
        total = sum(factor[name] for factor in why["factors"])
        assert total == pytest.approx(float(getattr(tables_of, name)[490]), rel=1e-5)
    assert DynamicSelector(*tables(), 0.3, 4, key=0).explain(3)["factors"] is None
    with pytest.raises(IndexError, match="explain: i must be between 0 and 499, got 500"):
        selector.explain(500)


def test_stats() -> None:
    selector, *_ = made_from_features(refine=0.4)
    assert selector.stats()["epochs"] == 0
    for epoch in range(5):
        selector.select(epoch)
        stats = selector.stats()
        counts = selector.uses
        assert stats["uses"] == torch.bincount(counts).tolist() and sum(stats["uses"]) == 500
        assert stats["realised_ratio"] == pytest.approx(int(counts.sum()) / (500 * (epoch + 1)))
        share = counts.double() / (epoch + 1)
        assert stats["imbalance"] == pytest.approx(float(share.std(correction=0) / share.mean()))
    assert stats["coverage"] == {"rare": pytest.approx(1), "common": pytest.approx(1)}, "everything, at the end"
    selector.select(2)
    held = selector.stats()["coverage"]
    assert 0 < held["common"] < 1 and 0 < held["rare"] <= 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": torch.full((64, 8), torch.nan)}, ValueError, "features must be finite, got nan in row 0"),
        ({"features": torch.ones(64)}, ValueError, r"features must be a matrix .*got shape \[64\]"),
        ({"features": iter([torch.ones(64, 8)])}, TypeError, "features is read more than once"),
        ({"num_factors": 1000}, ValueError, "num_factors must be at most .*64"),
        ({"labels": torch.zeros(63).long()}, ValueError, r"labels must have shape \[64\], got \[63\]"),
        ({"keep_ratio": 1.01}, ValueError, "keep_ratio, the fraction kept, must be in"),
        (
            {"features": torch.eye(64, 8).index_put((torch.tensor(63), torch.tensor(0)), torch.tensor(math.inf))},
            ValueError,
            "features must be finite, got inf in row 63",
        ),
        ({"common": 0.0}, ValueError, r"common must be in \(0, 1\], got 0.0"),
        ({"class_coverage": "all"}, ValueError, "class_coverage must be once or effective, got 'all'"),
        ({"sae": TopKSAE(7, 16, 2, key=pysel.key(0))}, ValueError, r"features must be \[N, 7\] like the model's"),
        ({"sae": nn.Linear(8, 8)}, TypeError, "DynamicSelector.from_features: sae must be a TopKSAE, got Linear"),
        ({"normalize": "rank"}, TypeError, "unexpected keyword argument 'normalize'"),
        ({"normalise": "z"}, ValueError, "DynamicSelector: normalise must be minmax, clip or rank, got 'z'"),
        (
            {"keep_ratio": 50},
            ValueError,
            r"DynamicSelector: keep_ratio, the fraction kept, must be in \(0, 1\], got 50",
        ),
        ({"epochs": 0}, ValueError, "DynamicSelector: epochs must be at least 1, got 0"),
        ({"temperature": -1}, ValueError, "DynamicSelector: temperature must be positive and finite, got -1"),
        ({"schedule": "step"}, ValueError, "DynamicSelector: schedule must be one of .* got 'step'"),
        ({"schedule": 1.5}, ValueError, "DynamicSelector: schedule must be between 0 and 1, got 1.5"),
        ({"refine": 2}, ValueError, "DynamicSelector: refine must be between 0 and 1, got 2"),
        ({"gamma": "a"}, TypeError, "DynamicSelector: gamma must be a number, got str"),
        ({"key": "a"}, TypeError, "DynamicSelector.from_features: key must be a Tensor or an int, got str"),
        ({"sae_options": {"lr": 0}}, ValueError, "lr must be"),
        ({"sae_options": {"rate": 1}}, TypeError, "unexpected keyword argument 'rate'"),
        (
            {"labels": torch.arange(64), "balance": "proportional"},
            ValueError,
            "DynamicSelector: keep_ratio must give at least one sample of each of the 64 classes .* subset of 32",
        ),
    ],
)
def test_bad_features(
    options: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before the autoencoder is trained."""

    def work(*_: Any, **__: Any) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr(torch.optim.Adam, "step", work)
    arguments = {"features": torch.randn(64, 8, generator=generator()), "keep_ratio": 0.5, "epochs": 4, "k": 4}
    with pytest.raises(error, match=message):
        DynamicSelector.from_features(**{"num_factors": 32, "key": 0, **arguments, **options})
