"""bench/: contenders compute the same thing, the timer times, and results become targets, tables and pictures."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pysel
from bench import floor, report, run, timing
from bench.cases import CASES, CURVES, Case
from bench.cases.case import MEASURES
from bench.timing import peak_extra_memory

LIBRARIES = {"sparsify": "sparsify", "torchrl": "torchrl"}


@pytest.mark.parametrize("case", [*CASES, *CURVES], ids=lambda case: case.name)
def test_contenders_agree_with_pysel(case: Case) -> None:
    setup = case.setup(**case.tiny)
    assert next(iter(setup.contenders)) == "pysel" and ("eager" in setup.contenders or not case.eager)
    assert setup.bytes > 0
    ours = case.comparable(setup.contenders["pysel"]())
    for name, call in setup.contenders.items():
        parts = ("pysel", "compile", "linear alone", "ungrouped", "8 copies")
        if name in parts or find_spec(LIBRARIES.get(name, "torch")) is None:
            continue  # a compiled contender is the eager one; the others do a part of the work, or other work
        if name == "torchrl" and find_spec("torchrl._torchrl") is not None:
            try:
                import torchrl._torchrl  # noqa: F401
            except ImportError:  # then the benchmark compiles it, which takes longer than all tests here
                continue
        theirs = case.comparable(call())
        if isinstance(ours, torch.Tensor) or (isinstance(ours, tuple) and isinstance(ours[0], torch.Tensor)):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        else:
            assert theirs == ours, name


def test_targets_can_be_judged() -> None:
    """Each is against a contender that the case has, or a measure that the report makes."""
    for case in CASES:
        measures = {
            *MEASURES,
            *case.setup(**case.tiny).contenders,
            *(["compile"] * bool(case.eager)),
        }
        assert {target.against for target in case.targets} <= measures, case.name
        assert all(
            target.ratio > 0 and (target.limit > 0) == (target.against in ("memory", "seconds"))
            for target in case.targets
        )
    assert all([t.against for t in c.targets] == ["growth"] for c in CURVES)
    assert all(c.sizes[0] == 10**3 and c.sizes[-1] >= 10**8 for c in CURVES)


def test_timer_takes_turns_and_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0.0, []

    def lasting(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            order.append(name)
            now += seconds

        return call

    def broken() -> None:
        raise ValueError("not for this size\nand more")

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    contenders = {"slow": lasting("slow", 2**-7), "quick": lasting("quick", 2**-17), "broken": broken}
    timings, failed = timing.measure(contenders, 2**-5)
    assert failed == {"broken": "ValueError: not for this size"}
    slow, quick = timings["slow"], timings["quick"]
    assert (slow.calls, slow.seconds) == (1, [2**-7] * 4)
    assert quick.calls == math.ceil(timing.MIN_SAMPLE_SECONDS / 2**-17)
    assert quick.seconds == [2**-17] * math.ceil(2**-5 / (quick.calls * 2**-17))
    assert slow.summary() == {"median": 2**-7, "q1": 2**-7, "q3": 2**-7, "samples": 4, "calls": 1}
    last = order[order.index("quick") + 2 + quick.calls :]
    assert last.count("slow") == 3 and last[0] != last[-1]  # not all of one, then all of the other
    timings, _ = timing.measure({"slow": lasting("slow", 1.0)}, 0.1)
    assert timings["slow"].seconds == [1.0] * 3  # beyond the budget, but too few would tell nothing


def test_peak_memory_counts_what_a_call_touches() -> None:
    peak = peak_extra_memory(lambda: torch.ones(8 << 20))
    if peak is None:
        pytest.skip("Linux does not tell this process its peak memory")
    assert 30 << 20 <= peak < 48 << 20  # the kernel counts in batches


def results() -> dict[str, Any]:
    """Two cases in all configurations and a curve, as bench.run writes them."""

    def record(name: str, config: dict[str, Any], n: int | None = None) -> dict[str, Any]:
        case = next(c for c in (*CASES, *CURVES) if c.name == name)
        ours = (n or 10**7) * 1e-9 / config["threads"]
        timing = {"q1": ours, "q3": ours, "samples": 3, "calls": 1, "memory": 1 << 20}
        return {
            "case": name,
            "family": case.family,
            "eager": case.eager,
            "args": {},
            "n": n,
            "targets": [vars(t) for t in case.targets],
            "config": config,
            "bytes": 4 * 10**7,
            "contenders": {
                "pysel": {**timing, "median": ours},
                "eager": {**timing, "median": 24 * ours},
                **({} if n else {"copy": {**timing, "median": 0.01}, "numpy": {**timing, "median": 3 * ours}}),
            },
            "left_out": {"torchrl": "ImportError: no | torchrl"},
            "same_bits": None,
            "instructions": None if n else 0.001,
        }

    best, other = ({"variant": variant} for variant in ("avx512", "avx2"))
    records = [record(name, best | config) for config in run.CONFIGS for name in ("select", "gumbel_softmax soft")]
    records += [record("select n/3", best | report.JUDGED, n) for n in (10**6, 10**7, 10**8)]
    records += [record(name, other | report.JUDGED) for name in ("select", "gumbel_softmax soft")]
    records[-2]["contenders"]["eager"]["median"] /= 2
    made = {
        "date": "2000-01-01",
        "commit": {"id": "0" * 40, "dirty": True},
        "machine": {"cpu": "a cpu", "cores": 2, "memory": 2**30},
        "versions": {"torch": "2"},
        "records": records,
    }
    return json.loads(json.dumps(made))


def test_targets_are_compared_with_what_was_reached() -> None:
    missing = ("", "not measured")
    late = "NO: latency, 5.0 times the floor of instructions"
    assert report.target_header(results()) == ("case", "target", "avx512", "met", "avx2", "met")
    rows = {(case, target): (*reached,) for case, target, *reached in report.target_rows(results())}
    assert rows["select", ">= 24x (avx2: 12x) torch.topk(sorted=False)"] == ("24x", "yes", "12x", "yes")
    assert rows["select", ">= 1.8x one thread, on two"] == ("2x", "yes", *missing)
    assert rows["gumbel_softmax soft", ">= 25x (avx2: 20x) F.gumbel_softmax"] == ("24x", late, "24x", "yes")
    assert rows["gumbel_softmax soft", ">= 7.5x (avx512) compiled F.gumbel_softmax"] == missing * 2
    assert [row for (case, _), row in rows.items() if case == "select n/3"] == [("1x", "yes", *missing)]


def test_portable_kernels_promise_no_speed_and_avx2_its_own() -> None:
    target = {"against": "eager", "ratio": 25, "avx2": 20, "limit": 0}
    assert [report.ratio_of(target, v) for v in ("avx512", "avx2", "portable", None)] == [25, 20, 0, 25]
    assert report.ratio_of({**target, "avx2": 0}, "avx2") == 0
    assert report.ratio_of({"against": "1 thread", "ratio": 1.8}, "portable") == 1.8  # results of older commits, too


def test_what_binds_is_the_floor_that_a_call_comes_near() -> None:
    record = {"contenders": {"pysel": {"median": 1.0}, "copy": {"median": 0.5}}, "config": {}, "instructions": 0.2}
    assert report.binds({**record, "bytes": 0.8 * timing.COPY_BYTES["cpu"] / 0.5}) == "memory"
    assert report.binds({**record, "bytes": 1e6, "instructions": 0.9}) == "instructions"
    assert report.binds({**record, "bytes": 1e6}) == "latency, 5.0 times the floor of instructions"
    uncounted = report.binds({**record, "bytes": 0.25 * timing.COPY_BYTES["cpu"] / 0.5, "instructions": None})
    assert uncounted == "4.0 times the floor of memory; instructions not counted"
    del record["contenders"]["copy"]
    assert report.binds({**record, "bytes": 1e3}) == "a call's fixed cost"


@pytest.mark.skipif(not floor.possible(), reason="needs Linux on x86-64")
def test_instructions_are_counted(one_thread: None) -> None:
    assert 5e8 < floor.clock() < 1e10
    assert floor._is_of_512_bits(bytes.fromhex("62f17c48"))  # vmovups of a zmm register
    assert not floor._is_of_512_bits(bytes.fromhex("62f17c28")) and not floor._is_of_512_bits(bytes.fromhex("c5fc1007"))
    few, many = (functools.partial(functools.reduce, max, range(n)) for n in (100, 300))
    try:
        base, once, thrice = floor.slots(lambda: None), floor.slots(few), floor.slots(many)
    except RuntimeError as reason:
        pytest.skip(str(reason))
    assert 0 < base < once < thrice
    assert 2 < (thrice - base) / (once - base) < 4


def test_busy_neighbour_ends_with_its_measurement() -> None:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    if not children.exists():
        pytest.skip("Linux does not list this process's children")
    before = children.read_text().split()
    with run.busy_neighbour():
        (one,) = set(children.read_text().split()) - set(before)
    assert one not in children.read_text().split()


def test_the_page_gets_the_tables_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_page(results(), page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| select | >= 24x (avx2: 12x) torch.topk(sorted=False) | 24x | yes | 12x | yes |" in text
    assert "no / torchrl" in text and "numpy: 3x" in text
    assert "| case | avx512 | torch eager | the same, 4 kB pages |" in text
    assert "| case | avx2 | torch eager | libraries |" in text  # what was not measured has no column
    assert "with avx2, huge pages, 2 threads" in text
    assert "| select | 5 ms ±0% | torch.topk(sorted=False): 12x ±0% |" in text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must have"):
        report.write_page(results(), page)


def test_pictures_are_drawn_from_the_results_alone(tmp_path: Path) -> None:
    plot = pytest.importorskip("bench.plot")
    paths = plot.draw(results(), tmp_path)
    assert [p.name for p in paths] == ["speed_ups.png", "copy_shares.png", "curves.png"]
    assert all(p.read_bytes()[:4] == b"\x89PNG" and p.stat().st_size < 200_000 for p in paths)


def test_worker_gives_a_record_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    only = "gumbel_softmax 16 elements"
    options = SimpleNamespace(only=only, contenders=["pysel", "eager"], quick=True, variant=None)
    (job,) = run.plan(options)
    (record,) = [json.loads(json.dumps(r)) for r in run.work({**job, "budget": 0, "min_samples": 1})]
    assert run.steps(job) == 1
    assert set(record["contenders"]) == {"pysel", "eager"} and not record["left_out"]
    assert report.speed_up(record, "eager") is not None and report.copy_share(record) is None


def test_full_run_has_every_configuration_and_variant() -> None:
    jobs = run.plan(SimpleNamespace(only="", contenders=None, quick=False, variant=["avx2", "portable"]))
    configs = [*({**config, "variant": "avx2"} for config in run.CONFIGS), {**report.JUDGED, "variant": "portable"}]
    assert [job["config"] for job in jobs] == configs
    assert jobs[0]["contenders"] is None and jobs[0]["curves"] and not jobs[1]["curves"]
    assert jobs[-1]["contenders"] is None and not jobs[-1]["curves"]


def test_all_of_this_machine_s_variants_are_run_its_own_first() -> None:
    build = pysel.build_info()
    assert run.variants()[0] == build["cpu_variant"] and run.variants()[-1] == "portable"
    jobs = run.plan(SimpleNamespace(only="", contenders=None, quick=False, variant=None))
    assert list(dict.fromkeys(job["config"]["variant"] for job in jobs)) == run.variants()
    (quick,) = run.plan(SimpleNamespace(only="", contenders=None, quick=True, variant=None))
    assert quick["config"]["variant"] == build["cpu_variant"]


@pytest.mark.parametrize("variant", run.variants())
def test_worker_runs_a_variant_and_torch_has_no_more(variant: str) -> None:
    ask = "import pysel, torch; print(pysel.build_info()['cpu_variant'], torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=run.environment({**report.JUDGED, "variant": variant}),
        cwd=run.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    capability = {"portable": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}
    assert done.stdout.split() == [variant, capability[variant]]


def test_no_variant_is_given_what_torch_compiled_for_another() -> None:
    caches = [run.environment({**report.JUDGED, "variant": of})["TORCHINDUCTOR_CACHE_DIR"] for of in run.RIVALS]
    assert len(set(caches)) == len(run.RIVALS)


def test_variant_that_the_machine_lacks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--variant", "avx2,sse9"])
    assert "--variant must be of " in capsys.readouterr().err
