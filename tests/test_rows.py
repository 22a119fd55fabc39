"""pysel/sae/rows.py: every kind of source gives the same rows, and what is wrong with one is said by its name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pysel.sae import Rows

X = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))


class Afresh:
    """Batches of uneven sizes that are made anew at each iteration."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.x.split([4, 0, 9, 1, len(self.x) - 14])


class Column:
    """A length, and slices that are lists of lists, as a Hugging Face dataset's column gives them."""

    def __init__(self, x: Tensor) -> None:
        self.rows = x.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> list[list[float]]:
        return self.rows[rows]


def memmap(folder: Path, x: np.ndarray) -> np.memmap:
    path = folder / "features.npy"
    np.save(path, x)
    array = np.load(path, mmap_mode="r")
    assert isinstance(array, np.memmap)
    return array


def pandas() -> Any:
    return pytest.importorskip("pandas")


SOURCES = {
    "tensor": lambda folder: X,
    "strided tensor": lambda folder: X.mT.contiguous().mT,
    "half tensor": lambda folder: X.half(),
    "bfloat16 tensor": lambda folder: X.bfloat16(),
    "float64 tensor": lambda folder: X.double(),
    "tensor with a graph": lambda folder: X.clone().requires_grad_() * 1,
    "array": lambda folder: X.numpy(),
    "reversed array": lambda folder: X.flip(0).numpy()[::-1],
    "big-endian array": lambda folder: X.numpy().astype(">f4"),
    "half array": lambda folder: X.numpy().astype(np.float16),
    "float64 array": lambda folder: X.double().numpy(),
    "memmap": lambda folder: memmap(folder, X.numpy()),
    "big-endian memmap": lambda folder: memmap(folder, X.numpy().astype(">f8")),
    "column": lambda folder: Column(X),
    "list of tensors": lambda folder: list(X.split(7)),
    "tuple of arrays": lambda folder: tuple(part.numpy() for part in X.split(7)),
    "list of lists of rows": lambda folder: [part.tolist() for part in X.split(7)],
    "list of rows": lambda folder: X.tolist(),
    "list of rows as tensors": lambda folder: list(X),
    "tuple of rows as arrays": lambda folder: tuple(X.numpy()),
    "data frame": lambda folder: pandas().DataFrame(X.numpy(), index=range(100, 123)),
    "column of lists": lambda folder: pandas().Series(X.tolist(), index=range(23, 0, -1)),
    "column of arrays": lambda folder: pandas().Series(list(X.numpy())),
    "iterable": lambda folder: Afresh(X),
    "loader of tensors": lambda folder: DataLoader(X, batch_size=6),
    "loader of a data set": lambda folder: DataLoader(TensorDataset(X), batch_size=6),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_rows(source: str, tmp_path: Path) -> None:
    rows = Rows(SOURCES[source](tmp_path), "f", "x")
    wide = {"column", "float64 tensor", "float64 array", "big-endian memmap", "list of lists of rows"}
    wide |= {"list of rows", "column of lists"}
    expected = X.to(torch.float64 if source in wide else torch.float32)
    if source.startswith(("half", "bfloat16")):
        expected = X.to(torch.bfloat16 if "bfloat16" in source else torch.float16).float()
    assert rows.shape == (23, 5) and len(rows) == 23 and rows.device == torch.device("cpu")
    for _ in range(2):
        for size in (1, 6, 7, 10, 23, 100):
            batches = list(rows.batches(size))
            assert [len(b) for b in batches] == [size] * (23 // size) + [23 % size] * (23 % size > 0)
            assert torch.equal(torch.cat(batches), expected) and not any(b.requires_grad for b in batches)
    for wanted in ([0, 3, 4, 13, 14, 22], [], [22], list(range(23))):
        taken = rows.take(torch.tensor(wanted, dtype=torch.int64))
        assert torch.equal(taken, expected[wanted]) and taken.dtype == expected.dtype


def with_value(value: float, row: int) -> Tensor:
    x = X.clone()
    x[row, 3] = value
    return x


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 13, 22])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: x.numpy(), Column, Afresh])
def test_a_value_that_is_not_finite_is_found_by_its_row(wrap: Any, row: int, value: float) -> None:
    rows = Rows(wrap(with_value(value, row)), "f", "x")
    message = f"f: x must be finite, got {value} in row {row}"
    for size in (1, 6, 100):
        with pytest.raises(ValueError, match=message):
            list(rows.batches(size))
    with pytest.raises(ValueError, match=message):
        rows.take(torch.tensor(sorted({0, 5, row})))
    assert len(rows.take(torch.tensor([5, 6]))) == 2  # what is not read is not judged


def test_sums_beyond_the_largest_number_are_no_fault() -> None:
    x = torch.full((3, 2), 3e38)
    assert torch.equal(torch.cat(list(Rows(x, "f", "x").batches(2))), x)


def test_wide_rows_in_order_are_not_changed_by_the_caller_writing_to_the_array() -> None:
    array = X.numpy().copy()
    batch = Rows(array, "f", "x").take(torch.arange(23))
    array[:] = 0
    assert torch.equal(batch, X)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (torch.ones(3), ValueError, r"f: x must be a matrix \[N, d\] with at least one row, got shape \[3\]"),
        (torch.ones(0, 3), ValueError, r"at least one row, got shape \[0, 3\]"),
        (torch.ones(3, 0), ValueError, r"got shape \[3, 0\]"),
        (torch.ones(3, 3).long(), TypeError, "f: x must be .*int64"),
        (torch.ones(3, 3).to_sparse(), TypeError, "strided"),
        (torch.ones(3, 3, dtype=torch.complex64), TypeError, "complex64"),
        (np.ones((3, 3), int), TypeError, "float16, float32 or float64, got a numpy array of int64"),
        (np.ones((3, 3), np.longdouble), TypeError, "got a numpy array of (longdouble|float128)"),
        (np.ones((3, 3, 3)), ValueError, r"matrix .* got shape \[3, 3, 3\]"),
        (np.array([["a", "b"]]), TypeError, "numpy array of <U1"),
        (3, TypeError, "dataset's column, or batches of rows, got int"),
        ("features.npy", TypeError, "got str"),
        ({"x": X}, TypeError, "got dict"),
        ((part for part in X.split(7)), TypeError, "a generator can be read only once: pass a list of its batches"),
        (map(torch.ones, [3, 3]), TypeError, "a map can be read only once"),
        ([], ValueError, "at least one row, got none"),
        ([1.0, 2.0], TypeError, "f: x must give rows, got a float at row 0"),
        ([[1.0, 2.0], [3.0]], ValueError, "f: x must have rows of one width, got rows of different ones from row 0 on"),
        ([["a"], ["b"]], TypeError, "numpy array of <U1"),
        ([np.ones(2), np.ones(3)], ValueError, "rows of one width"),
        ([X[0], X[0, :3]], ValueError, "batches of rows alone, all equally wide"),
        ([X[:0], X[:0]], ValueError, "at least one row, got none"),
        ([X, X[:, :4]], ValueError, "one width, got 5 in row 0 and 4 in row 23"),
        ([X, X[0]], ValueError, r"batches of rows \[B, d\], got shape \[5\] at row 23"),
        ([X, X.double()], ValueError, "one dtype .* torch.float64 on cpu in row 23"),
        ([X, X.long()], TypeError, "int64"),
        ([[[1.0, 2.0], [3.0]]], ValueError, "one width, got rows of different ones from row 0 on"),
        ([[X[0], X[0, :3]]], ValueError, "batches of rows alone"),
        (Column(X[:0]), ValueError, "at least one row"),
        (DataLoader(TensorDataset(X, X[:, 0]), batch_size=6), ValueError, "batches of rows alone"),
        ([{"x": X}], TypeError, r"got a dict at row 0 \(of a dataset pass one column"),
    ],
)
def test_bad_sources(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rows(source, "f", "x")


def test_a_source_must_stay_the_same() -> None:
    torch.manual_seed(0)
    shuffled = DataLoader(X, batch_size=6, shuffle=True)  # type: ignore[arg-type, var-annotated]
    with pytest.raises(ValueError, match=r"f: x must give the same rows in the same order .* shuffles"):
        list(Rows(shuffled, "f", "x").batches(6))
    for grown, now in ((X, "more"), (X[:3], "11")):
        batches = [X[:8], X[:4]]
        rows = Rows(batches, "f", "x")
        batches[1] = grown
        with pytest.raises(
            ValueError, match=f"f: x must give the same rows each time it is read: 12 at first, now {now}"
        ):
            list(rows.batches(5))


@pytest.mark.parametrize("format", [None, "torch", "numpy"])
def test_a_column_of_a_hugging_face_dataset(format: str | None) -> None:
    """Runs where the library is installed: requirements-bench.txt."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"x": X.numpy(), "y": list(range(23))}).with_format(format)
    rows = Rows(table["x"], "f", "x")
    assert torch.equal(torch.cat(list(rows.batches(7))).float(), X)
    assert torch.equal(rows.take(torch.tensor([3, 20])).float(), X[[3, 20]])
    with pytest.raises(TypeError, match=r"of a dataset pass one column, dataset\['name'\]"):
        Rows(table, "f", "x")


def test_a_row_of_another_width_in_a_column_is_found_when_it_is_read() -> None:
    column = Column(X)
    column.rows[20] = column.rows[20][:3]
    rows = Rows(column, "f", "x")
    with pytest.raises(ValueError, match="one width, got rows of different ones from row 16 on"):
        list(rows.batches(8))


READ_A_LARGE_FILE = """
import resource, sys
import numpy as np, torch
from pysel.sae import Rows
rows = Rows(np.load(sys.argv[1], mmap_mode="r"), "f", "x")
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (64 << 20), -1))
total = sum(batch.sum(dtype=torch.float64) for batch in rows.batches(int(sys.argv[2])))
taken = rows.take(torch.arange(0, len(rows), 1000))
print(len(rows), float(total), float(taken[:, 0].sum()))
"""


def test_a_memmap_is_read_without_being_loaded(tmp_path: Path) -> None:
    """2e6 x 32, 256 MB, in an address space that has room for a quarter of it beyond the file's own mapping."""
    n = 2_000_000
    path = tmp_path / "large.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, 32))
    array[::1000, 0] = 1  # the rest is a hole that takes no time to write
    array.flush()
    del array

    def read(batch_size: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", READ_A_LARGE_FILE, str(path), str(batch_size)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    result = read(8192)
    assert result.returncode == 0, result.stderr
    count, total, taken = map(float, result.stdout.split())
    assert (count, total, taken) == (n, n / 1000, n / 1000)
    assert "MemoryError" in read(n).stderr  # the limit does limit
