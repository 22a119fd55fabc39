"""pysel/samplers/selection.py: a selector's subset, in a new order each epoch."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import pysel
from pysel import SelectionSampler
from pysel.samplers import passes
from pysel.selection import DynamicRandom, DynamicSelector, Full

pytestmark = pytest.mark.filterwarnings("ignore:.*is yielded again")

N = 103


def selection(**options: Any) -> SelectionSampler:
    scores = torch.rand(2, N, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")
    selector = DynamicSelector.from_scores(scores[0], scores[1], keep_ratio=0.5, epochs=6, key=5)
    return SelectionSampler(selector, key=4, **options)


def order_key(seed: int, epoch: int) -> Tensor:
    """The key of SelectionSampler's order: apart from those that a selector derives from the same key."""
    return pysel.fold_in(pysel.fold_in(pysel.key(seed), 0x6F72646572), epoch)


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
    loader = DataLoader(range(N), batch_size=8, sampler=SelectionSampler(selector))
    for epoch, size in enumerate((32, 32, 64)):  # the last one takes all samples
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert len(loader) == size // 8 and sum(len(batch) for batch in loader) == size


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


# --- whole rounds of batches ---


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("round_to", [1, 2, 8, 23, 52])
def test_an_epoch_is_a_multiple(round_to: int, shuffle: bool) -> None:
    """The largest that the subset of 52 holds, in the order that it has without rounding."""
    plain, sampler = selection(shuffle=shuffle), selection(shuffle=shuffle, round_to=round_to)
    for epoch in (0, 2, 5):
        plain.set_epoch(epoch)
        sampler.set_epoch(epoch)
        size = len(plain) // round_to * round_to
        subset = sampler.selector.select(epoch).tolist()
        yielded = list(sampler)
        assert len(sampler) == sampler.num_samples == len(sampler.dataset) == len(yielded) == size
        assert set(yielded) <= set(subset) and len(set(yielded)) == size
        assert yielded == (list(plain)[:size] if shuffle else sorted(yielded))
        stats = sampler.stats()
        assert (stats["num_samples"], stats["dropped"], stats["padded"]) == (size, len(subset) - size, 0)
        assert stats["realised_ratio"] == size / N


@pytest.mark.parametrize("shuffle", [True, False])
def test_what_rounding_leaves_out_is_random(shuffle: bool) -> None:
    """Each of 10 samples stays out of 800 epochs of 4,000, give or take five standard deviations of 25.3."""
    out = torch.zeros(10, dtype=torch.int64)
    sampler = SelectionSampler(Full(10), key=0, shuffle=shuffle, round_to=4)
    for epoch in range(4000):
        sampler.set_epoch(epoch)
        out[torch.ones(10, dtype=torch.bool).index_fill(0, torch.tensor(list(sampler)), False)] += 1
    assert int(out.sum()) == 8000 and bool(((out - 800).abs() < 127).all())


@pytest.mark.parametrize("shuffle", [True, False])
def test_rounded_epochs_have_whole_rounds_on_every_rank_and_resume(shuffle: bool) -> None:
    world, batch = 3, 4
    ranks = [selection(rank=r, num_replicas=world, round_to=world * batch, shuffle=shuffle) for r in range(world)]
    whole = list(selection(round_to=world * batch, shuffle=shuffle))
    shares = [list(sampler) for sampler in ranks]
    assert [len(share) for share in shares] == [16] * 3 and 16 % batch == 0
    assert [index for row in zip(*shares, strict=True) for index in row] == whole
    stopped = selection(round_to=world * batch, shuffle=shuffle)
    begun = list(islice(iter(stopped), 7))
    resumed = selection(round_to=world * batch, shuffle=shuffle)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.stats()["dropped"] == 4 and begun + list(resumed) == whole
    other = selection(round_to=5, shuffle=shuffle)
    other.load_state_dict(stopped.state_dict())
    with pytest.raises(ValueError, match="epoch 0 has 50 samples, the loaded state's had 48"):
        list(other)


def test_what_is_dropped_is_of_the_running_epoch() -> None:
    asked = []

    def select(epoch: int) -> Tensor:
        asked.append(epoch)
        return torch.arange(10 + epoch)

    sampler = SelectionSampler(Own(select), key=0, round_to=4)
    assert sampler.stats()["dropped"] == 2
    list(sampler)
    sampler.set_epoch(1)
    assert len(sampler) == 8 and sampler.stats()["dropped"] == 2
    list(sampler)
    assert sampler.stats()["dropped"] == 3 and asked == [0, 1]


def test_round_to_refuses() -> None:
    for bad, error, message in (
        (0, ValueError, "round_to must be at least 1, got 0"),
        (2.0, TypeError, "round_to must be an int, got float"),
    ):
        with pytest.raises(error, match=f"SelectionSampler: {message}"):
            SelectionSampler(Full(10), key=0, round_to=bad)  # type: ignore[arg-type]
    sampler = SelectionSampler(Full(10), key=0, round_to=11)
    for use in (len, list):
        with pytest.raises(ValueError, match="round_to must be at most 10, the size of the subset, got 11"):
            use(sampler)
    assert list(SelectionSampler(Own(torch.empty(0, dtype=torch.int64)), key=0, round_to=4)) == []
