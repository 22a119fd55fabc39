"""pysel/samplers/ranks.py: who this process is, who deals out the samples, and whether all ranks agree."""

from __future__ import annotations

import sys
import types
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader, DistributedSampler

import pysel
from pysel import SelectionSampler, WeightedSampler
from pysel.samplers import ranks
from pysel.selection import DynamicRandom, Full

N = 41


def weighted(**options: Any) -> WeightedSampler:
    options = {"key": 3, "replacement": False, **options}
    return WeightedSampler(torch.arange(1.0, N + 1), 20, **options)


def selection(key: int = 4, **options: Any) -> SelectionSampler:
    return SelectionSampler(DynamicRandom(N, 0.5, key=key), key=5, **options)


def raised(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Odd:
    """A selector that fails on one rank."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __len__(self) -> int:
        return 4

    def select(self, epoch: int) -> torch.Tensor:
        if self.fails:
            raise OSError("disk gone")
        return torch.arange(4)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def accelerate_with(processes: int) -> types.ModuleType:
    """Stands in for Accelerate's state."""
    state = types.ModuleType("accelerate.state")
    state.PartialState = type("PartialState", (), {"_shared_state": {"num_processes": processes}})  # type: ignore
    return state


def dealt_out(sampler: Any, processes: int) -> Any:
    """Stands in for Accelerate's batch sampler."""
    source = """
class BatchSamplerShard:
    def __init__(self, sampler, num_processes):
        self.sampler, self.num_processes = sampler, num_processes

    def __iter__(self):
        for index in self.sampler:
            yield index
"""
    namespace: dict[str, Any] = {"__name__": "accelerate.data_loader"}
    exec(source, namespace)
    return namespace["BatchSamplerShard"](sampler, processes)


# --- two processes ---


def process(rank: int, folder: str) -> None:
    """What rank ``rank`` of 2 sees, by name."""
    torch.set_num_threads(1)
    before = {"weighted": weighted(), "selection": selection()}  # made before there are groups
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    seen: dict[str, Any] = {}
    for name, sampler in before.items():
        sampler.set_epoch(1)
        seen[name] = [(sampler.rank, sampler.num_replicas, len(sampler)), list(sampler)]
    seen["key"] = raised(lambda: list(weighted(key=rank)))
    seen["weights"] = raised(lambda: list(WeightedSampler([1.0, 2.0 + rank], 2, key=0)))
    seen["arguments"] = raised(lambda: list(weighted(order="index" if rank else "draw")))
    seen["selector"] = raised(lambda: list(selection(key=rank)))
    seen["epoch"] = raised(lambda: (sampler.set_epoch(rank), list(sampler)))
    seen["fails"] = raised(lambda: list(iter(SelectionSampler(Odd(rank == 1), key=0))))
    seen["after all that"] = list(weighted())
    seen["keyless"] = raised(lambda: len(weighted(key=None)))
    alike = weighted(key=None, generator=torch.Generator().manual_seed(7))
    seen["generator"] = [list(alike), list(alike)]
    apart = weighted(key=None, generator=torch.Generator().manual_seed(rank))
    seen["generators apart"] = raised(lambda: list(apart))
    told = weighted(key=rank, rank=rank, num_replicas=2)  # who is told who he is, is not compared
    seen["told"] = len(list(told))

    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    seen["mesh"] = [list(weighted(mesh=mesh)), raised(lambda: list(weighted(mesh=mesh, key=rank)))]
    parallel = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    seen["tensor mesh"] = raised(lambda: weighted(mesh=parallel["tp"]))
    seen["same samples"] = list(weighted(mesh=parallel["dp"]))
    group, alone = dist.new_group([0, 1]), dist.new_group([0])
    seen["group"] = list(weighted(process_group=group))
    seen["not in the group"] = raised(lambda: list(weighted(process_group=alone)))

    sys.modules["accelerate.state"] = accelerate_with(2)
    whole = weighted(rank=0, num_replicas=1)
    seen["beneath accelerate"] = list(dealt_out(whole, 2))
    seen["apart beneath accelerate"] = raised(lambda: list(dealt_out(weighted(key=rank, rank=0, num_replicas=1), 2)))
    if rank == 0:  # with dispatch_batches one process draws for all
        assert list(whole) == seen["beneath accelerate"]
    del sys.modules["accelerate.state"]

    looked_at = selection()
    seen["looked at"] = []
    if rank == 0:
        next(iter(looked_at))
    for epoch in range(2):
        looked_at.set_epoch(epoch)
        seen["looked at"].append(list(looked_at))

    late = iter(weighted(key=rank))  # as loaders resume: an iterator with a state of its own
    late.load_state_dict(late.state_dict())  # type: ignore[attr-defined]
    seen["resumed apart"] = raised(lambda: list(late))

    changing = weighted(replacement=True)
    running = iter(changing)
    begun = list(islice(running, 3))
    changing.set_weights(torch.arange(N, 0, -1))
    seen["changed"] = begun + list(running)

    sampler = selection()
    sampler.set_epoch(2)
    begun = list(islice(iter(sampler), 4))
    dcp.save({"sampler": sampler}, checkpoint_id=f"{folder}/checkpoint")
    resumed = {"sampler": selection()}
    dcp.load(resumed, checkpoint_id=f"{folder}/checkpoint")
    seen["checkpoint"] = begun + list(resumed["sampler"])
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def together(shares: Any) -> list[int]:
    return [index for row in zip(*shares, strict=True) for index in row]


def test_ranks_come_from_torch_distributed(two: list[dict[str, Any]]) -> None:
    for name, alone in (("weighted", weighted()), ("selection", selection())):
        alone.set_epoch(1)
        whole = list(alone)
        half = -(-len(whole) // 2)
        assert [one[name][0] for one in two] == [(0, 2, half), (1, 2, half)]
        assert together(one[name][1] for one in two) == (whole + whole[:1])[: 2 * half]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("key", "ValueError: WeightedSampler: all ranks must have the same samples.*differ rank 1 in key$"),
        ("weights", "ValueError: .*differ rank 1 in weights"),
        ("arguments", "ValueError: .*differ rank 1 in arguments"),
        ("selector", "ValueError: SelectionSampler: .*rank 1 in selector; rank 1 in subset"),
        ("epoch", "ValueError: .*rank 1 in epoch and position"),
        ("apart beneath accelerate", "ValueError: .*rank 1 in key"),
        ("resumed apart", "ValueError: .*rank 1 in key"),
        ("generators apart", "ValueError: .*rank 1 in key"),
        ("keyless", "ValueError: WeightedSampler: key must be given with num_replicas=2, or a generator"),
        ("tensor mesh", "ValueError: WeightedSampler: mesh must have a data-parallel dimension, got tp: pass"),
    ],
)  # fmt: skip
def test_ranks_that_differ_are_named_on_all(two: list[dict[str, Any]], name: str, message: str) -> None:
    import re

    for one in two:
        assert re.match(message, one[name]), one[name]


def test_a_rank_that_fails_keeps_nobody_waiting(two: list[dict[str, Any]]) -> None:
    assert two[0]["fails"] == "RuntimeError: SelectionSampler: rank 1 has failed with OSError: disk gone"
    assert two[1]["fails"] == "OSError: disk gone"
    assert together(one["after all that"] for one in two) == list(weighted())


def test_one_rank_may_have_a_look(two: list[dict[str, Any]]) -> None:
    alone = selection()
    for epoch in range(2):
        alone.set_epoch(epoch)
        whole = list(alone)
        assert together(one["looked at"][epoch] for one in two) == whole + whole[:1]


def test_a_shared_generator_stands_for_a_key(two: list[dict[str, Any]]) -> None:
    passes = [together(one["generator"][i] for one in two) for i in range(2)]
    assert [len(set(one)) for one in passes] == [20, 20] and passes[0] != passes[1]


def test_mesh_and_group(two: list[dict[str, Any]]) -> None:
    whole = list(weighted())
    assert together(one["mesh"][0] for one in two) == together(one["group"] for one in two) == whole
    assert all("rank 1 in key" in one["mesh"][1] for one in two)
    assert two[0]["same samples"] == two[1]["same samples"] == whole
    assert two[0]["not in the group"] == "nothing" and "must contain this process" in two[1]["not in the group"]
    assert [one["told"] for one in two] == [10, 10]


def test_beneath_accelerate_each_process_draws_all(two: list[dict[str, Any]]) -> None:
    assert [one["beneath accelerate"] for one in two] == [list(weighted())] * 2


def test_weights_change_on_all_ranks(two: list[dict[str, Any]]) -> None:
    alone = weighted(replacement=True)
    running = iter(alone)
    begun = list(islice(running, 6))
    alone.set_weights(torch.arange(N, 0, -1))
    assert together(one["changed"] for one in two) == begun + list(running)


def test_distributed_checkpoint(two: list[dict[str, Any]]) -> None:
    alone = selection()
    alone.set_epoch(2)
    whole = list(alone)
    assert together(one["checkpoint"] for one in two) == whole + whole[:1]


# --- one process ---


@pytest.fixture
def accelerate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for Accelerate with so many processes."""
    return lambda processes: monkeypatch.setitem(sys.modules, "accelerate.state", accelerate_with(processes))


def test_under_accelerate(accelerate: Any) -> None:
    for make in (weighted, selection):
        accelerate(2)
        for use in (list, len, iter):
            sampler = make()
            if use is iter:
                continue
            with pytest.raises(ValueError, match=r"deal out batches themselves: pass rank=0, num_replicas=1"):
                use(sampler)
        with pytest.raises(ValueError, match=r"deal out batches themselves: pass rank=0, num_replicas=1"):
            len(DataLoader(range(N), 4, sampler=make()))
        whole = list(make(rank=0, num_replicas=1))
        assert len(list(make(rank=1, num_replicas=2))) == -(-len(whole) // 2), "a loader that is not prepared"
        accelerate(1)
        assert list(make()) == whole


def test_without_a_key_under_accelerate(accelerate: Any) -> None:
    sampler = weighted(key=None, rank=0, num_replicas=1)
    accelerate(2)
    with pytest.raises(ValueError, match="key must be given with num_replicas=2, or a generator"):
        len(sampler)
    sampler.generator = torch.Generator().manual_seed(1)  # as Accelerate does
    assert len(set(sampler)) == 20


def test_a_share_is_not_dealt_out_again(accelerate: Any) -> None:
    """Seen by Accelerate's batch sampler among the callers."""
    accelerate(2)
    with pytest.raises(ValueError, match="to 2 processes: pass rank=0, num_replicas=1, got rank=1, num_replicas=2"):
        list(dealt_out(weighted(rank=1, num_replicas=2), 2))
    assert len(list(dealt_out(weighted(rank=1, num_replicas=2), 1))) == 10
    assert len(list(dealt_out(weighted(rank=0, num_replicas=1), 2))) == 20


@pytest.mark.parametrize("make", [weighted, selection])
def test_trainers_take_it_for_a_distributed_sampler(make: Any) -> None:
    sampler = make(rank=2, num_replicas=3)
    assert isinstance(sampler, DistributedSampler)
    n = len(list(make()))
    assert (sampler.rank, sampler.num_replicas, sampler.epoch, sampler.drop_last) == (2, 3, 0, False)
    assert len(sampler.dataset) == sampler.num_samples == n
    assert sampler.total_size == 3 * len(sampler) == 21
    assert make(rank=2, num_replicas=3, drop_last=True).total_size == n // 3 * 3
    assert isinstance(sampler.seed, int) and sampler.shuffle is True


def test_bad_ranks() -> None:
    for options, error, message in (
        ({"rank": 1}, ValueError, "rank must be between 0 and 0, got 1"),
        ({"rank": -1}, ValueError, "rank must be at least 0, got -1"),
        ({"rank": 2, "num_replicas": 2}, ValueError, "rank must be between 0 and 1, got 2"),
        ({"num_replicas": 0}, ValueError, "num_replicas must be at least 1, got 0"),
        ({"rank": 0.0}, TypeError, "rank must be an int, got float"),
        ({"num_replicas": "2"}, TypeError, "num_replicas must be an int, got str"),
        ({"rank": 0, "process_group": object()}, ValueError, "give rank and num_replicas, or mesh, or process_group"),
    ):
        with pytest.raises(error, match=message):
            weighted(**options)


def test_data_parallel_ranks_of_a_larger_mesh() -> None:
    """Of 2 x 2 processes those along the tensor dimension have the same samples, those along the other share them."""
    shares = {(d, t): list(weighted(rank=d, num_replicas=2)) for d in range(2) for t in range(2)}
    assert all(shares[d, 0] == shares[d, 1] for d in range(2))
    assert together([shares[0, 0], shares[1, 1]]) == list(weighted())


def test_padding_is_as_torchs() -> None:
    for world in (1, 2, 3, 7, 50):
        whole = list(SelectionSampler(Full(20), key=0))
        shares = [list(SelectionSampler(Full(20), key=0, rank=r, num_replicas=world)) for r in range(world)]
        padded = (whole * 3)[: -(-20 // world) * world]
        assert together(shares) == padded


def test_digests() -> None:
    from pysel.samplers.ranks import digest

    one = {"a": torch.arange(3), "b": [1, "x", 0.5, None], "c": {"f": torch.cat}}
    assert digest(one) == digest({name: one[name] for name in ("c", "b", "a")})
    for other in (
        {**one, "a": torch.arange(3).int()},
        {**one, "a": torch.tensor([0, 1, 3])},
        {**one, "a": torch.arange(3)[:, None]},
        {**one, "b": [1, "x", 0.5]},
        {**one, "b": [1, "x", 0.25, None]},
        {**one, "c": {}},
    ):
        assert digest(other) != digest(one)
    assert ranks.find("x", ranks.where("x", None, None, None, None)) == (0, 1, ())
    assert pysel.samplers.WeightedSampler is WeightedSampler
