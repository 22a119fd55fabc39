"""Shapes and argument checks of every op without its values: for ``torch.compile``, and for the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysel import _checks


def fake(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register the fake of the op that ``function`` is named after."""
    torch.library.register_fake(f"pysel::{function.__name__}", function)
    return function


# --- random streams ---


@fake
def random_words(key: Tensor, stream: int, start: int, n: int) -> Tensor:
    return key.new_empty(n, dtype=torch.int64)


@fake
def noise(bits: Tensor, kind: str, double_precision: bool) -> Tensor:
    return torch.empty_like(
        bits,
        dtype=torch.float64 if double_precision else torch.float32,
        memory_format=torch.contiguous_format,
    )


@fake
def words64(key: Tensor, stream: int, items: Tensor) -> Tensor:
    return items.new_empty(items.shape)


@fake
def split(key: Tensor, n: int) -> Tensor:
    return key.new_empty((n, 2), dtype=torch.int64)


@fake
def fold_in(key: Tensor, data: int) -> Tensor:
    return key.new_empty(2, dtype=torch.int64)


@fake
def permutation(n: int, key: Tensor, start: int, stop: int) -> Tensor:
    _checks.positions("permutation", n, start, stop)
    return key.new_empty(stop - start, dtype=torch.int64)


# --- gumbel ---


def _tau(op: str, tau: Tensor) -> None:
    torch._check_value(
        tau.dim() == 0, lambda: f"{op}: tau must be a number or a 0-d tensor, got shape {list(tau.shape)}"
    )


def _same_shape(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    torch._check_value(
        value.shape == other.shape,
        lambda: f"{op}: {name} must have the shape of {other_name}, {list(other.shape)}, got {list(value.shape)}",
    )


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@fake
def gumbel_softmax(
    logits: Tensor, tau: Tensor, key: Tensor, dim: int, hard: bool, start: int, validate: bool | None
) -> Tensor:
    op = "gumbel_softmax"
    _checks.dim(op, dim, logits.dim())
    _tau(op, tau)
    _checks.start(op, start)
    return _like(logits)


@fake
def gumbel_softmax_backward(grad: Tensor, y: Tensor, tau: Tensor, dim: int) -> Tensor:
    _same_shape("gumbel_softmax_backward", "grad", grad, "y", y)
    return _like(y)


@fake
def gumbel_sigmoid(logits: Tensor, tau: Tensor, key: Tensor, hard: bool, start: int, validate: bool | None) -> Tensor:
    _tau("gumbel_sigmoid", tau)
    _checks.start("gumbel_sigmoid", start)
    return _like(logits)


@fake
def gumbel_sigmoid_backward(grad: Tensor, logits: Tensor, tau: Tensor, key: Tensor, start: int) -> Tensor:
    _same_shape("gumbel_sigmoid_backward", "grad", grad, "logits", logits)
    return _like(logits)


@fake
def gumbel_argmax(logits: Tensor, key: Tensor, dim: int, start: int, validate: bool | None) -> Tensor:
    op = "gumbel_argmax"
    d = _checks.dim(op, dim, logits.dim())
    _checks.start(op, start)
    size = [*logits.shape[:d], *logits.shape[d + 1 :]]
    if logits.dim() > 0:
        torch._check_index(
            logits.shape[d] > 0,
            lambda: f"{op}: dim must have at least one element, got shape {list(logits.shape)}",
        )
    return logits.new_empty(size, dtype=torch.int64)


# --- sample, select ---


def _groups(op: str, groups: Tensor | None, quotas: Tensor | None, like_name: str, like: Tensor) -> None:
    if groups is None and quotas is None:
        return
    torch._check_value(groups is not None, lambda: f"{op}: groups must be given with quotas, got None")
    torch._check_value(quotas is not None, lambda: f"{op}: quotas must be given with groups, got None")
    assert groups is not None
    assert quotas is not None
    torch._check_value(
        groups.dim() == 1 and groups.shape[0] == like.shape[0],
        lambda: f"{op}: groups must have the shape of {like_name}, {list(like.shape)}, got {list(groups.shape)}",
    )
    torch._check_value(groups.dtype in (torch.int64, torch.int32), lambda: f"{op}: groups must be int64 or int32")
    torch._check_value(quotas.dim() == 1, lambda: f"{op}: quotas must have shape [G], got {list(quotas.shape)}")
    torch._check_value(quotas.dtype == torch.int64, lambda: f"{op}: quotas must be int64")


@fake
def weighted_sample(
    weights: Tensor,
    k: int,
    replacement: bool,
    log_weights: bool,
    order: str,
    groups: Tensor | None,
    quotas: Tensor | None,
    key: Tensor,
    start: int,
    validate: bool | None,
) -> Tensor:
    op = "weighted_sample"
    torch._check_value(
        weights.dim() in (1, 2),
        lambda: f"{op}: weights must have shape [n] or [B, n], got {list(weights.shape)}",
    )
    _checks.choice(op, "order", order, ("draw", "index", "shuffled"))
    _checks.start(op, start)
    if replacement:
        torch._check_index(k >= 0, lambda: f"{op}: k must be at least 0, got {k}")
        if weights.shape[-1] == 0:
            torch._check_value(
                k == 0, lambda: f"{op}: weights must have at least one element a row, got shape {list(weights.shape)}"
            )
    else:
        _checks.k(op, k, weights.shape[-1])
    if groups is not None or quotas is not None:
        torch._check_value(not replacement, lambda: f"{op}: replacement must be False with groups, got True")
        torch._check_value(
            weights.dim() == 1, lambda: f"{op}: weights must have shape [n] with groups, got {list(weights.shape)}"
        )
        _groups(op, groups, quotas, "weights", weights)
    return weights.new_empty([*weights.shape[:-1], k], dtype=torch.int64)


_FAN = 64  # csrc/common/prepared.h


def level_sizes(n: int) -> list[int]:
    """How many sums each level of n prepared weights has."""
    sizes = [-(-n // _FAN)]
    while sizes[-1] > _FAN:
        sizes.append(-(-sizes[-1] // _FAN))
    return sizes


@fake
def prepare(weights: Tensor) -> tuple[Tensor, Tensor]:
    torch._check_value(
        weights.dim() == 1 and weights.shape[0] > 0,
        lambda: f"prepare: weights must have shape [n] with n > 0, got {list(weights.shape)}",
    )
    size = sum(level_sizes(weights.shape[0]))
    return weights.new_empty(size, dtype=torch.int64), weights.new_empty(size)


@fake
def update_prepared_(weights: Tensor, sums: Tensor, largest: Tensor, index: Tensor, weight: Tensor) -> None:
    torch._check_value(index.dim() == 1, lambda: f"update_: index must have shape [m], got {list(index.shape)}")
    _same_shape("update_", "weight", weight, "index", index)


@fake
def sample_prepared(
    weights: Tensor, sums: Tensor, largest: Tensor, k: int, order: str, key: Tensor, start: int
) -> Tensor:
    return weighted_sample(weights, k, True, False, order, None, None, key, start, None)


@fake
def race_keys(weights: Tensor, log_weights: bool, key: Tensor, start: int) -> Tensor:
    _checks.start("race_keys", start)
    return weights.new_empty(weights.shape, dtype=torch.float64 if weights.dtype == torch.float64 else torch.float32)


@fake
def draw_targets(key: Tensor, start: int, k: int, total: int) -> Tensor:
    _checks.start("draw_targets", start)
    return key.new_empty(k, dtype=torch.int64)


@fake
def fixed_weights(weights: Tensor, log_weights: bool, max: float, n: int) -> Tensor:
    return weights.new_empty(weights.shape, dtype=torch.int64)


@fake
def select(
    scores: Tensor,
    k: int,
    largest: bool,
    groups: Tensor | None = None,
    quotas: Tensor | None = None,
    key: Tensor | None = None,
    validate: bool | None = None,
    start: int = 0,
) -> Tensor:
    op = "select"
    torch._check_value(scores.dim() == 1, lambda: f"{op}: scores must have shape [n], got {list(scores.shape)}")
    _checks.k(op, k, scores.shape[0])
    _checks.start(op, start)
    _groups(op, groups, quotas, "scores", scores)
    return scores.new_empty(k, dtype=torch.int64)


# --- topk ---


def _matrix(op: str, name: str, value: Tensor, wanted: str) -> None:
    torch._check_value(value.dim() == 2, lambda: f"{op}: {name} must have shape {wanted}, got {list(value.shape)}")


def _same_dtype(op: str, other_name: str, other: Tensor, name: str, value: Tensor) -> None:
    torch._check_value(value.dtype == other.dtype, lambda: f"{op}: {name} must have the dtype of {other_name}")


def _int64(op: str, name: str, value: Tensor) -> None:
    torch._check_value(value.dtype == torch.int64, lambda: f"{op}: {name} must be int64")


def _bias(op: str, bias: Tensor | None, n: int, like_name: str, like: Tensor) -> None:
    if bias is None:
        return
    torch._check_value(
        bias.dim() == 1 and bias.shape[0] == n, lambda: f"{op}: bias must have shape [{n}], got {list(bias.shape)}"
    )
    _same_dtype(op, like_name, like, "bias", bias)


def _codes(op: str, values: Tensor | None, indices: Tensor) -> None:
    _matrix(op, "indices", indices, "[B, k]")
    _int64(op, "indices", indices)
    if values is not None:
        _matrix(op, "values", values, "[B, k]")
        _same_shape(op, "indices", indices, "values", values)


def _num_factors(op: str, value: int) -> None:
    torch._check_value(value >= 0, lambda: f"{op}: num_factors must be at least 0, got {value}")


@fake
def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    op = "topk"
    torch._check_value(x.dim() >= 1, lambda: f"{op}: x must have shape [..., n], got {list(x.shape)}")
    _checks.k(op, k, x.shape[-1])
    size = [*x.shape[:-1], k]
    return x.new_empty(size), x.new_empty(size, dtype=torch.int64)


@fake
def topk_encode(x: Tensor, weight: Tensor, bias: Tensor | None, k: int, activation: str) -> tuple[Tensor, Tensor]:
    op = "topk_encode"
    _matrix(op, "x", x, "[B, d]")
    _matrix(op, "weight", weight, "[H, d]")
    torch._check_value(
        x.shape[1] == weight.shape[1],
        lambda: f"{op}: weight must have shape [H, {x.shape[1]}] to go with x, got {list(weight.shape)}",
    )
    _same_dtype(op, "x", x, "weight", weight)
    _bias(op, bias, weight.shape[0], "x", x)
    _checks.k(op, k, weight.shape[0])
    _checks.choice(op, "activation", activation, ("relu", "abs"))
    size = (x.shape[0], k)
    return x.new_empty(size), x.new_empty(size, dtype=torch.int64)


@fake
def sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    op = "sparse_decode"
    _codes(op, values, indices)
    _matrix(op, "weight", weight, "[H, d]")
    _same_dtype(op, "values", values, "weight", weight)
    _bias(op, bias, weight.shape[1], "values", values)
    return values.new_empty((values.shape[0], weight.shape[1]))


@fake
def sddmm(indices: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    op = "sddmm"
    _codes(op, None, indices)
    _matrix(op, "weight", weight, "[H, d]")
    _matrix(op, "grad", grad, "[B, d]")
    _same_dtype(op, "weight", weight, "grad", grad)
    wanted = [indices.shape[0], weight.shape[1]]
    torch._check_value(
        grad.shape[0] == wanted[0] and grad.shape[1] == wanted[1],
        lambda: f"{op}: grad must have shape {wanted}, got {list(grad.shape)}",
    )
    return weight.new_empty(indices.shape)


@fake
def spmm_t(values: Tensor, indices: Tensor, rows: Tensor, num_factors: int) -> Tensor:
    op = "spmm_t"
    _codes(op, values, indices)
    _matrix(op, "rows", rows, "[B, d]")
    _num_factors(op, num_factors)
    torch._check_value(
        rows.shape[0] == values.shape[0],
        lambda: f"{op}: rows must have shape [{values.shape[0]}, d] to go with values, got {list(rows.shape)}",
    )
    _same_dtype(op, "values", values, "rows", rows)
    return values.new_empty((num_factors, rows.shape[1]))


@fake
def sparse_decode_backward(grad: Tensor, values: Tensor, indices: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    op = "sparse_decode_backward"
    _codes(op, values, indices)
    _matrix(op, "weight", weight, "[H, d]")
    _matrix(op, "grad", grad, "[B, d]")
    _same_dtype(op, "values", values, "weight", weight)
    _same_dtype(op, "values", values, "grad", grad)
    wanted = [values.shape[0], weight.shape[1]]
    torch._check_value(
        grad.shape[0] == wanted[0] and grad.shape[1] == wanted[1],
        lambda: f"{op}: grad must have shape {wanted}, got {list(grad.shape)}",
    )
    return values.new_empty(values.shape), weight.new_empty(weight.shape)


@fake
def factor_counts(
    values: Tensor, indices: Tensor, num_factors: int, groups: Tensor | None, num_groups: int | None
) -> Tensor:
    op = "factor_counts"
    _codes(op, values, indices)
    _num_factors(op, num_factors)
    if groups is None or num_groups is None:
        given, missing = ("groups", "num_groups") if num_groups is None else ("num_groups", "groups")
        torch._check_value(
            groups is None and num_groups is None, lambda: f"{op}: {missing} must be given with {given}, got None"
        )
        return indices.new_empty(num_factors)
    torch._check_value(
        groups.dim() == 1 and groups.shape[0] == values.shape[0],
        lambda: f"{op}: groups must have shape [{values.shape[0]}], got {list(groups.shape)}",
    )
    _int64(op, "groups", groups)
    torch._check_value(num_groups >= 0, lambda: f"{op}: num_groups must be at least 0, got {num_groups}")
    return indices.new_empty(num_groups, num_factors)


@fake
def factor_scores(values: Tensor, indices: Tensor, tables: Tensor, reduce: str, weighted: bool) -> Tensor:
    op = "factor_scores"
    _codes(op, values, indices)
    torch._check_value(
        tables.dim() in (1, 2), lambda: f"{op}: tables must have shape [H] or [T, H], got {list(tables.shape)}"
    )
    torch._check_value(
        tables.dtype in (torch.float32, torch.float64), lambda: f"{op}: tables must be float32 or float64"
    )
    _checks.choice(op, "reduce", reduce, ("sum", "mean"))
    return tables.new_empty((values.shape[0], *tables.shape[:-1]))


# --- usage ---


def _own_counts(op: str, counts: Tensor) -> None:
    torch._check_value(counts.dim() == 1, lambda: f"{op}: counts must have shape [n], got {list(counts.shape)}")
    torch._check_value(
        counts.shape[0] < 2 or counts.stride(0) != 0,
        lambda: f"{op}: counts must not be an expanded tensor, whose elements share memory",
    )


def _update(op: str, counts: Tensor, selected: Tensor, decay: float) -> None:
    _own_counts(op, counts)
    torch._check_value(selected.dim() == 1, lambda: f"{op}: selected must have shape [m], got {list(selected.shape)}")
    _int64(op, "selected", selected)
    torch._check_value(0 <= decay <= 1, lambda: f"{op}: decay must be between 0 and 1, got {decay:g}")
    _counts(op, counts)
    torch._check_value(
        counts.dtype.is_floating_point or decay == 1,
        lambda: f"{op}: decay must be 1 for integer counts, got {decay:g}",
    )


def _counts(op: str, counts: Tensor) -> None:
    torch._check_value(
        counts.dtype in (torch.float32, torch.float64, torch.int32, torch.int64),
        lambda: f"{op}: counts must be float32, float64, int32 or int64",
    )


def _penalty(op: str, counts: Tensor, gamma: float, form: str, step: int) -> None:
    torch._check_value(0 <= gamma < math.inf, lambda: f"{op}: gamma must be finite and at least 0, got {gamma:g}")
    _checks.choice(op, "form", form, ("log", "linear", "exp", "rate"))
    torch._check_value(step >= 1, lambda: f"{op}: step must be at least 1, got {step}")
    _counts(op, counts)


def _penalised(op: str, scores: Tensor, counts: Tensor, gamma: float, form: str, step: int) -> Tensor:
    _same_shape(op, "scores", scores, "counts", counts)
    _penalty(op, counts, gamma, form, step)
    return _like(scores)


@fake
def usage_update_(counts: Tensor, selected: Tensor, decay: float) -> None:
    _update("usage_update_", counts, selected, decay)


@fake
def usage_penalty(scores: Tensor, counts: Tensor, gamma: float, form: str, step: int) -> Tensor:
    return _penalised("usage_penalty", scores, counts, gamma, form, step)


@fake
def usage_step_(
    counts: Tensor, selected: Tensor, scores: Tensor, gamma: float, decay: float, form: str, step: int
) -> Tensor:
    op = "usage_step_"
    _update(op, counts, selected, decay)
    return _penalised(op, scores, counts, gamma, form, step)


@fake
def usage_select_(
    counts: Tensor,
    first: Tensor,
    second: Tensor,
    mix: float,
    gamma: float,
    form: str,
    step: int,
    k: int,
    groups: Tensor | None,
    quotas: Tensor | None,
    key: Tensor | None,
    validate: bool | None,
) -> Tensor:
    op = "usage_select_"
    _own_counts(op, counts)
    _same_shape(op, "first", first, "counts", counts)
    _same_shape(op, "second", second, "counts", counts)
    torch._check_value(first.dtype in (torch.float32, torch.float64), lambda: f"{op}: first must be float32 or float64")
    _same_dtype(op, "first", first, "second", second)
    torch._check_value(0 <= mix <= 1, lambda: f"{op}: mix must be between 0 and 1, got {mix:g}")
    _penalty(op, counts, gamma, form, step)
    _checks.k(op, k, counts.shape[0])
    _groups(op, groups, quotas, "counts", counts)
    return counts.new_empty(k, dtype=torch.int64)


# --- out overloads ---

OUT = (gumbel_sigmoid, gumbel_softmax, select, sparse_decode, usage_penalty, usage_step_, weighted_sample)
"""Fakes of the ops that have one."""


def _register_out(function: Callable[..., Any]) -> None:
    def checks(*args: Any, out: Tensor) -> None:
        _checks.out_shape(function.__name__, out, function(*args).shape)

    torch.library.register_fake(f"pysel::{function.__name__}.out", checks)


for _function in OUT:
    _register_out(_function)
