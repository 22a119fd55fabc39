"""pysel/samplers: which samples, on which rank, in which order, and after a restart."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import pysel
from pysel import SelectionSampler, WeightedSampler
from pysel.samplers import passes
from pysel.selection import DynamicSelector, FixedSelector, Full
from tests.epochs import through_a_file

pytestmark = pytest.mark.filterwarnings("ignore:.*is yielded again")

N = 103  # prime: never divides over ranks


def weighted(**options: Any) -> WeightedSampler:
    weights = torch.arange(1, N + 1, dtype=torch.float64, device="cpu")
    return WeightedSampler(weights, options.pop("num_samples", 50), key=3, **options)


def selection(**options: Any) -> SelectionSampler:
    scores = torch.rand(2, N, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    selector = DynamicSelector.from_scores(scores[0], scores[1], keep_ratio=0.5, epochs=6, key=5)
    return SelectionSampler(selector, key=4, **options)


SAMPLERS = [
    pytest.param(weighted, id="weighted"),
    pytest.param(lambda **o: weighted(replacement=False, **o), id="weighted-without-replacement"),
    pytest.param(selection, id="selection"),
]


class Rows(Dataset[int]):
    """Sample i is the number i; at module level, so that spawned workers can import it."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        assert type(index) is int
        return index


@pytest.mark.parametrize("make", SAMPLERS)
def test_same_key_and_epoch_give_the_same_samples(make: Any) -> None:
    for epoch in (0, 1, 3):
        first, second = make(), make()
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        once = list(first)
        assert once == list(second) == list(first)
        assert len(once) == len(first)
        assert all(type(index) is int and 0 <= index < N for index in once)


@pytest.mark.parametrize("make", SAMPLERS)
def test_epochs_differ(make: Any) -> None:
    sampler = make()
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append(tuple(sampler))
    assert len(set(epochs)) == 4


@pytest.mark.parametrize("make", SAMPLERS)
def test_global_random_state_is_untouched_with_a_key(make: Any) -> None:
    before = torch.get_rng_state()
    sampler = make()
    sampler.set_epoch(1)
    list(sampler)
    sampler.load_state_dict(sampler.state_dict())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_one_global_sequence(make: Any, world: int, drop_last: bool) -> None:
    alone = make()
    ranks = [make(rank=r, num_replicas=world, drop_last=drop_last) for r in range(world)]
    for epoch in range(3):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        whole = list(alone)
        shares = [list(sampler) for sampler in ranks]
        count = len(whole) // world if drop_last else -(-len(whole) // world)
        assert [len(share) for share in shares] == [len(sampler) for sampler in ranks] == [count] * world
        together = [index for row in zip(*shares, strict=True) for index in row]
        assert together == (whole + whole)[: count * world]


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
@pytest.mark.parametrize("world", [1, 3])
def test_pieces_do_not_show(make: Any, piece: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they when a pass begins between two of them."""
    wanted = [list(make(rank=r, num_replicas=world)) for r in range(world)]
    monkeypatch.setattr(passes, "_PIECE", piece)
    for rank in range(world):
        sampler = make(rank=rank, num_replicas=world)
        assert list(sampler) == wanted[rank]
        begun = list(islice(iter(sampler), 5))
        resumed = make(rank=rank, num_replicas=world)
        resumed.load_state_dict(sampler.state_dict())
        assert begun + list(resumed) == wanted[rank]


def test_more_ranks_than_samples() -> None:
    ranks = [SelectionSampler(Full(2), key=pysel.key(0), rank=r, num_replicas=5) for r in range(5)]
    assert [len(list(sampler)) for sampler in ranks] == [1] * 5
    dropping = SelectionSampler(Full(2), key=pysel.key(0), rank=0, num_replicas=5, drop_last=True)
    assert list(dropping) == [] and len(dropping) == 0


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("taken", [0, 1, 7, None])
def test_resume_yields_exactly_the_rest(make: Any, world: int, taken: int | None) -> None:
    reference = make(rank=world - 1, num_replicas=world)
    interrupted = make(rank=world - 1, num_replicas=world)
    for epoch in range(3):
        for sampler in (reference, interrupted):
            sampler.set_epoch(epoch)
        whole = list(reference)
        if epoch < 2:
            assert list(interrupted) == whole
    begun = list(islice(iter(interrupted), taken))
    state = through_a_file(interrupted.state_dict())

    resumed = make(rank=world - 1, num_replicas=world)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)  # as a training loop would: naming the current epoch keeps the position
    assert begun + list(resumed) == whole
    assert list(resumed) == whole, "the pass after the rest is a full one"
    for sampler in (reference, resumed):
        sampler.set_epoch(3)
    assert list(resumed) == list(reference)


@pytest.mark.parametrize("make", SAMPLERS)
def test_resume_at_another_world_size(make: Any) -> None:
    alone = make()
    alone.set_epoch(2)
    whole = list(alone)
    two = [make(rank=r, num_replicas=2) for r in range(2)]
    begun = []
    for sampler in two:
        sampler.set_epoch(2)
        begun.append(list(islice(iter(sampler), 5)))
    states = [sampler.state_dict() for sampler in two]
    assert states[0]["position"] == states[1]["position"] == 10

    rest = []
    for rank in range(3):
        sampler = make(rank=rank, num_replicas=3, drop_last=True)
        sampler.load_state_dict(states[0])
        rest.append(list(sampler))
    together = [index for row in zip(*rest, strict=True) for index in row]
    assert together == whole[10 : 10 + len(together)]
    assert len(whole) - 10 - len(together) < 3


@pytest.mark.parametrize("make", SAMPLERS)
def test_state_is_a_snapshot(make: Any) -> None:
    sampler = make()
    next(iter(sampler))
    state = sampler.state_dict()
    kept = copy.deepcopy(state)
    sampler.set_epoch(1)
    list(sampler)
    assert str(state) == str(kept)


def test_received_samples_can_be_named_when_workers_run_ahead() -> None:
    sampler = selection()
    whole = list(sampler)
    loader = DataLoader(Rows(), batch_size=4, sampler=sampler, num_workers=1, prefetch_factor=4)
    batches = iter(loader)
    received = [int(i) for _ in range(2) for i in next(batches)]
    assert received == whole[:8]
    ahead = sampler.state_dict()["position"]
    assert ahead > 8, "the worker has fetched further than the loop has come"
    state = sampler.state_dict(yielded=8)
    with pytest.raises(ValueError, match=f"yielded must be between 0 and {ahead}, got {ahead + 1}"):
        sampler.state_dict(yielded=ahead + 1)
    del batches
    resumed = selection()
    resumed.load_state_dict(state)
    assert received + list(resumed) == whole


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes(context: str) -> None:
    sampler = selection()
    loader = DataLoader(Rows(), batch_size=8, sampler=sampler, num_workers=1, multiprocessing_context=context)
    expected = selection()
    for epoch in range(2 if context == "fork" else 1):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        expected.set_epoch(epoch)
        assert [int(i) for batch in loader for i in batch] == list(expected)
        assert len(loader) == -(-len(expected) // 8)


def test_bad_selector_epoch_and_state() -> None:
    with pytest.raises(TypeError, match="selector must have select, __len__"):
        SelectionSampler([1, 2, 3])  # type: ignore[arg-type]
    sampler = SelectionSampler(FixedSelector(torch.arange(3)), key=pysel.key(0))
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        sampler.set_epoch(-1)
    with pytest.raises(TypeError, match="epoch must be an int, got float"):
        sampler.set_epoch(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state_dict must have key, position, length, selector"):
        sampler.load_state_dict({"epoch": 3})


def test_an_int_is_a_key() -> None:
    weights = torch.rand(50)
    for make in (
        lambda key: WeightedSampler(weights, 20, key=key),
        lambda key: SelectionSampler(Full(50), key=key),
        lambda key: SelectionSampler(pysel.selection.StaticRandom(50, 0.3, key=key), key=key),
    ):
        assert list(make(7)) == list(make(pysel.key(7)))
        with pytest.raises(TypeError, match="key must be a Tensor or an int, got str"):
            make("7")


# --- what users pass ---


def test_numbers_of_any_kind() -> None:
    """numpy's scalars and 0-d tensors are ints, and a checkpoint holds Python's."""
    for kind in (np.int64, np.int32, torch.tensor):
        given: dict[str, Any] = {"rank": kind(1), "num_replicas": kind(2)}
        sampler = weighted(num_samples=kind(50), **given)
        expected = weighted(num_samples=50, rank=1, num_replicas=2)
        for one in (sampler, expected):
            one.set_epoch(kind(3))
        begun = list(islice(iter(sampler), 6))
        state = sampler.state_dict(yielded=kind(4))
        assert through_a_file(state)["position"] == 8
        assert {type(value) for value in state.values()} == {int, Tensor}
        resumed = weighted(num_samples=kind(50), **given)
        resumed.load_state_dict(state)
        whole = list(expected)
        assert begun == whole[:6] and list(resumed) == whole[4:]


@pytest.mark.parametrize("make", SAMPLERS)
def test_torchs_defaults_change_nothing(make: Any) -> None:
    def all_of() -> list[Any]:
        sampler = make()
        sampler.set_epoch(1)
        begun = list(islice(iter(sampler), 9))
        resumed = make()
        resumed.load_state_dict(sampler.state_dict())
        return [begun, list(resumed), list(weighted_without_key())]

    def weighted_without_key() -> WeightedSampler:
        return WeightedSampler([1.0] * 40, 20, generator=torch.Generator("cpu").manual_seed(3))

    expected = all_of()
    try:
        torch.set_default_dtype(torch.float64)
        assert all_of() == expected
        torch.set_default_device("meta")
        assert all_of() == expected
        sampler = WeightedSampler([1.0] * 40, 20)  # its key from the CPU's generator
        assert len(list(sampler)) == 20 and sampler.state_dict()["key"].device.type == "cpu"
    finally:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make", SAMPLERS)
def test_keys_are_copied(make: Any) -> None:
    key = pysel.key(3)
    for sampler in (WeightedSampler(torch.ones(50), 20, key=key), SelectionSampler(Full(20), key=key)):
        before = list(sampler)
        with pytest.raises(ValueError, match="key must hold numbers, got a meta tensor"):
            WeightedSampler(torch.ones(50), 20, key=key.to("meta"))
        key.add_(1)
        sampler.state_dict()["key"].add_(1)
        assert list(sampler) == before


# --- what is refused changes nothing ---


def forged(make: Any) -> list[tuple[dict[str, Any] | Any, str]]:
    """Impossible states, and the entry that is wrong in each."""
    sampler = make()
    sampler.set_epoch(2)
    list(islice(iter(sampler), 7))
    state = sampler.state_dict()
    wrong: dict[str, list[Any]] = {
        "epoch": [-1, 1.5, "1", None, True, 2**70],
        "position": [-1, 10**6, 1.0, torch.tensor([3]), None, np.float64(3)],
        "length": [-1, "50", None, 6],
        "key": [None, 3, torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(1, 2, dtype=torch.int64)],
    }
    if "weights" in state:
        wrong["weights"] = [None, torch.ones(N + 1), torch.full((N,), -1.0), torch.ones(1, N), torch.zeros(N)]
        wrong["version"] = [-1, None, 0.5]
        wrong["since"] = [-1, 8, None]
        wrong["drawn"] = [None, torch.zeros(99, dtype=torch.uint8), torch.zeros_like(state["drawn"], dtype=torch.int64)]
    else:
        wrong["selector"] = [None, 3, {}, {**state["selector"], "fingerprint": 1}]
    cases: list[Any] = [({**state, entry: value}, entry) for entry, values in wrong.items() for value in values]
    cases += [
        ({}, "state_dict must have epoch"),
        (None, "state_dict must be a dict"),
        ([1], "state_dict must be a dict"),
    ]
    return cases + [({e: v for e, v in state.items() if e != entry}, entry) for entry in state]


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_refused_state_changes_nothing(make: Any) -> None:
    for state, entry in forged(make):
        sampler, untouched = make(), make()
        for one in (sampler, untouched):
            one.set_epoch(1)
            list(islice(iter(one), 5))
        before = str(sampler.state_dict())
        entry = "position" if entry == "length" and isinstance(state, dict) and state.get("length") == 6 else entry
        with pytest.raises(ValueError, match={"since": "since|position", "selector": "[sS]elector"}.get(entry, entry)):
            sampler.load_state_dict(state)
        assert str(sampler.state_dict()) == before
        assert list(sampler) == list(untouched)


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_refused_epoch_changes_nothing(make: Any) -> None:
    sampler = make()
    sampler.set_epoch(2)
    running = iter(sampler)
    first = list(islice(running, 5))
    for epoch in (-1, 0.5, "1", None, True, 2**64, torch.tensor([1, 2])):
        with pytest.raises((TypeError, ValueError), match="epoch must"):
            sampler.set_epoch(epoch)
    assert sampler.epoch == 2
    assert first + list(running) == list(sampler)
