"""What each CUDA kernel takes of a multiprocessor, as ptxas said when the extension was built: resources.txt.

python -m tests.resources           how the build differs from the table
python -m tests.resources --write   put the build's figures into the table
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
from dataclasses import astuple, dataclass
from pathlib import Path

import pysel

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
TABLE = Path(__file__).with_suffix(".txt")
SLACK = 4  # registers that a kernel may take beyond its figure

HEADER = """\
# What ptxas of nvcc {nvcc} gives each kernel on the architectures {architectures}: a figure for each, or one for all.
# python -m tests.resources --write makes this table.
# kernel | registers | bytes of shared memory | of stack | of spills, stored and loaded"""


@dataclass(frozen=True)
class Resources:
    registers: int
    shared: int
    stack: int
    spills: int


Figures = dict[str, dict[str, Resources]]  # by kernel, then by architecture


@dataclass(frozen=True)
class Table:
    nvcc: str
    architectures: list[str]
    figures: Figures


def demangled(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def short(name: str) -> str:
    """A demangled kernel without its result, namespaces and parameters."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").replace("pysel::", "")
    depth = 0
    for at, letter in enumerate(name):  # the parameters follow the name and its template arguments
        if letter == "(" and depth == 0:
            return name[:at]
        depth += {"<": 1, ">": -1}.get(letter, 0)
    return name


def parse(report: str) -> list[tuple[str, str, Resources]]:
    """Mangled kernel, architecture and resources, from what `ptxas -v` said."""
    found = []
    for section in report.split("Compiling entry function ")[1:]:
        name, architecture = re.findall(r"'(.+?)' for 'sm_(\w+)'", section)[0]
        # functions that are not inlined have properties, too
        own = section[section.index(f"Function properties for {name}\n") :]
        stack, stores, loads = map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", own)[:3])
        used = re.findall(r"^ptxas info    : (Used .*)$", section, re.MULTILINE)[0]
        shared = re.findall(r"(\d+) bytes smem", used)
        registers = int(re.findall(r"Used (\d+) registers", used)[0])
        found.append((name, architecture, Resources(registers, int(*shared or ["0"]), stack, stores + loads)))
    return found


def built() -> Table:
    """The figures of the last build.

    Raises:
        LookupError: it has no CUDA kernels, or lies elsewhere.
    """
    if not pysel.build_info()["cuda"]:
        raise LookupError("built without CUDA")
    compilers = list(BUILD.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"))
    if not compilers:
        raise LookupError(f"not built in {BUILD.relative_to(ROOT)}")
    newest = max(compilers, key=lambda path: path.stat().st_mtime)
    (nvcc,) = re.findall(r'set\(CMAKE_CUDA_COMPILER_VERSION "(\d+\.\d+)', newest.read_text())
    figures: Figures = {}
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        entries = parse((BUILD / f"CMakeFiles/pysel.dir/csrc/cuda/{source.name}.o.ptxas").read_text())
        for name, (_, architecture, resources) in zip(demangled([e[0] for e in entries]), entries, strict=True):
            by_architecture = figures.setdefault(f"{source.name}: {short(name)}", {})
            assert architecture not in by_architecture, f"two kernels are called {short(name)}"
            by_architecture[architecture] = resources
    return Table(nvcc, pysel.build_info()["cuda_architectures"], figures)


def kernels_written() -> set[str]:
    """Names of the kernels in the sources."""
    bounds = r"(?:__launch_bounds__\([^)]*\)\s*)?"
    kernel = re.compile(rf"__global__\s+{bounds}void\s+{bounds}(\w+)")
    return {name for path in (ROOT / "csrc/cuda").glob("*.cu*") for name in kernel.findall(path.read_text())}


def write(table: Table) -> str:
    lines = [HEADER.format(nvcc=table.nvcc, architectures=" ".join(table.architectures))]
    for kernel, by_architecture in sorted(table.figures.items()):
        columns = zip(*(astuple(by_architecture[a]) for a in table.architectures), strict=True)
        cells = (column if len(set(column)) > 1 else column[:1] for column in columns)
        lines.append(" | ".join([kernel, *(" ".join(map(str, cell)) for cell in cells)]))
    return "\n".join(lines) + "\n"


def read(text: str) -> Table:
    nvcc, listed = re.findall(r"nvcc (\S+) .* architectures ([\w ]+)", text)[0]
    architectures = listed.split()
    figures: Figures = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            kernel, *cells = line.split(" | ")
            columns = [cell.split() if " " in cell else [cell] * len(architectures) for cell in cells]
            rows = (Resources(*map(int, row)) for row in zip(*columns, strict=True))
            figures[kernel] = dict(zip(architectures, rows, strict=True))
    return Table(nvcc, architectures, figures)


def differences(got: Table, wanted: Table) -> list[str]:
    """Lines that say where a build takes more than the table allows, or has other kernels."""
    lines = [f"{kernel}: not in the table" for kernel in got.figures.keys() - wanted.figures.keys()]
    lines += [f"{kernel}: not in the build" for kernel in wanted.figures.keys() - got.figures.keys()]
    for kernel in got.figures.keys() & wanted.figures.keys():
        for architecture in set(got.architectures) & set(wanted.architectures):
            ours, theirs = got.figures[kernel][architecture], wanted.figures[kernel][architecture]
            where = f"{kernel} on sm_{architecture}:"
            if ours.registers > theirs.registers + SLACK:
                lines.append(f"{where} {ours.registers} registers, expected {theirs.registers}")
            if ours.shared != theirs.shared:
                lines.append(f"{where} {ours.shared} bytes of shared memory, expected {theirs.shared}")
            if ours.stack > theirs.stack:
                lines.append(f"{where} {ours.stack} bytes of stack, expected {theirs.stack}")
            if ours.spills > theirs.spills:
                lines.append(f"{where} {ours.spills} bytes of spills, expected {theirs.spills}")
    return sorted(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.resources", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write:
        TABLE.write_text(write(built()))
    else:
        print("\n".join(differences(built(), read(TABLE.read_text()))) or "as the table says")


if __name__ == "__main__":
    main()
