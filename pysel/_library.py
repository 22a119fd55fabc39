"""The compiled half: loading it declares torch.ops.pysel.* and their kernels. It knows nothing of Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # its libraries must be there before this one is loaded

FILE = Path(__file__).parent / "lib" / "libpysel.so"

if not FILE.exists():
    raise ImportError(f"pysel is not compiled: there is no {FILE}. Type: pip install --no-build-isolation .")
torch.ops.load_library(FILE)


def build_info() -> dict[str, Any]:
    """How this binary was built and which CPU variant it chose."""
    words = torch.ops.pysel.build_info.default()
    info: dict[str, Any] = dict(zip(words[::2], words[1::2], strict=True))
    lists = {name: info[name].split() for name in ("cpu_variants", "cuda_architectures")}
    return {**info, **lists, "cuda": bool(info["cuda_version"])}


def wait_and_raise() -> None:
    """Wait for all CUDA kernels, raise what they have reported, and forget it."""
    torch.ops.pysel.wait_and_raise.default()
