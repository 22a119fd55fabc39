"""pysel/samplers/log.py: what is written an epoch, on a clock of the tests' own, and what real writers keep."""

from __future__ import annotations

import json
import logging
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pysel import BatchSampler, SelectionLog, SelectionSampler, WeightedSampler
from pysel.samplers import log, passes
from pysel.selection import DynamicRandom

N = 40


def selection() -> SelectionSampler:
    return SelectionSampler(DynamicRandom(N, 0.5, key=1), key=2)


def weighted() -> WeightedSampler:
    return WeightedSampler([1.0, 2.0, 3.0], 8, key=0)


class Scalars:
    """Keeps what it is given, with the signature of SummaryWriter.add_scalar."""

    def __init__(self) -> None:
        self.written: list[tuple[str, float, int | None]] = []

    def add_scalar(
        self,
        tag: str,
        scalar_value: float,
        global_step: int | None = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        self.written.append((tag, scalar_value, global_step))


class Run:
    """Keeps what it is given, with the signatures of wandb.Run."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Any], int | None]] = []
        self.defined: list[tuple[str, str | None]] = []

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.rows.append((data, step))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still, but where a test moves it."""
    now = [100.0]
    for module in (passes, log):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    return now


class Slow(DynamicRandom):
    """Takes 3 seconds to select, and 1000 to tell about it."""

    clock: list[float]

    def select(self, epoch: int = 0) -> torch.Tensor:
        self.clock[0] += 3.0
        return super().select(epoch)

    def stats(self) -> dict[str, Any]:
        self.clock[0] += 1000.0
        return super().stats()


def test_training_is_the_time_that_selection_leaves(clock: list[float]) -> None:
    selector = Slow(N, 0.5, key=1)
    selector.clock = clock
    sampler = SelectionSampler(selector, key=0)
    len(sampler)  # before there is a log
    records = SelectionLog(sampler, None)
    for epoch, training in enumerate((20.0, 40.0, 80.0)):
        sampler.set_epoch(epoch)
        for _ in sampler:
            clock[0] += training / 20
        clock[0] += 1.0  # validation
        figures = records.epoch_end(epoch)
        selected = 3.0 if epoch else 0.0
        assert figures["training_seconds"] == pytest.approx(training + 1, abs=1e-9)
        assert figures["selection_share"] == pytest.approx(selected / (selected + training + 1))
        assert (figures["selection_seconds"], figures["selection_seconds_total"]) == (3.0, 3.0 * (epoch + 1))
    # the next epoch's subset is picked ahead: the seconds are those of the time in which they were spent
    sampler.set_epoch(3)
    len(sampler)
    clock[0] += 9.0
    assert records.epoch_end(2)["selection_share"] == 0.25
    assert records.epoch_end(2)["selection_share"] == 0.0


@pytest.mark.parametrize("make", [selection, weighted])
def test_scalars(make: Any) -> None:
    sampler, writer = make(), Scalars()
    written = SelectionLog(sampler, writer)
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        list(sampler)
        figures = written.epoch_end(epoch)
        assert figures.keys() == sampler.stats().keys() | {"training_seconds", "selection_share"}
        assert ("selector/realised_ratio" in figures) is (make is selection)
        expected += [(f"selection/{name}", value, epoch) for name, value in figures.items()]
    written.epoch_end(7, step=900)
    assert writer.written[: len(expected)] == expected
    assert ("selection/epoch", 7, 900) in writer.written


def test_rows() -> None:
    sampler, run = selection(), Run()
    written = SelectionLog(sampler, run)
    assert run.defined == [("selection/*", "selection/epoch")]
    list(sampler)
    figures = written.epoch_end(0)
    written.epoch_end(1, step=900)
    (first, no_step), (second, step) = run.rows
    assert first == {f"selection/{name}": value for name, value in figures.items()}
    assert (no_step, step) == (None, 900) and second["selection/epoch"] == 1


def test_of_batches_and_without_the_selector() -> None:
    batches = BatchSampler(selection(), 4)
    records = SelectionLog(batches, None, selector=False)
    list(batches)
    figures = records.epoch_end(0)
    assert figures["num_samples"] == 20 and not any("selector" in name for name in figures)


def test_refusals() -> None:
    for options, message in (
        ({"sampler": [1]}, "SelectionLog: sampler must be a WeightedSampler, .* got list"),
        ({"writer": object()}, "SelectionLog: writer must have add_scalar or log, or be None, got object"),
        ({"writer": logging.getLogger()}, "SelectionLog: writer must .* None, got RootLogger"),
        ({"selector": "yes"}, "SelectionLog: selector must be a bool, got str"),
    ):
        with pytest.raises(TypeError, match=message):
            SelectionLog(**{"sampler": selection(), "writer": None, **options})
    writer = Scalars()
    written = SelectionLog(weighted(), writer)
    for epoch, step, error, message in (
        (-1, None, ValueError, "SelectionLog.epoch_end: epoch must be at least 0, got -1"),
        (0.5, None, TypeError, "SelectionLog.epoch_end: epoch must be an int, got float"),
        (0, "1", TypeError, "SelectionLog.epoch_end: step must be an int, got str"),
    ):
        with pytest.raises(error, match=message):
            written.epoch_end(epoch, step=step)  # type: ignore[arg-type]
    assert writer.written == []


def test_importing_pysel_imports_neither() -> None:
    check = (
        "import sys, pysel; print([m for m in ('wandb', 'tensorboard', 'torch.utils.tensorboard') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- the real writers ---


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What an event file holds, by tag: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    sampler = selection()
    with SummaryWriter(str(tmp_path)) as writer:
        written = SelectionLog(sampler, writer)
        figures = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            list(sampler)
            figures.append(written.epoch_end(epoch))
    found = read(tmp_path)
    assert found == {
        f"selection/{name}": [(epoch, pytest.approx(one[name], rel=1e-6)) for epoch, one in enumerate(figures)]
        for name in figures[0]
    }


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of an offline run: protocol buffers in LevelDB's log format, blocks of 32 KiB after a short header."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        at += left if (left := -at % 32768) < 7 else 0
        _, size, kind = struct.unpack_from("<IHB", data, at)  # checksum, bytes, and whether it is whole
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or a last part
            record = wandb_internal_pb2.Record.FromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, in a loop that counts its own steps: nothing is dropped, of the loop's neither."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    for name, value in (("CONSOLE", "off"), ("SILENT", "true"), ("DISABLE_GIT", "true"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    sampler = selection()
    with wandb.init(mode="offline", project="pysel", dir=str(tmp_path)) as run:
        written = SelectionLog(sampler, run)
        figures = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for batch, _ in enumerate(DataLoader(range(N), 4, sampler=sampler)):
                run.log({"loss": 5 * epoch + batch}, step=5 * epoch + batch)
            figures.append(written.epoch_end(epoch))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 30
    while len(found := list(rows(file))) < 15 and time.monotonic() < end:
        time.sleep(0.02)  # its service may write after finish() has returned
    assert [row["loss"] for row in found if "loss" in row] == list(range(15))
    assert [
        {name: value for name, value in row.items() if name.startswith("selection/")}
        for row in found
        if "selection/epoch" in row
    ] == [{f"selection/{name}": value for name, value in one.items()} for one in figures]


def test_the_pages_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    page = (Path(__file__).parent.parent / "docs" / "frameworks.md").read_text()
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "SelectionLog" in b)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "frameworks.md", "exec"), {})
    found = read(tmp_path / "runs" / "first")
    assert found["selection/num_samples"] == [(0, 300.0), (1, 300.0)]
    assert all(0 < value < 1 for _, value in found["selection/selection_share"])
