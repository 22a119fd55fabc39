"""Relaxed and exact choices with Gumbel noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pysel
from bench.cases.case import DECADES, FLOOR_85, LINEAR, TWO_THREADS, Case, Setup, Target, compiled, form, nbytes, sums
from bench.timing import Call


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


ROWS = {"shape": (1, 1024)}, {"shape": (2, 1024)}
LARGE, SMALL = {"shape": (4096, 4096)}, {"shape": (4, 8)}
WIDE, TALL, LONG = {"shape": (4096, 32_768)}, {"shape": (1_500_000, 10)}, {"shape": (64, 1_000_000)}
BF16 = {"dtype": torch.bfloat16}

# fmt: off
CASES = (
    Case("gumbel_softmax soft", "F.gumbel_softmax", gumbel_softmax, LARGE, SMALL,
         (Target("eager", 25, avx2=20), Target("compile", 7.5, avx2=0), TWO_THREADS), comparable=sums, counted=ROWS),
    Case("gumbel_softmax hard", "F.gumbel_softmax", gumbel_softmax, {**LARGE, "hard": True}, SMALL,
         (Target("eager", 40, avx2=37), Target("compile", 9, avx2=0), TWO_THREADS), comparable=sums, counted=ROWS),
    Case("gumbel_softmax soft, into out", "F.gumbel_softmax", gumbel_softmax, {**LARGE, "into_out": True}, SMALL,
         comparable=sums),
    Case("gumbel_softmax backward", "F.gumbel_softmax", gumbel_softmax_backward, LARGE, SMALL,
         (Target("eager", 2),), comparable=form),
    Case("gumbel_softmax bfloat16", "F.gumbel_softmax", gumbel_softmax, {**LARGE, "dtype": torch.bfloat16}, SMALL,
         (Target("eager", 20, avx2=18),), comparable=sums, counted=ROWS),
    Case("gumbel_softmax of one row", "F.gumbel_softmax", gumbel_softmax, {"shape": (1, 16_777_216)}, SMALL,
         (Target("eager", 20, avx2=15),), comparable=sums),
    Case("gumbel_softmax rows of 10", "F.gumbel_softmax", gumbel_softmax, {"shape": (1_500_000, 10)}, SMALL,
         (Target("eager", 17, avx2=12),), comparable=sums, counted=({"shape": (100, 10)}, {"shape": (200, 10)})),
    Case("gumbel_softmax 16 elements", "F.gumbel_softmax", gumbel_softmax, {"shape": (4, 4)}, SMALL,
         (Target("eager", 1.3),), comparable=sums),
    Case("gumbel_sigmoid", "rand, logit, add, div, sigmoid", gumbel_sigmoid, {"n": 16_777_216}, {"n": 8},
         (Target("eager", 5),), comparable=form, counted=({"n": 1024}, {"n": 2048})),
    Case("gumbel_sigmoid, into out", "rand, logit, add, div, sigmoid", gumbel_sigmoid,
         {"n": 16_777_216, "into_out": True}, {"n": 8}, comparable=form),
    Case("gumbel_argmax", "exponential, log, sub, argmax", gumbel_argmax, LARGE, SMALL,
         (Target("eager", 40, avx2=35),), comparable=form, counted=ROWS),
)

CURVES = (
    Case("gumbel_softmax, one row", "F.gumbel_softmax", lambda n: gumbel_softmax((1, n)), {}, {"n": 8}, (LINEAR,),
         DECADES, comparable=sums),
)

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
)
# fmt: on
