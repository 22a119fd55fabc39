"""pysel/data.py: indices in batches, through real loaders."""

from __future__ import annotations

import pickle
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import pysel
from pysel.data import WithIndex

pytestmark = pytest.mark.usefixtures("one_thread")

N = 11
Pair = namedtuple("Pair", "x y")


class Kind(Dataset[Any]):
    """Samples whose content tells which they are."""

    classes = ("a", "b")

    def __init__(self, kind: str) -> None:
        self.kind, self.calls = kind, 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        x = torch.tensor([float(i)])
        return {"tuple": (x, i), "list": [x, i], "named": Pair(x, i), "dict": {"x": x, "y": i}, "tensor": x}[self.kind]


class Batched(Kind):
    def __getitem__(self, i: int) -> Any:
        raise AssertionError("one by one")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.calls += 1
        return [Kind.__getitem__(self, i) for i in indices]


class Stream(IterableDataset[Any]):
    def __init__(self, n: int = N) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        return iter([(float(i), i) for i in range(self.n)])


def split(batch: Any) -> tuple[Any, Any]:
    """Indices, and the sample's content."""
    return (batch["index"], batch["x"]) if isinstance(batch, dict) else (batch[0], batch[1])


@pytest.mark.parametrize("make", [Kind, Batched])
@pytest.mark.parametrize("kind", ["tuple", "list", "named", "dict", "tensor"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_their_indices(make: Any, kind: str, workers: int) -> None:
    dataset = WithIndex(make(kind))
    seen = []
    for batch in DataLoader(dataset, batch_size=4, sampler=[*range(10, 0, -1)], num_workers=workers):
        index, x = split(batch)
        assert index.dtype == torch.int64 and torch.equal(index, x[:, 0].long())
        assert kind == "tensor" or torch.equal(batch["y"] if kind == "dict" else batch[2], index)
        seen += index.tolist()
    assert seen == [*range(10, 0, -1)] and len(dataset) == N
    if make is Batched and not workers:
        assert dataset.calls == 3


def test_the_loop_of_the_docstring_with_a_sampler() -> None:
    """Losses get to the samples that they are of, whatever the order."""
    dataset = WithIndex(TensorDataset(torch.arange(N).float()[:, None], torch.zeros(N)))
    selector = pysel.selection.InfoBatch(N, 3, key=0)
    model = torch.nn.Linear(1, 1)
    loader = DataLoader(dataset, batch_size=4, sampler=pysel.SelectionSampler(selector, key=0))
    for index, x, y in loader:
        losses = (model(x)[:, 0] - y) ** 2
        (losses * selector.weights(index)).mean().backward()
        selector.update(index, losses=losses.detach())
    with torch.no_grad():
        wanted = model(torch.arange(N).float()[:, None])[:, 0] ** 2
    for i in range(N):
        assert selector.explain(i)["loss"] == pytest.approx(float(wanted[i]), rel=1e-5)


def test_what_users_pass_as_an_index() -> None:
    dataset = WithIndex(Kind("tuple"))
    for given in (3, np.int64(3), torch.tensor(3), -8):
        assert dataset[given][0] == 3 and dataset[given][2] == 3 and type(dataset[given][0]) is int
    assert dataset.__getitems__([-1, np.int32(2)])[0][0] == N - 1
    for odd in ("a", 1.5, None, [1]):
        with pytest.raises(TypeError, match="WithIndex: index must be an int, got"):
            dataset[odd]
    parts = WithIndex(ConcatDataset([Subset(Kind("tuple"), [5, 6]), Kind("tuple")]))
    assert [sample[0] for sample in parts.__getitems__([0, 1, 2])] == [0, 1, 2] and parts[1][2] == 6
    assert Subset(dataset, [5, 6])[1][0] == 6, "put inside, it says the whole's"


def test_it_is_the_data_set_otherwise() -> None:
    dataset = WithIndex(Kind("tuple"))
    assert dataset.classes == ("a", "b") and dataset.kind == "tuple"
    with pytest.raises(AttributeError, match="'Kind' object has no attribute 'nothing'"):
        _ = dataset.nothing
    again = pickle.loads(pickle.dumps(dataset))
    assert again[4][0] == 4 and type(again) is WithIndex
    assert WithIndex([1, 2])[1] == (1, 2) and repr(WithIndex([1, 2])) == "WithIndex([1, 2])"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_numbered_as_it_comes(workers: int) -> None:
    dataset = WithIndex(Stream())
    assert isinstance(dataset, IterableDataset) and isinstance(dataset, WithIndex) and dataset.n == N
    loader = DataLoader(dataset, batch_size=4, num_workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch[0]) for batch in batches] == [4, 4, 3]
        for index, x, y in batches:
            assert torch.equal(index, y) and torch.equal(index, x.long())
    again = pickle.loads(pickle.dumps(dataset))
    assert [sample[0] for sample in again] == list(range(N))
    with pytest.raises(TypeError, match="has no len"):
        len(dataset)


def test_a_stream_of_several_workers_is_refused() -> None:
    with pytest.raises(RuntimeError, match="needs num_workers of 0 or 1 to number its samples, got 2"):
        next(iter(DataLoader(WithIndex(Stream()), num_workers=2)))


def test_refused() -> None:
    for odd in (3, None, "abc", iter([1]), int, DataLoader([1])):
        with pytest.raises(TypeError, match="WithIndex: dataset must have __getitem__ or be"):
            WithIndex(odd)
    with pytest.raises(TypeError, match="WithIndex: name must be a string, got int"):
        WithIndex([1], name=3)  # type: ignore[arg-type]
    assert WithIndex([{"index": 7}], name="row")[0] == {"index": 7, "row": 0}
    with pytest.raises(ValueError, match="WithIndex: name must be one that samples do not have, got 'index'"):
        WithIndex([{"index": 7}])[0]

    class Odd(Kind):
        def __getitems__(self, indices: list[int]) -> Any:
            return {"x": indices} if self.kind == "dict" else [1]

    with pytest.raises(TypeError, match=r"what Odd\.__getitems__ returns must be a list of samples, got dict"):
        WithIndex(Odd("dict")).__getitems__([1, 2])
    with pytest.raises(ValueError, match=r"what Odd\.__getitems__ returns must be 2 samples, got 1"):
        WithIndex(Odd("tuple")).__getitems__([1, 2])
