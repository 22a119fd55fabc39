"""pysel/selection/asss.py: who is chosen, and what the two networks learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pysel
from pysel.selection import (
    ASSS,
    performance_retention_rate,
    quotas,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_task(seed: int, n: int = 600, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Two classes with a gap between them, a share of labels wrong: inputs, labels, which are wrong."""
    g = generator(seed)
    x = torch.randn(n, 8, generator=g)
    y = (x[:, 0] > 0).long()
    x[:, 0] += 2.0 * y - 1
    wrong = torch.rand(n, generator=g) < noise
    return x, torch.where(wrong, 1 - y, y), wrong


def linear_network(seed: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Linear(8, 2)

    return make


def share_of_wrong_labels(seed: int, keep_ratio: float, **options: Any) -> float:
    x, y, wrong = noisy_task(seed)
    selector = ASSS(keep_ratio, batch_size=100, key=pysel.key(seed), **options)
    chosen = selector.fit(x, y, linear_network(seed)).select()
    assert len(chosen) == math.ceil(600 * keep_ratio)
    return float(wrong[chosen].float().mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalise": True},
        {"attenuation": "input"},
        {"hard": True},
        {"attenuation": "input", "sparsity": "mean", "sparsity_weight": 0.1},
    ],
    ids=str,
)
def test_asss_leaves_out_wrong_labels(seed: int, options: dict[str, Any]) -> None:
    """A random half has 30 % wrong labels, with standard error 2.6 points; ASSS keeps nearly none."""
    assert share_of_wrong_labels(seed, 0.5, **options) < 0.05


@pytest.mark.parametrize("seed", range(2))
def test_the_adversarial_game_keeps_what_the_cooperative_one_drops(seed: int) -> None:
    assert share_of_wrong_labels(seed, 0.3, game="adversarial") > 0.6


def test_an_asss_that_cannot_learn_is_random() -> None:
    """The control for the tests above: without learning, the subset has the data's share of wrong labels."""
    shares = [share_of_wrong_labels(seed, 0.5, selector_lr=1e-12, epochs=3) for seed in range(3)]
    assert 0.2 < sum(shares) / 3 < 0.4


def test_asss_with_a_selector_network_that_sees_labels() -> None:
    x, y, wrong = noisy_task(0)
    seen = torch.cat([x, F.one_hot(y, 2)], 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    selector = ASSS(0.5, batch_size=100, selector_lr=1e-2, selector=network, key=pysel.key(0))
    chosen = selector.fit(x, y, linear_network(0), selector_inputs=seen).select()
    assert float(wrong[chosen].float().mean()) < 0.05


def test_asss_sparsity_reaches_its_target() -> None:
    x, y, _ = noisy_task(0)
    for rho in (0.3, 0.5):
        selector = ASSS(rho, batch_size=100, normalise=True, key=pysel.key(0)).fit(x, y, linear_network(0))
        assert selector.history[-1]["mean_probability"] == pytest.approx(rho, abs=0.1)
        assert selector.probabilities.shape == (600,)


def test_asss_anneals_and_reports() -> None:
    x, y, _ = noisy_task(0, n=50)
    seen: list[int] = []
    selector = ASSS(0.5, epochs=4, tau=1.0, tau_rate=1.0, tau_min=0.2, key=pysel.key(0))
    selector.fit(x, y, linear_network(0), progress=lambda epoch, _: seen.append(epoch))
    taus = [entry["tau"] for entry in selector.history]
    assert taus == pytest.approx([1.0, math.exp(-1), 0.2, 0.2]) and seen == [0, 1, 2, 3]


def test_asss_is_a_function_of_its_key() -> None:
    x, y, _ = noisy_task(0, n=200)

    def fit(seed: int) -> ASSS:
        return ASSS(0.5, epochs=4, key=pysel.key(seed)).fit(x, y, linear_network(0))

    before = torch.get_rng_state()
    assert torch.equal(fit(0).probabilities, fit(0).probabilities)
    assert not torch.equal(fit(0).probabilities, fit(1).probabilities)
    assert torch.equal(before, torch.get_rng_state())


def test_asss_regression_stratification_and_state() -> None:
    x, y, _ = noisy_task(0, n=200)
    target = x[:, 0] * 2
    with torch.random.fork_rng(devices=[]):
        fitted = ASSS(0.25, epochs=3, key=pysel.key(0)).fit(x, target, lambda: nn.Linear(8, 1), labels=y)
    chosen = fitted.select()
    counts = torch.bincount(y)
    assert torch.equal(torch.bincount(y[chosen]), quotas(counts.tolist(), 50))
    assert isinstance(fitted, pysel.samplers.Selects) and torch.equal(fitted.select(9), chosen)
    resumed = ASSS(0.25)
    with pytest.raises(RuntimeError, match="call fit first"):
        resumed.select()
    resumed.load_state_dict(fitted.state_dict())
    assert torch.equal(resumed.select(), chosen) and len(resumed) == 50


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_ratio": 1.5}, ValueError, "keep_ratio, the fraction kept"),
        ({"epochs": 0}, ValueError, "ASSS: epochs must be at least 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "ASSS: batch_size must be an int, got float"),
        ({"task_lr": 0.0}, ValueError, "ASSS: task_lr must be positive and finite, got 0.0"),
        ({"tau_min": -1.0}, ValueError, "ASSS: tau_min must be positive and finite, got -1.0"),
        (
            {"sparsity_weight": -1.0},
            ValueError,
            "ASSS: sparsity_weight must be finite and at least 0, got -1.0",
        ),
        ({"attenuation": "both"}, ValueError, "ASSS: attenuation must be loss or input, got 'both'"),
        ({"game": "zero-sum"}, ValueError, "game must be cooperative or adversarial, got 'zero-sum'"),
        ({"sparsity": "l0"}, ValueError, "ASSS: sparsity must be target or mean, got 'l0'"),
        ({"sparsity": "mean"}, ValueError, "ASSS: sparsity must be 'target', got 'mean'"),
        ({"normalise": True, "attenuation": "input"}, ValueError, "ASSS: normalise must be False with"),
    ],
)
def test_bad_asss_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ASSS(**{"keep_ratio": 0.5, **options})


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (torch.ones(4, 8).long(), torch.zeros(4).long()),
            {},
            TypeError,
            "ASSS: x must be .* got torch.int64",
        ),
        ((torch.ones(0, 8), torch.zeros(0).long()), {}, ValueError, r"ASSS: x must be .* got \[0, 8\]"),
        ((torch.ones(4, 8), torch.zeros(3).long()), {}, ValueError, r"y must have 4 rows like x, got \[3\]"),
        (
            (torch.ones(4, 8), torch.zeros(4).long()),
            {"loss": F.cross_entropy},
            ValueError,
            r"loss must return one number a sample, \[4\], got \[\]",
        ),
    ],
)
def test_bad_asss_data(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ASSS(0.5, key=pysel.key(0)).fit(*arguments, linear_network(0), **options)


def test_performance_retention_rate() -> None:
    assert performance_retention_rate(0.89, 0.9) == pytest.approx(0.98889, abs=1e-5)
    with pytest.raises(ValueError, match="full_metric must be positive, got 0"):
        performance_retention_rate(0.5, 0)
