"""What a benchmark case is, and what its contenders share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.timing import Call

MEASURES = ("1 thread", "growth", "memory", "seconds", "itself", "neighbour", "floor")
"""What a target may be against that is no contender."""


@dataclass(frozen=True)
class Setup:
    """Data of a case, bound into calls: ``pysel``, then ``eager`` (the torch op or ops it replaces), then others."""

    contenders: dict[str, Call]
    bytes: int


@dataclass(frozen=True)
class Target:
    """A promise: ``against`` must be at least ``ratio``.

    With AVX2 at least ``avx2``, where that is given (0: nothing is promised there). The portable kernels promise no
    speed against rivals.

    ``against`` is a contender (its time over pysel's), or one of
    ``1 thread``: pysel's time on one thread over that on two;
    ``growth``: pysel's cost an element at 1e7 over that at the largest n (1 is linear);
    ``memory``: ``limit`` bytes over the peak memory of the call;
    ``seconds``: ``limit`` seconds over the call's;
    ``itself``: 1 if a second call gives the same bits, else 0;
    ``neighbour``: ``linear alone``'s time over pysel's while another process keeps a core busy;
    ``floor``: the time that a copy of ``bytes`` would take over pysel's.
    """

    against: str
    ratio: float
    avx2: float | None = None
    limit: float = 0


@dataclass(frozen=True)
class Case:
    """One line of the results, or with ``sizes`` one curve over n."""

    name: str
    eager: str  # what the contender "eager" is
    make: Callable[..., Setup]
    args: Mapping[str, Any]
    tiny: Mapping[str, Any]  # what to change in args for a test
    targets: tuple[Target, ...] = ()
    sizes: tuple[int, ...] = ()
    comparable: Callable[[Any], Any] = lambda result: result  # what pysel's result and a rival's have in common
    counted: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
    """Changes to args for two small calls, by whose difference instructions a byte are counted (bench/floor.py)."""

    @property
    def family(self) -> str:
        return self.make.__name__

    def setup(self, device: str = "cpu", **changes: Any) -> Setup:
        torch.manual_seed(0)
        with torch.device(device):
            return self.make(**{**self.args, **changes})


def nbytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def sums(y: Tensor) -> tuple[torch.Size, torch.dtype, float]:
    """Of random rows that sum to 1: shape, dtype, and the sum."""
    return y.shape, y.dtype, round(float(y.sum()) / max(1, y.numel() // y.shape[-1]), 1)


def form(result: Tensor) -> tuple[torch.Size, torch.dtype]:
    """Of random results, shape and dtype."""
    result = torch.as_tensor(result)
    return result.shape, result.dtype


def ordered(result: Any) -> Tensor:
    """Of indices, the set."""
    return torch.as_tensor(result).sort().values


def by_index(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of top-k's values and indices, whichever order they come in."""
    order = result[1].argsort(-1)
    return result[0].gather(-1, order), result[1].gather(-1, order)


DECADES = tuple(10**e for e in range(3, 9))
TWO_THREADS = Target("1 thread", 1.8)
LINEAR = Target("growth", 0.8)
FLOOR_85 = Target("floor", 0.85)
