"""Registers, shared memory and spills of every CUDA kernel, beside the committed table."""

import re
import shutil

import pytest

from tests import resources
from tests.resources import Resources, Table, differences, kernels_written, parse, read, short, write

REPORT = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_Z1fPi' for 'sm_90'
ptxas info    : Function properties for _Z6helperi
    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _Z1fPi
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 4224 bytes smem
ptxas info    : Compile time = 24.880 ms
ptxas info    : Compiling entry function '_Z1gv' for 'sm_120'
ptxas info    : Function properties for _Z1gv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_kernels_take_what_the_table_says():
    try:
        built = resources.built()
    except LookupError as reason:
        pytest.skip(str(reason))
    if shutil.which("c++filt") is None:
        pytest.skip("needs c++filt, from binutils")
    wanted = read(resources.TABLE.read_text())
    if built.nvcc != wanted.nvcc:
        pytest.skip(f"the table is of nvcc {wanted.nvcc}, the build of {built.nvcc}")
    more = differences(built, wanted)
    assert not more, "\n".join([*more, "If it has to be: python -m tests.resources --write"])


def test_table_covers_all_architectures_and_kernels():
    table = read(resources.TABLE.read_text())
    assert {"80", "90", "100", "120"} <= set(table.architectures)
    assert all(set(by_architecture) == set(table.architectures) for by_architecture in table.figures.values())
    listed = {re.search(r": (\w+)", kernel)[1] for kernel in table.figures}
    assert listed == kernels_written()


def test_report_of_ptxas_is_understood():
    assert parse(REPORT) == [
        ("_Z1fPi", "90", Resources(registers=40, shared=4224, stack=16, spills=20)),
        ("_Z1gv", "120", Resources(registers=8, shared=0, stack=0, spills=0)),
    ]


def test_names_are_short_and_the_same_in_every_build():
    given = "void pysel::(anonymous namespace)::f<float, (pysel::Kind)1, g<int> >(long const*, pysel::Kind)"
    assert short(given) == "f<float, (Kind)1, g<int> >"
    assert short("pysel::(anonymous namespace)::g(pysel::KeyArgument, long)") == "g"


def of(**figures):
    return Table("13.0", ["80", "90"], {"a.cu: f": {"80": Resources(8, 0, 0, 0), "90": Resources(**figures)}})


def test_only_what_costs_more_differs():
    wanted = of(registers=32, shared=1024, stack=0, spills=0)
    assert differences(wanted, wanted) == []
    assert differences(of(registers=36, shared=1024, stack=0, spills=0), wanted) == []
    assert differences(of(registers=20, shared=1024, stack=0, spills=0), wanted) == []
    found = differences(of(registers=37, shared=512, stack=8, spills=4), wanted)
    assert [line.split(", ")[0] for line in found] == [
        "a.cu: f on sm_90: 37 registers",
        "a.cu: f on sm_90: 4 bytes of spills",
        "a.cu: f on sm_90: 512 bytes of shared memory",
        "a.cu: f on sm_90: 8 bytes of stack",
    ]
    assert differences(wanted, Table("13.0", ["80", "90"], {})) == ["a.cu: f: not in the table"]
    assert differences(Table("13.0", ["90"], {}), wanted) == ["a.cu: f: not in the build"]


def test_table_survives_writing_and_reading():
    table = of(registers=32, shared=1024, stack=0, spills=0)
    assert read(write(table)) == table
    assert write(table).splitlines()[-1] == "a.cu: f | 8 32 | 0 1024 | 0 | 0"
