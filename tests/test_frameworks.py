"""Samplers inside the loaders and trainers that people have; each test needs its framework and is skipped without."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import pysel
from pysel import BatchSampler, SelectionSampler, WeightedSampler
from pysel.selection import DynamicSelector
from tests.epochs import epochs_of, through_a_file

N, EPOCHS, BATCH = 103, 4, 8

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded", "ignore:.*worker_processes", "ignore:.*does not have many workers"
)


class Rows(Dataset[int]):
    """Sample i is the number i."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        return index


def weighted(**options: Any) -> WeightedSampler:
    return WeightedSampler(torch.arange(1.0, N + 1), 50, key=3, **options)


def without_key(**options: Any) -> WeightedSampler:
    return WeightedSampler(torch.arange(1.0, N + 1), 50, **options)


def selection(**options: Any) -> SelectionSampler:
    scores = torch.rand(2, N, generator=torch.Generator().manual_seed(0))
    selector = DynamicSelector.from_scores(scores[0], scores[1], keep_ratio=0.5, epochs=6, key=4)
    return SelectionSampler(selector, key=4, **options)


def varying(**options: Any) -> SelectionSampler:
    """Epochs of 20, 30, 40, ... samples."""

    class Growing(pysel.selection.Selector):
        def __init__(self) -> None:
            super().__init__(N, {})

        def __len__(self) -> int:
            return 20

        def select(self, epoch: int = 0) -> torch.Tensor:
            return torch.arange(20 + 10 * epoch)

    return SelectionSampler(Growing(), key=4, **options)


MAKERS = [pytest.param(make, id=make.__name__) for make in (weighted, without_key, selection, varying)]
KEYED = [pytest.param(make, id=make.__name__) for make in (weighted, selection, varying)]


def flat(batches: Any) -> list[int]:
    return [i for batch in batches for i in batch.tolist()]


# --- torchdata ---


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["sampler", "drop_last", "batch_sampler"])
@pytest.mark.parametrize("named", [True, False], ids=["set_epoch", "no-set_epoch"])
def test_stateful_loader(make: Any, workers: int, how: str, named: bool) -> None:
    """Resumes within an epoch, twice within one, at the last batch, and at the end of one."""
    loaders = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> Any:
        batches = {"batch_size": BATCH, "sampler": make(), "drop_last": how == "drop_last"}
        if how == "batch_sampler":
            batches = {"batch_sampler": BatchSampler(make(), BATCH)}
        if workers:
            batches.update(prefetch_factor=3, persistent_workers=how == "sampler")
        return loaders.StatefulDataLoader(Rows(), num_workers=workers, **batches)

    def begin(one: Any, epoch: int) -> Any:
        if named:
            (one.batch_sampler if how == "batch_sampler" else one.sampler).set_epoch(epoch)
        return iter(one)

    torch.manual_seed(0)
    whole = epochs_of(make, EPOCHS)
    if how == "drop_last":
        whole = [epoch[: len(epoch) // BATCH * BATCH] for epoch in whole]
    keyed = make is not without_key
    epoch = 1 if named else 0
    last = -(-len(whole[epoch]) // BATCH)
    for stops in ([2], [1, 2], [last], [None]):
        one = loader()
        for early in range(epoch):
            assert len(flat(begin(one, early))) == len(whole[early])
        seen: list[int] = []
        for number, stop in enumerate(stops):
            running = begin(one, epoch)
            seen += flat(islice(running, None if stop is None else stop - (stops[number - 1] if number else 0)))
            state = through_a_file(one.state_dict())
            rest = flat(running) if stop is not None else []
            one = loader()
            one.load_state_dict(state)
        if stops != [None]:
            assert flat(begin(one, epoch)) == rest
        assert len(seen + rest) == len(whole[epoch])
        assert not keyed or seen + rest == whole[epoch]
        following = flat(begin(one, epoch + 1))
        assert len(following) == len(whole[epoch + 1])
        assert not keyed or following == whole[epoch + 1], stops
        if named:
            assert len(flat(begin(one, epoch + 2))) == len(whole[epoch + 2])


def test_stateful_loader_iterated_before_the_state_is_loaded() -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    whole = epochs_of(selection, EPOCHS)
    for workers in (0, 2):
        one = loaders.StatefulDataLoader(Rows(), BATCH, sampler=selection(), num_workers=workers)
        one.sampler.set_epoch(2)
        begun = [i for batch in islice(iter(one), 3) for i in batch.tolist()]
        state = one.state_dict()
        other = loaders.StatefulDataLoader(Rows(), BATCH, sampler=selection(), num_workers=workers)
        next(iter(other))
        other.load_state_dict(state)
        assert begun + [i for batch in other for i in batch.tolist()] == whole[2]


# --- Accelerate: batches are dealt out to simulated processes ---


def prepared(make: Any, process: int, processes: int, **options: Any) -> Any:
    accelerate = pytest.importorskip("accelerate.data_loader")
    loader = DataLoader(Rows(), BATCH, sampler=make(rank=0, num_replicas=1), drop_last=options.pop("drop_last", False))
    return accelerate.prepare_data_loader(
        loader, num_processes=processes, process_index=process, put_on_device=False, **options
    )


@pytest.mark.parametrize("make", KEYED)
def test_accelerate_trains_the_global_batches_of_other_loops(make: Any) -> None:
    world = 2
    loaders = [prepared(make, p, world, drop_last=True) for p in range(world)]
    ranks = [make(rank=r, num_replicas=world) for r in range(world)]
    for epoch in range(3):  # Accelerate counts epochs itself
        shares = [[batch.tolist() for batch in loader] for loader in loaders]
        for sampler in ranks:
            sampler.set_epoch(epoch)
        wanted = [list(sampler) for sampler in ranks]
        steps = min(len(share) for share in shares)
        assert steps > 0
        for step in range(steps):
            together = sorted(i for share in shares for i in share[step])
            assert together == sorted(i for one in wanted for i in one[step * BATCH : (step + 1) * BATCH])


def test_accelerate_repeats_nothing_where_epochs_are_rounded() -> None:
    """Of 52 selected samples two processes with batches of 8 get 64, 12 of them twice, or 48, each once."""
    for round_to, size, distinct in ((1, 64, 52), (2 * BATCH, 48, 48)):

        def make(round_to: int = round_to, **options: Any) -> SelectionSampler:
            return selection(round_to=round_to, **options)

        seen = [i for process in range(2) for i in flat(prepared(make, process, 2))]
        assert (len(seen), len(set(seen))) == (size, distinct)


def test_accelerate_synchronises_the_generator_of_a_sampler_without_a_key() -> None:
    loader = prepared(without_key, 0, 2)
    assert isinstance(loader.batch_sampler.batch_sampler.sampler.generator, torch.Generator)


def test_accelerate_drops_a_loaded_position_with_a_warning() -> None:
    loader = prepared(weighted, 0, 1)
    donor = weighted()
    donor.set_epoch(3)
    begun = list(islice(iter(donor), 16))
    loader.batch_sampler.sampler.load_state_dict(donor.state_dict())
    with pytest.warns(UserWarning, match=r"set_epoch\(0\) has dropped the loaded position 16 of epoch 3"):
        next(iter(loader))
    loader = prepared(weighted, 0, 1)
    loader.batch_sampler.sampler.load_state_dict(donor.state_dict())
    loader.set_epoch(3)
    assert begun + [i for batch in loader for i in batch.tolist()] == epochs_of(weighted, EPOCHS)[3]


def test_accelerate_and_ranks_would_deal_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    state = pytest.importorskip("accelerate.state")
    accelerate = pytest.importorskip("accelerate.data_loader")
    loader = DataLoader(Rows(), BATCH, sampler=weighted(rank=1, num_replicas=2))
    double = accelerate.prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False)
    monkeypatch.setitem(state.PartialState._shared_state, "num_processes", 2)
    with pytest.raises(ValueError, match="deals out the batches of this loader to 2 processes: pass rank=0"):
        next(iter(double))
    assert len(list(weighted(rank=1, num_replicas=2))) == 25, "where it is not prepared, all is well"
    with pytest.raises(ValueError, match="Accelerate and Hugging Face's Trainer deal out batches themselves"):
        len(weighted())


def test_accelerate_skips_batches_of_the_epoch_that_the_sampler_was_told() -> None:
    """On several processes its own set_epoch does not reach a sampler beneath skip_first_batches."""
    accelerate = pytest.importorskip("accelerate.data_loader")
    whole = epochs_of(selection, EPOCHS)[3]
    seen = []
    for process in range(2):
        loader = prepared(selection, process, 2, even_batches=False)
        sampler = loader.batch_sampler.batch_sampler.sampler
        rest = accelerate.skip_first_batches(loader, 2)
        rest.set_epoch(3)
        assert sampler.epoch == 0
        sampler.set_epoch(3)
        seen += flat(rest)
    assert sorted(seen) == sorted(whole[2 * 2 * BATCH :])


@pytest.mark.parametrize("make", KEYED)
def test_accelerate_resumes_on_more_processes(make: Any) -> None:
    """By the sampler's state, which counts samples and not a process's batches."""
    one = prepared(make, 0, 1)
    one.set_epoch(1)
    begun = flat(islice(iter(one), 1))
    state = one.batch_sampler.sampler.state_dict(yielded=len(begun))
    seen = []
    for process in range(2):
        loader = prepared(make, process, 2, even_batches=False)
        loader.batch_sampler.batch_sampler.sampler.load_state_dict(state)
        loader.set_epoch(1)
        seen += flat(loader)
    assert sorted(begun + seen) == sorted(epochs_of(make, EPOCHS)[1])


# --- Lightning ---


def trainer(folder: Any, epochs: int, **options: Any) -> Any:
    lightning = pytest.importorskip("lightning.pytorch")
    return lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def module(make: Any, *, stateful: bool = False, workers: int = 0, named: bool = True) -> Any:
    """A model that keeps what it sees, by epoch, and makes its loader as it is documented.

    Trainers count batches, and workers fetch ahead, before the trainer names the epoch.
    """
    lightning = pytest.importorskip("lightning.pytorch")

    class Sees(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: dict[int, list[int]] = {}

        def train_dataloader(self) -> Any:
            loader = lightning_loader(make, stateful, workers)
            if named:
                loader.sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
            return loader

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            self.seen.setdefault(self.current_epoch, []).extend(batch.tolist())
            return self.layer(batch[:, None].float()).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    return Sees()


def lightning_loader(make: Any, stateful: bool, workers: int) -> Any:
    kind: Any = DataLoader
    if stateful:
        kind = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    return kind(Rows(), BATCH, sampler=make(), num_workers=workers)


@pytest.mark.parametrize("make", [weighted, selection])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stateful", [False, True])
def test_lightning_resumes(make: Any, workers: int, stateful: bool, tmp_path: Any) -> None:
    """From the end of an epoch, and with torchdata's loader from within one."""
    lightning = pytest.importorskip("lightning.pytorch")
    whole = epochs_of(make, EPOCHS)
    straight = module(make, stateful=stateful, workers=workers)
    trainer(tmp_path, EPOCHS).fit(straight)
    assert straight.seen == dict(enumerate(whole))
    for steps in (None, 3) if stateful else (None,):
        saves = lightning.callbacks.ModelCheckpoint(
            dirpath=tmp_path / str(steps), save_top_k=-1, every_n_train_steps=steps, filename="{epoch}-{step}"
        )
        trainer(tmp_path, 2, callbacks=[saves]).fit(module(make, stateful=stateful, workers=workers))
        saved = sorted((tmp_path / str(steps)).glob("*.ckpt"))
        assert len(saved) == (2 if steps is None else 4)
        for path in saved:
            step, rest = int(path.stem.split("step=")[1]), module(make, stateful=stateful, workers=workers)
            trainer(tmp_path, EPOCHS).fit(rest, ckpt_path=path)
            done = len(whole[0]) * (step // 7) + BATCH * (step % 7)
            trained = [i for epoch in sorted(rest.seen) for i in rest.seen[epoch]]
            assert trained == [i for epoch in whole for i in epoch][done:], path.name


def test_lightning_leaves_the_sampler_alone(tmp_path: Any) -> None:
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.trainer.connectors.data_connector import _DataConnector

    one = trainer(tmp_path, 1, devices=2, strategy="ddp")
    for make in (weighted, selection):
        assert not _DataConnector._requires_distributed_sampler(one._data_connector, lightning_loader(make, False, 0))


def test_lightning_cuts_growing_epochs_and_the_sampler_says_so(tmp_path: Any) -> None:
    one = module(varying)
    with pytest.warns(
        UserWarning, match="epoch 1 ended after 24 of its 30 samples.*reload_dataloaders_every_n_epochs=1"
    ):
        trainer(tmp_path, 3).fit(one)
    assert [len(one.seen[epoch]) for epoch in range(3)] == [20, 24, 24]
    one = module(varying)
    trainer(tmp_path, 3, reload_dataloaders_every_n_epochs=1).fit(one)
    assert one.seen == dict(enumerate(epochs_of(varying, EPOCHS)[:3]))
