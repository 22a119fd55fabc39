"""The CUDA kernels on a CPU without a GPU: their sources built by g++ against the interpreter in cuda_runtime.h."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
VARIANTS = {"plain": "", "address": "address", "thread": "thread"}
"""Builds, and the sanitizer of each; that of addresses goes with the one of undefined behaviour."""
ON_THIS_MACHINE = platform.machine() == "x86_64"
ASCENDING, DESCENDING, RANDOM = range(3)


class BuildError(Exception):
    """What the compiler said."""


def folder_of(variant: str, only: tuple[str, ...] = ()) -> Path:
    return ROOT / "build" / "-".join(["simt", variant, *only])


@functools.cache
def build(variant: str = "plain", only: tuple[str, ...] = ()) -> Path:
    """Folder with libpysel_simt.so and libsimt_planted.so; ninja compiles only what changed.

    only: stems of those files of csrc/cuda to build, for work on one of them; all if empty.
    """
    folder = folder_of(variant, only)
    folder.mkdir(parents=True, exist_ok=True)
    # The tools of a virtual environment that nobody activated.
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath)
    options = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=path),
        "SIMT_ONLY": ";".join(only),
        "SIMT_SANITIZER": VARIANTS[variant],
        "TORCH_DIR": Path(torch.__file__).parent,
    }
    source, cache = ROOT / "tests/simt", folder / "CMakeCache.txt"
    configure = ["cmake", "-S", source, "-B", folder, "-G", "Ninja"]
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={source}\n" not in cache.read_text():
        configure.append("--fresh")  # the checkout has moved, which CMake would refuse
    configure += [f"-D{name}={value}" for name, value in options.items()]
    compile_all = ["cmake", "--build", folder, "--parallel", os.environ.get("MAX_JOBS", "2"), "--", "-k", "0"]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, compile_all):
            done = subprocess.run(
                command, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode != 0:
                raise BuildError(done.stdout)
    return folder


class UnavailableError(Exception):
    """Why a sanitizer cannot run on this machine."""


@functools.cache
def sanitized(variant: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """What a Python that loads this variant needs: words before the command, and environment.

    The sanitizer has to be there before Python. It stops at the first finding, and disregards what torch does, which
    it cannot see whole.
    """
    if not VARIANTS[variant]:
        return (), {}
    compiler = os.environ.get("CXX", "c++")
    # The runtime of C++ as well: the sanitizers look for the functions that throw before Python has loaded it.
    libraries = []
    for library in ({"address": "libasan.so", "thread": "libtsan.so"}[variant], "libstdc++.so.6"):
        command = [compiler, f"-print-file-name={library}"]
        libraries.append(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip())
        if not os.path.isabs(libraries[-1]):
            raise UnavailableError(f"{compiler} has no {library}")
    environment = {
        "SIMT_SANITIZED": variant,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1 history_size=0 ignore_noninstrumented_modules=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # The thread sanitizer wants its parts of the address space, which randomisation may have given away.
    said = ""
    for words in ((), ("setarch", "-R")):
        if words and shutil.which(words[0]) is None:
            continue
        command = [*words, sys.executable, "-c", "print('started')"]
        done = subprocess.run(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode == 0 and "started" in done.stdout:
            return words, environment
        said += f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}"
    raise UnavailableError(said)


class Library:
    """A library of torch ops whose kernels are interpreted."""

    def __init__(self, path: Path):
        torch.ops.load_library(path)
        self._c = ctypes.CDLL(str(path))
        self._c.simt_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._c.simt_order.restype = None
        for counter in ("simt_threads_run", "simt_atomics_run", "simt_waits"):
            getattr(self._c, counter).restype = ctypes.c_uint64
        for switch in ("simt_capture", "simt_hold"):
            getattr(self._c, switch).argtypes = [ctypes.c_int]
            getattr(self._c, switch).restype = None
        for action in ("simt_fail", "simt_forget_kernels"):
            getattr(self._c, action).restype = None
        self._c.simt_kernels.restype = ctypes.c_char_p

    def order(self, kind: int, seed: int = 0) -> None:
        """The order of blocks, warps and lanes in the launches to come."""
        self._c.simt_order(kind, seed)

    @property
    def threads_run(self) -> int:
        """CUDA threads that have run so far."""
        return self._c.simt_threads_run()

    @property
    def atomics_run(self) -> int:
        """Atomic operations of theirs."""
        return self._c.simt_atomics_run()

    @property
    def waits(self) -> int:
        """How often the host has waited for kernels."""
        return self._c.simt_waits()

    @property
    def kernels(self) -> set[str]:
        """Names of the kernels launched so far, with namespaces and parameters."""
        return set(self._c.simt_kernels().decode().splitlines())

    def forget_kernels(self) -> None:
        """Which were launched."""
        self._c.simt_forget_kernels()

    def fail(self) -> None:
        """A CUDA call of somebody's has failed, and nobody has asked why."""
        self._c.simt_fail()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """The host may not wait, as while a CUDA graph is captured."""
        self._c.simt_capture(True)
        try:
            yield
        finally:
            self._c.simt_capture(False)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Kernels stop behind their first block; the others run when the host waits, or launches again."""
        self._c.simt_hold(True)
        try:
            yield
        finally:
            self._c.simt_hold(False)


@functools.cache
def load(name: str = "pysel_simt", variant: str = "plain", only: tuple[str, ...] = ()) -> Library:
    # A process with a sanitizer in it runs no compiler: it was started when all was built.
    folder = folder_of(variant, only) if VARIANTS[variant] else build(variant, only)
    return Library(folder / f"lib{name}.so")
