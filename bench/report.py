"""Results as text, from what bench.run wrote alone: targets and what was reached, the tables of docs/benchmarks.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cases.case import MEASURES
from bench.timing import COPY_BYTES

Record = dict[str, Any]

# Where targets hold and rivals are compared: for each variant of the CPU kernels, and for results of a GPU.
JUDGED = {"huge_pages": True, "threads": 2}
ON_GPU = {"device": "cuda"}
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def on_gpu(results: Record) -> bool:
    return bool(results["machine"].get("gpu"))


def variants(results: Record) -> list[str | None]:
    """The CPU variants that were measured, the one with all configurations first; of a GPU, none."""
    return list(dict.fromkeys(r["config"].get("variant") for r in results["records"]))


def judged(results: Record) -> Record:
    return ON_GPU if on_gpu(results) else {**JUDGED, "variant": variants(results)[0]}


def find(results: Record, case: str, **changes: Any) -> Record | None:
    """The record of a case in the judged configuration, or with ``changes`` in another."""
    config = {**judged(results), **{name: value for name, value in changes.items() if value is not None}}
    for record in results["records"]:
        if record["case"] == case and record["n"] is None and record["config"] == config:
            return record
    return None


def curve(results: Record, case: str) -> list[Record]:
    """The points of a curve, in the judged configuration, by ascending n."""
    config = judged(results)
    points = [r for r in results["records"] if r["case"] == case and r["n"] is not None and r["config"] == config]
    return sorted(points, key=lambda r: r["n"])


def median(record: Record | None, contender: str = "pysel") -> float | None:
    return record["contenders"].get(contender, {}).get("median") if record else None


def speed_up(record: Record | None, contender: str) -> float | None:
    """A contender's time over pysel's."""
    ours, theirs = median(record), median(record, contender)
    return theirs / ours if ours and theirs else None


def scaling(results: Record, case: str, variant: str | None = None) -> float | None:
    """pysel's time on one thread over that on two."""
    one, two = (median(find(results, case, variant=variant, threads=threads)) for threads in (1, None))
    return one / two if one and two else None


def neighbour(results: Record, case: str, variant: str | None) -> str:
    """How others fare against pysel while another process keeps a core busy."""
    record = find(results, case, variant=variant, neighbour=True)
    rivals = [name for name in (record or {"contenders": {}})["contenders"] if name not in ("pysel", "copy")]
    return ", ".join(f"{name}: {times(speed_up(record, name))}" for name in rivals)


def copy_speed(record: Record) -> float | None:
    """Bytes a second of the copy that took turns with the contenders."""
    copy = median(record, "copy")
    return COPY_BYTES[record["config"].get("device", "cpu")] / copy if copy else None


def copy_share(record: Record) -> float | None:
    """Unavoidable bytes a second, as a share of those of the copy."""
    ours, copy = median(record), copy_speed(record)
    return record["bytes"] / ours / copy if ours and copy else None


def memory_floor(record: Record) -> float | None:
    """Seconds that a copy of the unavoidable bytes would take."""
    speed = copy_speed(record)
    return record["bytes"] / speed if speed else None


def floors(record: Record) -> dict[str, float]:
    """The least that a call takes, by what binds it."""
    found = {"instructions": record.get("instructions"), "memory": memory_floor(record)}
    return {name: least for name, least in found.items() if least}


NEAR = 1.3  # a call that takes no more than this many times its floor is bound by it


def binds(record: Record | None) -> str:
    """What a call waits for."""
    ours = median(record)
    if record is None or ours is None or on_device(record):
        return ""
    if not record["bytes"] or "copy" not in record["contenders"]:
        return "a call's fixed cost"
    least = floors(record)
    name = max(least, key=lambda name: least[name])
    over = ours / least[name]
    if over <= NEAR:
        return name
    if record.get("instructions") is None:
        return f"{over:.1f} times the floor of memory; instructions not counted"
    return f"latency, {over:.1f} times the floor of {name}"


def on_device(record: Record) -> bool:
    return "device" in record["config"]


def ratio_of(target: Record, variant: str | None) -> float:
    """What a target asks of a variant of the CPU kernels, or (None) of a GPU; 0 is nothing."""
    if variant == "portable" and target["against"] not in MEASURES:
        return 0.0
    own = target.get("avx2") if variant == "avx2" else None
    return float(target["ratio"] if own is None else own)


def reached(results: Record, case: str, target: Record, variant: str | None = None) -> float | None:
    """What to compare with the target's ratio; None if it was not measured."""
    record, against = find(results, case, variant=variant), target["against"]
    if against == "1 thread":
        return scaling(results, case, variant)
    if against == "growth":
        if variant != variants(results)[0]:
            return None
        points = {r["n"]: median(r) / r["n"] for r in curve(results, case) if median(r)}
        n = max(points, default=0)
        return points[10**7] / points[n] if n > 10**7 and 10**7 in points else None
    if against == "neighbour":
        return speed_up(find(results, case, variant=variant, neighbour=True), "linear alone")
    if record is None:
        return None
    if against == "seconds":
        ours = median(record)
        return target["limit"] / ours if ours else None
    if against == "memory":
        peak = record["contenders"].get("pysel", {}).get("memory")
        return target["limit"] / max(1, peak) if peak is not None else None
    if against == "itself":
        return record["same_bits"]
    if against == "floor":
        return copy_share(record)
    return speed_up(record, against)


def wanted(record: Record, target: Record) -> str:
    """A target in words."""
    against, ratio = target["against"], f"{target['ratio']:.3g}x"
    if (avx2 := target.get("avx2")) is not None:
        ratio += f" (avx2: {avx2:.3g}x)" if avx2 else " (avx512)"
    if against == "1 thread":
        return f">= {ratio} one thread, on two"
    if against == "growth":
        return f"linear: cost an element at 1e7 >= {ratio} that at the largest n"
    if against == "seconds":
        return f"< {seconds(target['limit'])} (limit over time >= 1)"
    if against == "memory":
        return f"extra memory <= {target['limit'] / 2**20:.0f} MiB (limit over peak >= 1)"
    if against == "itself":
        return "the same bits again (1 = yes)"
    if against == "floor":
        return f">= {target['ratio']:.0%} of the speed of a copy, unavoidable bytes alone"
    if against == "neighbour":
        return f">= {ratio} linear alone, beside a process that keeps a core busy"
    names = {"eager": record["eager"], "compile": f"compiled {record['eager']}"}
    return f">= {ratio} {names.get(against, against)}"


def target_header(results: Record) -> tuple[str, ...]:
    return ("case", "target", *(name for variant in variants(results) for name in (variant or "reached", "met")))


def target_rows(results: Record) -> list[tuple[str, ...]]:
    """Case, target, and for each variant the figure reached and whether it meets that; for each case that was run."""
    rows = []
    for record in {r["case"]: r for r in results["records"]}.values():
        for target in record["targets"]:
            row = [record["case"], wanted(record, target)]
            for variant in variants(results):
                figure, ratio = reached(results, record["case"], target, variant), ratio_of(target, variant)
                if figure is None:
                    met = "not measured"
                elif not ratio:
                    met = "-"
                elif figure >= ratio:
                    met = "yes"
                else:
                    met = ": ".join(filter(None, ("NO", binds(find(results, record["case"], variant=variant)))))
                row += [times(figure), met]
            rows.append(tuple(row))
    return rows


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}x"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return next(f"{value / unit:.3g} {name}" for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")) if value >= unit)


def spread(record: Record, contender: str = "pysel") -> str:
    """Half the distance between the quartiles, in percent of the median."""
    timing = record["contenders"].get(contender)
    return f" ±{50 * (timing['q3'] - timing['q1']) / timing['median']:.0f}%" if timing else ""


def mebibytes(record: Record, contender: str) -> str:
    memory = record["contenders"].get(contender, {}).get("memory")
    return "-" if memory is None else f"{memory / 2**20:.0f}"


def case_rows(results: Record, variant: str | None) -> list[tuple[str, ...]]:
    """One row a case: what it took, and how others fared."""
    rows: list[tuple[str, ...]] = []
    for case in dict.fromkeys(r["case"] for r in results["records"] if r["n"] is None):
        record = find(results, case, variant=variant)
        if record is None:
            continue
        others = [name for name in record["contenders"] if name not in ("pysel", "eager", "compile", "copy")]
        share, least = copy_share(record), floors(record)
        memory = f"{mebibytes(record, 'pysel')} / {mebibytes(record, 'eager')}"
        eager = f"{record['eager']}: {times(speed_up(record, 'eager'))}{spread(record, 'eager')}"
        rows.append(
            (
                case,
                seconds(median(record)) + spread(record),
                eager if record["eager"] else "",
                times(speed_up(find(results, case, variant=variant, huge_pages=False), "eager")),
                times(speed_up(record, "compile")),
                ", ".join(f"{name}: {times(speed_up(record, name))}" for name in others),
                "" if share is None else f"{share:.0%}",
                ", ".join(f"{seconds(value)} {name}" for name, value in least.items()),
                neighbour(results, case, variant),
                times(scaling(results, case, variant)),
                "" if memory == "- / -" else memory,
            )
        )
    return rows


CASE_HEADER = (
    "case",
    "pysel",
    "torch eager",
    "the same, 4 kB pages",
    "torch.compile",
    "libraries",
    "of copy speed",
    "floors",
    "beside a busy neighbour",
    "two threads",
    "extra MiB, pysel / eager",
)


def case_table(results: Record, variant: str | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows, without columns that say nothing; the variant stands above what it took."""
    rows = case_rows(results, variant)
    kept = [i for i in range(len(CASE_HEADER)) if any(row[i] for row in rows)]
    header = tuple(variant if variant and name == "pysel" else name for name in CASE_HEADER)
    return tuple(header[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def aligned(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table for the terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))
    return "\n".join(lines)


def piped(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))


def left_out(results: Record) -> list[str]:
    """Who could not be measured where, and why: once for each reason."""
    where: dict[tuple[str, str], str] = {}
    for record in results["records"]:
        for name, reason in record["left_out"].items():
            at = record["case"] + ("" if record["n"] is None else f" from n = {record['n']:.0e}")
            where.setdefault((f"{name} in {record['case']}", reason), f"{name} in {at}: {reason}")
    return list(where.values())


def configuration(config: Record) -> str:
    if config == ON_GPU:
        return "the GPU"
    pages = "huge pages" if config["huge_pages"] else "default pages"
    beside = ", a busy neighbour" if config.get("neighbour") else ""
    return f"{config['variant']}, {pages}, {config['threads']} threads{beside}"


def copy_speeds(results: Record) -> str:
    """The copy's speed in each configuration: median and extremes over the cases."""
    speeds: dict[str, list[float]] = {}
    for record in results["records"]:
        if speed := copy_speed(record):
            speeds.setdefault(configuration(record["config"]), []).append(speed / 1e9)
    return "Copying memory, GB/s read and written: " + "; ".join(
        f"{statistics.median(s):.1f} ({min(s):.1f} to {max(s):.1f}) with {config}" for config, s in speeds.items()
    )


def provenance(results: Record) -> str:
    machine, versions = results["machine"], results["versions"]
    dirty = ", with local changes" if results["commit"]["dirty"] else ""
    gpu = machine.get("gpu")
    return (
        (f"{gpu['name']}, driver {gpu['driver']}; " if gpu else "")
        + f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; commit {results['commit']['id'][:12]}{dirty}; {results['date']}."
    )


def text(results: Record) -> str:
    """Everything, for the terminal; the targets last."""
    tables, notes = [case_table(results, variant) for variant in variants(results)], left_out(results)
    parts = [provenance(results)]
    if tables[0][1]:
        parts += [copy_speeds(results), *(aligned(*table) for table in tables)]
    if notes:
        parts.append("\n".join(("Left out:", *notes)))
    return "\n\n".join([*parts, aligned(target_header(results), target_rows(results))])


def markdown(results: Record) -> str:
    """Everything, for docs/benchmarks.md; the targets first."""
    notes = [f"- {note.replace('|', '/')}" for note in left_out(results)]
    where = "events on the GPU" if on_gpu(results) else "alternating calls, on two threads and huge pages"
    rivals = (
        "" if on_gpu(results) else " Where a variant is not the machine's own, torch is held to its instructions, too."
    )
    parts = [
        f"{provenance(results)} {copy_speeds(results)}.",
        piped(target_header(results), target_rows(results)),
        f"Speed-ups are a rival's median time over pysel's, in the same process with {where}; "
        f"± is half the distance between the quartiles.{rivals}",
        *(piped(*case_table(results, variant)) for variant in variants(results)),
    ]
    if notes:
        parts += ["Left out:", "\n".join(notes)]
    return "\n\n".join(parts)


def write_page(results: Record, page: Path) -> None:
    """Put the table between the markers."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page.name} must have {BEGIN} and {END}, got neither or one")
    section = f"{BEGIN}\n{markdown(results)}\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: section, text, flags=re.DOTALL))
