"""What is checked before a release, and that each check finds the fault that it is for."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from release import check, try_wheel, wheel

ROOT = Path(__file__).parent.parent
CHANGELOG = "# Changelog\n\n## 1.2.0 (2026-01-31)\n\n- Faster.\n\n## 1.1.0 (2025-12-01)\n\n- New.\n"
CITATION = "title: pysel\nversion: 1.2.0\ndate-released: 2026-01-31\n"


def test_version_and_date_are_the_same_everywhere() -> None:
    assert check.told("1.2.0", CHANGELOG, CITATION) == []


@pytest.mark.parametrize(
    "changelog, citation, fault",
    [
        (CHANGELOG.replace("1.2.0", "1.3.0"), CITATION, "CHANGELOG"),
        (CHANGELOG.replace("2026-01-31", "unreleased"), CITATION, "CHANGELOG"),
        (CHANGELOG.replace("- Faster.", ""), CITATION, "CHANGELOG"),
        (CHANGELOG, CITATION.replace("1.2.0", "1.1.0"), "version: 1.2.0"),
        (CHANGELOG, CITATION.replace("-01-31", "-02-01"), "date-released: 2026-01-31"),
    ],
)
def test_what_is_told_wrong_is_found(changelog: str, citation: str, fault: str) -> None:
    assert fault in check.told("1.2.0", changelog, citation)[0]


def test_before_the_date_is_known_a_date_is_asked_for_in_both_files() -> None:
    faults = check.told("1.2.0", CHANGELOG.replace("2026-01-31", "unreleased"), CITATION.replace("2026-01-31", ""))
    assert [(fault.split(".")[0], "YEAR-MONTH-DAY" in fault) for fault in faults] == [
        ("CHANGELOG", True),
        ("CITATION", True),
    ]


def test_the_changelog_has_a_section_of_the_version_that_is_declared() -> None:
    version = check.declared((ROOT / "pyproject.toml").read_text())
    assert re.search(rf"^## {re.escape(version)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "old, new, same",
    [("1.2.0", "1.3.0", True), ("1.2.0", "2.0.0", False), ("0.2.0", "0.2.1", True), ("0.2.0", "0.3.0", False)],
)
def test_before_1_a_minor_version_may_break_what_a_major_one_may(old: str, new: str, same: bool) -> None:
    assert check.compatible(old, new) is same


def test_a_golden_vector_may_be_added_but_not_changed() -> None:
    old = [{"key": [0, 0], "words": [1, 2]}, {"key": [7, 0], "words": [3, 4]}]
    assert check.changed(old, [{"key": [9, 9], "words": [5]}, *old]) == 0
    assert check.changed(old, [old[0], {"key": [7, 0], "words": [3, 5]}]) == 1
    assert check.changed(old, []) == 2


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize(
    "version, words, faults", [("1.2.0", 2, 0), ("1.2.0", 3, 1), ("2.0.0", 3, 0)], ids=["same", "changed", "major"]
)
def test_vectors_are_compared_with_those_of_the_last_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, words: int, faults: int
) -> None:
    monkeypatch.setattr(check, "ROOT", tmp_path)
    (tmp_path / "tests/golden").mkdir(parents=True)

    def write(version: str, words: int) -> None:
        (tmp_path / "pyproject.toml").write_text(f'version = "{version}"\n')
        (tmp_path / "tests/golden/words.json").write_text(f'[{{"key": 0, "words": [{words}]}}]')

    def git(*command: str) -> None:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)

    write("1.1.0", 2)
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "A release")
    assert check.golden_vectors_are_those_of_the_last_release() == []  # there is none yet
    git("tag", "v1.1.0")
    write(version, words)
    assert len(check.golden_vectors_are_those_of_the_last_release()) == faults


def packed(folder: Path, name: str, **libraries: Path) -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for library, source in libraries.items():
            archive.write(source, f"pysel/lib/{library}.so")
    return folder / name


def linked(library: Path, *options: object, source: str = "") -> Path:
    command = ["c++", "-shared", "-fPIC", "-o", library, "-xc++", "-", "-xnone", *options]
    subprocess.run(command, input=source, text=True, check=True)
    return library


@pytest.mark.skipif(
    shutil.which("readelf") is None or shutil.which("c++") is None, reason="needs binutils and a compiler"
)
def test_a_wheel_that_runs_on_no_other_machine_is_found(tmp_path: Path) -> None:
    mine, other = sorted(wheel.MACHINES, key=lambda machine: machine != platform.machine())
    name = f"pysel-1.2.0+cu130-py3-none-manylinux_2_28_{mine}.whl"
    beside_torch = "-Wl,-rpath,$ORIGIN/../../torch/lib"
    good = linked(tmp_path / "good.so", beside_torch)
    assert wheel.faults(packed(tmp_path, name, libpysel=good)) == []
    assert "tag" in wheel.faults(packed(tmp_path, "pysel-1.2.0-cp311-cp311-linux_x86_64.whl", libpysel=good))[0]
    assert "libraries" in wheel.faults(packed(tmp_path, name, libpysel=good, libtorch=good))[0]
    assert "is for" in wheel.faults(packed(tmp_path, name.replace(mine, other), libpysel=good))[0]
    absolute = linked(tmp_path / "absolute.so", "-Wl,-rpath,/home/builder")
    assert "/home/builder" in wheel.faults(packed(tmp_path, name, libpysel=absolute))[0]

    # A function of systems to come, of which no compiler knows yet.
    (tmp_path / "versions").write_text("GLIBC_2.99 { global: tomorrow; local: *; };")
    to_come = linked(
        tmp_path / "libtocome.so",
        f"-Wl,--version-script={tmp_path}/versions",
        source='extern "C" void tomorrow() {}',
    )
    newer = linked(
        tmp_path / "newer.so", to_come, beside_torch, source='extern "C" void tomorrow(); void f() { tomorrow(); }'
    )
    faults = wheel.faults(packed(tmp_path, name, libpysel=newer))
    assert "asks for glibc 2.99" in faults[0] and "asks for tomorrow of GLIBC_2.99" in faults[1]
    assert len(wheel.faults(packed(tmp_path, name.replace("2_28", "2_99"), libpysel=newer))) == 1


def test_a_build_for_another_machine_has_its_compiler_its_torch_and_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setup.py names the folder, and setuptools the wheel, by what sysconfig tells of the machine."""
    monkeypatch.setattr(wheel, "torch_of", lambda machine: tmp_path / f"{machine}'s torch")
    (other,) = wheel.MACHINES.keys() - {platform.machine()}
    environment = wheel.target(other)
    told = subprocess.check_output(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_platform())"], env=environment, text=True
    )
    assert told.strip() == f"linux-{other}"
    assert environment["CXX"] == f"{other}-linux-gnu-g++" and environment["PYSEL_CUDA"] == "OFF"
    assert f"-DTORCH_DIR={tmp_path}/{other}'s torch" in shlex.split(environment["CMAKE_ARGS"])
    assert wheel.target(platform.machine()) == os.environ


PACKAGE = 'requires-python = ">=3.10"\ndependencies = ["torch>=2.11", "numpy"]\n'
OFFERED = {9: ["2.8.0+cpu"], 10: ["2.12.0", "2.11.0", "2.9.0"], 11: ["2.13.0+cpu", "2.13.0"], 12: ["2.14.0"]}


@pytest.mark.parametrize(
    "at_hand, with_cuda, tried, missing",
    [
        ((9, 10, 11, 12), True, [(10, "2.11.0"), (12, "2.14.0")], set()),
        (
            (12, 11, 10),
            False,
            [(11, "2.13.0+cpu")],
            {"Python 3.10 with torch 2.11.0", "Python 3.12 with torch 2.14.0"},
        ),
        ((11,), False, [(11, "2.13.0+cpu")], {"Python 3.10"}),
        ((9, 12), False, [], {"Python 3.10", "Python 3.12 with torch 2.14.0"}),
    ],
    ids=["with CUDA", "one for the CPU", "one Python", "none"],
)
def test_the_wheel_is_tried_with_the_oldest_and_the_newest(
    at_hand: tuple[int, ...], with_cuda: bool, tried: list[try_wheel.Build], missing: set[str]
) -> None:
    chosen, told = try_wheel.plan(at_hand, OFFERED.__getitem__, PACKAGE, with_cuda)
    assert chosen == tried
    assert set(told) == missing and len(told) == len(missing)


def test_the_package_declares_what_the_wheel_is_tried_with() -> None:
    package = (ROOT / "pyproject.toml").read_text()
    chosen, _ = try_wheel.plan(range(8, 15), lambda minor: ["2.10.2", "2.11.0", "2.9.0"], package, with_cuda=True)
    assert chosen == [(10, "2.11.0"), (14, "2.11.0")]


def test_only_pythons_that_run_and_can_make_environments_are_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(name: str, code: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
        return str(tmp_path / name)

    first = stand_in("bin/python3.10", "echo 10")
    stand_in("bin/python3.11", "echo no such version; exit 127")
    stand_in("bin/python3.12-config", "echo 12")
    stand_in("pyenv/versions/3.10.9/bin/python3.10", "echo 10")
    second = stand_in("pyenv/versions/3.13.0/bin/python3.13", "echo 13")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert try_wheel.pythons() == {10: first, 13: second}


@pytest.mark.parametrize("installable", [("2.11.0", "2.14.0"), ("2.14.0",), ()])
def test_a_torch_that_cannot_be_installed_is_named(
    installable: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"pysel-1.2.0-py3-none-manylinux_2_28_{platform.machine()}.whl").touch()
    (tmp_path / "pyproject.toml").write_text(PACKAGE)
    monkeypatch.setattr(try_wheel, "ROOT", tmp_path)
    monkeypatch.setattr(try_wheel, "pythons", lambda: {10: "python3.10", 12: "python3.12"})
    monkeypatch.setattr(try_wheel, "torches", OFFERED.__getitem__)
    monkeypatch.setattr(try_wheel, "attempt", lambda _, *of: ", ".join(of) * (of[1] in installable))
    monkeypatch.setattr("sys.argv", ["try_wheel", "--cuda"])
    assert try_wheel.main() == (not installable)
    came, _, left = capsys.readouterr().out.strip().partition("; not tried: ")
    assert left.count(" with torch ") == 2 - len(installable)
    assert all(f", {torch}" in came for torch in installable) and ("nothing" in came) == (not installable)


def floor(text: str | None) -> str:
    """The oldest Python that a requirement such as ">=3.10" lets through."""
    return re.findall(r">=?\s*(3\.\d+)", text or "")[0]


def test_each_page_names_the_oldest_python_that_there_is_truth_for() -> None:
    """What is installed asks for what pyproject.toml says; `make`, for what its pinned packages say together."""
    package = floor(re.findall(r'^requires-python = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0])
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    floors = [floor(importlib.metadata.metadata(name)["Requires-Python"]) for name in pinned]
    make = max(floors, key=lambda version: int(version.partition(".")[2]))
    for page in ("README.md", "docs/quickstart.md"):
        text = (ROOT / page).read_text()
        assert re.findall(r"`python3` \((3\.\d+) or newer", text) == [make], page
        assert re.findall(r"Python (3\.\d+) or newer", text) == [package], page
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"version (3\.\d+) or newer", makefile) == [make]
    assert f"0x03{int(make.partition('.')[2]):02x}0000" in makefile
