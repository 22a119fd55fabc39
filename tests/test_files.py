"""pysel/files.py: what is read is what was written, by others' libraries where they have the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch

from pysel import files
from pysel.sae import Rows

X = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)


def write_npy(folder: Path) -> Path:
    np.save(folder / "x.npy", X)
    return folder / "x.npy"


def write_fixed_lists(folder: Path) -> Path:
    table = pa.table({"name": ["a"] * 1000, "x": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)})
    pyarrow.parquet.write_table(table, folder / "x.parquet", row_group_size=300)
    return folder / "x.parquet"


def write_lists(folder: Path) -> Path:
    table = pa.table({"x": pa.array(X.tolist(), pa.list_(pa.float32()))})
    pyarrow.feather.write_feather(table, folder / "x.feather", chunksize=170, compression="uncompressed")
    return folder / "x.feather"


def write_arrow(folder: Path) -> Path:
    table = pa.table({name: X[:, at] for at, name in enumerate("abc")} | {"name": ["a"] * 1000})
    with pa.ipc.new_file(folder / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=99)
    return folder / "x.arrow"


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_npy, {}),
        (write_fixed_lists, {"column": "x"}),
        (write_lists, {"column": "x"}),
        (write_arrow, {}),
    ],
)
def test_a_matrix_is_read_twice(tmp_path: Path, write: Callable[[Path], Path], options: dict[str, Any]) -> None:
    rows = Rows(files.open_matrix(write(tmp_path), **options), "docs", "features")
    assert rows.shape == (1000, 3)
    for _ in range(2):
        assert np.array_equal(torch.cat(list(rows.batches(256))).numpy(), X)


def write_parts(folder: Path) -> list[Path]:
    """A table, and arrays that are longer than a piece, of one row, and of none."""
    wide = np.tile(X, (9, 1))
    files = [folder / f"{at}.npy" for at in range(3)]
    for file, part in zip(files, (wide[700:], wide[:0], wide[:1]), strict=True):
        np.save(file, part)
    lists = pa.array(wide[1:700].tolist(), pa.list_(pa.float32()))
    pyarrow.parquet.write_table(pa.table({"x": lists}), folder / "3.parquet", row_group_size=300)
    return [files[2], folder / "3.parquet", files[1], files[0]]


def test_several_files_are_one_matrix(tmp_path: Path) -> None:
    rows = Rows(files.open_matrix(write_parts(tmp_path), column="x"), "docs", "features")
    assert rows.shape == (9000, 3)
    for _ in range(2):
        assert np.array_equal(torch.cat(list(rows.batches(256))).numpy(), np.tile(X, (9, 1)))
    with pytest.raises(FileNotFoundError, match=r"open_matrix: path must be a file, got .*no.npy, which is not there"):
        files.open_matrix([tmp_path / "0.npy", tmp_path / "no.npy"])
    np.save(tmp_path / "wide.npy", np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="features must have rows of one width, got 3 in row 0 and 4 in row 8300"):
        Rows(files.open_matrix([tmp_path / "0.npy", tmp_path / "wide.npy"]), "docs", "features")


def test_raw_numbers(tmp_path: Path) -> None:
    X.astype(np.float16).tofile(tmp_path / "features.dat")
    got = files.open_matrix(tmp_path / "features.dat", dtype="float16", dim=3)
    assert isinstance(got, np.memmap)
    assert np.array_equal(got, X.astype(np.float16))
    with pytest.raises(ValueError, match=r"dim must divide the 3000 numbers of features.dat, got 7"):
        files.open_matrix(tmp_path / "features.dat", dtype="float16", dim=7)
    with pytest.raises(ValueError, match=r"dim must be given for features.dat"):
        files.open_matrix(tmp_path / "features.dat")


def test_vectors(tmp_path: Path) -> None:
    scores = X[:, 0]
    np.save(tmp_path / "s.npy", scores)
    assert np.array_equal(files.read_vector(tmp_path / "s.npy"), scores)
    table = pa.table({"score": scores, "id": [f"{i:032x}" for i in range(1000)]})
    pyarrow.parquet.write_table(table, tmp_path / "s.parquet", row_group_size=64)
    assert np.array_equal(files.read_vector(tmp_path / "s.parquet", column="score"), scores)
    assert files.read_vector(tmp_path / "s.parquet", column="id")[7] == f"{7:032x}"
    with pytest.raises(ValueError, match=r"column must be one of score, id of s.parquet, got None"):
        files.read_vector(tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=r"column must be one of score, id of s.parquet, got 'scores'"):
        files.read_vector(tmp_path / "s.parquet", column="scores")
    with pytest.raises(FileNotFoundError, match=r"path must be a file, got .*none.npy, which is not there"):
        files.read_vector(tmp_path / "none.npy")
    (tmp_path / "s.csv").write_text("1")
    with pytest.raises(ValueError, match=r"path must end in .npy, .parquet, .*got s.csv"):
        files.read_vector(tmp_path / "s.csv")


def test_a_table_of_words_has_no_features(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"name": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(
        ValueError, match=r"column must be given for x.parquet, which has no columns of numbers: one of name"
    ):
        files.open_matrix(tmp_path / "x.parquet")


def test_ragged_lists(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"x": [[1.0, 2.0], [3.0]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="column 'x' must hold lists of one length"):
        Rows(files.open_matrix(tmp_path / "x.parquet", column="x"), "docs", "features")
    pyarrow.parquet.write_table(pa.table({"x": [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="column 'x' must hold lists of one length"):
        Rows(files.open_matrix(tmp_path / "x.parquet", column="x"), "docs", "features")


SELECTION = files.Selection(torch.tensor([1, 4, 5]), 7, {"method": "by hand", "epoch": 3})


def test_a_selection_survives(tmp_path: Path) -> None:
    SELECTION.save(tmp_path / "s")
    rows = np.load(tmp_path / "s" / "rows.npy", mmap_mode="r")
    assert rows.dtype == np.int64
    assert rows.tolist() == [1, 4, 5]
    again = files.Selection.load(tmp_path / "s")
    assert again.rows.tolist() == [1, 4, 5]
    assert again[1:] == SELECTION[1:]
    assert sorted(file.name for file in (tmp_path / "s").iterdir()) == ["rows.npy", "selection.json"]


def test_a_selection_that_was_changed_is_refused(tmp_path: Path) -> None:
    SELECTION.save(tmp_path)
    np.save(tmp_path / "rows.npy", np.array([1, 4, 6]))
    with pytest.raises(ValueError, match="holds other rows than were saved"):
        files.Selection.load(tmp_path)
    (tmp_path / "selection.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="must hold format 1, got 9"):
        files.Selection.load(tmp_path)


@pytest.mark.parametrize("rows", [[1, 1], [7], [-1]])
def test_a_bad_selection_is_not_written(tmp_path: Path, rows: list[int]) -> None:
    SELECTION.save(tmp_path)
    with pytest.raises(ValueError, match="Selection: rows must be"):
        files.Selection(torch.tensor(rows), 7).save(tmp_path)
    assert files.Selection.load(tmp_path).rows.tolist() == [1, 4, 5]


def test_parquet(tmp_path: Path) -> None:
    files.write_parquet(SELECTION, tmp_path / "s.parquet", ids=[f"id{i}" for i in range(7)], scores=np.arange(7) / 2)
    table = pyarrow.parquet.read_table(tmp_path / "s.parquet").to_pydict()
    assert table == {"row": [1, 4, 5], "id": ["id1", "id4", "id5"], "score": [0.5, 2.0, 2.5]}
    with pytest.raises(ValueError, match=r"ids must be \[7\], one for each sample, got \[3\]"):
        files.write_parquet(SELECTION, tmp_path / "s.parquet", ids=["a", "b", "c"])


def test_datacomp(tmp_path: Path) -> None:
    uids = [f"{2**64 * (9 - i) + 5:032x}" for i in range(7)]
    files.write_datacomp(SELECTION, tmp_path / "subset", uids=uids)
    subset = np.load(tmp_path / "subset")
    assert subset.dtype == np.dtype("u8,u8")
    assert subset.tolist() == [(4, 5), (5, 5), (8, 5)]  # sorted
    with pytest.raises(ValueError, match="uids must be 32 hexadecimal digits, got 'x' for sample 1"):
        files.write_datacomp(SELECTION, tmp_path / "subset", uids=["x"] * 7)


def test_shards(tmp_path: Path) -> None:
    shards = [{"url": "0.tar", "nsamples": 2}, {"url": "1.tar", "nsamples": 2}, {"url": "2.tar", "nsamples": 3}]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": shards}))
    files.write_shards(SELECTION, tmp_path / "s.jsonl", index=tmp_path / "index.json")
    assert [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()] == [
        {"shard": "0.tar", "positions": [1]},
        {"shard": "1.tar", "positions": []},
        {"shard": "2.tar", "positions": [0, 1]},
    ]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": shards[:2]}))
    with pytest.raises(ValueError, match="index must be of 7 samples, got shards of 4 together"):
        files.write_shards(SELECTION, tmp_path / "s.jsonl", index=tmp_path / "index.json")
