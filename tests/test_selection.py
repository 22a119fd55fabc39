"""pysel/selection: exact sizes, who is chosen and how often, and what the systems learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pysel
from pysel.nn import TopKSAE
from pysel.reference.random import noise_like
from pysel.selection import (
    ASSS,
    DynamicRandom,
    DynamicSelector,
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
    factor_tables,
    kmeans,
    performance_retention_rate,
    quotas,
    schedule,
    subset_size,
    to_unit_interval,
)
from tests.statistics import accept, reject


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small are faster on one thread, on a busy machine by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_quotas() -> None:
    g = generator()
    for _ in range(200):
        counts = torch.randint(1, 100, (int(torch.randint(1, 12, (), generator=g)),), generator=g).tolist()
        size = int(torch.randint(len(counts), sum(counts) + 1, (), generator=g))
        quota = quotas(counts, size)
        assert sum(quota) == size
        assert all(1 <= q <= c for q, c in zip(quota, counts, strict=True))
        if all(size * c >= sum(counts) for c in counts):
            assert all(abs(q - size * c / sum(counts)) < 1 for q, c in zip(quota, counts, strict=True))
    with pytest.raises(ValueError, match=r"at least one sample of each of the 3 classes .* got 2"):
        quotas([5, 5, 5], 2)


def test_strata_without_labels_is_plain_selection() -> None:
    scores = torch.rand(100, generator=generator())
    assert torch.equal(Strata(100, 30).best(scores), pysel.ops.select(scores, 30))


def test_strata_is_selection_within_each_class() -> None:
    labels = torch.randint(-1, 3, (500,), generator=generator())
    scores = torch.rand(500, generator=generator(1))
    strata = Strata(500, 100, labels)
    chosen = strata.best(scores)
    assert torch.equal(chosen, chosen.sort().values) and len(chosen) == 100
    for c, quota in zip(range(-1, 3), strata.quota, strict=True):
        rows = torch.nonzero(labels == c).flatten()
        best = rows[scores[rows].argsort(descending=True)[:quota]].sort().values
        assert torch.equal(chosen[labels[chosen] == c], best)
    drawn = strata.sample(torch.zeros(500), pysel.key(0))
    assert len(drawn.unique()) == 100 and torch.equal(drawn, drawn.sort().values)
    assert torch.unique(labels[drawn], return_counts=True)[1].tolist() == strata.quota


def test_ties_go_to_the_lowest_index() -> None:
    assert Strata(6, 3).best(torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, 1.0])).tolist() == [0, 1, 4]


# --- schedule.py ---------------------------------------------------------------------


def test_schedule_end_points() -> None:
    assert schedule.sigmoid(0.0) == pytest.approx(1 / (1 + math.exp(5)))
    assert schedule.sigmoid(1.0) == pytest.approx(1 / (1 + math.exp(-5)))
    assert schedule.sigmoid(0.3, midpoint=0.3) == 0.5
    assert schedule.sigmoid(0.0, width=1e-300) == 0.0 and schedule.sigmoid(1.0, width=1e-300) == 1.0
    assert schedule.cosine(0.0) == 0.0 and schedule.cosine(1.0) == 1.0
    assert schedule.cosine(0.5) == pytest.approx(0.5)
    assert schedule.linear(0.0, 0.2, 0.8) == 0.2 and schedule.linear(1.0, 0.2, 0.8) == pytest.approx(0.8)
    assert schedule.constant(0.0) == schedule.constant(1.0) == 0.5


@pytest.mark.parametrize("curve", [schedule.sigmoid, schedule.cosine, schedule.linear])
def test_schedules_rise_and_stay_in_range(curve: schedule.Schedule) -> None:
    values = [curve(p / 100) for p in range(101)]
    assert values == sorted(values) and 0 <= values[0] < values[-1] <= 1


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


# --- dynamic.py ----------------------------------------------------------------------


def tables(n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return torch.rand(n, generator=g), torch.rand(n, generator=g)


def uses(selector: DynamicSelector, epochs: int) -> list[Tensor]:
    """Counts after each epoch, made from the subsets and not from the selector's own counts."""
    counts = torch.zeros(selector.num_samples)
    history = []
    for epoch in range(epochs):
        counts[selector.select(epoch)] += 1
        history.append(counts.clone())
    return history


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rare_below", [None, 0.1])
def test_factor_tables_are_the_formulas(weighted: bool, rare_below: float | None) -> None:
    sae = TopKSAE(6, 30, 4, key=pysel.key(0), dtype=torch.float64)
    x = torch.randn(101, 6, dtype=torch.float64, generator=generator())
    with torch.no_grad():
        values, indices = sae.encode(x)
        z = torch.zeros(101, 30, dtype=torch.float64).scatter(1, indices, values)
    active = (z > 0).double()
    rate = active.mean(0)
    a = z if weighted else active
    result = factor_tables(sae, x, weighted=weighted, rare_below=rare_below, eps=1e-3, batch_size=17)
    torch.testing.assert_close(result.rate, rate)
    torch.testing.assert_close(result.representativeness, (a @ rate) / a.sum(1))
    b = a if rare_below is None else a * (rate < rare_below)
    torch.testing.assert_close(result.rarity, (b @ -torch.log(rate + 1e-3)) / b.sum(1).clamp_min(1e-300))
    if rare_below is not None:
        assert 0 < int((b.sum(1) == 0).sum()) < 101, "some rows, not all, have no rare factor"


def test_to_unit_interval() -> None:
    x = torch.tensor([3.0, -1.0, 3.0, 7.0, 0.0])
    torch.testing.assert_close(to_unit_interval(x), (x + 1) / 8)
    torch.testing.assert_close(to_unit_interval(x, "rank"), torch.tensor([0.625, 0.0, 0.625, 1.0, 0.25]))
    for how in ("minmax", "rank"):
        assert to_unit_interval(torch.full((4,), 5.0), how).tolist() == [0.0] * 4
    assert torch.equal(to_unit_interval(x.clamp(0, 1), None), x.clamp(0, 1))
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\], got -1 to 7"):
        to_unit_interval(x, None)
    with pytest.raises(ValueError, match="scores must be finite"):
        to_unit_interval(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="how must be minmax or rank, got 'z'"):
        to_unit_interval(x, "z")


@pytest.mark.parametrize("penalty", ["linear", "exp", "rate"])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_selection_is_the_formula(penalty: str, decay: float) -> None:
    representativeness, rarity = tables()
    selector = DynamicSelector(
        representativeness, rarity, 0.3, 8, gamma=0.2, penalty=penalty, decay=decay, schedule="linear"
    )
    r, d = to_unit_interval(representativeness), to_unit_interval(rarity)
    counts = torch.zeros(200)
    for epoch in range(8):
        lam = epoch / 8
        score = r + lam * (d - r)
        score = {
            "linear": score - 0.2 * counts,
            "exp": score * torch.exp(-0.2 * counts),
            "rate": score - 0.2 * counts / max(epoch, 1),
        }[penalty]
        expected = score.argsort(descending=True)[:60].sort().values
        chosen = selector.select(epoch)
        assert chosen.dtype == torch.int64 and torch.equal(chosen, expected)
        counts *= decay
        counts[chosen] += 1
        torch.testing.assert_close(selector.counts, counts)
        assert selector.rarity_weight(epoch) == pytest.approx(lam)


@pytest.mark.parametrize("gamma", [0.05, 0.3, 0.5, 2.0])
@pytest.mark.parametrize("kind", ["random", "extreme", "equal"])
def test_no_monopoly(gamma: float, kind: str) -> None:
    """max n - min n <= 1 / gamma + 1 after every epoch, whatever the scores."""
    representativeness, rarity = tables()
    if kind == "extreme":
        representativeness, rarity = (torch.arange(200) < 60).float(), (torch.arange(200) < 60).float()
    elif kind == "equal":
        representativeness, rarity = torch.ones(200), torch.ones(200)
    history = uses(DynamicSelector(representativeness, rarity, 0.3, 60, gamma=gamma), 60)
    for counts in history:
        assert float(counts.max() - counts.min()) <= 1 / gamma + 1
    if kind == "extreme" and gamma == 0.05:
        assert max(float(c.max() - c.min()) for c in history) > 1 / gamma - 1, "the bound is nearly reached"


def test_without_the_penalty_there_is_a_monopoly() -> None:
    representativeness, rarity = tables()
    counts = uses(DynamicSelector(representativeness, rarity, 0.3, 20, gamma=0.0, schedule=0.5), 20)[-1]
    assert set(counts.tolist()) == {0.0, 20.0}


def test_schedule_moves_from_common_to_rare() -> None:
    representativeness, rarity = tables(1000)
    selector = DynamicSelector(representativeness, rarity, 0.3, 10, gamma=0.0)
    first, last = selector.select(0), selector.select(9)
    assert float(representativeness[first].mean()) > 0.8 > 0.6 > float(representativeness[last].mean())
    assert float(rarity[last].mean()) > 0.8 > 0.6 > float(rarity[first].mean())


def test_selecting_an_epoch_again_counts_once() -> None:
    selector = DynamicSelector(*tables(), 0.3, 5)
    for epoch in range(3):
        once = selector.select(epoch)
        once_counts = selector.counts
        once[:] = 0  # the caller owns what it got
        again = selector.select(epoch)
        assert torch.equal(selector.select(epoch), again) and not torch.equal(once, again)
        assert torch.equal(selector.counts, once_counts)
        assert float(once_counts.sum()) == 60 * (epoch + 1)
    reference = DynamicSelector(*tables(), 0.3, 5)
    for epoch in range(3):
        reference.select(epoch)
    assert torch.equal(selector.select(3), reference.select(3))


def test_epochs_may_be_skipped_but_not_run_backwards() -> None:
    selector = DynamicSelector(*tables(), 0.3, 5)
    selector.select(0)
    selector.select(3)
    assert float(selector.counts.sum()) == 120
    with pytest.raises(ValueError, match="epoch must be at least 3, the last one selected, got 2"):
        selector.select(2)
    selector.reset()
    assert float(selector.counts.sum()) == 0
    assert torch.equal(selector.select(0), DynamicSelector(*tables(), 0.3, 5).select(0))
    assert len(selector.select(50)) == 60, "training may go on past the plan"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.1, "key": pysel.key(1)}, {"decay": 0.9}])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_dynamic_state_round_trip(options: dict[str, Any], after: int) -> None:
    selector = DynamicSelector(*tables(), 0.3, 6, **options)
    for epoch in range(after):
        selector.select(epoch)
    state = selector.state_dict()
    resumed = DynamicSelector(*tables(), 0.3, 6, **options)
    for epoch in range(max(after - 1, 0), 6):
        expected = selector.select(epoch)
        if epoch == max(after - 1, 0):
            resumed.load_state_dict(state)
        assert torch.equal(resumed.select(epoch), expected)
        assert torch.equal(resumed.counts, selector.counts)


def test_bad_dynamic_state() -> None:
    selector = DynamicSelector(*tables(), 0.3, 6)
    selector.select(0)
    with pytest.raises(ValueError, match="state_dict must have rounds, counts, selected, key"):
        selector.load_state_dict({"epoch": 1})
    other = DynamicSelector(*tables(100), 0.3, 6)
    with pytest.raises(ValueError, match=r"state_dict must have 100 counts, got \[200\]"):
        other.load_state_dict(selector.state_dict())
    smaller = DynamicSelector(*tables(), 0.2, 6)
    with pytest.raises(ValueError, match=r"state_dict must have 40 selected, got \[60\]"):
        smaller.load_state_dict(selector.state_dict())


def test_stochastic_ranking() -> None:
    def run(seed: int, temperature: float) -> list[Tensor]:
        selector = DynamicSelector(*tables(), 0.3, 4, temperature=temperature, key=pysel.key(seed))
        return [selector.select(epoch) for epoch in range(4)]

    before = torch.get_rng_state()
    first, same, other = run(0, 0.1), run(0, 0.1), run(1, 0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(len(chosen.unique()) == 60 and torch.equal(chosen, chosen.sort().values) for chosen in first)
    deterministic = DynamicSelector(*tables(), 0.3, 4)
    assert torch.equal(run(0, 1e-6)[0], deterministic.select(0)), "cold enough, noise decides nothing"


def test_stochastic_ranking_prefers_high_scores() -> None:
    """Over 300 draws of 60 in 200 the upper half is used more often than the lower, far beyond chance."""
    uses = torch.zeros(200)
    for seed in range(300):
        scores = torch.arange(200.0)
        selector = DynamicSelector(scores, scores, 0.3, 1, temperature=0.5, key=pysel.key(seed))
        uses[selector.select(0)] += 1
    # With equal chances the means of the halves differ by 1.1 (one standard deviation): sqrt(300 * 0.21 * 4 /
    # 200).
    assert float(uses[100:].mean() - uses[:100].mean()) > 20


@pytest.mark.parametrize("classes", [1, 3])
def test_importance_weights_make_the_subset_stand_for_all(classes: int) -> None:
    """Weighted means over 4,000 subsets, each of a second epoch, against the mean of all; plain means must miss it."""
    representativeness, rarity = tables(40)
    labels = torch.arange(40) % classes if classes > 1 else None
    losses = rarity + torch.arange(40.0) / 40  # high where samples are likely to be selected
    weighted, plain, mass = [], [], []
    for key in pysel.split(pysel.key(11), 4000):
        selector = DynamicSelector(
            representativeness, rarity, 0.3, 2, temperature=0.3, schedule=1.0, labels=labels, key=key
        )
        selector.select(0)
        chosen = selector.select(1)
        weights = selector.importance_weights()
        assert weights.shape == chosen.shape
        weighted.append(float((weights * losses[chosen]).mean()))
        plain.append(float(losses[chosen].mean()))
        mass.append(float(weights.mean()))

    def p_value(estimates: list[float], truth: float) -> float:
        sample = torch.tensor(estimates, dtype=torch.float64)
        error = (sample.mean() - truth) / (sample.std() / len(sample) ** 0.5)
        return math.erfc(abs(float(error)) / 2**0.5)

    truth = float(losses.double().mean())
    accept({"losses": p_value(weighted, truth), "mass": p_value(mass, 1.0)})
    reject({"losses": p_value(plain, truth)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 30, 199, 200])
def test_inclusion_goes_by_the_best_key_that_lost(dtype: torch.dtype, size: int) -> None:
    log_weights, key = tables()[0].to(dtype).log(), pysel.key(3)
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


def test_importance_weights_survive_a_checkpoint() -> None:
    options = {"temperature": 0.2, "penalty": "rate", "decay": 0.9, "labels": torch.arange(200) % 3}
    selector = DynamicSelector(*tables(), 0.3, 6, key=pysel.key(1), **options)
    for epoch in range(3):
        selector.select(epoch)
        resumed = DynamicSelector(*tables(), 0.3, 6, **options)
        resumed.load_state_dict(selector.state_dict())
        assert torch.equal(resumed.importance_weights(), selector.importance_weights())


def test_importance_weights_need_a_stochastic_selection() -> None:
    with pytest.raises(ValueError, match="DynamicSelector: temperature must be a number for importance weights"):
        DynamicSelector(*tables(), 0.3, 6).importance_weights()
    selector = DynamicSelector(*tables(), 0.3, 6, temperature=0.1)
    with pytest.raises(ValueError, match=r"DynamicSelector: .* call select\(\) first"):
        selector.importance_weights()


def test_classes_keep_their_share() -> None:
    labels = torch.cat([torch.zeros(150), torch.ones(45), torch.full((5,), 2.0)]).long()
    representativeness = 1 - labels / 2  # the smaller the class, the worse its scores
    plain = DynamicSelector(representativeness, representativeness, 0.1, 3, gamma=0.0)
    assert labels[plain.select(0)].unique().tolist() == [0]
    stratified = DynamicSelector(
        representativeness, representativeness, 0.1, 3, gamma=0.0, labels=labels, temperature=0.1
    )
    for epoch in range(3):
        assert torch.bincount(labels[stratified.select(epoch)]).tolist() == [15, 4, 1]


def test_sizes_are_reported() -> None:
    selector = DynamicSelector(*tables(101), 0.3, 3)
    assert len(selector) == len(selector.select(0)) == 31
    assert selector.realised_ratio == 31 / 101
    assert selector.steps(10) == 4 and selector.steps(10, drop_last=True) == 3
    assert "0.3" in repr(selector)


def test_from_features() -> None:
    g = generator()
    common = torch.randn(480, 8, generator=g) * torch.tensor([3.0, 3, 3, 3, 0, 0, 0, 0])
    rare = torch.randn(20, 8, generator=g) * torch.tensor([0.0, 0, 0, 0, 3, 3, 3, 3])
    features = torch.cat([common, rare])
    before = torch.get_rng_state()
    options: dict[str, Any] = {
        "num_factors": 32,
        "k": 2,
        "sae_epochs": 10,
        "sae_batch_size": 50,
        "sae_lr": 1e-2,
    }
    selector = DynamicSelector.from_features(features, 0.2, 5, key=pysel.key(0), gamma=0.0, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert selector.report is not None and selector.report.explained_variance > 0.5
    assert selector.sae is not None and selector.factor_rate is not None and len(selector.factor_rate) == 32
    assert float(selector.rarity[480:].mean()) > float(selector.rarity[:480].mean()) + 0.3
    first, last = selector.select(0), selector.select(4)
    assert int((first >= 480).sum()) <= 2 and int((last >= 480).sum()) >= 15, "the rare ones come late"
    again = DynamicSelector.from_features(features, 0.2, 5, key=pysel.key(0), gamma=0.0, **options)
    assert torch.equal(again.select(0), first)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_ratio": 0.0}, ValueError, r"keep_ratio, the fraction kept, must be in \(0, 1\], got 0.0"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 2.0}, TypeError, "epochs must be an int, got float"),
        ({"gamma": -1.0}, ValueError, "gamma must be finite and at least 0, got -1.0"),
        ({"gamma": math.nan}, ValueError, "gamma must be finite and at least 0, got nan"),
        ({"penalty": "square"}, ValueError, "penalty must be linear, exp or rate, got 'square'"),
        ({"decay": 1.5}, ValueError, "decay must be between 0 and 1, got 1.5"),
        ({"schedule": "step"}, ValueError, "schedule must be one of .* got 'step'"),
        ({"normalise": "z"}, ValueError, "how must be minmax or rank, got 'z'"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels must have shape \[200\], got \[3\]"),
        ({"labels": torch.zeros(200)}, TypeError, "labels must be int64.*got torch.float32"),
        ({"labels": torch.arange(200)}, ValueError, "each of the 200 classes .* got 60"),
        ({"rarity": torch.ones(3)}, ValueError, r"rarity must have the shape .*\[200\], got \[3\]"),
        ({"rarity": torch.full((200,), torch.nan)}, ValueError, "scores must be finite"),
        ({"representativeness": torch.ones(2, 2)}, ValueError, r"must be \[N\], got \[2, 2\]"),
        (
            {"representativeness": torch.arange(200)},
            TypeError,
            "representativeness must be .* got torch.int64",
        ),
    ],
)
def test_bad_dynamic_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    representativeness, rarity = tables()
    arguments = {"representativeness": representativeness, "rarity": rarity, "keep_ratio": 0.3, "epochs": 5}
    with pytest.raises(error, match=message):
        DynamicSelector(**{**arguments, **options})


def test_bad_epochs() -> None:
    selector = DynamicSelector(*tables(), 0.3, 5)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        selector.select(-1)
    with pytest.raises(TypeError, match="epoch must be an int, got float"):
        selector.select(1.0)  # type: ignore[arg-type]


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
    assert torch.bincount(y[chosen]).tolist() == quotas(counts.tolist(), 50)
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
        lambda: DynamicSelector(*tables(40), 0.3, 4),
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
