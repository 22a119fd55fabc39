"""bench/experiments/factors.py: its scores are the paper's, and it says which runs it compared."""

from __future__ import annotations

import pytest
import torch

from bench.experiments import factors
from bench.experiments.factors import Problem, scores
from pysel.sae import train_sae


def small() -> Problem:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=g)
    return Problem(torch.randn(200, 8, generator=g) + labels[:, None], labels, 3)


@pytest.mark.filterwarnings("ignore:train_sae")
@pytest.mark.parametrize("activation", ["relu", "abs"])
def test_scores_are_the_sums_of_the_paper(activation: str) -> None:
    data = small()
    sae, _ = train_sae(data.features, 40, 4, activation=activation, epochs=2, key=0)
    values, indices = sae.encode(data.features)
    active = torch.zeros(200, 40, dtype=torch.bool)
    for i in range(200):
        for value, j in zip(values[i].tolist(), indices[i].tolist(), strict=True):
            active[i, j] = value != 0
    count = active.sum(0)
    classes = torch.stack([active[data.labels == c].any(0) for c in range(3)]).sum(0)
    live = int((count > 0).sum())
    common = sorted(range(40), key=lambda j: (-int(count[j]), j))[: max(1, live // 10)]
    for i, (representativeness, diversity) in enumerate(scores(sae, data, batch_size=64).tolist()):
        assert representativeness == pytest.approx(sum(1 / int(classes[j]) for j in common if active[i, j]))
        assert diversity == pytest.approx(sum(1 / int(count[j]) for j in range(40) if active[i, j]))
    assert float(scores(sae, data)[:, 1].sum()) == pytest.approx(live)


@pytest.mark.filterwarnings("ignore:train_sae")
def test_the_same_run_agrees_with_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "problem", lambda name: small())
    monkeypatch.setattr(factors, "FORMS", {"tiny": {"num_factors": 16, "k": 4, "epochs": 2}})
    result = factors.run("flights")
    agreement = result["forms"]["tiny"]["rank_correlation"]
    # the default sample is all of these 200 rows, so with one key it is the same run
    assert agreement["the default sample against all, one key"] == {"representativeness": 1.0, "diversity": 1.0}
    assert agreement["all rows, two keys"] == agreement["the default sample, two keys"]
    assert agreement["all rows, two keys"]["diversity"] < 0.99
