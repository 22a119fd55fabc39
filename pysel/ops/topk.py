"""The largest of each row, and the sparse products of a TopK sparse autoencoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from pysel import _autograd, _checks
from pysel.ops._autocast import autocast_dtype
from pysel.ops._out import write_out

__all__ = ["factor_counts", "factor_scores", "sparse_decode", "topk", "topk_encode"]

_INT64 = (torch.int64,)


class TopK(NamedTuple):
    """The largest of each row, and where they are."""

    values: Tensor
    indices: Tensor


_pytree._register_namedtuple(TopK, serialized_type_name="pysel.TopK")  # for torch.export.save


def _as_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, what torch's linear does to its arguments; float64 stays."""
    dtype = autocast_dtype(x.device)
    if dtype is None:
        return x, weight, bias

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 else t.to(dtype)

    return cast(x), cast(weight), None if bias is None else cast(bias)


def _check_like(op: str, like_name: str, like: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None:
            _checks.same_dtype(op, name, value, like_name, like)
            _checks.same_device(op, name, value, like_name, like)


def _check_codes(op: str, values: Tensor, indices: Tensor) -> None:
    _checks.tensor(op, "values", values)
    _checks.tensor(op, "indices", indices, _INT64)
    _checks.same_device(op, "indices", indices, "values", values)
    _check_vectors(op, "values", values, "k")
    if indices.shape != values.shape:
        wanted, got = list(values.shape), list(indices.shape)
        raise ValueError(f"{op}: indices must have the shape of values, {wanted}, got {got}")


def _check_vectors(op: str, name: str, value: Tensor, size: str) -> None:
    if value.dim() == 0:
        raise ValueError(f"{op}: {name} must have shape [..., {size}], got []")


def _rows(x: Tensor) -> Tensor:
    """[..., n] as [B, n]."""
    return x if x.dim() == 2 else x.unsqueeze(0).flatten(0, -2)


def topk(x: Tensor, k: int) -> TopK:
    """Find the k largest elements of each row, in descending order.

    As :func:`torch.topk` along the last dimension, with ties decided: the lowest index comes first. NaN is the largest
    of all, and -0 equals 0. For the smallest take those of ``-x``, among which NaN comes first too.

    Args:
        x: [..., n] of at least one dimension, float32, float64, bfloat16 or float16 (integers up to 2**53 are
            themselves as float64).
        k: between 0 and n.

    Returns:
        A named tuple: values [..., k] like ``x``, and their int64 indices [..., k]. The gradient reaches the selected
        elements. Differentiable to any order, the indices held fixed.

    Raises:
        ValueError: ``x`` has no dimension.
        IndexError: ``k`` is out of range.
        TypeError: a wrong type or dtype.

    Example:
        >>> import torch, pysel
        >>> pysel.topk(torch.tensor([1.0, 3.0, 2.0, 3.0]), 3)
        TopK(values=tensor([3., 3., 2.]), indices=tensor([1, 3, 2]))
    """
    op = "topk"
    _checks.tensor(op, "x", x)
    return TopK(*_autograd.topk_op(x, _checks.integer(op, "k", k)))


def topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, k: int = 32, *, activation: str = "relu"
) -> TopK:
    """Encode sparsely: the k largest of ``relu(x @ weight.T + bias)`` in each row, or those of largest magnitude.

    On the CPU the activations exist a tile at a time, never all [B, H] of them. Ties go to the lowest index; NaN is the
    largest of all. With ``relu`` a row with fewer than k positive activations is filled with zeros of the lowest
    indices; ``abs`` ranks ``x @ weight.T + bias`` by its absolute value and keeps the sign. Under autocast the
    arguments are cast as for :func:`torch.nn.functional.linear`.

    Args:
        x: [..., d], float32, float64, bfloat16 or float16.
        weight: [H, d], like ``x``.
        bias: [H], like ``x``, or None.
        k: between 0 and H.
        activation: relu, or abs.

    Returns:
        A named tuple: values [..., k] like ``x``, descending (with ``abs`` in magnitude), and their int64 indices
        [..., k]. Gradients pass through the selected activations, with ``relu`` the positive ones. Differentiable to
        any order.

    Raises:
        ValueError: shapes or devices that do not fit; another ``activation``.
        IndexError: ``k`` is out of range.
        TypeError: a wrong type or dtype, or mixed dtypes.

    Example:
        >>> import torch, pysel
        >>> pysel.topk_encode(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]), k=2)
        TopK(values=tensor([[3., 1.]]), indices=tensor([[2, 0]]))
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
        >>> pysel.topk_encode(x, weight, k=1, activation="abs")
        TopK(values=tensor([[-2.]]), indices=tensor([[1]]))

    Source: Gao et al., arXiv 2406.04093 (TopK sparse autoencoders); arXiv 2603.04981 keeps the largest magnitudes.
    """
    op = "topk_encode"
    _checks.tensor(op, "x", x)
    _checks.tensor(op, "weight", weight)
    if bias is not None:
        _checks.tensor(op, "bias", bias)
    k = _checks.integer(op, "k", k)
    _checks.choice(op, "activation", activation, ("relu", "abs"))
    _check_vectors(op, "x", x, "d")
    x, weight, bias = _as_linear(x, weight, bias)
    _check_like(op, "x", x, weight=weight, bias=bias)
    values, indices = _autograd.topk_encode_op(_rows(x), weight, bias, k, activation)
    if x.dim() != 2:
        values, indices = values.view(*x.shape[:-1], k), indices.view(*x.shape[:-1], k)
    return TopK(values, indices)


def sparse_decode(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Decode sparse codes: row b is the sum over j of ``values[b, j] * weight[indices[b, j]]``, plus the bias.

    Half types are summed in float32. Deterministic, the gradient included: it goes by factor in ascending row order,
    without atomics. Under autocast the arguments are cast as for :func:`torch.nn.functional.linear`.

    Args:
        values: [..., k], float32, float64, bfloat16 or float16.
        indices: [..., k], int64, in [0, H). An index that a row lists twice counts twice.
        weight: [H, d], like ``values``.
        bias: [d], like ``values``, or None.
        out: [..., d], like ``values``: write the sums here and return it. On the CPU untouched by an error. No gradient
            passes through it.

    Returns:
        [..., d], like ``values``. Differentiable in values, weight and bias, to any order.

    Raises:
        ValueError: shapes or devices that do not fit.
        IndexError: an index out of range.
        TypeError: a wrong type or dtype, or mixed dtypes.

    Example:
        >>> import torch, pysel
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        >>> pysel.sparse_decode(torch.tensor([[2.0, 3.0]]), torch.tensor([[0, 1]]), weight)
        tensor([[2., 3.]])

    Source: Gao et al., arXiv 2406.04093 (TopK sparse autoencoders).
    """
    op = "sparse_decode"
    _check_codes(op, values, indices)
    _checks.tensor(op, "weight", weight)
    if bias is not None:
        _checks.tensor(op, "bias", bias)
    values, weight, bias = _as_linear(values, weight, bias)
    _check_like(op, "values", values, weight=weight, bias=bias)
    args = (_rows(values), _rows(indices), weight, bias)
    shape = (*values.shape[:-1], *weight.shape[1:])
    if out is not None:
        return write_out(op, out, values.dtype, *args, shape=shape)
    rows = _autograd.sparse_decode_op(*args)
    return rows if values.dim() == 2 else rows.view(shape)


def factor_counts(
    values: Tensor,
    indices: Tensor,
    num_factors: int,
    *,
    groups: Tensor | None = None,
    num_groups: int | None = None,
) -> Tensor:
    """Count the rows in which each factor is active, of all rows or of each group of them.

    A factor is active in a row that lists it with a value above 0 (NaN is not), and counts once however often the row
    lists it. The codes are read once however many groups there are.

    Args:
        values: [..., k], float32, float64, bfloat16 or float16.
        indices: [..., k], int64, in [0, num_factors).
        num_factors: H, 0 or more.
        groups: [...], int64 or int32, in [0, num_groups): the group of each row, as its class. Goes with
            ``num_groups``.
        num_groups: G, 0 or more.

    Returns:
        int64 [H], or with groups [G, H].

    Raises:
        ValueError: shapes or devices that do not fit; ``num_factors`` or ``num_groups`` below 0; one of ``groups`` and
            ``num_groups`` without the other.
        IndexError: an index or a group out of range.
        TypeError: a wrong type or dtype.

    Example:
        >>> import torch, pysel
        >>> values, indices = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([[0, 1], [2, 0]])
        >>> pysel.factor_counts(values, indices, 3)
        tensor([2, 0, 1])
        >>> pysel.factor_counts(values, indices, 3, groups=torch.tensor([1, 0]), num_groups=2)
        tensor([[1, 0, 1],
                [1, 0, 0]])

    Source: arXiv 2603.04981 (factors of a data set); the counting rule is ours.
    """
    op = "factor_counts"
    _check_codes(op, values, indices)
    num_factors = _checks.integer(op, "num_factors", num_factors)
    if groups is not None:
        _checks.tensor(op, "groups", groups, (torch.int64, torch.int32))
        _checks.same_device(op, "groups", groups, "values", values)
        if groups.shape != values.shape[:-1]:
            raise ValueError(f"{op}: groups must have shape {list(values.shape[:-1])}, got {list(groups.shape)}")
        groups = groups.flatten().long()
    if num_groups is not None:
        num_groups = _checks.integer(op, "num_groups", num_groups)
    return _autograd.factor_counts_op(_rows(values), _rows(indices), num_factors, groups, num_groups)


def factor_scores(
    values: Tensor, indices: Tensor, tables: Tensor, *, reduce: str = "sum", weighted: bool = False
) -> Tensor:
    """Score rows by what tables say about their factors.

    A row's score is the sum or mean of a table's entries over the factors active in it (see :func:`factor_counts`),
    each once, however often the row lists it. Any number of tables takes one pass over the codes.

    Args:
        values: [..., k], float32, float64, bfloat16 or float16.
        indices: [..., k], int64, in [0, H).
        tables: [H] or [T, H], float32 or float64: a number for each factor. Infinite and NaN ones reach the rows in
            which the factor is active, and no others.
        reduce: sum, or mean, which is 0 for a row without active factors.
        weighted: multiply each entry by the row's value of the factor, the first above 0 where it lists several; the
            mean is then divided by the sum of these values.

    Returns:
        [...], or [..., T], like ``tables``; summed in float64, in the order of the codes, and rounded once. Not
        differentiable.

    Raises:
        ValueError: another ``reduce``; shapes or devices that do not fit; an argument that requires grad.
        IndexError: an index out of range.
        TypeError: a wrong type or dtype.

    Example:
        >>> import torch, pysel
        >>> values, indices = torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([[0, 1], [0, 1]])
        >>> rate = torch.tensor([1.0, 0.5])
        >>> pysel.factor_scores(values, indices, torch.stack([rate, 1 / rate]))
        tensor([[1.5000, 3.0000],
                [0.0000, 0.0000]])
        >>> pysel.factor_scores(values, indices, rate, reduce="mean", weighted=True)
        tensor([0.8333, 0.0000])

    Source: arXiv 2603.04981, whose representativeness and diversity are such sums.
    """
    op = "factor_scores"
    _check_codes(op, values, indices)
    _checks.tensor(op, "tables", tables, (torch.float32, torch.float64))
    _checks.same_device(op, "tables", tables, "values", values)
    _checks.choice(op, "reduce", reduce, ("sum", "mean"))
    _checks.no_grad(op, "values", values)
    _checks.no_grad(op, "tables", tables)
    weighted = _checks.flag(op, "weighted", weighted)
    scores = _autograd.factor_scores_op(_rows(values), _rows(indices), tables, reduce, weighted)
    return scores.view((*values.shape[:-1], *tables.shape[:-1]))
