"""pysel/selection/learned/gate.py: budgets are exact, gradients right, and draws those of the distribution."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pysel
from pysel.random import gumbel_at
from pysel.selection.learned import gumbel_khot
from pysel.selection.learned.gate import budgeted, perceptron, with_label
from tests.statistics import accept, chi_square, reject


@pytest.mark.parametrize("tau", [5.0, 0.3, 1e-3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("k", [1, 7, 36])
def test_gates_add_up_to_the_budget(k: int, scale: float, tau: float) -> None:
    logits = scale * torch.randn(37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gates = gumbel_khot(logits, k, tau, key=0)
    assert gates.sum().item() == pytest.approx(k, abs=1e-9) and bool(((gates >= 0) & (gates <= 1)).all())
    assert float(gumbel_khot(logits.float(), k, tau, True, key=0).sum()) == k
    assert gumbel_khot(logits.float(), k, tau, key=0).dtype == torch.float32


def test_the_ends_of_the_budget() -> None:
    logits = torch.randn(5)
    assert gumbel_khot(logits, 0, key=0).tolist() == [0] * 5 and gumbel_khot(logits, 5, key=0).tolist() == [1] * 5
    assert gumbel_khot(logits[:0], 0, key=0).shape == (0,)
    for k in (-1, 6):
        with pytest.raises(ValueError, match=f"gumbel_khot: k must be between 0 and 5, got {k}"):
            gumbel_khot(logits, k)
    with pytest.raises(ValueError, match=r"gumbel_khot: logits must be \[B\], got \[1, 5\]"):
        gumbel_khot(logits[None], 1)


def test_shards_take_their_part_of_the_noise() -> None:
    noise = torch.empty(50, dtype=torch.float64)
    for start in (0, 20):  # with a budget of one the hard gate is open at the largest
        noise[start : start + 30] = gumbel_at(torch.arange(start, start + 30), pysel.key(5), torch.float64)
    for start in (0, 20):
        hard = gumbel_khot(torch.zeros(30), 1, 1.0, True, key=5, start=start)
        assert int(hard.argmax()) == int(noise[start : start + 30].argmax())


def test_the_gates_of_two_by_hand() -> None:
    """With B = 2 and k = 1 nu is half way, and the gates are s(+-(z1 - z2) / 2)."""
    z = torch.tensor([0.7, -0.5], dtype=torch.float64)
    half = torch.tensor(1.2 / 2 / 0.4, dtype=torch.float64)
    torch.testing.assert_close(budgeted(z, 1, 0.4), torch.stack([torch.sigmoid(half), torch.sigmoid(-half)]))


def test_gradients_move_the_threshold_along() -> None:
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: gumbel_khot(s, 4, 0.7, key=3), logits)
    soft = torch.autograd.grad((gumbel_khot(logits, 4, 0.7, key=3) * torch.arange(9)).sum(), logits)[0]
    hard = torch.autograd.grad((gumbel_khot(logits, 4, 0.7, True, key=3) * torch.arange(9)).sum(), logits)[0]
    torch.testing.assert_close(soft, hard)
    torch.testing.assert_close(soft.sum(), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


def test_cold_gates_are_the_largest_of_the_noisy_logits() -> None:
    logits = torch.randn(50)
    hard = gumbel_khot(logits, 10, 1.0, True, key=5)
    torch.testing.assert_close(gumbel_khot(logits, 10, 1e-4, key=5), hard, atol=1e-3, rtol=0)


def test_hard_gates_draw_without_replacement() -> None:
    """k of n by logits: a set {i, j} has probability p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j)."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    pairs = list(itertools.combinations(range(4), 2))
    wanted = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs]
    logits = torch.from_numpy(p).log()
    draws = [gumbel_khot(logits, 2, 1.0, True, key=pysel.fold_in(pysel.key(0), t)) for t in range(4000)]
    counts = [sum(bool(d[i] and d[j]) for d in draws) for i, j in pairs]
    accept({"pairs": chi_square(counts, wanted)})
    reject({"pairs": chi_square(counts, np.full(6, 1 / 6))})


def test_the_perceptron_is_a_function_of_its_key_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (perceptron((5, 16), key=key) for key in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[1].weight, again[1].weight) and not torch.equal(first[1].weight, other[1].weight)
    assert first(torch.randn(3, 5)).shape == (3, 1)


def test_the_perceptron_standardises_whatever_comes() -> None:
    network = perceptron((2, 8), key=0).train()
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e4, 1e-3]) + 50
    for batch in x.split(100):
        network(batch)
    assert isinstance(network[0], nn.BatchNorm1d)
    seen = network.eval()[0](x)
    torch.testing.assert_close(seen.std(0), torch.ones(2), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("y", "classes", "wanted"),
    [
        (torch.tensor([1, 0]), 3, [[0, 1, 0], [1, 0, 0]]),
        (torch.tensor([1, 0], dtype=torch.uint8), 2, [[0, 1], [1, 0]]),
        (torch.tensor([[0.5], [2.0]]), 0, [[0.5], [2.0]]),
        (torch.tensor([0.5, 2.0]), 0, [[0.5], [2.0]]),
    ],
)
def test_labels_beside_the_inputs(y: Any, classes: int, wanted: Any) -> None:
    x = torch.randn(2, 2, 3)
    seen = with_label(x, y, classes)
    assert torch.equal(seen[:, :6], x.flatten(1)) and seen[:, 6:].tolist() == wanted and seen.dtype == x.dtype
