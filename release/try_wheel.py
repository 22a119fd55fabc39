"""Install this machine's wheel of dist/ in an empty environment and ask it for the golden vectors.

python -m release.try_wheel [--python PYTHON] [--torch VERSION]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("pytest",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python to try it in (default: this one)")
    parser.add_argument("--torch", default=version("torch"), help="the torch to try it with (default: this one's)")
    parser.add_argument("--environment", type=Path, help="a virtual environment to use, not a new one")
    arguments = parser.parse_args()
    wheels = list((ROOT / "dist").glob(f"pysel-*_{platform.machine()}.whl"))
    if len(wheels) != 1:
        sys.exit(f"pysel: wanted one wheel of this machine in dist/, found {len(wheels)}. Type: make wheels")
    with tempfile.TemporaryDirectory() as folder:
        environment = arguments.environment or Path(folder) / "environment"
        python = environment / "bin/python"
        if not python.exists():
            subprocess.run([arguments.python, "-m", "venv", environment], check=True)
        print(f"pysel: installing {wheels[0].name}, torch {arguments.torch} and {' '.join(PACKAGES)}", flush=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"torch=={arguments.torch}", *PACKAGES, wheels[0]], check=True)
        # Beside the tests there are no sources: what is imported is what was installed.
        shutil.copytree(ROOT / "tests", Path(folder) / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        asking = [path.name for path in (ROOT / "tests").glob("test_*.py") if "golden.load(" in path.read_text()]
        command = [python, "-m", "pytest", "-q", "-k", "golden", *(f"tests/{name}" for name in sorted(asking))]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        code = "import pysel, sys, torch; print(pysel.__file__, pysel.build_info(), sys.version, torch.__version__)"
        printed = subprocess.check_output([python, "-c", code], cwd=folder, env=clean, text=True)
        print("pysel:", printed.strip(), flush=True)
        assert printed.startswith(str(environment.absolute())), "not what was installed"
        return subprocess.run(command, cwd=folder, env=clean).returncode


if __name__ == "__main__":
    sys.exit(main())
