"""pysel/samplers/passes.py and ranked.py: who owns the position, and what a state brings back."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.utils.data import DataLoader

import pysel
from pysel import BatchSampler, SelectionSampler, WeightedSampler
from pysel.selection import DynamicSelector, InfoBatch, Selector
from tests.epochs import epochs_of, through_a_file

pytestmark = pytest.mark.filterwarnings("ignore:.*is yielded again", "ignore:torch.distributed is disabled")

N = 103


def weighted(**options: Any) -> WeightedSampler:
    return WeightedSampler(torch.arange(1.0, N + 1), 50, **{"key": 3, **options})


def without_replacement(**options: Any) -> WeightedSampler:
    return weighted(replacement=False, **options)


def selection(**options: Any) -> SelectionSampler:
    scores = torch.rand(2, N, generator=torch.Generator().manual_seed(0))
    selector = DynamicSelector.from_scores(scores[0], scores[1], keep_ratio=0.5, epochs=9, key=5)
    return SelectionSampler(selector, **{"key": 4, **options})


def keyless(**options: Any) -> WeightedSampler:
    return weighted(key=None, **options)


MAKERS = [pytest.param(make, id=make.__name__) for make in (weighted, without_replacement, selection)]


# --- the position belongs to the pass ---


@pytest.mark.parametrize("make", MAKERS)
def test_set_epoch_is_for_the_next_pass(make: Any) -> None:
    whole = epochs_of(make)
    sampler = make()
    running = iter(sampler)
    begun = list(islice(running, 14))
    sampler.set_epoch(1)  # as timm does while the last batches are still on their way
    state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (0, 14) and sampler.epoch == 1
    assert begun + list(running) == whole[0]
    state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert list(sampler) == whole[1]


@pytest.mark.parametrize("make", MAKERS)
def test_a_pass_begins_with_its_first_sample(make: Any) -> None:
    """Lightning makes the iterator, then names the epoch."""
    sampler = make()
    made = iter(sampler)
    sampler.set_epoch(2)
    assert list(made) == epochs_of(make)[2]


@pytest.mark.parametrize("make", MAKERS)
def test_passes_do_not_disturb_each_other(make: Any) -> None:
    whole = epochs_of(make)
    sampler = make()
    first, second = iter(sampler), iter(sampler)
    a = list(islice(first, 7))
    b = list(islice(second, 3))
    sampler.set_epoch(1)
    third = iter(sampler)
    c = list(islice(third, 5))
    assert [a + list(first), b + list(second), c + list(third)] == [whole[0], whole[0], whole[1]]
    assert [next(one, None) for one in (first, second, third)] == [None] * 3


@pytest.mark.parametrize("make", MAKERS)
def test_a_peek_leaves_the_loaded_position(make: Any) -> None:
    whole = epochs_of(make)
    donor, sampler = make(), make()
    donor.set_epoch(2)
    list(islice(iter(donor), 8))
    sampler.load_state_dict(donor.state_dict())
    assert next(iter(sampler)) == whole[2][8]
    assert list(islice(iter(sampler), 4)) == whole[2][8:12]
    assert list(sampler) == whole[2][8:]
    for epoch in (3, 4):  # and the offset holds once
        sampler.set_epoch(epoch)
        assert list(sampler) == whole[epoch]


@pytest.mark.parametrize("make", MAKERS)
def test_a_pass_that_was_left_is_begun_anew(make: Any) -> None:
    sampler = make()
    list(islice(iter(sampler), 9))
    assert list(sampler) == epochs_of(make)[0]


@pytest.mark.parametrize("make", MAKERS)
def test_a_loader_that_repeats_its_sampler_for_ever(make: Any) -> None:
    """timm's: the next pass begins while the last batches of the one before are on their way."""

    class Repeat:
        def __init__(self, sampler: Any) -> None:
            self.sampler = sampler

        def __iter__(self) -> Iterator[int]:
            while True:
                yield from iter(self.sampler)
                self.sampler.set_epoch(self.sampler.epoch + 1)

    whole = epochs_of(make, 3)
    stream = iter(Repeat(make()))
    assert list(islice(stream, sum(map(len, whole)))) == [i for epoch in whole for i in epoch]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_iterators_have_a_state(make: Any, world: int, drop_last: bool) -> None:
    for rank in range(world):
        sampler = make(rank=rank, num_replicas=world, drop_last=drop_last)
        sampler.set_epoch(1)
        whole = list(sampler)
        for taken in (0, 1, 9, len(whole)):
            one = iter(sampler)
            begun = list(islice(one, taken))
            state = through_a_file(one.state_dict())  # type: ignore[attr-defined]
            other = iter(make(rank=rank, num_replicas=world, drop_last=drop_last))
            next(other)
            other.load_state_dict(state)  # type: ignore[attr-defined]
            assert begun + list(other) == whole
            with pytest.raises(ValueError, match="position"):
                other.load_state_dict({**state, "position": -1})  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_where_they_were(make: Any, copied: Any) -> None:
    sampler = make()
    sampler.set_epoch(1)
    running = iter(sampler)
    list(islice(running, 8))
    twin = copied(running)
    state = copied(sampler).state_dict()
    assert (state["epoch"], state["position"]) == (1, 8)
    assert list(twin) == list(running) and list(copied(sampler)) == list(sampler)


# --- finished epochs ---


@pytest.mark.parametrize("make", MAKERS)
def test_a_pass_that_was_given_a_finished_state_goes_on_to_the_epoch_that_is_named(make: Any) -> None:
    """torchdata loads a state into the iterator, before the loop names the epoch."""
    whole = epochs_of(make)
    donor = make()
    running = iter(donor)
    list(running)
    for named, wanted in ((0, []), (1, whole[1]), (3, whole[3])):
        sampler = make()
        coming = iter(sampler)
        coming.load_state_dict(running.state_dict())  # type: ignore[attr-defined]
        sampler.set_epoch(named)
        assert list(coming) == wanted


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_finished_epoch_is_followed_by_the_next(make: Any, world: int, drop_last: bool) -> None:
    options = {"rank": world - 1, "num_replicas": world, "drop_last": drop_last}
    whole = epochs_of(make, **options)

    def finished() -> dict[str, Any]:
        donor = make(**options)
        donor.set_epoch(1)
        list(donor)
        return through_a_file(donor.state_dict())

    def sampler() -> Any:
        return make(**options)

    one = sampler()
    one.load_state_dict(finished())
    assert one.epoch == 2 and list(one) == whole[2], "without a word"

    one = sampler()
    one.load_state_dict(finished())
    for epoch in (2, 3):
        one.set_epoch(epoch)
        assert list(one) == whole[epoch], "named afterwards"

    for epoch in (2, 3):
        one = sampler()
        one.set_epoch(epoch)
        one.load_state_dict(finished())  # loaders do so late
        assert list(one) == whole[epoch], "named before"

    one = sampler()
    one.load_state_dict(finished())
    one.set_epoch(1)
    assert list(one) == [], "nothing is left of the epoch itself"
    one.set_epoch(2)
    assert list(one) == whole[2]

    other = make(drop_last=drop_last)  # with another number of ranks, too
    other.load_state_dict(finished())
    assert list(other) == epochs_of(make, drop_last=drop_last)[2]


@pytest.mark.parametrize("make", MAKERS)
def test_a_named_epoch_waits_for_the_rest_of_a_state_that_comes_late(make: Any) -> None:
    whole = epochs_of(make)
    donor = make()
    donor.set_epoch(1)
    list(islice(iter(donor), 20))
    sampler = make()
    sampler.set_epoch(3)
    sampler.load_state_dict(donor.state_dict())
    assert sampler.epoch == 1 and list(sampler) == whole[1][20:]
    assert sampler.epoch == 3 and list(sampler) == whole[3]

    sampler = make()
    sampler.set_epoch(0)  # by a loop that counts from nought
    sampler.load_state_dict(donor.state_dict())
    assert list(sampler) == whole[1][20:] and list(sampler) == whole[2]


@pytest.mark.parametrize("make", MAKERS)
def test_states_within_states(make: Any) -> None:
    """Saved at 10, resumed, saved at 20, resumed: 20 samples are left out, once."""
    whole = epochs_of(make)
    sampler = make()
    sampler.set_epoch(1)
    for _ in range(2):
        list(islice(iter(sampler), 10))
        state = sampler.state_dict()
        sampler = make()
        sampler.load_state_dict(state)
        assert len(sampler) == len(whole[1]), "a progress bar's total is that of the epoch"
    assert list(sampler) == whole[1][20:]
    sampler.set_epoch(2)
    assert list(sampler) == whole[2]


def test_without_a_key() -> None:
    """The state has the key of what comes next, also before the first sample and after the last."""
    sampler = keyless()
    state = through_a_file(sampler.state_dict())
    first = list(sampler)
    done = through_a_file(sampler.state_dict())
    second = iter(sampler)
    begun = list(islice(second, 9))
    within = through_a_file(sampler.state_dict())
    rest = list(second)
    for saved, following in ((state, first), (done, begun + rest), (within, rest)):
        resumed = keyless()
        resumed.load_state_dict(saved)
        assert list(resumed) == following
        assert list(resumed) not in (first, begun + rest)
    peeked = keyless()
    peeked.load_state_dict(within)
    next(iter(peeked))
    assert list(peeked) == rest


# --- states ---


@pytest.mark.parametrize("make", [*MAKERS, pytest.param(keyless, id="keyless")])
def test_states_have_fixed_shapes_and_load_through_distributed_checkpoint(make: Any, tmp_path: Any) -> None:
    def shapes(state: dict[str, Any]) -> Any:
        return {
            name: shapes(value) if isinstance(value, dict) else getattr(value, "shape", type(value))
            for name, value in state.items()
        }

    sampler = make()
    fresh = shapes(sampler.state_dict())
    seen: dict[str, list[int]] = {}
    for name in ("fresh", "within", "finished"):
        running = iter(sampler)
        if name != "fresh":
            list(islice(running, 10 if name == "within" else None))
        assert shapes(sampler.state_dict()) == fresh
        dcp.save({"sampler": sampler}, checkpoint_id=tmp_path / name, no_dist=True)
        seen[name] = list(running)
    for name, rest in seen.items():
        resumed = {"sampler": make()}
        dcp.load(resumed, checkpoint_id=tmp_path / name, no_dist=True)
        assert name == "finished" or list(resumed["sampler"]) == rest
        if name == "finished":
            assert resumed["sampler"].epoch == (0 if make is keyless else 1) and len(list(resumed["sampler"])) == len(
                seen["fresh"]
            )


def test_a_states_large_parts_are_shared() -> None:
    """Loaders take one a batch, and keep some."""
    sampler = without_replacement()
    running = iter(sampler)
    states = []
    for _ in range(3):
        next(running)
        states.append(sampler.state_dict())
    for name in ("weights", "drawn"):
        assert len({state[name].data_ptr() for state in states}) == 1
    assert states[0]["weights"].data_ptr() == sampler.weights.data_ptr()

    class Large:
        def __init__(self) -> None:
            self.counts = torch.zeros(10)

        def __len__(self) -> int:
            return 10

        def select(self, epoch: int) -> Tensor:
            return torch.arange(10)

        def state_dict(self) -> dict[str, Any]:
            return {"counts": self.counts}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.counts = state_dict["counts"]

    chosen = SelectionSampler(Large(), key=0)
    assert chosen.state_dict()["selector"]["counts"] is chosen.selector.counts  # type: ignore[attr-defined]


def test_a_state_of_other_tables_is_refused_when_its_epoch_begins() -> None:
    class Sized(Selector):
        def __init__(self, size: int) -> None:
            super().__init__(N, {})
            self.size = size

        def __len__(self) -> int:
            return self.size

        def select(self, epoch: int = 0) -> Tensor:
            return torch.arange(self.size)

    donor, other = SelectionSampler(Sized(20), key=0), SelectionSampler(Sized(30), key=0)
    list(islice(iter(donor), 5))
    other.load_state_dict(donor.state_dict())
    with pytest.raises(ValueError, match="SelectionSampler: epoch 0 has 30 samples, the loaded state's had 20"):
        list(other)
    with pytest.raises(ValueError, match="num_samples=40, got one with 50"):
        WeightedSampler(torch.arange(1.0, N + 1), 40, key=3).load_state_dict(weighted().state_dict())


def test_the_end_of_an_epoch_needs_no_selector() -> None:
    """One that cannot go back is not asked to."""
    sampler = SelectionSampler(InfoBatch(N, epochs=5, key=0), key=0)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        list(sampler)
    state = through_a_file(sampler.state_dict())
    resumed = SelectionSampler(InfoBatch(N, epochs=5, key=0), key=0)
    resumed.load_state_dict(state)
    resumed.selector.select(2)
    resumed.set_epoch(1)
    assert list(iter(resumed)) == []


# --- loaders ---


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("persistent", [False, True])
def test_workers(make: Any, persistent: bool) -> None:
    """Full epochs, a break in one, and a resume by the samples received."""
    whole = epochs_of(make)
    sampler = make()
    loader = DataLoader(range(N), 4, sampler=sampler, num_workers=2, prefetch_factor=2, persistent_workers=persistent)  # type: ignore[arg-type]
    received: list[int] = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        received = []
        for step, batch in enumerate(loader):
            received += batch.tolist()
            if epoch == 1 and step == 2:
                break
        assert received == whole[epoch][: 12 if epoch == 1 else None]
    sampler.set_epoch(3)
    running = iter(loader)
    received = [i for _ in range(3) for i in next(running).tolist()]
    resumed = make()
    resumed.load_state_dict(sampler.state_dict(yielded=len(received)))
    assert received + list(resumed) == whole[3]
    del running


# --- what loops get wrong ---


@pytest.mark.parametrize("make", MAKERS)
def test_a_second_pass_warns_once(make: Any) -> None:
    sampler = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(2):
            sampler.set_epoch(epoch)
            next(iter(sampler))
            list(sampler)
        sampler.set_epoch(1)  # on purpose
        list(sampler)
        for quiet in (keyless(), selection(shuffle=False)):
            list(quiet)
            list(quiet)
    with pytest.warns(UserWarning, match="Sampler: epoch 1 is yielded again: call set_epoch before each epoch"):
        list(sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(sampler)


class Growing(Selector):
    """20, 30, 40, ... samples."""

    def __init__(self) -> None:
        super().__init__(N, {})

    def __len__(self) -> int:
        return 20

    def select(self, epoch: int = 0) -> Tensor:
        return torch.arange(20 + 10 * epoch)


def test_epochs_of_other_lengths() -> None:
    """Right where the loop lets them, and one line where it does not."""
    whole = [sorted(epoch) for epoch in epochs_of(lambda: SelectionSampler(Growing(), key=0), 3)]
    assert whole == [list(range(20 + 10 * epoch)) for epoch in range(3)]
    ranks = [SelectionSampler(Growing(), key=0, rank=r, num_replicas=3) for r in range(3)]
    for epoch, share in enumerate((7, 10, 14)):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        assert [len(sampler) for sampler in ranks] == [len(list(sampler)) for sampler in ranks] == [share] * 3
    sampler = SelectionSampler(Growing(), key=0)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        list(islice(iter(sampler), 20))  # a loop that has counted once
    sampler.set_epoch(2)
    with pytest.warns(UserWarning, match="epoch 1 ended after 20 of its 30 samples.*here for 20 samples"):
        next(iter(sampler))


def test_going_back_before_a_loaded_position_warns() -> None:
    donor, sampler = weighted(), weighted()
    donor.set_epoch(3)
    list(islice(iter(donor), 16))
    sampler.load_state_dict(donor.state_dict())
    sampler.set_epoch(0)  # as Accelerate does
    with pytest.warns(UserWarning, match=r"set_epoch\(0\) has dropped the loaded position 16 of epoch 3"):
        list(sampler)


# --- batches ---


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_batch_sampler(make: Any, drop_last: bool) -> None:
    whole = epochs_of(make)
    batches = BatchSampler(make(), 8, drop_last)
    for epoch in range(2):
        batches.set_epoch(epoch)
        got = list(batches)
        assert len(got) == len(batches) == len(list(torch.utils.data.BatchSampler(whole[epoch], 8, drop_last)))
        assert [i for batch in got for i in batch] == whole[epoch][: len(whole[epoch]) // 8 * 8 if drop_last else None]
    batches.set_epoch(2)
    running = iter(batches)
    begun = list(islice(running, 3))
    state, iterator_state = through_a_file(batches.state_dict()), through_a_file(running.state_dict())  # type: ignore[attr-defined]
    rest = list(running)
    for of_iterator in (False, True):
        resumed = BatchSampler(make(), 8, drop_last)
        other = iter(resumed)
        if of_iterator:
            other.load_state_dict(iterator_state)  # type: ignore[attr-defined]
        else:
            resumed.load_state_dict(state)
        assert list(other) == rest and len(begun) == 3
    loader = DataLoader(range(N), batch_sampler=BatchSampler(make(), 8), num_workers=1)  # type: ignore[arg-type]
    assert [i for batch in loader for i in batch.tolist()] == whole[0]


def test_bad_batches() -> None:
    for arguments, error, message in (
        ((torch.utils.data.SequentialSampler(range(3)), 2), TypeError, "sampler must be .*got SequentialSampler"),
        ((weighted(), 0), ValueError, "batch_size must be at least 1, got 0"),
        ((weighted(), 2.0), TypeError, "batch_size must be an int, got float"),
        ((weighted(), 2, None), TypeError, "drop_last must be a bool, got NoneType"),
    ):
        with pytest.raises(error, match=f"BatchSampler: {message}"):
            BatchSampler(*arguments)  # type: ignore[arg-type]
    assert pysel.BatchSampler is BatchSampler
