"""Whatever is passed for whichever argument of selection's classes and functions: taken, or refused by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pysel
from pysel import selection
from pysel.nn import TopKSAE
from pysel.selection import features, schedule, stream

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

N = 12
ROWS = np.random.default_rng(0).random((N, 3))
NUMBERS, LABELS = ROWS[:, 0], np.arange(N) % 3
FITTED = selection.Familiarity().fit(ROWS, LABELS > 0)
SAE = TopKSAE(3, 8, 2, key=pysel.key(0))


@functools.wraps(selection.InfoBatch)
def by_ratio(**arguments: Any) -> Any:
    return selection.InfoBatch(**arguments)


GOOD: dict[Callable[..., Any], dict[str, Any]] = {
    selection.FixedSelector: {"indices": [1, 2], "num_samples": N},
    selection.Full: {"num_samples": N},
    selection.StaticRandom: {"num_samples": N, "keep_ratio": 0.5, "labels": LABELS, "key": 0},
    selection.ScoreSelector: {"scores": NUMBERS, "keep_ratio": 0.5, "labels": LABELS},
    selection.KMeans: {"features": ROWS, "keep_ratio": 0.5, "num_clusters": 3, "iterations": 3, "key": 0},
    selection.NearestNeighbourThinning: {"features": ROWS, "keep_ratio": 0.5, "batch_size": 4},
    selection.Moderate: {"features": ROWS, "keep_ratio": 0.5, "labels": LABELS},
    selection.KCentre: {"features": ROWS, "keep_ratio": 0.5, "labels": LABELS},
    selection.Herding: {"features": ROWS, "keep_ratio": 0.5, "labels": LABELS},
    selection.FacilityLocation: {"features": ROWS, "keep_ratio": 0.5, "labels": LABELS},
    selection.GraphCut: {"features": ROWS, "keep_ratio": 0.5, "labels": LABELS, "trade_off": 1.0},
    selection.SemanticDiversity: {
        "features": ROWS, "labels": LABELS, "keep_ratio": 0.5, "class_features": ROWS, "alpha": 0.2, "neighbours": 3,
    },
    selection.semantic_scores: {
        "features": ROWS, "labels": LABELS, "class_features": ROWS, "neighbours": 3, "batch_size": 4,
    },
    selection.class_centres: {"features": ROWS, "labels": LABELS, "quantile": 0.2},
    selection.mine: {
        "features": ROWS, "centres": ROWS, "per_class": 2, "margin": 0.1, "least": 0.1, "batch_size": 4,
    },
    selection.nmtune_loss: {
        "features": torch.ones(N, 3), "z": torch.ones(N, 3), "consistency": 1.0, "covariance": 1.0, "spectrum": 1.0,
        "largest": 2,
    },
    selection.Familiarity: {"shrinkage": 1.0},
    selection.Familiarity().fit: {"awareness": ROWS, "seen": LABELS > 0},
    FITTED.scores: {"awareness": ROWS},
    selection.FamiliaritySelector: {
        "awareness": ROWS, "keep_ratio": 0.5, "classifier": FITTED, "labels": LABELS,
    },
    selection.awareness: {"hidden": [ROWS, ROWS]},
    selection.hidden_states: {"model": nn.Linear(3, 2), "x": torch.ones(N, 3), "layers": [""], "batch_size": 3},
    selection.DynamicRandom: {
        "num_samples": N, "keep_ratio": 0.5, "epochs": 4, "labels": LABELS, "balance": "equal", "refine": 0.1,
        "replacement": True, "key": 0,
    },
    selection.InfoBatch: {"num_samples": N, "epochs": 4, "prune_ratio": 0.5, "delta": 0.8, "key": 0},
    by_ratio: {
        "num_samples": N, "epochs": 4, "keep_ratio": 0.5, "max_weight": 3.0, "delta": 0.8, "key": 0,
    },
    selection.EpsilonGreedy: {
        "num_samples": N, "keep_ratio": 0.5, "epsilon": 0.1, "alpha": 0.2, "epochs": 4, "refine": 0.1, "key": 0,
    },
    selection.UCB: {
        "num_samples": N, "keep_ratio": 0.5, "c": 1.0, "alpha": 0.2, "epochs": 4, "refine": 0.1, "key": 0,
    },
    selection.OrderDP: {"num_samples": N, "keep_ratio": 0.5, "pool": 0.8, "epochs": 4, "refine": 0.1, "key": 0},
    selection.SeTa: {
        "num_samples": N, "epochs": 4, "prune_ratio": 0.1, "groups": 3, "window": 0.7, "delta": 0.8, "key": 0,
    },
    selection.RCAP: {"labels": LABELS, "keep_ratio": 0.5, "beta": 1.0, "epochs": 4, "refine": 0.1, "key": 0},
    selection.DynamicSelector: {
        "representativeness": NUMBERS, "diversity": NUMBERS[::-1], "keep_ratio": 0.5, "epochs": 4, "labels": LABELS,
        "balance": "equal", "gamma": 0.2, "penalty": "log", "schedule": "sigmoid", "refine": 0.1,
        "normalise": "minmax", "temperature": 0.1, "key": 0,
    },
    selection.DynamicSelector.from_features: {
        "features": ROWS, "keep_ratio": 0.5, "epochs": 4, "labels": LABELS, "sae": SAE, "sae_options": {},
        "common": 0.5, "class_coverage": "once", "key": 0,
    },
    selection.BatchLossScores: {"num_samples": N, "decay": 0.9},
    selection.BatchLossScores(N).update: {"indices": [1, 2], "loss": 1.0},
    selection.diverse_batch: {"errors": ROWS - 0.5, "features": ROWS, "k": 3, "key": 0},
    stream.Peaks: {"num_classes": 3, "capacity": 4, "accept_ratio": 0.3, "window": 9, "draw": "uses", "key": 0},
    stream.OnlineCoreset: {
        "num_classes": 3, "num_features": 2, "capacity": 4, "batch_size": 2, "tau": 1.0, "draw": "uses", "key": 0,
    },
    stream.ReplayMemory: {"capacity": 4, "keep": "balanced", "draw": "uses", "key": 0},
    selection.el2n: {"logits": ROWS, "labels": LABELS},
    selection.grand: {"logits": ROWS, "labels": LABELS, "features": ROWS},
    selection.margin: {"logits": ROWS, "labels": LABELS},
    selection.AUM: {"labels": LABELS, "num_classes": 3},
    selection.DynamicUncertainty: {"labels": LABELS, "num_classes": 3, "window": 4},
    selection.Forgetting: {"labels": LABELS, "num_classes": 3},
    selection.TDDS: {"labels": LABELS, "num_classes": 3, "window": 4, "decay": 0.5},
    selection.kmeans: {"features": ROWS, "num_clusters": 3, "iterations": 3, "batch_size": 4, "key": 0},
    selection.subset_size: {"keep_ratio": 0.5, "num_samples": N},
    selection.quotas: {"counts": [3, 4], "size": 3, "balance": "equal"},
    selection.Strata: {"num_samples": N, "size": 4, "labels": LABELS, "balance": "equal"},
    selection.to_unit_interval: {"scores": NUMBERS, "how": "clip", "quantile": 0.9},
    selection.factor_tables: {
        "sae": SAE, "features": ROWS, "labels": LABELS, "common": 0.5, "class_coverage": "once", "batch_size": 4,
    },
    features.standardise: {"x": ROWS, "eps": 1e-3},
    features.unit_length: {"x": ROWS},
    features.pca: {"x": ROWS, "dim": 2},
    features.random_projection: {"x": ROWS, "dim": 2, "key": 0},
    features.penultimate: {"model": nn.Linear(3, 2), "x": ROWS, "layer": "", "batch_size": 3},
    schedule.resolve: {"schedule": "cosine"},
}  # fmt: skip

ODD: list[Any] = [
    None, "a", "", b"x", [], {}, set(), object(), int, lambda p: p, iter([1]), range(N), torch.float32,
    True, False, -1, 0, 1, 2, 10**30, -(10**30), 1.5, math.nan, math.inf, -math.inf, 1j, np.float64("nan"),
    np.array([1.0]), np.array(2), np.zeros((N, 0)), -np.ones(N, int), np.full(N, 2**62), np.array(["2020"], "M8[D]"),
    np.ma.masked_array(NUMBERS, LABELS == 1), ["a"] * N, [None] * N, [[1], [2, 3]],
    torch.tensor(1.5), torch.ones(0), torch.ones(2, 2), torch.ones(N), torch.full((N,), 1e30), torch.ones(N) > 0,
    torch.full((N,), math.nan), torch.full((N, 3), math.inf), torch.ones(N, 3, dtype=torch.complex64),
    torch.ones(N).to_sparse(), torch.ones(N, device="meta"),
]  # fmt: skip


def refusal(call: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """The message, where the arguments are refused."""
    try:
        call(**arguments)
    except (TypeError, ValueError, IndexError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("call", GOOD, ids=lambda call: call.__qualname__)
def test_taken_or_refused_by_name(call: Callable[..., Any]) -> None:
    good = GOOD[call]
    assert refusal(call, good) is None
    for argument in good:
        if (call, argument) in ((features.penultimate, "x"), (selection.hidden_states, "x")):
            continue  # it is for the model to say what it takes
        for odd in ODD:
            message = refusal(call, {**good, argument: odd})
            if message is not None:
                assert message.startswith(call.__qualname__.split(".")[0]), (argument, odd, message)
                # that argument, or another that does not fit it
                assert any(name in message for name in good), (argument, odd, message)
