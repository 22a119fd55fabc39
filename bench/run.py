"""Measure pysel against its rivals on this machine.

    python -m bench.run                                          everything, 25 minutes, and more for other variants
    python -m bench.run --variant avx2,portable                  these variants of the CPU kernels alone
    python -m bench.run --quick                                  judged configuration, fewer rivals, 2 minutes
    python -m bench.run --only ^select --contenders pysel,eager  a look at one op, in seconds
    python -m bench.run --device cuda                            the CUDA kernels, on a GPU, 5 minutes
    python -m bench.run --page build/bench/results.json          put its tables into docs/benchmarks.md

Huge pages for torch's own allocations must be asked for before torch is loaded, so each configuration is measured in
a process of its own. All rivals run in the judged one: two threads, huge pages. pysel and the torch op it replaces
also run with default pages, on one thread, and beside a process that keeps a core busy. All that is done for the
variant of the CPU kernels that the machine takes by itself; its other ones are measured in the judged configuration,
and torch there has the same instruction set.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import faulthandler
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import report
from bench.report import JUDGED, ON_GPU, Record

ROOT = Path(__file__).parent.parent
CONFIGS = (JUDGED, {**JUDGED, "huge_pages": False}, {**JUDGED, "threads": 1}, {**JUDGED, "neighbour": True})
# What holds torch to a variant's instruction set: a machine that has no other would run it so.
RIVALS = {
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {},
}
PACKAGES = ("torch", "numpy", "eai-sparsify", "torchrl", "tensordict")
STUCK = 240  # seconds; a case on a GPU that takes longer is given up
LONGEST_POINT = 5.0  # seconds a call; a contender that would take longer leaves its curve
QUICK_SIZES = 10**5  # curves end here in a quick run
CACHED = 1 << 20  # bytes; a case that moves less is not compared with copying memory


def variants() -> list[str]:
    """The variants of the CPU kernels that this machine can run, the one that it takes by itself first."""
    import pysel

    build = pysel.build_info()
    return build["cpu_variants"][build["cpu_variants"].index(build["cpu_variant"]) :: -1]


def plan(options: argparse.Namespace, device: str = "cpu") -> list[Record]:
    """One entry a worker: its configuration, and what to run there."""
    from bench.cases import CASES, CUDA_CASES, CURVES

    pattern = re.compile(options.only)
    cases = [c.name for c in (CASES if device == "cpu" else CUDA_CASES) if pattern.search(c.name)]
    curves = [c.name for c in CURVES if pattern.search(c.name)] if options.contenders is None else []
    job = {
        "contenders": options.contenders,
        "without": ["compile", "numpy", "torchrl"] if options.quick else [],
        "cases": cases,
        "curves": curves,
        "largest": QUICK_SIZES if options.quick else None,
        "memory": ["pysel"] if options.quick else None,  # whose peak is taken, at the cost of a call; None: all
        "budget": 0.2 if options.quick else 1.0,
        "min_samples": 1 if options.quick else 3,
        "floors": not options.quick and options.contenders is None,
        "config": JUDGED,
    }
    if device == "cuda":
        return [{**job, "curves": [], "memory": None, "floors": False, "budget": job["budget"] / 4, "config": ON_GPU}]
    first, *others = options.variant or variants()
    if options.quick or options.contenders is not None:
        chosen = [first, *others] if options.variant else [first]
        return [{**job, "config": {**JUDGED, "variant": variant}} for variant in chosen]
    less = {
        "contenders": ["pysel", "eager", "linear alone"],
        "floors": False,
        "curves": [],
        "memory": [],
        "budget": 0.5,
        "min_samples": 1,
    }
    return [
        {**job, "config": {**JUDGED, "variant": first}},
        *({**job, **less, "config": {**config, "variant": first}} for config in CONFIGS[1:]),
        *({**job, "curves": [], "memory": [], "config": {**JUDGED, "variant": variant}} for variant in others),
    ]


def steps(job: Record) -> int:
    """How many records a worker gives."""
    from bench.cases import CURVES

    return len(job["cases"]) + sum(len(sizes(c.sizes, job)) for c in CURVES if c.name in job["curves"])


def sizes(all_sizes: tuple[int, ...], job: Record) -> list[int]:
    return [n for n in all_sizes if job["largest"] is None or n <= job["largest"]]


def work(job: Record) -> Iterator[Record]:
    """In a worker: measure, a record at a time."""
    import torch

    from bench import floor
    from bench.cases import CASES, CUDA_CASES, CURVES, Case
    from bench.timing import (
        GpuClock,
        gpu_pace,
        measure,
        memory_copy,
        peak_extra_gpu_memory,
        peak_extra_memory,
        seconds_of,
        touch_memory,
    )

    on_gpu = job["config"] == ON_GPU
    device = "cuda" if on_gpu else "cpu"
    if not on_gpu:
        torch.set_num_threads(job["config"]["threads"])
    clock = GpuClock() if on_gpu else seconds_of
    peak_memory = peak_extra_gpu_memory if on_gpu else peak_extra_memory
    copy = memory_copy(device)

    def wanted(name: str) -> bool:
        return name not in job["without"] and (job["contenders"] is None or name in job["contenders"])

    def record(case: Case, n: int | None, absent: dict[str, str], budget: float, min_samples: int) -> Record:
        result: Record = {
            "case": case.name,
            "family": case.family,
            "eager": case.eager,
            "args": {name: str(value) for name, value in case.args.items()},
            "n": n,
            "targets": [vars(target) for target in case.targets],
            "config": job["config"],
            "bytes": None,
            "contenders": {},
            "left_out": dict(absent),
            "same_bits": None,
            "instructions": None,
        }
        try:
            setup = case.setup(device, **({} if n is None else {"n": n}))
        except (MemoryError, RuntimeError) as error:  # torch says RuntimeError where memory is short
            result["left_out"]["pysel"] = str(error).splitlines()[0]
            return result
        absent_here = {*absent, *(["compile"] if n is not None else [])}  # compiling anew at every n takes minutes
        calls = {name: call for name, call in setup.contenders.items() if wanted(name) and name not in absent_here}
        # The copy empties the caches between its rivals' turns. What fits into them is used while it is there.
        small = n is not None or setup.bytes < CACHED
        turns = calls if small else {**calls, "copy": copy}
        if not on_gpu:
            touch_memory()
        timings, failed = measure(turns, budget, min_samples, gpu_pace if on_gpu and small else clock)
        if failed and on_gpu:
            torch.cuda.synchronize()  # raises if the GPU cannot be used any more: the other cases get a new worker
        result["bytes"] = setup.bytes
        result["left_out"].update(failed)
        for name, timing in timings.items():
            asked = job["memory"] is None or name in job["memory"]
            peak = peak_memory(turns[name]) if asked else None
            result["contenders"][name] = {**timing.summary(), "memory": peak}
        if any(target.against == "itself" for target in case.targets) and "pysel" in calls:
            result["same_bits"] = int(same_bits(calls["pysel"](), calls["pysel"]()))
        if job["floors"]:
            try:
                result["instructions"] = floor.seconds(case, setup.bytes, job["config"]["threads"])
            except (OSError, RuntimeError) as error:
                result["left_out"]["instructions"] = str(error)
        return result

    for case in CUDA_CASES if on_gpu else CASES:
        if case.name in job["cases"]:
            if on_gpu:
                faulthandler.dump_traceback_later(STUCK, exit=True)
            yield record(case, None, {}, job["budget"], job["min_samples"])
    for case in CURVES:
        absent: dict[str, str] = {}
        before: Record | None = None
        for n in sizes(case.sizes, job) if case.name in job["curves"] else ():
            for name, timing in (before or {"contenders": {}})["contenders"].items():
                expected = timing["median"] * n / before["n"] if before else 0.0
                if expected > LONGEST_POINT:
                    absent[name] = f"would take about {expected:.0f} s a call"
            before = record(case, n, absent, job["budget"] / 3, 1)
            absent.update(before["left_out"])
            yield before


def same_bits(a: Any, b: Any) -> bool:
    import torch

    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return all(torch.equal(x, y) for x, y in pairs)


def worker(job: str) -> None:
    """Print records, a line each, on what was standard output; libraries that print get standard error."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        settings = json.loads(job)
        with busy_neighbour() if settings["config"].get("neighbour") else contextlib.nullcontext():
            for record in work(settings):
                print(json.dumps(record), file=out, flush=True)


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process that keeps one of the cores busy, as others do on a shared machine."""
    core = min(os.sched_getaffinity(0))
    pin = f"import os; os.sched_setaffinity(0, [{core}])\nwhile os.getppid() == {os.getpid()}: sum(range(10**6))"
    with subprocess.Popen([sys.executable, "-c", pin]) as process:
        try:
            yield
        finally:
            process.kill()


def environment(config: Record) -> dict[str, str]:
    """What a worker finds in its environment."""
    variant = config.get("variant")
    return {
        # how threads wait is left to torch's default: the Makefile's choice is for machines that do other things, too
        **{name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        "THP_MEM_ALLOC_ENABLE": str(int(config.get("huge_pages", False))),
        # where torch looks for ninja
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        **({"PYSEL_CPU_VARIANT": variant, **RIVALS[variant]} if variant else {}),
        # what torch.compile keeps for one instruction set it would take for another
        **({"TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "inductor" / variant)} if variant else {}),
    }


def run(job: Record) -> Iterator[Record]:
    """The records of a worker process."""
    where = environment(job["config"])
    command = [sys.executable, "-m", "bench.run", "--worker", json.dumps(job)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, env=where, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            log.seek(0)
            raise SystemExit(f"error: a worker ended with status {process.returncode}\n{log.read()[-4000:]}")


def run_while_it_lasts(job: Record) -> Iterator[Record]:
    """The records of a worker process, the last one of the case that ended it."""
    done = 0
    try:
        for record in run(job):
            done += 1
            yield record
    except SystemExit as error:
        lines = str(error).strip().splitlines()
        record = {"family": "", "eager": "", "n": None, "targets": [], "contenders": {}, "same_bits": None}
        left_out = {"pysel": f"{lines[0]}: {lines[-1]}"}
        yield {**record, "case": job["cases"][done], "config": job["config"], "left_out": left_out}


def run_on_gpu(job: Record) -> Iterator[Record]:
    """The records of as many workers as it takes: a kernel that breaks its worker does not break the other cases."""
    cases = job["cases"]
    while cases:
        for record in run_while_it_lasts({**job, "cases": cases}):
            cases = cases[1:]
            yield record


def machine(device: str = "cpu") -> Record:
    def read(path: str, pattern: str) -> str:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE) if Path(path).exists() else None
        return found[1] if found else "unknown"

    from bench import gpu

    return {
        **({"gpu": gpu.facts()} if device == "cuda" else {}),
        "cpu": read("/proc/cpuinfo", r"^model name\s*: (.*)$"),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        "system": platform.system() + " " + platform.release(),
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    import pysel

    build = pysel.build_info()
    found = {"pysel": build["version"], "python": platform.python_version(), "compiler": build["compiler"]}
    return found | {package: version(package) for package in PACKAGES}


def commit() -> Record:
    """By PYSEL_COMMIT, <id> or <id>-dirty, where it is set: a copy of the sources may have no git to ask."""
    if told := os.environ.get("PYSEL_COMMIT", ""):
        return {"id": told.removesuffix("-dirty"), "dirty": told.endswith("-dirty")}

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        except OSError:  # no git
            return ""
        return done.stdout.strip()

    return {"id": git("rev-parse", "HEAD") or "unknown", "dirty": bool(git("status", "--porcelain"))}


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str, str], None]]:
    """A bar to be told of each case, or a line a case where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda where, what: print(f"{where}: {what}", file=sys.stderr, flush=True)
        return
    with tqdm(total=total, unit="case") as bar:

        def show(where: str, what: str) -> None:
            bar.set_description_str(where)
            bar.set_postfix_str(what)
            bar.update()

        yield show


def measure_all(options: argparse.Namespace) -> Iterator[Record]:
    """The results so far, after each record."""
    import pysel

    jobs = [job for job in plan(options, options.device) if steps(job)]
    if not jobs:
        raise SystemExit(f"error: no case matches {options.only!r}")
    results: Record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(options.device),
        "versions": versions(),
        "build": pysel.build_info(),
        "quick": options.quick,
        "records": [],
    }
    with progress(sum(map(steps, jobs))) as show:
        for job in jobs:
            for record in run_on_gpu(job) if job["config"] == ON_GPU else run(job):
                results["records"].append(record)
                faster = report.times(report.speed_up(record, "eager"))
                show(report.configuration(job["config"]), f"{record['case']} {faster}")
                yield results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="cases whose name matches this regular expression"
    )
    parser.add_argument(
        "--contenders",
        type=lambda names: names.split(","),
        metavar="A,B",
        help="a quick look: these alone, in the judged configuration; nothing is written",
    )
    parser.add_argument(
        "--variant",
        type=lambda names: names.split(","),
        metavar="A,B",
        help="variants of the CPU kernels, the first in all configurations (default: all that this machine has)",
    )
    parser.add_argument("--quick", action="store_true", help="judged configuration alone, fewer samples and rivals")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose kernels, at whose sizes")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where results.json and pictures go")
    parser.add_argument(
        "--page", type=Path, metavar="RESULTS", help="only write these results' tables into docs/benchmarks.md"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(options.worker)
    if unknown := set(options.variant or ()) - set(variants()):
        parser.error(f"--variant must be of {', '.join(variants())}, got {', '.join(sorted(unknown))}")
    if options.page:
        return report.write_page(json.loads(options.page.read_text()), ROOT / "docs" / "benchmarks.md")

    path = options.out / "results.json"
    for results in measure_all(options):
        if options.contenders is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{report.text(results)}\n")
    if options.contenders is None:
        print(path)
        try:
            from bench import plot
        except ImportError:
            print(f"no pictures without matplotlib; where it is: python -m bench.plot {path}")
        else:
            for picture in plot.draw(results, options.out):
                print(picture)


if __name__ == "__main__":
    main()
