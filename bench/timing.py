"""One timer for every benchmark: contenders take turns, and the median of their turns counts.

On a machine that others use too, speed drifts over seconds. Contenders that alternate call by call drift together, so
their ratio stays; the order changes, so that none always finds the cache as the same predecessor left it.

A GPU works behind the host: there calls are timed by events on the stream, each with the cache emptied before it.
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
Clock = Callable[[Call, int], float]  # seconds a call, over so many of them

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


def gpu_pace(call: Call, calls: int = 1) -> float:
    """Seconds a call until the GPU is done with all of them: for calls so small that the host sets the pace."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


class GpuClock:
    """Seconds a call that the GPU works, with nothing in its cache at the start."""

    def __init__(self) -> None:
        size = 4 * torch.cuda.get_device_properties().L2_cache_size
        self.other = torch.ones(size // 4, device="cuda")

    def __call__(self, call: Call, calls: int = 1) -> float:
        spans = []
        for _ in range(calls):
            # Reading fills the cache with what need not be written back, and gives the host time to launch the call.
            self.other.sum()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1e3 / calls


def first_sample(call: Call, clock: Clock) -> Timing | str:
    """Find how many calls make a sample, and take one; or say why the call raised.

    The first call of all compiles and imports: it is not timed.
    """
    try:
        clock(call, 1)
    except Exception as error:  # anything may come where a library is missing or its limits are passed
        return f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0][:200]
    timing = Timing(calls=1)
    took = clock(call, 1)
    while took * timing.calls < MIN_SAMPLE_SECONDS:
        timing.calls = max(2 * timing.calls, math.ceil(MIN_SAMPLE_SECONDS / max(took, 1e-7)))
        took = clock(call, timing.calls)
    timing.seconds.append(took)
    return timing


def measure(
    contenders: dict[str, Call], budget: float, min_samples: int = 3, clock: Clock = seconds_of
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time contenders in turns.

    Args:
        contenders: what to call, by name.
        budget: seconds a contender; beyond it there are no more samples, once there are enough.
        min_samples: how many are enough.
        clock: how time is taken.

    Returns:
        Timings by name, and for each contender that raised instead, why.
    """
    first = {name: first_sample(call, clock) for name, call in contenders.items()}
    failed = {name: reason for name, reason in first.items() if isinstance(reason, str)}
    timings = {name: timing for name, timing in first.items() if isinstance(timing, Timing)}
    shuffle = random.Random(0).shuffle
    while waiting := [name for name, timing in timings.items() if timing.wants_more(budget, min_samples)]:
        shuffle(waiting)
        for name in waiting:
            timings[name].seconds.append(clock(contenders[name], timings[name].calls))
    return timings, failed


COPY_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}  # read and written, half each


def memory_copy(device: str = "cpu") -> Call:
    """A copy between tensors beyond any cache, whose memory has been touched before: what the memory can do."""
    source = torch.rand(COPY_BYTES[device] // 8, device=device)
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


def peak_extra_gpu_memory(call: Call) -> int:
    """Bytes of torch's GPU memory, results included, that a call needs on top of what there was."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
