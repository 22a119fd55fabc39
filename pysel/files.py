"""Features, scores and labels from the files that people have, and selections into the files that they use.

Read: ``.npy`` (memory-mapped), Parquet, Arrow and Feather (with pyarrow), and raw numbers as ``numpy.memmap`` has them.
Written: a folder of ``selection.json`` and ``rows.npy``, and from it Parquet with id and score, DataComp's subset of
uids, and the positions within each shard of a WebDataset. ``rows.npy`` is also what ``datasets.Dataset.select`` takes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pysel import _checks, _inputs

__all__ = ["Selection", "open_matrix", "read_vector", "write_datacomp", "write_parquet", "write_shards"]

_FORMAT = 1  # of a selection's folder
_PIECE = 8192  # rows
_TABLES = (".parquet", ".pq", ".arrow", ".feather")


def open_matrix(
    path: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    dtype: str = "float32",
    dim: int | None = None,
) -> Any:
    """A file of features [N, d], for `pysel.selection.DynamicSelector.from_features`: read in parts as it is asked for.

    Args:
        path: ``.npy``; ``.parquet``, ``.arrow`` or ``.feather``; anything else holds numbers alone, row after row. Or
            several files, whose rows follow each other.
        column: of a table, that with a list of d numbers in each row; default: all of its columns of numbers.
        dtype, dim: of a file of numbers alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such column, or numbers alone and no ``dim``, or they make no rows of ``dim``.
        ImportError: a table, and pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "features.npy", np.eye(3, dtype=np.float32))
        >>> open_matrix(folder / "features.npy").shape
        (3, 3)
    """
    if not isinstance(path, str | Path):
        return _Parts([open_matrix(one, column=column, dtype=dtype, dim=dim) for one in path])
    file = _existing("open_matrix", path)
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False)
    if file.suffix in _TABLES:
        return _Rows(file, column)
    if dim is None:
        raise ValueError(f"open_matrix: dim must be given for {file.name}, a file of numbers alone")
    dim = _checks.in_range("open_matrix", "dim", dim, 1)
    flat = np.memmap(file, dtype, mode="r")
    if flat.size % dim:
        raise ValueError(f"open_matrix: dim must divide the {flat.size} numbers of {file.name}, got {dim}")
    return flat.reshape(-1, dim)


def read_vector(path: str | Path, *, column: str | None = None) -> np.ndarray:
    """A file of scores, labels or ids [N].

    Args:
        path: ``.npy``, ``.parquet``, ``.arrow`` or ``.feather``.
        column: of a table; may be left out if it has but one.

    Raises:
        FileNotFoundError, ValueError, ImportError: as for `open_matrix`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "scores.npy", np.array([0.5, 2.0]))
        >>> read_vector(folder / "scores.npy")
        array([0.5, 2. ])
    """
    file = _existing("read_vector", path)
    if file.suffix == ".npy":
        return np.load(file, allow_pickle=False)
    if file.suffix not in _TABLES:
        raise ValueError(f"read_vector: path must end in .npy, {', '.join(_TABLES)}, got {file.name}")
    names = _schema(file).names
    if column is None and len(names) > 1:
        raise ValueError(f"read_vector: column must be one of {', '.join(names)} of {file.name}, got None")
    name = names[0] if column is None else _column("read_vector", file, names, column)
    return np.concatenate([batch.column(0).to_numpy(zero_copy_only=False) for batch in _batches(file, [name])])


class Selection(NamedTuple):
    """Which samples of a data set were selected, as one folder: selection.json and rows.npy.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "selection"
        >>> Selection(torch.tensor([1, 4]), 6, {"method": "by hand"}).save(folder)
        >>> Selection.load(folder)
        Selection(rows=tensor([1, 4]), num_samples=6, about={'method': 'by hand'})
    """

    rows: Tensor  # int64 [k], ascending
    num_samples: int
    about: dict[str, Any] = {}  # how they were selected: anything that JSON holds  # noqa: RUF012

    def save(self, path: str | Path) -> None:
        """Write the folder; what is there of an older selection is replaced when all is written.

        Raises:
            TypeError, ValueError: ``rows`` are not distinct ascending numbers of ``num_samples`` samples.
        """
        n = _checks.in_range("Selection", "num_samples", self.num_samples, 1)
        rows = _inputs.indices("Selection", "rows", self.rows, n).cpu().sort().values.numpy()
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {"format": _FORMAT, "num_samples": n, "size": len(rows), "digest": _digest(rows), "about": self.about},
            indent=2,
        )
        with (folder / "rows.npy.part").open("wb") as file:
            np.save(file, rows)
        (folder / "selection.json.part").write_text(text + "\n")
        for name in ("rows.npy", "selection.json"):
            (folder / f"{name}.part").replace(folder / name)

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read the folder that `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of another format, or its rows are not those that were saved.
        """
        folder = Path(path)
        saved = json.loads(_existing("Selection.load", folder / "selection.json").read_text())
        if saved.get("format") != _FORMAT:
            raise ValueError(f"Selection.load: path must hold format {_FORMAT}, got {saved.get('format')}")
        rows = np.load(folder / "rows.npy", allow_pickle=False)
        if _digest(rows) != saved["digest"]:
            raise ValueError(
                f"Selection.load: path holds other rows than were saved, {folder / 'rows.npy'} has changed"
            )
        return cls(torch.from_numpy(rows), saved["num_samples"], saved["about"])


def write_parquet(selection: Selection, path: str | Path, *, ids: Any = None, scores: Any = None) -> None:
    """The selected samples as Parquet: ``row``, and ``id`` and ``score`` where given.

    Args:
        selection: which ones.
        path: the file.
        ids, scores: [N], one for each sample of the data set.

    Raises:
        ValueError: not one for each sample.
        ImportError: pyarrow is not installed.
    """
    arrow, parquet = _arrow("pyarrow"), _arrow("pyarrow.parquet")
    rows = selection.rows.numpy()
    columns: dict[str, Any] = {"row": rows}
    for name, values in (("id", ids), ("score", scores)):
        if values is not None:
            columns[name] = _of_all("write_parquet", f"{name}s", values, selection.num_samples)[rows]
    parquet.write_table(arrow.table(columns), path)


def write_datacomp(selection: Selection, path: str | Path, *, uids: Any) -> None:
    """The selected samples as DataComp's resharder takes them: a sorted ``.npy`` of 128-bit uids, two unsigned words.

    Args:
        selection: which ones.
        path: the file.
        uids: [N] strings of 32 hexadecimal digits.

    Raises:
        ValueError: not one for each sample, or one that is no such string.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "subset.npy"
        >>> write_datacomp(Selection(torch.tensor([1]), 2), file, uids=["0" * 32, "0" * 15 + "1" + "0" * 15 + "2"])
        >>> np.load(file)
        array([(1, 2)], dtype=[('f0', '<u8'), ('f1', '<u8')])
    """
    chosen = _of_all("write_datacomp", "uids", uids, selection.num_samples)[selection.rows.numpy()]
    words = np.empty(len(chosen), "u8,u8")
    for at, uid in enumerate(map(str, chosen)):
        if not re.fullmatch("[0-9a-fA-F]{32}", uid):
            raise ValueError(
                f"write_datacomp: uids must be 32 hexadecimal digits, got {uid!r} for sample {int(selection.rows[at])}"
            )
        words[at] = int(uid[:16], 16), int(uid[16:], 16)
    words.sort()
    with Path(path).open("wb") as file:  # np.save would put .npy behind the name
        np.save(file, words)


def write_shards(selection: Selection, path: str | Path, *, index: str | Path) -> None:
    """The selected samples of each shard, as JSON lines of ``{"shard": ..., "positions": [...]}``.

    Args:
        selection: which ones.
        path: the file.
        index: a WebDataset index, JSON whose ``shardlist`` has ``url`` and ``nsamples`` of each shard in order.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: its shards do not hold ``num_samples`` samples together.
    """
    shards = json.loads(_existing("write_shards", index).read_text())["shardlist"]
    ends = np.cumsum([0, *(shard["nsamples"] for shard in shards)])
    if ends[-1] != selection.num_samples:
        raise ValueError(
            f"write_shards: index must be of {selection.num_samples} samples, got shards of {ends[-1]} together"
        )
    rows = selection.rows.numpy()
    cuts = np.searchsorted(rows, ends)
    with Path(path).open("w") as file:
        for shard, start, low, high in zip(shards, ends, cuts, cuts[1:], strict=False):
            positions = (rows[low:high] - start).tolist()
            file.write(json.dumps({"shard": shard["url"], "positions": positions}) + "\n")


def _of_all(op: str, name: str, values: Any, num_samples: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (num_samples,):
        raise ValueError(f"{op}: {name} must be [{num_samples}], one for each sample, got {list(array.shape)}")
    return array


def _digest(rows: np.ndarray) -> str:
    return hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=16).hexdigest()


def _existing(op: str, path: str | Path) -> Path:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{op}: path must be a file, got {file}, which is not there")
    return file


# --- tables ---


def _arrow(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise ImportError("pysel reads and writes tables with pyarrow. Type: pip install pyarrow") from None


def _column(op: str, file: Path, names: list[str], column: str) -> str:
    if column not in names:
        raise ValueError(f"{op}: column must be one of {', '.join(names)} of {file.name}, got {column!r}")
    return column


def _schema(file: Path) -> Any:
    if file.suffix in (".parquet", ".pq"):
        return _arrow("pyarrow.parquet").read_schema(file)
    with _arrow("pyarrow.ipc").open_file(file) as reader:
        return reader.schema


def _batches(file: Path, columns: list[str]) -> Iterator[Any]:
    if file.suffix in (".parquet", ".pq"):
        with _arrow("pyarrow.parquet").ParquetFile(file) as table:
            yield from table.iter_batches(columns=columns)
    else:
        with _arrow("pyarrow").memory_map(str(file)) as source, _arrow("pyarrow.ipc").open_file(source) as reader:
            for at in range(reader.num_record_batches):
                yield reader.get_batch(at).select(columns)


class _Rows:
    """A table's rows of numbers in batches, from the start each time."""

    def __init__(self, file: Path, column: str | None) -> None:
        types = _arrow("pyarrow.types")
        schema = _schema(file)
        if column is not None:
            self._columns = [_column("open_matrix", file, schema.names, column)]
        else:
            self._columns = [f.name for f in schema if types.is_floating(f.type) or types.is_integer(f.type)]
        if not self._columns:
            raise ValueError(
                f"open_matrix: column must be given for {file.name}, which has no columns of numbers: "
                f"one of {', '.join(schema.names)}"
            )
        self._file = file

    def __iter__(self) -> Iterator[np.ndarray]:
        types = _arrow("pyarrow.types")
        for batch in _batches(self._file, self._columns):
            if batch.num_rows == 0:
                continue
            first = batch.column(0)
            if types.is_list(first.type) or types.is_large_list(first.type) or types.is_fixed_size_list(first.type):
                if len(_arrow("pyarrow.compute").list_value_length(first).unique()) > 1:
                    raise ValueError(f"open_matrix: column {self._columns[0]!r} must hold lists of one length")
                flat = first.flatten().to_numpy(zero_copy_only=False)
                yield _floating(flat).reshape(batch.num_rows, -1)
            else:
                columns = [batch.column(at).to_numpy(zero_copy_only=False) for at in range(len(self._columns))]
                yield _floating(np.stack(columns, 1))


class _Parts:
    """The rows of several files, from the start each time; of a long array a piece at a time."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in self._parts:
            if isinstance(part, np.ndarray):
                yield from (part[at : at + _PIECE] for at in range(0, len(part), _PIECE))
            else:
                yield from part


def _floating(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.kind == "f" else x.astype(np.float32)
