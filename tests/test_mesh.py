"""Samplers on meshes of two by two processes: who splits an epoch, who has the same samples, who differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pysel import SelectionSampler, WeightedSampler
from pysel.selection import DynamicRandom
from tests.ranks import Ranks, ranks

N, K = 41, 20
ODD = 3  # the rank at (1, 1)

# the coordinates in which ranks differ that split an epoch, by the names of the dimensions
SPLIT = [
    (("dp", "tp"), (0,)),
    (("tp", "dp"), (1,)),
    (("data_parallel", "tensor_parallel"), (0,)),
    (("pp", "fsdp"), (1,)),
    (("replicate", "shard"), (0, 1)),
    (None, (0, 1)),
]


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with ranks(4) as processes:
        yield processes


_MESHES: dict[Any, DeviceMesh] = {}


def meshed(names: Any, part: str | None = None) -> DeviceMesh:
    """A mesh of two by two, made once in a process, or a part of it."""
    if names not in _MESHES:
        _MESHES[names] = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
    return _MESHES[names] if part is None else _MESHES[names][part]


def weighted(**options: Any) -> WeightedSampler:
    options = {"key": 3, "replacement": False, **options}
    return WeightedSampler(torch.arange(1.0, N + 1), K, **options)


def selection(key: int = 4, **options: Any) -> SelectionSampler:
    return SelectionSampler(DynamicRandom(N, 0.5, key=key), **{"key": 5, **options})


def shares(rank: int, group: Any, names: Any) -> Any:
    seen = []
    for sampler in (weighted(mesh=meshed(names)), selection(mesh=meshed(names))):
        sampler.set_epoch(1)
        seen.append(((sampler.rank, sampler.num_replicas), list(sampler)))
    return seen


@pytest.mark.parametrize(("names", "split"), SPLIT)
def test_data_parallel_ranks_split_and_the_others_have_the_same(four: Ranks, names: Any, split: Any) -> None:
    seen = four(shares, 4, names)
    world = 2 ** len(split)
    for which, make in enumerate((weighted, selection)):
        whole_sampler = make()
        whole_sampler.set_epoch(1)
        whole = list(whole_sampler)
        whole += whole[: -len(whole) % world]
        for rank in range(4):
            at = divmod(rank, 2)
            expected = int("".join(str(at[dimension]) for dimension in split), 2)
            assert seen[rank][which] == ((expected, world), whole[expected::world])


def differing(rank: int, group: Any, what: str, odd: int, names: Any, part: str | None = None) -> Any:
    mesh, differs = meshed(names, part), rank == odd
    if what == "key":
        return len(list(weighted(mesh=mesh, key=3 + differs)))
    if what == "weights":
        sampler = weighted(mesh=mesh)
        if differs:
            sampler.set_weights(torch.arange(2.0, N + 2))
        return len(list(sampler))
    if what == "arguments":
        return len(list(weighted(mesh=mesh, order="index" if differs else "draw")))
    if what == "selector":
        return len(list(selection(mesh=mesh, key=4 + differs)))
    if what == "epoch and position":
        sampler = weighted(mesh=mesh)
        sampler.set_epoch(int(differs))
        return len(list(sampler))
    assert what == "failure"
    sampler = selection(mesh=mesh)
    if differs:
        sampler.selector.select = lambda epoch: 1 // 0  # type: ignore
    return len(list(iter(sampler)))  # a list of the sampler itself would ask its length first


@pytest.mark.parametrize("names", [("dp", "tp"), ("tp", "dp"), ("replicate", "shard")])
@pytest.mark.parametrize("what", ["key", "weights", "arguments", "selector", "epoch and position"])
def test_a_rank_that_differs_is_named_on_all(four: Ranks, what: str, names: Any) -> None:
    for odd in (1, ODD):
        for error in four(differing, 4, what, odd, names):
            assert isinstance(error, ValueError)
            assert f"all ranks must have the same samples, but from rank 0 differ rank {odd} in {what}" in str(error)
    assert [type(one) for one in four(differing, 4, what, None, names)] == [int] * 4, "and none where all agree"


def test_a_rank_that_fails_keeps_no_peer_waiting(four: Ranks) -> None:
    errors = four(differing, 4, "failure", 1, ("dp", "tp"))
    assert "ZeroDivisionError" in str(errors.pop(1))
    assert [str(error) for error in errors] == [
        "SelectionSampler: rank 1 has failed with ZeroDivisionError: integer division or modulo by zero"
    ] * 3


def test_a_part_of_the_mesh_is_compared_by_itself(four: Ranks) -> None:
    """So that those along the other dimension need not draw; ranks have their numbers in the world."""
    found = four(differing, 4, "key", ODD, ("dp", "tp"), "dp")
    assert found[0] == found[2] == K // 2
    for error in (found[1], found[3]):
        assert str(error).endswith("but from rank 1 differ rank 3 in key")


def alone(rank: int, group: Any) -> Any:
    """Only the first of each tensor-parallel pair draws."""
    return list(weighted(mesh=meshed(("dp", "tp"), "dp"))) if rank in (0, 2) else None


def test_some_may_draw_for_all(four: Ranks) -> None:
    whole = list(weighted())
    assert four(alone, 4) == [whole[::2], None, whole[1::2], None]


def figures(rank: int, group: Any) -> Any:
    sampler = weighted(mesh=meshed(("dp", "tp")))
    list(sampler)
    stats = sampler.stats()
    return stats["rank"], stats["num_replicas"], stats["position"]


def test_figures(four: Ranks) -> None:
    assert four(figures, 4) == [(0, 2, K), (0, 2, K), (1, 2, K), (1, 2, K)]
