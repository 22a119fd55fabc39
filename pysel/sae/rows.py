"""Rows of features, whatever holds them: read in order, in batches, as often as needed, never all in memory at once."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysel import _checks, _inputs

__all__ = ["Rows"]

_SCAN = 8192  # rows at a time where rows are looked for


class Rows:
    """A matrix [N, d] of features that is read in batches, from any source that can be read twice.

    Half types come out as float32, float64 stays. What can be seen without reading everything is checked at once, what
    a batch holds as it is read: a row with NaN or infinity is named.

    Args:
        source: [N, d] with at least one row, of a floating-point dtype, as

            - a tensor on any device, or a numpy array or memmap, of which only the rows asked for are read;
            - anything with a length whose slices are rows: a column of a Hugging Face dataset (fastest
              ``with_format("torch")``), an h5py or zarr array, a pandas data frame or column of arrays;
            - a list of rows [d];
            - a list of batches [B, d], or an object that yields them anew, in the same order, each time it is iterated,
              such as a DataLoader that does not shuffle. It is read through once here, to count its rows.
        op, name: of the function and the argument that error messages speak of.

    Raises:
        TypeError: a source that is none of these, can be read only once, or is not floating point.
        ValueError: a source that is not a matrix, is empty, or whose rows differ in width.

    Example:
        >>> import numpy as np
        >>> rows = Rows(np.eye(3, dtype=np.float16), "docs", "features")
        >>> rows.shape, [len(batch) for batch in rows.batches(2)]
        ((3, 3), [2, 1])
        >>> rows.take(torch.tensor([1]))
        tensor([[0., 1., 0.]])
    """

    shape: tuple[int, int]
    dtype: torch.dtype  # in which the rows come
    device: torch.device

    def __init__(self, source: Any, op: str, name: str) -> None:
        self.op, self.name = op, name
        if isinstance(source, list | tuple) and source and _is_row(source[0]):
            source = self._matrix(source)
        self._source = source
        self._sliceable = isinstance(source, Tensor | np.ndarray) or (
            not isinstance(source, list | tuple | dict | str | bytes)
            and hasattr(source, "__len__")
            and hasattr(source, "__getitem__")
        )
        if isinstance(source, Tensor | np.ndarray):
            self._check_matrix(source, "a matrix [N, d]")
            self._adopt(self._to_tensor(source[:1]))
            self.shape = (len(source), source.shape[1])
        elif self._sliceable:
            if len(source) == 0:
                raise ValueError(f"{op}: {name} must have at least one row, got none")
            try:
                chunk = self._slice(0, 1)
            except Exception as error:  # whatever a foreign container makes of a slice
                raise TypeError(
                    f"{op}: {name} must be a tensor or array [N, d], a dataset's column, or batches of rows, got "
                    f"{type(source).__name__}, and slicing it failed: {error}"
                ) from error
            self._adopt(self._matrix(chunk))
            self.shape = (len(source), self._first.numel())
        else:
            self._count()

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int, first: int | None = None) -> Iterator[Tensor]:
        """All rows in order, ``batch_size`` at a time however the source is cut, the first time ``first``.

        Yields:
            [B, d] float32, or float64 for float64; the last batch may be shorter. Not to be written to.

        Raises:
            ValueError: a row is not finite or not as wide as the first, or the source gives other rows than before.
        """
        row, held = 0, 0
        wanted = batch_size if first is None else first
        parts: list[Tensor] = []
        for part in self._read(batch_size):
            _inputs.finite(self.op, self.name, part, rows=row)
            row += len(part)
            while held + len(part) >= wanted:
                cut = wanted - held
                yield torch.cat([*parts, part[:cut]]) if parts else part[:cut]
                parts, held, part, wanted = [], 0, part[cut:], batch_size
            if len(part):
                parts.append(part)
                held += len(part)
        if parts:
            yield torch.cat(parts)

    def take(self, indices: Tensor) -> Tensor:
        """The rows of the given numbers.

        Args:
            indices: [n] int64, ascending.

        Returns:
            [n, d] float32, or float64 for float64.

        Raises:
            ValueError: as for `batches`.
        """
        if isinstance(self._source, Tensor):
            taken = self._to_tensor(self._source[indices.to(self.device)])
        elif isinstance(self._source, np.ndarray):
            taken = self._to_tensor(self._source[indices.cpu().numpy()])
        else:
            found, row = [], 0
            edges = indices.cpu()
            for part in self._read(_SCAN):
                low, high = torch.searchsorted(edges, torch.tensor([row, row + len(part)], device="cpu")).tolist()
                if low < high:
                    found.append(part[(edges[low:high] - row).to(part.device)])
                row += len(part)
            taken = torch.cat(found) if found else self._first[None][:0]
        _inputs.finite(self.op, self.name, taken, rows=indices)
        return taken

    def _read(self, size: int) -> Iterator[Tensor]:
        """Checked parts in order; of ``size`` rows where the source leaves the choice."""
        n, row = self.shape[0], 0
        for chunk in (self._slice(at, at + size) for at in range(0, n, size)) if self._sliceable else self._source:
            part = self._matrix(chunk, row)
            if row == 0 and len(part) and not torch.equal(part[0].nan_to_num(), self._first.nan_to_num()):
                raise ValueError(
                    f"{self.op}: {self.name} must give the same rows in the same order each time it is read, but its "
                    "first row has changed (a DataLoader that shuffles?)"
                )
            row += len(part)
            if row > n:
                break
            yield part
        if row != n:
            raise ValueError(
                f"{self.op}: {self.name} must give the same rows each time it is read: {n} at first, now "
                f"{'more' if row > n else row}"
            )

    def _slice(self, start: int, stop: int) -> Any:
        return self._source[start : min(stop, len(self._source))]

    def _count(self) -> None:
        """Read an iterable of batches through for its number of rows."""
        source = self._source
        if isinstance(source, str | bytes | dict) or not isinstance(source, Iterable):
            raise TypeError(
                f"{self.op}: {self.name} must be a tensor or array [N, d], a dataset's column, or batches of rows, got "
                f"{type(source).__name__}"
            )
        if isinstance(source, Iterator):
            raise TypeError(
                f"{self.op}: {self.name} is read more than once, and a {type(source).__name__} can be read only once: "
                "pass a list of its batches, or an object whose __iter__ starts afresh (a class with a generator "
                "method __iter__, a DataLoader)"
            )
        n = 0
        for chunk in source:
            part = self._matrix(chunk, n)
            if n == 0 and len(part):
                self._adopt(part)
            n += len(part)
        if n == 0:
            raise ValueError(f"{self.op}: {self.name} must have at least one row, got none")
        self.shape = (n, self._first.numel())

    def _adopt(self, part: Tensor) -> None:
        """What the first rows tell of all."""
        self._first = part[0].clone()
        self.dtype, self.device = part.dtype, part.device

    def _matrix(self, chunk: Any, row: int = 0) -> Tensor:
        """A chunk of an unknown kind as rows [B, d]."""
        if isinstance(chunk, list | tuple) and len(chunk) == 1 and isinstance(chunk[0], Tensor | np.ndarray):
            chunk = chunk[0] if chunk[0].ndim == 2 else chunk  # what a DataLoader over a TensorDataset yields
        if isinstance(chunk, list | tuple) and chunk and all(isinstance(r, Tensor) for r in chunk):
            if len({r.shape for r in chunk}) > 1:
                raise ValueError(
                    f"{self.op}: {self.name} must give batches of rows alone, all equally wide, got tensors of shapes "
                    f"{sorted({tuple(r.shape) for r in chunk})} at row {row}"
                )
            chunk = torch.stack(tuple(chunk))
        if not isinstance(chunk, Tensor | np.ndarray):
            if isinstance(chunk, dict) or not hasattr(chunk, "__len__"):
                raise TypeError(
                    f"{self.op}: {self.name} must give rows, got a {type(chunk).__name__} at row {row} "
                    "(of a dataset pass one column, dataset['name'])"
                )
            try:
                chunk = np.asarray(chunk)
                if chunk.dtype == object:  # a pandas column of lists or arrays
                    chunk = np.asarray(chunk.tolist())
            except ValueError as error:  # numpy's word for it is "inhomogeneous"
                raise ValueError(
                    f"{self.op}: {self.name} must have rows of one width, got rows of different ones from row {row} on"
                ) from error
        self._check_matrix(chunk, "batches of rows [B, d]", row)
        part = self._to_tensor(chunk)
        if hasattr(self, "_first") and len(part):
            if part.size(1) != self._first.numel():
                raise ValueError(
                    f"{self.op}: {self.name} must have rows of one width, got {self._first.numel()} in row 0 and "
                    f"{part.size(1)} in row {row}"
                )
            if part.dtype != self.dtype or part.device != self.device:
                raise ValueError(
                    f"{self.op}: {self.name} must be of one dtype and on one device, got {self.dtype} on "
                    f"{self.device} in row 0, {part.dtype} on {part.device} in row {row}"
                )
        return part

    def _check_matrix(self, chunk: Tensor | np.ndarray, wanted: str, row: int | None = None) -> None:
        """Refuse what is not a matrix of floating-point numbers."""
        where = "" if row is None else f" at row {row}"
        if isinstance(chunk, Tensor):
            _checks.tensor(self.op, self.name, chunk)
        elif chunk.dtype.kind != "f" or chunk.dtype.itemsize > 8:
            raise TypeError(
                f"{self.op}: {self.name} must be float16, float32 or float64, got a numpy array of {chunk.dtype}{where}"
            )
        if chunk.ndim != 2 or chunk.shape[1] == 0 or (row is None and len(chunk) == 0):
            least = " with at least one row" if row is None else ""
            raise ValueError(f"{self.op}: {self.name} must be {wanted}{least}, got shape {list(chunk.shape)}{where}")

    def _to_tensor(self, chunk: Tensor | np.ndarray) -> Tensor:
        """A chunk as float32, or float64 for float64."""
        if isinstance(chunk, np.ndarray):
            # A copy: in native byte order, aligned, writable, and of these rows alone.
            chunk = torch.from_numpy(
                np.array(chunk, np.float64 if chunk.dtype.itemsize == 8 else np.float32, order="C")
            )
        chunk = chunk.detach()
        return chunk.to(torch.promote_types(chunk.dtype, torch.float32))


def _is_row(x: Any) -> bool:
    """Whether ``x`` holds numbers, and not rows of them."""
    if hasattr(x, "ndim"):
        return bool(x.ndim == 1)
    return isinstance(x, list | tuple) and len(x) > 0 and isinstance(x[0], numbers.Number)
