"""pysel/distributed: on any number of ranks, however the data lie, what one process gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import pysel
import pysel.distributed
from pysel.distributed import race
from tests.ranks import Ranks, ranks

WORLD = 4


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with ranks(WORLD) as started:
        yield started


def cuts(n: int, world: int, how: str) -> list[int]:
    """Where each rank's shard begins, and the end."""
    if how == "even":
        return [n * r // world for r in range(world + 1)]
    if how == "all on one":
        return [0] * (world - world // 2) + [n] * (world // 2 + 1)
    generator = torch.Generator().manual_seed(n + world)
    return [0, *torch.randint(n + 1, (world - 1,), generator=generator).sort().values.tolist(), n]


LAYOUTS = ["even", "all on one", "random"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shard(x: Tensor | None, at: list[int], rank: int) -> Tensor | None:
    return None if x is None else x[at[rank] : at[rank + 1]].clone()


def call(rank: int, group: Any, name: str, x: Tensor, at: list[int], arguments: dict[str, Any]) -> Tensor:
    given = dict(arguments)
    given["groups"] = shard(given.get("groups"), at, rank)
    return getattr(pysel.distributed, name)(shard(x, at, rank), process_group=group, **given) + at[rank]


def together(four: Ranks, name: str, world: int, how: str, x: Tensor, **arguments: Any) -> Tensor:
    answers = four(call, world, name, x, cuts(len(x), world, how), arguments)
    for answer in answers:
        assert isinstance(answer, Tensor), answer
    return torch.cat(answers)


def numbers(dtype: torch.dtype, n: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    if kind == "equal":
        return torch.ones(n).to(dtype)
    if kind == "few":
        return torch.randint(-2, 3, (n,), generator=generator).to(dtype)
    x = torch.randn(n, generator=generator, dtype=torch.float64) * (1e6 if not dtype.is_floating_point else 1)
    if kind == "wild" and dtype.is_floating_point:
        x[::7] *= 1e30 if dtype in (torch.float32, torch.float64, torch.bfloat16) else 1e3
        x[3], x[5], x[8], x[9] = torch.inf, -torch.inf, 0.0, -0.0
    return x.to(dtype)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]


ONE_BY_ONE = [(world, how) for world in (1, 2, 3, 4) for how in LAYOUTS if world > 1 or how == "even"]


@pytest.mark.parametrize(("world", "how"), ONE_BY_ONE)
def test_select(four: Ranks, world: int, how: str) -> None:
    settings = itertools.cycle(itertools.product((1, 500, 0, 1001, 700), ((True, None), (False, 7), (True, 7))))
    for dtype in DTYPES:
        for kind in ("equal", "few", "wild"):
            x = numbers(dtype, 1001, kind)
            k, (largest, key) = next(settings)
            got = together(four, "select", world, how, x, k=k, largest=largest, key=key)
            assert torch.equal(got, pysel.select(x, k, largest, key=key)), (dtype, kind, k, largest, key)


@pytest.mark.parametrize(("world", "how"), ONE_BY_ONE)
def test_select_of_groups(four: Ranks, world: int, how: str) -> None:
    n = 1003
    for num_groups, dtype, kind in (
        (1, torch.float32, "wild"),
        (2, torch.float64, "equal"),
        (5, torch.int32, "few"),
        (300, torch.float32, "wild"),
    ):
        groups = (torch.arange(n) * 7919 % 1009 % num_groups).to(torch.int32 if num_groups == 5 else torch.int64)
        size = torch.bincount(groups, minlength=num_groups + 1)  # the last group is empty
        x = numbers(dtype, n, kind)
        for quotas in (size // 3, size, torch.zeros_like(size)):
            given = {"k": int(quotas.sum()), "groups": groups, "quotas": quotas, "key": 3 if kind == "few" else None}
            got = together(four, "select", world, how, x, **given)
            assert torch.equal(got, pysel.select(x, **given)), (num_groups, kind)


@pytest.mark.parametrize(("world", "how"), ONE_BY_ONE)
@pytest.mark.parametrize("replacement", [False, True])
def test_weighted_sample(four: Ranks, world: int, how: str, replacement: bool) -> None:
    share = itertools.cycle((0.5, 0, 1, 0.01))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for log_weights, kind in ((False, "wild"), (True, "few"), (False, "equal"), (True, "wild")):
            x = numbers(dtype, 1001, kind)
            x = x.clamp_max(1e4) if log_weights else x.abs().clamp_max(1e4)
            nonzero = int((x > (-torch.inf if log_weights else 0)).sum())
            k = int(next(share) * (5000 if replacement else nonzero))
            given = {"k": k, "replacement": replacement, "log_weights": log_weights, "key": 5}
            got = together(four, "weighted_sample", world, how, x, **given)
            assert torch.equal(got, pysel.weighted_sample(x, order="index", **given)), (dtype, kind, k)


@pytest.mark.parametrize("how", LAYOUTS)
def test_weighted_sample_of_groups(four: Ranks, how: str) -> None:
    n = 1003
    groups = torch.arange(n) * 7919 % 1009 % 11
    w = numbers(torch.float32, n, "wild").abs().clamp_max(1e20)
    quotas = torch.bincount(groups[w > 0], minlength=11) // 2
    given = {"k": int(quotas.sum()), "groups": groups, "quotas": quotas, "key": 3}
    got = together(four, "weighted_sample", 4, how, w, **given)
    assert torch.equal(got, pysel.weighted_sample(w, order="index", **given))


def biased(rank: int, group: Any, best: bool, x: Tensor, at: list[int], arguments: dict[str, Any]) -> Tensor:
    """A call whose sample is of the shard's first rows or its last, which are its best and its worst."""
    fair = race.Shard.sample
    race.Shard.sample = lambda self, size: self.piece(slice(0, size) if best else slice(self.rows - size, self.rows))
    try:
        return call(rank, group, "select", x, at, arguments)
    finally:
        race.Shard.sample = fair


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("kind", ["wild", "few"])
def test_a_sample_that_misses_the_cut_costs_time_alone(four: Ranks, best: bool, kind: str) -> None:
    n = 100_000  # of which a rank draws not quite half
    x = torch.cat([part.sort(descending=True).values for part in numbers(torch.float32, n, kind).split(n // 2)])
    for k in (n // 2, n // 3):
        answers = four(biased, 2, best, x, cuts(n, 2, "even"), {"k": k, "key": 3})
        assert torch.equal(torch.cat(answers), pysel.select(x, k, key=3))


# --- what it costs ---


def counted(
    rank: int, group: Any, name: str, x: Tensor, at: list[int], arguments: dict[str, Any]
) -> tuple[Any, int, int]:
    """A call with small pieces and messages, and its collectives and bytes."""
    calls, size = 0, 0
    gather, reduce = dist.all_gather, dist.all_reduce

    def counting_gather(parts: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        nonlocal calls, size
        calls, size = calls + 1, size + sum(part.numel() * part.element_size() for part in parts)
        return gather(parts, *args, **kwargs)

    def counting_reduce(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls, size
        calls, size = calls + 1, size + x.numel() * x.element_size()
        return reduce(x, *args, **kwargs)

    dist.all_gather, dist.all_reduce = counting_gather, counting_reduce
    try:
        return call(rank, group, name, x, at, arguments), calls, size
    finally:
        dist.all_gather, dist.all_reduce = gather, reduce


@pytest.mark.parametrize(
    ("name", "kind", "given", "most"),
    [
        ("select", "wild", {"k": 300_000}, 5),
        ("select", "wild", {"k": 3}, 5),
        ("select", "equal", {"k": 300_000}, 5),
        ("select", "equal", {"k": 300_000, "key": 1}, 5),
        ("select", "few", {"k": 999_999, "key": 1, "largest": False}, 5),
        ("weighted_sample", "equal", {"k": 300_000, "key": 1}, 5),
        ("weighted_sample", "equal", {"k": 300_000, "key": 1, "replacement": True}, 2),
        ("groups", "wild", {"key": 1}, 6),
        ("groups", "equal", {"key": 1}, 6),
        ("groups", "equal", {}, 6),
        ("groups at random", "equal", {}, 6),
        ("groups at random", "few", {"largest": False}, 6),
        ("groups at random", "small integers", {"key": 1}, 6),
        pytest.param("groups", "equal", {"n": 10_000_000}, 6, marks=pytest.mark.long),
        pytest.param("groups", "equal", {"n": 10_000_000, "key": 1}, 6, marks=pytest.mark.long),
    ],
)
def test_collectives_and_bytes(four: Ranks, name: str, kind: str, given: dict[str, Any], most: int) -> None:
    given = dict(given)
    n = given.pop("n", 1_000_000)
    # integers whose keys have the same upper halves
    x = torch.arange(n) * 7919 % 1_000_003 * 4001 if kind == "small integers" else numbers(torch.float64, n, kind)
    if name.startswith("groups"):
        groups = torch.arange(n) % 1000 if name == "groups" else torch.randint(1000, (n,), generator=seeded(0))
        quotas = torch.bincount(groups) // 2
        given = {**given, "k": int(quotas.sum()), "groups": groups, "quotas": quotas}
        name = "select"
    answers = four(counted, 4, name, x, cuts(n, 4, "even"), given)
    order = {"order": "index"} if name == "weighted_sample" else {}
    assert torch.equal(torch.cat([rows for rows, _, _ in answers]), getattr(pysel, name)(x, **given, **order))
    calls, size = answers[0][1:]
    assert calls <= most
    assert size <= 4 << 20


def of_many_groups(rank: int, group: Any, num_groups: int) -> Any:
    quotas = torch.zeros(num_groups, dtype=torch.int64)
    quotas[-1] = 1
    groups = torch.tensor([0, num_groups - 1, num_groups - 1])
    return pysel.distributed.select(torch.arange(3.0), 1, groups=groups, quotas=quotas, process_group=group)


def test_more_groups_than_a_message_tells_apart(four: Ranks) -> None:
    assert [answer.tolist() for answer in four(of_many_groups, 2, 1 << 21)] == [[2], []]
    for answer in four(of_many_groups, 2, (1 << 21) + 1):
        assert isinstance(answer, ValueError), answer
        assert "select: quotas must be of at most 2097152 groups, got 2097153" in str(answer)


def outside(rank: int, group: Any, how: str) -> Any:
    members = dist.new_group([0, 1])
    if rank < 2:
        return pysel.distributed.select(torch.arange(2.0), 1, process_group=members).tolist()
    if how == "select":
        return pysel.distributed.select(torch.arange(2.0), 1, process_group=members)
    return pysel.distributed.factor_tables(pysel.sae.TopKSAE(2, 4, 1, key=0), torch.eye(2), process_group=members)


@pytest.mark.parametrize("how", ["select", "factor_tables"])
def test_a_process_outside_of_the_group(four: Ranks, how: str) -> None:
    answers = four(outside, WORLD, how)
    assert answers[:2] == [[1], []]
    for answer in answers[2:]:
        assert isinstance(answer, ValueError), answer
        assert str(answer) == f"{how}: process_group must contain this process"


# --- counts ---


def step(rank: int, group: Any, counts: Tensor, selected: Tensor, scores: Tensor, at: list[int], **given: Any) -> Any:
    mine = shard(counts, at, rank)
    own = selected[(selected >= at[rank]) & (selected < at[rank + 1])] - at[rank]
    return pysel.distributed.usage_step_(mine, own, shard(scores, at, rank), 0.3, process_group=group), mine


def test_usage_step(four: Ranks) -> None:
    counts, scores = torch.arange(50.0), torch.linspace(-1, 1, 50)
    selected = torch.tensor([0, 3, 3, 20, 49])
    answers = four(step, 3, counts, selected, scores, cuts(50, 3, "random"))
    wanted = pysel.usage_step_(counts, selected, scores, 0.3)
    assert torch.equal(torch.cat([penalised for penalised, _ in answers]), wanted)
    assert torch.equal(torch.cat([updated for _, updated in answers]), counts)


def numbers_of_any_kind(rank: int, group: Any) -> Any:
    gamma, step = [(1, 2), (1.0, np.int64(2)), (np.float64(1), torch.tensor(2))][rank]
    penalised = pysel.distributed.usage_step_(
        torch.ones(3), torch.tensor([1]), torch.ones(3), gamma, form="rate", step=step, process_group=group
    )
    size = [5, np.int64(5), torch.tensor(5)][rank]
    values, indices = torch.ones(2, 1), torch.tensor([[0], [4]])
    return penalised, pysel.distributed.factor_counts(values, indices, size, process_group=group)


def test_equal_numbers_of_different_kinds_are_equal(four: Ranks) -> None:
    for penalised, counts in four(numbers_of_any_kind, 3):
        assert penalised.tolist() == [0.5, 0.0, 0.5]
        assert counts.tolist() == [3, 0, 0, 0, 3]


def bad_step(rank: int, group: Any) -> Any:
    counts = torch.zeros(5)
    try:
        pysel.distributed.usage_step_(
            counts, torch.tensor([9 if rank == 1 else 0]), counts + 1, 0.3, process_group=group
        )
    except (IndexError, RuntimeError) as error:
        return error, counts


def test_a_refused_step_changes_nothing_on_any_rank(four: Ranks) -> None:
    for rank, (error, counts) in enumerate(four(bad_step, 3)):
        assert counts.tolist() == [0] * 5
        if rank == 1:
            assert "selected must be between 0 and 4, got 9" in str(error)
        else:
            assert "usage_step_: refused on rank 1, whose own error says why" in str(error)


def count(rank: int, group: Any, values: Tensor, indices: Tensor, groups: Tensor, at: list[int]) -> Tensor:
    return pysel.distributed.factor_counts(
        shard(values, at, rank), shard(indices, at, rank), 20, groups=shard(groups, at, rank), num_groups=3,
        process_group=group,
    )  # fmt: skip


@pytest.mark.parametrize("how", LAYOUTS)
def test_factor_counts(four: Ranks, how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values, indices = torch.randn(101, 4, generator=generator), torch.randint(20, (101, 4), generator=generator)
    groups = torch.arange(101) % 3
    wanted = pysel.factor_counts(values, indices, 20, groups=groups, num_groups=3)
    for answer in four(count, 4, values, indices, groups, cuts(101, 4, how)):
        assert torch.equal(answer, wanted)


# --- what is refused ---


def differing(rank: int, group: Any, name: str, argument: str, values: list[Any], given: dict[str, Any]) -> Any:
    function = getattr(pysel.distributed, name)
    return function(torch.ones(10), process_group=group, **{**given, argument: values[rank]})


@pytest.mark.parametrize(
    ("name", "argument", "values", "given"),
    [
        ("select", "k", [3, 3, 4], {}),
        ("select", "largest", [True, False, True], {"k": 3}),
        ("select", "key", [1, 1, 2], {"k": 3}),
        ("select", "key", [1, None, 1], {"k": 3}),
        ("weighted_sample", "k", [3, 4, 4], {"key": 1}),
        ("weighted_sample", "key", [1, 1, 2], {"k": 3}),
        ("weighted_sample", "replacement", [True, False, False], {"k": 3, "key": 0}),
        ("weighted_sample", "log_weights", [True, False, False], {"k": 3, "key": 0}),
    ],
)
def test_ranks_that_disagree_are_named(four: Ranks, name: str, argument: str, values: list[Any], given: Any) -> None:
    other = next(r for r, value in enumerate(values) if value != values[0])
    for answer in four(differing, 3, name, argument, values, given):
        assert isinstance(answer, ValueError)
        assert f"{name}: {argument} must be the same on all ranks, but differs between rank 0 and rank {other}" in str(
            answer
        )


def two_functions(rank: int, group: Any) -> Any:
    if rank == 0:
        return pysel.distributed.select(torch.ones(4), 2, process_group=group)
    return pysel.distributed.weighted_sample(torch.ones(4), 2, key=0, process_group=group)


def test_another_function_on_another_rank(four: Ranks) -> None:
    for answer in four(two_functions, 2):
        assert isinstance(answer, ValueError)
        assert "all ranks must call the same function" in str(answer)


def spoilt(rank: int, group: Any, name: str, x: Tensor | None, given: dict[str, Any]) -> Any:
    good = torch.ones(2) if x is None else torch.ones(len(x)).to(x.dtype)
    return getattr(pysel.distributed, name)(x if rank == 1 else good, process_group=group, **given)


@pytest.mark.parametrize(
    ("name", "x", "given", "message"),
    [
        ("select", [1.0, torch.nan], {"k": 1}, "select: scores must not be NaN, got NaN"),
        ("select", [[1.0], [2.0]], {"k": 1}, "select: scores must have shape [n], got [2, 1]"),
        ("weighted_sample", [1.0, -1.0], {"k": 1, "key": 0}, "weights must be finite and at least 0, got a negative"),
        ("weighted_sample", [torch.inf], {"k": 1, "key": 0, "log_weights": True}, "weights must be below +inf"),
        ("select", None, {"k": 1}, "select: scores must be a Tensor, got NoneType"),
        ("weighted_sample", None, {"k": 1, "key": 0}, "weighted_sample: weights must be a Tensor, got NoneType"),
    ],
)
def test_a_shard_that_is_refused(four: Ranks, name: str, x: Any, given: dict[str, Any], message: str) -> None:
    given_x = None if x is None else torch.tensor(x)
    for rank, answer in enumerate(four(spoilt, 3, name, given_x, given)):
        if rank == 1:
            assert isinstance(answer, TypeError if x is None else ValueError)
            assert message in str(answer)
        else:
            assert isinstance(answer, RuntimeError)
            assert f"{name}: refused on rank 1" in str(answer)


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("select", {"k": 31}, IndexError, "select: k must be between 0 and 30, got 31"),
        ("select", {"k": -1}, IndexError, "select: k must be between 0 and 30, got -1"),
        ("weighted_sample", {"k": 31, "key": 0}, IndexError, "weighted_sample: k must be between 0 and 30, got 31"),
        ("weighted_sample", {"k": -1, "key": 0}, ValueError, "weighted_sample: k must be at least 0, got -1"),
        ("weighted_sample", {"k": 1, "key": None}, ValueError, "weighted_sample: key must be given"),
        ("select", {"k": 1.5}, TypeError, "select: k must be an int, got float"),
    ],
)
def test_refused_on_all_ranks(four: Ranks, name: str, given: dict[str, Any], error: type, message: str) -> None:
    for answer in four(spoilt, 3, name, torch.ones(10), given):
        assert type(answer) is error
        assert message in str(answer)


def zeros(rank: int, group: Any, replacement: bool, k: int) -> Any:
    return pysel.distributed.weighted_sample(
        torch.zeros(4) if rank else torch.tensor([0.0, float(not replacement)]),
        k,
        replacement,
        key=0,
        process_group=group,
    )


def test_too_few_weights(four: Ranks) -> None:
    for answer in four(zeros, 3, False, 2):
        assert isinstance(answer, ValueError)
        assert "k must be at most the number of nonzero weights, 1, got 2" in str(answer)
    for answer in four(zeros, 3, True, 2):
        assert isinstance(answer, ValueError)
        assert "weights must have at least one above 0, got zeros on all ranks" in str(answer)


def too_many_of_a_group(rank: int, group: Any) -> Any:
    groups = torch.tensor([0, 0, 1])
    return pysel.distributed.select(torch.ones(3), 7, groups=groups, quotas=torch.tensor([3, 4]), process_group=group)


def test_a_quota_above_its_group(four: Ranks) -> None:
    for answer in four(too_many_of_a_group, 3):
        assert isinstance(answer, ValueError)
        assert "select: quotas must be at most the size of each group, 3 for group 1, got 4" in str(answer)


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match=r"select: torch.distributed must be initialised"):
        pysel.distributed.select(torch.ones(3), 1)
