"""pysel/samplers.py: which samples, on which rank, in which order, and after a restart."""

from __future__ import annotations

import copy
import io
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import pysel
from pysel import SelectionSampler, WeightedSampler, samplers
from pysel.selection import DynamicRandom, DynamicSelector, FixedSelector, Full

N = 103  # prime: never divides over ranks


def weighted(**options: Any) -> WeightedSampler:
    weights = torch.arange(1, N + 1, dtype=torch.float64)
    return WeightedSampler(weights, options.pop("num_samples", 50), key=pysel.key(3), **options)


def selection(**options: Any) -> SelectionSampler:
    tables = torch.Generator().manual_seed(0)
    selector = DynamicSelector.from_scores(
        torch.rand(N, generator=tables), torch.rand(N, generator=tables), keep_ratio=0.5, epochs=6, key=5
    )
    return SelectionSampler(selector, key=pysel.key(4), **options)


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
    monkeypatch.setattr(samplers, "_PIECE", piece)
    for rank in range(world):
        sampler = make(rank=rank, num_replicas=world)
        assert list(sampler) == wanted[rank]
        begun = list(islice(iter(sampler), 5))
        resumed = make(rank=rank, num_replicas=world)
        resumed.load_state_dict(sampler.state_dict())
        assert begun + list(resumed) == wanted[rank]


def test_order_is_a_permutation_of_the_subset() -> None:
    sampler = selection()
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        subset = sampler.selector.select(epoch)
        order = pysel.permutation(len(subset), key=pysel.fold_in(pysel.key(4), epoch))
        assert list(sampler) == subset[order].tolist()


@pytest.mark.parametrize("world", [1, 4, 10**6])
def test_the_first_sample_takes_a_piece_of_the_order(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more, however long the epoch: 1e12 samples would fit into no memory."""
    n, asked = 10**12, []

    class Sizes:
        """Stands in for a subset: which of its elements are wanted."""

        def numel(self) -> int:
            return n

        def __getitem__(self, order: Tensor) -> Tensor:
            asked.append(order.numel())
            return order

    sampler = SelectionSampler(Full(3), key=pysel.key(0), rank=world - 1, num_replicas=world)
    monkeypatch.setattr(sampler, "_subset", Sizes())
    first = list(islice(iter(sampler), 2))
    key = pysel.fold_in(pysel.key(0), 0)
    places = [world - 1, 2 * world - 1]
    assert first == [int(pysel.permutation(n, key=key, start=p, stop=p + 1)) for p in places]
    assert sum(asked) <= max(2 * samplers._PIECE, 2 * world)


def test_more_ranks_than_samples() -> None:
    ranks = [SelectionSampler(Full(2), key=pysel.key(0), rank=r, num_replicas=5) for r in range(5)]
    assert [len(list(sampler)) for sampler in ranks] == [1] * 5
    dropping = SelectionSampler(Full(2), key=pysel.key(0), rank=0, num_replicas=5, drop_last=True)
    assert list(dropping) == [] and len(dropping) == 0


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


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


def test_set_epoch_is_idempotent() -> None:
    sampler = selection()
    sampler.set_epoch(0)
    counts = sampler.selector.uses.clone()  # type: ignore[attr-defined]
    for _ in range(3):
        sampler.set_epoch(0)
        list(sampler)
    assert torch.equal(sampler.selector.uses, counts)  # type: ignore[attr-defined]


def test_selection_yields_the_selectors_subset() -> None:
    sampler = selection()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == sampler.selector.select(epoch).tolist()
        assert list(sampler) != sorted(sampler)
    straight = selection(shuffle=False)
    straight.set_epoch(0)
    assert list(straight) == sorted(straight)


def test_iteration_alone_is_epoch_zero() -> None:
    selector = DynamicRandom(N, 0.25, key=pysel.key(0))
    sampler = SelectionSampler(selector, key=pysel.key(0))
    assert len(sampler) == 26 and sorted(sampler) == selector.select(0).tolist()


def test_the_three_line_loop() -> None:
    features = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    selector = DynamicSelector.from_features(
        features, keep_ratio=0.5, epochs=3, num_factors=24, k=3, sae_options={"epochs": 1}, key=0
    )
    loader = DataLoader(Rows(), batch_size=8, sampler=SelectionSampler(selector))
    for epoch, size in enumerate((32, 32, 64)):  # the last one takes all samples
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert len(loader) == size // 8 and sum(len(batch) for batch in loader) == size


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
        (([1.0, -1.0], 2), {}, ValueError, "weights must be finite and not negative"),
        (([1.0, float("nan")], 2), {}, ValueError, "weights must be finite and not negative"),
        (([1.0, float("inf")], 2), {}, ValueError, "weights must be finite and not negative"),
        (([0.0, 0.0], 2), {}, ValueError, "weights must not all be zero"),
        (([[1.0]], 1), {}, ValueError, r"weights must be a vector \[N\], got shape \[1, 1\]"),
        (([], 1), {}, ValueError, r"weights must be a vector \[N\], got shape \[0\]"),
        (([1.0, 0.0], 2, False), {}, ValueError, "num_samples must be at most 1 .*got 2"),
        (([1.0], 0), {}, ValueError, "num_samples must be at least 1, got 0"),
        (([1.0], 1.0), {}, TypeError, "num_samples must be an int, got float"),
        (([1.0], 1, 1), {}, TypeError, "replacement must be a bool, got int"),
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


def test_bad_selector_epoch_and_state() -> None:
    with pytest.raises(TypeError, match="selector must have select, __len__"):
        SelectionSampler([1, 2, 3])  # type: ignore[arg-type]
    sampler = SelectionSampler(FixedSelector(torch.arange(3)), key=pysel.key(0))
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        sampler.set_epoch(-1)
    with pytest.raises(TypeError, match="epoch must be an int, got float"):
        sampler.set_epoch(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state_dict must have position, key, selector"):
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
