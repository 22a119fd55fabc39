"""Weighted sampling and permutations."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pysel
from bench.cases.case import DECADES, LINEAR, TWO_THREADS, Case, Setup, Target, form, nbytes, ordered
from bench.timing import Call


def weighted_sample(
    n: int,
    k: int | float,
    order: str = "draw",
    replacement: bool = False,
    log_weights: bool = False,
    rows: int | None = None,
    numpy: bool = False,
    equal: bool = False,
) -> Setup:
    shape = n if rows is None else (rows, n)
    weights = torch.ones(shape) if equal else torch.rand(shape).add_(1e-3)
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


def weighted_sample_groups(n: int, groups: int) -> Setup:
    """A third of each group, without replacement."""
    weights, of = torch.rand(n).add_(1e-3), torch.randint(groups, (n,), dtype=torch.int32)
    sizes = torch.bincount(of, minlength=groups)
    quotas = sizes // 3
    k = int(quotas.sum())

    def loop() -> Tensor:
        rows_of = torch.argsort(of).split(sizes.tolist())
        return torch.cat(
            [rows[torch.multinomial(weights[rows], q)] for rows, q in zip(rows_of, quotas.tolist(), strict=True)]
        )

    def race(**options: Any) -> Call:
        return lambda: pysel.weighted_sample(weights, k, order="index", **options)

    return Setup(
        {"pysel": race(groups=of, quotas=quotas), "eager": loop, "ungrouped": race()}, nbytes(weights, of) + 8 * k
    )


def permutation(n: int, k: int | None = None, against: tuple[str, ...] = ("eager",)) -> Setup:
    key = pysel.key(0)
    k = n if k is None else k
    rivals: dict[str, Call] = {"eager": lambda: torch.randperm(n)[:k]}
    ours: dict[str, Call] = {"pysel": lambda: pysel.permutation(n, key=key, stop=k)}
    return Setup(ours | {name: rivals[name] for name in against}, 8 * k)


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


SHORT = {"n": 4608, "k": 2304}, {"n": 6912, "k": 3456}
MANY, FEW = {"n": 16_000_000, "k": 8_000_000}, {"n": 60, "k": 20}
TENTH = {"n": 100_000_000, "k": 10_000_000}

# fmt: off
CASES = (
    Case("weighted_sample index", "torch.multinomial", weighted_sample, {**MANY, "order": "index"}, FEW,
         (Target("eager", 70, avx2=65), TWO_THREADS), comparable=form, counted=SHORT),
    Case("weighted_sample draw", "torch.multinomial", weighted_sample, MANY, FEW,
         (Target("eager", 20, avx2=15), TWO_THREADS), comparable=form, counted=SHORT),
    Case("weighted_sample shuffled", "torch.multinomial", weighted_sample, {**MANY, "order": "shuffled"}, FEW,
         comparable=form),
    Case("weighted_sample k=1000", "torch.multinomial", weighted_sample, {**MANY, "k": 1000}, FEW,
         (Target("eager", 45, avx2=35), TWO_THREADS), comparable=form,
         counted=({"n": 4608, "k": 2}, {"n": 6912, "k": 3})),
    Case("weighted_sample with replacement, index", "torch.multinomial", weighted_sample,
         {**MANY, "order": "index", "replacement": True}, FEW,
         (Target("eager", 48, avx2=35), TWO_THREADS), comparable=form, counted=SHORT),
    Case("weighted_sample with replacement, draw", "torch.multinomial", weighted_sample,
         {**MANY, "replacement": True}, FEW,
         (Target("eager", 48, avx2=35), TWO_THREADS), comparable=form, counted=SHORT),
    Case("weighted_sample of rows", "torch.multinomial", weighted_sample, {"rows": 1024, "n": 16_384, "k": 64},
         {"rows": 4, **FEW}, (Target("eager", 16, avx2=14),), comparable=form,
         counted=({"rows": 1, "n": 4096}, {"rows": 2, "n": 4096})),
    Case("weighted_sample 16 elements", "torch.multinomial", weighted_sample, {"n": 16, "k": 4}, {},
         (Target("eager", 1),), comparable=form),
    Case("weighted_sample of equal weights", "torch.multinomial", weighted_sample,
         {**MANY, "order": "index", "equal": True}, FEW, (Target("eager", 70, avx2=65),), comparable=form),
    Case("weighted_sample of 10 groups", "argsort, multinomial of each group", weighted_sample_groups,
         {"n": 10_000_000, "groups": 10}, {"n": 600}, (Target("ungrouped", 1 / 1.5),), comparable=form),
    Case("weighted_sample of 1000 groups", "argsort, multinomial of each group", weighted_sample_groups,
         {"n": 10_000_000, "groups": 1000}, {"n": 600, "groups": 9}, (Target("ungrouped", 1 / 2),), comparable=form),
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
         (Target("eager", 5), TWO_THREADS), comparable=ordered, counted=({"n": 4096}, {"n": 6144})),
    Case("permutation, first of 1e9", "", permutation, {"n": 10**9, "k": 1, "against": ()}, {"n": 2000},
         (Target("seconds", 1, limit=1e-3),), comparable=form),
    Case("permutation, first 1000", "torch.randperm", permutation, {"n": 10_000_000, "k": 1000}, {"n": 2000},
         comparable=form),
)

CURVES = (
    Case("weighted_sample n/2, index", "torch.multinomial", weighted_sample, {"k": 0.5, "order": "index"}, {"n": 60},
         (LINEAR,), (*DECADES, 10**9), comparable=form),
    Case("weighted_sample n/2, draw", "torch.multinomial", weighted_sample, {"k": 0.5}, {"n": 60}, (LINEAR,),
         DECADES, comparable=form),
    Case("weighted_sample n/2 with replacement", "torch.multinomial", weighted_sample,
         {"k": 0.5, "replacement": True, "order": "index"}, {"n": 60}, (LINEAR,), DECADES, comparable=form),
)

CUDA_CASES = (
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
