"""One table of calls to the ops. The checks in test_ops.py, which hold for every op, run over it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import pysel
from pysel import reference
from tests.tensors import assert_same_bits, assert_within_ulps

# The arguments of each raw op, from those of its public function.
RAW = {
    "gumbel_softmax": lambda x, tau=1.0, hard=False, *, dim=-1, key, start=0, validate=None: (
        x, as_tau(tau), key, dim, hard, start, validate
    ),
    "gumbel_sigmoid": lambda x, tau=1.0, hard=False, *, key, start=0, validate=None: (
        x, as_tau(tau), key, hard, start, validate
    ),
    "gumbel_argmax": lambda x, *, dim=-1, key, start=0, validate=None: (x, key, dim, start, validate),
    "weighted_sample": lambda x, k, replacement=False, *, log_weights=False, order="draw", groups=None, quotas=None,
    key, start=0, validate=None: (x, k, replacement, log_weights, order, groups, quotas, key, start, validate),
}  # fmt: skip


def as_tau(tau):
    return tau if isinstance(tau, torch.Tensor) else torch.tensor(tau, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class OpSample:
    """A call: the op, the shape of its input, and its other arguments."""

    op: str
    shape: tuple[int, ...]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self):
        return "-".join([self.op, "x".join(map(str, self.shape)), *(f"{k}={v}" for k, v in self.arguments.items())])

    @property
    def differentiable(self):
        return self.op in ("gumbel_softmax", "gumbel_sigmoid")

    @property
    def sums(self):
        """Whether floats are added up."""
        return self.op == "gumbel_softmax" and not self.arguments.get("hard")

    def input(self, dtype=torch.float32, device="cpu", shape=None):
        """Logits or weights: some impossible, some tiny, one that outweighs most others."""
        shape = self.shape if shape is None else shape
        generator = torch.Generator().manual_seed(len(shape) + sum(shape))
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
        if x.numel() > 8:
            x.view(-1)[3] = -torch.inf
            x.view(-1)[-2] = -15
            x.view(-1)[5] = 5
        if self.op == "weighted_sample" and not self.arguments.get("log_weights"):
            x = x.exp()
            if x.numel() > 8:
                x.view(-1)[6] = 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # subnormal
        return x.to(dtype).to(device)

    def call(self, x, key, **more):
        """Through the public function."""
        return getattr(pysel, self.op)(x, key=key, **self.arguments | more)

    def raw_arguments(self, x, key, **more):
        return RAW[self.op](x, key=key, **self.arguments | more)

    def reference(self, x, key, **more):
        return reference.OPS[self.op](*self.raw_arguments(x, key, **more))

    def assert_agree(self, got, wanted):
        """Equal bits; 4 ulp on other devices where floats are added up, in whatever order suits them."""
        if self.sums and got.device.type != "cpu":
            assert_within_ulps(got, wanted, 4)
        else:
            assert_same_bits(got, wanted)


def _samples():
    for op in ("gumbel_softmax", "gumbel_sigmoid"):
        for hard in (False, True):
            yield OpSample(op, (5, 37), {"tau": 0.7, "hard": hard})
            yield OpSample(op, (2050,), {"hard": hard, "start": 5})
    for op in ("gumbel_softmax", "gumbel_argmax"):
        for shape, dim in (((37, 5), 0), ((3, 41, 4), 1)):
            yield OpSample(op, shape, {"dim": dim})
    yield OpSample("gumbel_softmax", (3, 41, 4), {"dim": 1, "hard": True, "start": 11})
    yield OpSample("gumbel_argmax", (5, 37))
    yield OpSample("gumbel_argmax", (2050,), {"start": 5})
    for order in ("draw", "index", "shuffled"):
        yield OpSample("weighted_sample", (300,), {"k": 40, "order": order})
        yield OpSample("weighted_sample", (300,), {"k": 500, "replacement": True, "order": order})
    yield OpSample("weighted_sample", (4, 61), {"k": 50, "log_weights": True, "start": 6})
    yield OpSample("weighted_sample", (4, 61), {"k": 80, "replacement": True, "log_weights": True, "start": 7})
    yield OpSample("weighted_sample", (61,), {"k": 60})  # every weight that is not 0


SAMPLES = list(_samples())
ONE_OF_EACH = list({(s.op, s.arguments.get("hard"), s.arguments.get("replacement")): s for s in SAMPLES}.values())
