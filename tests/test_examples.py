"""examples/: each stops at an epoch's end and within one, goes on, and has trained on the global sequence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import pysel

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
TIMM = Path(os.environ.get("PYSEL_TIMM", ROOT / ".venv" / "timm"))  # apart, see the Makefile
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints everything twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how often it looks for reports
}
# PyPI's torchvision has its C++ operators for CUDA only. Beside a torch without, importing it fails as it describes two
# of them, which no loader calls: then they are declared, so that timm itself is what runs.
DECLARED = """
import runpy, sys, torch
if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(example: str, *arguments: object, world: int = 0, prelude: str = "") -> list[str]:
    how = [*TORCHRUN, str(world)] if world else ["-c", prelude] if prelude else []
    return [sys.executable, *how, f"examples/{example}.py", *map(str, arguments)]


def environment(**settings: str) -> dict[str, str]:
    paths = [str(ROOT), settings.pop("path", ""), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, **SETTINGS, **settings, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(example: str, *arguments: object, world: int = 0, prelude: str = "", path: str = "") -> str:
    done = subprocess.run(
        command(example, *arguments, world=world, prelude=prelude),
        cwd=ROOT,
        env=environment(path=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def needs(*frameworks: str) -> None:
    for framework in frameworks:
        if find_spec(framework) is None:
            pytest.skip(f"{framework} is not installed: make examples")


def weighted() -> list[list[int]]:
    return epochs(pysel.WeightedSampler(1 + X[:, 0].abs(), 48, replacement=False, key=0))


def selected() -> list[list[int]]:
    selector = pysel.selection.DynamicSelector.from_features(X, keep_ratio=0.5, epochs=4, num_factors=32, k=4, key=0)
    return epochs(pysel.SelectionSampler(selector, key=0))


def epochs(sampler: pysel.WeightedSampler | pysel.SelectionSampler) -> list[list[int]]:
    sequences = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        sequences.append(list(sampler))
    assert all(len(sequence) == 48 for sequence in sequences)
    assert sequences[0] != sequences[1] != sequences[2]
    return sequences


def trained(output: str, whole_batches: bool) -> dict[int, list[int]]:
    """The global sequence of each epoch: ranks take elements in turn, or whole batches."""
    found: dict[int, dict[int, list[list[int]]]] = {}
    for epoch, rank, batch in re.findall(r"epoch (\d+) rank (\d+): \[([\d, ]+)\]", output):
        found.setdefault(int(epoch), {}).setdefault(int(rank), []).append([int(i) for i in batch.split(",")])
    sequences = {}
    for epoch, shares in sorted(found.items()):
        ranks = [shares[rank] for rank in range(len(shares))]
        assert len({len(share) for share in ranks}) == 1, "all ranks take as many steps"
        steps = [
            list(chain(*step)) if whole_batches else list(chain(*zip(*step, strict=True)))
            for step in zip(*ranks, strict=True)
        ]
        sequences[epoch] = list(chain(*steps))
    return sequences


# example, what it needs, the samples, whether ranks take whole batches, after which steps it stops, the last world.
# A loop of the framework's own also stops at an epoch's end, and twice: tests/test_framework_grid.py has the others.
RESUMED = [
    ("ddp", "torch", weighted, False, (8,), 3),
    ("fsdp2", "torch", selected, False, (8,), 3),
    ("stateful_dataloader", "torchdata", selected, False, (8,), 3),
    ("lightning_trainer", "lightning", weighted, False, (6, 8), 0),  # 0: it starts two processes by itself
    ("lightning_fabric", "lightning", selected, False, (8,), 0),
    ("accelerate_loop", "accelerate", weighted, True, (8,), 3),
    ("hf_trainer", "transformers", selected, True, (6, 8), 2),
]


@pytest.mark.parametrize(
    ("example", "framework", "samples", "whole_batches", "stops", "world"), RESUMED, ids=[row[0] for row in RESUMED]
)
def test_stops_and_goes_on(example, framework, samples, whole_batches, stops, world, tmp_path) -> None:
    needs(framework)
    whole, position = samples(), 0
    for steps in stops:
        found = trained(run(example, tmp_path / "run", steps, world=min(world, 2)), whole_batches)
        wanted = {
            epoch: whole[epoch][max(position - 48 * epoch, 0) : max(8 * steps - 48 * epoch, 0)] for epoch in range(3)
        }
        assert found == {epoch: part for epoch, part in wanted.items() if part}
        position = 8 * steps  # two ranks have batches of four
    found = trained(run(example, tmp_path / "run", world=world), whole_batches)
    assert found.keys() == {1, 2}
    assert found[2] == whole[2]
    rest, filled = found[1][:32], found[1][32:]
    assert rest == whole[1][16:]
    assert len(filled) == (0 if world != 3 else 4 if whole_batches else 1)
    assert set(filled) <= set(whole[1])


def test_ray_train_restarts_what_failed(tmp_path: Path) -> None:
    needs("ray")
    found, whole = trained(run("ray_train", tmp_path / "run"), False), weighted()
    assert found == {0: whole[0], 1: whole[1][:8] + whole[1], 2: whole[2]}, "the 7th step failed and was done again"


def test_timm_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    if not TIMM.exists():
        needs("timm", "torchvision")
    how = {"path": str(TIMM), "prelude": DECLARED}
    whole = selected()
    assert trained(run("timm_loader", tmp_path / "run", 1, **how), True) == {0: whole[0]}
    assert trained(run("timm_loader", tmp_path / "run", **how), True) == {1: whole[1], 2: whole[2]}


# --- features ---


def extract(folder: Path, rank: int, world: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("extract_features", folder),
        cwd=ROOT,
        env=environment(RANK=str(rank), WORLD_SIZE=str(world)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_features_survive_a_kill(tmp_path: Path) -> None:
    """Each rank's file has the bits of an undisturbed one, and a batch at most is computed again."""
    run("extract_features", tmp_path / "whole", world=2)
    whole = np.concatenate([np.load(tmp_path / "whole" / f"features-{rank:05d}.npy") for rank in range(2)])
    assert whole.shape == (100_000, 16)
    part = tmp_path / "killed" / "features-00001.part"
    process = extract(part.parent, 1)
    while not (part.exists() and part.stat().st_size > 1 << 20):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    size = part.stat().st_size
    with part.open("ab") as torn:
        torn.write(b"half a row")
    again = extract(part.parent, 1)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    first = int(re.search(r"rank 1: rows (\d+) to 99999", said)[1]) - 50_000
    assert 0 <= (size - 128) // 64 - first < 256
    assert (part.parent / "features-00001.npy").read_bytes() == (tmp_path / "whole/features-00001.npy").read_bytes()
    assert not part.exists()

    refused = extract(part.parent, 1, world=3)
    assert "features of another number of rows or processes" in refused.communicate(timeout=120)[0]
    assert refused.returncode == 1
    score(tmp_path, sorted((tmp_path / "whole").glob("*.npy")), 100_000)


def test_features_by_ray_are_in_order(tmp_path: Path) -> None:
    needs("ray")
    said = run("extract_features_ray", tmp_path / "features.npy")
    assert "10000 of 10000 rows" in said
    features = torch.from_numpy(np.load(tmp_path / "features.npy"))
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 16))
    with torch.inference_mode():
        wanted = encoder((torch.arange(10_000) / 10_000)[:, None].expand(-1, 64))
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-6)
    score(tmp_path, [tmp_path / "features.npy"], 10_000)


def score(folder: Path, files: list[Path], num_samples: int) -> None:
    """What pysel score makes of them."""
    options = ["--keep-ratio", "0.3", "--epochs", "10", "--num-factors", "32", "--k", "4", "-o", folder / "selector"]
    done = subprocess.run(
        [sys.executable, "-m", "pysel", "score", *map(str, [*files, *options])],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    selector = pysel.selection.DynamicSelector.load(folder / "selector")
    assert selector.num_samples == num_samples


# --- what they have in common ---


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"examples/{path.name} " in text.split('"""')[1]
    assert f"literalinclude}} ../examples/{path.name}\n" in (ROOT / "docs" / "frameworks.md").read_text()
