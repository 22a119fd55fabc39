"""pysel/selection/static/semantic.py: both scores against numpy, and what the paper's optimisation ends at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pysel.selection import SemanticDiversity, semantic_scores

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(n: int = 120, flipped: int = 0) -> tuple[Tensor, Tensor]:
    """Features [n, 6] around 4 centres and labels, the first ``flipped`` of them wrong."""
    labels = torch.arange(n) % 4
    x = 2 * torch.eye(6)[labels] + torch.randn(n, 6, generator=generator()) / 2
    return x, torch.where(torch.arange(n) < flipped, (labels + 1 + torch.arange(n) // 4 % 3) % 4, labels)


def brute_force(x: np.ndarray, y: np.ndarray, vectors: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    unit = x / np.sqrt((x**2).sum(1, keepdims=True))
    alignment, diversity = np.zeros(len(x)), np.zeros(len(x))
    for i in range(len(x)):
        others = [j for j in range(len(x)) if y[j] == y[i] and j != i]
        vector = np.zeros(x.shape[1])
        if vectors is not None:
            vector = vectors[y[i]]
        elif others:
            vector = unit[others].mean(0)
        alignment[i] = unit[i] @ vector / max(math.sqrt(vector @ vector), 1e-300)
        distances = sorted(float(np.sqrt(((unit[i] - unit[j]) ** 2).sum())) for j in others)[:k]
        diversity[i] = np.mean(distances) if distances else 0
    return alignment, diversity


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("neighbours", [1, 5, 1000])
def test_against_brute_force(dtype: torch.dtype, text: bool, neighbours: int) -> None:
    x, y = clusters()
    x, y = x.to(dtype), torch.where(torch.arange(120) == 50, 7, y)  # a class of one
    vectors = torch.randn(8, 6, generator=generator(1)).to(dtype) if text else None
    wanted = brute_force(
        x.double().numpy(), y.numpy(), None if vectors is None else vectors.double().numpy(), neighbours
    )
    for batch_size in (1024, 7):
        scores = semantic_scores(x, y, vectors, neighbours=neighbours, batch_size=batch_size)
        np.testing.assert_allclose(scores.alignment.numpy(), wanted[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(scores.diversity.numpy(), wanted[1], rtol=0, atol=1e-7)
    for alpha in (0, 0.3, 2):
        chosen = SemanticDiversity(x, y, 0.3, vectors, alpha=alpha, neighbours=neighbours).select()
        order = np.argsort(-(wanted[0] + alpha * wanted[1]), kind="stable")
        assert chosen.tolist() == sorted(order[:36].tolist())


def test_equal_samples_have_no_diversity() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [3.0, -1.0]])
    alignment, diversity = semantic_scores(x, [1, 1, 1, 0])
    assert diversity[:3].max() < 1e-7
    torch.testing.assert_close(alignment, torch.tensor([1.0, 1, 1, 0], dtype=torch.float64))


def test_the_papers_optimisation_ends_at_the_largest_sums() -> None:
    """An indicator a sample, learned by SGD through a straight-through estimator, selects at every step those of the
    largest sums; and the subset of the size asked for is the one that is taken at once."""
    x, y = clusters(flipped=24)
    alpha, beta, ratio, n = 0.3, 2.0, 0.6, len(x)
    size = round(ratio * n)
    alignment, diversity = semantic_scores(x, y)
    ranking = (alignment + alpha * diversity).argsort(descending=True)
    d = torch.ones(n, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([d], lr=0.01 * n)
    reached = None
    for _ in range(2000):
        probability = torch.sigmoid(d)
        hard = (probability > 0.5).double()
        indicator = hard + probability - probability.detach()
        count_loss = (indicator.mean() - ratio).abs()
        loss = -(indicator * alignment).mean() - alpha * (indicator * diversity).mean() + beta * count_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        count = int(hard.sum())
        assert set(torch.nonzero(hard).flatten().tolist()) == set(ranking[:count].tolist())
        if count == size:
            reached = torch.nonzero(hard).flatten()
    assert reached is not None
    assert torch.equal(SemanticDiversity(x, y, ratio, alpha=alpha).select(), reached)


def test_wrong_labels_are_left_out() -> None:
    """At 20 % wrong labels and 80 % kept, most of what goes is wrong; a random choice would remove a fifth."""
    x, y = clusters(400, flipped=80)
    kept = SemanticDiversity(x, y, 0.8).select()
    assert int((kept < 80).sum()) < 16


def test_near_duplicates_are_left_out() -> None:
    """Of half of the samples 11 copies each, and as alike to their class as the others: diversity chooses the rest."""
    x, y = clusters(480)
    x[:240] = x[:20].repeat(12, 1)
    kept = [SemanticDiversity(x, y, 0.5, alpha=alpha).select() for alpha in (0.0, 2.0)]
    copies = [float((chosen < 240).double().mean()) for chosen in kept]
    assert copies[1] < copies[0] / 2


def with_nan() -> Tensor:
    x = torch.ones(20, 3)
    x[13, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: SemanticDiversity(with_nan(), [0] * 20, 0.5),
            ValueError,
            "SemanticDiversity: features must be finite, got nan in row 13",
        ),
        (
            lambda: SemanticDiversity(torch.ones(9, 2), [0] * 8, 0.5),
            ValueError,
            r"SemanticDiversity: labels must have shape \[9\], got \[8\]",
        ),
        (
            lambda: SemanticDiversity(torch.ones(9, 2), [0] * 9, 0.5, torch.ones(1, 3)),
            ValueError,
            "SemanticDiversity: class_features must have as many columns as features, 2, got 3",
        ),
        (
            lambda: semantic_scores(torch.ones(3, 2), [0, 1, 2], torch.ones(2, 2)),
            ValueError,
            "semantic_scores: labels must be rows of class_features, 0 to 1, got 2",
        ),
        (
            lambda: semantic_scores(torch.ones(3, 2), [0, -1, 1], torch.ones(2, 2)),
            ValueError,
            "semantic_scores: labels must be rows of class_features, 0 to 1, got -1",
        ),
        (
            lambda: semantic_scores(torch.ones(3, 2), [0, 1, 1], neighbours=0),
            ValueError,
            "semantic_scores: neighbours must be at least 1, got 0",
        ),
        (
            lambda: SemanticDiversity(torch.ones(9, 2), [0] * 9, 0.5, alpha=-1),
            ValueError,
            "SemanticDiversity: alpha must be finite and at least 0, got -1",
        ),
        (
            lambda: SemanticDiversity(torch.ones(9, 2), [0] * 9, 0),
            ValueError,
            "SemanticDiversity: keep_ratio, the fraction kept, must be in",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_state_loads() -> None:
    x, y = clusters()
    selector, other = SemanticDiversity(x, y, 0.3), SemanticDiversity(-x.square(), y, 0.3)
    other.load_state_dict(selector.state_dict())
    assert torch.equal(other.select(), selector.select())
