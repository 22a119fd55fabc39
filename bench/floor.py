"""How soon a call could be done at best: its instructions at the rate of the processor, its bytes at that of a copy.

Instructions are counted in a child process that runs a small call one machine instruction at a time, and the call
again at another size: what both do (Python, the dispatcher, checks) is in neither's difference, which is what an
element takes. Virtual machines seldom let a program read the processor's own counters. x86-64 Linux only.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import signal
import time

import torch

from bench.cases.case import Case
from bench.timing import Call

SLOTS = 4
"""Vector instructions that Zen and its contemporaries begin in a cycle; one of 512 bits takes two of these places."""

_SINGLE_STEP, _TRACE_ME, _PEEK_USER, _RIP = 9, 0, 3, 16 * 8
_LONGEST = 60.0  # seconds; then the count is given up
_COUNT_DOWN = b"\x48\xff\xcf\x75\xfb\xc3"  # dec rdi; jnz back; ret: a cycle a turn, on all that is sold


def possible() -> bool:
    return platform.system() == "Linux" and platform.machine() == "x86_64"


@functools.cache
def clock() -> float:
    """Cycles a second, by a loop that takes one a turn."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_COUNT_DOWN)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    loop = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(address)
    turns, rates = 2_000_000, []
    for _ in range(50):  # the best of them was not interrupted
        start = time.perf_counter()
        loop(turns)
        rates.append(turns / (time.perf_counter() - start))
    return max(rates)


def _is_of_512_bits(code: bytes) -> bool:
    """Whether machine code begins with an instruction on registers of 512 bits: EVEX, and its length 2."""
    return code[0] == 0x62 and code[3] >> 5 & 3 == 2


def slots(call: Call) -> int:
    """Places in a cycle that the machine instructions of a call on one thread take, Python's own included."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes, libc.ptrace.restype = [ctypes.c_long] * 4, ctypes.c_long
    here = os.sched_getaffinity(0)
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            call()
            libc.ptrace(_TRACE_ME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            call()
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(0)
    try:
        os.sched_setaffinity(0, {min(here)})  # both on one core, which hands over sooner than two
        os.sched_setaffinity(child, {min(here)})
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            raise RuntimeError("the call failed in a child process, or may not be traced")
        taken, wide, end = 0, {}, time.monotonic() + _LONGEST
        while True:
            at = libc.ptrace(_PEEK_USER, child, _RIP, 0)
            if at not in wide:  # the child has this process's memory
                wide[at] = 1 + _is_of_512_bits(ctypes.string_at(at, 4))
            taken += wide[at]
            if libc.ptrace(_SINGLE_STEP, child, 0, 0) < 0:
                raise RuntimeError("may not trace a child process")
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status) or os.WSTOPSIG(status) == signal.SIGSTOP:
                return taken
            if time.monotonic() > end:
                raise RuntimeError(f"not counted within {_LONGEST:.0f} s")
    finally:
        os.sched_setaffinity(0, here)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def seconds(case: Case, size: int, threads: int) -> float | None:
    """The least that instructions take of a call that moves ``size`` bytes; None where they are not counted."""
    if case.counted is None or not possible():
        return None
    few, many = (case.setup(**changes) for changes in case.counted)
    taken = slots(many.contenders["pysel"]) - slots(few.contenders["pysel"])
    return max(0, taken) / (many.bytes - few.bytes) * size / (SLOTS * clock() * threads)
