"""pysel/selection: exact sizes, who is chosen and how often, and what the systems learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pysel
from pysel.reference.random import noise_like
from pysel.selection import (
    ASSS,
    DynamicRandom,
    FixedSelector,
    FullSelector,
    InfoBatch,
    KMeansSelector,
    NearestNeighbourThinning,
    ScoreSelector,
    Selector,
    StaticRandomSelector,
    Strata,
    el2n,
    kmeans,
    performance_retention_rate,
    quotas,
    schedule,
    subset_size,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- subset.py -----------------------------------------------------------------------


def test_subset_size_is_the_exact_ceiling() -> None:
    assert subset_size(0.07, 50_000) == 3_500  # math.ceil(0.07 * 50_000) is 3,501
    assert math.ceil(0.07 * 50_000) == 3_501
    for percent in range(1, 101):
        for n in (1, 7, 100, 1_000, 50_000, 60_000, 10**9, 3 * 10**15 + 1):
            assert subset_size(percent / 100, n) == -(-percent * n // 100)


@pytest.mark.parametrize("ratio", [0.07, np.float64(0.07), np.float32(0.07), Decimal("0.07"), Fraction(7, 100)])
def test_subset_size_takes_the_number_that_was_written(ratio: Any) -> None:
    assert subset_size(ratio, 50_000) == 3_500


def test_subset_size_edges() -> None:
    assert subset_size(1, 5) == subset_size(1.0, 5) == 5
    assert subset_size(1e-9, 5) == 1
    assert subset_size(1 / 3, 3) == 1


@pytest.mark.parametrize("ratio", [0, 0.0, -0.1, 1.0000001, 2, float("nan"), float("inf")])
def test_subset_size_refuses_ratios_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"keep_ratio, the fraction kept, must be in \(0, 1\], got"):
        subset_size(ratio, 10)


@pytest.mark.parametrize("ratio", ["0.5", None, True, torch.tensor(0.5), 1j])
def test_subset_size_refuses_other_types(ratio: Any) -> None:
    with pytest.raises(TypeError, match="keep_ratio must be a number, got"):
        subset_size(ratio, 10)


def proportional_quotas(counts: list[int], size: int) -> list[int]:
    """Largest remainder, at least one each; what is too much is taken from the largest, one at a time."""
    total = sum(counts)
    quota = [max(1, size * count // total) for count in counts]
    remainder = [size * count % total if size * count >= total else 0 for count in counts]
    for c in sorted(range(len(counts)), key=lambda c: -remainder[c])[: max(size - sum(quota), 0)]:
        quota[c] += 1
    while sum(quota) > size:
        quota[quota.index(max(quota))] -= 1
    return quota


def equal_quotas(counts: list[int], size: int) -> list[int]:
    """The next sample goes to the class that has given least and has one left, of those to the largest."""
    quota = [0] * len(counts)
    for _ in range(size):
        left = [c for c in range(len(counts)) if quota[c] < counts[c]]
        quota[min(left, key=lambda c: (quota[c], -counts[c], c))] += 1
    return quota


def test_quotas() -> None:
    g = generator()
    for case in range(400):
        most = 100 if case % 2 else 4  # many classes raised to one
        counts = torch.randint(1, most, (int(torch.randint(1, 40, (), generator=g)),), generator=g).tolist()
        size = int(torch.randint(len(counts), sum(counts) + 1, (), generator=g))
        if case % 3 == 0:
            counts[0], size = 1000, len(counts) + case % 5
        assert quotas(counts, size).tolist() == proportional_quotas(counts, size)
        if all(size * c >= sum(counts) for c in counts):
            exact = (size * c / sum(counts) for c in counts)
            assert all(abs(q - e) < 1 for q, e in zip(quotas(counts, size).tolist(), exact, strict=True))
        size = int(torch.randint(0, sum(counts) + 1, (), generator=g))
        assert quotas(torch.tensor(counts), size, "equal").tolist() == equal_quotas(counts, size)
    assert quotas([2**40, 2**40, 2**40], 2**41 + 2).sum() == 2**41 + 2, "products beyond 64 bits"
    many = quotas(torch.arange(1, 20_001), 60_000_000)  # in milliseconds, and not in minutes
    assert many.sum() == 60_000_000 and many.min() >= 1
    with pytest.raises(ValueError, match=r"at least one sample of each of the 3 classes .* got 2"):
        quotas([5, 5, 5], 2)
    with pytest.raises(ValueError, match=r"at most all 15, got 16"):
        quotas([5, 5, 5], 16, "equal")


def test_strata_without_labels_is_plain_selection() -> None:
    scores = torch.rand(100, generator=generator())
    assert torch.equal(Strata(100, 30).best(scores), pysel.ops.select(scores, 30))


def test_strata_is_selection_within_each_class() -> None:
    labels = torch.randint(-1, 3, (500,), generator=generator())
    scores = torch.rand(500, generator=generator(1))
    strata = Strata(500, 100, labels)
    chosen = strata.best(scores)
    assert torch.equal(chosen, chosen.sort().values) and len(chosen) == 100
    for c, quota in zip(range(-1, 3), strata.quotas.tolist(), strict=True):
        rows = torch.nonzero(labels == c).flatten()
        best = rows[scores[rows].argsort(descending=True)[:quota]].sort().values
        assert torch.equal(chosen[labels[chosen] == c], best)
    drawn = strata.sample(torch.zeros(500), pysel.key(0))
    assert len(drawn.unique()) == 100 and torch.equal(drawn, drawn.sort().values)
    assert torch.unique(labels[drawn], return_counts=True)[1].tolist() == strata.quotas.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inclusion_is_by_the_best_key_that_its_class_loses(dtype: torch.dtype) -> None:
    n, key = 300, pysel.key(4)
    labels = torch.randint(4, (n,), generator=generator())
    labels[:3] = 9  # all of a class are taken
    w = torch.randn(n, generator=generator(1), dtype=dtype)
    high, low = (torch.ops.pysel.random_words(key, stream, 0, n) for stream in (0, 1))
    race = w + torch.ops.pysel.noise(high << 32 | low, "gumbel", dtype == torch.float64)
    for classes in (labels, None):
        strata = Strata(n, 200, classes)
        chosen, probability = strata.sample(w, key), strata.inclusion(w, key)
        of = torch.zeros_like(labels) if classes is None else labels
        for c in of.unique().tolist():
            out = torch.ones(n, dtype=torch.bool).index_fill(0, chosen, False) & (of == c)
            mine = chosen[of[chosen] == c]
            best = race[out].max() if bool(out.any()) else torch.tensor(-math.inf)
            assert (race[mine] > best).all()
            expected = 1 - torch.exp(-torch.exp(w[mine].double() - best.double()))
            torch.testing.assert_close(probability[of[chosen] == c].double(), expected, rtol=1e-5, atol=1e-6)


def test_strata_order_ties_by_a_key() -> None:
    labels = torch.arange(1000) % 3
    strata = Strata(1000, 300, labels)
    first = strata.best(torch.zeros(1000))
    other = strata.best(torch.zeros(1000), pysel.key(1))
    assert first.max() < 310 and other.max() > 900
    assert torch.equal(torch.bincount(labels[other]), torch.bincount(labels[first]))


def test_ties_go_to_the_lowest_index() -> None:
    assert Strata(6, 3).best(torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, 1.0])).tolist() == [0, 1, 4]


# --- schedule.py ---------------------------------------------------------------------


def test_schedule_end_points() -> None:
    assert schedule.sigmoid(1.0) == pytest.approx(0.2 + 0.8 / (1 + math.exp(4)))
    assert schedule.sigmoid(0.3, midpoint=0.3, floor=0.0) == 0.5
    assert schedule.sigmoid(0.0, width=1e-300) == 1.0 and schedule.sigmoid(1.0, width=1e-300) == 0.2
    assert schedule.cosine(0.0) == 1.0 and schedule.cosine(1.0) == 0.0
    assert schedule.cosine(0.5) == pytest.approx(0.5)
    assert schedule.linear(0.0, 0.8, 0.2) == 0.8 and schedule.linear(1.0, 0.8, 0.2) == pytest.approx(0.2)
    assert schedule.constant(0.0) == schedule.constant(1.0) == 0.5


def test_the_published_schedule() -> None:
    """arXiv 2603.04981 at 200 epochs, by our reading of its constants."""
    values = {1: 0.998, 80: 0.905, 100: 0.785, 120: 0.6, 160: 0.295, 170: 0.261}
    for t, alpha in values.items():
        assert schedule.sigmoid(t / 200) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("curve", [schedule.sigmoid, schedule.cosine, schedule.linear])
def test_schedules_fall_and_stay_in_range(curve: schedule.Schedule) -> None:
    values = [curve(p / 100) for p in range(101)]
    assert values == sorted(values, reverse=True) and 0 <= values[-1] < values[0] <= 1


def test_temperature() -> None:
    values = [schedule.exponential_decay(t, 2.0, 0.5, 0.3) for t in range(10)]
    assert values[0] == 2.0 and values[1] == pytest.approx(2 * math.exp(-0.5)) and values[-1] == 0.3


def test_resolve() -> None:
    assert schedule.resolve("cosine") is schedule.cosine
    assert schedule.resolve(0.25)(0.9) == 0.25
    with pytest.raises(ValueError, match="must be one of sigmoid, cosine, linear, constant, got 'step'"):
        schedule.resolve("step")
    with pytest.raises(TypeError, match="must be a name, a number or a function, got NoneType"):
        schedule.resolve(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must stay in \[0, 1\], got 1.5 at progress 0.5"):
        schedule.balance(lambda p: 1.5, 0.5)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        schedule.sigmoid(0.5, width=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 30, 199, 200])
def test_inclusion_goes_by_the_best_key_that_lost(dtype: torch.dtype, size: int) -> None:
    log_weights, key = torch.rand(200, generator=generator()).to(dtype).log(), pysel.key(3)
    race = log_weights + noise_like(log_weights, key, 0, "gumbel")
    strata = Strata(200, size)
    probability = strata.inclusion(log_weights, key)
    assert probability.dtype == dtype
    if size == 200:
        assert (probability == 1).all()
        return
    threshold = race.sort(descending=True).values[size]
    chosen = strata.sample(log_weights, key)
    assert torch.equal(chosen, (race > threshold).nonzero()[:, 0])
    torch.testing.assert_close(probability, 1 - torch.exp(-torch.exp(log_weights[chosen] - threshold)))


# --- asss.py -------------------------------------------------------------------------


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


# --- baselines.py --------------------------------------------------------------------


def test_full_and_fixed() -> None:
    assert FullSelector(4).select(3).tolist() == [0, 1, 2, 3] and len(FullSelector(4)) == 4
    fixed = FixedSelector(torch.tensor([1, 3]))
    fixed.select(0)[:] = 9
    assert fixed.select(1).tolist() == [1, 3]


def test_static_random() -> None:
    selector = StaticRandomSelector(1000, 0.3, key=pysel.key(0))
    assert torch.equal(selector.select(0), selector.select(5)) and len(selector.select(0).unique()) == 300
    assert not torch.equal(selector.select(0), StaticRandomSelector(1000, 0.3, key=pysel.key(1)).select(0))
    labels = torch.arange(1000) % 4
    even = StaticRandomSelector(1000, 0.1, labels=labels, key=pysel.key(0)).select(0)
    assert torch.bincount(labels[even]).tolist() == [25] * 4


def test_el2n_and_score_selector() -> None:
    logits = torch.randn(20, 5, generator=generator(), dtype=torch.float64)
    labels = torch.arange(20) % 5
    expected = (torch.softmax(logits, 1) - F.one_hot(labels, 5)).norm(dim=1)
    scores = el2n(logits, labels)
    torch.testing.assert_close(scores, expected)
    hardest = ScoreSelector(scores, 0.25)
    assert hardest.select(0).tolist() == sorted(scores.topk(5).indices.tolist())
    easiest = ScoreSelector(scores, 0.25, largest=False)
    assert easiest.select(0).tolist() == sorted(scores.topk(5, largest=False).indices.tolist())
    confident = el2n(torch.tensor([[30.0, 0.0]]), torch.tensor([0]))
    assert float(confident) == pytest.approx(2**0.5 * math.exp(-30), rel=1e-4), "digits survive near 0"
    with pytest.raises(ValueError, match=r"labels must be \[N\] for logits \[N, C\]"):
        el2n(logits, labels[:3])


def blobs() -> tuple[Tensor, Tensor]:
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    which = torch.arange(300) % 3
    return centres[which] + torch.randn(300, 2, generator=generator()), which


def test_kmeans() -> None:
    x, which = blobs()
    for seed in range(20):
        centroids, cluster, distance = kmeans(x, 3, key=pysel.key(seed), batch_size=64)
        torch.testing.assert_close(distance, (x - centroids[cluster]).square().sum(1), atol=1e-3, rtol=1e-3)
        found = {(int(a), int(b)) for a, b in zip(which, cluster, strict=True)}
        if len(found) == 3:  # an unlucky start may end in a local optimum
            torch.testing.assert_close(centroids[int(cluster[0])], x[which == 0].mean(0), atol=1e-3, rtol=1e-3)
            break
    else:
        pytest.fail("no start of twenty found the three blobs")


def test_kmeans_selector_keeps_the_middles() -> None:
    x, which = blobs()
    chosen = KMeansSelector(x, 0.3, 3, key=pysel.key(3)).select(0)
    assert len(chosen) == 90
    rest = torch.ones(300, dtype=torch.bool)
    rest[chosen] = False
    for blob in range(3):
        centre = x[which == blob].mean(0)
        inside = (x[chosen][which[chosen] == blob] - centre).norm(dim=1)
        outside = (x[rest & (which == blob)] - centre).norm(dim=1)
        assert float(inside.mean()) < float(outside.mean())


def test_thinning_drops_near_duplicates() -> None:
    x = torch.randn(60, 4, generator=generator())
    doubled = torch.cat([x, x + 1e-4])
    chosen = NearestNeighbourThinning(doubled, 0.5, batch_size=7).select(0)
    assert chosen.tolist() == list(range(60)), "of each pair the first stays"
    for ratio in (0.9, 0.2, 0.01):
        assert len(NearestNeighbourThinning(doubled, ratio)) == math.ceil(ratio * 120)
    assert len(NearestNeighbourThinning(torch.ones(50, 2), 0.1)) == 5, "even if all are equal"


@pytest.mark.parametrize(
    "make",
    [
        lambda: FullSelector(40),
        lambda: StaticRandomSelector(40, 0.3),
        lambda: DynamicRandom(40, 0.3),
        lambda: InfoBatch(40, 4),
        lambda: ScoreSelector(torch.rand(40), 0.3),
        lambda: KMeansSelector(torch.rand(40, 2), 0.3, 4),
        lambda: NearestNeighbourThinning(torch.rand(40, 2), 0.3),
    ],
)
def test_protocol(make: Callable[[], Selector]) -> None:
    selector, resumed = make(), make()
    assert isinstance(selector, pysel.samplers.Selects)
    chosen = selector.select(1)
    assert len(selector) == len(chosen) and chosen.dtype == torch.int64
    assert torch.equal(selector.select(1), chosen)
    resumed.load_state_dict(selector.state_dict())
    assert torch.equal(resumed.select(1), chosen) and torch.equal(resumed.select(2), selector.select(2))
