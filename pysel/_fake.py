"""Shapes and argument checks of every op without its values: for ``torch.compile``, and for the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysel import _checks


def fake(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register the fake of the op that ``function`` is named after."""
    torch.library.register_fake(f"pysel::{function.__name__}", function)
    return function


def fake_out(*names: str) -> None:
    """Register the fakes of ops' out overloads: the checks are those of the op itself."""
    for name in names:

        def shape_only(*args: Any, out: Tensor, _function: Callable[..., Any] = globals()[name]) -> None:
            _function(*args)

        torch.library.register_fake(f"pysel::{name}.out", shape_only)


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
def split(key: Tensor, n: int) -> Tensor:
    return key.new_empty((n, 2), dtype=torch.int64)


@fake
def fold_in(key: Tensor, data: int) -> Tensor:
    return key.new_empty(2, dtype=torch.int64)


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


fake_out("gumbel_softmax", "gumbel_sigmoid")


# --- sample ---


@fake
def weighted_sample(
    weights: Tensor,
    k: int,
    replacement: bool,
    log_weights: bool,
    order: str,
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
    return weights.new_empty([*weights.shape[:-1], k], dtype=torch.int64)
