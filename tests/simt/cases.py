"""Calls that the interpreter repeats on the CUDA kernels, family by family; the native CPU ops give the answers.

Small ones: the interpreter runs about a million simple steps of CUDA threads a second, and every case runs some
twenty-five times. A case earns its place by a path that no other takes: a short last block, a row longer than a block,
a dtype, a tie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

import pysel


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of torch.ops.pysel.<op>, its arguments on the CPU."""

    op: str
    args: tuple[Any, ...]
    ulps: int = 0
    """Distance of floats to the native op, in results and in arguments that the op writes; 0: the same bits."""
    note: str = ""
    tsan: bool = False
    """Whether the thread sanitizer runs it, too: for cases with few threads."""
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self):
        def word(x):
            if isinstance(x, torch.Tensor):
                dtype = str(x.dtype).removeprefix("torch.")
                return f"{dtype}[{','.join(map(str, x.shape))}]" if x.dim() else str(x.item())
            return str(x)

        arguments = [*map(word, self.args), *(f"{name}={word(x)}" for name, x in self.kwargs.items())]
        return f"{self.op}({', '.join(arguments)})" + (f" {self.note}" if self.note else "")


FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {}


def family(generator: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
    FAMILIES[generator.__name__] = generator
    return generator


def cases(tsan: bool = False) -> list[Case]:
    """All cases, or those for the thread sanitizer, in a fixed order."""
    return [case for generator in FAMILIES.values() for case in generator() if case.tsan or not tsan]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@family
def random():
    key = pysel.key(20_240_601)
    for n, start in ((0, 0), (1, 3), (256, 0), (700, 2**34 + 1)):
        yield Case("random_words", (key, 0, start, n), tsan=n == 256)
    for stream in range(1, 6):
        yield Case("random_words", (key, stream, 2**63 - 300, 261))
    yield Case("random_words", (torch.stack([key, key], dim=1)[:, 0], 0, 0, 5), note="strided key")
    for n in (0, 1, 257):
        yield Case("split", (key, n), tsan=n == 1)
    for data in (0, 1, 2**63 - 1):
        yield Case("fold_in", (key, data))
    for n, start, stop in ((0, 0, 0), (1, 0, 1), (300, 0, 300), (300, 200, 290), (1024, 5, 1000), (1025, 9, 9)):
        yield Case("permutation", (n, key, start, stop), tsan=stop == 290)
    for n, start, stop in (
        (1025, 0, 1025),
        (4001, 3, 3500),
        (2**40, 2**39, 2**39 + 300),
        (2**63 - 1, 2**62, 2**62 + 5),
    ):
        yield Case("permutation", (n, key, start, stop), tsan=n == 2**40)
    yield Case("permutation", (5000, torch.stack([key, key], dim=1)[:, 0], 0, 9), note="strided key")
    bits = torch.randint(-(2**63), 2**63 - 1, (3, 100), generator=generator(1))
    ends = torch.tensor([-(2**63), -1, 0, 1, 2**52 - 1, 2**52, -(2**52) - 1, 2**63 - 1])
    for kind in ("exponential", "gumbel", "logistic"):
        for double_precision in (False, True):
            yield Case("noise", (bits, kind, double_precision), tsan=kind == "gumbel")
            yield Case("noise", (ends, kind, double_precision))
    yield Case("noise", (bits.t(), "gumbel", False), note="transposed")
    yield Case("noise", (bits[:0], "gumbel", False))
    # What both refuse, in the same words.
    for bad in (-1, 6):
        yield Case("random_words", (key, bad, 0, 5))
    yield Case("random_words", (key, 0, -1, 5))
    yield Case("random_words", (key, 0, 0, -1))
    yield Case("split", (key, -1))
    yield Case("fold_in", (key, -1))
    yield Case("permutation", (-1, key, 0, 0))
    yield Case("noise", (bits, "normal", False))
    yield Case("noise", (bits.int(), "gumbel", False))


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KEY = torch.tensor([-3, 2**32 - 3000])
"""The block counter's low word overflows within the first elements."""


@family
def gumbel():
    g = generator(2)
    tau, one = (torch.tensor(t, dtype=torch.float64) for t in (0.7, 1.0))  # at 1, soft samples have kernels' other half

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        x = 2 * torch.randn(size, generator=g, dtype=torch.float64)
        if x.numel() > 8:
            x.view(-1)[3], x.view(-1)[-2], x.view(-1)[5] = -torch.inf, -15, 5
        return x.to(dtype)

    def calls(x: torch.Tensor, dim: int = -1, start: int = 0, tsan: bool = False) -> Iterator[Case]:
        grad = torch.randint(-8, 9, x.shape, generator=g).to(x.dtype)
        yield Case("gumbel_softmax", (x, tau, KEY, dim, False, start, None), tsan=tsan)
        yield Case("gumbel_softmax", (x, one, KEY, dim, False, start, None), tsan=tsan)
        yield Case("gumbel_softmax", (x, tau, KEY, dim, True, start, None), tsan=tsan)
        yield Case("gumbel_argmax", (x, KEY, dim, start, None), tsan=tsan)
        yield Case("gumbel_softmax_backward", (grad, x.exp2().float().softmax(dim).to(x.dtype), tau, dim), ulps=2**40)
        # eighths, whose products add up exactly
        y = torch.randint(0, 9, x.shape, generator=g).to(x.dtype) / 8
        if x.shape[dim] < 50:
            yield Case("gumbel_softmax_backward", (grad, y, tau, dim), tsan=tsan)

    # Parts of a warp a row, a warp, blocks of two sizes.
    for dtype in FLOATS:
        yield from calls(normal(5, 37, dtype=dtype), start=3, tsan=dtype == torch.float32)
        yield from calls(normal(3, 200, dtype=dtype), start=1)
    for shape in ((1,), (3, 1), (9, 2), (40, 3), (21, 10), (4, 128), (2, 1025), (1, 2050)):
        yield from calls(normal(*shape), start=len(shape) + shape[-1])
    yield from calls(normal(7, 1030), start=2, tsan=True)  # a block takes several rows, one after the other
    yield from calls(normal(4, 1100)[:, ::2], start=2)  # strided
    yield from calls(normal(1201)[1:].view(3, 400))  # unaligned
    # Dimensions that are not the last.
    for dtype in FLOATS:
        yield from calls(normal(37, 5, dtype=dtype), 0)
    yield from calls(normal(3, 41, 4), 1, 11)
    # Rows that fill their threads.
    for shape in ((70, 4), (9, 64), (3, 128), (1, 1024), (1, 2048)):
        yield from calls(normal(*shape), start=2**34)
    yield Case("gumbel_softmax", (normal(1, 32_768), tau, KEY, -1, False, 4, None))
    # The most that a thread holds; rows in parts.
    for dtype in (torch.float32, torch.float64):
        for t in (tau, one):
            yield Case("gumbel_softmax", (normal(1, 16_500, dtype=dtype), t, KEY, -1, False, 1, None))
    for t in (tau, one):
        yield Case("gumbel_softmax", (normal(1, 33_000, dtype=torch.float16), t, KEY, -1, False, 1, None))
    yield Case("gumbel_argmax", (normal(2, 131_100), KEY, -1, 1, None))
    yield Case("gumbel_softmax", (torch.full((2, 5000), -100.0), tau, KEY, -1, True, 0, None), note="equal logits")
    # Gradients, divided by tau and multiplied by its reciprocal.
    for width, dtype in ((32_768, torch.float32), (16_000, torch.float64), (65_600, torch.float32)):
        y = torch.randint(0, 9, (2, width), generator=g).to(dtype) / 8
        grad = torch.randint(-8, 9, y.shape, generator=g).to(dtype)
        for t in (tau, one / 2):
            yield Case("gumbel_softmax_backward", (grad, y, t, -1))
    for t in (2.0**-140, 2.0**127):  # the least divisor; one whose reciprocal is subnormal
        yield Case("gumbel_softmax", (normal(2, 300), one * t, KEY, -1, False, 0, None))
    # Awkward values.
    broken = normal(4, 50)
    broken[0, 7] = broken[0, 3] = broken[2, 49] = torch.nan
    broken[1] = torch.where(torch.arange(50) == 20, -1e30, -torch.inf)
    for t in (one, torch.tensor(1e-30), torch.tensor(1e30), torch.tensor(0.3, dtype=torch.float16)):
        yield Case("gumbel_softmax", (broken, t, KEY, -1, False, 0, None), note="NaN and -inf")
    yield Case("gumbel_softmax", (broken, one * 0, KEY, -1, True, 0, None), note="NaN and -inf")
    yield Case("gumbel_argmax", (broken, KEY, -1, 0, None), note="NaN and -inf")
    yield Case("gumbel_softmax_backward", (broken.nan_to_num(neginf=0), broken, one * 0, -1), note="tau 0")
    infinite = broken.index_fill(1, torch.tensor([30]), torch.inf)
    infinite[3] = -torch.inf
    yield Case("gumbel_softmax", (infinite, one, KEY, -1, False, 0, False), ulps=1, note="unchecked: NaN of any sign")
    yield Case("gumbel_argmax", (infinite, KEY, -1, 0, False), note="unchecked")
    # The two-class case.
    for dtype in FLOATS:
        x, grad = normal(3, 333, dtype=dtype), normal(3, 333, dtype=dtype)
        for hard in (False, True):
            yield Case("gumbel_sigmoid", (x, tau, KEY, hard, 3, None), tsan=dtype == torch.float32)
        yield Case("gumbel_sigmoid_backward", (grad, x, tau, KEY, 3))
    extreme = torch.tensor([-torch.inf, torch.nan, 1e30, -1e30, 200.0, -200.0, 0.0])
    for t in (one, one * 1e-300):
        yield Case("gumbel_sigmoid", (extreme, t, KEY, False, 0, None))
        yield Case("gumbel_sigmoid_backward", (torch.ones(7), extreme, t, KEY, 0))
    yield Case("gumbel_sigmoid_backward", (torch.ones(7), extreme, one * 0, KEY, 0))
    yield Case("gumbel_sigmoid", (normal(8, 300)[::2].t(), tau, KEY, False, 9, None), note="transposed")
    # Into memory of the caller's.
    x = normal(6, 70)
    yield Case("gumbel_softmax", (x, tau, KEY, -1, False, 0, None), kwargs={"out": torch.zeros(6, 70)})
    yield Case("gumbel_sigmoid", (x, tau, KEY, False, 0, None), kwargs={"out": torch.zeros(6, 70)})
    for shape in ((0, 4), (3, 0)):
        yield Case("gumbel_softmax", (torch.zeros(shape), tau, KEY, -1, False, 0, None))


@family
def select():
    g = generator(3)

    def scores(n: int, dtype: torch.dtype, distinct: bool = True) -> torch.Tensor:
        x = 1000 * torch.randn(n, generator=g)
        return (x if distinct else (x / 1000).round()).to(dtype)

    for dtype in (*FLOATS, torch.int32, torch.int64):
        for largest in (True, False):
            yield Case("select", (scores(300, dtype), 40, largest, None, None, None, None), tsan=dtype == torch.float32)
        # as many candidates as there is room for, and more
        yield Case("select", (scores(9000, dtype, False), 4000, True, None, None, None, None), note="ties")
    for n, k in ((0, 0), (1, 0), (1, 1), (5, 3), (257, 257), (8192, 100), (8193, 8192), (20_000, 10_000)):
        yield Case("select", (scores(n, torch.float32), k, True, None, None, None, None))
    yield Case("select", (torch.zeros(9001), 700, False, None, None, None, None), note="all equal")
    yield Case("select", (torch.tensor([0.0, -0.0] * 50), 30, True, None, None, None, None), note="signed zeros")
    nan = scores(400, torch.float64)
    nan[::7], nan[5], nan[6] = torch.nan, torch.inf, -torch.inf
    for largest in (True, False):
        yield Case("select", (nan, 90, largest, None, None, None, False), note="NaN, unchecked")
    yield Case("select", (scores(3000, torch.float32)[1::3], 77, True, None, None, None, None), note="strided")
    yield Case(
        "select",
        (scores(3000, torch.float32), 77, True, None, None, None, None),
        kwargs={"out": torch.zeros(77).long()},
    )


@family
def sample():
    g = generator(4)

    def weights(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        x = (2 * torch.randn(size, generator=g, dtype=torch.float64)).exp()
        if x.numel() > 8:
            x.view(-1)[3], x.view(-1)[6] = 0, 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        return x.to(dtype)

    def crowded(n: int, at: float, log_weights: bool, dtype: torch.dtype) -> tuple[torch.Tensor, int, int]:
        """Weights of which some, also of those with the most noise, have keys as near to `at` as rounding lets them be,
        and how many keys are above these, and above the others."""
        noise = torch.ops.pysel.race_keys(torch.zeros(n, dtype=torch.float64), True, KEY, 0)
        place, far = torch.rand(n, generator=g), 1 + 4 * torch.rand(n, generator=g)
        near = (place < 0.06) | (noise > 6)
        above = ~near & (place > 0.6)
        w = at + torch.where(near, 0, torch.where(above, far, -far)) - noise
        return (w if log_weights else w.exp()).to(dtype), int(above.sum()), int((above | near).sum())

    def beside(aside: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Logarithms of weights, and two k. In the sample, which takes every other quad, 1500 keys are equal, and an
        end of the bracket is one of them. The k-th largest is `aside` units in the last place beyond that end, where
        the bracket tells half of equal keys, as their weights are rounded, and not the other half; or it is far below
        both ends, and there are not enough above."""
        i, place = torch.arange(9001), torch.rand(9001, generator=g)
        sampled = (i // 4 % 2 == 1) & (i < 8192)
        unsampled = torch.where(place < 0.08, 1000, torch.where(place < 0.15, aside, -1000))
        units = torch.where(sampled, torch.where(place < 0.37, 0, -1000), unsampled)
        noise = torch.ops.pysel.race_keys(torch.zeros(9001), True, KEY, 0)
        w = (1e5 + 2.0**-7 * units.double() - noise.double()).float()
        k = int((units > aside).sum() + (units == aside).sum() * (0.75 if aside > 0 else 0.25))
        return w, (k, int((units >= 0).sum()) + 5)

    def calls(w: torch.Tensor, k: int, start: int = 0, tsan: bool = False) -> Iterator[Case]:
        for order in ("draw", "index", "shuffled"):
            for log_weights in (False, True):
                x = w.log() if log_weights else w
                more = {"tsan": tsan and order == "draw"}
                yield Case("weighted_sample", (x, k, False, log_weights, order, None, None, KEY, start, None), **more)
                if order != "shuffled":
                    yield Case(
                        "weighted_sample", (x, 2 * k, True, log_weights, order, None, None, KEY, start, None), **more
                    )

    for dtype in FLOATS:
        yield from calls(weights(300, dtype=dtype), 40, tsan=dtype == torch.float32)
        yield from calls(weights(24, 61, dtype=dtype), 50, 6)  # more rows than are selected from at a time
    yield from calls(weights(1), 1, 5)
    yield from calls(weights(9001), 8000, 3)
    for k in (0, 1, 10_000):
        yield Case("weighted_sample", (weights(20_001), k, False, False, "index", None, None, KEY, 1, None))
    yield Case("weighted_sample", (weights(2, 33_000), 70, True, False, "draw", None, None, KEY, 1, None), note="parts")
    # Rows long enough for a bracket: keys at its ends, weights beyond its range, ends that are no numbers.
    for dtype in FLOATS:
        for log_weights in (False, True):
            w = weights(2, 9001, dtype=dtype)
            args = (w.log() if log_weights else w, 900, False, log_weights, "index", None, None, KEY, 2, None)
            yield Case("weighted_sample", args)
        # Rows of unlike weights, of equal ones, and of no more that may be chosen than are wanted.
        three = torch.stack([weights(9001), torch.ones(9001), torch.zeros(9001).index_fill(0, torch.arange(899), 1)])
        for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
            args = (three[order].to(dtype), 899, False, False, "index", None, None, KEY, 2, None)
            yield Case("weighted_sample", args, note="rows that end apart")
    for dtype in (torch.float32, torch.float64):
        for log_weights in (False, True):
            for at in (0, 60, -60, *([100_000] if log_weights else [])):
                w, above, others = crowded(20_001, at, log_weights, dtype)
                for k in (above + 100, others - 100):  # the lower end is in the crowd, or the upper one
                    args = (w, k, False, log_weights, "index", None, None, KEY, 0, None)
                    yield Case("weighted_sample", args, note=f"keys that crowd at {at}")
    for aside in (-12, 12):
        w, both = beside(aside)
        for k in both:
            args = (w, k, False, True, "index", None, None, KEY, 0, None)
            yield Case("weighted_sample", args, note="keys just outside the bracket")
    # exp(-key) is no normal number, and the word at 313 so high that nothing is told of it, whatever its weight
    large = torch.full((9001,), 86.0).index_fill(0, torch.tensor(313), 93 - 15.19).exp()
    yield Case("weighted_sample", (large, 1, False, False, "index", None, None, KEY, 232_000, None), note="large")
    for scale in (1e-42, 1e-38, 1e36):
        w = weights(9001).clamp(max=100) * scale
        yield Case("weighted_sample", (w, 900, False, False, "index", None, None, KEY, 0, None), note=f"{scale}")
    sparse = torch.where(torch.rand(9001, generator=g) < 0.9, 0, weights(9001))
    for k in (1, 400, int((sparse > 0).sum())):
        yield Case("weighted_sample", (sparse, k, False, False, "index", None, None, KEY, 0, None), note="mostly 0")
        args = (sparse.log(), k, False, True, "index", None, None, KEY, 0, None)
        yield Case("weighted_sample", args, note="mostly 0")
    broken = weights(9001)
    broken[::900], broken[7::900], broken[8::900] = -1, torch.inf, torch.nan
    for k in (5, 900, 8990):
        for w in (broken, broken.log()):
            args = (w, k, False, w is not broken, "index", None, None, KEY, 0, False)
            yield Case("weighted_sample", args, note="unchecked")
    equal = torch.full((1000,), 1e30)
    yield Case("weighted_sample", (equal, 500, False, True, "draw", None, None, KEY, 0, None), note="equal keys")
    few = torch.zeros(500).index_fill(0, torch.tensor([3, 255, 499]), 1.0)
    for order in ("draw", "index"):
        yield Case(
            "weighted_sample", (few, 3, False, False, order, None, None, KEY, 0, None), note="all that are not 0"
        )
        yield Case("weighted_sample", (few, 600, True, False, order, None, None, KEY, 0, None), note="mostly 0")
    yield Case("weighted_sample", (few, 9, False, False, "index", None, None, KEY, 0, False), note="unchecked")
    yield Case("weighted_sample", (few * 0, 9, True, False, "index", None, None, KEY, 0, False), note="unchecked")
    yield Case(
        "weighted_sample", (weights(3000)[::3], 77, False, False, "draw", None, None, KEY, 2, None), note="strided"
    )
    for order in ("draw", "index", "shuffled"):
        for replacement in (False, True):
            args = (weights(2, 300), 90, replacement, False, order, None, None, KEY, 0, None)
            yield Case("weighted_sample", args, kwargs={"out": torch.zeros(2, 90, dtype=torch.int64)})


@family
def usage():
    g = generator(5)

    def numbers(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.rand(n, generator=g).to(dtype)

    def counts_of(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        counts = torch.randint(0, 50, (n,), generator=g)
        return counts.to(dtype) + numbers(n, dtype) if dtype.is_floating_point else counts.to(dtype)

    def picks(n: int, m: int) -> torch.Tensor:
        return torch.randint(0, n, (m,), generator=g)

    floats = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    for counts in (torch.float32, torch.float64, torch.int32, torch.int64):
        for scores in floats:
            decay = 0.9 if counts.is_floating_point else 1.0
            for form in ("log", "linear", "exp", "rate"):
                yield Case("usage_penalty", (numbers(37, scores), counts_of(37, counts), 0.3, form, 7))
            args = (counts_of(33, counts), picks(33, 40), numbers(33, scores), 0.3, decay, "exp", 1)
            yield Case("usage_step_", args, note="in no order")
            args = (counts_of(33, counts), picks(33, 9).sort().values, numbers(33, scores), 0.3, decay, "log", 1)
            yield Case("usage_step_", args, note="ascending")
        yield Case("usage_update_", (counts_of(300, counts), picks(300, 260), 1.0), tsan=True)
    for n, m in ((0, 0), (1, 0), (1, 3), (31, 5), (2048, 100), (2049, 257), (5000, 1025)):
        for order in ("ascending", "in no order"):
            selected = picks(n, m) if n else torch.zeros(0, dtype=torch.int64)
            selected = selected.sort().values if order == "ascending" else selected
            for decay in (1.0, 0.75):
                small = n == 31
                yield Case("usage_update_", (counts_of(n), selected, decay), note=order, tsan=small)
                args = (counts_of(n), selected, numbers(n), 0.25, decay, "linear", 1)
                yield Case("usage_step_", args, note=order, tsan=small)
    for decay in (1.0, 0.75):
        for n, selected in ((7000, picks(7000, 900)), (5, torch.tensor([4, 4]))):
            yield Case("usage_update_", (counts_of(n), selected, decay), note="more than a grid takes at once, or two")
            args = (counts_of(n), selected, numbers(n), 0.25, decay, "linear", 1)
            yield Case("usage_step_", args, note="more than a grid takes at once, or two")
    one = torch.full((600,), 4000)
    args = (counts_of(5000), one, numbers(5000), 0.1, 0.5, "linear", 1)
    yield Case("usage_step_", args, note="all at one place")
    args = (counts_of(5000), one.index_fill(0, torch.tensor(599), 3), numbers(5000), 0.1, 0.5, "linear", 1)
    yield Case("usage_step_", args, note="nearly all at one place")
    # Bits of a warp's neighbours in one word, of several and of all its lanes; some again, within a warp and beyond it.
    dense = torch.arange(700)
    for selected, note in (
        (dense, "all"),
        (torch.cat([dense, dense[::3]]), "a third of all again"),
        (dense.repeat_interleave(2), "each twice, one after the other"),
        (torch.cat([dense[::5], dense[1::5]]).sort().values, "two of five"),
        (dense // 40 * 40, "one place a warp and a bit"),
        (torch.tensor([5, 70, 5, 71, 70, 5, 6]), "a word again behind another"),
    ):
        for decay in (1.0, 0.75):
            args = (counts_of(700), selected, numbers(700), 0.25, decay, "linear", 1)
            yield Case("usage_step_", args, note=note, tsan=note.startswith("a "))
            yield Case("usage_update_", (counts_of(700, torch.float64), selected, decay), note=note)
    full = torch.full((9,), 2.0**24 - 3)
    for selected in (torch.tensor([4] * 8), torch.tensor([4] * 8 + [1])):
        yield Case("usage_update_", (full, selected, 1.0), note="counts at 2**24")
        yield Case("usage_step_", (full, selected, numbers(9), 1e-7, 0.999, "linear", 1), note="counts at 2**24")
    for dtype in (torch.int32, torch.int64):
        few = torch.iinfo(dtype).max - torch.arange(40, dtype=dtype) % 7
        few[::5] = torch.iinfo(dtype).min
        for selected in (picks(40, 200), picks(40, 200).sort().values):
            yield Case("usage_update_", (few, selected, 1.0), note="counts near their largest", tsan=True)
            yield Case(
                "usage_step_", (few, selected, numbers(40), 0.1, 1.0, "log", 1), note="counts near their largest"
            )
    negative = torch.tensor([-3.0, -0.5, -1e-30, -2000.0, 0.0, float("inf"), float("nan"), 3e38])
    for form in ("log", "linear", "exp", "rate"):
        args = (negative, torch.tensor([0, 1, 1, 2]), numbers(8), 3e38, 1.0, form, 3)
        yield Case("usage_step_", args, note="extreme counts")
        yield Case("usage_penalty", (numbers(8), negative, 1e300, form, 3), note="a gamma beyond float32")
    wide, odd = counts_of(9000), counts_of(2101)
    args = (wide[::3], picks(3000, 99).sort().values, numbers(6000)[::2], 0.2, 0.9, "exp", 1)
    yield Case("usage_step_", args, note="strided")
    args = (wide[::3], picks(3000, 99), numbers(6000)[::2], 0.2, 0.9, "exp", 1)
    yield Case("usage_step_", args, note="strided, in no order")
    args = (odd[1:], picks(2100, 99).sort().values, numbers(2103)[3:], 0.2, 0.9, "rate", 4)
    yield Case("usage_step_", args, note="unaligned")
    yield Case("usage_penalty", (numbers(80).view(8, 10).t(), counts_of(80).view(10, 8), 0.5, "linear", 1), note="2-d")
    # Into memory of the caller's, which may be that of the scores.
    score, counts = numbers(5000), counts_of(5000)
    for out in (score, torch.zeros(5001)[1:]):
        yield Case("usage_penalty", (score, counts, 0.3, "exp", 1), kwargs={"out": out})
        for selected in (picks(5000, 70), picks(5000, 70).sort().values):
            yield Case("usage_step_", (counts, selected, score, 0.3, 0.9, "linear", 1), kwargs={"out": out})
    # What both refuse, in the same words.
    for bad in (
        {"counts": counts.half()},
        {"counts": counts.view(50, 100)},
        {"counts": torch.zeros(1).expand(5000)},
        {"counts": counts.int()},
        {"selected": selected.view(1, -1)},
        {"selected": selected.int()},
        {"decay": -0.5},
        {"decay": 1.5},
        {"scores": score[1:]},
        {"scores": score.int()},
        {"gamma": -1.0},
        {"form": "square"},
        {"step": 0},
    ):
        good = {"counts": counts, "selected": selected, "scores": score, "gamma": 0.3, "decay": 0.9}
        args = good | {"form": "exp", "step": 1} | bad
        yield Case("usage_step_", tuple(args.values()), note=f"bad {next(iter(bad))}")
        yield Case("usage_update_", (args["counts"], args["selected"], args["decay"]), note=f"bad {next(iter(bad))}")
        penalty = (args["scores"], args["counts"], args["gamma"], args["form"], args["step"])
        yield Case("usage_penalty", penalty, note=f"bad {next(iter(bad))}")
    for out in (score[1:], score.double(), torch.zeros(10_000)[::2], counts):
        yield Case("usage_penalty", (score, counts, 0.3, "exp", 1), kwargs={"out": out}, note="bad out")
        yield Case("usage_step_", (counts, selected, score, 0.3, 0.9, "exp", 1), kwargs={"out": out}, note="bad out")
    args = (counts, selected, score, 0.3, 0.9, "exp", 1)
    yield Case("usage_step_", args, kwargs={"out": torch.zeros(0)}, note="bad out")


@family
def codes():
    g = generator(6)

    # Eighths: products and their sums are exact, so that the order of a sum is not what decides.
    def eighths(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return (torch.randint(-8, 9, size, generator=g) / 8).to(dtype)

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(size, generator=g).to(dtype)

    def factors(b: int, k: int, h: int) -> torch.Tensor:
        return torch.randint(0, max(h, 1), (b, k), generator=g)

    shapes = [(5, 3, 40, 16), (1, 1, 1, 1), (0, 3, 5, 4), (3, 0, 5, 4), (2, 3, 5, 0), (4, 33, 300, 31), (2, 1, 7, 33)]
    shapes += [(3, 9, 70_000, 2), (2, 257, 50, 4), (33, 65, 9, 8), (1, 3, 4, 1025), (2, 2, 3, 1028)]
    for b, k, h, d in shapes:
        tsan = (b, k) in ((5, 3), (2, 1))
        indices = factors(b, k, h)
        yield Case("sparse_decode", (normal(b, k), indices, normal(h, d), normal(d)), tsan=tsan)
        yield Case("sddmm", (indices, eighths(h, d), eighths(b, d)), tsan=tsan)
        yield Case("factor_counts", (normal(b, k), indices, h, None, None), tsan=tsan)
        yield Case("factor_scores", (normal(b, k), indices, normal(2, h), "mean", False), tsan=tsan)
        if h < 1000:
            yield Case("spmm_t", (normal(b, k), indices, normal(b, d), h), tsan=tsan)
        if h < 40:
            args = (eighths(b, d), normal(b, k), indices, eighths(h, d))
            yield Case("sparse_decode_backward", args, tsan=tsan)
    yield Case("sparse_decode", (normal(0, 0), factors(0, 0, 0), normal(0, 5), None), note="no factors")
    yield Case("spmm_t", (normal(0, 3), factors(0, 3, 0), normal(0, 5), 0), note="no factors")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        for d in (24, 7):
            indices = factors(6, 5, 20)
            yield Case("sparse_decode", (normal(6, 5, dtype=dtype), indices, normal(20, d, dtype=dtype), None))
            yield Case("sddmm", (indices, eighths(20, d, dtype=dtype), eighths(6, d, dtype=dtype)))
            yield Case("spmm_t", (normal(6, 5, dtype=dtype), indices, normal(6, d, dtype=dtype), 20))
        values, groups = normal(6, 5, dtype=dtype), torch.randint(0, 3, (6,), generator=g)
        yield Case("factor_counts", (values, indices, 20, groups, 3))
        yield Case("factor_scores", (values, indices, normal(20, dtype=torch.float64), "sum", True))
    positive = torch.rand(4, 700, generator=g)
    yield Case("sddmm", (factors(4, 3, 9), torch.rand(9, 700, generator=g), positive), ulps=16, note="inexact")

    for b, k in ((70, 33), (2100, 2)):
        one = torch.full((b, k), 3)
        yield Case("spmm_t", (normal(b, k), one, normal(b, 4), 9), note="one factor")
        yield Case("factor_counts", (normal(b, k), one, 9, None, None), note="one factor")
    args = (normal(2100, 2), factors(2100, 2, 1000), normal(2100, 1), 1000)
    yield Case("spmm_t", args, note="several tiles, two digits")
    twice = factors(3, 600, 40)
    values = normal(3, 600)
    yield Case("factor_counts", (values, twice, 40, torch.tensor([1, 0, 1]), 4), note="factors listed often")
    groups = torch.randint(0, 5, (2, 40), generator=g)[0]
    yield Case("factor_counts", (normal(2, 40).t(), factors(2, 40, 9).t(), 9, groups, 5), tsan=True, note="transposed")
    yield Case("factor_counts", (normal(0, 3), factors(0, 3, 5), 5, groups[:0], 2), note="groups of nothing")
    for reduce in ("sum", "mean"):
        for weighted in (False, True):
            args = (values, twice, normal(5, 40), reduce, weighted)
            yield Case("factor_scores", args, note="factors listed often, several tables")
            args = (normal(4, 40), factors(4, 40, 9), normal(9, 3).t(), reduce, weighted)
            yield Case("factor_scores", args, tsan=True, note="several tables, transposed")
    for tables in (normal(0, 40), normal(40)):
        yield Case("factor_scores", (-values.abs(), twice, tables, "mean", True), note="nothing active")
    edge = torch.tensor([[0.0, -0.0, float("nan"), float("inf"), 1e-45, -1.0]])
    yield Case("factor_counts", (edge, torch.arange(6).view(1, 6), 6, None, None), note="what is active")
    infinite = torch.tensor([[float("inf"), float("nan"), float("inf"), 1.0, -2.0, float("nan")]])
    yield Case("factor_scores", (edge, torch.arange(6).view(1, 6), infinite, "sum", False), note="what is active")
    # What both refuse, in the same words.
    yield Case("factor_counts", (values, twice, 40, torch.tensor([1, 0]), 4))
    yield Case("factor_counts", (values, twice, 40, torch.tensor([1, 0, 1]), None))
    yield Case("factor_scores", (values, twice, normal(40, dtype=torch.float16), "sum", False))
    yield Case("factor_scores", (values, twice, normal(40), "max", False))

    indices, weight = factors(5, 8, 12), normal(13, 8)
    flat = normal(1 + 12 * 8)
    yield Case("sparse_decode", (normal(8, 5).t(), indices, weight[1:].t().contiguous().t(), None), note="transposed")
    yield Case("sparse_decode", (normal(5, 8), indices, flat[1:].view(12, 8), None), note="unaligned")
    args = (normal(5, 8), indices, normal(12, 8), normal(8))
    yield Case("sparse_decode", args, kwargs={"out": torch.zeros(41)[1:].view(5, 8)}, note="unaligned result")
    yield Case("sparse_decode", (normal(5, 8), factors(8, 5, 7).t(), weight[::2], normal(16)[::2]), note="strided")
    yield Case("spmm_t", (normal(8, 5).t(), factors(8, 5, 12).t(), normal(41)[1:].view(5, 8), 12), note="unaligned")
    yield Case("sparse_decode_backward", (eighths(8, 5).t(), normal(5, 8), indices, eighths(8, 12).t()))
    infinite = weight.index_fill(0, torch.tensor([2, 5]), float("inf"))
    yield Case("sparse_decode", (eighths(5, 8), factors(5, 8, 13), infinite, None), note="infinite weights")


@family
def topk():
    g = generator(7)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    def rows(pattern: str, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        x = torch.randn(size, generator=g, dtype=torch.float64)
        chance = torch.rand(size, generator=g)
        if pattern == "ties":
            x = (2 * x).round()
        elif pattern == "equal":
            x = torch.full(size, -1.5)
        elif pattern == "ascending":
            x = x.sort(dim=-1).values
        elif pattern == "zeros":
            x = torch.where(chance < 0.9, torch.where(chance < 0.4, 0.0, -0.0), x * 1e-44)
        elif pattern == "nan":
            x = torch.where(chance < 0.01, torch.nan, torch.where(chance < 0.02, -torch.nan, x))
        elif pattern == "all nan":
            x = torch.where(chance < 0.5, torch.nan, -torch.nan)
        elif pattern == "infinite":
            x = torch.where(chance < 0.01, torch.inf, torch.where(chance < 0.97, -torch.inf, x))
        return x.to(dtype)

    # A warp a row, blocks of each size, buffers of each size, rows cut into parts; all sorted, or what was selected.
    shapes = [(3, 1, 1), (0, 7, 3), (2, 9, 0), (5, 33, 1), (2, 64, 32), (6, 65, 7), (1, 256, 2), (2, 256, 33)]
    shapes += [(2, 257, 32), (2, 500, 499), (1, 1025, 64), (1, 1025, 1024), (1, 1100, 1100), (1, 5000, 31)]
    shapes += [(1, 4200, 257), (5, 1090, 1030), (5, 1203, 1040), (1, 2300, 2000), (2, 9001, 1500), (1, 33_000, 2)]
    for b, n, k in shapes:
        for dtype in dtypes:
            tsan = (b, n) in ((6, 65), (2, 257), (5, 1203)) and dtype == torch.float32
            yield Case("topk", (rows("random", b, n, dtype=dtype), k), tsan=tsan)
    for pattern in ("ties", "equal", "ascending", "zeros", "nan", "all nan", "infinite"):
        for dtype, n, k in zip(dtypes, (5003, 700, 5003, 900), (33, 40, 300, 9), strict=True):
            yield Case("topk", (rows(pattern, 1, n, dtype=dtype), k), note=pattern)
        yield Case("topk", (rows(pattern, 2, 70), 9), note=pattern)
        yield Case("topk", (rows(pattern, 2, 1100), 1050), note=pattern)
        yield Case("topk", (rows(pattern, 2, 1300), 1050), note=pattern)
        yield Case("topk", (rows(pattern, 1, 8200, dtype=torch.bfloat16), 1100), note=pattern)
    yield Case("topk", (rows("random", 1025, 300)[:, :260], 33), note="more rows than make parts, strided")
    for patterns in (("random", "equal", "ties"), ("ties", "random", "nan"), ("infinite", "equal", "random")):
        apart = torch.cat([rows(pattern, 1, 9001) for pattern in patterns])
        yield Case("topk", (apart, 1200), note="rows that end apart")
    x = rows("ties", 1, 8203, dtype=torch.float16)
    yield Case("topk", (x[0, 1:], 20), note="unaligned")
    yield Case("topk", (rows("ties", 300, 5).t(), 40), note="transposed")

    def whole(*size: int, low: int = -2, high: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Whole numbers: sums of their products are exact in any order."""
        return torch.randint(low, high + 1, size, generator=g).to(dtype)

    # Several tiles, of rows and of units; parts of a tile; tiles of whole rows, all sorted, or what was selected.
    shapes = [(1, 1, 1, 1), (0, 3, 5, 2), (3, 0, 90, 70), (3, 4, 6, 0), (4, 2, 50, 50), (9, 3, 300, 20)]
    shapes += [(2, 1, 700, 300), (1, 2, 4500, 40), (3, 2, 700, 64), (4, 2, 1080, 1030), (4, 3, 1200, 1030)]
    for b, d, h, k in shapes:
        for dtype in dtypes:
            bias = whole(h, low=-4, high=1, dtype=dtype) if (b + dtypes.index(dtype)) % 2 == 0 else None
            for activation in ("relu", "abs"):
                args = (whole(b, d, dtype=dtype), whole(h, d, dtype=dtype), bias, k, activation)
                yield Case("topk_encode", args, tsan=(b, h) == (4, 50) and dtype == torch.float32)
    weight = whole(700, 1)
    none = torch.full((700,), -100.0)
    yield Case("topk_encode", (whole(3, 1), weight, none, 50, "relu"), note="nothing active")
    few = none.index_fill(0, torch.tensor([3, 4, 133, 690]), 5.0)
    yield Case("topk_encode", (whole(3, 1), weight, few, 50, "relu"), note="few active")
    args = (whole(2, 1), torch.cat([weight, weight]), torch.cat([few, none]), 1100, "relu")
    yield Case("topk_encode", args, note="few active")
    yield Case("topk_encode", (torch.ones(2, 1), weight.sort(0).values, None, 60, "relu"), note="ascending")
    rising = torch.arange(700.0).view(700, 1)
    yield Case("topk_encode", (torch.ones(2, 1), rising, None, 30, "relu"), note="rising tiles")
    yield Case("topk_encode", (torch.ones(2, 1), rising - 350, None, 30, "abs"), note="of both signs")
    broken = weight.index_fill(0, torch.tensor([7, 300, 650]), torch.nan)
    for activation in ("relu", "abs"):
        yield Case("topk_encode", (whole(3, 1), broken, None, 5, activation), note="nan")
        yield Case("topk_encode", (whole(2, 1), torch.cat([broken, -broken]), None, 1100, activation), note="nan")
        args = (whole(2, 3).t(), whole(8, 400)[::4].t(), whole(800)[::2], 33, activation)
        yield Case("topk_encode", args, note="strided")

    # What both refuse, in the same words.
    yield Case("topk", (torch.tensor(1.0), 1))
    yield Case("topk", (rows("random", 2, 3), 4))
    yield Case("topk", (torch.ones(2, 3, dtype=torch.int64), 1))
    yield Case("topk_encode", (whole(3), whole(4, 2), None, 1, "relu"))
    yield Case("topk_encode", (whole(3, 2), whole(4, 3), None, 1, "relu"))
    yield Case("topk_encode", (whole(3, 2), whole(4, 2).double(), None, 1, "relu"))
    yield Case("topk_encode", (whole(3, 2), whole(4, 2), whole(3), 1, "relu"))
    yield Case("topk_encode", (whole(3, 2), whole(4, 2), whole(4), -1, "abs"))
    yield Case("topk_encode", (whole(3, 2), whole(4, 2), whole(4), 1, "gelu"))


def quotas_of(groups: torch.Tensor, count: int, g: torch.Generator) -> torch.Tensor:
    """Some of each group; of every fifth nothing, of every seventh all."""
    sizes = torch.bincount(groups.long(), minlength=count)
    quotas = (sizes * torch.rand(count, generator=g)).long()
    quotas[::5] = 0
    quotas[1::7] = sizes[1::7]
    return quotas


@family
def groups():
    g = generator(8)

    def grouped(n: int, count: int, dtype: torch.dtype = torch.int64) -> tuple[int, torch.Tensor, torch.Tensor]:
        of = torch.randint(0, count, (n,), generator=g).to(dtype)
        quotas = quotas_of(of, count, g)
        return int(quotas.sum()), of, quotas

    def scores(n: int, dtype: torch.dtype = torch.float32, distinct: bool = True) -> torch.Tensor:
        x = 1000 * torch.randn(n, generator=g)
        return (x if distinct else (x / 1000).round()).to(dtype)

    # Digits of 8 and of 4 bits, counted in a block's memory and beyond it.
    for dtype in (*FLOATS, torch.int32, torch.int64):
        for count in (3, 40):
            for distinct in (True, False):
                largest, key = distinct == (count == 3), None if distinct else KEY
                k, of, quotas = grouped(400, count, torch.int32 if largest else torch.int64)
                args = (scores(400, dtype, distinct), k, largest, of, quotas, key, None)
                yield Case("select", args, tsan=dtype == torch.float32)
    k, of, quotas = grouped(2000, 520)
    yield Case("select", (scores(2000, torch.bfloat16), k, True, of, quotas, KEY, None))
    yield Case("select", (torch.ones(2000), k, True, of, quotas, KEY, None, 2**33 + 1), note="a shard's ties")
    yield Case("select", (torch.ones(2000), k, True, None, None, KEY, None, 7), note="a shard's ties")
    # Candidates late, and never.
    for n, count, key in ((9001, 1, None), (9001, 5, KEY), (9500, 40, None)):
        k, of, quotas = grouped(n, count)
        yield Case("select", (scores(n), k, True, of, quotas, key, None))
        yield Case("select", (torch.zeros(n), k, True, of, quotas, key, None), note="all equal")
    of, quotas = torch.arange(9600) // 16, torch.full((600,), 8)
    yield Case("select", (torch.zeros(9600).bfloat16(), 4800, True, of, quotas, None, None), note="equal neighbours")
    # Awkward groups and scores.
    one, none = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    yield Case("select", (scores(0), 0, True, none, none, None, None))
    yield Case("select", (scores(0), 0, True, none, one, None, None))
    for k in (0, 1):
        yield Case("select", (scores(1), k, True, one, one + k, None, None))
    k, of, quotas = grouped(600, 9)
    yield Case("select", (scores(600), k, True, of.sort().values, quotas, None, None), note="sorted groups")
    yield Case("select", (scores(600), 600, True, of, torch.bincount(of), None, None), note="all of them")
    yield Case("select", (scores(600), 0, True, of, 0 * quotas, None, None), note="none of them")
    empty = torch.cat([quotas, 0 * quotas])
    yield Case("select", (scores(600), k, False, of, empty, None, None), note="empty groups")
    nan = scores(600, torch.float64)
    nan[::7], nan[5], nan[6] = torch.nan, torch.inf, -torch.inf
    for largest in (True, False):
        yield Case("select", (nan, k, largest, of, quotas, KEY, False), note="NaN, unchecked")
    x, twice = scores(1800)[::3], quotas.repeat_interleave(2)[::2]
    args = (x, k, True, of.repeat_interleave(2)[::2], twice, KEY[:1].expand(2), None)
    yield Case("select", args, note="strided")
    args = (scores(601)[1:], k, True, torch.cat([one, of])[1:], quotas, None, None)
    yield Case("select", args, kwargs={"out": torch.zeros(k).long()}, note="unaligned")

    # Keys without groups.
    for n, k in ((1, 1), (300, 40), (9000, 4000), (8193, 1), (20_000, 10_000)):
        for distinct in (True, False):
            args = (scores(n, distinct=distinct), k, n % 2 == 0, None, None, KEY, None)
            yield Case("select", args, tsan=n == 300)
    yield Case("select", (torch.zeros(9001), 700, False, None, None, KEY, None), note="all equal")
    yield Case("select", (torch.zeros(300), 77, True, None, None, KEY, None), note="all equal")

    # Draws.
    weights = (2 * torch.randn(900, generator=g)).exp()
    weights[3], weights[800] = 0, 1e-44
    for dtype in FLOATS:
        for count, start in ((3, 0), (40, 5)):
            k, of, quotas = grouped(900, count)
            quotas = torch.minimum(quotas, torch.bincount(of[weights.to(dtype) > 0], minlength=count))
            k = int(quotas.sum())
            for order, log_weights in (("draw", False), ("index", True), ("shuffled", False)):
                w = weights.to(dtype)
                args = (w.log() if log_weights else w, k, False, log_weights, order, of, quotas, KEY, start, None)
                yield Case("weighted_sample", args, tsan=order == "draw" and dtype == torch.float32)
    few = (torch.arange(9001) % 3 == 0).float()
    of = torch.arange(9001) % 4
    quotas = torch.bincount(of[few > 0], minlength=4)
    for order in ("draw", "index"):
        args = (few, int(quotas.sum()), False, False, order, of, quotas, KEY, 3, None)
        yield Case("weighted_sample", args, note="all that are not 0")
    args = (few, 8000, False, False, "index", of, torch.full((4,), 2000), KEY, 3, False)
    yield Case("weighted_sample", args, note="unchecked")
    equal = torch.full((1000,), 1e30)
    for order in ("draw", "index", "shuffled"):
        args = (equal, 500, False, True, order, None, None, KEY, 0, None)
        yield Case("weighted_sample", args, note="equal keys")
        args = (equal, 500, False, True, order, of[:1000], torch.full((4,), 125), KEY, 0, None)
        yield Case("weighted_sample", args, note="equal keys")
    args = (weights[::3], 60, False, False, "draw", of[:300], torch.full((4,), 15), KEY, 2, None)
    yield Case("weighted_sample", args, kwargs={"out": torch.zeros(60, dtype=torch.int64)}, note="strided")

    # What both refuse, in the same words.
    x, of, quotas = scores(6), torch.zeros(6).long(), torch.tensor([2])
    for bad in ((None, quotas), (of, None), (of[1:], quotas), (of.short(), quotas), (of, quotas.int()), (of, one[0])):
        yield Case("select", (x, 2, True, *bad, None, None))
        yield Case("weighted_sample", (x.abs(), 2, False, False, "draw", *bad, KEY, 0, None))
    yield Case("weighted_sample", (x.abs(), 2, True, False, "draw", of, quotas, KEY, 0, None))
    yield Case("weighted_sample", (x.abs().view(2, 3), 2, False, False, "draw", of.view(2, 3), quotas, KEY, 0, None))


@family
def usage_select():
    g = generator(9)

    def table(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randint(0, 9, (n,), generator=g).to(dtype) / 8

    def counts_of(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randint(0, 4, (n,), generator=g).to(dtype)

    for scores in (torch.float32, torch.float64):
        for counts in (torch.float32, torch.float64, torch.int32, torch.int64):
            for form in ("log", "linear", "exp", "rate"):
                of = torch.randint(0, 5, (300,), generator=g)
                quotas = quotas_of(of, 5, g)
                tables = (counts_of(300, counts), table(300, scores), table(300, scores), 0.3, 0.2, form, 7)
                tsan = form == "log" and counts == scores == torch.float32
                yield Case("usage_select_", (*tables, int(quotas.sum()), of, quotas, KEY, None), tsan=tsan)
                if form == "log":
                    yield Case("usage_select_", (*tables, 100, None, None, None, None), tsan=tsan)
    for n, k in ((0, 0), (1, 1), (5, 0), (5000, 2500), (9001, 4000)):
        for key in (None, KEY):
            args = (counts_of(n), table(n), torch.rand(n, generator=g), 0.7, 0.1, "log", 1, k, None, None, key, None)
            yield Case("usage_select_", args)
    of = torch.randint(0, 40, (2000,), generator=g).int()
    quotas = quotas_of(of, 40, g)
    wide = counts_of(6000)
    args = (wide[::3], table(4000)[::2], table(2001)[1:], 1.0, 0.1, "exp", 1, int(quotas.sum()), of, quotas, KEY, None)
    yield Case("usage_select_", args, note="strided and unaligned")
    nan = table(300).index_fill(0, torch.arange(0, 300, 7), torch.nan)
    args = (counts_of(300), nan, table(300), 0.5, 0.1, "log", 1, 90, None, None, None, False)
    yield Case("usage_select_", args, note="NaN, unchecked")

    # What both refuse, in the same words.
    counts, score, of, quotas = counts_of(6), table(6), torch.zeros(6).long(), torch.tensor([2])
    good = {"first": score, "second": score, "mix": 0.5, "gamma": 0.1, "form": "exp", "step": 1, "k": 2}
    good |= {"groups": of, "quotas": quotas, "key": None, "validate": None}
    for bad in (
        {"first": table(5)},
        {"second": table(7)},
        {"second": score.double()},
        {"first": score.half(), "second": score.half()},
        {"mix": 1.5},
        {"mix": -0.5},
        {"gamma": -1.0},
        {"step": 0},
        {"k": 7},
        {"k": -1},
        {"groups": None},
        {"quotas": None},
        {"groups": of[1:]},
        {"groups": of.short()},
        {"quotas": quotas.int()},
        {"quotas": quotas.view(1, 1)},
    ):
        yield Case("usage_select_", (counts, *(good | bad).values()))
    yield Case("usage_select_", (torch.zeros(1).expand(6), *good.values()), note="expanded counts")
    yield Case("usage_select_", (counts.half(), *good.values()))
