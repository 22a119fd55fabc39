"""Checks that the build tools are there, then has CMake and ninja build the library that pysel loads, libpysel.so."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.resolve()

# The tools of a virtual environment that nobody activated.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath)


def check_tools() -> None:
    """End with one line that says what to type when something that the build needs is missing or too old."""
    for name, floor in {"setuptools": (77,), "torch": (2, 11)}.items():
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


# Before the build begins: pip would show all that it has said by then, too.
if {"build_ext", "bdist_wheel", "editable_wheel"} & set(sys.argv):
    check_tools()

from setuptools import Extension, setup  # noqa: E402
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402


class CMakeBuild(build_ext):
    def get_ext_filename(self, name: str) -> str:
        return f"{name.replace('.', '/')}.so"  # of no Python

    def build_extension(self, ext: Extension) -> None:
        (ROOT / "pysel/lib").mkdir(parents=True, exist_ok=True)  # for --inplace: setuptools makes no folder
        # One build folder per Python and machine, kept between calls, so that ninja compiles only what changed.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parents[1]
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


class Wheel(bdist_wheel):
    """For any Python: the library takes nothing of CPython. Nor is it torch's version that matters, from 2.11 on."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("pysel.lib.libpysel", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
