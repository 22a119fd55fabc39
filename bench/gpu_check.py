"""Everything that only a GPU can show, in one command.

    make gpu-check                          or, with a Python that has torch, numpy, pytest, pybind11, cmake and ninja:
    make gpu-check PYTHON=python3           (nothing is installed, and no network is needed)
    python -m bench.gpu_check --only tests  the steps whose name matches; the others keep the results they had

It builds the extension for this GPU, measures what bounds any kernel, compares the CUDA kernels with the CPU's, runs
the tests and the benchmarks, and has compute-sanitizer look on. Each step is a process with a limit; when one fails the
next begins. bench/results/<gpu>/ gets gpu_check.json (the table at the end), log.txt (what the steps printed), and
results.json and pictures of the benchmarks.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STEP_LOG = 20_000  # characters of a step that the log keeps: the first quarter and the last three
LOG = 900_000  # characters of the log, the latest
# Pysel's kernels alone are watched, but not by initcheck: to it, what an unwatched kernel of torch's has written would
# be uninitialised.
OURS = ("--kernel-name", "kns=pysel", "--error-exitcode", "1", "--print-limit", "20")
SANITIZER_TOOLS = {"memcheck": OURS, "racecheck": OURS, "initcheck": ("--print-limit", "1000"), "synccheck": OURS}
SMOKE = """\
import torch, pysel
key = pysel.key(0)
x = torch.randn(64, 1000)
assert torch.equal(pysel.gumbel_argmax(x.cuda(), key=key).cpu(), pysel.gumbel_argmax(x, key=key))
assert torch.equal(pysel.topk(x.cuda(), 5)[1].cpu(), pysel.topk(x, 5)[1])
w = x.exp()[0]
assert torch.equal(pysel.weighted_sample(w.cuda(), 50, key=key).cpu(), pysel.weighted_sample(w, 50, key=key))
print("pysel", pysel.build_info()["version"], "from", pysel.__path__[0], "runs on torch", torch.__version__)
"""


@dataclass(frozen=True)
class Step:
    """A process; the last line that it prints says what came of it."""

    name: str
    command: tuple[str, ...]
    limit: float  # seconds
    skip: str = ""  # why it cannot run here
    environment: dict[str, str] = field(default_factory=dict)
    cwd: Path = ROOT
    together: bool = False  # may run beside its neighbours
    skip_status: int = -1  # the exit status by which it says that there was nothing to do
    skip_text: str = "\0"  # what it prints if it cannot run here
    fail_text: str = "\0"  # what it prints if it failed, whatever its exit status


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str  # ok, failed or skipped
    seconds: float
    note: str


def last_line(output: str) -> str:
    lines = [line.strip(" =") for line in output.splitlines() if line.strip(" =")]
    return lines[-1][:200] if lines else ""


def shortened(output: str) -> str:
    if len(output) <= STEP_LOG:
        return output
    head, tail = STEP_LOG // 4, STEP_LOG * 3 // 4
    return f"{output[:head]}\n[... {len(output) - head - tail} characters ...]\n{output[-tail:]}"


def run_step(step: Step, seconds_left: float) -> tuple[Outcome, str]:
    """What came of a step, and what it printed."""
    limit = min(step.limit, seconds_left)
    skip = step.skip or ("no time is left" if limit < 1 else "")
    if skip:
        return Outcome(step.name, "skipped", 0.0, skip), ""
    start = time.monotonic()
    process = subprocess.Popen(
        step.command,
        cwd=step.cwd,
        env=os.environ | step.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its own children end with it
    )
    try:
        output, _ = process.communicate(timeout=limit)
        note = last_line(output)
        status = "ok" if process.returncode == 0 else "failed"
        if process.returncode == step.skip_status or step.skip_text in output:
            status = "skipped"
        elif step.fail_text in output:
            status = "failed"
            note = next(line for line in output.splitlines() if step.fail_text in line).strip(" =")[:200]
        elif process.returncode < 0:
            note = f"{signal.Signals(-process.returncode).name}: {note}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status, note = "failed", f"not done after {limit:.0f} s: {last_line(output)}"
    return Outcome(step.name, status, time.monotonic() - start, note), output


def run_steps(steps: Iterable[Step], seconds: float, workers: int = 4) -> Iterator[tuple[Outcome, str]]:
    """Each step's outcome and output, in order; neighbours that may run together do."""
    end = time.monotonic() + seconds
    for together, group in groupby(steps, key=lambda step: step.together):
        with ThreadPoolExecutor(workers if together else 1) as pool:
            yield from pool.map(lambda step: run_step(step, end - time.monotonic()), group)


def table(outcomes: Iterable[Outcome]) -> str:
    rows = [(o.name, o.status, f"{o.seconds:.0f}", o.note) for o in outcomes]
    header = ("step", "result", "s", "what")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)
    )


def sanitizer() -> str | None:
    """compute-sanitizer, from PATH, the CUDA toolkit or NVIDIA's Python packages."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [f"{home}/bin", f"{home}/compute-sanitizer", "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"]
    nvidia = importlib.util.find_spec("nvidia")
    for package in (nvidia.submodule_search_locations if nvidia else None) or ():
        places += [str(path.parent) for path in Path(package).glob("**/compute-sanitizer") if path.is_file()]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *places]))


def missing(package: str) -> str:
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


def unpacked(wheel: Path, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    zipfile.ZipFile(wheel).extractall(directory)
    return directory


def plan(gpu: dict[str, Any], out: Path, wheel: Path | None = None, tests: Path = ROOT / "tests") -> list[Step]:
    """All steps, in order: what the others need first, what matters less last."""
    python = (sys.executable,)
    module = (*python, "-m")
    build = {"PYSEL_CUDA": "ON", "PYSEL_CUDA_ARCHS": gpu["architecture"]}
    check, no_pytest = sanitizer(), missing("pytest")
    watched = (*module, "tests.identity", "--table", "--device", "cuda")
    return [
        Step("build", (*python, "setup.py", "build_ext", "--inplace"), 400, environment=build),
        Step("import", (*python, "-c", "import pysel; print(pysel.build_info())"), 60),
        Step("ceilings", (*module, "bench.gpu"), 120),
        Step("identity", (*module, "tests.identity", "--device", "cuda", "--seconds", "120"), 200),
        *(
            Step(
                f"tests: {path.stem.removeprefix('test_')}",
                (*module, "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--slow", "-k", "cuda", str(path)),
                400,
                skip=no_pytest,
                environment={"OMP_NUM_THREADS": "4"},
                together=path.stem != "test_cuda",  # which measures the GPU's free memory
                skip_status=5,  # pytest's word for no tests
            )
            for path in sorted(tests.glob("test_*.py"))
        ),
        Step("benchmarks", (*module, "bench.run", "--device", "cuda", "--out", str(out)), 400),
        Step("pictures", (*module, "bench.plot", str(out / "results.json")), 60, skip=missing("matplotlib")),
        Step(
            "wheel",
            (*python, "-c", SMOKE),
            120,
            skip="" if wheel else "none was given (--wheel)",
            cwd=unpacked(wheel, ROOT / "build/wheel") if wheel else ROOT,
        ),
        *(
            Step(
                tool,
                (str(check), "--tool", tool, *options, *watched),
                150,
                skip="" if check else "compute-sanitizer was not found",
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor has bounds of its own
                skip_text="Device not supported",
                fail_text="pysel::",  # a kernel in a report
            )
            for tool, options in SANITIZER_TOOLS.items()
        ),
    ]


def find_gpu() -> dict[str, Any]:
    """The GPU's facts, or the end with one line that says why there are none."""
    try:
        import torch
    except ImportError:
        sys.exit(
            f"pysel: gpu-check needs torch, and {sys.executable} has none. Name another: make gpu-check PYTHON=..."
        )
    if not torch.cuda.is_available():
        sys.exit(f"pysel: gpu-check needs an NVIDIA GPU, and torch {torch.__version__} sees none here")
    from bench import gpu

    return gpu.facts()


def check(
    steps: Iterable[Step], record: dict[str, Any], out: Path, seconds: float, show: Callable[..., None] = print
) -> int:
    """Run steps, write what came of them after each, and return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes = {o["name"]: Outcome(**o) for o in record["steps"]}
    log_file = out / "log.txt"
    log = log_file.read_text() if outcomes and log_file.exists() else ""
    for outcome, output in run_steps(steps, seconds):
        show(f"{outcome.name}: {outcome.status} ({outcome.seconds:.0f} s) {outcome.note}", flush=True)
        outcomes[outcome.name] = outcome
        log = f"{log}===== {outcome.name}\n{shortened(output)}\n"[-LOG:]
        record["steps"] = [asdict(o) for o in outcomes.values()]
        (out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
        log_file.write_text(log)
    show(f"\n{table(outcomes.values())}\n\n{out / 'gpu_check.json'}\n{log_file}")
    return int(any(o.status == "failed" for o in outcomes.values()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="steps whose name matches this expression")
    parser.add_argument("--minutes", type=float, default=20, help="what is not done by then is stopped or left out")
    parser.add_argument("--wheel", type=Path, help="a wheel built elsewhere, to import and try, too")
    parser.add_argument("--out", type=Path, help="where results go (default: bench/results/<gpu>)")
    options = parser.parse_args(arguments)

    facts = find_gpu()
    from bench import gpu
    from bench.run import commit, machine

    out = (options.out or ROOT / "bench/results" / gpu.slug(facts["name"])).resolve()
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine() | {"gpu": facts},
        "python": sys.version.split()[0],
        "torch": importlib.metadata.version("torch"),
        "steps": [],
    }
    kept = out / "gpu_check.json"
    if options.only and kept.exists():
        record["steps"] = json.loads(kept.read_text())["steps"]
    print(f"{facts['name']}, driver {facts['driver']}, torch {record['torch']}, python {record['python']}", flush=True)
    steps = [step for step in plan(facts, out, options.wheel) if re.search(options.only, step.name)]
    return check(steps, record, out, 60 * options.minutes)


if __name__ == "__main__":
    sys.exit(main())
