"""Data sets whose samples say which they are, so that what is learned about them finds its way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pysel import _checks


class WithIndex(Dataset[Any]):
    """A data set with each sample's index in it, and so a loader with the indices of each batch, int64 [B].

    The index comes first: samples ``(x, y)`` become ``(index, x, y)``, a list stays a list, and a sample that is no
    tuple, list or dictionary becomes ``(index, sample)``. A dictionary has it under ``name``. So selection gets to know
    of a batch, and the batch has its weights, in two lines::

        for index, x, y in loader:
            losses = F.cross_entropy(model(x), y, reduction="none")
            (losses * selector.weights(index)).mean().backward()
            selector.update(index, losses=losses.detach())

    Samples are fetched in batches where the data set can do that (``__getitems__``). Other attributes are those of the
    data set, and the loader stays torch's.

    Samples of an iterable data set are numbered as they come, from 0 in each pass: they must come in the same order
    each time, and from one process, as several workers would give the same numbers to different samples.

    Args:
        dataset: map-style (``__getitem__``), or an ``IterableDataset``.
        name: of the entry in samples that are dictionaries.

    Raises:
        TypeError: ``dataset`` is neither, or ``name`` no string. When samples are fetched: an index that is no int, or
            ``__getitems__`` gave no list.
        ValueError: when samples are fetched: a dictionary has an entry of that name, or ``__getitems__`` gave another
            number of samples than was asked for.
        RuntimeError: an iterable data set with several workers, in the first batch.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> dataset = WithIndex([("a", 0.5), ("b", 1.5), ("c", 2.5)])
        >>> for index, name, number in DataLoader(dataset, batch_size=2, sampler=[2, 0]):
        ...     print(index, name, number)
        tensor([2, 0]) ('c', 'a') tensor([2.5000, 0.5000], dtype=torch.float64)
    """

    def __new__(cls, dataset: Any = None, name: str = "index") -> WithIndex:
        """Loaders ask for the type to tell iterable data sets from others."""
        return super().__new__(_InOrder if isinstance(dataset, IterableDataset) and cls is WithIndex else cls)

    def __init__(self, dataset: Any, name: str = "index") -> None:
        if not hasattr(dataset, "__getitem__") or isinstance(dataset, str | bytes | type):
            raise TypeError(
                "WithIndex: dataset must have __getitem__ or be a torch IterableDataset, "
                f"got {dataset if isinstance(dataset, type) else type(dataset).__name__}"
            )
        if not isinstance(name, str):
            raise TypeError(f"WithIndex: name must be a string, got {type(name).__name__}")
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        """Samples in the data set, where it knows."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """One sample; a negative index counts from the end, and is told as counted from the beginning."""
        index = self._from_start(index)
        return self._with(index, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of a batch, as loaders ask for them."""
        indices = [self._from_start(index) for index in indices]
        several = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[index] for index in indices] if several is None else several(indices)
        whose = f"WithIndex: what {type(self.dataset).__name__}.__getitems__ returns"
        if not isinstance(samples, list | tuple):
            raise TypeError(f"{whose} must be a list of samples, got {type(samples).__name__}")
        if len(samples) != len(indices):
            raise ValueError(f"{whose} must be {len(indices)} samples, got {len(samples)}")
        return [self._with(index, sample) for index, sample in zip(indices, samples, strict=True)]

    def _from_start(self, index: int) -> int:
        index = _checks.integer("WithIndex", "index", index)
        return index + len(self) if index < 0 else index

    def _with(self, index: int, sample: Any) -> Any:
        if isinstance(sample, Mapping):
            if self.name in sample:
                raise ValueError(f"WithIndex: name must be one that samples do not have, got {self.name!r}")
            return {**sample, self.name: index}
        if isinstance(sample, list):
            return [index, *sample]
        return (index, *sample) if isinstance(sample, tuple) else (index, sample)

    def __getattr__(self, name: str) -> Any:
        """What only the data set has."""
        if name == "dataset" or (name.startswith("__") and name.endswith("__")):  # not there yet, or pickle's question
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __repr__(self) -> str:
        return f"WithIndex({self.dataset!r})"


class _InOrder(WithIndex, IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        workers = get_worker_info()
        if workers is not None and workers.num_workers > 1:
            raise RuntimeError(
                "WithIndex: an iterable dataset needs num_workers of 0 or 1 to number its samples, "
                f"got {workers.num_workers}"
            )
        return (self._with(index, sample) for index, sample in enumerate(self.dataset))
