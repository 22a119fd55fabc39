"""What goes wrong on one rank alone is known to all at once: none of the others waits until its patience ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pysel
from pysel.distributed import ShardedDynamicSelector
from pysel.selection import Bitmap
from tests.ranks import Ranks, ranks

N, EPOCHS, ODD = 12, 6, 1


@pytest.fixture(scope="module")
def three() -> Iterator[Ranks]:
    with ranks(3) as started:
        yield started


def make(rank: int, group: Any, **given: Any) -> ShardedDynamicSelector:
    scores = torch.arange(N) * 7 % N / N
    part = slice(rank * N // 3, (rank + 1) * N // 3)
    given = {"keep_ratio": 0.5, "epochs": EPOCHS, "key": 0, **given}
    return ShardedDynamicSelector(scores[part], 1 - scores[part], process_group=group, **given)


def sampler(rank: int, group: Any, selector: Any = None, **given: Any) -> pysel.SelectionSampler:
    selector = make(rank, group) if selector is None else selector
    return pysel.SelectionSampler(selector, **{"key": 1, "process_group": group, **given})


def tried(act: Callable[[], Any], rank: int, group: Any) -> Any:
    """What ``act`` raises, or gives; and whether this rank then still does what the others do."""
    began = time.monotonic()
    try:
        found: Any = act()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    assert time.monotonic() - began < 60, "it has waited in vain"
    return found, list(sampler(rank, group))


def iterated(made: Any) -> list[int]:
    """As a loop does it: ``list`` would ask for the length first, which tells the others nothing."""
    return [index for index in made]  # noqa: C416


def check(answers: list[Any], odd: str, others: str) -> None:
    whole = pysel.selection.DynamicSelector(torch.arange(N) * 7 % N / N, 1 - torch.arange(N) * 7 % N / N, 0.5, 6, key=0)
    wanted = list(pysel.SelectionSampler(whole, key=1))
    for rank, answer in enumerate(answers):
        assert isinstance(answer, tuple), answer
        assert (odd if rank == ODD else others) in answer[0]
        assert answer[1] == wanted[rank::3]


class Broken:
    """A selector that fails in some method, on some rank."""

    num_samples = N

    def __init__(self, method: str, fails: bool) -> None:
        self._broken = method if fails else ""

    def _do(self, method: str) -> None:
        if method == self._broken:
            raise OSError("disk gone")

    def select(self, epoch: int) -> Tensor:
        self._do("select")
        return torch.arange(6)

    def __len__(self) -> int:
        self._do("len")
        return 6

    def state_dict(self) -> dict[str, Any]:
        self._do("state_dict")
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._do("load_state_dict")


class BrokenBitmap(Broken):
    def bitmap(self, epoch: int) -> Bitmap:
        self._do("bitmap")
        return Bitmap(None, N)

    def size(self, epoch: int) -> int:
        self._do("size")
        return N


def in_a_selector(rank: int, group: Any, kind: type[Broken], method: str) -> Any:
    return tried(lambda: iterated(sampler(rank, group, kind(method, rank == ODD))), rank, group)


@pytest.mark.parametrize(("kind", "method"), [(Broken, "select"), (Broken, "state_dict"), (BrokenBitmap, "bitmap")])
def test_a_selectors_method(three: Ranks, kind: type[Broken], method: str) -> None:
    answers = three(in_a_selector, 3, kind, method)
    check(answers, "OSError: disk gone", "RuntimeError: SelectionSampler: rank 1 has failed with OSError: disk gone")


def in_a_length(rank: int, group: Any) -> Any:
    made = sampler(rank, group, Broken("select", rank == ODD))

    def act() -> Any:
        if rank == ODD:
            with pytest.raises(OSError, match="disk gone"):
                len(made)
        return iterated(made)

    return tried(act, rank, group)


def test_a_length_that_was_survived(three: Ranks) -> None:
    answers = three(in_a_length, 3)
    check(answers, "OSError: disk gone", "RuntimeError: SelectionSampler: rank 1 has failed with OSError: disk gone")


def without_a_key(rank: int, group: Any, kind: str) -> Any:
    key = None if rank == ODD else 1
    if kind == "weighted":
        made: Any = pysel.WeightedSampler(torch.ones(N), 3, key=key, process_group=group)
    else:
        made = sampler(rank, group, key=key)
    return tried(lambda: iterated(made), rank, group)


@pytest.mark.parametrize("kind", ["weighted", "sharded"])
def test_no_key(three: Ranks, kind: str) -> None:
    check(three(without_a_key, 3, kind), "ValueError: ", "rank 1 has failed with ValueError: ")


def in_another_epoch(rank: int, group: Any, epochs: list[int]) -> Any:
    made = sampler(rank, group)
    list(made)
    made.set_epoch(epochs[rank])
    return tried(lambda: iterated(made), rank, group)


@pytest.mark.parametrize("epochs", [[1, 0, 1], [0, 3, 0], [2, 1, 2]])
def test_another_epoch_where_the_selector_is_collective(three: Ranks, epochs: list[int]) -> None:
    message = (
        "ValueError: SelectionSampler: all ranks must have the same samples, but from rank 0 differ rank 1 in epoch"
    )
    check(three(in_another_epoch, 3, epochs), message, message)


def finished_there(rank: int, group: Any, kind: str) -> Any:
    """One rank's state is of an epoch that is done, the others' are of its middle; all name that epoch."""

    def fresh() -> Any:
        if kind == "weighted":
            return pysel.WeightedSampler(torch.ones(N), 6, key=1, process_group=group)
        return sampler(rank, group)

    going = fresh()
    begun = iter(going)
    next(begun)
    state = going.state_dict()
    if rank == ODD:
        state["position"] = state["length"]
    made = fresh()

    def act() -> Any:
        made.load_state_dict(state)
        made.set_epoch(0)
        return iterated(made)

    return tried(act, rank, group)


@pytest.mark.parametrize("kind", ["weighted", "sharded"])
def test_an_epoch_that_is_done_on_one_rank(three: Ranks, kind: str) -> None:
    message = "all ranks must have the same samples, but from rank 0 differ rank 1 in epoch and position"
    check(three(finished_there, 3, kind), message, message)


def a_state(rank: int, group: Any, entry: str) -> Any:
    made = sampler(rank, group)
    next(iter(made))
    state = made.state_dict()
    if rank == ODD:
        state[entry] = None
    return tried(lambda: made.load_state_dict(state), rank, group)


@pytest.mark.parametrize("entry", ["position", "key", "selector"])
def test_a_state_that_one_rank_refuses(three: Ranks, entry: str) -> None:
    check(three(a_state, 3, entry), f"ValueError: SelectionSampler: state_dict['{entry}']", "rank 1 has failed with")


class Fails:
    """A schedule that fails, or says something else, on some ranks in some epochs."""

    def __init__(self, how: str, at: float) -> None:
        self.how, self.at = how, at

    def __call__(self, progress: float) -> float:
        if progress >= self.at:
            if self.how == "raises":
                raise OSError("disk gone")
            return 0.25
        return 0.5


def scheduled(rank: int, group: Any, how: str, what: str) -> Any:
    def schedule(progress: float) -> float:
        return inner(progress)

    inner = Fails(how, 3 / EPOCHS if rank == ODD and what != "loaded" else 2)
    selector = make(rank, group, schedule=schedule)
    selector.bitmap(0)
    if what == "loaded":
        selector.bitmap(2)
        state = selector.state_dict()
        selector.bitmap(0)
        inner = Fails(how, 3 / EPOCHS if rank == ODD else 2)
        found, rest = tried(lambda: selector.load_state_dict(state), rank, group)
    else:
        found, rest = tried(lambda: selector.bitmap(2), rank, group)
    assert selector.bitmap(0) is selector._bitmap and selector._epoch == 0
    return found, rest


@pytest.mark.parametrize("what", ["asked for", "loaded"])
def test_a_schedule(three: Ranks, what: str) -> None:
    check(three(scheduled, 3, "raises", what), "OSError: disk gone", "refused on rank 1, whose own error says why")
    differs = "must be the same on all ranks, but differs between rank 0 and rank 1"
    check(three(scheduled, 3, "differs", what), differs, differs)


def saving(rank: int, group: Any, folder: str) -> Any:
    """On one rank, the first, the folder cannot be made: a file is in its place."""
    return tried(lambda: make(rank, group).save(folder), rank, group)


def test_a_folder_that_cannot_be_written(three: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answers = three(saving, 3, str(tmp_path / "file"))
    assert "FileExistsError" in answers[0][0]
    for answer in answers[1:]:
        assert "refused on rank 0, whose own error says why" in answer[0]
    check([("OSError", rest) for _, rest in answers], "OSError", "OSError")


def loading(rank: int, group: Any, folders: list[str]) -> Any:
    return tried(lambda: ShardedDynamicSelector.load(folders[rank], process_group=group), rank, group)


def test_a_folder_that_one_rank_does_not_see(three: Ranks, tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    assert [answer[0] for answer in three(saving, 3, folder)] == [None] * 3
    answers = three(loading, 3, [folder, folder + "elsewhere", folder])
    check(answers, "FileNotFoundError", "refused on rank 1, whose own error says why")
