"""The GPU that torch uses: what it is, and the two speeds that bound every kernel on it.

python -m bench.gpu
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from typing import Any

import torch

from bench.timing import COPY_BYTES, Call, GpuClock, memory_copy

ASKED = (
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
    "ecc.mode.current",
)
GEMM = 8192  # rows, columns and inner dimension


def slug(name: str) -> str:
    """A folder's name for a GPU."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def facts() -> dict[str, Any]:
    """Name, sizes, driver and clocks."""
    properties = torch.cuda.get_device_properties(0)
    found = {
        "name": properties.name,
        "architecture": f"{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2_cache": properties.L2_cache_size,
        "count": torch.cuda.device_count(),
        "torch_cuda": torch.version.cuda,
        "driver": "unknown",
    }
    try:
        command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
        values = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split(", ")
    except (OSError, subprocess.SubprocessError):
        return found
    told = dict(zip(ASKED, map(str.strip, values), strict=False))
    return {**found, "driver": told.pop("driver_version"), **told}


def median_seconds(call: Call, calls: int = 20) -> float:
    clock = GpuClock()
    clock(call, 3)  # warms up
    return statistics.median(clock(call, 1) for _ in range(calls))


def ceilings() -> dict[str, float]:
    """Bytes a second of a copy on the device, read and written, and operations a second of a bfloat16 product."""
    a, b = torch.randn(2, GEMM, GEMM, device="cuda", dtype=torch.bfloat16)
    return {
        "copy_bytes_per_second": COPY_BYTES["cuda"] / median_seconds(memory_copy("cuda")),
        "gemm_operations_per_second": 2 * GEMM**3 / median_seconds(lambda: a @ b),
    }


def main() -> None:
    found = facts() | ceilings()
    print(json.dumps(found, indent=1))
    speed = f"copy {found['copy_bytes_per_second'] / 1e12:.2f} TB/s"
    rate = f"bfloat16 product {found['gemm_operations_per_second'] / 1e12:.0f} TFLOP/s"
    print(f"{found['name']}, driver {found['driver']}, {found.get('clocks.sm', 'clocks unknown')}: {speed}, {rate}")


if __name__ == "__main__":
    main()
