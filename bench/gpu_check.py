"""Everything that only a GPU can show, in parts that each fit a command of ten minutes.

    make gpu-check                          all parts, or with a Python that has what requirements-gpu.txt lists:
    make gpu-check PYTHON=python3           (nothing is installed, and no network is needed)

    python -m bench.gpu_check --part tests --out FOLDER     one part, its results into FOLDER
    python -m bench.gpu_check --only memcheck               the steps whose name matches
    python -m bench.gpu_check --pretend                     on any machine: all parts, without what the steps do

The parts are build, tests, benchmarks and sanitizers, in this order. Each begins with the build, which takes seconds
where it has been done, and ends if that fails. Each step is a process with a limit; when another one fails the next
begins. The folder (default: bench/results/<gpu>) gets gpu_check.json, which is the table at the end, log.txt, what the
steps printed, and results.json and pictures of the benchmarks. Steps that are not asked for keep what came of them at
the same commit, also where the folder is a new one. In a copy without git, say which commit it is, or <commit>-dirty:

    PYSEL_COMMIT=$(git rev-parse HEAD) python -m bench.gpu_check ...
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"  # as in setup.py
KEPT = ROOT / "build/gpu-check"  # where git and an emptied --out do not reach
PARTS = ("build", "tests", "benchmarks", "sanitizers")
PART_MINUTES = 9.3  # of the ten that a command may take
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


PRETENDED = {"name": "a pretended GPU", "architecture": "90", "driver": "none"}


@dataclass(frozen=True)
class Step:
    """A process; the last line that it prints says what came of it."""

    name: str
    command: tuple[str, ...]
    limit: float  # seconds
    part: str = PARTS[0]
    needed: bool = False  # nothing can follow if it fails
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
    print(f"{step.name}: begins, {limit:.0f} s at the most\n", end="", flush=True)  # whole, beside a neighbour's
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
    """Each step's outcome and output, in order, up to a needed one that fails; neighbours that may run together do."""
    end = time.monotonic() + seconds
    for (together, _), group in groupby(steps, key=lambda step: (step.together, step.needed and step.name)):
        members = list(group)
        with ThreadPoolExecutor(workers if together else 1) as pool:
            for step, result in zip(
                members, pool.map(lambda step: run_step(step, end - time.monotonic()), members), strict=True
            ):
                yield result
                if step.needed and result[0].status != "ok":
                    return


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


def needs(source: str) -> str:
    """What a test file imports at once and this Python has not."""
    modules = re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
    return next(filter(None, map(missing, dict.fromkeys(modules))), "")


def build_command() -> tuple[str, ...]:
    """CMake itself: setup.py asks for a setuptools that reads pyproject.toml, which nothing here takes."""
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath)
    cmake, ninja = (shutil.which(tool, path=path) or tool for tool in ("cmake", "ninja"))
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"]
    jobs = ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    commands = (
        [cmake, "--log-level=NOTICE", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options],
        [cmake, "--build", str(BUILD), *jobs],
        [cmake, "--install", str(BUILD), "--prefix", str(ROOT / "pysel")],
    )
    return ("sh", "-c", " && ".join(map(shlex.join, commands)))


def plan(gpu: dict[str, Any], out: Path, wheel: Path | None = None, tests: Path = ROOT / "tests") -> list[Step]:
    """All steps, in order: what the others need first, what matters less last."""
    python = (sys.executable,)
    module = (*python, "-m")
    build = {"PYSEL_CUDA": "ON", "PYSEL_CUDA_ARCHS": gpu["architecture"]}
    check, no_pytest = sanitizer(), missing("pytest")
    pytest = (*module, "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--slow", "-k", "cuda")
    watched = (*module, "tests.identity", "--table", "--device", "cuda")
    sources = {path: path.read_text() for path in sorted(tests.glob("test_*.py"))}
    on_gpu = [path for path, source in sources.items() if re.search(r"\bdevice\b|cuda", source)]
    alone = ("test_cuda", "test_large")  # which measure the GPU's free memory
    return [
        Step("build", build_command(), 420, needed=True, environment=build),
        Step("import", (*python, "-c", "import pysel; print(pysel.build_info())"), 60, needed=True),
        Step("ceilings", (*module, "bench.gpu"), 60),
        Step("identity", (*module, "tests.identity", "--device", "cuda", "--seconds", "60"), 120),
        Step(
            "wheel",
            (*python, "-c", SMOKE),
            60,
            skip="" if wheel else "none was given (--wheel)",
            cwd=unpacked(wheel, ROOT / "build/wheel") if wheel else ROOT,
        ),
        *(
            Step(
                f"tests: {path.stem.removeprefix('test_')}",
                (*pytest, str(path)),
                300,
                "tests",
                skip=no_pytest or needs(sources[path]),
                environment={"OMP_NUM_THREADS": "4", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                together=path.stem not in alone,
                skip_status=5,  # pytest's word for no tests
            )
            for path in sorted(on_gpu, key=lambda path: path.stem not in alone)
        ),
        Step("benchmarks", (*module, "bench.run", "--device", "cuda", "--out", str(out)), 480, "benchmarks"),
        Step(
            "pictures",
            (*module, "bench.plot", str(out / "results.json")),
            60,
            "benchmarks",
            skip=missing("matplotlib"),
        ),
        *(
            Step(
                tool,
                (str(check), "--tool", tool, *options, *watched),
                130,
                "sanitizers",
                skip="" if check else "compute-sanitizer was not found",
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor has bounds of its own
                skip_text="Device not supported",
                fail_text="pysel::",  # a kernel in a report
            )
            for tool, options in SANITIZER_TOOLS.items()
        ),
    ]


def not_installed() -> list[str]:
    """What requirements-gpu.txt lists, and the rivals, as far as this Python has not got them."""
    wanted = [(ROOT / f"requirements-{name}.txt").read_text() for name in ("gpu", "bench")]
    packages = dict.fromkeys(re.findall(r"^([\w-]+)==", "\n".join(wanted), re.MULTILINE))
    return [name for name in packages if not has(name)]


def has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


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


def pretended(step: Step) -> Step:
    """A step that does nothing, wherever it is."""
    return replace(step, command=(sys.executable, "-c", f"print('as if: {step.name}')"), cwd=ROOT)


def check(
    steps: Iterable[Step], record: dict[str, Any], out: Path, seconds: float, show: Callable[..., None] = print
) -> int:
    """Run steps, write what came of them after each, and return the exit status."""
    outcomes = {o["name"]: Outcome(**o) for o in record["steps"]}
    logs = [folder / "log.txt" for folder in (out, KEPT)]
    log = next((file.read_text() for file in logs if outcomes and file.exists()), "")
    for outcome, output in run_steps(steps, seconds):
        show(f"{outcome.name}: {outcome.status} ({outcome.seconds:.0f} s) {outcome.note}", flush=True)
        outcomes[outcome.name] = outcome
        log = f"{log}===== {outcome.name}\n{shortened(output)}\n"[-LOG:]
        record["steps"] = [asdict(o) for o in outcomes.values()]
        for folder in dict.fromkeys((KEPT, out)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
            (folder / "log.txt").write_text(log)
    show(f"\n{table(outcomes.values())}\n\n{out / 'gpu_check.json'}\n{out / 'log.txt'}")
    return int(any(o.status == "failed" for o in outcomes.values()))


def kept_steps(out: Path, commit: Any) -> list[dict[str, Any]]:
    """What came of steps before, at this commit."""
    for folder in (out, KEPT):
        if (folder / "gpu_check.json").exists():
            kept = json.loads((folder / "gpu_check.json").read_text())
            return list(kept["steps"]) if kept["commit"] == commit else []
    return []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="this part alone (default: all)")
    parser.add_argument("--only", default="", metavar="PATTERN", help="steps whose name matches this expression")
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"what is not done by then is stopped or left out (default: {PART_MINUTES} for a part)",
    )
    parser.add_argument("--wheel", type=Path, help="a wheel built elsewhere, to import and try, too")
    parser.add_argument("--out", type=Path, help="where results go (default: bench/results/<gpu>)")
    parser.add_argument("--pretend", action="store_true", help="go through all steps without a GPU, and do none")
    options = parser.parse_args(arguments)

    facts = PRETENDED if options.pretend else find_gpu()
    from bench import gpu
    from bench.run import commit, machine

    default = ROOT / ("build/pretended" if options.pretend else f"bench/results/{gpu.slug(facts['name'])}")
    out = (options.out or default).resolve()
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine() | {"gpu": facts},
        "python": sys.version.split()[0],
        "torch": importlib.metadata.version("torch"),
        "steps": [],
    }
    if options.only or options.part:
        record["steps"] = kept_steps(out, record["commit"])
    print(f"{facts['name']}, driver {facts['driver']}, torch {record['torch']}, python {record['python']}")
    print(f"commit {record['commit']['id']}; not installed: {', '.join(not_installed()) or 'nothing'}", flush=True)
    steps = [
        step
        for step in plan(facts, out, options.wheel)
        if (options.part is None or step.part == options.part or step.needed) and re.search(options.only, step.name)
    ]
    if options.pretend:
        steps = [pretended(step) for step in steps]
    minutes = options.minutes or PART_MINUTES * (1 if options.part else len(PARTS))
    return check(steps, record, out, 60 * minutes)


if __name__ == "__main__":
    sys.exit(main())
