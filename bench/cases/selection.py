"""Selection of the largest, and how often each sample has been used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pysel
from bench.cases.case import (
    DECADES,
    FLOOR_85,
    LINEAR,
    TWO_THREADS,
    Case,
    Setup,
    Target,
    compiled,
    form,
    nbytes,
    ordered,
)
from bench.timing import Call


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


def select_by_key(n: int, share: float, values: int | None = None) -> Setup:
    """Scores that do not tie, so that the key decides nothing; or of a few values, so that it decides much."""
    scores = (torch.randperm(n) if values is None else torch.randint(values, (n,))).float()
    k = int(n * share)
    contenders: dict[str, Call] = {
        "pysel": lambda: pysel.select(scores, k, key=1),
        "eager": lambda: torch.topk(scores, k, sorted=False).indices,
        "without a key": lambda: pysel.select(scores, k),
    }
    return Setup(contenders, nbytes(scores) + 8 * k)


def ascending(n: int, k: int) -> Tensor:
    """k of n indices, as a selector gives them."""
    return torch.rand(n).topk(k, sorted=False).indices.sort().values


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
        3 * nbytes(scores) + nbytes(ours, selected),
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


SHORT = {"n": 4608}, {"n": 6912}

# fmt: off
CASES = (
    Case("select", "torch.topk(sorted=False)", select, {"n": 10_000_000, "share": 1 / 3}, {"n": 60},
         (Target("eager", 24, avx2=12), TWO_THREADS), comparable=ordered, counted=SHORT),
    Case("select 16 elements", "torch.topk(sorted=False)", select, {"n": 16, "share": 1 / 4}, {},
         (Target("eager", 1 / 2),), comparable=ordered),
    Case("select of 10 groups", "argsort, topk of each group", select_groups, {"n": 10_000_000, "groups": 10},
         {"n": 600}, (Target("ungrouped", 1 / 1.5),), comparable=ordered),
    Case("select of 1000 groups", "argsort, topk of each group", select_groups, {"n": 10_000_000, "groups": 1000},
         {"n": 6000}, (Target("ungrouped", 1 / 2), Target("eager", 10)), comparable=ordered),
    Case("select of 1e5 groups", "argsort, topk of each group", select_groups, {"n": 10_000_000, "groups": 100_000},
         {"n": 600, "groups": 90}, (Target("ungrouped", 1 / 4),), comparable=ordered),
    Case("select by key", "torch.topk(sorted=False)", select_by_key, {"n": 10_000_000, "share": 1 / 3}, {"n": 60},
         (Target("without a key", 1 / 1.1),), comparable=ordered),
    Case("select by key of ten values", "torch.topk(sorted=False)", select_by_key,
         {"n": 10_000_000, "share": 1 / 3, "values": 10}, {"n": 60}, (Target("eager", 24, avx2=12),), comparable=form),
    Case("usage_step_ log", "mul_, index_add_, log1p, sub", usage_step, {"n": 10_000_000, "form": "log"}, {"n": 60},
         (Target("eager", 2.5), TWO_THREADS)),
    Case("usage_step_ linear", "mul_, index_add_, sub", usage_step, {"n": 10_000_000, "form": "linear"}, {"n": 60},
         (Target("eager", 1.5, avx2=1.7), TWO_THREADS)),
    Case("usage_step_ rate", "mul_, index_add_, sub", usage_step, {"n": 10_000_000, "form": "rate"}, {"n": 60},
         (Target("eager", 1.5, avx2=1.7), TWO_THREADS)),
    Case("usage_step_ exp", "mul_, index_add_, exp, mul", usage_step, {"n": 10_000_000, "form": "exp"}, {"n": 60},
         (Target("eager", 2.3, avx2=2.6), TWO_THREADS)),
    Case("usage_step_ linear, into out", "mul_, index_add_, sub(out=)", usage_step,
         {"n": 10_000_000, "form": "linear", "into_out": True}, {"n": 60}, (FLOOR_85,)),
    Case("usage_update_", "mul_, index_add_", usage_update, {"n": 10_000_000}, {"n": 60}),
    Case("usage_select_", "lerp, log1p, sub, topk, index_add_", usage_select, {"n": 30_000_000}, {"n": 60},
         (Target("8 copies", 1),), comparable=form),
    Case("usage_select_ of 1000 groups", "", usage_select, {"n": 30_000_000, "groups": 1000}, {"n": 6000},
         (Target("8 copies", 1),), comparable=form),
)

CURVES = (
    Case("select n/3", "torch.topk(sorted=False)", select, {"share": 1 / 3}, {"n": 60}, (LINEAR,), DECADES,
         comparable=ordered),
    Case("usage_step_ linear over n", "mul_, index_add_, sub", usage_step, {"form": "linear"}, {"n": 60}, (LINEAR,),
         DECADES),
)

CUDA_CASES = (
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
)
# fmt: on
