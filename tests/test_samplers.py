"""pysel/samplers: which samples, on which rank, in which order, and after a restart."""

from __future__ import annotations

import copy
import io
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import pysel
from pysel import SelectionSampler, WeightedSampler
from pysel.samplers import passes
from pysel.selection import DynamicRandom, DynamicSelector, FixedSelector, Full

pytestmark = pytest.mark.filterwarnings("ignore:.*is yielded again")

N = 103  # prime: never divides over ranks


def weighted(**options: Any) -> WeightedSampler:
    weights = torch.arange(1, N + 1, dtype=torch.float64, device="cpu")
    return WeightedSampler(weights, options.pop("num_samples", 50), key=3, **options)


def selection(**options: Any) -> SelectionSampler:
    scores = torch.rand(2, N, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    selector = DynamicSelector.from_scores(scores[0], scores[1], keep_ratio=0.5, epochs=6, key=5)
    return SelectionSampler(selector, key=4, **options)


def order_key(seed: int, epoch: int) -> Tensor:
    """The key of SelectionSampler's order: apart from those that a selector derives from the same key."""
    return pysel.fold_in(pysel.fold_in(pysel.key(seed), 0x6F72646572), epoch)


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


def test_order_is_a_permutation_of_the_subset() -> None:
    sampler = selection()
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        subset = sampler.selector.select(epoch)
        order = pysel.permutation(len(subset), key=order_key(4, epoch))
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
    monkeypatch.setattr(sampler, "_picked", (0, Sizes()))
    first = list(islice(iter(sampler), 2))
    key = order_key(0, 0)
    places = [world - 1, 2 * world - 1]
    assert first == [int(pysel.permutation(n, key=key, start=p, stop=p + 1)) for p in places]
    assert sum(asked) <= max(2 * passes._PIECE, 2 * world)


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
    list(sampler)
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


class Own:
    """A user's selector: gives what it was made with."""

    def __init__(self, subset: Any, num_samples: int | None = None) -> None:
        self.subset = subset
        self.state: dict[str, Any] = {"loaded": 0}
        if num_samples is not None:
            self.num_samples = num_samples

    def __len__(self) -> int:
        return len(self.subset)

    def select(self, epoch: int) -> Any:
        return self.subset(epoch) if callable(self.subset) else self.subset

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("refuse"):
            raise ValueError("Own: no")
        self.state = {"loaded": self.state["loaded"] + 1}


@pytest.mark.parametrize(
    ("subset", "error", "message"),
    [
        (torch.tensor([True, False, True]), TypeError, "must be indices, got a boolean mask"),
        (torch.tensor([0.0, 2.0]), TypeError, "must be integers, got torch.float32"),
        (torch.tensor([[0], [2]]), ValueError, r"must have shape \[N\], got \[2, 1\]"),
        (torch.tensor([-1, 2]), ValueError, "must be between 0 and 9, got -1"),
        (torch.tensor([2, 10]), ValueError, "must be between 0 and 9, got 10"),
        (torch.tensor([2, 1, 2]), ValueError, "must be distinct, got 2 more than once"),
        (torch.empty(3, dtype=torch.int64, device="meta"), TypeError, "must hold numbers, got a tensor on the meta"),
        ("012", TypeError, "must be a tensor, an array or a list"),
        (None, TypeError, "must be a tensor, an array or a list"),
    ],
)
def test_what_a_selector_gives_is_checked(subset: Any, error: type[Exception], message: str) -> None:
    for use in (list, len):
        with pytest.raises(error, match=f"SelectionSampler: what Own.select returns {message}"):
            use(SelectionSampler(Own(subset, 10), key=0))


def test_a_selector_may_give_any_integers_and_is_asked_once_an_epoch() -> None:
    expected = list(SelectionSampler(Own(torch.tensor([3, 5, 8])), key=0))
    for subset in ([3, 5, 8], np.array([3, 5, 8], dtype=np.uint8), torch.tensor([3, 5, 8], dtype=torch.int16)):
        assert list(SelectionSampler(Own(subset), key=0)) == expected
    with pytest.raises(ValueError, match="got -1"):  # N is not known
        list(SelectionSampler(Own(torch.tensor([-1, 2])), key=0))
    assert list(SelectionSampler(Own(torch.tensor([2, 10])), shuffle=False, key=0)) == [2, 10]

    asked, kept = [], torch.tensor([3, 5, 8])

    def select(epoch: int) -> Tensor:
        asked.append(epoch)
        return kept

    sampler = SelectionSampler(Own(select), key=0)
    before = list(sampler)
    kept.zero_()
    assert len(sampler) == 3 and list(sampler) == before and asked == [0]
    sampler.set_epoch(1)
    assert asked == [0], "the losses of the running epoch may still come in"
    with pytest.raises(ValueError, match="distinct"):
        len(sampler)
    assert asked == [0, 1]


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


def test_one_key_for_selector_and_sampler() -> None:
    """The selector takes of each pair {2j, 2j + 1} the odd one if j is in the first half of a permutation.

    Were that the sampler's own permutation, odd samples would lie at the mean place 124.5 of 500. In a fair order they
    lie at 249.5, with deviation 6.5 for one key, and 0.46 over 200.
    """
    n, places = 500, {True: [], False: []}  # type: ignore[var-annotated]
    for seed in range(200):

        def select(epoch: int, seed: int = seed) -> Tensor:
            order = pysel.permutation(n, key=pysel.fold_in(pysel.key(seed), epoch))
            odd = torch.zeros(n, dtype=torch.int64)
            odd[order[: n // 2]] = 1
            return torch.arange(0, 2 * n, 2) + odd

        sampler = SelectionSampler(Own(select), key=seed)
        subset = select(0)
        naive = subset[pysel.permutation(n, key=pysel.fold_in(pysel.key(seed), 0))]
        for ours, order in ((True, torch.tensor(list(sampler))), (False, naive)):
            places[ours].append(torch.nonzero(order % 2).double().mean())
    assert abs(float(torch.stack(places[True]).mean()) - 249.5) < 2.5
    assert float(torch.stack(places[False]).mean()) == 124.5


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


def test_a_refused_state_changes_neither_sampler_nor_selector() -> None:
    selector = Own([3, 5, 8])
    sampler = SelectionSampler(selector, key=0)
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="position"):
        sampler.load_state_dict({**state, "position": 9})
    assert selector.state == {"loaded": 0}
    with pytest.raises(ValueError, match="Own: no"):
        sampler.load_state_dict({**state, "epoch": 3, "selector": {"refuse": True}})
    assert sampler.epoch == 0 and selector.state == {"loaded": 0}


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
