"""Measure pysel against its rivals on this machine.

    python -m bench.run                                          everything, up to 15 minutes on two cores
    python -m bench.run --quick                                  judged configuration, fewer rivals, 2 minutes
    python -m bench.run --only ^select --contenders pysel,eager  a look at one op, in seconds
    python -m bench.run --readme build/bench/results.json        put its tables into README.md

Huge pages for torch's own allocations must be asked for before torch is loaded, so each configuration is measured in
a process of its own. All rivals run in the judged one: two threads, huge pages. pysel and the torch op it replaces
also run with default pages, and on one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import report
from bench.report import JUDGED, Record

ROOT = Path(__file__).parent.parent
CONFIGS = (JUDGED, {**JUDGED, "huge_pages": False}, {**JUDGED, "threads": 1})
PACKAGES = ("torch", "numpy", "eai-sparsify", "torchrl", "tensordict")
LONGEST_POINT = 5.0  # seconds a call; a contender that would take longer leaves its curve
QUICK_SIZES = 10**5  # curves end here in a quick run
CACHED = 1 << 20  # bytes; a case that moves less is not compared with copying memory


def plan(options: argparse.Namespace) -> list[Record]:
    """One entry a worker: its configuration, and what to run there."""
    from bench.cases import CASES, CURVES

    pattern = re.compile(options.only)
    cases = [c.name for c in CASES if pattern.search(c.name)]
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
        "config": JUDGED,
    }
    if options.quick or options.contenders is not None:
        return [job]
    less = {"contenders": ["pysel", "eager"], "curves": [], "memory": [], "budget": 0.5, "min_samples": 1}
    return [job, *({**job, **less, "config": config} for config in CONFIGS[1:])]


def steps(job: Record) -> int:
    """How many records a worker gives."""
    from bench.cases import CURVES

    return len(job["cases"]) + sum(len(sizes(c.sizes, job)) for c in CURVES if c.name in job["curves"])


def sizes(all_sizes: tuple[int, ...], job: Record) -> list[int]:
    return [n for n in all_sizes if job["largest"] is None or n <= job["largest"]]


def work(job: Record) -> Iterator[Record]:
    """In a worker: measure, a record at a time."""
    import torch

    from bench.cases import CASES, CURVES, Case
    from bench.timing import measure, memory_copy, peak_extra_memory, touch_memory

    torch.set_num_threads(job["config"]["threads"])
    copy = memory_copy()

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
        }
        try:
            setup = case.setup(**({} if n is None else {"n": n}))
        except (MemoryError, RuntimeError) as error:  # torch says RuntimeError where memory is short
            result["left_out"]["pysel"] = str(error).splitlines()[0]
            return result
        absent_here = {*absent, *(["compile"] if n is not None else [])}  # compiling anew at every n takes minutes
        calls = {name: call for name, call in setup.contenders.items() if wanted(name) and name not in absent_here}
        # The copy empties the caches between its rivals' turns. What fits into them is used while it is there.
        small = n is not None or setup.bytes < CACHED
        turns = calls if small else {**calls, "copy": copy}
        touch_memory()
        timings, failed = measure(turns, budget, min_samples)
        result["bytes"] = setup.bytes
        result["left_out"].update(failed)
        for name, timing in timings.items():
            asked = job["memory"] is None or name in job["memory"]
            peak = peak_extra_memory(turns[name]) if asked else None
            result["contenders"][name] = {**timing.summary(), "memory": peak}
        if any(target.against == "itself" for target in case.targets) and "pysel" in calls:
            result["same_bits"] = int(same_bits(calls["pysel"](), calls["pysel"]()))
        return result

    for case in CASES:
        if case.name in job["cases"]:
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
        for record in work(json.loads(job)):
            print(json.dumps(record), file=out, flush=True)


def run(job: Record) -> Iterator[Record]:
    """The records of a worker process."""
    environment = {
        # how threads wait is left to torch's default: the Makefile's choice is for machines that do other things, too
        **{name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        "THP_MEM_ALLOC_ENABLE": str(int(job["config"]["huge_pages"])),
        # where torch looks for ninja
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
    }
    command = [sys.executable, "-m", "bench.run", "--worker", json.dumps(job)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            log.seek(0)
            raise SystemExit(f"error: a worker ended with status {process.returncode}\n{log.read()[-4000:]}")


def machine() -> Record:
    def read(path: str, pattern: str) -> str:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE) if Path(path).exists() else None
        return found[1] if found else "unknown"

    return {
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
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {"id": git("rev-parse", "HEAD") or "unknown", "dirty": bool(git("status", "--porcelain"))}


def measure_all(options: argparse.Namespace) -> Record:
    from tqdm import tqdm

    import pysel

    jobs = [job for job in plan(options) if steps(job)]
    if not jobs:
        raise SystemExit(f"error: no case matches {options.only!r}")
    results: Record = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "build": pysel.build_info(),
        "quick": options.quick,
        "records": [],
    }
    with tqdm(total=sum(map(steps, jobs)), unit="case") as bar:
        for job in jobs:
            pages = "huge pages" if job["config"]["huge_pages"] else "default pages"
            bar.set_description_str(f"{pages}, {job['config']['threads']} threads")
            for record in run(job):
                results["records"].append(record)
                bar.set_postfix_str(f"{record['case']} {report.times(report.speed_up(record, 'eager'))}")
                bar.update()
    return results


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
    parser.add_argument("--quick", action="store_true", help="judged configuration alone, fewer samples and rivals")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where results.json and pictures go")
    parser.add_argument(
        "--readme", type=Path, metavar="RESULTS", help="only write these results' tables into README.md"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(options.worker)
    if options.readme:
        return report.write_readme(json.loads(options.readme.read_text()), ROOT / "README.md")

    results = measure_all(options)
    print(f"\n{report.text(results)}\n")
    if options.contenders is None:
        from bench import plot

        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "results.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        for written in (path, *plot.draw(results, options.out)):
            print(written)


if __name__ == "__main__":
    main()
