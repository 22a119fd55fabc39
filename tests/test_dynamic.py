"""DynamicSelector: the published algorithm against an oracle in numpy, its theorems, its state and its explanations."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pysel
from pysel.reference.random import ORDER, words64
from pysel.selection import DynamicRandom, DynamicSelector, InfoBatch, to_unit_interval
from tests.statistics import accept, reject
from tests.test_factors import oracle_tables

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tables(n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return torch.rand(n, generator=g), torch.rand(n, generator=g)


def uses(selector: DynamicSelector, epochs: int) -> list[Tensor]:
    """Uses after each epoch, counted from the subsets and not by the selector."""
    counts = torch.zeros(selector.num_samples, dtype=torch.int64)
    history = []
    for epoch in range(epochs):
        counts[selector.select(epoch)] += 1
        history.append(counts.clone())
    return history


# --- the algorithm -------------------------------------------------------------------


def equal_shares(sizes: list[int], total: int) -> list[int]:
    """One sample after another to the class that has fewest of its own so far and some left, of them the largest."""
    given = [0] * len(sizes)
    for _ in range(total):
        c = min((c for c in range(len(sizes)) if given[c] < sizes[c]), key=lambda c: (given[c], -sizes[c], c))
        given[c] += 1
    return given


class Oracle:
    """Algorithm 1 in numpy, sample by sample: sorted lists, no kernels."""

    def __init__(
        self,
        rep: np.ndarray,
        div: np.ndarray,
        keep: int,
        epochs: int,
        full: int,
        labels: Any,
        gamma: float,
        key: Tensor,
    ) -> None:
        unit = lambda x: (x - x.min()) / (x.max() - x.min())  # noqa: E731
        self.rep, self.div = unit(rep), unit(div)
        self.keep, self.epochs, self.full, self.gamma, self.key = keep, epochs, full, gamma, key
        self.labels = np.zeros(len(rep), int) if labels is None else labels
        self.used = np.zeros(len(rep))

    def epoch(self, t: int) -> list[int]:
        n = len(self.rep)
        if t > self.epochs - self.full:
            self.used += 1
            return list(range(n))
        alpha = 0.2 + 0.8 * (1 - 1 / (1 + math.exp(-(t / self.epochs - 0.6) / 0.1)))
        mix = 1 - alpha
        h = self.rep * (1 - mix) + self.div * mix - self.gamma * np.log(1 + self.used)
        words = words64(pysel.fold_in(self.key, t - 1), ORDER, torch.arange(n)).numpy().view(np.uint64)
        # equal to the last bits, which numpy's logarithm does not share
        close = [round(float(x), 12) for x in h]
        ranked = sorted(range(n), key=lambda i: (-close[i], int(words[i])))
        names = sorted(set(self.labels.tolist()))
        share = equal_shares([int((self.labels == c).sum()) for c in names], self.keep)
        chosen = [i for c, k in zip(names, share, strict=True) for i in [i for i in ranked if self.labels[i] == c][:k]]
        self.used[chosen] += 1
        return sorted(chosen)


@pytest.mark.parametrize("batch", range(10))
def test_the_whole_algorithm_against_numpy(batch: int) -> None:
    """Twenty random small configurations a batch, from activations to subsets, with many ties."""
    for case in range(20):
        r = np.random.default_rng(100 * batch + case)
        n, units, epochs = int(r.integers(5, 80)), int(r.integers(4, 30)), int(r.integers(1, 14))
        ratio, refine, gamma = (
            r.integers(1, 11) / 10,
            float(r.choice([0.0, 0.15, 0.3, 1.0])),
            float(r.choice([0, 0.2, 1])),
        )
        activations = np.where(r.random((n, units)) < r.random(units) * 0.8, r.random((n, units)), 0)
        activations[r.integers(n), r.integers(units)] = 1  # one at least
        labels = r.integers(-2, int(r.integers(-1, 6)), n) if r.random() < 0.7 else None
        rep, div = oracle_tables(activations, labels, 0.3, False)
        if rep.min() == rep.max() or div.min() == div.max():
            continue
        key = torch.from_numpy(r.integers(-(2**62), 2**62, 2))
        keep = math.ceil(round(ratio * n, 9))
        full = epochs - math.floor(round((1 - refine) * epochs, 9))
        oracle = Oracle(rep, div, keep, epochs, full, labels, gamma, key)
        selector = DynamicSelector.from_scores(
            rep, div, float(ratio), epochs, labels=labels, gamma=gamma, refine=refine, key=key
        )
        for epoch in range(epochs):
            wanted = oracle.epoch(epoch + 1)
            chosen = selector.select(epoch)
            assert chosen.dtype == torch.int64 and chosen.tolist() == wanted, (batch, case, epoch)
            assert torch.equal(selector.uses, torch.from_numpy(oracle.used).long())
            assert len(selector) == len(wanted) == selector.size(epoch)


@pytest.mark.parametrize("penalty", ["log", "linear", "exp", "rate"])
def test_selection_is_the_formula(penalty: str) -> None:
    representativeness, diversity = tables()
    selector = DynamicSelector(
        representativeness, diversity, 0.3, 8, penalty=penalty, schedule="linear", refine=0, key=0
    )
    r, d = to_unit_interval(representativeness), to_unit_interval(diversity)
    counts = torch.zeros(200)
    for epoch in range(8):
        weight = 1 - (epoch + 1) / 8
        score = {
            "log": lambda s: s - 0.2 * torch.log1p(counts),
            "linear": lambda s: s - 0.2 * counts,
            "exp": lambda s: s * torch.exp(-0.2 * counts),
            "rate": lambda s: s - 0.2 * counts / max(epoch, 1),  # noqa: B023
        }[penalty](d + weight * (r - d))
        torch.testing.assert_close(selector.scores(epoch), score)
        chosen = selector.select(epoch)
        assert torch.equal(chosen, score.argsort(descending=True)[:60].sort().values)
        counts[chosen] += 1
        assert selector.weight(epoch) == pytest.approx(weight)


def test_equal_shares_of_unequal_classes() -> None:
    labels = torch.tensor([7] * 150 + [-1] * 45 + [3] * 5)
    rep, div = tables()
    for balance, wanted in (("equal", [17, 5, 18]), ("proportional", [9, 1, 30]), (None, None)):
        selector = DynamicSelector(rep, div, 0.2, 4, labels=labels, balance=balance, refine=0, key=0)
        for epoch in range(4):
            chosen = selector.select(epoch)
            assert len(chosen) == 40
            if wanted:
                assert torch.unique(labels[chosen], return_counts=True)[1].tolist() == wanted  # classes -1, 3, 7
    assert torch.equal(
        DynamicSelector(rep, div, 0.2, 4, labels=labels, balance=None, key=0).select(0),
        DynamicSelector(rep, div, 0.2, 4, key=0).select(0),
    )


@pytest.mark.parametrize(
    ("epochs", "refine", "full"), [(200, 0.15, 30), (10, 0.15, 2), (10, 0.1, 1), (7, 0, 0), (3, 1, 3)]
)
def test_the_last_epochs_take_everything(epochs: int, refine: float, full: int) -> None:
    selector = DynamicSelector(*tables(20), 0.3, epochs, refine=refine, key=0)
    sizes = [len(selector.select(epoch)) for epoch in range(epochs)]
    assert sizes == [6] * (epochs - full) + [20] * full == [selector.size(e) for e in range(epochs)]
    assert selector.realised_ratio == pytest.approx(sum(sizes) / (20 * epochs))
    assert selector.total_steps(4) == sum(-(-size // 4) for size in sizes)
    assert selector.total_steps(4, drop_last=True) == sum(size // 4 for size in sizes)
    assert len(selector.select(epochs + 3)) == (20 if full else 6), "training may go on past the plan"
    selector.select(0)
    assert len(selector) == selector.size(0) and selector.steps(4) == -(-selector.size(0) // 4)


@pytest.mark.parametrize("seed", range(20))
def test_anti_monopoly(seed: int) -> None:
    """The paper's theorem 3.1: with scores within D, u_i >= (1 + u_j) exp(D / gamma) - 1 ranks i no higher than j."""
    g = generator(seed)
    n, gamma = 60, float(torch.rand((), generator=g)) + 0.8
    rep, div = torch.rand(n, generator=g, dtype=torch.float64), torch.rand(n, generator=g, dtype=torch.float64)
    selector = DynamicSelector(rep, div, 0.3, 40, gamma=gamma, refine=0, key=seed)
    held = 0
    for epoch in range(40):
        before = selector.uses.double() if epoch else torch.zeros(n, dtype=torch.float64)
        score = selector.scores(epoch)
        mixed = score + gamma * torch.log1p(before)
        spread = float(mixed.max() - mixed.min())
        premise = before[:, None] >= (1 + before[None, :]) * math.exp(spread / gamma) - 1
        held += int(premise.sum()) - n * (spread == 0)
        assert bool((score[:, None] <= score[None, :] + 1e-9)[premise].all())
    assert held > 0, "the premise held for some pair"


@pytest.mark.parametrize("gamma", [0.05, 0.3, 0.5, 2.0])
@pytest.mark.parametrize("kind", ["random", "extreme", "equal"])
def test_the_linear_penalty_bounds_the_difference_of_uses(gamma: float, kind: str) -> None:
    """max u - min u <= 1 / gamma + 1 after every epoch, whatever the scores."""
    representativeness, diversity = tables()
    if kind == "extreme":
        representativeness = diversity = (torch.arange(200) < 60).float()
    elif kind == "equal":
        representativeness = diversity = torch.ones(200)
    selector = DynamicSelector(representativeness, diversity, 0.3, 60, gamma=gamma, penalty="linear", refine=0, key=0)
    history = uses(selector, 60)
    for counts in history:
        assert float(counts.max() - counts.min()) <= 1 / gamma + 1
    if kind == "extreme" and gamma == 0.05:
        assert max(float(c.max() - c.min()) for c in history) > 1 / gamma - 1, "the bound is nearly reached"


def test_without_the_penalty_there_is_a_monopoly() -> None:
    counts = uses(DynamicSelector(*tables(), 0.3, 20, gamma=0.0, schedule=0.5, refine=0, key=0), 20)[-1]
    assert set(counts.tolist()) == {0, 20}


def test_equal_scores_do_not_favour_the_front_of_the_file() -> None:
    """Over 400 keys every one of 50 samples of equal score is among the 10 first as often as chance has it."""
    flat = torch.ones(50)
    taken = torch.zeros(50, dtype=torch.float64)
    for seed in range(400):
        taken[DynamicSelector(flat, flat, 0.2, 1, refine=0, key=seed).select(0)] += 1
    statistic = float(((taken - 80) ** 2 / (80 * 0.8)).sum()) * 49 / 50  # 49 degrees of freedom
    assert statistic < 95, "chi-square with 49 degrees of freedom exceeds 95 once in 10,000 times"
    selector = DynamicSelector(flat, flat, 0.2, 3, gamma=0.0, refine=0, key=0)
    assert not torch.equal(selector.select(0), selector.select(1)), "anew in each epoch"


def test_schedule_moves_from_common_to_rare() -> None:
    representativeness, diversity = tables(1000)
    selector = DynamicSelector(representativeness, diversity, 0.3, 10, gamma=0.0, schedule="linear", refine=0, key=0)
    first, last = selector.select(0), selector.select(9)
    assert float(representativeness[first].mean()) > 0.8 > 0.6 > float(representativeness[last].mean())
    assert float(diversity[last].mean()) > 0.8 > 0.6 > float(diversity[first].mean())


# --- epochs in any order, state ------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.1},
    {"penalty": "rate", "normalise": "rank", "schedule": "cosine"},
    {"labels": torch.arange(200) % 3, "balance": "proportional", "temperature": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_subset_is_a_function_of_its_epoch(options: dict[str, Any]) -> None:
    forward = DynamicSelector(*tables(), 0.3, 8, key=3, **options)
    wanted = [forward.select(epoch) for epoch in range(10)]
    jumping = DynamicSelector(*tables(), 0.3, 8, key=3, **options)
    for epoch in (5, 5, 2, 9, 0, 7, 1):
        chosen = jumping.select(epoch)
        assert torch.equal(chosen, wanted[epoch])
        chosen[:] = 0  # the caller owns what it got
        assert torch.equal(jumping.select(epoch), wanted[epoch])
        assert int(jumping.uses.sum()) == sum(len(subset) for subset in wanted[: epoch + 1])
    other = DynamicSelector(*tables(), 0.3, 8, key=4, **options)
    assert options.get("temperature") is None or not torch.equal(other.select(0), wanted[0])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_state_round_trip(options: dict[str, Any], after: int, tmp_path: Path) -> None:
    selector = DynamicSelector(*tables(), 0.3, 8, **options)
    for epoch in range(after):
        selector.select(epoch)
    state = selector.state_dict()
    torch.save(state, tmp_path / "state.pt")
    resumed = DynamicSelector(*tables(), 0.3, 8, **options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    selector.save(tmp_path / "folder")
    loaded = DynamicSelector.load(tmp_path / "folder")
    for other in (resumed, loaded):
        assert len(other) == len(selector) and torch.equal(other.uses, selector.uses)
        assert other.fingerprint == selector.fingerprint
    for epoch in range(max(after - 1, 0), 8):
        wanted = selector.select(epoch)
        assert torch.equal(resumed.select(epoch), wanted) and torch.equal(loaded.select(epoch), wanted)


@pytest.mark.parametrize("ratio", [0.07, np.float32(0.07), Decimal("0.07"), Fraction(1, 7), 1], ids=repr)
def test_numbers_of_any_kind_are_saved_as_they_were_written(ratio: Any, tmp_path: Path) -> None:
    labels = torch.arange(200) % 3
    makers: list[Callable[[], pysel.selection.Selector]] = [
        lambda: DynamicSelector(*tables(), ratio, np.int64(5), refine=np.float32(0.3), temperature=np.float32(0.1)),
        lambda: DynamicRandom(np.int64(200), ratio, epochs=5, labels=labels, balance="equal", refine=np.float32(0.3)),
        lambda: InfoBatch(np.int64(200), np.int64(5), prune_ratio=np.float16(0.25), delta=torch.tensor(0.7)),
        lambda: DynamicSelector(
            *tables(),
            torch.tensor(0.3),
            torch.tensor(5),
            gamma=np.array(0.2),
            schedule=np.float32(0.5),
            refine=torch.tensor(0.3),
            balance_losses=np.True_,
            key=np.int64(3),
        ),
        lambda: DynamicSelector(*tables(), 0.3, 5, schedule=torch.tensor(0.25), temperature=1, key=3),
    ]
    for number, make in enumerate(makers):
        selector = make()
        selector.select(np.int64(1))
        selector.save(tmp_path / str(number))
        loaded = type(selector).load(tmp_path / str(number))
        assert repr(loaded) == repr(selector)
        assert all(torch.equal(loaded.select(epoch), selector.select(epoch)) for epoch in range(1, 5))
        torch.save(selector.state_dict(), tmp_path / "state.pt")
        make().load_state_dict(torch.load(tmp_path / "state.pt"))


def test_loading_does_not_scale_the_tables_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every scaling leaves what it gave as it is, which this one stands for."""
    module = sys.modules[DynamicSelector.__module__]
    monkeypatch.setattr(module, "to_unit_interval", lambda x, how: x if how is None else 0.25 + x / 2)
    selector = DynamicSelector(*tables(), 0.3, 5, normalise="rank", key=0)
    selector.save(tmp_path)
    loaded = DynamicSelector.load(tmp_path)
    assert torch.equal(loaded.diversity, selector.diversity) and repr(loaded) == repr(selector)


def test_labels_survive_saving(tmp_path: Path) -> None:
    labels = torch.tensor([7, -3, 40])[torch.arange(200) % 3]
    selector = DynamicSelector(*tables(), 0.3, 5, labels=labels, key=0)
    assert selector.fingerprint == DynamicSelector(*tables(), 0.3, 5, labels=labels.to(torch.int8), key=0).fingerprint
    selector.save(tmp_path)
    loaded = DynamicSelector.load(tmp_path)
    for i in (0, np.int64(1), 2):
        assert loaded.explain(i) == selector.explain(i)
        assert loaded.explain(i)["label"] == int(labels[i])


def test_a_failed_replay_has_changed_nothing() -> None:
    """A state is loaded by replaying epochs, which a schedule can stop."""
    fails = [False]

    def schedule(progress: float) -> float:
        return 2.0 if fails[0] and progress > 0.5 else 0.5

    selector = DynamicSelector(*tables(), 0.3, 8, schedule=schedule, refine=0, key=0)
    selector.select(5)
    state = selector.state_dict()
    chosen = selector.select(1)
    uses, fails[0] = selector.uses, True
    with pytest.raises(ValueError, match="DynamicSelector: schedule must stay in"):
        selector.load_state_dict(state)
    assert torch.equal(selector.uses, uses)
    assert torch.equal(selector.select(1), chosen)


def test_a_state_of_something_else_is_refused() -> None:
    selector = DynamicSelector(*tables(), 0.3, 6, key=0)
    selector.select(2)
    state = selector.state_dict()
    assert {name: getattr(value, "shape", ()) for name, value in state.items()} == {
        name: getattr(value, "shape", ()) for name, value in DynamicSelector(*tables(), 0.3, 6).state_dict().items()
    }, "of the same shapes in every epoch"
    cases: list[tuple[DynamicSelector, str]] = [
        (DynamicSelector(*tables(), 0.2, 6, key=0), "a selector with keep_ratio=0.2, got one with 0.3"),
        (DynamicSelector(*tables(), 0.3, 6, key=0, penalty="exp"), "a selector with penalty='exp', got one with 'log'"),
        (DynamicSelector(*tables(seed=1), 0.3, 6, key=0), "a selector with the same tables .* got one of other"),
        (DynamicSelector(*tables(100), 0.3, 6, key=0), "a selector with the same tables .* got one of other"),
        (DynamicSelector(*tables(), 0.3, 6, key=0, labels=torch.arange(200) % 2), "a selector with the same tables"),
    ]
    for other, message in cases:
        before = other.select(1)
        with pytest.raises(ValueError, match=f"DynamicSelector: state_dict must be of {message}"):
            other.load_state_dict(state)
        assert torch.equal(other.select(1), before) and other.state_dict()["epoch"] == 1
    with pytest.raises(ValueError, match="state_dict must have arguments, fingerprint, key"):
        selector.load_state_dict({"epoch": 1})


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    selector = DynamicSelector(*tables(), 0.3, 6, schedule=lambda p: 1 - p, key=0)
    with pytest.raises(ValueError, match="schedule must be a name or a number to be saved, got <function"):
        selector.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    DynamicSelector(*tables(), 0.3, 6, key=0).save(tmp_path / "folder")
    with pytest.raises(
        ValueError, match=r"FixedSelector.load: path must hold a FixedSelector .* got a DynamicSelector"
    ):
        pysel.selection.FixedSelector.load(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        DynamicSelector.load(tmp_path / "nowhere")


# --- stochastic ranking --------------------------------------------------------------


def test_stochastic_ranking() -> None:
    def run(seed: int, temperature: float) -> list[Tensor]:
        selector = DynamicSelector(*tables(), 0.3, 4, temperature=temperature, refine=0, key=seed)
        return [selector.select(epoch) for epoch in range(4)]

    before = torch.get_rng_state()
    first, same, other = run(0, 0.1), run(0, 0.1), run(1, 0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(len(chosen.unique()) == 60 and torch.equal(chosen, chosen.sort().values) for chosen in first)
    deterministic = DynamicSelector(*tables(), 0.3, 4, key=0)
    assert torch.equal(run(0, 1e-6)[0], deterministic.select(0)), "cold enough, noise decides nothing"


def test_stochastic_ranking_prefers_high_scores() -> None:
    """Over 300 draws of 60 in 200 the upper half is used more often than the lower, far beyond chance."""
    taken = torch.zeros(200)
    for seed in range(300):
        scores = torch.arange(200.0)
        taken[DynamicSelector(scores, scores, 0.3, 1, temperature=0.5, refine=0, key=seed).select(0)] += 1
    # With equal chances the means of the halves differ by 1.1 (one standard deviation): sqrt(300 * 0.21 * 4 / 200).
    assert float(taken[100:].mean() - taken[:100].mean()) > 20


@pytest.mark.parametrize("classes", [1, 3])
def test_weights_make_the_subset_stand_for_all(classes: int) -> None:
    """Weighted means over 4,000 subsets, each of a second epoch, against the mean of all; plain means must miss it."""
    representativeness, diversity = tables(40)
    labels = torch.arange(40) % classes if classes > 1 else None
    losses = diversity + torch.arange(40.0) / 40  # high where samples are likely to be selected
    weighted, plain, mass = [], [], []
    for key in pysel.split(pysel.key(11), 4000):
        selector = DynamicSelector(
            representativeness, diversity, 0.3, 2, temperature=0.3, schedule=0.0, labels=labels,
            balance="proportional", refine=0, key=key,
        )  # fmt: skip
        chosen = selector.select(1)
        weights = selector.weights(chosen)
        assert weights.shape == chosen.shape
        weighted.append(float((weights * losses[chosen]).mean()))
        plain.append(float(losses[chosen].mean()))
        mass.append(float(weights.mean()))

    def p_value(estimates: list[float], truth: float) -> float:
        sample = torch.tensor(estimates, dtype=torch.float64)
        error = (sample.mean() - truth) / (sample.std() / len(sample) ** 0.5)
        return math.erfc(abs(float(error)) / 2**0.5)

    shares = torch.bincount(labels[chosen]) / len(chosen) if labels is not None else torch.ones(1)
    groups = torch.zeros(40, dtype=torch.int64) if labels is None else labels
    truth = sum(float(share * losses[groups == c].double().mean()) for c, share in enumerate(shares))
    accept({"losses": p_value(weighted, truth), "mass": p_value(mass, 1.0)})
    reject({"losses": p_value(plain, truth)})


def test_weights_go_by_sample() -> None:
    selector = DynamicSelector(*tables(), 0.3, 6, temperature=0.2, refine=0.5, key=1)
    chosen = selector.select(1)
    weights = selector.weights(chosen)
    shuffled = torch.randperm(len(chosen), generator=generator())
    assert torch.equal(selector.weights(chosen[shuffled]), weights[shuffled])
    missing = next(i for i in range(200) if i not in chosen.tolist())
    with pytest.raises(ValueError, match=f"indices must be of the subset of epoch 1, got {missing}"):
        selector.weights(torch.tensor([int(chosen[0]), missing]))
    selector.select(5)
    assert torch.equal(selector.weights(torch.tensor([9, 3])), torch.ones(2)), "all samples stand for themselves"
    with pytest.raises(ValueError, match=r"DynamicSelector: weights are .* call select\(\) first"):
        DynamicSelector(*tables(), 0.3, 6).weights(torch.tensor([9, 3]))
    selector = DynamicSelector(*tables(), 0.3, 6, key=1)
    selector.select(0)
    assert torch.equal(selector.weights(torch.tensor([9, 3])), torch.ones(2))


def test_weights_balance_the_losses() -> None:
    labels = torch.tensor([7] * 150 + [-1] * 45 + [3] * 5)
    for options, shares in (
        ({}, [1 / 3] * 3),
        ({"balance": "proportional"}, [45 / 200, 5 / 200, 150 / 200]),
        ({"balance": None}, None),
        ({"balance_losses": False}, None),
    ):
        selector = DynamicSelector(*tables(), 0.2, 4, labels=labels, refine=0.25, key=0, **options)
        for epoch, size in ((3, 200), (0, 40)):
            chosen = selector.select(epoch)
            weights = selector.weights(chosen)
            assert len(chosen) == size and float(weights.mean()) == pytest.approx(1)
            if shares is None:
                assert weights.tolist() == [1.0] * size
            else:
                found = [float(weights[labels[chosen] == c].sum()) / size for c in (-1, 3, 7)]
                assert found == pytest.approx(shares)


# --- bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_ratio": 0.0}, ValueError, r"keep_ratio, the fraction kept, must be in \(0, 1\], got 0.0"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 2.0}, TypeError, "epochs must be an int, got float"),
        ({"gamma": -1.0}, ValueError, "gamma must be finite and at least 0, got -1.0"),
        ({"gamma": math.nan}, ValueError, "gamma must be finite and at least 0, got nan"),
        ({"refine": 1.5}, ValueError, "refine must be between 0 and 1, got 1.5"),
        ({"refine": None}, TypeError, "refine must be a number, got NoneType"),
        ({"penalty": "square"}, ValueError, "penalty must be log, linear, exp or rate, got 'square'"),
        ({"balance": "even"}, ValueError, "balance must be equal or proportional, got 'even'"),
        ({"schedule": "step"}, ValueError, "schedule must be one of .* got 'step'"),
        ({"normalise": "z"}, ValueError, "normalise must be minmax, clip or rank, got 'z'"),
        (
            {"normalise": None, "diversity": torch.full((200,), 2.0)},
            ValueError,
            r"diversity must lie in \[0, 1\], got 2",
        ),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels must have shape \[200\], got \[3\]"),
        ({"labels": torch.zeros(200)}, TypeError, "labels must be integers, got torch.float32"),
        ({"labels": ["0"] * 200}, TypeError, "labels must be a tensor, an array or a list of numbers, got list of <U1"),
        (
            {"labels": torch.arange(200), "balance": "proportional"},
            ValueError,
            "keep_ratio must .* each of the 200 classes .* of 60",
        ),
        (
            {"diversity": torch.ones(3)},
            ValueError,
            r"diversity must have shape \[200\] like representativeness, got \[3\]",
        ),
        ({"diversity": torch.full((200,), torch.nan)}, ValueError, "diversity must be finite, got nan in row 0"),
        ({"representativeness": torch.ones(2, 2)}, ValueError, r"representativeness must be \[N\] .*got \[2, 2\]"),
        ({"representativeness": torch.ones(0)}, ValueError, r"representativeness must be \[N\] with N > 0, got \[0\]"),
        (
            {"representativeness": torch.ones(200) * 1j},
            TypeError,
            "representativeness must be real, got torch.complex64",
        ),
        ({"key": torch.zeros(3).long()}, ValueError, r"key must have shape \[2\], got \[3\]"),
        ({"key": "seed"}, TypeError, "key must be .* got str"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    representativeness, diversity = tables()
    arguments = {"representativeness": representativeness, "diversity": diversity, "keep_ratio": 0.3, "epochs": 5}
    with pytest.raises(error, match=message):
        DynamicSelector(**{**arguments, **options})


def test_bad_epochs() -> None:
    selector = DynamicSelector(*tables(), 0.3, 5, key=0)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        selector.select(-1)
    with pytest.raises(TypeError, match="epoch must be an int, got float"):
        selector.select(1.0)  # type: ignore[arg-type]


def test_a_schedule_that_fails_loses_nothing() -> None:
    selector = DynamicSelector(*tables(), 0.3, 5, schedule=lambda p: 2.0 if p > 0.5 else 0.5, refine=0, key=0)
    chosen = selector.select(1)
    with pytest.raises(ValueError, match=r"schedule must stay in \[0, 1\], got 2.0 at progress 0.6"):
        selector.select(4)
    assert torch.equal(selector.select(1), chosen)
