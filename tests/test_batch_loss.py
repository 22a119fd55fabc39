"""pysel/selection/dynamic/batch_loss.py: the average against numpy, refusals and states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pysel.selection import BatchLossScores, InfoBatch
from tests.epochs import through_a_file


def test_scores_against_an_oracle() -> None:
    n, decay = 50, 0.7
    scores, wanted = BatchLossScores(n, decay), [math.nan] * n
    generator = np.random.default_rng(0)
    for step in range(40):
        batch = generator.choice(n, 8, replace=False)
        loss = float(generator.normal())
        given = scores.update(batch, loss if step % 2 else torch.tensor(loss, dtype=torch.float64, requires_grad=True))
        for i in batch:
            wanted[i] = loss if math.isnan(wanted[i]) else decay * wanted[i] + (1 - decay) * loss
        assert given.dtype == torch.float32 and not given.requires_grad
        np.testing.assert_allclose(given, [wanted[i] for i in batch], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.state_dict()["scores"], wanted, rtol=1e-5, atol=1e-6)


def test_hard_samples_come_to_have_larger_scores() -> None:
    """Of 64 samples four raise the mean loss of each batch they are in; the batches are mixed anew in each epoch."""
    scores, selector = BatchLossScores(64), InfoBatch(64, 100, key=0)
    own = torch.zeros(64).index_fill(0, torch.arange(4), 8.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        for batch in torch.randperm(64, generator=generator).split(8):
            selector.update(batch, losses=scores.update(batch, own[batch].mean()))
    found = scores.state_dict()["scores"]
    assert float(found[:4].min()) > float(found[4:].max())
    assert set(range(4)) <= set(selector.select(1).tolist())


def test_a_state_goes_on() -> None:
    scores, resumed = BatchLossScores(5, 0.5), BatchLossScores(5, 0.5)
    scores.update([0, 3], 2.0)
    state = scores.state_dict()
    resumed.load_state_dict(through_a_file(state))
    state["scores"].fill_(9)
    assert torch.equal(resumed.update([3, 4], 1.0), scores.update([3, 4], 1.0))
    assert resumed.state_dict()["scores"].nan_to_num(-1).tolist() == [2, -1, -1, 1.5, 1]


@pytest.mark.parametrize("surroundings", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_the_callers_surroundings_change_nothing(surroundings: Any) -> None:
    with surroundings():
        scores = BatchLossScores(3)
        first = scores.update([0, 1], 1.0)
        scores.load_state_dict(scores.state_dict())
    assert first.tolist() == [1, 1] and not first.is_inference()
    assert scores.update([1], 2.0).tolist() == pytest.approx([1.1])


@pytest.mark.parametrize(
    ("indices", "loss", "error", "message"),
    [
        ([0, 5], 1.0, ValueError, "indices must be between 0 and 4, got 5"),
        ([-1], 1.0, ValueError, "indices must be between 0 and 4, got -1"),
        ([1, 1], 1.0, ValueError, "indices must be distinct, got 1 more than once"),
        ([0], math.nan, ValueError, "loss must be finite, got nan"),
        ([0], -math.inf, ValueError, "loss must be finite, got -inf"),
        ([0], 1e39, ValueError, "loss must be finite, got 1e[+]39"),
        ([0], torch.ones(1), TypeError, "loss must be a number, got Tensor of shape"),
        ([0], "1", TypeError, "loss must be a number, got str"),
    ],
)
def test_a_refused_batch_has_changed_nothing(indices: Any, loss: Any, error: type[Exception], message: str) -> None:
    scores = BatchLossScores(5)
    scores.update([0, 1], 3.0)
    with pytest.raises(error, match=f"BatchLossScores.update: {message}"):
        scores.update(indices, loss)
    assert scores.state_dict()["scores"].nan_to_num(-1).tolist() == [3, 3, -1, -1, -1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (None, TypeError, "state_dict must be a dictionary, got NoneType"),
        ({}, ValueError, "state_dict must have decay, scores"),
        ({"decay": 0.5, "scores": torch.ones(5)}, ValueError, "of scores with decay=0.9, got 0.5"),
        (
            {"decay": 0.9, "scores": torch.ones(4)},
            ValueError,
            r"state_dict\['scores'\] must have shape \[5\], got \[4\]",
        ),
        ({"decay": 0.9, "scores": [1.0]}, TypeError, r"state_dict\['scores'\] must be a Tensor, got list"),
        ({"decay": 0.9, "scores": torch.full((5,), math.inf)}, ValueError, r"state_dict\['scores'\] must be finite"),
    ],
)
def test_refused_states(change: Any, error: type[Exception], message: str) -> None:
    scores = BatchLossScores(5)
    with pytest.raises(error, match=message):
        scores.load_state_dict(change)
    assert bool(scores.state_dict()["scores"].isnan().all())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"BatchLossScores: decay must be in \[0, 1\), got 1"):
        BatchLossScores(5, 1)
    with pytest.raises(ValueError, match="BatchLossScores: num_samples must be at least 1, got 0"):
        BatchLossScores(0)
