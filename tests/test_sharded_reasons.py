"""ShardedDynamicSelector: weights of draws, and why a sample is taken, are those of one process to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import Ranks, ranks
from tests.test_distributed import cuts
from tests.test_sharded_dynamic import EPOCHS, labels, make, one, tables


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with ranks(4) as started:
        yield started


DRAWN = [
    {"temperature": 0.3},
    {"temperature": 0.3, "labels": labels()},
    {"temperature": 0.05, "labels": labels(), "balance": "proportional", "tables": tables(dtype=torch.float64)},
    {"temperature": 0.3, "labels": labels(), "balance_losses": False, "penalty": "rate"},
    {"temperature": 2.0, "labels": labels(), "balance": None, "keep_ratio": 1.0, "refine": 0.0},
]


def batches(whole: Any, epoch: int, world: int) -> list[Tensor]:
    """What each rank asks for: samples of all shards, some twice, and on one rank none."""
    subset = whole.select(epoch)
    at = [
        torch.randint(len(subset), (3 * rank,), generator=torch.Generator().manual_seed(rank)) for rank in range(world)
    ]
    return [subset[one] for one in at]


def weigh_draws(rank: int, group: Any, at: list[int], given: dict[str, Any], asked: dict[int, list[Tensor]]) -> Any:
    selector = make(rank, group, at, given)
    return [
        [(selector.bitmap(epoch), selector.weights(one[rank]))[1] for _ in range(2)] for epoch, one in asked.items()
    ]


def quickly(cases: list[dict[str, Any]], *quick: int) -> list[Any]:
    """All cases, of which those at other places are long."""
    return [pytest.param(one, marks=() if at in quick else pytest.mark.long) for at, one in enumerate(cases)]


@pytest.mark.parametrize("given", quickly(DRAWN, 1, 2))
def test_weights_of_draws(four: Ranks, given: dict[str, Any]) -> None:
    whole = one(given)
    for world, how in ((1, "even"), (3, "random"), (4, "all on one")):
        asked = {epoch: batches(whole, epoch, world) for epoch in (0, 3, EPOCHS, 2)}
        answers = four(weigh_draws, world, cuts(1003, world, how), given, asked)
        for epoch, *found in zip(asked, *answers, strict=True):
            whole.select(epoch)
            for batch, (first, again) in zip(asked[epoch], found, strict=True):
                wanted = whole.weights(batch)
                assert first.dtype == wanted.dtype and torch.equal(first, wanted) and torch.equal(again, wanted)


def test_weights_of_all_draws_to_the_last_bit(four: Ranks) -> None:
    n, generator = 20_000, torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        given = {"tables": torch.rand(2, n, generator=generator, dtype=dtype).unbind(), "temperature": 0.2}
        whole = one(given)
        asked = {1: [whole.select(1)] * 3}
        wanted = whole.weights(asked[1][0])
        assert len(wanted.unique()) > 1000
        for ((found, _),) in four(weigh_draws, 3, cuts(n, 3, "random"), given, asked):
            assert torch.equal(found, wanted)


def weigh_what_is_not_drawn(rank: int, group: Any, subset: Tensor) -> Any:
    selector = make(rank, group, [0, 300, 600, 1003], {"temperature": 0.3})
    if rank == 2:
        subset = subset + 10_000
    elif rank == 1:
        subset = torch.arange(1003)
    selector.bitmap(0)
    return selector.weights(subset)


def test_weights_of_what_is_not_drawn(four: Ranks) -> None:
    subset = one({"temperature": 0.3}).select(0)
    answers = four(weigh_what_is_not_drawn, 3, subset)
    assert "weights: refused on rank 1, 2, whose own error says why" in str(answers[0])
    assert "indices must be of the subset of epoch 0, got " in str(answers[1])
    assert "indices must be between 0 and 1002, got " in str(answers[2])


def why(rank: int, group: Any, at: list[int], given: dict[str, Any], samples: list[int]) -> Any:
    selector = make(rank, group, at, given)
    before = selector.explain(samples[0])
    selector.bitmap(3)
    found = [selector.explain(sample) for sample in samples]
    selector.bitmap(EPOCHS)
    return [before, *found, selector.explain(samples[0]), repr(selector._bitmap)]


EXPLAINED = [
    *DRAWN,
    {},
    {"labels": labels(), "penalty": "linear"},
    {"labels": torch.arange(1003)},
    {"tables": tables(dtype=torch.float64)},
    {"tables": (torch.full((1003,), 2.0), torch.full((1003,), -3.0))},
]


@pytest.mark.parametrize("given", quickly(EXPLAINED, 1, 4, 6, 9))
def test_explanations(four: Ranks, given: dict[str, Any]) -> None:
    samples = [0, 1, 2, 501, 502, 1001, 1002, 700, 701, 702]
    whole = one(given)
    wanted: list[Any] = [whole.explain(samples[0])]
    whole.select(3)
    wanted += [whole.explain(sample) for sample in samples]
    assert given.get("keep_ratio") == 1.0 or {why["taken"] for why in wanted} == {True, False}
    whole.select(EPOCHS)
    wanted.append(whole.explain(samples[0]))
    for world, how in ((1, "even"), (3, "random"), (4, "all on one"), (4, "even")):
        for answer in four(why, world, cuts(1003, world, how), given, samples):
            assert answer[:-1] == wanted
            assert [list(one) for one in answer[:-1]] == [list(one) for one in wanted]
            assert [repr(one) for one in answer[:-1]] == [repr(one) for one in wanted]


def why_of_another(rank: int, group: Any, samples: list[int]) -> Any:
    return make(rank, group, [0, 300, 600, 1003], {}).explain(samples[rank])


def test_an_explanation_of_another_sample(four: Ranks) -> None:
    for answer in four(why_of_another, 3, [5, 5, 6]):
        assert "explain: i must be the same on all ranks, but differs between rank 0 and rank 2" in str(answer)
    answers = four(why_of_another, 3, [5, 1003, 5])
    assert "ShardedDynamicSelector.explain: i must be between 0 and 1002, got 1003" in str(answers[1])
    assert all("refused on rank 1" in str(answers[rank]) for rank in (0, 2))
