"""One timer for every benchmark: contenders take turns, and the median of their turns counts.

On a machine that others use too, speed drifts over seconds. Contenders that alternate call by call drift together, so
their ratio stays; the order changes, so that none always finds the cache as the same predecessor left it.
"""

from __future__ import annotations

import ctypes
import gc
import math
import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

Call = Callable[[], object]

MIN_SAMPLE_SECONDS = 2e-3  # shorter calls are repeated within a sample, or the clock would be what is measured
MAX_SAMPLES = 25  # more hardly narrow the quartiles; also bounds how far in-place contenders drift from their data


@dataclass
class Timing:
    """Seconds a call, one value a sample."""

    calls: int  # in each sample
    seconds: list[float] = field(default_factory=list)

    def wants_more(self, budget: float, min_samples: int) -> bool:
        n = len(self.seconds)
        return n < min_samples or (n < MAX_SAMPLES and sum(self.seconds) * self.calls < budget)

    def summary(self) -> dict[str, float]:
        """Median and quartiles."""
        seconds = self.seconds if len(self.seconds) > 1 else self.seconds * 2
        q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
        return {"median": median, "q1": q1, "q3": q3, "samples": len(self.seconds), "calls": self.calls}


def seconds_of(call: Call, calls: int = 1) -> float:
    """Seconds a call, over ``calls`` of them; each result is dropped before the next call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def first_sample(call: Call) -> Timing | str:
    """Find how many calls make a sample, and take one; or say why the call raised.

    The first call of all compiles and imports: it is not timed.
    """
    try:
        call()
    except Exception as error:  # anything may come where a library is missing or its limits are passed
        return f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0][:200]
    timing = Timing(calls=1)
    took = seconds_of(call)
    while took * timing.calls < MIN_SAMPLE_SECONDS:
        timing.calls = max(2 * timing.calls, math.ceil(MIN_SAMPLE_SECONDS / max(took, 1e-7)))
        took = seconds_of(call, timing.calls)
    timing.seconds.append(took)
    return timing


def measure(
    contenders: dict[str, Call], budget: float, min_samples: int = 3
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time contenders in turns.

    Args:
        contenders: what to call, by name.
        budget: seconds a contender; beyond it there are no more samples, once there are enough.
        min_samples: how many are enough.

    Returns:
        Timings by name, and for each contender that raised instead, why.
    """
    first = {name: first_sample(call) for name, call in contenders.items()}
    failed = {name: reason for name, reason in first.items() if isinstance(reason, str)}
    timings = {name: timing for name, timing in first.items() if isinstance(timing, Timing)}
    shuffle = random.Random(0).shuffle
    while waiting := [name for name, timing in timings.items() if timing.wants_more(budget, min_samples)]:
        shuffle(waiting)
        for name in waiting:
            timings[name].seconds.append(seconds_of(contenders[name], timings[name].calls))
    return timings, failed


COPY_BYTES = 1 << 29  # read and written, half each


def memory_copy() -> Call:
    """A copy between tensors beyond any cache, whose memory has been touched before: what the memory can do."""
    source = torch.rand(COPY_BYTES // 8)
    target = source.clone()
    return lambda: target.copy_(source)


def touch_memory(size: int = 1 << 30) -> None:
    """Write to memory and free it again, so that what is allocated next lies in pages that the machine really has.

    A virtual machine's free pages may have been taken back by its host. Getting them again costs up to a millisecond
    a mebibyte, several times what most of the ops cost, and would fall on whoever allocates first.
    """
    torch.ones(size // 4)


def _status(entry: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    found = re.search(rf"^{entry}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {entry} in /proc/self/status")
    return 1024 * int(found[1])


def peak_extra_memory(call: Call) -> int | None:
    """Bytes of memory, results included, that a call needs on top of what there was; None where Linux does not say."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else the call may live in memory that was freed but never given back
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None
