"""Install this machine's wheel of dist/ in empty environments and ask it for the golden vectors.

python -m release.try_wheel [--cuda]    with the oldest Python and torch that are to be had, and with the newest
python -m release.try_wheel [--python PYTHON] [--torch VERSION]    with these

What counts as to be had is torch for the CPU alone, unless --cuda is given. Last it says what it has not tried.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
Build = tuple[int, str]  # a torch for Python 3.N


def number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def pythons() -> dict[int, str]:
    """The Pythons 3.N at hand, by N: those of PATH and pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [*map(Path, os.get_exec_path()), *sorted(pyenv.glob("versions/*/bin"))]
    found = {}
    for path in (path for folder in folders for path in sorted(folder.glob("python3.*"))):
        if re.fullmatch(r"python3\.\d+", path.name):
            # pyenv's stand-ins on PATH may stand for nothing; Debian's Python may make no environments
            code = "import ensurepip, sys, venv; print(sys.version_info[1])"
            done = subprocess.run([path, "-c", code], capture_output=True, text=True)
            if done.returncode == 0:
                found.setdefault(int(done.stdout), str(path))
    return found


def torches(minor: int) -> list[str]:
    """The versions of torch that pip finds for Python 3.N."""
    asked = f"index versions torch --only-binary=:all: --python-version=3.{minor}"
    told = subprocess.run([sys.executable, "-m", "pip", *asked.split()], capture_output=True, text=True).stdout
    return re.findall(r"\d[\w.+]*", "".join(re.findall(r"^Available versions:.*", told, re.MULTILINE)))


def ends(builds: Iterable[Build]) -> list[Build]:
    """The oldest Python with its oldest torch, and the newest with its newest."""

    def age(build: Build) -> list[int]:
        return [build[0], *number(build[1])]

    known = sorted(builds, key=age)
    return list(dict.fromkeys([*known[:1], *known[-1:]]))


def plan(
    at_hand: Iterable[int], found: Callable[[int], list[str]], package: str, with_cuda: bool
) -> tuple[list[Build], list[str]]:
    """What to try of all that a pyproject.toml lets through, and what is not tried of its ends."""
    python, torch = (number(re.findall(rf"{name}>=([\d.]+)", package)[0]) for name in ('requires-python = "', '"torch'))
    supported = [minor for minor in at_hand if [3, minor] >= python]
    builds = []
    for minor in supported:
        releases = [release for release in found(minor) if number(release) >= torch]
        builds += [(minor, release) for release in releases if f"{release}+cpu" not in releases]
    wanted = ends(builds)
    chosen = wanted if with_cuda else ends(build for build in builds if build[1].endswith("+cpu"))
    left = [f"Python 3.{minor} with torch {release}" for minor, release in wanted if (minor, release) not in chosen]
    return chosen, left if python[1] in supported else [f"Python 3.{python[1]}", *left]


def attempt(wheel: Path, python: str, torch: str) -> str:
    """What all golden vectors have come of; nothing where pip cannot install that torch."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        subprocess.run([python, "-m", "venv", environment], check=True)
        made = environment / "bin/python"
        print(f"pysel: installing {wheel.name}, torch {torch} and pytest for {python}", flush=True)
        pip = [made, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]
        if subprocess.run([*pip, f"torch=={torch}"]).returncode != 0:
            return ""
        subprocess.run([*pip, wheel, "pytest"], check=True)
        # Beside the tests there are no sources: what is imported is what was installed.
        shutil.copytree(ROOT / "tests", Path(folder) / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        code = "import platform, pysel, torch; print(pysel.__file__, platform.python_version(), torch.__version__)"
        told = subprocess.check_output([made, "-c", code], cwd=folder, env=clean, text=True).split()
        assert told[0].startswith(str(environment)), f"{told[0]} is not what was installed"
        what = f"Python {told[1]} with torch {told[2]}"
        asking = [path.name for path in (ROOT / "tests").glob("test_*.py") if "golden.load(" in path.read_text()]
        command = [made, "-m", "pytest", "-q", "-k", "golden", *(f"tests/{name}" for name in sorted(asking))]
        if subprocess.run(command, cwd=folder, env=clean).returncode != 0:
            sys.exit(f"pysel: {wheel.name} fails in {what}; the reason is above")
        return what


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", help="the Python to try it in (with --torch alone: this one)")
    parser.add_argument("--torch", help="the torch to try it with (with --python alone: this one's)")
    parser.add_argument("--cuda", action="store_true", help="take torch with CUDA, too, gigabytes of it")
    asked = parser.parse_args()
    wheels = list((ROOT / "dist").glob(f"pysel-*_{platform.machine()}.whl"))
    if len(wheels) != 1:
        sys.exit(f"pysel: wanted one wheel of this machine in dist/, found {len(wheels)}. Type: make wheels")
    pairs, missing = [(asked.python or sys.executable, asked.torch or version("torch"))], []
    if not (asked.python or asked.torch):
        at_hand = pythons()
        chosen, missing = plan(at_hand, torches, (ROOT / "pyproject.toml").read_text(), asked.cuda)
        pairs = [(at_hand[minor], release) for minor, release in chosen] or pairs
    tried = []
    for python, torch in pairs:
        if what := attempt(wheels[0], python, torch):
            tried.append(what)
        else:
            missing.append(f"{python} with torch {torch}")
    left = f"; not tried: {', '.join(missing)}" if missing else ""
    print(f"pysel: every golden vector came of {', '.join(tried) or 'nothing'}{left}")
    return not tried


if __name__ == "__main__":
    sys.exit(main())
