"""pysel/samplers/weighted.py: draws in proportion to weights, which may change while training goes on."""

from __future__ import annotations

import io
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, WeightedRandomSampler

import pysel
from pysel import WeightedSampler

pytestmark = pytest.mark.filterwarnings("ignore:.*is yielded again")

N = 203
RISING, FALLING = torch.arange(1.0, N + 1), torch.arange(float(N), 0, -1)


def sampler(weights: Any = RISING, num_samples: int = 100, **options: Any) -> WeightedSampler:
    return WeightedSampler(weights, num_samples, **{"key": 3, **options})


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_drop_in_for_torchs_sampler() -> None:
    """The same positional arguments, the same length, and a new draw on every pass."""
    for sampler in (WeightedRandomSampler([1.0, 2.0, 3.0], 100), WeightedSampler([1.0, 2.0, 3.0], 100)):
        first, second = list(sampler), list(sampler)
        assert len(first) == len(sampler) == 100 and set(first) == {0, 1, 2} and first != second


def test_generator_and_manual_seed_govern_without_a_key() -> None:
    def draws(generator: torch.Generator | None) -> list[list[int]]:
        sampler = WeightedSampler(torch.ones(1000), 20, True, generator)
        return [list(sampler), list(sampler)]

    seeded = [draws(torch.Generator().manual_seed(5)) for _ in range(2)]
    assert seeded[0] == seeded[1] and seeded[0][0] != seeded[0][1]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        once = draws(None)
        torch.manual_seed(5)
        assert once == draws(None)


def test_resume_without_a_key() -> None:
    sampler = WeightedSampler(torch.ones(1000), 20)
    begun = iter(sampler)
    first = list(islice(begun, 8))
    state = sampler.state_dict()
    rest = list(begun)
    resumed = WeightedSampler(torch.ones(1000), 20)
    resumed.load_state_dict(state)
    assert list(resumed) == rest and len(rest) == 12
    assert list(resumed) != first + rest, "and then passes are new draws again"


def test_weights_decide() -> None:
    """Chi-square with 9 degrees of freedom at alpha = 1e-6 over 200,000 draws; equal weights fail it."""

    def statistic(weights: Tensor) -> float:
        drawn = torch.tensor(list(WeightedSampler(weights, 200_000, key=pysel.key(11))))
        expected = torch.arange(1, 11) / 55 * 200_000
        return float(((torch.bincount(drawn, minlength=10) - expected) ** 2 / expected).sum())

    assert statistic(torch.arange(1.0, 11.0)) < 45.1 < statistic(torch.ones(10))


def test_default_order_does_not_put_heavy_samples_first() -> None:
    weights = torch.where(torch.arange(2000) < 1000, 50.0, 1.0)
    for order, fair in (("shuffled", True), ("draw", False)):
        sampler = WeightedSampler(weights, 1500, replacement=False, order=order, key=pysel.key(1))
        heavy = torch.tensor(list(sampler)) < 1000
        # Of 1500 draws about 1000 are heavy. In random order the first half holds 500 +- 13 of them.
        assert (abs(int(heavy[:750].sum()) - int(heavy.sum()) / 2) < 80) == fair


def test_zero_weights_and_integer_weights() -> None:
    sampler = WeightedSampler(torch.tensor([0, 3, 0, 1]), 2, replacement=False, key=pysel.key(0))
    assert sorted(sampler) == [1, 3]


def test_weights_are_copied() -> None:
    weights = torch.ones(10)
    sampler = WeightedSampler(weights, 100, key=pysel.key(0))
    before = list(sampler)
    weights.zero_()[3] = 1
    assert list(sampler) == before


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0, -1.0], 2), {}, ValueError, r"weights must not be negative, got -1\.0 in row 1"),
        (([1.0, float("nan")], 2), {}, ValueError, "weights must be finite, got nan in row 1"),
        (([1.0, float("inf")], 2), {}, ValueError, "weights must be finite, got inf in row 1"),
        (([0.0, 0.0], 2), {}, ValueError, "weights must not all be zero"),
        (([[1.0]], 1), {}, ValueError, r"weights must be \[N\] with N > 0, got \[1, 1\]"),
        (([], 1), {}, ValueError, r"weights must be \[N\] with N > 0, got \[0\]"),
        (([1.0, 0.0], 2, False), {}, ValueError, "num_samples must be at most 1 .*got 2"),
        (([1.0], 0), {}, ValueError, "num_samples must be at least 1, got 0"),
        (([1.0], 1.0), {}, TypeError, "num_samples must be an int, got float"),
        (([1.0], 1, "yes"), {}, TypeError, "replacement must be a bool, got str"),
        (([1.0], 1), {"order": "random"}, ValueError, "order must be shuffled, draw or index, got 'random'"),
        (([1.0], 1), {"num_replicas": 2}, ValueError, "key must be given with num_replicas=2"),
        (([1.0], 1), {"num_replicas": 0}, ValueError, "num_replicas must be at least 1, got 0"),
        (([1.0], 1), {"rank": 1}, ValueError, "rank must be between 0 and 0, got 1"),
        (([1.0], 1), {"key": "3"}, TypeError, "key must be a Tensor or an int, got str"),
        (([1.0], 1), {"key": torch.zeros(3, dtype=torch.int64)}, ValueError, r"key must have shape \[2\]"),
        (
            ([1.0], 1, True, torch.Generator()),
            {"key": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            "give key or generator, not both",
        ),
    ],
)
def test_bad_arguments(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"WeightedSampler: {message}"):
        WeightedSampler(*arguments, **options)


def test_weights_of_any_kind() -> None:
    pandas = pytest.importorskip("pandas")
    numbers = [0.5, 0.0, 3.0, 2.0]
    expected = list(WeightedSampler(torch.tensor(numbers, dtype=torch.float64), 20, key=0))
    for weights in (numbers, tuple(numbers), np.array(numbers), pandas.Series(numbers), np.array(numbers)[::-1][::-1]):
        assert list(WeightedSampler(weights, 20, key=0)) == expected
    for whole in ([0, 3, 0, 1], np.array([0, 3, 0, 1], dtype=np.uint8), torch.tensor([0, 3, 0, 1])):
        assert sorted(WeightedSampler(whole, 2, replacement=False, key=0)) == [1, 3]
    assert sorted(WeightedSampler([1e-50, 1e-50], 2, replacement=False, key=0)) == [0, 1], "a list is float64"
    for wrong in ("12", [1.0, "2"], None, 3.0):
        with pytest.raises((TypeError, ValueError), match="WeightedSampler: weights must be"):
            WeightedSampler(wrong, 2, key=0)


# --- set_weights ---


@pytest.mark.parametrize("replacement", [True, False])
def test_between_epochs(replacement: bool) -> None:
    """As if it had been made with them; the state brings them back."""
    one = sampler(replacement=replacement)
    list(one)
    one.set_weights(FALLING.tolist())
    assert one.version == 1 and torch.equal(one.weights, FALLING)
    one.set_epoch(1)
    other = sampler(FALLING, replacement=replacement)
    other.set_epoch(1)
    resumed = sampler(replacement=replacement)
    resumed.load_state_dict(through_a_file(one.state_dict()))
    assert resumed.version == 1
    assert list(resumed) == list(one) == list(other)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("order", ["shuffled", "draw", "index"])
def test_within_an_epoch(replacement: bool, order: str) -> None:
    """What was drawn stays, the rest is drawn anew, on every world size, and across restarts."""
    options = {"replacement": replacement, "order": order}
    before = list(sampler(**options))

    def changed(ranks: list[WeightedSampler], passes: list[Any], steps: int) -> list[list[int]]:
        return [list(islice(one, steps)) for one in passes]

    alone = sampler(**options)
    running = iter(alone)
    whole = list(islice(running, 30))
    alone.set_weights(FALLING)
    whole += list(islice(running, 30))
    alone.set_weights(RISING)  # twice within one epoch
    at_60 = through_a_file(alone.state_dict())
    whole += list(islice(running, 30))
    at_90 = through_a_file(alone.state_dict())
    whole += list(running)

    assert whole[:30] == before[:30] and whole[30:] != before[30:] and len(whole) == 100
    if not replacement:
        assert len(set(whole)) == 100
    assert alone.version == 2
    for state in (at_60, at_90):
        resumed = sampler(**options)
        resumed.load_state_dict(state)
        rest = list(resumed)
        assert rest == whole[state["position"] :]
        alone.set_epoch(1)
        resumed.set_epoch(1)
        fresh = sampler(**options)
        fresh.set_epoch(1)
        assert list(resumed) == list(alone) == list(fresh), "and the next epoch is an ordinary one"

    ranks = [sampler(rank=r, num_replicas=3, **options) for r in range(3)]
    passes = [iter(one) for one in ranks]
    shares = changed(ranks, passes, 10)
    for one in ranks:
        one.set_weights(FALLING)
    shares = [a + b for a, b in zip(shares, changed(ranks, passes, 10), strict=True)]
    for one in ranks:
        one.set_weights(RISING)
    shares = [a + b for a, b in zip(shares, changed(ranks, passes, 100), strict=True)]
    together = [index for row in zip(*shares, strict=True) for index in row]
    assert together[:100] == whole and len(together) == 102
    assert together[100:] == whole[60:62], "padding is of the present weights"

    resumed = sampler(rank=0, num_replicas=2, **options)
    resumed.load_state_dict(at_60)
    assert list(resumed) == whole[60::2]


def test_a_loaded_position_and_then_other_weights() -> None:
    donor = sampler(replacement=False)
    begun = list(islice(iter(donor), 40))
    resumed, running = sampler(replacement=False), iter(donor)
    list(islice(running, 40))
    resumed.load_state_dict(donor.state_dict())
    for one in (resumed, donor):
        one.set_weights(FALLING)
    rest = list(resumed)
    assert rest == list(running) and len(set(begun + rest)) == 100


def test_the_new_weights_decide() -> None:
    """Chi-square with 9 degrees of freedom at alpha = 1e-6, 200,000 draws after the change; the old ones fail it."""
    old, new = torch.arange(1.0, 11.0), torch.arange(10.0, 0, -1)
    one = WeightedSampler(old, 201_000, key=11)
    running = iter(one)
    list(islice(running, 1000))
    one.set_weights(new)
    counts = torch.bincount(torch.tensor(list(running)), minlength=10)

    def statistic(weights: Tensor) -> float:
        expected = weights / weights.sum() * 200_000
        return float(((counts - expected) ** 2 / expected).sum())

    assert statistic(new) < 45.1 < statistic(old)


def test_draws_after_a_change_are_new_ones() -> None:
    """With the same weights, too: the rest is not that of the pass before."""
    one = sampler()
    before = list(one)
    running = iter(one)
    list(islice(running, 50))
    one.set_weights(RISING)
    rest = list(running)
    assert sum(a == b for a, b in zip(rest, before[50:], strict=True)) < 10


def test_a_pass_that_was_left_does_not_hinder() -> None:
    one = WeightedSampler(torch.ones(20), 20, replacement=False, key=0)
    list(islice(iter(one), 7))
    one.set_weights(torch.arange(1, 21))
    one.set_epoch(1)
    assert sorted(one) == list(range(20))


def test_assigning_is_checked_and_a_loader_that_repeats_sees_it() -> None:
    one = sampler()
    loader = DataLoader(range(N), 10, sampler=one, num_workers=1, persistent_workers=True)  # type: ignore[arg-type]
    for epoch, only in enumerate((5, 17)):
        one.set_epoch(epoch)
        one.weights = torch.eye(N)[only]  # type: ignore[assignment]
        assert {i for batch in loader for i in batch.tolist()} == {only}
    given = torch.ones(N)
    one.set_weights(given)
    given.zero_()
    assert one.weights.sum() == N, "copied"


@pytest.mark.parametrize("replacement", [True, False])
def test_refused_weights_change_nothing(replacement: bool) -> None:
    one, untouched = sampler(replacement=replacement), sampler(replacement=replacement)
    runs = [iter(one), iter(untouched)]
    for run in runs:
        list(islice(run, 9))
    before = str(one.state_dict())
    wrong: list[Any] = [None, "1", torch.ones(N + 1), torch.ones(N, 1), -RISING, torch.zeros(N), RISING * torch.nan]
    wrong += [RISING.double() * 1e40, RISING.double() * 1e-50]  # inf and zeros as float32, which these weights are
    if not replacement:
        wrong.append((RISING > N - 99).float())
    for weights in wrong:
        with pytest.raises((TypeError, ValueError), match=r"WeightedSampler: (weights|num_samples) must"):
            one.set_weights(weights)
    assert one.version == 0 and str(one.state_dict()) == before
    assert list(runs[0]) == list(runs[1])


def test_samples_received_before_a_change_cannot_be_named() -> None:
    one = sampler()
    running = iter(one)
    list(islice(running, 16))
    one.set_weights(FALLING)
    list(islice(running, 4))
    assert one.state_dict(yielded=18)["position"] == 18
    with pytest.raises(ValueError, match="yielded must be between 16 and 20, got 8"):
        one.state_dict(yielded=8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1e300, 1.0], r"state_dict\['weights'\] must be finite, got inf in row 0"),
        ([1e-300, 1e-300], "weights must not all be zero"),
    ],
)
def test_a_states_weights_that_are_beyond_the_dtype(weights: list[float], message: str) -> None:
    state = sampler(weights, 4, key=0).state_dict()
    loaded = sampler(torch.ones(2), 4, key=0)
    with pytest.raises(ValueError, match=message):
        loaded.load_state_dict(state)
    assert loaded.weights.tolist() == [1, 1] and len(list(loaded)) == 4
