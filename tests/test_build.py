"""The binary: what it says of itself, what it leans on, and how its build says that something is missing."""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import pysel
from pysel._library import FILE

ROOT = Path(__file__).parent.parent
INFO = pysel.build_info()
ON_X86 = platform.machine() == "x86_64"


def output(*command, folder=ROOT, **environment):
    """What the command printed, on either stream, and its exit status."""
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout, done.returncode


def readelf(*options):
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf, from binutils")
    return output("readelf", "--wide", *options, FILE)[0]


# --- build_info ---


def test_build_info_tells_version_target_and_compiler():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert INFO["version"] == declared[1]
    assert f"\nversion: {declared[1]}\n" in (ROOT / "CITATION.cff").read_text()
    assert INFO["torch_target"] == "2.11"
    assert re.fullmatch(r"(gcc|clang) \d+\..+", INFO["compiler"])


def test_build_info_tells_cpu_variants():
    assert INFO["cpu_variants"] == (["portable", "avx2", "avx512"] if ON_X86 else ["portable"])
    flags = set(
        re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split() if ON_X86 else []
    )
    best = "avx2" if {"avx2", "fma", "bmi2", "f16c"} <= flags else "portable"
    if best == "avx2" and {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        best = "avx512"
    assert INFO["cpu_variant"] == os.environ.get("PYSEL_CPU_VARIANT", best)


def test_build_info_tells_cuda():
    assert INFO["cuda"] is bool(INFO["cuda_architectures"])
    assert re.fullmatch(r"\d+\.\d+" if INFO["cuda"] else "", INFO["cuda_version"])
    assert all(re.fullmatch(r"\d+[af]?", architecture) for architecture in INFO["cuda_architectures"])


def test_every_instruction_set_that_a_variant_is_compiled_for_is_asked_for():
    # by GCC's pragma and by clang's; prefer-vector-width is none
    targets = re.findall(r'target\("(avx.+?)"', (ROOT / "csrc/cpu/each_variant.h").read_text())
    compiled = [set(target.split(",")) - {"prefer-vector-width=512"} for target in targets]
    assert len(compiled) == 4
    choice = (ROOT / "csrc/cpu/variant.cpp").read_text().split("case Variant::")[1:]
    asked = {case.split(":")[0]: set(re.findall(r'supports(?:\("|_)(\w+)', case)) for case in choice}
    asked["avx512"] |= asked["avx2"]
    assert compiled == [asked["avx2"], asked["avx2"], asked["avx512"], asked["avx512"]]


ASK_VARIANT = "import pysel; print(pysel.build_info()['cpu_variant'])"


# The list goes from least to most demanding, so this machine runs everything up to the variant it chose.
@pytest.mark.parametrize("variant", INFO["cpu_variants"][: INFO["cpu_variants"].index(INFO["cpu_variant"]) + 1])
def test_forced_variant_is_the_one_used(variant):
    printed, status = output(sys.executable, "-c", ASK_VARIANT, PYSEL_CPU_VARIANT=variant)
    assert (printed.split(), status) == ([variant], 0)


def test_unknown_variant_is_refused_by_name():
    printed, status = output(sys.executable, "-c", ASK_VARIANT, PYSEL_CPU_VARIANT="sse9")
    assert status != 0
    assert "ValueError: PYSEL_CPU_VARIANT" in printed
    assert "sse9" in printed


# --- the binary ---


def test_links_only_what_every_torch_has():
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("--dynamic")))
    # libtorch.so is what brings libtorch_cuda.so, and the current stream, where torch has them.
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    system = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1"}
    loader = {name for name in needed if name.startswith("ld-linux")}
    assert needed - system - loader == {"libtorch.so", "libtorch_cpu.so"}


def test_looks_for_torch_beside_itself_alone():
    # Not where the builder has it: on another machine anyone might own that path. `import torch` has loaded it by then.
    paths = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", readelf("--dynamic"))
    assert paths == ["$ORIGIN/../../torch/lib"]


def test_every_symbol_resolves():
    if shutil.which("ldd") is None:
        pytest.skip("needs ldd")
    (torch_folder,) = find_spec("torch").submodule_search_locations
    printed, _ = output("ldd", "-r", FILE, LD_LIBRARY_PATH=f"{torch_folder}/lib")
    assert re.findall(r"undefined symbol: (\w+)", printed) == []


def test_only_the_cuda_stream_and_what_failed_may_be_missing_from_torch():
    weak = re.findall(r" WEAK +DEFAULT +UND ((?:aoti_)?torch_\w+)", readelf("--dyn-syms"))
    stream = ["aoti_torch_get_current_cuda_stream"] if INFO["cuda"] else []
    assert sorted(weak) == [*stream, "torch_exception_get_what_without_backtrace"]


def test_exports_nothing_of_its_own_and_takes_nothing_of_python():
    symbols = re.findall(r" (?:GLOBAL|WEAK|UNIQUE) +DEFAULT +(\w+) (\w+)", readelf("--dyn-syms"))
    assert [name for where, name in symbols if where != "UND" and "pysel" in name] == []
    assert [name for _, name in symbols if re.match(r"_?Py", name)] == []  # so that one wheel serves every Python


@functools.cache
def functions():
    """Name and (address, instruction, operands)s of every function of the binary."""
    if not ON_X86 or shutil.which("objdump") is None:
        pytest.skip("needs x86-64 and objdump, from binutils")
    printed, _ = output("objdump", "--disassemble", "--demangle", "--no-show-raw-insn", FILE)
    found = []
    for line in printed.splitlines():
        if line.endswith(">:"):
            found.append((line.split(" ", 1)[1], []))
        elif instruction := re.match(r" *([0-9a-f]+):\t(\S+) *(.*)", line):
            found[-1][1].append((int(instruction[1], 16), instruction[2], instruction[3]))
    return found


def test_wide_instructions_stay_in_their_variants():
    # A function shared by the variants, such as one from the standard library, is linked once for all of them. Were it
    # compiled for AVX, older machines would die in it.
    wide = {name for name, code in functions() for _, _, operands in code if re.search(r"%[yz]mm\d", operands)}
    assert any("avx2::" in name for name in wide)
    assert [name for name in wide if "avx2::" not in name and "avx512::" not in name] == []


def loops(code):
    """The (instruction, operands)s of loops that hold no other loop."""
    spans = set()
    for address, instruction, operands in code:
        target = re.match(r"([0-9a-f]+)\b", operands) if instruction.startswith("j") else None
        if target and code[0][0] <= int(target[1], 16) <= address:
            spans.add((int(target[1], 16), address))
    for first, last in spans:
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in spans):
            yield [(instruction, operands) for address, instruction, operands in code if first <= address <= last]


def arithmetic(loop):
    """The floating-point instructions of a loop and the registers that they are for, as in {"max ps ymm"}."""
    found = set()
    for instruction, operands in loop:
        kind = re.fullmatch(r"v?(max|min|add|sub|mul|div|fn?m(?=add|sub)|cmp|u?comi|cvt)\w*?([ps][sd])", instruction)
        registers = re.findall(r"%([xyz]mm)\d", operands)
        if kind:
            found.add(f"{kind[1]} {kind[2]} {max(registers)}")
        elif registers and re.search(r"\(%r[bs]p\)", operands):
            found.add("stack")
    return found


# What the main loop of a reduction over floats does, and over doubles.
REDUCTIONS = {
    "summarise<{0}>": (["max ps", "cmp ps"], ["max pd", "cmp pd"]),
    "largest<{0}, {0}>": (["max ps"], ["max pd"]),
    "dot<{0}, {0}>": (["mul ps", "add ps"], ["mul pd", "add pd"]),
    "dot_and_add<{0}, {0}>": (["mul ps", "add ps"], ["mul pd", "add pd"]),
    "exponentiate<{0}>": (["cvt pd", "add pd"], ["add pd", "sub pd"]),  # its sum
}


@pytest.mark.parametrize("variant, register", [("portable", "xmm"), ("avx2", "ymm"), ("avx512", "zmm")])
@pytest.mark.parametrize("double", [False, True], ids=["float", "double"])
@pytest.mark.parametrize("kernel", REDUCTIONS)
def test_reductions_are_loops_of_vectors(kernel, double, variant, register):
    # The compiler takes a vector wider than the variant's apart into scalars, through the stack, and says nothing.
    name = f"{variant}::{kernel.format('double' if double else 'float')}("
    codes = [code for function, code in functions() if name in function]
    assert codes
    expected = {f"{instruction} {register}" for instruction in REDUCTIONS[kernel][double]}
    if (variant, kernel, double) == ("portable", "exponentiate<{0}>", True):
        expected.add("stack")  # sixteen sums and their errors take all registers
    for code in codes:
        assert expected in [arithmetic(loop) for loop in loops(code)]


@pytest.mark.parametrize("variant, register", [("avx2", "ymm"), ("avx512", "zmm")])
@pytest.mark.parametrize(
    "kernel",
    ["perturb<double, double>(", "race_keys<double, double>(", "ToLogistic>(pysel::Key, unsigned long, int, double*"],
)
def test_noise_in_double_is_made_by_vectors(kernel, variant, register):
    # AVX2 converts no 64-bit integers: one such conversion makes the whole loop scalar.
    codes = [code for function, code in functions() if f"{variant}::{kernel}" in function]
    assert codes
    for code in codes:
        found = [arithmetic(loop) for loop in loops(code)]
        made = [loop for loop in found if f"fm pd {register}" in loop]
        assert any(not re.search(r" s[ds] ", " ".join(loop)) for loop in made)


# --- progress ---


def prepare(folder, *sources):
    """A checkout with these C++ sources."""
    for name in ("Makefile", "CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "csrc").mkdir()
    for number, source in enumerate(sources):
        (folder / f"csrc/source{number}.cpp").write_text(source)


def build(folder, *sources, terminal=False):
    """What `make build` prints for these C++ sources, and its exit status."""
    prepare(folder, *sources)
    command = ["make", "--directory", folder, f"PY={sys.executable}", "--assume-old=.venv/installed", "build"]
    if terminal:
        command = ["script", "--return", "--quiet", "--command", shlex.join(map(str, command)), os.devnull]
    return output(*command, PYSEL_CUDA="OFF", MAX_JOBS="1", TERM="xterm")


BROKEN = "#error the reason why\n"


@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
@pytest.mark.skipif(shutil.which("make") is None or shutil.which("c++") is None, reason="needs make and a compiler")
def test_build_says_how_far_it_is_and_why_it_fails(tmp_path, terminal):
    if terminal and shutil.which("script") is None:
        pytest.skip("needs script, from bsdutils")
    printed, status = build(tmp_path, "", "", BROKEN, "", terminal=terminal)
    assert status != 0
    assert "pysel: CUDA kernels off (PYSEL_CUDA=OFF)" in printed
    assert re.search(r"\[1/\d\] Building CXX object \S+csrc/source0", printed)
    assert "error: #error the reason why" in printed
    assert "failed; the reason is above" in printed
    assert "source3" not in printed  # it ends there,
    assert "subprocess-exited-with-error" not in printed  # and pip, which would keep this to itself, does not try
    assert ("source1.cpp.o\x1b[K" in printed) is terminal  # there it is one line, written over and its rest erased


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("c++") is None, reason="needs make and a compiler")
def test_build_warns_of_a_name_that_hides_another(tmp_path):
    printed, _ = build(tmp_path, "int f(int x) {\n  for (int x = 0; x < 2;) return x;\n  return x;\n}\n", BROKEN)
    assert re.search(r"source0.cpp:2:.*(warning|error): .*\bx\b.* shadows", printed)


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("c++") is None, reason="needs make and a compiler")
def test_a_moved_checkout_builds_again(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "pysel").mkdir()
    sources = ("", "")

    def compiles(folder):
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        printed, status = output(*command, folder=folder, PYSEL_CUDA="OFF", MAX_JOBS="1")
        assert status == 0, printed
        return printed

    prepare(before, *sources)
    assert "Building CXX" in compiles(before)
    assert "Building CXX" not in compiles(before)  # what has been built is kept
    before.rename(after)
    assert "Building CXX" in compiles(after)


# --- setup.py on a machine that lacks something ---


def run_setup(tmp_path, packages, *command, **environment):
    """What `setup.py` prints in a bare environment with these packages alone."""
    for package in packages:
        found = Path(next(iter(find_spec(package).submodule_search_locations)))
        for path in [found, *found.parent.glob(f"{package}-*.dist-info")]:
            (tmp_path / path.name).symlink_to(path)
    start = (
        f"import sys; sys.prefix = {str(tmp_path)!r}; sys.path.insert(0, sys.prefix)\n"
        f"import runpy; sys.argv = {['setup.py', *command]!r}\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
    )
    return output(sys.executable, "-I", "-S", "-c", start, **environment)


BUILD_PACKAGES = ["setuptools", "_distutils_hack", "torch"]


def test_only_the_build_needs_what_it_needs(tmp_path):
    """`pip download` and `pip wheel` ask for the version first, where nothing is installed."""
    printed, status = run_setup(tmp_path, ["setuptools", "_distutils_hack"], "--version")
    assert (printed.split()[-1], status) == (INFO["version"], 0)


@pytest.mark.parametrize("command", ["build_ext", "bdist_wheel"])
@pytest.mark.parametrize("missing", ["torch", "setuptools"])
def test_missing_package_is_one_clear_line(tmp_path, missing, command):
    printed, status = run_setup(tmp_path, [name for name in BUILD_PACKAGES if name != missing], command)
    assert status != 0
    assert len(printed.splitlines()) == 1
    assert f"needs {missing}>=" in printed
    assert f"pip install '{missing}>=" in printed
    assert "pip install --no-build-isolation ." in printed


def test_missing_compiler_is_one_clear_line(tmp_path):
    printed, status = run_setup(tmp_path, BUILD_PACKAGES, "--quiet", "build_ext", CXX="no-such-compiler -m64")
    assert status != 0
    assert len(printed.splitlines()) == 1
    assert "found no no-such-compiler" in printed
    assert "apt-get install g++" in printed


@pytest.mark.parametrize("missing", ["cmake", "ninja"])
def test_missing_tool_is_one_clear_line(tmp_path, missing):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in {"cmake", "ninja"} - {missing}:
        (tools / tool).symlink_to(shutil.which("true"))
    printed, status = run_setup(tmp_path, BUILD_PACKAGES, "--quiet", "build_ext", PATH=str(tools))
    assert status != 0
    assert len(printed.splitlines()) == 1
    assert f"needs {missing} " in printed
    assert f"pip install {missing}" in printed


# --- the archive of the sources ---


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs a checkout")
def test_an_archive_of_the_sources_holds_all_that_a_build_and_the_tests_take(tmp_path):
    made = tmp_path / "checkout"
    tracked = output("git", "-C", str(ROOT), "ls-files", "-z")[0].split("\0")[:-1]
    for name in tracked:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, made / name)
    printed, status = output(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path), folder=made)
    assert status == 0, printed
    with tarfile.open(next(tmp_path.glob("pysel-*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    elsewhere = (".", "bench/results/", "examples/.")  # of a checkout: settings of tools, and figures
    assert [name for name in tracked if name not in held and not name.startswith(elsewhere)] == []
    assert not [name for name in held if name.endswith((".so", ".pyc"))]
    unpacked = next(path for path in tmp_path.iterdir() if path.name.startswith("pysel-") and path.is_dir())
    configure = ["cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    printed, status = output(*configure, folder=unpacked, PYSEL_CUDA="OFF")
    assert status == 0, printed
