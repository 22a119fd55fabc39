"""pysel/_inputs.py and the numbers of pysel/_checks.py: what users hold, as tensors, ints and floats."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pysel import _checks, _inputs


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).short()])
def test_integer(value: Any) -> None:
    for got in (_checks.integer("op", "n", value), _checks.in_range("op", "n", value, 3, 3)):
        assert got == 3
        assert type(got) is int, "numpy's would reach checkpoints, which torch.load then refuses"


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.True_,
        torch.tensor(True),
        3.0,
        np.float64(3),
        torch.tensor(3.0),
        np.array(3.0),
        torch.tensor([3]),
        "3",
        None,
    ],
)
def test_no_integer(value: Any) -> None:
    with pytest.raises(TypeError, match="op: n must be an int, got "):
        _checks.integer("op", "n", value)


HALF = [
    0.5,
    np.float32(0.5),
    np.float16(0.5),
    Decimal("0.5"),
    Fraction(1, 2),
    np.array(0.5),
    torch.tensor(0.5).bfloat16(),
]


@pytest.mark.parametrize("value", HALF)
def test_number(value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for got in (_checks.number("op", "x", value), _checks.within("op", "x", value, "[0, 1]")):
            assert got == 0.5
            assert type(got) is float


def test_a_number_that_wants_a_gradient_is_refused() -> None:
    wanting = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="op: x must not require grad"):
        _checks.number("op", "x", wanting)
    with torch.no_grad():
        assert _checks.number("op", "x", wanting) == 0.5


@pytest.mark.parametrize(
    "value", [True, np.True_, torch.tensor(True), 1j, np.complex64(1), torch.tensor(1j), "1", [1.0], None]
)
def test_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match="op: x must be a number, got "):
        _checks.number("op", "x", value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("(0, inf)", [1e-300, 1e300], [0.0, -1.0, float("inf"), float("nan")]),
        ("[0, inf)", [0.0, 1e300], [-1e-300, float("inf"), float("nan")]),
        ("[0, 1]", [0.0, 1.0], [-0.1, 1.1, float("nan")]),
        ("(0, 1]", [0.1, 1.0], [0.0, 1.1, float("nan")]),
        ("[0, 1)", [0.0, 0.9], [-0.1, 1.0, float("nan")]),
    ],
)
def test_within(interval: str, inside: list[float], outside: list[float]) -> None:
    assert [_checks.within("op", "x", x, interval) for x in inside] == inside
    for x in outside:
        with pytest.raises(ValueError, match=rf"op: x must be .*, got {x!r}"):
            _checks.within("op", "x", x, interval)


READ_ONLY = np.array([3.0, 1.0, 2.0])
READ_ONLY.flags.writeable = False
HOLDERS = [
    torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True),
    np.array([3.0, 1.0, 2.0]),
    np.array([3.0, 1.0, 2.0], ">f8"),
    np.array([3.0, 1.0, 2.0], np.longdouble),
    np.array([2.0, 1.0, 3.0])[::-1],
    READ_ONLY,
    [3.0, 1.0, 2.0],
    (3, 1.0, 2),
    [np.float32(3), np.float64(1), 2],
    [torch.tensor(3.0), torch.tensor(1.0), torch.tensor(2.0)],
    pd.Series([3.0, 1.0, 2.0], index=[7, 8, 9]),
    [3, 1, 2],
    np.array([3, 1, 2], np.uint16),
    torch.tensor([3, 1, 2]),
]


@pytest.mark.parametrize("value", HOLDERS, ids=lambda v: type(v).__name__)
def test_vector(value: Any) -> None:
    with warnings.catch_warnings(), torch.device("meta"):  # the caller's default device is not ours
        warnings.simplefilter("error")
        x = _inputs.vector("op", "scores", value, 3)
    assert not x.requires_grad
    assert x.device.type == "cpu"
    assert x.tolist() == [3.0, 1.0, 2.0]
    assert x.dtype == (
        torch.float32 if isinstance(value, list) and isinstance(value[0], torch.Tensor) else torch.float64
    )


def test_a_list_keeps_double_precision() -> None:
    assert _inputs.vector("op", "weights", [1e-50, 0.1]).tolist() == [1e-50, 0.1]


def test_half_types_stay() -> None:
    assert _inputs.vector("op", "scores", torch.ones(3).half()).dtype == torch.float16
    assert _inputs.matrix("op", "features", np.ones((3, 2), np.float16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: _inputs.vector("op", "s", "abc"),
            TypeError,
            "op: s must be a tensor, an array or a list of numbers, got str",
        ),
        (lambda: _inputs.vector("op", "s", 3), TypeError, "got int"),
        (lambda: _inputs.vector("op", "s", {1.0}), TypeError, "got set"),
        (lambda: _inputs.vector("op", "s", ["a"]), TypeError, "got list of <U1"),
        (lambda: _inputs.vector("op", "s", [None]), TypeError, "got list of object"),
        (lambda: _inputs.vector("op", "s", [[1], [1, 2]]), TypeError, "got a list that makes no array"),
        (lambda: _inputs.vector("op", "s", torch.ones(3).to_sparse()), TypeError, "op: s must be a strided tensor"),
        (
            lambda: _inputs.vector("op", "s", torch.ones(3, 1)),
            ValueError,
            r"op: s must be \[N\] with N > 0, got \[3, 1\]",
        ),
        (lambda: _inputs.vector("op", "s", []), ValueError, r"op: s must be \[N\] with N > 0, got \[0\]"),
        (lambda: _inputs.vector("op", "s", [1.0], 2), ValueError, r"op: s must be \[2\], got \[1\]"),
        (lambda: _inputs.vector("op", "s", [1.0, -torch.inf]), ValueError, "op: s must be finite, got -inf in row 1"),
        (lambda: _inputs.matrix("op", "f", [[1.0], [torch.nan]]), ValueError, "op: f must be finite, got nan in row 1"),
        (lambda: _inputs.matrix("op", "f", [1.0]), ValueError, r"op: f must be \[N, ...\] .*got shape \[1\]"),
        (lambda: _inputs.integers("op", "y", [1.0]), TypeError, "op: y must be integers, got torch.float64"),
        (lambda: _inputs.integers("op", "y", [1, 2], 3), ValueError, r"op: y must have shape \[3\], got \[2\]"),
        (
            lambda: _inputs.integers("op", "y", np.array([2**63], np.uint64)),
            ValueError,
            f"op: y must fit into int64, got {2**63}",
        ),
        (lambda: _inputs.indices("op", "i", [0, 5], 5), ValueError, "op: i must be between 0 and 4, got 5"),
        (lambda: _inputs.indices("op", "i", [0, -1], 5), ValueError, "op: i must be between 0 and 4, got -1"),
        (lambda: _inputs.indices("op", "i", [3, 1, 3], 5), ValueError, "op: i must be distinct, got 3 more than once"),
        (
            lambda: _inputs.indices("op", "i", torch.ones(5) > 0, 5),
            TypeError,
            "op: i must be indices, got a boolean mask",
        ),
        (lambda: _inputs.indices("op", "i", [0.0], 5), TypeError, "op: i must be integers, got torch.float64"),
        (lambda: _inputs.indices("op", "i", [[0]], 5), ValueError, r"op: i must have shape \[N\], got \[1, 1\]"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_sum_that_overflows_is_no_fault() -> None:
    assert _inputs.vector("op", "s", torch.full((4,), 3e38)).numel() == 4
    assert _inputs.vector("op", "s", [torch.inf, 1.0], may_be_infinite=True).numel() == 2


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_classes(dtype: str) -> None:
    given = np.array([1, 0, 0, 1, 1], dtype)
    for value in (given, torch.from_numpy(given), pd.Series(given), list(given)):
        ids, labels, sizes = _inputs.classes("op", "labels", value, 5)
        assert ids.tolist() == [1, 0, 0, 1, 1]
        assert labels.tolist() == [0, 1]
        assert sizes.tolist() == [2, 3]


def test_thinly_spread_classes() -> None:
    ids, labels, sizes = _inputs.classes("op", "labels", [10**12, -5, 10**12], 3)
    assert (ids.tolist(), labels.tolist(), sizes.tolist()) == ([1, 0, 1], [-5, 10**12], [1, 2])


def test_indices() -> None:
    assert _inputs.indices("op", "i", np.array([4, 0], np.int32), 5).tolist() == [4, 0]
    assert _inputs.indices("op", "i", [], 5).dtype == torch.int64
