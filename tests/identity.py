"""Random calls of every op, on a device and on the CPU: the same indices and noise, bit for bit; floats within 4 ulp.

    python -m tests.identity --device cuda --cases 3000 --seed 0 --seconds 120
    python -m tests.identity --device cuda --seed 0 --case 17    one of them again
    python -m tests.identity --device cuda --table               the interpreter's small cases, in this process

On the CPU itself (--device cpu), its kernels are compared with pysel.reference; --device simt compares the interpreted
CUDA kernels with the CPU's (add --largest 2000: the interpreter is slow).

Where floats are added up in whatever order suits the device, 4 ulp are counted at the size of the sum of absolute
values, and for n > 16 numbers sqrt(n) ulp: roundings add up like a random walk. Half of those cases hold small
integers, whose sums are exact. topk_encode always does, because a library multiplies its matrices.

Each case runs to its end before the next begins. A case that breaks or hangs its process is counted, and another
process goes on behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pysel
from pysel import reference
from tests import simt
from tests.simt.cases import Case, cases
from tests.tensors import DTYPES, LAYOUTS, bits, laid_out, ulps

STUCK = 60  # seconds; a case that takes longer is given up
LARGEST = 1_000_000  # elements
ULPS = 4
IN_PLACE = {"usage_update_": 1, "usage_step_": 1, "usage_select_": 1, "update_prepared_": 3}  # arguments written


@dataclasses.dataclass(frozen=True)
class Call(Case):
    scaled: bool = False
    """Whether ulps are counted at the size of the sum of absolute values."""
    on_host: bool = False
    """Whether key and tau stay on the CPU."""


class Random(random.Random):
    """Choices that find the edges of an op."""

    def __init__(self, seed: str, largest: int) -> None:
        super().__init__(seed)
        self.largest = largest  # number of elements
        self.torch = torch.Generator().manual_seed(self.getrandbits(62))

    def size(self, largest: int, least: int = 1) -> int:
        """Small and large alike; often a power of two or one beside it."""
        n = round(2 ** self.uniform(math.log2(least), math.log2(max(least, largest))))
        if self.random() < 0.4:
            n = 2 ** round(math.log2(n)) + self.choice((-1, 0, 1))
        return min(max(n, least), largest)

    def matrix(self, least: int = 1) -> tuple[int, int]:
        columns = self.size(self.largest, least)
        return self.size(max(1, self.largest // columns)), columns

    def shape(self) -> tuple[int, ...]:
        rows, columns = self.matrix()
        inner = self.size(min(rows, 64))
        return self.choice(((columns,), (rows, columns), (rows // inner, columns, inner), (columns, rows)))

    def count(self, n: int) -> int:
        """Of n: nothing, all, a few or any number."""
        return min(n, self.choice((0, 1, n, self.size(64), self.randint(0, n))))

    def laid_out(self, x: Tensor, negated: bool = True) -> Tensor:
        """In awkward memory, one time in three."""
        layout = self.choice([name for name in LAYOUTS if negated or name != "negated"])
        awkward = self.random() < 1 / 3 and not bool(torch.isnan(x).any())
        return laid_out(x, layout) if awkward else x

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch, dtype=torch.float32)

    def uniform_(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.torch)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.torch)

    def somewhere(self, x: Tensor, share: float) -> Tensor:
        """A mask."""
        return self.uniform_(*x.shape) < share

    def key(self) -> Tensor:
        words = torch.tensor([self.word(), self.word()])
        return torch.stack([words, words], 1)[:, 0] if self.random() < 0.1 else words

    def word(self) -> int:
        edge = self.choice((0, 1, -1, -2, -5, 2**32 - 1, 2**62, 2**63 - 1, -(2**63), -(2**63) + 3))
        return self.choice((edge, self.getrandbits(64) - 2**63))

    def start(self) -> int:
        return self.choice((0, 0, 1, 2, 3, 5, self.getrandbits(20), 2**32 - 3, 2**34 + 1, 2**62 + 1))

    def float_dtype(self) -> torch.dtype:
        return self.choice(DTYPES)

    def tau(self, hard: bool) -> Tensor:
        value = self.choice((1.0, 0.5, 0.1, 1e-3, 1e-30, 3.0, 1e4, *((0.0,) if hard else ())))
        return torch.tensor(value, dtype=self.choice((torch.float64, torch.float64, torch.float32)))

    def logits(self, shape: tuple[int, ...], dim: int) -> Tensor:
        x = self.normal(*shape) * self.choice((0.0, 1e-3, 1.0, 1.0, 30.0))
        if self.random() < 0.3:
            x[self.somewhere(x, 0.2)] = -math.inf
            x.select(dim, self.randrange(shape[dim])).nan_to_num_(neginf=-2.0)  # no row may be only -inf
        if self.random() < 0.1:
            x[self.somewhere(x, 1e-3)] = math.nan
        return self.laid_out(x.to(self.float_dtype()))


Generator = Callable[[Random], Call]
OPS: dict[str, Generator] = {}


def op(generator: Generator) -> Generator:
    OPS[generator.__name__] = generator
    return generator


@op
def random_words(r: Random) -> Call:
    return Call("random_words", (r.key(), r.randrange(6), r.start(), r.size(r.largest)))


@op
def noise(r: Random) -> Call:
    words = torch.empty(r.size(r.largest), dtype=torch.int64).random_(-(2**63), None, generator=r.torch)
    return Call("noise", (words, r.choice(("exponential", "gumbel", "logistic")), r.random() < 0.5))


@op
def split(r: Random) -> Call:
    return Call("split", (r.key(), r.size(r.largest // 2)))


@op
def fold_in(r: Random) -> Call:
    return Call("fold_in", (r.key(), r.choice((0, 1, 2**32 - 1, 2**63 - 1, r.getrandbits(63)))))


@op
def permutation(r: Random) -> Call:
    n = r.choice((r.size(r.largest), r.size(1030), r.getrandbits(r.randrange(64)), 2**63 - 1))
    stop = r.randint(max(0, n - r.largest), n)
    start = r.randint(max(0, stop - r.size(r.largest)), stop)
    return Call("permutation", (n, r.key(), start, stop))


def dim_of(r: Random, shape: tuple[int, ...]) -> int:
    return r.choice((-1, -1, r.randrange(len(shape))))


@op
def gumbel_softmax(r: Random) -> Call:
    shape, hard = r.shape(), r.random() < 0.4
    dim = dim_of(r, shape)
    args = (r.logits(shape, dim), r.tau(hard), r.key(), dim, hard, r.start(), None)
    return Call("gumbel_softmax", args, 0 if hard else ULPS)


@op
def gumbel_softmax_backward(r: Random) -> Call:
    shape = r.shape()
    dim = dim_of(r, shape)
    y = (r.normal(*shape) * r.choice((0.1, 1.0, 5.0))).softmax(dim)
    dtype = r.float_dtype()
    args = (r.laid_out(r.normal(*shape).to(dtype)), r.laid_out(y.to(dtype)), r.tau(True), dim)
    return Call("gumbel_softmax_backward", args, ULPS, scaled=True)


@op
def gumbel_sigmoid(r: Random) -> Call:
    shape, hard = r.shape(), r.random() < 0.4
    args = (r.logits(shape, -1), r.tau(hard), r.key(), hard, r.start(), None)
    return Call("gumbel_sigmoid", args, 0 if hard else ULPS)


@op
def gumbel_sigmoid_backward(r: Random) -> Call:
    logits = r.logits(r.shape(), -1)
    grad = r.laid_out(r.normal(*logits.shape).to(logits.dtype))
    return Call("gumbel_sigmoid_backward", (grad, logits, r.tau(True), r.key(), r.start()), ULPS)


@op
def gumbel_argmax(r: Random) -> Call:
    shape = r.shape()
    dim = dim_of(r, shape)
    return Call("gumbel_argmax", (r.logits(shape, dim), r.key(), dim, r.start(), None))


def ranked(r: Random, *shape: int) -> Tensor:
    """Numbers to rank: with ties, zeros of both signs, and infinities."""
    x = r.normal(*shape) * r.choice((1e-30, 1.0, 1e4))
    if r.random() < 0.4:
        x = (r.normal(*shape) * r.choice((0.5, 2.0))).round()  # -0 is among them
    if r.random() < 0.2:
        x[r.somewhere(x, 0.01)] = r.choice((math.inf, -math.inf))
    return x


@op
def topk(r: Random) -> Call:
    rows, n = r.matrix()
    x = ranked(r, *r.choice(((n,), (rows, n), (1, rows, n))))
    if r.random() < 0.15:
        x[r.somewhere(x, 0.01)] = math.nan
    return Call("topk", (r.laid_out(x.to(r.float_dtype())), r.count(min(n, max(1, r.largest // rows)))))


Groups = tuple[int, Tensor | None, Tensor | None]  # k, groups, quotas


def grouped(r: Random, k: int, may: Tensor) -> Groups:
    """k and no groups, or groups and as many of each as there are, none, or any number; `may` [n] be selected."""
    if r.random() < 0.4:
        return k, None, None
    n = len(may)
    G = r.size(max(1, min(20_000, 2 * n)))
    groups = r.integers(0, r.choice((G, G, 1)), n)
    if r.random() < 0.3:
        groups = groups.sort().values
    quotas = torch.bincount(groups[may], minlength=G)
    if r.random() < 0.8:
        quotas = (quotas * r.uniform_(G) * r.choice((0.0, 0.1, 1.0))).long()
    groups = groups.to(r.choice((torch.int64, torch.int32)))
    return int(quotas.sum()), r.laid_out(groups, negated=False), r.laid_out(quotas, negated=False)


def everything(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


@op
def select(r: Random) -> Call:
    n = r.size(r.largest)
    dtype = r.choice((*DTYPES, torch.float32, torch.int64, torch.int32))
    if dtype.is_floating_point:
        scores = r.laid_out(ranked(r, n).to(dtype))
    else:
        info = torch.iinfo(dtype)
        scores = r.integers(*r.choice(((-5, 5), (info.min, info.max))), n).to(dtype)
    k, groups, quotas = grouped(r, r.count(n), everything(n))
    key = r.key() if r.random() < 0.5 else None
    return Call("select", (scores, k, r.random() < 0.5, groups, quotas, key, None))


@op
def topk_encode(r: Random) -> Call:
    B, d, H = r.size(64), r.size(256), r.size(max(1, min(r.largest // 64, 20_000)))
    dtype = r.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16))
    # every product and every sum of d of them is an integer that the dtype holds: |x| <= 1, |weight| <= 1
    d = min(d, 200 if dtype in (torch.bfloat16, torch.float16) else d)
    x, weight = r.integers(-1, 2, B, d).to(dtype), r.integers(-1, 2, H, d).to(dtype)
    bias = r.choice((None, r.integers(-3, 4, H).to(dtype)))
    args = (r.laid_out(x), r.laid_out(weight), bias, r.count(H), r.choice(("relu", "abs")))
    return Call("topk_encode", args, 1)  # ulp, as 0 and -0 are the same number


def coded(r: Random) -> tuple[int, int, int, int]:
    """B, k, H and d."""
    k, d = r.size(64), r.size(1024)
    return r.size(max(1, r.largest // max(k, d))), k, r.size(max(1, min(20_000, r.largest // d))), d


def amounts(r: Random, exact: bool, dtype: torch.dtype, *shape: int) -> Tensor:
    return r.laid_out((r.integers(-3, 4, *shape) if exact else r.normal(*shape)).to(dtype))


@op
def sparse_decode(r: Random) -> Call:
    (B, k, H, d), exact, dtype = coded(r), r.random() < 0.5, r.float_dtype()
    values, weight = amounts(r, exact, dtype, B, k), amounts(r, exact, dtype, H, d)
    bias = r.choice((None, amounts(r, exact, dtype, d)))
    return Call("sparse_decode", (values, r.integers(0, H, B, k), weight, bias), 0 if exact else ULPS, scaled=not exact)


@op
def sddmm(r: Random) -> Call:
    (B, k, H, d), exact, dtype = coded(r), r.random() < 0.5, r.float_dtype()
    weight, grad = amounts(r, exact, dtype, H, d), amounts(r, exact, dtype, B, d)
    return Call("sddmm", (r.integers(0, H, B, k), weight, grad), 0 if exact else ULPS, scaled=not exact)


@op
def spmm_t(r: Random) -> Call:
    (B, k, H, d), exact, dtype = coded(r), r.random() < 0.5, r.float_dtype()
    values, rows = amounts(r, exact, dtype, B, k), amounts(r, exact, dtype, B, d)
    return Call("spmm_t", (values, r.integers(0, H, B, k), rows, H), 0 if exact else ULPS, scaled=not exact)


@op
def sparse_decode_backward(r: Random) -> Call:
    (B, k, H, d), exact, dtype = coded(r), r.random() < 0.5, r.float_dtype()
    grad, values, weight = (amounts(r, exact, dtype, *shape) for shape in ((B, d), (B, k), (H, d)))
    args = (grad, values, r.integers(0, H, B, k), weight)
    return Call("sparse_decode_backward", args, 0 if exact else ULPS, scaled=not exact)


def codes(r: Random) -> tuple[Tensor, Tensor, int]:
    B, k, H, _ = coded(r)
    return r.laid_out(r.normal(B, k).to(r.float_dtype())), r.integers(0, H, B, k), H


@op
def factor_counts(r: Random) -> Call:
    values, indices, H = codes(r)
    G = r.size(max(1, min(1000, r.largest // H)))
    return Call("factor_counts", (values, indices, H, *r.choice(((None, None), (r.integers(0, G, len(values)), G)))))


@op
def factor_scores(r: Random) -> Call:
    values, indices, H = codes(r)
    tables = r.normal(*r.choice(((H,), (r.size(5), H)))).to(r.choice((torch.float32, torch.float64)))
    return Call("factor_scores", (values, indices, r.laid_out(tables), r.choice(("sum", "mean")), r.random() < 0.5))


def counted(r: Random, n: int) -> tuple[Tensor, float]:
    dtype = r.choice((torch.float32, torch.float64, torch.int32, torch.int64))
    decay = r.choice((1.0, 0.99, 0.5, 0.0)) if dtype.is_floating_point else 1.0
    return r.laid_out((r.uniform_(n) * r.choice((3, 1000))).to(dtype), negated=False), decay


def chosen(r: Random, n: int) -> Tensor:
    """Ascending, shuffled, or with many duplicates."""
    k = r.count(n)
    if r.random() < 0.3:
        return r.laid_out(r.integers(0, r.choice((1, n)), k), negated=False)
    picked = torch.randperm(n, generator=r.torch)[:k]
    return r.laid_out(picked.sort().values if r.random() < 0.5 else picked, negated=False)


def penalty(r: Random) -> tuple[float, str, int]:
    return r.choice((0.0, 0.1, 1e-3, 7.0)), r.choice(("log", "linear", "exp", "rate")), r.choice((1, 3, 1000))


@op
def usage_update_(r: Random) -> Call:
    n = r.size(r.largest)
    counts, decay = counted(r, n)
    return Call("usage_update_", (counts, chosen(r, n), decay))


@op
def usage_penalty(r: Random) -> Call:
    n = r.size(r.largest)
    gamma, form, step = penalty(r)
    scores = r.laid_out(r.normal(n).to(r.float_dtype()))
    return Call("usage_penalty", (scores, counted(r, n)[0], gamma, form, step), ULPS)


@op
def usage_step_(r: Random) -> Call:
    n = r.size(r.largest)
    counts, decay = counted(r, n)
    gamma, form, step = penalty(r)
    scores = r.laid_out(r.normal(n).to(r.float_dtype()))
    return Call("usage_step_", (counts, chosen(r, n), scores, gamma, decay, form, step), ULPS)


@op
def usage_select_(r: Random) -> Call:
    n = r.size(r.largest)
    counts, dtype = counted(r, n)[0], r.choice((torch.float32, torch.float64))
    first, second = (r.laid_out((r.uniform_(n) * r.choice((4, 1e6))).round().to(dtype)) for _ in range(2))
    k, groups, quotas = grouped(r, r.count(n), everything(n))
    key = r.key() if r.random() < 0.5 else None
    mix = r.choice((0.0, 1.0, r.random()))
    return Call("usage_select_", (counts, first, second, mix, *penalty(r), k, groups, quotas, key, None))


def weights(r: Random, *shape: int) -> tuple[Tensor, bool, Tensor]:
    """Weights, whether they are logarithms, and which are not 0: at least one in a row."""
    log_weights, dtype = r.random() < 0.3, r.float_dtype()
    w = r.normal(*shape) * r.choice((0.0, 1.0, 1.0, 10.0))
    nothing = r.somewhere(w, r.choice((0.0, 0.0, 0.3, 0.99)))
    nothing[..., r.randrange(shape[-1])] = False
    w = w.to(dtype) if log_weights else w.double().exp().clamp(0, torch.finfo(dtype).max / 2).to(dtype)
    w[nothing] = -math.inf if log_weights else 0.0
    return r.laid_out(w), log_weights, w > (-math.inf if log_weights else 0)


@op
def weighted_sample(r: Random) -> Call:
    B, n = r.matrix()
    w, log_weights, positive = weights(r, *r.choice(((n,), (B, n))))
    replacement, least = r.random() < 0.4, int(positive.sum(-1).min())
    most = max(1, r.largest // (B if w.dim() == 2 else 1))
    k = r.size(min(2 * n, most)) if replacement and least else r.count(min(least, most))
    order, groups, quotas = r.choice(("draw", "index", "shuffled")), None, None
    if w.dim() == 1 and not replacement:
        k, groups, quotas = grouped(r, k, positive)
    args = (w, k, replacement, log_weights, order, groups, quotas, r.key(), r.start(), None)
    return Call("weighted_sample", args)


def prepared(r: Random) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of which one at least is not 0, as prepared ones are kept, and their tables."""
    log_weights = True
    while log_weights:
        w, log_weights, positive = weights(r, r.size(r.largest))
    w = w.resolve_neg().clone(memory_format=torch.contiguous_format)
    if not bool(positive.any()):
        w.fill_(1.0)
    return w, *reference.OPS["prepare"](w)


@op
def prepare(r: Random) -> Call:
    return Call("prepare", (r.laid_out(prepared(r)[0]),))


@op
def update_prepared_(r: Random) -> Call:
    w, *tables = prepared(r)
    index = r.integers(0, len(w), r.count(len(w)))
    weight = (r.uniform_(len(index)) * r.choice((0.0, 1e-3, 1.0, 100.0))).to(w.dtype)
    return Call("update_prepared_", (w, *tables, r.laid_out(index, negated=False), r.laid_out(weight)))


@op
def sample_prepared(r: Random) -> Call:
    order = r.choice(("draw", "index", "shuffled"))
    return Call("sample_prepared", (*prepared(r), r.count(r.largest), order, r.key(), r.start()))


@op
def race_keys(r: Random) -> Call:
    return Call("race_keys", (*weights(r, r.size(r.largest))[:2], r.key(), r.start()))


@op
def fixed_weights(r: Random) -> Call:
    w, log_weights, _ = weights(r, r.size(r.largest))
    return Call("fixed_weights", (w, log_weights, float(w.max()), w.numel() * r.choice((1, 5, 2**20))))


@op
def words64(r: Random) -> Call:
    items = r.integers(0, 2**62, r.size(r.largest))
    return Call("words64", (r.key(), r.randrange(6), items))


@op
def draw_targets(r: Random) -> Call:
    return Call("draw_targets", (r.key(), r.start(), r.size(r.largest), r.word()))


def make(seed: int, number: int, largest: int = LARGEST) -> Call:
    """The case of a number: a pure function of these three."""
    r = Random(f"{seed} {number}", largest)
    return dataclasses.replace(r.choice(list(OPS.values()))(r), on_host=r.random() < 0.5)


def copied(x: Any, device: str) -> Any:
    """An argument on a device, in memory of its own and with the strides it has."""
    if not isinstance(x, Tensor):
        return x
    if x.is_neg():
        return torch._neg_view(copied(torch._neg_view(x), device))
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).clone().to(device)
    return whole.as_strided(x.size(), x.stride(), x.storage_offset())


def run(function: Callable[..., Any], case: Call, device: str) -> list[Tensor]:
    """Results, and arguments that were written, on the CPU."""
    names = [argument.name for argument in getattr(torch.ops.pysel, case.op).default._schema.arguments]
    host = ("key", "tau") if case.on_host and case.op not in ("random_words", "split", "fold_in") else ()
    at = "cpu" if device == "simt" else device
    args = [copied(x, "cpu" if name in host else at) for name, x in zip(names, case.args, strict=False)]
    result = function(*args, **{name: copied(x, at) for name, x in case.kwargs.items()})
    written = args[: IN_PLACE.get(case.op, 0)]
    results = result if isinstance(result, tuple) else () if result is None else (result,)
    return [x.cpu().resolve_neg() for x in (*results, *written)]


def absolute(case: Call) -> Call:
    """The case whose results are the sums of absolute values."""
    args = (x.abs() if isinstance(x, Tensor) and x.dtype.is_floating_point else x for x in case.args)
    return dataclasses.replace(case, args=tuple(args))


def walk(n: int) -> float:
    return max(1.0, math.sqrt(n) / ULPS)


def sizes(case: Call) -> list[Tensor]:
    """How large the numbers are that add up to each result."""
    if case.op == "gumbel_softmax_backward":
        grad, y, tau, dim = case.args
        g, p, t = grad.double().abs(), y.double(), max(float(tau), torch.finfo(torch.float32).tiny)
        return [p * (g + (g * p).sum(dim, keepdim=True)) / t * walk(y.shape[dim])]
    # the others add up in order
    results = run(reference.OPS[case.op], absolute(case), "cpu")
    if case.op in ("sddmm", "sparse_decode_backward"):
        results[0] = results[0].double() * walk(case.args[2 if case.op == "sddmm" else 0].shape[1])
    return results


def difference(case: Call, got: list[Tensor], wanted: list[Tensor]) -> str:
    """What is wrong, or nothing."""
    scales: list[Tensor | None] = [*sizes(case)] if case.scaled else [None] * len(wanted)
    for i, (g, w, scale) in enumerate(zip(got, wanted, scales, strict=True)):
        if g.dtype != w.dtype or g.shape != w.shape:
            return f"result {i}: {g.dtype} {list(g.shape)}, expected {w.dtype} {list(w.shape)}"
        if scale is not None:
            info = torch.finfo(w.dtype)
            bound = case.ulps * info.eps * scale.double().clamp_min(info.smallest_normal)
            near = (g.double() - w.double()).abs() <= bound
            wrong = ~(near | (ulps(g, w) == 0) | (scale > info.max / 8))  # beyond it sums overflow, or not
        elif not w.dtype.is_floating_point:
            wrong = g != w
        elif case.ulps:
            wrong = ulps(g, w) > case.ulps
        else:
            wrong = (bits(g) != bits(w)) & ~(torch.isnan(g) & torch.isnan(w))
        if bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            told = f"{g[tuple(at)].item()!r}, expected {w[tuple(at)].item()!r}"
            return f"result {i}: {int(wrong.sum())} of {w.numel()} differ, first at {at}: {told}"
    return ""


def native(case: Call, device: str) -> Callable[..., Any]:
    if device == "simt":
        simt.load()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"pysel_simt::{case.op}", "CPU"):  # one to interpret
            return getattr(torch.ops.pysel_simt, case.op)
    return getattr(torch.ops.pysel, case.op)


def answer(function: Callable[..., Any], case: Call, device: str) -> list[Tensor] | str:
    """Results, or what the op refused its arguments with, at the latest when asked."""
    try:
        results = run(function, case, device)
        pysel.check()
        return results
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0]


def failure(case: Call, device: str) -> str:
    """What is wrong with the op on a device, or nothing."""
    wanted = answer(reference.OPS[case.op] if device == "cpu" else native(case, "cpu"), case, "cpu")
    got = answer(native(case, device), case, device)
    if isinstance(wanted, str):
        return f"the CPU says {wanted}"
    return got if isinstance(got, str) else difference(case, got, wanted)


def worker(options: argparse.Namespace) -> None:
    """Run cases from --first on, a line each: number, op, what is wrong. A line stays open if the process is lost."""
    for number in range(options.first, options.cases):
        faulthandler.dump_traceback_later(STUCK, exit=True)
        case = make(options.seed, number, options.largest)
        print(number, case.op, "", sep="\t", end="", flush=True)
        wrong = failure(case, options.device)
        print(wrong, flush=True)
        if wrong and options.device == "cuda":
            torch.cuda.synchronize()  # raises if the device cannot be used any more


def search(options: argparse.Namespace) -> int:
    """Have workers run the cases, another one behind each case that ends one. Returns the exit status."""
    failed: Counter[str] = Counter()
    same = ["--device", options.device, "--seed", str(options.seed), "--largest", str(options.largest)]
    begin, done = time.monotonic(), options.first
    while done < options.cases and time.monotonic() - begin < options.seconds:
        behind, first = done, ["--worker", "--first", str(done), "--cases", str(options.cases)]
        command = [sys.executable, "-m", "tests.identity", *same, *first]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                number, name, wrong = line.split("\t", 2)
                wrong = wrong.strip() if line.endswith("\n") else f"no answer in {STUCK} s, or its process was lost"
                done = int(number) + 1
                if wrong:
                    failed[name] += 1
                    print(f"{name}: {wrong}\n    {' '.join(['python -m tests.identity', *same, '--case', number])}")
                if time.monotonic() - begin > options.seconds:
                    process.kill()
                    break
        if done == behind:
            print("a process ended before its first case")
            return 1
    counts = ", ".join(f"{name} {count}" for name, count in failed.most_common())
    print(f"{done - options.first} cases in {time.monotonic() - begin:.0f} s, {failed.total()} failed {counts}".strip())
    return int(bool(failed))


def single(options: argparse.Namespace) -> int:
    case = make(options.seed, options.case, options.largest)
    wrong = failure(case, options.device)
    print(f"{case}\n{wrong or 'agrees'}")
    return int(bool(wrong))


def table(options: argparse.Namespace) -> int:
    """The interpreter's cases, in this process alone: for compute-sanitizer. Some of them must be refused."""
    wrong = []
    for case in (Call(**vars(case)) for case in cases()):
        wanted, got = (answer(native(case, device), case, device) for device in ("cpu", options.device))
        if isinstance(wanted, str) != isinstance(got, str):
            wrong.append(f"{case}: {got}, expected {wanted}"[:500])
        elif not isinstance(wanted, str) and case.op != "topk_encode":  # a library multiplies its matrices
            wrong += [f"{case}: {what}" for what in [difference(case, got, wanted)] if what]
    print("\n".join([*wrong, f"{len(cases())} cases, {len(wrong)} failed"]))
    return int(bool(wrong))


def main(arguments: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m tests.identity", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu", "simt"))
    parser.add_argument("--cases", type=int, default=3000, help="the last number, and one")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120, help="no case begins later than this")
    parser.add_argument("--largest", type=int, default=LARGEST, help="elements of a tensor")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="run this case alone, here")
    parser.add_argument("--table", action="store_true", help="run the cases of tests/simt/cases.py instead")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(options)
    if options.table:
        return table(options)
    return search(options) if options.case is None else single(options)


if __name__ == "__main__":
    sys.exit(main())
