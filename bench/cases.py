"""What is measured: every op, at which sizes, against what, and which speed it promises.

A case makes its data once and gives its contenders as calls without arguments. Data are random and, at full size,
larger than the caches; what a rival can have prepared beforehand (probabilities in its own dtype, a tree, a compiled
graph) is prepared outside its call. Libraries are imported and graphs compiled within a contender's first call, which
is never timed; if that call raises, the contender is left out and the reason recorded.

``bytes`` is what the op cannot avoid to move: inputs read once and outputs written once (in-place ones both).
Each in-place contender has data of its own.

CASES and CURVES are for CPUs; CUDA_CASES, from the same functions, have the sizes that keep a large GPU busy.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pysel
from bench.timing import Call


@dataclass(frozen=True)
class Setup:
    """Data of a case, bound into calls: ``pysel``, then ``eager`` (the torch op or ops it replaces), then others."""

    contenders: dict[str, Call]
    bytes: int


@dataclass(frozen=True)
class Target:
    """A promise: ``against`` must be at least ``ratio``.

    ``against`` is a contender (its time over pysel's), or one of
    ``1 thread``: pysel's time on one thread over that on two;
    ``growth``: pysel's cost an element at 1e7 over that at the largest n (1 is linear);
    ``memory``: ``limit`` bytes over the peak memory of the call;
    ``itself``: 1 if a second call gives the same bits, else 0;
    ``floor``: the time that a copy of ``bytes`` would take over pysel's.
    """

    against: str
    ratio: float
    limit: int = 0


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


# Gumbel family


def gumbel_softmax(
    shape: tuple[int, ...],
    hard: bool = False,
    dtype: torch.dtype = torch.float32,
    into_out: bool = False,
    tau: float = 1.0,
) -> Setup:
    logits = torch.randn(shape).to(dtype)
    out = torch.zeros_like(logits) if into_out else None
    compiled_softmax = compiled(lambda x: F.gumbel_softmax(x, tau, hard))
    return Setup(
        {
            "pysel": lambda: pysel.gumbel_softmax(logits, tau, hard, out=out),
            "eager": lambda: F.gumbel_softmax(logits, tau, hard),
            "compile": lambda: compiled_softmax(logits),
        },
        2 * nbytes(logits),
    )


def gumbel_softmax_backward(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Setup:
    logits = torch.randn(shape).to(dtype).requires_grad_()
    grad = torch.randn(shape).to(dtype)

    def backward(forward: Callable[[Tensor], Tensor]) -> Call:
        graph = functools.cache(lambda: forward(logits))
        return lambda: torch.autograd.grad(graph(), logits, grad, retain_graph=True)[0]

    return Setup(
        {
            "pysel": backward(pysel.gumbel_softmax),
            "eager": backward(F.gumbel_softmax),
            "compile": backward(compiled(F.gumbel_softmax)),
        },
        3 * nbytes(grad),
    )


def gumbel_sigmoid(n: int, tau: float = 0.5, into_out: bool = False) -> Setup:
    logits = torch.randn(n)

    def eager(x: Tensor, out: Tensor | None) -> Tensor:
        uniform = torch.rand_like(x) if out is None else out.uniform_()
        return uniform.logit_(eps=1e-7).add_(x).div_(tau).sigmoid_()

    def call(function: Callable[..., Tensor], **options: Any) -> Call:
        out = torch.zeros_like(logits) if into_out else None
        return lambda: function(logits, **options, out=out)

    return Setup(
        {
            "pysel": call(pysel.gumbel_sigmoid, tau=tau),
            "eager": call(eager),
            "compile": call(compiled(eager)),
        },
        2 * nbytes(logits),
    )


def gumbel_argmax(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Setup:
    logits = torch.randn(shape).to(dtype)

    def eager(x: Tensor) -> Tensor:
        noise = torch.empty_like(x).exponential_().log_()
        return torch.sub(x, noise, out=noise).argmax(-1)

    compiled_eager = compiled(lambda x: (x - torch.empty_like(x).exponential_().log()).argmax(-1))
    return Setup(
        {
            "pysel": lambda: pysel.gumbel_argmax(logits),
            "eager": lambda: eager(logits),
            "compile": lambda: compiled_eager(logits),
            "multinomial": lambda: torch.multinomial(logits.softmax(-1), 1)[:, 0],
        },
        nbytes(logits) + 8 * shape[0],
    )


# Top-k family


def topk(shape: tuple[int, int], k: int) -> Setup:
    x = torch.randn(shape)
    compiled_topk = compiled(lambda x: torch.topk(x, k))
    return Setup(
        {
            "pysel": lambda: pysel.topk(x, k),
            "eager": lambda: torch.topk(x, k),
            "compile": lambda: compiled_topk(x),
        },
        nbytes(x) + shape[0] * k * 12,
    )


def topk_encode(B: int, d: int, H: int, k: int, dtype: torch.dtype = torch.float32, activation: str = "relu") -> Setup:
    x, weight, bias = (t.to(dtype) for t in (torch.randn(B, d), torch.randn(H, d) / math.sqrt(d), torch.randn(H) / 10))

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        z = F.linear(x, weight, bias)
        if activation == "relu":
            return torch.topk(F.relu(z), k)
        indices = torch.topk(z.abs(), k).indices
        return z.gather(1, indices), indices

    def sparsify() -> object:
        from sparsify.fused_encoder import fused_encoder

        return tuple(fused_encoder(x, weight, bias, k, "topk")[:2])

    compiled_eager = compiled(eager)
    return Setup(
        {
            "pysel": lambda: pysel.topk_encode(x, weight, bias, k, activation=activation),
            "eager": lambda: eager(x, weight, bias),
            "compile": lambda: compiled_eager(x, weight, bias),
            "linear alone": lambda: F.linear(x, weight, bias),
        }
        | ({"sparsify": sparsify} if activation == "relu" else {}),
        nbytes(x, weight, bias) + B * k * 12,
    )


def codes(B: int, k: int, H: int) -> tuple[Tensor, Tensor]:
    """Sparse codes: random values, a tenth of them 0, at distinct random indices of each row."""
    values = F.relu(torch.rand(B, k) - 0.1)
    steps = torch.randint(1, max(2, H // k), (B, k))
    return values, (torch.randint(H, (B, 1)) + steps.cumsum(1)) % H


def sparse_decode(B: int, k: int, H: int, d: int, backward: bool) -> Setup:
    values, indices = codes(B, k, H)
    weight, grad = torch.randn(H, d), torch.randn(B, d)
    values.requires_grad_(backward)
    weight.requires_grad_(backward)

    def embedding_bag(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        return F.embedding_bag(indices, weight, mode="sum", per_sample_weights=values)

    def sparsify(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        from sparsify.utils import eager_decode

        return eager_decode(indices, values, weight.mT)

    def call(decode: Callable[..., Any]) -> Call:
        if not backward:
            return lambda: decode(values, indices, weight)
        return lambda: torch.autograd.grad(decode(values, indices, weight), (values, weight), grad)

    rows = weight[:1].expand(indices.unique().numel(), d)  # of the weight, those that are used
    moved = nbytes(values, indices, rows, grad)
    if backward:
        moved += nbytes(values, indices, rows, grad) + nbytes(values, weight)
    return Setup(
        {
            "pysel": call(pysel.sparse_decode),
            "eager": call(embedding_bag),
            "compile": call(compiled(embedding_bag)),
            "sparsify": call(sparsify),
        },
        moved,
    )


def factor_counts(B: int, k: int, H: int, G: int | None = None) -> Setup:
    values, indices = codes(B, k, H)
    groups = None if G is None else torch.randint(G, (B,))

    def eager() -> Tensor:
        if G is None or groups is None:
            return torch.bincount(indices[values > 0], minlength=H)
        cells = indices + H * groups.unsqueeze(1)
        return torch.bincount(cells[values > 0], minlength=G * H).view(G, H)

    return Setup(
        {
            "pysel": lambda: pysel.factor_counts(values, indices, H, groups=groups, num_groups=G),
            "eager": eager,
        },
        nbytes(values, indices, *([] if groups is None else [groups])) + 8 * (G or 1) * H,
    )


def factor_scores(B: int, k: int, H: int, T: int) -> Setup:
    values, indices = codes(B, k, H)
    tables = torch.rand(T, H)

    def eager(values: Tensor, indices: Tensor, tables: Tensor) -> Tensor:
        active = values > 0
        return torch.stack([(table[indices] * active).sum(1) for table in tables], 1)

    compiled_eager = compiled(eager)
    return Setup(
        {
            "pysel": lambda: pysel.factor_scores(values, indices, tables),
            "eager": lambda: eager(values, indices, tables),
            "compile": lambda: compiled_eager(values, indices, tables),
        },
        nbytes(values, indices, tables) + 4 * B * T,
    )


def select(n: int, share: float) -> Setup:
    scores = torch.randn(n)
    k = int(n * share)
    contenders: dict[str, Call] = {
        "pysel": lambda: pysel.select(scores, k),
        "eager": lambda: torch.topk(scores, k, sorted=False).indices,
    }
    if scores.device.type == "cpu":
        array = scores.numpy()
        contenders["numpy"] = lambda: array.argpartition(n - k)[n - k :]
    return Setup(contenders, nbytes(scores) + 8 * k)


def select_groups(n: int, groups: int) -> Setup:
    """A third of each group."""
    scores, of = torch.randn(n), torch.randint(groups, (n,), dtype=torch.int32)
    sizes = torch.bincount(of, minlength=groups)
    quotas = sizes // 3
    k = int(quotas.sum())

    def loop() -> Tensor:
        rows_of = torch.argsort(of).split(sizes.tolist())
        chosen = [
            rows[scores[rows].topk(q, sorted=False).indices] for rows, q in zip(rows_of, quotas.tolist(), strict=True)
        ]
        return torch.cat(chosen)

    contenders: dict[str, Call] = {
        "pysel": lambda: pysel.select(scores, k, groups=of, quotas=quotas),
        "eager": loop,
        "ungrouped": lambda: pysel.select(scores, k),
    }
    return Setup(contenders, nbytes(scores, of) + 8 * k)


def select_by_key(n: int, share: float) -> Setup:
    """Scores that do not tie, so that the key decides nothing."""
    scores = torch.randperm(n).float() if n < 2**24 else torch.randn(n)
    k = int(n * share)
    contenders: dict[str, Call] = {
        "pysel": lambda: pysel.select(scores, k, key=1),
        "eager": lambda: torch.topk(scores, k, sorted=False).indices,
        "without a key": lambda: pysel.select(scores, k),
    }
    return Setup(contenders, nbytes(scores) + 8 * k)


# Usage family


def ascending(n: int, k: int) -> Tensor:
    """k of n indices, as a selector gives them."""
    return torch.rand(n).topk(k, sorted=False).indices.sort().values


SECTOR = 32  # bytes, the least that a GPU reads or writes anywhere


def usage_step(
    n: int,
    form: str,
    share: float = 0.1,
    gamma: float = 0.1,
    decay: float = 0.99,
    shuffled: bool = False,
    into_out: bool = False,
) -> Setup:
    scores, start = torch.rand(n), torch.rand(n) * 10
    selected = ascending(n, int(n * share))
    if shuffled:
        selected = selected[torch.randperm(len(selected))]
    ones = torch.ones(len(selected))

    def eager(counts: Tensor, selected: Tensor, ones: Tensor, scores: Tensor, out: Tensor | None) -> Tensor:
        counts.mul_(decay).index_add_(0, selected, ones)
        if form == "exp":
            return torch.mul(counts, -gamma, out=out).exp_().mul_(scores)
        if form == "log":
            return torch.sub(scores, torch.log1p(counts), alpha=gamma, out=out)
        return torch.sub(scores, counts, alpha=gamma, out=out)

    def room() -> Tensor | None:
        return torch.zeros_like(scores) if into_out else None

    def call(function: Callable[..., object]) -> Call:
        counts, out = start.clone(), room()
        return lambda: function(counts, selected, ones, scores, out)

    ours, our_out = start.clone(), room()
    return Setup(
        {
            "pysel": lambda: pysel.usage_step_(ours, selected, scores, gamma, decay, form, out=our_out),
            "eager": call(eager),
            "compile": call(compiled(eager)),
        },
        3 * nbytes(scores) + nbytes(ours, selected) + (2 * SECTOR * len(selected) if shuffled else 0),
    )


def usage_select(n: int, groups: int = 0, gamma: float = 0.2) -> Setup:
    """An epoch of dynamic selection: a third of the samples, or of each group's."""
    first, second, start = torch.rand(n), torch.rand(n), torch.randint(9, (n,)).float()
    k, of, quotas = n // 3, None, None
    if groups:
        of = torch.randint(groups, (n,), dtype=torch.int32)
        quotas = torch.bincount(of, minlength=groups) // 3
        k = int(quotas.sum())
    ours, theirs, room = start.clone(), start.clone(), torch.zeros(n)

    def eager() -> Tensor:
        scores = torch.lerp(first, second, 0.25).sub_(torch.log1p(theirs), alpha=gamma)
        selected = torch.topk(scores, k, sorted=False).indices
        theirs.index_add_(0, selected, torch.ones(k))
        return selected

    def copies() -> Tensor:
        for _ in range(8):
            room.copy_(first)
        return room

    contenders: dict[str, Call] = {
        "pysel": lambda: pysel.usage_select_(ours, first, second, 0.25, k, gamma, groups=of, quotas=quotas, key=1),
        "8 copies": copies,
    }
    if not groups:
        contenders["eager"] = eager
    moved = nbytes(first, second) + 2 * nbytes(start) + 8 * k + (0 if of is None else nbytes(of))
    return Setup(contenders, moved)


def usage_update(n: int, share: float = 0.1, decay: float = 0.99) -> Setup:
    counts = torch.rand(n) * 10
    selected = ascending(n, int(n * share))
    ones = torch.ones(len(selected))

    def eager(counts: Tensor) -> Tensor:
        return counts.mul_(decay).index_add_(0, selected, ones)

    ours, theirs = counts, counts.clone()
    return Setup(
        {
            "pysel": lambda: pysel.usage_update_(ours, selected, decay),
            "eager": lambda: eager(theirs),
        },
        2 * nbytes(counts) + nbytes(selected),
    )


# Weighted sampling


def weighted_sample(
    n: int,
    k: int | float,
    order: str = "draw",
    replacement: bool = False,
    log_weights: bool = False,
    rows: int | None = None,
    numpy: bool = False,
) -> Setup:
    weights = torch.rand(n if rows is None else (rows, n)).add_(1e-3)
    k = int(k if k >= 1 else k * n)
    given = weights.log() if log_weights else weights

    def multinomial() -> Tensor:
        return torch.multinomial(given.exp() if log_weights else given, k, replacement)

    contenders: dict[str, Call] = {
        "pysel": lambda: pysel.weighted_sample(given, k, replacement, log_weights=log_weights, order=order),
        "eager": multinomial,
    }
    if weights.is_cuda and not replacement and not log_weights:  # multinomial ends at 2^24 weights

        def race() -> Tensor:
            return torch.empty_like(given).exponential_().reciprocal_().mul_(given).topk(k, sorted=False).indices

        contenders["race, topk"] = race
    if numpy:
        import numpy as np

        generator = np.random.default_rng(0)
        p = weights.double().div_(weights.sum(dtype=torch.float64)).cpu().numpy()
        contenders["numpy"] = lambda: generator.choice(n, k, replace=replacement, p=p)
    return Setup(contenders, nbytes(given) + 8 * k * (rows or 1))


def permutation(n: int, k: int | None = None) -> Setup:
    key = pysel.key(0)
    k = n if k is None else k
    return Setup(
        {
            "pysel": lambda: pysel.permutation(n, key=key, stop=k),
            "eager": lambda: torch.randperm(n)[:k],
        },
        8 * k,
    )


def load_torchrl() -> None:
    """Make sure that torchrl's tree works with this torch.

    A torchrl wheel holds a binary for one version of torch, and no wheel has one for every version; but each holds its
    sources, too.
    """
    import torchrl

    try:
        import torchrl._torchrl
    except ImportError:
        from torch.utils.cpp_extension import load

        sources = sorted(map(str, Path(torchrl.__file__).parent.glob("csrc/*.cpp")))
        sys.modules["torchrl._torchrl"] = load("_torchrl", sources)


def replay_sample(n: int, k: int) -> Setup:
    """Draw a batch with replacement from n priorities that may change before the next batch.

    torchrl keeps a tree of sums, which is filled beforehand here and cheap to update; the others read all priorities
    in every call. torchrl's call computes importance weights, too.
    """
    priorities = torch.rand(n).add_(1e-3)

    @functools.cache
    def sampler() -> tuple[Any, Any]:
        load_torchrl()
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler
        from torchrl.data.replay_buffers.storages import TensorStorage

        made = PrioritizedSampler(n, alpha=1.0, beta=1.0, eps=0.0)
        made.update_priority(torch.arange(n), priorities)
        return made, TensorStorage(priorities)

    def torchrl() -> object:
        tree, storage = sampler()
        return tree.sample(storage, k)[0]

    return Setup(
        {
            "pysel": lambda: pysel.weighted_sample(priorities, k, replacement=True),
            "eager": lambda: torch.multinomial(priorities, k, replacement=True),
            "torchrl": torchrl,
        },
        nbytes(priorities) + 8 * k,
    )


def replay_step(n: int, k: int) -> Setup:
    """Draw a batch with replacement from n priorities, then give its items others.

    torchrl's tree stands for itself here, without the sampler around it; its draws are from float32 sums.
    """
    priorities, changed = torch.rand(n).add_(1e-3), torch.rand(k).add_(1e-3)
    prepared = pysel.prepare(priorities)

    @functools.cache
    def tree() -> Any:
        load_torchrl()
        from torchrl._torchrl import SumSegmentTreeFp32

        made = SumSegmentTreeFp32(n)
        made[torch.arange(n)] = priorities
        return made

    def ours() -> Tensor:
        drawn = pysel.weighted_sample(prepared, k, replacement=True)
        prepared.update_(drawn, changed)
        return drawn

    def torchrl() -> Tensor:
        drawn: Tensor = tree().scan_lower_bound(torch.rand(k) * tree().query(0, n))
        tree()[drawn] = changed
        return drawn

    def eager() -> Tensor:
        drawn = torch.multinomial(priorities, k, replacement=True)
        priorities[drawn] = changed
        return drawn

    return Setup({"pysel": ours, "eager": eager, "torchrl": torchrl}, 16 * k)


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


LARGE, SMALL = {"shape": (4096, 4096)}, {"shape": (4, 8)}
CODES, FEW_CODES = {"B": 3000, "k": 48, "H": 20_000, "d": 640}, {"B": 5, "k": 3, "H": 20, "d": 4}
RECORDS, FEW_RECORDS = {"B": 500_000, "k": 32, "H": 16_384}, {"B": 50, "k": 3, "H": 20}
MANY, FEW = {"n": 16_000_000, "k": 8_000_000}, {"n": 60, "k": 20}
DECADES = tuple(10**e for e in range(3, 9))
TWO_THREADS = Target("1 thread", 1.8)
LINEAR = Target("growth", 0.8)

# fmt: off
CASES = (
    Case("gumbel_softmax soft", "F.gumbel_softmax", gumbel_softmax, LARGE, SMALL,
         (Target("eager", 20), Target("compile", 8), TWO_THREADS), comparable=sums),
    Case("gumbel_softmax hard", "F.gumbel_softmax", gumbel_softmax, {**LARGE, "hard": True}, SMALL,
         (Target("eager", 22), Target("compile", 8), TWO_THREADS), comparable=sums),
    Case("gumbel_softmax soft, into out", "F.gumbel_softmax", gumbel_softmax, {**LARGE, "into_out": True}, SMALL,
         comparable=sums),
    Case("gumbel_softmax backward", "F.gumbel_softmax", gumbel_softmax_backward, LARGE, SMALL,
         (Target("eager", 1.5),), comparable=form),
    Case("gumbel_softmax bfloat16", "F.gumbel_softmax", gumbel_softmax, {**LARGE, "dtype": torch.bfloat16}, SMALL,
         comparable=sums),
    Case("gumbel_softmax rows of 10", "F.gumbel_softmax", gumbel_softmax, {"shape": (1_500_000, 10)}, SMALL,
         comparable=sums),
    Case("gumbel_softmax 16 elements", "F.gumbel_softmax", gumbel_softmax, {"shape": (4, 4)}, SMALL,
         (Target("eager", 1),), comparable=sums),
    Case("gumbel_sigmoid", "rand, logit, add, div, sigmoid", gumbel_sigmoid, {"n": 16_777_216}, {"n": 8},
         comparable=form),
    Case("gumbel_sigmoid, into out", "rand, logit, add, div, sigmoid", gumbel_sigmoid,
         {"n": 16_777_216, "into_out": True}, {"n": 8}, comparable=form),
    Case("gumbel_argmax", "exponential, log, sub, argmax", gumbel_argmax, LARGE, SMALL, comparable=form),
    Case("topk", "torch.topk", topk, {"shape": (1024, 16_384), "k": 32}, {**SMALL, "k": 3},
         (Target("eager", 5), TWO_THREADS)),
    Case("topk_encode", "linear, relu, topk", topk_encode, {"B": 1024, "d": 512, "H": 16_384, "k": 32},
         {"B": 4, "d": 8, "H": 32, "k": 3},
         # a quarter of all activations [B, H]: outputs and a tile fit, the activations do not
         (Target("linear alone", 1 / 0.95), Target("memory", 1, 1024 * 16_384), TWO_THREADS), comparable=by_index),
    Case("topk_encode abs", "linear, abs, topk, gather", topk_encode,
         {"B": 1024, "d": 512, "H": 16_384, "k": 32, "activation": "abs"}, {"B": 4, "d": 8, "H": 32, "k": 3},
         comparable=by_index),
    Case("sparse_decode", "F.embedding_bag", sparse_decode, {**CODES, "backward": False}, FEW_CODES,
         (Target("eager", 1.1), Target("itself", 1), TWO_THREADS)),
    Case("sparse_decode with backward", "F.embedding_bag", sparse_decode, {**CODES, "backward": True}, FEW_CODES,
         (Target("eager", 2.5), Target("itself", 1), TWO_THREADS)),
    Case("factor_counts", "mask, bincount", factor_counts, RECORDS, FEW_RECORDS),
    Case("factor_counts of 100 groups", "mask, bincount", factor_counts, {**RECORDS, "G": 100}, FEW_RECORDS),
    Case("factor_scores", "gather, mask, sum", factor_scores, {**RECORDS, "T": 2}, FEW_RECORDS),
    Case("factor_scores of 8 tables", "gather, mask, sum", factor_scores, {**RECORDS, "T": 8}, FEW_RECORDS),
    Case("select", "torch.topk(sorted=False)", select, {"n": 10_000_000, "share": 1 / 3}, {"n": 60},
         (Target("eager", 10), TWO_THREADS), comparable=ordered),
    Case("select of 10 groups", "argsort, topk of each group", select_groups, {"n": 10_000_000, "groups": 10},
         {"n": 600}, (Target("ungrouped", 1 / 1.5),), comparable=ordered),
    Case("select of 1000 groups", "argsort, topk of each group", select_groups, {"n": 10_000_000, "groups": 1000},
         {"n": 6000}, (Target("ungrouped", 1 / 2), Target("eager", 10)), comparable=ordered),
    Case("select of 1e5 groups", "argsort, topk of each group", select_groups, {"n": 10_000_000, "groups": 100_000},
         {"n": 600, "groups": 90}, (Target("ungrouped", 1 / 4),), comparable=ordered),
    Case("select by key", "torch.topk(sorted=False)", select_by_key, {"n": 10_000_000, "share": 1 / 3}, {"n": 60},
         (Target("without a key", 1 / 1.1),), comparable=ordered),
    Case("usage_step_ log", "mul_, index_add_, log1p, sub", usage_step, {"n": 10_000_000, "form": "log"}, {"n": 60},
         (Target("eager", 2.5), TWO_THREADS)),
    Case("usage_step_ linear", "mul_, index_add_, sub", usage_step, {"n": 10_000_000, "form": "linear"}, {"n": 60},
         (Target("eager", 1.5), TWO_THREADS)),
    Case("usage_step_ exp", "mul_, index_add_, exp, mul", usage_step, {"n": 10_000_000, "form": "exp"}, {"n": 60},
         (Target("eager", 2.5), TWO_THREADS)),
    Case("usage_step_ linear, into out", "mul_, index_add_, sub(out=)", usage_step,
         {"n": 10_000_000, "form": "linear", "into_out": True}, {"n": 60}),
    Case("usage_update_", "mul_, index_add_", usage_update, {"n": 10_000_000}, {"n": 60}),
    Case("usage_select_", "lerp, log1p, sub, topk, index_add_", usage_select, {"n": 30_000_000}, {"n": 60},
         (Target("8 copies", 1),), comparable=form),
    Case("usage_select_ of 1000 groups", "", usage_select, {"n": 30_000_000, "groups": 1000}, {"n": 6000},
         (Target("8 copies", 1),), comparable=form),
    Case("weighted_sample index", "torch.multinomial", weighted_sample, {**MANY, "order": "index"}, FEW,
         (Target("eager", 40), TWO_THREADS), comparable=form),
    Case("weighted_sample draw", "torch.multinomial", weighted_sample, MANY, FEW,
         (Target("eager", 15), TWO_THREADS), comparable=form),
    Case("weighted_sample shuffled", "torch.multinomial", weighted_sample, {**MANY, "order": "shuffled"}, FEW,
         comparable=form),
    Case("weighted_sample k=1000", "torch.multinomial", weighted_sample, {**MANY, "k": 1000}, FEW,
         (Target("eager", 30), TWO_THREADS), comparable=form),
    Case("weighted_sample with replacement, index", "torch.multinomial", weighted_sample,
         {**MANY, "order": "index", "replacement": True}, FEW,
         (Target("eager", 40), TWO_THREADS), comparable=form),
    Case("weighted_sample with replacement, draw", "torch.multinomial", weighted_sample,
         {**MANY, "replacement": True}, FEW, (Target("eager", 20), TWO_THREADS), comparable=form),
    Case("weighted_sample of rows", "torch.multinomial", weighted_sample, {"rows": 1024, "n": 16_384, "k": 64},
         {"rows": 4, **FEW}, comparable=form),
    Case("weighted_sample log weights", "exp, torch.multinomial", weighted_sample, {**MANY, "log_weights": True}, FEW,
         comparable=form),
    Case("weighted_sample 1e6 of 1e7", "torch.multinomial", weighted_sample,
         {"n": 10_000_000, "k": 1_000_000, "numpy": True}, FEW, comparable=form),
    Case("weighted_sample 1e6 of 1e7 with replacement", "torch.multinomial", weighted_sample,
         {"n": 10_000_000, "k": 1_000_000, "numpy": True, "replacement": True}, FEW, comparable=form),
    Case("weighted_sample replay batch", "torch.multinomial", replay_sample, {"n": 1_000_000, "k": 1024}, FEW,
         comparable=form),
    Case("prepared weights, a batch and its update", "torch.multinomial, index_put_", replay_step,
         {"n": 1_000_000, "k": 256}, FEW, (Target("torchrl", 2),), comparable=form),
    Case("permutation", "torch.randperm", permutation, {"n": 10_000_000}, {"n": 60},
         (Target("eager", 5), TWO_THREADS), comparable=ordered),
    Case("permutation, first 1000", "torch.randperm", permutation, {"n": 10_000_000, "k": 1000}, {"n": 2000},
         comparable=form),
)

CURVES = (
    Case("gumbel_softmax, one row", "F.gumbel_softmax", lambda n: gumbel_softmax((1, n)), {}, {"n": 8}, (LINEAR,),
         DECADES, comparable=sums),
    Case("weighted_sample n/2, index", "torch.multinomial", weighted_sample, {"k": 0.5, "order": "index"}, {"n": 60},
         (LINEAR,), (*DECADES, 10**9), comparable=form),
    Case("weighted_sample n/2, draw", "torch.multinomial", weighted_sample, {"k": 0.5}, {"n": 60}, (LINEAR,),
         DECADES, comparable=form),
    Case("weighted_sample n/2 with replacement", "torch.multinomial", weighted_sample,
         {"k": 0.5, "replacement": True, "order": "index"}, {"n": 60}, (LINEAR,), DECADES, comparable=form),
    Case("select n/3", "torch.topk(sorted=False)", select, {"share": 1 / 3}, {"n": 60}, (LINEAR,), DECADES,
         comparable=ordered),
    Case("topk 32, one row", "torch.topk", lambda n: topk((1, n), 32), {}, {"n": 64}, (LINEAR,), DECADES),
    Case("usage_step_ linear over n", "mul_, index_add_, sub", usage_step, {"form": "linear"}, {"n": 60}, (LINEAR,),
         DECADES),
)

WIDE, TALL, LONG = {"shape": (4096, 32_768)}, {"shape": (1_500_000, 10)}, {"shape": (64, 1_000_000)}
BF16 = {"dtype": torch.bfloat16}
FLOOR_85 = Target("floor", 0.85)
WIDE_CODES = {"B": 8192, "k": 64, "H": 65_536, "d": 1024}
MANY_RECORDS = {"B": 4_000_000, "k": 32, "H": 65_536}
TENTH = {"n": 100_000_000, "k": 10_000_000}

CUDA_CASES = (
    Case("gumbel_softmax float32", "F.gumbel_softmax", gumbel_softmax, WIDE, SMALL, (FLOOR_85,), comparable=sums),
    Case("gumbel_softmax bfloat16", "F.gumbel_softmax", gumbel_softmax, {**WIDE, **BF16}, SMALL,
         (Target("floor", 0.65),), comparable=sums),
    *(Case(f"gumbel_softmax tau 0.5 {str(dtype).removeprefix('torch.')}", "F.gumbel_softmax", gumbel_softmax,
           {**WIDE, "dtype": dtype, "tau": 0.5}, SMALL, comparable=sums) for dtype in (torch.float32, torch.bfloat16)),
    Case("gumbel_softmax hard", "F.gumbel_softmax", gumbel_softmax, {**WIDE, "hard": True}, SMALL, comparable=sums),
    Case("gumbel_softmax backward float32", "F.gumbel_softmax", gumbel_softmax_backward, WIDE, SMALL, (FLOOR_85,),
         comparable=form),
    Case("gumbel_softmax backward bfloat16", "F.gumbel_softmax", gumbel_softmax_backward, {**WIDE, **BF16}, SMALL,
         (FLOOR_85,), comparable=form),
    Case("gumbel_softmax rows of 10", "F.gumbel_softmax", gumbel_softmax, TALL, SMALL, comparable=sums),
    Case("gumbel_softmax rows of 128", "F.gumbel_softmax", gumbel_softmax, {"shape": (1_000_000, 128)}, SMALL,
         comparable=sums),
    *(Case(f"gumbel_softmax rows of 50257 {str(dtype).removeprefix('torch.')}", "F.gumbel_softmax", gumbel_softmax,
           {"shape": (4096, 50_257), "dtype": dtype}, SMALL, comparable=sums)
      for dtype in (torch.float32, torch.bfloat16)),
    Case("gumbel_argmax rows of 50257", "exponential, log, sub, argmax", gumbel_argmax, {"shape": (4096, 50_257)},
         SMALL, comparable=form),
    Case("gumbel_softmax rows of 1e6", "F.gumbel_softmax", gumbel_softmax, LONG, SMALL, comparable=sums),
    Case("gumbel_softmax 16 elements", "F.gumbel_softmax", gumbel_softmax, {"shape": (4, 4)}, SMALL, comparable=sums),
    Case("gumbel_sigmoid", "rand, logit, add, div, sigmoid", gumbel_sigmoid, {"n": 100_000_000}, {"n": 8},
         comparable=form),
    Case("gumbel_argmax float32", "exponential, log, sub, argmax", gumbel_argmax, WIDE, SMALL,
         (Target("floor", 0.75),), comparable=form),
    Case("gumbel_argmax bfloat16", "exponential, log, sub, argmax", gumbel_argmax, {**WIDE, **BF16}, SMALL,
         comparable=form),
    Case("topk", "torch.topk", topk, {"shape": (4096, 65_536), "k": 64}, {**SMALL, "k": 3},
         (Target("floor", 0.250 / 0.40),)),  # 0.40 ms on an H200
    Case("topk of rows of 1e6", "torch.topk", topk, {**LONG, "k": 64}, {**SMALL, "k": 3}),
    Case("topk_encode", "linear, relu, topk", topk_encode, {"B": 4096, "d": 4096, "H": 65_536, "k": 64, **BF16},
         {"B": 4, "d": 8, "H": 32, "k": 3, "dtype": torch.float32},
         (Target("linear alone", 1 / 1.10), Target("memory", 1, 160_000_000)), comparable=by_index),
    Case("sparse_decode", "F.embedding_bag", sparse_decode, {**WIDE_CODES, "backward": False}, FEW_CODES,
         (Target("itself", 1),)),
    Case("sparse_decode with backward", "F.embedding_bag", sparse_decode, {**WIDE_CODES, "backward": True}, FEW_CODES,
         (Target("itself", 1),)),
    Case("factor_counts", "mask, bincount", factor_counts, MANY_RECORDS, FEW_RECORDS),
    Case("factor_counts of 100 groups", "mask, bincount", factor_counts, {**MANY_RECORDS, "G": 100}, FEW_RECORDS),
    Case("factor_scores", "gather, mask, sum", factor_scores, {**MANY_RECORDS, "T": 2}, FEW_RECORDS),
    Case("select n/3 of 1e8", "torch.topk(sorted=False)", select, {"n": 100_000_000, "share": 1 / 3}, {"n": 60},
         comparable=ordered),
    Case("select n/3 of 1e9", "torch.topk(sorted=False)", select, {"n": 1_000_000_000, "share": 1 / 3}, {"n": 60},
         comparable=ordered),
    Case("usage_step_ log, ascending", "mul_, index_add_, log1p, sub", usage_step, {"n": 100_000_000, "form": "log"},
         {"n": 60}),
    Case("usage_step_ linear, ascending", "mul_, index_add_, sub", usage_step, {"n": 100_000_000, "form": "linear"},
         {"n": 60}, (Target("floor", 0.80),)),
    Case("usage_step_ linear, in any order", "mul_, index_add_, sub", usage_step,
         {"n": 100_000_000, "form": "linear", "shuffled": True}, {"n": 60}, (Target("floor", 0.80),)),
    Case("usage_step_ exp, ascending", "mul_, index_add_, exp, mul", usage_step, {"n": 100_000_000, "form": "exp"},
         {"n": 60}),
    Case("usage_update_", "mul_, index_add_", usage_update, {"n": 100_000_000}, {"n": 60}),
    Case("weighted_sample index", "torch.multinomial", weighted_sample, {**TENTH, "order": "index"}, FEW,
         (Target("floor", 0.112 / 0.35),), comparable=form),  # 0.35 ms on an H200
    Case("weighted_sample draw", "torch.multinomial", weighted_sample, TENTH, FEW, comparable=form),
    Case("weighted_sample shuffled", "torch.multinomial", weighted_sample, {**TENTH, "order": "shuffled"}, FEW,
         comparable=form),
    Case("weighted_sample k=1000", "torch.multinomial", weighted_sample, {**TENTH, "k": 1000}, FEW, comparable=form),
    Case("weighted_sample 8e6 of 1.6e7", "torch.multinomial", weighted_sample, {**MANY, "order": "index"}, FEW,
         comparable=form),
    Case("weighted_sample with replacement", "torch.multinomial", weighted_sample,
         {**MANY, "order": "index", "replacement": True}, FEW, comparable=form),
    Case("weighted_sample of rows", "torch.multinomial", weighted_sample, {"rows": 1024, "n": 16_384, "k": 64},
         {"rows": 4, **FEW}, comparable=form),
    Case("prepared weights, a batch and its update", "torch.multinomial, index_put_", replay_step,
         {"n": 1_000_000, "k": 256}, FEW, (Target("torchrl", 2),), comparable=form),
    Case("permutation", "torch.randperm", permutation, {"n": 100_000_000}, {"n": 60}, comparable=ordered),
)
# fmt: on
