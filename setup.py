"""Checks that the build tools are there, then has CMake and ninja build the extension module, pysel._C."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# The tools of a virtual environment that nobody activated.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath)


def check_tools() -> None:
    """End with one line that says what to type when something that the build needs is missing or too old."""
    for name, floor in {"setuptools": (77,), "torch": (2, 11), "pybind11": (2, 12)}.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < floor:
            wanted = f"{name}>={'.'.join(map(str, floor))}"
            sys.exit(
                f"pysel: the build needs {wanted} in this Python and found {found}. Type: "
                f"pip install '{wanted}', then pip install --no-build-isolation ."
            )
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            sys.exit(f"pysel: the build needs {tool} and found none. Type: pip install {tool}")
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        sys.exit(
            f"pysel: the build needs a C++20 compiler and found no {' or '.join(compilers)}. "
            "Type: apt-get install g++, or set CXX"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit("pysel: the build needs Python.h and found none. Type: apt-get install python3-dev")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        check_tools()  # here, and not for an archive of the sources, which takes none of them
        # One build folder per Python, kept between calls, so that ninja compiles only what changed.
        build = ROOT / "build" / str(sys.implementation.cache_tag)
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        options = [
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            options.append("--fresh")  # the checkout has moved, which CMake would refuse
        for command in (
            ["cmake", "--log-level=NOTICE", "-S", ROOT, "-B", build, "-G", "Ninja", *options],
            ["cmake", "--build", build, *jobs],
            ["cmake", "--install", build, "--prefix", target],
        ):
            if subprocess.run(command).returncode != 0:
                sys.exit(f"pysel: {shlex.join(map(str, command))} failed; the reason is above")


setup(ext_modules=[Extension("pysel._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
