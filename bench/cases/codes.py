"""Top-k, and the encoder, decoder and factors of a TopK sparse autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pysel
from bench.cases.case import DECADES, LINEAR, TWO_THREADS, Case, Setup, Target, by_index, compiled, nbytes
from bench.timing import Call


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


SMALL, LONG = {"shape": (4, 8)}, {"shape": (64, 1_000_000)}
BF16 = {"dtype": torch.bfloat16}
CODES, FEW_CODES = {"B": 3000, "k": 48, "H": 20_000, "d": 640}, {"B": 5, "k": 3, "H": 20, "d": 4}
WIDE_CODES = {"B": 8192, "k": 64, "H": 65_536, "d": 1024}
RECORDS, FEW_RECORDS = {"B": 500_000, "k": 32, "H": 16_384}, {"B": 50, "k": 3, "H": 20}
MANY_RECORDS = {"B": 4_000_000, "k": 32, "H": 65_536}

# fmt: off
CASES = (
    Case("topk", "torch.topk", topk, {"shape": (1024, 16_384), "k": 32}, {**SMALL, "k": 3},
         (Target("eager", 6, avx2=5), TWO_THREADS), counted=({"shape": (1, 8192)}, {"shape": (1, 16_384)})),
    Case("topk 16 elements", "torch.topk", topk, {"shape": (4, 4), "k": 2}, {}, (Target("eager", 1 / 2),)),
    Case("topk_encode", "linear, relu, topk", topk_encode, {"B": 1024, "d": 512, "H": 16_384, "k": 32},
         {"B": 4, "d": 8, "H": 32, "k": 3},
         # a quarter of all activations [B, H]: outputs and a tile fit, the activations do not
         (Target("linear alone", 1.1, avx2=1.2), Target("memory", 1, limit=1024 * 16_384), Target("neighbour", 0.9),
          TWO_THREADS),
         comparable=by_index),
    Case("topk_encode abs", "linear, abs, topk, gather", topk_encode,
         {"B": 1024, "d": 512, "H": 16_384, "k": 32, "activation": "abs"}, {"B": 4, "d": 8, "H": 32, "k": 3},
         (Target("linear alone", 1.1, avx2=1.2),), comparable=by_index),
    Case("sparse_decode", "F.embedding_bag", sparse_decode, {**CODES, "backward": False}, FEW_CODES,
         (Target("eager", 1), Target("itself", 1), TWO_THREADS)),
    Case("sparse_decode with backward", "F.embedding_bag", sparse_decode, {**CODES, "backward": True}, FEW_CODES,
         (Target("eager", 2.4, avx2=2.2), Target("itself", 1), TWO_THREADS)),
    Case("factor_counts", "mask, bincount", factor_counts, RECORDS, FEW_RECORDS),
    Case("factor_counts of 100 groups", "mask, bincount", factor_counts, {**RECORDS, "G": 100}, FEW_RECORDS),
    Case("factor_scores", "gather, mask, sum", factor_scores, {**RECORDS, "T": 2}, FEW_RECORDS),
    Case("factor_scores of 8 tables", "gather, mask, sum", factor_scores, {**RECORDS, "T": 8}, FEW_RECORDS),
)

CURVES = (
    Case("topk 32, one row", "torch.topk", lambda n: topk((1, n), 32), {}, {"n": 64}, (LINEAR,), DECADES),
)

CUDA_CASES = (
    Case("topk", "torch.topk", topk, {"shape": (4096, 65_536), "k": 64}, {**SMALL, "k": 3},
         (Target("floor", 0.250 / 0.40),)),  # 0.40 ms on an H200
    Case("topk of rows of 1e6", "torch.topk", topk, {**LONG, "k": 64}, {**SMALL, "k": 3}),
    Case("topk_encode", "linear, relu, topk", topk_encode, {"B": 4096, "d": 4096, "H": 65_536, "k": 64, **BF16},
         {"B": 4, "d": 8, "H": 32, "k": 3, "dtype": torch.float32},
         (Target("linear alone", 1 / 1.10), Target("memory", 1, limit=160_000_000)), comparable=by_index),
    Case("sparse_decode", "F.embedding_bag", sparse_decode, {**WIDE_CODES, "backward": False}, FEW_CODES,
         (Target("itself", 1),)),
    Case("sparse_decode with backward", "F.embedding_bag", sparse_decode, {**WIDE_CODES, "backward": True}, FEW_CODES,
         (Target("itself", 1),)),
    Case("factor_counts", "mask, bincount", factor_counts, MANY_RECORDS, FEW_RECORDS),
    Case("factor_counts of 100 groups", "mask, bincount", factor_counts, {**MANY_RECORDS, "G": 100}, FEW_RECORDS),
    Case("factor_scores", "gather, mask, sum", factor_scores, {**MANY_RECORDS, "T": 2}, FEW_RECORDS),
)
# fmt: on
