"""Every framework's loader over every sampler, stopped wherever a run can be: all ranks' samples in their global order.

The ranks of a loop run in one process, in step, each with a sampler and a loader of its own: hundreds of cases take
seconds. examples/ and tests/test_examples.py have real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pysel import BatchSampler, SelectionSampler, WeightedSampler
from pysel.selection import DynamicRandom
from tests.epochs import through_a_file
from tests.test_frameworks import BATCH, N, Rows, selection, varying, weighted

EPOCHS = 4
STOPS = 0, 2  # epochs within or after which a run stops

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")]


def distinct(**options: Any) -> WeightedSampler:
    return WeightedSampler(torch.arange(1.0, N + 1), 50, replacement=False, key=3, **options)


def by_generator(**options: Any) -> WeightedSampler:
    """Without a key, but with the same seed on every rank."""
    generator = torch.Generator("cpu").manual_seed(9)
    return WeightedSampler(torch.arange(1.0, N + 1), 50, replacement=False, generator=generator, **options)


def ascending(**options: Any) -> SelectionSampler:
    return SelectionSampler(DynamicRandom(N, 0.5, key=1), shuffle=False, key=2, **options)


class Plain:
    """Ranks with samplers of their own in torch's DataLoader; what the loop has received is told to the sampler."""

    whole_batches = False  # or elements in turn

    def __init__(self, make: Any, world: int) -> None:
        self.make, self.world = make, world
        self.samplers = [self.sampler(rank) for rank in range(world)]
        self.loaders = [self.loader(sampler, rank) for rank, sampler in enumerate(self.samplers)]

    def sampler(self, rank: int) -> Any:
        return self.make(rank=rank, num_replicas=self.world)

    def loader(self, sampler: Any, rank: int) -> Any:
        return DataLoader(Rows(), BATCH, sampler=sampler)

    def set_epoch(self, epoch: int) -> None:
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def begin(self) -> list[Iterator[Any]]:
        return [iter(loader) for loader in self.loaders]

    def states(self, received: list[int]) -> list[Any]:
        return [sampler.state_dict(yielded=n) for sampler, n in zip(self.samplers, received, strict=True)]

    def load(self, state: Any) -> None:
        for sampler in self.samplers:
            sampler.load_state_dict(state)


class Ahead(Plain):
    """Batches are fetched ahead of the loop, as workers do it."""

    def loader(self, sampler: Any, rank: int) -> Any:
        class Fetching:
            def __iter__(self) -> Iterator[torch.Tensor]:
                fetched: list[torch.Tensor] = []
                for batch in DataLoader(Rows(), BATCH, sampler=sampler):
                    fetched.append(batch)
                    if len(fetched) > 3:
                        yield fetched.pop(0)
                yield from fetched

        return Fetching()


class Stateful(Plain):
    """torchdata's loader, which has the state."""

    def loader(self, sampler: Any, rank: int) -> Any:
        torchdata = pytest.importorskip("torchdata.stateful_dataloader")
        return torchdata.StatefulDataLoader(Rows(), BATCH, sampler=sampler)

    def states(self, received: list[int]) -> list[Any]:
        return [loader.state_dict() for loader in self.loaders]

    def load(self, state: Any) -> None:
        for loader in self.loaders:
            loader.load_state_dict(state)


class StatefulBatches(Stateful):
    """The same with a sampler of batches."""

    def loader(self, sampler: Any, rank: int) -> Any:
        torchdata = pytest.importorskip("torchdata.stateful_dataloader")
        return torchdata.StatefulDataLoader(Rows(), batch_sampler=BatchSampler(sampler, BATCH))


class Accelerate(Plain):
    """Every sampler yields everything, of which Accelerate deals out batches; a prepared loader names the epochs."""

    whole_batches = True

    def sampler(self, rank: int) -> Any:
        return self.make(rank=0, num_replicas=1)

    def loader(self, sampler: Any, rank: int) -> Any:
        accelerate = pytest.importorskip("accelerate.data_loader")
        loader = DataLoader(Rows(), BATCH, sampler=sampler)
        return accelerate.prepare_data_loader(
            loader, num_processes=self.world, process_index=rank, put_on_device=False, rng_types=[]
        )

    def set_epoch(self, epoch: int) -> None:
        for loader in self.loaders:
            loader.set_epoch(epoch)

    def states(self, received: list[int]) -> list[Any]:
        latest = [sampler._latest for sampler in self.samplers]
        yielded = [min(sum(received), one._place.position - one.first) for one in latest]
        return [sampler.state_dict(yielded=n) for sampler, n in zip(self.samplers, yielded, strict=True)]


class Skipping(Accelerate):
    """The same with no state but the number of steps: Accelerate skips them, and the loop names the sampler's epoch."""

    skip = 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        for sampler in self.samplers:
            sampler.set_epoch(epoch)  # which Accelerate's set_epoch does not reach beneath the skipping

    def begin(self) -> list[Iterator[Any]]:
        accelerate = pytest.importorskip("accelerate.data_loader")
        loaders = [accelerate.skip_first_batches(loader, self.skip) for loader in self.loaders]
        self.before, self.skip = self.skip, 0
        return [iter(loader) for loader in loaders]

    def states(self, received: list[int]) -> list[Any]:
        return [self.before + n // BATCH for n in received]

    def load(self, state: Any) -> None:
        self.skip = state


class Wrapper(Plain):
    """Lightning's wrapper, for those who wrap samplers themselves: each rank lists the whole sequence."""

    def sampler(self, rank: int) -> Any:
        return self.make(rank=0, num_replicas=1)

    def loader(self, sampler: Any, rank: int) -> Any:
        lightning = pytest.importorskip("lightning.fabric.utilities.distributed")
        share = lightning.DistributedSamplerWrapper(sampler, num_replicas=self.world, rank=rank, shuffle=False)
        return DataLoader(Rows(), BATCH, sampler=share)

    def states(self, received: list[int]) -> list[Any]:
        return [sampler.state_dict() for sampler in self.samplers]


class Endless(Plain):
    """A loader that never ends a pass over its batches, and names the epochs, as timm's for many epochs does."""

    def loader(self, sampler: Any, rank: int) -> Any:
        def passes() -> Iterator[list[int]]:
            for epoch in count(sampler.epoch):
                sampler.set_epoch(epoch)
                yield from torch.utils.data.BatchSampler(sampler, BATCH, False)

        class Loader:
            running: Any = None

            def __iter__(self) -> Iterator[torch.Tensor]:
                if self.running is None:
                    self.running = iter(DataLoader(Rows(), batch_sampler=passes()))
                return islice(self.running, -(-len(sampler) // BATCH))

        return Loader()

    def set_epoch(self, epoch: int) -> None:
        if self.loaders[0].running is None:
            super().set_epoch(epoch)


class Fabric(Plain):
    """Fabric's wrapper, which names the epochs by the number of its passes."""

    def loader(self, sampler: Any, rank: int) -> Any:
        fabric = pytest.importorskip("lightning.fabric.wrappers")
        return fabric._FabricDataLoader(DataLoader(Rows(), BATCH, sampler=sampler))


LOOPS = [Plain, Ahead, Stateful, StatefulBatches, Accelerate]
SAMPLERS = [weighted, distinct, by_generator, selection, ascending, varying]


def over(*others: Any) -> Any:
    """All samplers in LOOPS; in others those of one length, and of a key that outlives a run."""
    grid = [(loop, make) for loop in LOOPS for make in SAMPLERS]
    grid += [(loop, make) for loop in others for make in (weighted, distinct, selection, ascending)]
    names = [f"{loop.__name__}-{make.__name__}" for loop, make in grid]
    return pytest.mark.parametrize(("loop", "make"), grid, ids=names)


def train(loop: Any, epoch: int | None, steps: int | None = None) -> tuple[list[int], list[int]]:
    """The global sequence of so many steps, and how many samples each rank received; all of the epoch without steps."""
    if epoch is not None:
        loop.set_epoch(epoch)
    running = loop.begin()
    sequence: list[int] = []
    received = [0] * loop.world
    done = 0
    while steps is None or done < steps:
        step = [next(one, None) for one in running]
        if step[0] is None:
            assert set(map(type, step)) == {type(None)}, "all ranks take as many steps"
            break
        batches = [batch.tolist() for batch in step]
        sequence += chain(*(batches if loop.whole_batches else zip(*batches, strict=True)))
        received = [n + len(batch) for n, batch in zip(received, batches, strict=True)]
        done += 1
    return sequence, received


def saved(loop: Any, received: list[int]) -> Any:
    """The state of the first rank, through a file; all have the same."""
    states = loop.states(received)
    assert all(str(state) == str(states[0]) for state in states)
    return through_a_file(states[0])


def whole(make: Any) -> list[list[int]]:
    sampler, sequences = make(), []
    for epoch in range(EPOCHS + 2):
        sampler.set_epoch(epoch)
        sequences.append(list(sampler))
    return sequences


def check(sequence: list[int], wanted: list[int], loop: Any) -> None:
    """All in order, and no more after it than fills a last round."""
    assert sequence[: len(wanted)] == wanted
    filled = len(sequence) - len(wanted)
    assert 0 <= filled < loop.world * (BATCH if loop.whole_batches else 1)
    assert set(sequence[len(wanted) :]) <= set(wanted)


@over(Fabric, Wrapper, Endless, Skipping)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_straight(loop: Any, make: Any, world: int) -> None:
    running, wanted = loop(make, world), whole(make)
    for epoch in range(EPOCHS):
        check(train(running, epoch)[0], wanted[epoch], running)


# worlds of the run that stops, and of that which goes on
WORLDS = [(1, 1), (2, 2), (1, 3), (2, 1), (3, 2)]


@over(Skipping)
@pytest.mark.parametrize(("before", "after"), WORLDS)
@pytest.mark.parametrize("stops", [[2], [1, 1]], ids=["once", "twice"])
def test_stop_within_an_epoch(loop: Any, make: Any, before: int, after: int, stops: list[int]) -> None:
    """Goes on with what is left, and with full epochs after it."""
    if loop is Skipping and before != after:
        pytest.skip("it counts the batches of one process")
    wanted = whole(make)
    for epoch in STOPS:
        if make is by_generator and epoch > 0:  # each run of it begins its own draws
            continue
        running, sequence = loop(make, before), []
        if epoch > 0:
            train(running, epoch - 1)
        for steps in stops:
            if sum(stops) * before * BATCH >= len(wanted[epoch]):
                return
            part, received = train(running, epoch, steps)
            sequence += part
            state = saved(running, received)
            running = loop(make, after if sequence and steps is stops[-1] and part else before)
            running.load(state)
        check(sequence + train(running, epoch)[0], wanted[epoch], running)
        following = train(running, epoch + 1)[0]
        assert len(following) >= len(wanted[epoch + 1])
        if make is not by_generator:
            check(following, wanted[epoch + 1], running)


@over(Wrapper, Endless)
@pytest.mark.parametrize(("before", "after"), WORLDS)
@pytest.mark.parametrize("seen", [True, False], ids=["end", "last-batch"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "not-named"])
def test_stop_at_the_end_of_an_epoch(loop: Any, make: Any, before: int, after: int, seen: bool, named: bool) -> None:
    """Goes on with the next, whether the loop has seen the end or only the last batch."""
    wanted = whole(make)
    for epoch in STOPS:
        running = loop(make, before)
        steps = None if seen else -(-len(wanted[epoch]) // (before * BATCH))
        sequence, received = train(running, epoch, steps)
        if make is not by_generator or epoch == 0:
            check(sequence, wanted[epoch], running)
        state = saved(running, received)
        running = loop(make, after)
        running.load(state)
        if issubclass(loop, Stateful) and not seen:  # torchdata ends the pass that it was in
            assert not train(running, epoch if named else None)[0]
        following = train(running, epoch + 1 if named or loop is Accelerate else None)[0]
        assert len(following) >= len(wanted[epoch + 1])
        if make is not by_generator:
            check(following, wanted[epoch + 1], running)


@pytest.mark.parametrize("loop", [Stateful, StatefulBatches])
def test_the_next_epoch_is_named_after_the_last_batch(loop: Any) -> None:
    """As in loops that take the epoch from the number of steps."""
    running = loop(selection, 1)
    state = saved(running, train(running, 0, -(-len(whole(selection)[0]) // BATCH))[1])
    running = loop(selection, 1)
    running.load(state)
    check(train(running, 1)[0], whole(selection)[1], running)


def test_fabric_counts_from_0_after_a_restart() -> None:
    """Hence examples/lightning_fabric.py takes the loader as it is."""
    running = Plain(selection, 1)
    state = saved(running, train(running, 2, 3)[1])
    running = Fabric(selection, 1)
    running.load(state)
    with pytest.warns(UserWarning, match=r"set_epoch\(0\) has dropped the loaded position 24 of epoch 2"):
        assert train(running, 2)[0] == whole(selection)[0]
