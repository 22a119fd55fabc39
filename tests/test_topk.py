"""Top-k of rows and of one long vector, the sparse autoencoder's encode and decode, and the factor scores.

`python -m tests.test_topk` prints hashes of what the ops give, under the variant that PYSEL_CPU_VARIANT names.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pysel
from pysel import reference
from tests.tensors import DTYPES, assert_same_bits, assert_within_ulps, bits, laid_out, name

ROOT = Path(__file__).parent.parent
INFO = pysel.build_info()
OPS = torch.ops.pysel
PATTERNS = ["random", "ties", "zeros", "nan", "infinite", "ascending", "descending", "constant"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scores(shape, pattern="random", dtype=torch.float32):
    """Numbers of a kind that some shortcut might get wrong."""
    x = torch.randn(shape, generator=generator(sum(shape)), dtype=torch.float64)
    chance = torch.rand(shape, generator=generator(1))
    if pattern == "ties":
        x = (2 * x).round()
    elif pattern == "zeros":
        x = torch.where(chance < 0.8, torch.where(chance < 0.4, 0.0, -0.0), x)
    elif pattern == "nan":
        x = torch.where(chance < 0.2, math.nan, torch.where(chance < 0.4, -math.nan, x))
    elif pattern == "infinite":
        x = torch.where(chance < 0.2, math.inf, torch.where(chance < 0.7, -math.inf, x))
    elif pattern in ("ascending", "descending"):
        x = x.sort(dim=-1, descending=pattern == "descending").values
    elif pattern == "constant":
        x = torch.full(shape, -1.5, dtype=torch.float64)
    return x.to(dtype)


def whole(shape, low, high, dtype=torch.float32, seed=0):
    """Whole numbers: sums of their products are exact in any order."""
    return torch.randint(low, high + 1, shape, generator=generator(seed)).to(dtype)


def codes(rows, k, factors, dtype=torch.float32, seed=0):
    """Values (some 0, some negative) and indices (some twice in a row)."""
    values = whole((rows, k), -1, 3, dtype, seed)
    return values, torch.randint(factors, (rows, k), generator=generator(seed + 1))


def assert_same(got, wanted):
    for g, w in zip(got, wanted, strict=True):
        assert_same_bits(g, w)
        assert g.is_contiguous()


# --- topk ---

SHAPES = [((1,), 1), ((5,), 0), ((5,), 5), ((0,), 0), ((0, 7), 3), ((3, 0), 0), ((2, 3, 61), 7), ((4, 64), 64),
          ((3, 100), 10), ((7, 1000), 32), ((2, 5000), 17), ((3, 4099), 1), ((2, 3000), 2999)]  # fmt: skip


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_topk_equals_the_reference_in_any_memory(shape, k, dtype, layout, device):
    x = scores(shape, dtype=dtype).to(device)
    got = pysel.topk(laid_out(x, layout), k)
    assert_same(got, reference.topk(x, k))
    assert_same_bits(got[0], x.topk(k).values)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("n", "k"), [(9, 4), (500, 3), (2000, 31), (2000, 700), (20_000, 60), (200_001, 40)])
def test_topk_decides_ties_nan_and_zeros(pattern, n, k, dtype):
    x = scores((2, n), pattern, dtype)
    values, indices = pysel.topk(x, k)
    wanted = reference.topk(x, k)[1]
    assert torch.equal(indices, wanted)
    assert_same_bits(values, x.gather(-1, wanted))  # the element itself: its sign of zero, its NaN
    assert_within_ulps(values, x.topk(k).values, 0)


@pytest.mark.parametrize("k", [1, 1000, 40_000])
@pytest.mark.parametrize("pattern", ["random", "ties", "descending", "nan"])
def test_topk_of_one_long_row_is_shared_among_threads(k, pattern, threads):
    x = scores((600_001,), pattern)
    results = []
    for n in (1, 2):
        threads(n)
        results.append(pysel.topk(x, k))
    assert_same(results[0], results[1])
    assert torch.equal(results[0][1], reference.topk(x, k)[1])


def test_topk_finds_what_was_hidden_anywhere():
    n, k = 70_000, 5
    for at in range(0, n - k, 997):
        x = torch.zeros(n)
        x[at : at + k] = torch.arange(1.0, k + 1)
        assert pysel.topk(x, k)[1].tolist() == [at + k - 1 - i for i in range(k)]


# --- topk_encode ---


def assert_same_encoding(got, wanted, activation):
    """Equal bits; but whether a product is 0 or -0 is up to the matrix product, and abs keeps it."""
    assert_same(got if activation == "relu" else (got[0] + 0, got[1]), (wanted[0] + 0, wanted[1]))


every_activation = pytest.mark.parametrize("activation", ["relu", "abs"])


@every_activation
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "d", "hidden", "k"),
    [(1, 1, 1, 1), (0, 3, 5, 2), (3, 0, 5, 2), (3, 4, 6, 0), (4, 8, 50, 50), (33, 7, 700, 20), (1030, 5, 1500, 9)],
)
def test_encode_equals_the_reference(rows, d, hidden, k, with_bias, activation, dtype, device):
    x, weight = whole((rows, d), -2, 2, dtype).to(device), whole((hidden, d), -2, 2, dtype, 1).to(device)
    bias = whole((hidden,), -4, 1, dtype, 2).to(device) if with_bias else None
    got = pysel.topk_encode(x, weight, bias, k, activation=activation)
    assert_same_encoding(got, reference.topk_encode(x, weight, bias, k, activation), activation)


@every_activation
@pytest.mark.parametrize("layout", ["strided", "transposed", "unaligned", "negated"])
def test_encode_in_any_memory(layout, activation, dtype):
    x, weight, bias = whole((6, 8), -2, 2, dtype), whole((90, 8), -2, 2, dtype, 1), whole((90,), -4, 1, dtype, 2)
    got = pysel.topk_encode(*(laid_out(t, layout) for t in (x, weight, bias)), 9, activation=activation)
    assert_same_encoding(got, reference.topk_encode(x, weight, bias, 9, activation), activation)


@every_activation
def test_encode_across_tiles_of_hidden_units(activation):
    # Ties and rising maxima over many tiles; the best of all come last.
    hidden = 200_000
    x = torch.ones(3, 1)
    weight = (torch.arange(hidden) // 1000).float().unsqueeze(1)
    if activation == "abs":
        weight[::3] *= -1
    got = pysel.topk_encode(x, weight, None, 1500, activation=activation)
    assert_same(got, reference.topk_encode(x, weight, None, 1500, activation))


@every_activation
@pytest.mark.parametrize("pattern", ["ascending", "descending", "few", "equal"])
def test_encode_does_not_depend_on_the_order_of_tiles(pattern, activation, threads):
    # Whichever tile a thread is done with first, ties go to the lowest index.
    rows, hidden, k = 700, 9000, 300
    unit = torch.arange(hidden)
    weight = {
        "ascending": unit // 700,
        "descending": (hidden - unit) // 700,
        "few": unit * 7919 % 5,
        "equal": unit // unit.clamp(min=1),
    }
    weight = weight[pattern].float().unsqueeze(1)
    x = whole((rows, 1), 1, 3, torch.float32)
    wanted = reference.topk_encode(x, weight, None, k, activation)
    for n in (1, 2, 7, 2, 7):
        threads(n)
        assert_same(pysel.topk_encode(x, weight, None, k, activation=activation), wanted)


def test_encode_of_parameters_on_many_threads(threads):
    # Threads of torch's ask for gradients by themselves, and are not in inference mode when the caller is.
    x, weight, bias = (t.requires_grad_() for t in (torch.randn(600, 8), torch.randn(3000, 8), torch.randn(3000)))
    threads(1)
    wanted = pysel.topk_encode(x, weight, bias, 9)
    (grad,) = torch.autograd.grad(wanted.values.sum(), weight)
    threads(2)
    got = pysel.topk_encode(x, weight, bias, 9)
    assert_same(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got.values.sum(), weight)[0], grad)
    with torch.inference_mode():
        assert_same(pysel.topk_encode(x * 1, weight * 1, bias * 1, 9), wanted)


def test_encode_fills_up_with_zeros_of_the_lowest_indices():
    weight = torch.tensor([[-1.0], [0.0], [2.0], [-3.0], [1.0], [-0.0]])
    values, indices = pysel.topk_encode(torch.tensor([[1.0], [-1.0], [0.0]]), weight, None, 5)
    assert values.tolist() == [[2, 1, 0, 0, 0], [3, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert indices.tolist() == [[2, 4, 0, 1, 3], [3, 0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert not torch.signbit(values).any()


def test_encode_counts_nan_as_largest():
    weight = torch.tensor([[1.0], [math.nan], [math.inf], [-1.0]])
    values, indices = pysel.topk_encode(torch.ones(1, 1), weight, None, 3)
    assert indices.tolist() == [[1, 2, 0]]
    assert math.isnan(values[0, 0])
    assert values[0, 1:].tolist() == [math.inf, 1]


def test_encode_by_magnitude():
    weight = torch.tensor([[-1.0], [2.0], [0.0], [-3.0], [3.0], [-2.0]])
    values, indices = pysel.topk_encode(torch.tensor([[1.0], [-2.0], [0.0]]), weight, None, 5, activation="abs")
    assert values.tolist() == [[-3, 3, 2, -2, -1], [6, -6, -4, 4, 2], [0, 0, 0, 0, 0]]
    assert indices.tolist() == [[3, 4, 1, 5, 0], [3, 4, 1, 5, 0], [0, 1, 2, 3, 4]]
    weight = torch.tensor([[1.0], [math.nan], [-math.inf], [math.inf], [-math.nan], [-2.0]])
    values, indices = pysel.topk_encode(torch.ones(1, 1), weight, None, 5, activation="abs")
    assert indices.tolist() == [[1, 4, 2, 3, 5]]
    assert torch.isnan(values[0, :2]).all()
    assert values[0, 2:].tolist() == [-math.inf, math.inf, -2]


def test_magnitudes_of_any_numbers(dtype):
    """An identity makes the encoder show what it is given, bit for bit."""
    for pattern in [p for p in PATTERNS if p not in ("nan", "infinite")]:
        x = scores((3, 200), pattern, dtype)
        values, indices = pysel.topk_encode(x, torch.eye(200, dtype=dtype), None, 90, activation="abs")
        wanted = reference.topk(x.abs(), 90)[1]
        assert torch.equal(indices, wanted)
        assert_same_bits(values + 0, x.gather(1, wanted) + 0)


_MEMORY = """
import resource, torch, pysel
rows, d, hidden = {rows}, 4, {hidden}
x, weight = torch.randn(rows, d), torch.randn(hidden, d)
pysel.topk_encode(x[:64], weight[:2000], None, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values, indices = pysel.topk_encode(x, weight, None, 8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(("rows", "hidden"), [(128, 1 << 20), (1 << 18, 512)])
def test_encode_never_holds_all_activations(rows, hidden):
    code = _MEMORY.format(rows=rows, hidden=hidden)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes = int(done.stdout)
    dense, result = rows * hidden * 4 >> 20, rows * 8 * 12 >> 20
    assert dense == 512
    assert megabytes < result + 48, f"{megabytes} MiB"


# --- sparse products ---


def products(rows=9, k=6, factors=40, d=21, dtype=torch.float32, device="cpu"):
    """Raw calls whose results are exact whatever the order of the sums."""
    values, indices = (t.to(device) for t in codes(rows, k, factors, dtype))
    weight, dense, bias = (
        whole(shape, -3, 3, dtype, seed).to(device) for seed, shape in enumerate([(factors, d), (rows, d), (d,)])
    )
    return {
        "sparse_decode": (values, indices, weight, bias),
        "sddmm": (indices, weight, dense),
        "spmm_t": (values, indices, dense, factors),
        "sparse_decode_backward": (dense, values, indices, weight),
    }


PRODUCTS = ["sparse_decode", "sddmm", "spmm_t", "sparse_decode_backward"]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def assert_same_products(got, wanted):
    for g, w in zip(as_tuple(got), as_tuple(wanted), strict=True):
        assert_within_ulps(g, w, 0)


@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize(
    "size",
    [{}, {"rows": 0}, {"k": 0}, {"d": 0}, {"d": 1}, {"rows": 1, "k": 1, "factors": 1, "d": 1},
     {"rows": 300, "k": 11, "factors": 70, "d": 65}, {"rows": 2000, "k": 3, "factors": 3, "d": 16}],
    ids=str,
)  # fmt: skip
def test_products_equal_the_reference(op, size, dtype, device):
    arguments = products(**size, dtype=dtype, device=device)[op]
    if dtype in (torch.bfloat16, torch.float16) and size.get("rows") == 2000:
        pytest.skip("such sums are not exact in half precision")
    assert_same_products(getattr(OPS, op)(*arguments), reference.OPS[op](*arguments))


@pytest.mark.parametrize("op", PRODUCTS)
def test_products_in_any_memory(op, layout, dtype):
    arguments = products(dtype=dtype)[op]
    given = [
        laid_out(a, layout) if isinstance(a, torch.Tensor) and (a.is_floating_point() or layout != "negated") else a
        for a in arguments
    ]
    assert_same_products(getattr(OPS, op)(*given), reference.OPS[op](*arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_products_round_once(dtype):
    # Sums in float32 (float64 for float64), one rounding at the end: bounded by the exact result in float64.
    rows, k, factors, d = 50, 24, 30, 130
    indices = torch.randint(factors, (rows, k), generator=generator())
    values, weight, dense = (
        torch.randn(shape, generator=generator(i), dtype=torch.float64).to(dtype)
        for i, shape in enumerate([(rows, k), (factors, d), (rows, d)])
    )
    dense64, weight64, values64 = dense.double(), weight.double(), values.double()
    onto = torch.zeros(rows, factors, dtype=torch.float64).scatter_add_(1, indices, values64)
    onto_size, terms = onto.abs(), weight64[indices] * dense64.unsqueeze(1)
    exact = [onto @ weight64, terms.sum(-1), onto.T @ dense64]
    exact += exact[1:]
    sizes = [onto_size @ weight64.abs(), terms.abs().sum(-1), onto_size.T @ dense64.abs()]
    sizes += sizes[1:]
    got = [
        OPS.sparse_decode(values, indices, weight, None),
        OPS.sddmm(indices, weight, dense),
        OPS.spmm_t(values, indices, dense, factors),
        *OPS.sparse_decode_backward(dense, values, indices, weight),
    ]
    inner = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for g, e, size in zip(got, exact, sizes, strict=True):
        bound = 0.51 * torch.finfo(dtype).eps * e.abs() + 130 * inner * size
        assert ((g.double() - e).abs() <= bound + 1e-7 * (dtype == torch.float16)).all()


def test_decode_agrees_with_embedding_bag():
    values, weight = torch.rand(30, 5, generator=generator()), torch.randn(60, 17, generator=generator(1))
    indices = torch.randint(60, (30, 5), generator=generator(2))
    wanted = F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")
    torch.testing.assert_close(pysel.sparse_decode(values, indices, weight), wanted)


# --- factors ---


FACTOR_SIZES = [(0, 3, 5), (4, 0, 5), (1, 1, 1), (40, 6, 9), (3000, 5, 40), (20, 3, 50_000)]


def grouped(rows, groups, pattern="random", dtype=torch.int64):
    """The group of each row."""
    if pattern == "one":  # the others are empty
        return torch.full((rows,), groups // 2, dtype=dtype)
    if pattern == "skewed":  # most rows in one, that several threads share
        return torch.where(torch.arange(rows) % 8 == 0, torch.arange(rows) % groups, groups - 1).to(dtype)
    chosen = torch.randint(groups, (rows,), generator=generator(rows + groups)).to(dtype)
    return chosen.sort().values if pattern == "ascending" else chosen


def tables_of(count, factors, dtype=torch.float32):
    """Numbers of both signs for each factor: [H], or [T, H]."""
    shape = (factors,) if count is None else (count, factors)
    return torch.randn(shape, generator=generator(factors), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", FACTOR_SIZES)
def test_factor_counts_equal_the_reference(size, dtype, device):
    values, indices = (t.to(device) for t in codes(*size, dtype))
    rows, _, factors = size
    assert_same_bits(
        pysel.factor_counts(values, indices, factors), reference.factor_counts(values, indices, factors, None, None)
    )
    for pattern in ("random", "ascending", "skewed", "one"):
        for count in (1, 7, 300):
            groups = grouped(rows, count, pattern).to(device)
            got = pysel.factor_counts(values, indices, factors, groups=groups, num_groups=count)
            assert_same_bits(got, reference.factor_counts(values, indices, factors, groups, count))


def test_factor_counts_of_groups_are_those_of_their_rows(threads):
    values, indices = codes(20_000, 5, 600)
    for pattern in ("random", "skewed"):
        groups = grouped(20_000, 40, pattern)
        wanted = torch.stack([pysel.factor_counts(values[groups == g], indices[groups == g], 600) for g in range(40)])
        for n in (1, 2, 3):
            threads(n)
            got = pysel.factor_counts(values, indices, 600, groups=groups.int(), num_groups=40)
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("size", FACTOR_SIZES)
def test_factor_scores_equal_the_reference(size, reduce, weighted, dtype, device):
    values, indices = (t.to(device) for t in codes(*size, dtype))
    for count in (None, 0, 1, 2, 5):
        for tables_dtype in (torch.float32, torch.float64):
            tables = tables_of(count, size[2], tables_dtype).to(device)
            got = pysel.factor_scores(values, indices, tables, reduce=reduce, weighted=weighted)
            assert got.is_contiguous()
            assert_same_bits(got, reference.factor_scores(values, indices, tables, reduce, weighted))


@pytest.mark.parametrize("weighted", [False, True])
def test_factor_scores_are_products_with_a_dense_matrix(weighted):
    values, indices = torch.rand(50, 6, generator=generator(), dtype=torch.float64) - 0.3, torch.randperm(300)
    indices = indices.view(50, 6)
    weights = values.relu() if weighted else (values > 0).double()
    dense = torch.zeros(50, 300, dtype=torch.float64).scatter(1, indices, weights)
    tables = tables_of(3, 300, torch.float64)
    sums = pysel.factor_scores(values, indices, tables, weighted=weighted)
    torch.testing.assert_close(sums, dense @ tables.T, rtol=1e-13, atol=1e-13)
    means = pysel.factor_scores(values, indices, tables, reduce="mean", weighted=weighted)
    wanted = dense @ tables.T / dense.sum(1, keepdim=True)
    torch.testing.assert_close(means, wanted.nan_to_num(0.0), rtol=1e-13, atol=1e-13)


def test_factors_in_any_memory(layout):
    values, indices = codes(12, 6, 9)
    tables, groups = tables_of(3, 9), grouped(12, 4)
    given = laid_out(values, layout), indices if layout == "negated" else laid_out(indices, layout)
    assert_same_bits(pysel.factor_counts(*given, 9), reference.factor_counts(values, indices, 9, None, None))
    given_groups = groups if layout == "negated" else laid_out(groups, layout)
    got = pysel.factor_counts(*given, 9, groups=given_groups, num_groups=4)
    assert_same_bits(got, reference.factor_counts(values, indices, 9, groups, 4))
    for t in (tables, tables[0]):
        got = pysel.factor_scores(*given, laid_out(t, layout), weighted=True)
        assert_same_bits(got, reference.factor_scores(values, indices, t, "sum", True))


def test_factor_rules():
    # Twice in a row counts once, inactive values do not count, NaN is not above 0, a row of nothing scores 0.
    values = torch.tensor([[1.0, 2.0, -1.0], [0.0, math.nan, -0.0], [-1.0, 3.0, 1.0], [4.0, 1.0, 2.0]])
    indices = torch.tensor([[0, 0, 1], [0, 1, 2], [2, 2, 2], [0, 1, 2]])
    assert pysel.factor_counts(values, indices, 4).tolist() == [2, 1, 2, 0]
    counts = pysel.factor_counts(values, indices, 4, groups=torch.tensor([2, 2, 0, 2]), num_groups=3)
    assert counts.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [2, 1, 1, 0]]
    table = torch.tensor([0.5, 0.25, -1.0, math.nan], dtype=torch.float64)
    assert pysel.factor_scores(values, indices, table).tolist() == [0.5, 0, -1, -0.25]
    assert pysel.factor_scores(values, indices, table, reduce="mean").tolist() == [0.5, 0, -1, -0.25 / 3]
    # of a factor that is listed twice, the first value above 0 is its weight
    assert pysel.factor_scores(values, indices, table, weighted=True).tolist() == [0.5, 0, -3, 0.25]
    means = pysel.factor_scores(values, indices, table, reduce="mean", weighted=True)
    assert means.tolist() == [0.5, 0, -1, 0.25 / 7]


def test_entries_that_are_not_finite_reach_the_rows_of_their_factor_only():
    values, indices = torch.tensor([[1.0, -1.0], [1.0, 1.0], [1.0, 0.0]]), torch.tensor([[0, 1], [0, 1], [2, 1]])
    table = torch.tensor([1.0, math.inf, math.nan])
    for weighted in (False, True):
        got = pysel.factor_scores(values, indices, table, weighted=weighted)
        assert got[:2].tolist() == [1, math.inf]
        assert math.isnan(got[2])


def test_sums_of_scores_are_exact_where_float32_would_drop_them():
    values, indices = torch.ones(1, 4), torch.arange(4).view(1, 4)
    tables = torch.tensor([[2.0**30, 1.0, 1.0, -(2.0**30)], [1e38, 3e38, -3e38, -1e38]])
    assert pysel.factor_scores(values, indices, tables).tolist() == [[2, 0]]


_GROUPS_MEMORY = """
import resource, torch, pysel
rows, groups, factors = 40_000, 1000, 16_384
values, indices = torch.rand(rows, 8), torch.randint(factors, (rows, 8))
group = torch.randint(groups, (rows,))
torch.set_num_threads(8)
pysel.factor_counts(values[:9], indices[:9], factors, groups=group[:9], num_groups=1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pysel.factor_counts(values, indices, factors, groups=group, num_groups=groups)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_counting_groups_needs_no_counts_of_all_groups_in_each_thread():
    command = [sys.executable, "-c", _GROUPS_MEMORY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24, f"{done.stdout} MiB beyond the first call's result"  # a [G, H] has 125


# --- select ---

SELECT_DTYPES = [*DTYPES, torch.int64, torch.int32]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "nan"])
@pytest.mark.parametrize("dtype", SELECT_DTYPES, ids=name)
def test_select_equals_the_reference(pattern, dtype, largest, device):
    for n in (0, 1, 63, 1000, 70_001, 300_000):
        x = scores((n,), pattern).mul(1000).clamp(-1e9, 1e9).to(dtype).to(device)
        for k in sorted({0, min(n, 1), n // 3, max(n - 1, 0), n}):
            assert_same_bits(pysel.select(x, k, largest), reference.select(x, k, largest, None, None, None, None))


def test_select_in_any_memory(layout, dtype):
    x = scores((5000,), "ties", dtype)
    assert_same_bits(pysel.select(laid_out(x, layout), 777), reference.select(x, 777, True, None, None, None, None))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=name)
def test_select_tells_the_widest_keys_apart(dtype):
    if dtype == torch.int64:
        x = torch.tensor([2**63 - 1, -(2**63), 2**63 - 2, 0, -1])
        assert pysel.select(x, 2).tolist() == [0, 2]
        assert pysel.select(x, 2, largest=False).tolist() == [1, 4]
    else:
        x = torch.tensor([1.0, 1 + 2**-52, 1 - 2**-53, 5e-324, -5e-324, math.inf], dtype=dtype)
        assert pysel.select(x, 2).tolist() == [1, 5]
        assert pysel.select(x, 2, largest=False).tolist() == [3, 4]


def sampled(n):
    """Where select looks to guess the threshold: see guess() in radix_select.cpp."""
    stratum, mask = n // int(n ** (2 / 3)), 2**64 - 1
    for s in range(int(n ** (2 / 3))):
        x = (s + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        yield s * stratum + (x ^ x >> 31) % stratum


@pytest.mark.parametrize("misled", ["too high", "too low"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_select_survives_a_wrong_guess(misled, dtype):
    n = 400_000
    x = torch.rand(n, generator=generator(), dtype=torch.float64)
    x[list(sampled(n))] += 10 if misled == "too high" else -10
    x = x.to(dtype)
    for k in (n // 100, n // 3, n // 2, n - n // 10):
        assert_same_bits(pysel.select(x, k), reference.select(x, k, True, None, None, None, None))


def test_select_survives_a_guess_that_holds_too_much():
    # Levels that repeat, spread by next to nothing, in blocks of all sizes.
    n = 400_000
    for block in (1, 97, 4096):
        level = (torch.arange(n) // block * 7919 % 11).double()
        for spread in (0.0, 1e-300, 1e-12):
            x = level + spread * torch.randn(n, generator=generator(), dtype=torch.float64)
            x[:: n // 3] = math.inf
            for k in (1, 5, n // 11, n // 11 + 3, n // 2):
                assert_same_bits(pysel.select(x, k), reference.select(x, k, True, None, None, None, None))


def test_select_refuses_nan_wherever_it_is():
    for n in (1, 100, 70_000, 300_000):
        for at in {0, n // 2, n - 1}:
            x = torch.zeros(n)
            x[at] = math.nan
            for k in (0, 1, n):
                with pytest.raises(ValueError, match="select: scores must not be NaN"):
                    pysel.select(x, k)
            assert pysel.select(x, 1, validate=False).tolist() == [at]
            assert at not in pysel.select(x, n - 1, largest=False, validate=False).tolist()


# --- threads and instruction sets ---


def calls(dtype):
    """Calls large enough for several threads: {name: function}."""
    sizes = {"rows": 500, "k": 13, "factors": 300, "d": 45}
    floats = {
        op: [
            torch.randn(a.shape, generator=generator(3), dtype=torch.float64).to(dtype)
            if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for a in arguments
        ]
        for op, arguments in products(**sizes, dtype=dtype).items()
    }
    values, indices = floats["spmm_t"][:2]
    tables, groups = tables_of(3, 300), grouped(500, 7)
    x = scores((70, 5003), dtype=dtype)
    row = scores((300_001,), "ties", dtype)
    return {
        "topk": lambda: pysel.topk(x, 40),
        "topk_row": lambda: pysel.topk(row, 500),
        **{op: lambda op=op, a=a: as_tuple(getattr(OPS, op)(*a)) for op, a in floats.items()},
        "factor_counts": lambda: [pysel.factor_counts(values, indices, 300)],
        "factor_counts_groups": lambda: [pysel.factor_counts(values, indices, 300, groups=groups, num_groups=7)],
        "factor_scores": lambda: [pysel.factor_scores(values, indices, tables, reduce="mean", weighted=True)],
        "select": lambda: [pysel.select(row, 100_000)],
    }


def test_bits_do_not_depend_on_threads(dtype, threads):
    for call in calls(dtype).values():
        threads(1)
        one = call()
        threads(2)
        assert_same(one, call())


def fingerprint():
    """{call and dtype: hash}. The encoder's GEMM is the vendor's, so its inputs are whole numbers."""
    result = {}
    for dtype in DTYPES:
        x, weight = whole((600, 6), -2, 2, dtype), whole((3000, 6), -2, 2, dtype, 1)
        for op, call in (
            calls(dtype)
            | {
                f"topk_encode {a}": lambda x=x, w=weight, a=a: pysel.topk_encode(x, w, None, 20, activation=a)
                for a in ("relu", "abs")
            }
        ).items():
            digest = hashlib.sha256()
            for out in call():
                digest.update((bits(out) if out.is_floating_point() else out).numpy().tobytes())
            result[f"{op} {name(dtype)}"] = digest.hexdigest()
    return result


def runnable_variants():
    flags = Path("/proc/cpuinfo").read_text()
    has = {"portable": True, "avx2": " avx2" in flags, "avx512": all(f" avx512{s}" in flags for s in ("f", "bw", "vl"))}
    return [v for v in INFO["cpu_variants"] if has[v] and v != INFO["cpu_variant"]]


@pytest.mark.parametrize("variant", runnable_variants())
def test_bits_do_not_depend_on_the_instruction_set(variant):
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_topk"],
        env=os.environ | {"PYSEL_CPU_VARIANT": variant},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == fingerprint()


# --- shapes, and numbers of any kind ---

LEADING = [(), (1,), (2, 3), (0,), (2, 0, 3), (0, 4), (3, 1, 2, 2)]


@pytest.mark.parametrize("lead", LEADING, ids=str)
def test_any_leading_dimensions(lead):
    d, hidden, k, rows = 5, 9, 3, math.prod(lead)
    x, weight, bias = whole((*lead, d), -2, 2), whole((hidden, d), -2, 2, seed=1), whole((hidden,), -2, 2, seed=2)
    flat = x.reshape(rows, d)
    for activation in ("relu", "abs"):
        for got, wanted in zip(
            pysel.topk_encode(x, weight, bias, k, activation=activation),
            pysel.topk_encode(flat, weight, bias, k, activation=activation),
            strict=True,
        ):
            assert_same_bits(got, wanted.view(*lead, k))
    values, indices = pysel.topk_encode(x, weight, bias, k)
    assert_same_bits(pysel.topk(x, 2)[0], pysel.topk(flat, 2)[0].view(*lead, 2))
    matrix = values.reshape(rows, k), indices.reshape(rows, k)
    decoded = pysel.sparse_decode(*matrix, weight).view(*lead, d)
    assert_same_bits(pysel.sparse_decode(values, indices, weight), decoded)
    for out in (
        torch.full((*lead, d), 7.0),
        torch.full((*lead, 2 * d), 7.0)[..., ::2],
        laid_out(x, "transposed").clone(),
    ):
        assert pysel.sparse_decode(values, indices, weight, out=out) is out
        assert_same_bits(out, decoded)
    groups = torch.arange(rows).view(lead) % 2
    assert_same_bits(
        pysel.factor_counts(values, indices, hidden, groups=groups, num_groups=2),
        pysel.factor_counts(*matrix, hidden, groups=groups.flatten(), num_groups=2),
    )
    tables = tables_of(2, hidden)
    assert_same_bits(pysel.factor_scores(values, indices, tables), pysel.factor_scores(*matrix, tables).view(*lead, 2))
    assert pysel.factor_scores(values, indices, tables[0]).shape == lead


def test_gradients_and_vmap_of_any_leading_dimensions():
    x, weight = torch.randn(2, 3, 5, generator=generator()), torch.randn(9, 5, generator=generator(1))

    def loss(x, weight):
        values, indices = pysel.topk_encode(x, weight, None, 3)
        return pysel.sparse_decode(values, indices, weight).square().sum()

    results = []
    for shape in ((2, 3, 5), (6, 5)):
        leaves = [x.view(shape).clone().requires_grad_(), weight.clone().requires_grad_()]
        results.append(torch.autograd.grad(loss(*leaves), leaves))
    for got, wanted in zip(*results, strict=True):
        assert_same_bits(got.flatten(), wanted.flatten())
    mapped = torch.vmap(torch.func.grad(loss), (0, None))(x, weight)
    torch.testing.assert_close(mapped, results[0][0])
    one = torch.vmap(torch.vmap(torch.func.grad(loss), (0, None)), (0, None))(x, weight)
    torch.testing.assert_close(one, results[0][0])


def test_results_have_names(tmp_path):
    x, weight = whole((4, 5), -9, 9), whole((7, 5), -9, 9, seed=1)
    for call in (lambda x: pysel.topk(x, 2), lambda x: pysel.topk_encode(x, weight, None, 2)):
        values, indices = call(x)
        for f in (call, torch.vmap(call), torch.compile(call, fullgraph=True, backend="aot_eager")):
            assert_same_bits(f(x).values, values)
            assert_same_bits(f(x).indices, indices)

    class Model(torch.nn.Module):
        def forward(self, x):
            return pysel.topk(x, 2)

    torch.export.save(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    assert_same_bits(torch.export.load(tmp_path / "model.pt2").module()(x).values, pysel.topk(x, 2).values)


def test_compiles_and_exports_any_leading_dimensions():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(9, 5, generator=generator()))

        def forward(self, x):
            values, indices = pysel.topk_encode(x, self.weight, None, 3)
            return pysel.sparse_decode(values, indices, self.weight)

    model = Model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 5), (4, 7, 5), (3, 2, 2, 5), (5,)):
        x = torch.randn(shape, generator=generator(1))
        torch.testing.assert_close(compiled(x), model(x))
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")},)
    exported = torch.export.export(model, (torch.randn(2, 3, 5),), dynamic_shapes=sizes).module()
    x = torch.randn(4, 7, 5, generator=generator(1))
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize(
    "k", [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.int16)]
)
def test_k_is_a_whole_number_of_any_kind(k):
    x, weight = torch.randn(4, 5, generator=generator()), torch.randn(7, 5, generator=generator(1))
    for call in (lambda k: pysel.topk(x, k), lambda k: pysel.topk_encode(x, weight, None, k)):
        for got, wanted in zip(call(k), call(2), strict=True):
            assert_same_bits(got, wanted)
    assert_same_bits(pysel.select(x[0], k), pysel.select(x[0], 2))
    values, indices = pysel.topk_encode(x, weight, None, 2)
    groups = torch.tensor([0, 1, 0, 1])
    counts = pysel.factor_counts(values, indices, 7, groups=groups, num_groups=k)
    assert_same_bits(counts, pysel.factor_counts(values, indices, 7, groups=groups, num_groups=2))


def test_no_k_gives_nothing():
    x, weight = torch.randn(4, 5, generator=generator()), torch.randn(7, 5, generator=generator(1))
    for values, indices in (pysel.topk(x, 0), pysel.topk_encode(x, weight, None, 0)):
        assert values.shape == indices.shape == (4, 0)
        assert indices.dtype == torch.int64
    assert not pysel.sparse_decode(values, indices, weight).any()
    assert torch.equal(pysel.sparse_decode(values, indices, weight, x[0]), x[:1].expand(4, 5))


def test_the_smallest_are_those_of_minus_x():
    x = torch.tensor([[3.0, -1.0, 2.0, -1.0, math.inf, -math.inf]])
    values, indices = pysel.topk(-x, 4)
    assert (-values).tolist() == [[-math.inf, -1, -1, 2]]
    assert indices.tolist() == [[5, 1, 3, 2]]
    assert pysel.topk(-x.where(x != 2, math.nan), 1)[1].tolist() == [[2]]


def test_zeros_of_either_sign_are_ties():
    assert pysel.topk(torch.tensor([-0.0, 0.0, -0.0, 0.0]), 4)[1].tolist() == [0, 1, 2, 3]


def test_autocast_leaves_tensors_without_data_alone():
    x, weight = torch.empty(4, 5, device="meta"), torch.empty(7, 5, device="meta")
    values, indices = pysel.topk_encode(x, weight, None, 3)
    assert (values.device.type, values.dtype, indices.shape) == ("meta", torch.float32, (4, 3))
    assert pysel.sparse_decode(values, indices, weight).shape == (4, 5)
    for op in (pysel.gumbel_softmax, pysel.gumbel_sigmoid, pysel.gumbel_argmax):
        assert op(x.bfloat16(), key=0).device.type == "meta"
    with torch.autocast("cpu", torch.bfloat16):
        assert pysel.topk_encode(x, weight, None, 3)[0].dtype == F.linear(x, weight).dtype == torch.float32


# --- torch's machinery ---


def raw_calls(requires_grad=False):
    values, indices = codes(4, 3, 7)
    x, weight, bias, dense = (torch.randn(shape, generator=generator()) for shape in ((4, 5), (7, 5), (7,), (4, 5)))
    floats = [t.requires_grad_(requires_grad) for t in (values, x, weight, bias, dense)]
    values, x, weight, bias, dense = floats
    return {
        "topk": (x, 2),
        "topk_encode": (x, weight, bias, 3, "abs"),
        "sparse_decode": (values, indices, weight, None),
        "sddmm": (indices, weight.detach(), dense.detach()),
        "spmm_t": (values.detach(), indices, dense.detach(), 7),
        "sparse_decode_backward": (dense.detach(), values.detach(), indices, weight.detach()),
        "factor_counts": (values.detach(), indices, 7, torch.tensor([2, 0, 0, 1]), 3),
        "factor_scores": (values.detach(), indices, tables_of(2, 7), "mean", True),
        "select": (bias.detach(), 3, True, None, None, None, None),
    }


@pytest.mark.parametrize("requires_grad", [False, True], ids=["constant", "requires_grad"])
@pytest.mark.parametrize("op", raw_calls())
def test_opcheck(op, requires_grad):
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static",
                 "test_aot_dispatch_dynamic"]  # fmt: skip
    torch.library.opcheck(getattr(OPS, op).default, raw_calls(requires_grad)[op], test_utils=utilities)


@pytest.mark.parametrize("op", raw_calls())
def test_meta_tensors_have_the_shape_of_results(op):
    arguments = raw_calls()[op]
    real = getattr(OPS, op)(*arguments)
    meta = getattr(OPS, op)(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
    real, meta = (r if isinstance(r, tuple) else (r,) for r in (real, meta))
    for r, m in zip(real, meta, strict=True):
        assert (r.shape, r.dtype, r.stride()) == (m.shape, m.dtype, m.stride())


def model(x, weight, bias, tables):
    values, indices = pysel.topk_encode(x, weight, bias, k=4, activation="abs")
    decoded = pysel.sparse_decode(values, indices, weight)
    top = pysel.topk(decoded, 2)[0]
    groups = indices[:, 0] % 3
    counts = pysel.factor_counts(values, indices, weight.shape[0], groups=groups, num_groups=3)
    common, rare = pysel.factor_scores(values.detach(), indices, tables, weighted=True).unbind(1)
    chosen = pysel.select(common + rare, 3)
    return top.sum() + decoded.square().mean(), counts, chosen


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_to_one_graph(dynamic):
    inputs = [torch.randn(shape, generator=generator(i)) for i, shape in enumerate([(6, 5), (12, 5), (12,)])]
    tables = tables_of(2, 12)
    results = []
    for f in (model, torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
        leaves = [t.clone().requires_grad_() for t in inputs]
        loss, counts, chosen = f(*leaves, tables)
        loss.backward()
        results.append([loss, counts, chosen, *(t.grad for t in leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_compiles_with_inductor():
    x, weight = torch.randn(6, 5, generator=generator()), torch.randn(12, 5, generator=generator(1))
    compiled = torch.compile(lambda: pysel.topk_encode(2 * x, weight, None, 3)[0] + 1, fullgraph=True)
    torch.testing.assert_close(compiled(), pysel.topk_encode(2 * x, weight, None, 3)[0] + 1)


def test_autocast_is_that_of_linear():
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((3, 4), (6, 4), (6,)))
    with torch.autocast("cpu", torch.bfloat16):
        values, indices = pysel.topk_encode(x, weight, bias, 2)
        decoded = pysel.sparse_decode(values.float(), indices, weight)
        double = pysel.topk_encode(x.double(), weight.double(), None, 2)[0]
        assert pysel.topk_encode(x, weight, bias, 2, activation="abs")[0].dtype == torch.bfloat16
        assert F.linear(x, weight, bias).dtype == values.dtype == decoded.dtype == torch.bfloat16
        assert double.dtype == torch.float64
    decoded.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="topk_encode: weight must have the dtype of x"):
        pysel.topk_encode(x.bfloat16(), weight, None, 2)


# --- bad input ---

X, W, V = torch.randn(4, 5), torch.randn(7, 5), torch.rand(4, 3)
J = torch.zeros(4, 3, dtype=torch.int64)
TABLE, GROUPS = torch.full((7,), 0.5), torch.tensor([2, 0, 1, 0])


def with_one(x, value):
    x = x.clone()
    x.view(-1)[-2] = value
    return x


BAD = [
    (TypeError, "x must be a Tensor, got list", lambda: pysel.topk([1.0], 1)),
    (TypeError, "x must be float32, float64, bfloat16 or float16, got torch.int64", lambda: pysel.topk(J, 1)),
    (TypeError, "k must be an int, got float", lambda: pysel.topk(X, 1.0)),
    (IndexError, "k must be between 0 and 5, got 6", lambda: pysel.topk(X, 6)),
    (IndexError, "k must be between 0 and 5, got -1", lambda: pysel.topk(X, -1)),
    (ValueError, r"x must have shape \[..., n\], got \[\]", lambda: pysel.topk(torch.tensor(1.0), 1)),
    (TypeError, r"k must be an int, got Tensor of shape \[1\]", lambda: pysel.topk(X, torch.tensor([2]))),
    (TypeError, "k must be an int, got bool", lambda: pysel.topk(X, True)),
    (ValueError, r"x must have shape \[..., d\], got \[\]", lambda: pysel.topk_encode(X[0, 0], W, None, 1)),
    (ValueError, r"weight must have shape \[H, 5\].*, got \[7, 4\]", lambda: pysel.topk_encode(X, W[:, :4], None, 1)),
    (ValueError, r"bias must have shape \[7\], got \[5\]", lambda: pysel.topk_encode(X, W, X[0], 1)),
    (TypeError, "bias must be a Tensor, got list", lambda: pysel.topk_encode(X, W, [0.0] * 7, 1)),
    (IndexError, "k must be between 0 and 7, got 32", lambda: pysel.topk_encode(X, W)),
    (TypeError, "weight must have the dtype of x", lambda: pysel.topk_encode(X, W.double(), None, 1)),
    (ValueError, "activation must be relu or abs, got 'gelu'",
     lambda: pysel.topk_encode(X, W, None, 1, activation="gelu")),
    (TypeError, "indices must be int64, got torch.int32", lambda: pysel.sparse_decode(V, J.int(), W)),
    (ValueError, r"indices must have the shape of values, \[4, 3\], got \[4, 2\]",
     lambda: pysel.sparse_decode(V, J[:, :2], W)),
    (ValueError, r"indices must have the shape of values, \[3\], got \[4, 3\]",
     lambda: pysel.sparse_decode(V[0], J, W)),
    (ValueError, r"indices must have the shape of values, \[2, 2, 3\], got \[4, 3\]",
     lambda: pysel.sparse_decode(V.view(2, 2, 3), J, W)),
    (ValueError, r"values must have shape \[..., k\], got \[\]", lambda: pysel.sparse_decode(V[0, 0], J[0, 0], W)),
    (ValueError, r"out must have shape \[2, 2, 5\], got \[4, 5\]",
     lambda: pysel.sparse_decode(V.view(2, 2, 3), J.view(2, 2, 3), W, out=torch.zeros(4, 5))),
    (ValueError, r"weight must have shape \[H, d\], got \[5\]", lambda: pysel.sparse_decode(V, J, W[0])),
    (ValueError, r"bias must have shape \[5\], got \[7\]", lambda: pysel.sparse_decode(V, J, W, TABLE)),
    (TypeError, "bias must be a Tensor, got list", lambda: pysel.sparse_decode(V, J, W, [0.0] * 5)),
    (TypeError, "bias must be .* got torch.int64", lambda: pysel.sparse_decode(V, J, W, X[0].long())),
    (IndexError, "indices must be between 0 and 6, got 7", lambda: pysel.sparse_decode(V, with_one(J, 7), W)),
    (IndexError, "indices must be between 0 and 6, got -1", lambda: pysel.sparse_decode(V, with_one(J, -1), W)),
    (IndexError, "indices must be between 0 and 6, got 7", lambda: OPS.sddmm(with_one(J, 7), W, X)),
    (ValueError, r"grad must have shape \[4, 5\], got \[3, 5\]", lambda: OPS.sddmm(J, W, X[:3])),
    (IndexError, "indices must be between 0 and 6, got 7", lambda: OPS.spmm_t(V, with_one(J, 7), X, 7)),
    (ValueError, r"rows must have shape \[4, d\].*, got \[3, 5\]", lambda: OPS.spmm_t(V, J, X[:3], 7)),
    (ValueError, "num_factors must be at least 0, got -1", lambda: OPS.spmm_t(V, J, X, -1)),
    (IndexError, "indices must be between 0 and 6, got 7", lambda: OPS.sparse_decode_backward(X, V, with_one(J, 7), W)),
    (ValueError, r"grad must have shape \[4, 5\], got \[3, 5\]", lambda: OPS.sparse_decode_backward(X[:3], V, J, W)),
    (IndexError, "indices must be between 0 and 2, got 3", lambda: pysel.factor_counts(V, with_one(J, 3), 3)),
    (ValueError, "num_factors must be at least 0, got -2", lambda: pysel.factor_counts(V, J, -2)),
    (TypeError, "num_factors must be an int", lambda: pysel.factor_counts(V, J, 2.0)),
    (ValueError, "num_groups must be given with groups, got None", lambda: pysel.factor_counts(V, J, 7, groups=GROUPS)),
    (ValueError, "groups must be given with num_groups, got None", lambda: pysel.factor_counts(V, J, 7, num_groups=3)),
    (ValueError, r"groups must have shape \[4\], got \[3\]",
     lambda: pysel.factor_counts(V, J, 7, groups=GROUPS[:3], num_groups=3)),
    (TypeError, "groups must be int64 or int32, got torch.float32",
     lambda: pysel.factor_counts(V, J, 7, groups=GROUPS.float(), num_groups=3)),
    (TypeError, "num_groups must be an int, got float",
     lambda: pysel.factor_counts(V, J, 7, groups=GROUPS, num_groups=3.0)),
    (ValueError, r"groups must have shape \[2, 2\], got \[4\]",
     lambda: pysel.factor_counts(V.view(2, 2, 3), J.view(2, 2, 3), 7, groups=GROUPS, num_groups=3)),
    (ValueError, "num_groups must be at least 0, got -1",
     lambda: pysel.factor_counts(V, J, 7, groups=GROUPS, num_groups=-1)),
    (IndexError, "groups must be between 0 and 2, got 3",
     lambda: pysel.factor_counts(V, J, 7, groups=with_one(GROUPS, 3), num_groups=3)),
    (IndexError, "groups must be between 0 and 2, got -1",
     lambda: pysel.factor_counts(V, J, 7, groups=with_one(GROUPS, -1).int(), num_groups=3)),
    (ValueError, r"tables must have shape \[H\] or \[T, H\], got \[1, 7, 5\]",
     lambda: pysel.factor_scores(V, J, W[None])),
    (TypeError, "tables must be float32 or float64, got torch.float16",
     lambda: pysel.factor_scores(V, J, TABLE.half())),
    (TypeError, "weighted must be a bool, got str", lambda: pysel.factor_scores(V, J, TABLE, weighted="yes")),
    (ValueError, "reduce must be sum or mean, got 'max'", lambda: pysel.factor_scores(V, J, TABLE, reduce="max")),
    (IndexError, "indices must be between 0 and 6, got 9", lambda: pysel.factor_scores(V, with_one(J, 9), TABLE)),
    (ValueError, "tables must not require grad",
     lambda: pysel.factor_scores(V, J, TABLE.clone().requires_grad_())),
    (ValueError, "values must not require grad", lambda: pysel.factor_scores(V.clone().requires_grad_(), J, TABLE)),
    (ValueError, r"scores must have shape \[n\], got \[4, 5\]", lambda: pysel.select(X, 2)),
    (IndexError, "k must be between 0 and 5, got 6", lambda: pysel.select(X[0], 6)),
    (TypeError, "scores must be .*, got torch.bool", lambda: pysel.select(X[0] > 0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[f"{i}-{m[:30]}" for i, (_, m, _) in enumerate(BAD)])
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()


RAW_BAD = [
    ("topk", (X.long(), 2)),
    ("topk", (X, 9)),
    ("topk_encode", (X, W.double(), None, 2, "relu")),
    ("topk_encode", (X, W, W[:, 0].double(), 2, "abs")),
    ("topk_encode", (X, W[0], None, 2, "relu")),
    ("sparse_decode", (V, J.int(), W, None)),
    ("sparse_decode", (V, J + 7, W, None)),
    ("sparse_decode", (V.double(), J, W, None)),
    ("sddmm", (J, W, X.double())),
    ("sddmm", (J - 1, W, X)),
    ("spmm_t", (V, J, X.half(), 7)),
    ("spmm_t", (V, J, X, 0)),
    ("sparse_decode_backward", (X.double(), V, J, W)),
    ("sparse_decode_backward", (X, V, J - 1, W)),
    ("factor_counts", (V, J[:3], 7, None, None)),
    ("factor_counts", (V.long(), J, 7, None, None)),
    ("factor_counts", (V, J, 7, GROUPS, None)),
    ("factor_counts", (V, J, 7, None, 3)),
    ("factor_counts", (V, J, 7, GROUPS[:3], 3)),
    ("factor_counts", (V, J, 7, GROUPS.int(), 3)),
    ("factor_counts", (V, J, 7, GROUPS, 2)),
    ("factor_counts", (V, J, 7, GROUPS, -2)),
    ("factor_scores", (V, J, TABLE.half(), "sum", False)),
    ("factor_scores", (V, J, TABLE.sum(), "sum", False)),
    ("factor_scores", (V, J + 7, TABLE, "sum", False)),
    ("select", (X[0] > 0, 1, True, None, None, None, None)),
]


@pytest.mark.parametrize(("op", "arguments"), RAW_BAD, ids=[f"{i}-{op}" for i, (op, _) in enumerate(RAW_BAD)])
def test_raw_ops_defend_themselves(op, arguments):
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises((ValueError, IndexError), match=f"^{op}: "):
        getattr(OPS, op)(*arguments)
    for a, b in zip(arguments, before, strict=True):
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)


def test_reference_raises_the_same_errors():
    for op, arguments in RAW_BAD:
        if arguments[0].dtype in (torch.int64, torch.bool) and op in ("topk", "factor_counts", "select"):
            continue  # plain torch has no objection to whole numbers
        with pytest.raises((ValueError, IndexError)) as native:
            getattr(OPS, op)(*arguments)
        with pytest.raises(type(native.value)) as plain:
            reference.OPS[op](*arguments)
        assert str(plain.value) == str(native.value)


if __name__ == "__main__":
    print(json.dumps(fingerprint()))
