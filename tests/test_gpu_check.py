"""make gpu-check, as far as a machine without a GPU can tell: its steps, its table, and what they run."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pysel
from bench import gpu, gpu_check, report, run
from bench.cases import CUDA_CASES, Case
from bench.gpu_check import Outcome, Step, check, plan, run_step, run_steps, shortened, table
from tests import identity, test_cuda

ROOT = Path(__file__).parent.parent
FACTS = {"name": "NVIDIA H200", "architecture": "90", "driver": "580.1"}


def step(name: str, code: str, limit: float = 30, **more) -> Step:
    return Step(name, (sys.executable, "-c", code), limit, **more)


# --- steps ---


def test_a_step_is_told_by_its_status_and_its_last_line():
    steps = [
        step("good", "print('noise'); print('== 3 passed ==')"),
        step("bad", "print('why'); raise SystemExit(3)"),
        step("nothing to do", "print('no tests ran'); raise SystemExit(5)", skip_status=5),
        step("not here", "print('Device not supported.'); raise SystemExit(1)", skip_text="Device not supported"),
        step("report", "print('== at f::g'); print('at f::h'); print('== 2 errors')", fail_text="f::"),
        step("left out", "raise SystemExit(1)", skip="no tool"),
        step("killed", "import os; os.kill(os.getpid(), 11)"),
    ]
    outcomes = [outcome for outcome, _ in run_steps(steps, 60)]
    assert [(o.name, o.status) for o in outcomes] == [
        ("good", "ok"),
        ("bad", "failed"),
        ("nothing to do", "skipped"),
        ("not here", "skipped"),
        ("report", "failed"),
        ("left out", "skipped"),
        ("killed", "failed"),
    ]
    assert [o.note for o in outcomes] == [
        "3 passed",
        "why",
        "no tests ran",
        "Device not supported.",
        "at f::g",
        "no tool",
        "SIGSEGV: ",
    ]


def test_a_step_ends_at_its_limit_with_its_children(tmp_path, monkeypatch):
    fifo, survived = tmp_path / "fifo", tmp_path / "survived"
    os.mkfifo(fifo)

    class Impatient(subprocess.Popen):
        """The limit is reached as soon as the step's child runs."""

        def communicate(self, input=None, timeout=None):
            if timeout is not None:
                assert timeout == 30 and fifo.read_text() == "here"
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().communicate(input)

    monkeypatch.setattr(subprocess, "Popen", Impatient)
    child = f"open({str(fifo)!r}, 'w').write('here'); import time; time.sleep(100); open({str(survived)!r}, 'w')"
    parent = f"print('begun', flush=True); import subprocess, sys; subprocess.call([sys.executable, '-c', {child!r}])"
    outcome, output = run_step(step("slow", parent), 100)
    assert not survived.exists()  # it holds the pipe that was waited for, and so has gone
    assert (outcome.status, outcome.note) == ("failed", "not done after 30 s: begun")
    assert output == "begun\n"


def test_no_step_begins_when_time_is_up(monkeypatch):
    clock = SimpleNamespace(monotonic=itertools.count(0, 100).__next__)  # asked once, and three times by a step
    monkeypatch.setattr(gpu_check, "time", clock)
    outcomes = [outcome for outcome, _ in run_steps([step("first", ""), step("second", "")], 400.5)]
    assert [(o.status, o.seconds, o.note) for o in outcomes] == [("ok", 100, ""), ("skipped", 0, "no time is left")]


def test_nothing_follows_a_build_that_failed():
    steps = [
        step("before", "print('fine')"),
        step("build", "print('no nvcc'); raise SystemExit(2)", needed=True),
        step("after", "print('not to be')"),
    ]
    outcomes = [outcome for outcome, _ in run_steps(steps, 60)]
    assert [(o.name, o.status) for o in outcomes] == [("before", "ok"), ("build", "failed")]
    steps[1] = step("build", "print('built')", needed=True)
    assert [outcome.status for outcome, _ in run_steps(steps, 60)] == ["ok"] * 3


def test_steps_that_may_run_together_do(tmp_path):
    """Each waits for the others to begin; alone it would wait for ever."""
    code = "\n".join(
        [
            "import pathlib, sys, time",
            "here = pathlib.Path(sys.argv[1])",
            "(here / sys.argv[2]).touch()",
            "while len(list(here.iterdir())) < 3:",
            "    time.sleep(0.01)",
        ]
    )
    steps = [Step(i, (sys.executable, "-c", code, str(tmp_path), i), 120, together=True) for i in "abc"]
    assert [outcome.status for outcome, _ in run_steps(steps, 200)] == ["ok"] * 3


def test_a_failure_is_in_the_table_the_files_and_the_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "KEPT", tmp_path / "kept")
    steps = [step("bad", "print('the reason'); raise SystemExit(1)"), step("good", "print('x' * 10**6); print('fine')")]
    assert check(steps, {"steps": []}, tmp_path, 60) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("bad: begins, 30 s at the most\n")
    assert "bad   failed  " in printed and "the reason" in printed and "good  ok" in printed
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [(s["name"], s["status"], s["note"]) for s in written["steps"]] == [
        ("bad", "failed", "the reason"),
        ("good", "ok", "fine"),
    ]
    log = (tmp_path / "log.txt").read_text()
    assert "===== bad\nthe reason" in log and len(log) < 2 * gpu_check.STEP_LOG

    # a second run of one step keeps what came of the other
    assert check([step("bad", "print('mended')")], written, tmp_path, 60) == 0
    again = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [(s["name"], s["note"]) for s in again["steps"]] == [("bad", "mended"), ("good", "fine")]
    assert (tmp_path / "log.txt").read_text().startswith(log)


def test_table_and_log_are_short():
    rows = table([Outcome("a step", "ok", 12.3, "what"), Outcome("b", "skipped", 0, "")]).splitlines()
    assert rows == ["step    result   s   what", "a step  ok       12  what", "b       skipped  0"]
    assert shortened("x" * 100) == "x" * 100
    assert len(shortened("x" * 10**6)) < gpu_check.STEP_LOG + 100


# --- the plan ---


def test_plan_has_everything_and_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "sanitizer", lambda: None)
    steps = {step.name: step for step in plan(FACTS, tmp_path)}
    assert steps["build"].environment == {"PYSEL_CUDA": "ON", "PYSEL_CUDA_ARCHS": "90"}
    assert [name for name, step in steps.items() if step.needed] == ["build", "import"]
    assert {"import", "ceilings", "identity", "tests: cuda", "tests: gumbel", "benchmarks", "pictures"} <= steps.keys()
    assert steps["memcheck"].skip == "compute-sanitizer was not found"
    assert steps["wheel"].skip
    monkeypatch.setattr(gpu_check, "sanitizer", lambda: "/somewhere/compute-sanitizer")
    steps = {step.name: step for step in plan(FACTS, tmp_path)}
    for tool in gpu_check.SANITIZER_TOOLS:
        assert steps[tool].command[:3] == ("/somewhere/compute-sanitizer", "--tool", tool)
        assert not steps[tool].skip
        # torch's kernels must be watched where what they write counts
        assert ("--kernel-name" in steps[tool].command) == (tool != "initcheck")


def test_each_part_fits_a_command(tmp_path):
    steps = plan(FACTS, tmp_path)
    assert {step.part for step in steps} == set(gpu_check.PARTS)
    for part in gpu_check.PARTS:
        alone = [s.limit for s in steps if s.part == part and not s.together and not s.needed and not s.skip]
        # tests take seconds each; what may take its whole limit must fit with the others
        assert part == "tests" or sum(alone) <= 60 * gpu_check.PART_MINUTES
    assert 60 * gpu_check.PART_MINUTES < 570  # a command has 600 s, and starts and ends in them


def test_a_build_takes_no_setuptools(tmp_path):
    (build,) = [s for s in plan(FACTS, tmp_path) if s.name == "build"]
    assert build.needed
    assert build.command[:2] == ("sh", "-c")
    assert "setup.py" not in build.command[2]
    assert build.command[2].count("cmake") >= 3 and "--install" in build.command[2]


def test_tests_that_import_what_is_missing_are_left_out_by_name(tmp_path):
    (tmp_path / "test_a.py").write_text("import json\nfrom no_such_rival import tree\ndef test(device): ...\n")
    (tmp_path / "test_b.py").write_text("def test(device): ...\n")
    (tmp_path / "test_c.py").write_text("def test(): ...\n")
    skips = {s.name: s.skip for s in plan(FACTS, tmp_path, tests=tmp_path) if s.part == "tests"}
    assert skips == {"tests: a": "no_such_rival is not installed", "tests: b": ""}  # c has nothing for a GPU


def test_a_commit_is_found_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run.commit() == {"id": "unknown", "dirty": False}
    monkeypatch.setenv("PYSEL_COMMIT", "0123abc")
    assert run.commit() == {"id": "0123abc", "dirty": False}
    monkeypatch.setenv("PYSEL_COMMIT", "0123abc-dirty")
    assert run.commit() == {"id": "0123abc", "dirty": True}


def test_wheels_that_it_needs_are_those_that_tests_run_with():
    listed = {
        name: re.findall(r"^([\w-]+==[\w.]+)", (ROOT / f"requirements{name}.txt").read_text(), re.MULTILINE)
        for name in ("", "-dev", "-gpu")
    }
    assert {"numpy", "pytest", "cmake", "ninja"} <= {line.split("==")[0] for line in listed["-gpu"]}
    assert set(listed["-gpu"]) <= {*listed[""], *listed["-dev"]}


def test_all_of_it_is_gone_through_with_a_pretended_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(gpu_check, "sanitizer", lambda: "/somewhere/compute-sanitizer")
    monkeypatch.setenv("PYSEL_COMMIT", "0123abc")
    for number, part in enumerate(gpu_check.PARTS):  # each into a folder of its own, as where that is emptied before
        out = tmp_path / str(number)
        assert gpu_check.main(["--pretend", "--part", part, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a pretended GPU" in printed and "commit 0123abc; not installed: " in printed
    record = json.loads((out / "gpu_check.json").read_text())
    assert record["commit"] == {"id": "0123abc", "dirty": False}
    done = {s["name"]: s["status"] for s in record["steps"]}
    steps = plan(FACTS, out)
    assert done == {s.name: "skipped" if s.skip else "ok" for s in steps}
    assert "===== memcheck\nas if: memcheck" in (out / "log.txt").read_text()

    # what came of another commit is no longer told
    monkeypatch.setenv("PYSEL_COMMIT", "4567def")
    assert gpu_check.main(["--pretend", "--only", "^(build|pictures)$", "--out", str(out)]) == 0
    again = json.loads((out / "gpu_check.json").read_text())
    assert [s["name"] for s in again["steps"]] == ["build", "pictures"]


def test_steps_are_commands_that_are_there(tmp_path):
    for s in plan(FACTS, tmp_path):
        if "-m" in s.command and not s.skip:
            module = s.command[s.command.index("-m") + 1]
            assert importlib.util.find_spec(module), s.name
            arguments = s.command[s.command.index("-m") + 2 :]
            assert not any(a.endswith(".py") and not Path(a).exists() for a in arguments), s.name


def test_sanitizer_is_found_in_the_toolkit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    tool = tmp_path / "cuda/bin/compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.touch(mode=0o755)
    assert gpu_check.sanitizer() == str(tool)


def test_gpus_get_folders():
    assert gpu.slug("NVIDIA H200") == "nvidia-h200"
    assert gpu.slug("NVIDIA GeForce RTX 4090 (Laptop)") == "nvidia-geforce-rtx-4090-laptop"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_in_one_line():
    outcome, output = run_step(Step("none", (sys.executable, "-m", "bench.gpu_check"), 60), 60)
    assert outcome.status == "failed"
    assert len(output.splitlines()) == 1
    assert "needs an NVIDIA GPU" in output


# --- what the steps run ---


def test_identity_finds_the_cpu_and_the_reference_equal():
    wrong = {number: identity.failure(identity.make(0, number, 5000), "cpu") for number in range(300)}
    assert {number: what for number, what in wrong.items() if what} == {}


def test_identity_has_every_op():
    assert {identity.make(0, number, 100).op for number in range(400)} == set(pysel.reference.OPS)


def test_identity_cases_are_a_function_of_seed_and_number():
    assert str(identity.make(0, 7)) == str(identity.make(0, 7))
    assert len({str(identity.make(0, number, 5000)) for number in range(50)}) == 50


@pytest.mark.parametrize("op", ["topk", "gumbel_softmax", "sparse_decode", "usage_step_"])
def test_identity_sees_a_difference(op):
    some = (c for n in range(10**4) if (c := identity.make(0, n, 500)).op == op and c.args[0].numel() > 20)
    case = next(c for c in some if identity.run(getattr(torch.ops.pysel, op), c, "cpu")[0].numel() > 0)
    case = identity.Call(**{**vars(case), "scaled": case.scaled and case.ulps > 0})
    wanted = identity.run(getattr(torch.ops.pysel, op), case, "cpu")
    got = [x.clone() for x in wanted]
    assert identity.difference(case, got, wanted) == ""
    first = got[0].view(-1)
    first[0] = first[0] + 1 if math.isfinite(first[0]) else 0
    assert "1 of " in identity.difference(case, got, wanted)


def test_identity_goes_on_behind_a_lost_process(tmp_path, monkeypatch, capsys):
    # a stand-in for the workers: case 3 ends its process, case 5 differs
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys\n"
        "first = int(sys.argv[sys.argv.index('--first') + 1])\n"
        "for n in range(first, 8):\n"
        "    print(n, 'topk', '', sep='\\t', end='', flush=True)\n"
        "    if n == 3: os._exit(1)\n"
        "    print('differs' if n == 5 else '', flush=True)\n"
    )
    real = identity.subprocess.Popen
    monkeypatch.setattr(
        identity.subprocess, "Popen", lambda command, **more: real([sys.executable, str(worker), *command[3:]], **more)
    )
    assert identity.main(["--device", "cpu", "--cases", "8", "--seconds", "inf"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("topk: no answer") and lines[1].endswith("--case 3")
    assert lines[2:4] == ["topk: differs", f"    {lines[1].strip().rsplit(' ', 1)[0]} 5"]
    assert lines[4].startswith("8 cases in") and lines[4].endswith("2 failed topk 2")


@pytest.mark.parametrize("name", test_cuda.ALL)
def test_calls_of_the_cuda_tests_run(name):
    for flat in (False, True):
        test_cuda.calls(flat=flat, device="cpu")[name](pysel.key(0))


@pytest.mark.parametrize("name", test_cuda.refusals("cpu"))
def test_refusals_of_the_cuda_tests_are_refused(name):
    bad = test_cuda.refusals("cpu")[name]
    with pytest.raises(bad.error, match=bad.argument):
        bad.call(True)
    assert not bool(bad.shows(bad.call(False)))


# --- benchmarks ---


@pytest.mark.parametrize("case", CUDA_CASES, ids=lambda case: case.name)
def test_cuda_cases_compute_what_their_rivals_do(case: Case) -> None:
    setup = case.setup("cpu", **case.tiny)
    assert list(setup.contenders)[:2] == ["pysel", "eager"]
    ours, theirs = (case.comparable(setup.contenders[name]()) for name in ("pysel", "eager"))
    if isinstance(ours, torch.Tensor) or (isinstance(ours, tuple) and isinstance(ours[0], torch.Tensor)):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    else:
        assert theirs == ours


# what a 4.3 TB/s copy would take, in ms, for the cases whose target is a share of it
FLOORS = {
    "gumbel_softmax float32": (0.250, 0.85),
    "gumbel_softmax bfloat16": (0.125, 0.65),
    "gumbel_softmax backward float32": (0.375, 0.85),
    "gumbel_softmax backward bfloat16": (0.187, 0.85),
    "gumbel_argmax float32": (0.125, 0.75),
    "topk": (0.250, 0.625),
    "usage_step_ linear, ascending": (0.39, 0.80),
    "usage_step_ linear, in any order": (0.39, 0.80),
    "weighted_sample index": (0.112, 0.32),
}


def test_cuda_targets_are_those_promised():
    shares = {c.name: t.ratio for c in CUDA_CASES for t in c.targets if t.against == "floor"}
    assert shares == {name: share for name, (_, share) in FLOORS.items()}
    (encode,) = [c for c in CUDA_CASES if c.name == "topk_encode"]
    assert [(t.against, t.ratio, t.limit) for t in encode.targets] == [
        ("linear alone", 1 / 1.1, 0),
        ("memory", 1, 160_000_000),
    ]


@pytest.mark.parametrize("name", FLOORS)
def test_floors_count_the_bytes_that_must_move(name):
    (case,) = [c for c in CUDA_CASES if c.name == name]
    # a hundredth of the data has a hundredth of the bytes
    args = case.args
    less = {"shape": (args["shape"][0] // 64, args["shape"][1])} if "shape" in args else {"n": args["n"] // 64}
    if "k" in args and "n" in args:
        less["k"] = args["k"] // 64
    milliseconds = 64 * case.setup("cpu", **less).bytes / 4.3e12 * 1e3
    assert milliseconds == pytest.approx(FLOORS[name][0], rel=0.03)


def test_results_of_a_gpu_are_told_with_its_name(tmp_path):
    timing = {"median": 0.3e-3, "q1": 0.3e-3, "q3": 0.3e-3, "samples": 3, "calls": 1, "memory": 1 << 20}
    (case,) = [c for c in CUDA_CASES if c.name == "gumbel_softmax float32"]
    record = {
        "case": case.name,
        "family": case.family,
        "eager": case.eager,
        "n": None,
        "targets": [vars(t) for t in case.targets],
        "config": report.ON_GPU,
        "bytes": 2 * 4 * 4096 * 32_768,
        "contenders": {"pysel": timing, "eager": {**timing, "median": 3e-3}, "copy": {**timing, "median": 1e-3}},
        "left_out": {},
        "same_bits": None,
    }
    results = {
        "date": "2000-01-01",
        "commit": {"id": "0" * 40, "dirty": False},
        "machine": {"gpu": FACTS, "cpu": "a cpu", "cores": 2, "memory": 2**30},
        "versions": {"torch": "2"},
        "records": [record],
    }
    text = report.text(results)
    assert text.startswith("NVIDIA H200, driver 580.1; ")
    assert "Copying memory, GB/s read and written: 4295.0 (4295.0 to 4295.0) with the GPU" in text
    assert "two threads" not in text
    assert "0.833x" in text and "NO" in text  # 0.25 of 0.3 ms, where 0.85 was wanted
    plot = pytest.importorskip("bench.plot")
    assert [path.name for path in plot.draw(results, tmp_path)] == ["speed_ups.png", "copy_shares.png"]


def test_benchmarks_go_on_behind_a_lost_worker(monkeypatch):
    def worker(job):
        for case in job["cases"]:
            if case == "b":
                raise SystemExit("error: a worker ended with status 1\nmore\nRuntimeError: illegal address")
            yield {"case": case}

    monkeypatch.setattr(run, "run", worker)
    records = list(run.run_on_gpu({"cases": ["a", "b", "c"], "config": report.ON_GPU}))
    assert [record["case"] for record in records] == ["a", "b", "c"]
    assert records[1]["left_out"] == {"pysel": "error: a worker ended with status 1: RuntimeError: illegal address"}
