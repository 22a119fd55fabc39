"""More than 2^31 elements: nothing may be counted in 32 bits.

The large size wants --slow and 18 GB, or 40 free ones on a GPU; the small one shows everywhere that tests are right.
Results at the end of a large input are those of the same elements alone: `start` says where they are.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pysel
from tests.tensors import assert_same_bits

OPS = torch.ops.pysel
WIDTH = 4096
HALF = torch.bfloat16
END = 3000  # elements of the end that are looked at


@pytest.fixture(params=[pytest.param(3, id="small"), pytest.param(2**19 + 2, id="large", marks=pytest.mark.slow)])
def rows(request: pytest.FixtureRequest, device: str) -> int:
    """Of WIDTH elements."""
    if device == "cuda" and request.param > 3:
        torch.cuda.empty_cache()  # of the test before
        if torch.cuda.mem_get_info()[0] < 40 * 2**30:  # columns take the most: twice the input, and twice in float32
            pytest.skip("needs 40 GiB of GPU memory")
    return request.param


@pytest.fixture
def n(rows: int) -> int:
    return rows * WIDTH


def cyclic(rows: int, device: str) -> Tensor:
    """[rows, WIDTH] of few different rows."""
    some = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1)).to(device, HALF)
    return some.repeat(rows // 16 + 1, 1)[:rows]


def test_argmax(n, device, key):
    x = torch.zeros(n, dtype=HALF, device=device)
    x[-3] = 300
    assert pysel.gumbel_argmax(x, key=key) == n - 3


def test_gates(n, device, key):
    x = torch.zeros(n, dtype=HALF, device=device)
    end = pysel.gumbel_sigmoid(x[-END:], key=key, start=n - END)
    assert_same_bits(pysel.gumbel_sigmoid(x, key=key, out=x)[-END:], end)


@pytest.mark.parametrize("hard", [False, True])
def test_rows(rows, hard, device, key):
    x = cyclic(rows, device)
    end = pysel.gumbel_softmax(x[-2:], 0.5, hard, key=key, start=(rows - 2) * WIDTH)
    assert_same_bits(pysel.gumbel_softmax(x, 0.5, hard, key=key, out=x)[-2:], end)


def test_columns(rows, device, key):
    x = cyclic(rows, device).t()  # [WIDTH, rows]: the noise goes by the order of this shape
    last = pysel.gumbel_argmax(x[-1:], key=key, start=(WIDTH - 1) * rows)
    assert pysel.gumbel_argmax(x, dim=1, key=key)[-1] == last[0]


def test_softmax_gradient(rows, device):
    y, tau = cyclic(rows, device), torch.tensor(0.5)
    wanted = OPS.gumbel_softmax_backward(y[-2:].flip(1), y[-2:], tau, -1)
    assert_same_bits(OPS.gumbel_softmax_backward(y.flip(1), y, tau, -1)[-2:], wanted)


def test_topk(rows, device):
    x = cyclic(rows, device)
    for got, wanted in zip(pysel.topk(x, 5), pysel.topk(x[-2:], 5), strict=True):
        assert_same_bits(got[-2:], wanted)


def test_select(n, device):
    scores = torch.zeros(n, dtype=HALF, device=device)
    high = torch.tensor([5, n // 2, n - 2, n - 1], device=device)
    scores[high] = 1
    assert torch.equal(pysel.select(scores, 4), high)
    scores[: n // 2] = 2
    many = pysel.select(scores, n - n // 2, largest=False)  # the zeros, then the first ones
    assert many[[0, 1, 2, -1]].tolist() == [n // 2, n // 2 + 1, n // 2 + 2, n - 1]
    assert bool((many[1:] > many[:-1]).all())


@pytest.mark.parametrize("order", ["draw", "index", "shuffled"])
@pytest.mark.parametrize("replacement", [False, True])
def test_draws(n, order, replacement, device, key):
    weights = torch.zeros(n, dtype=HALF, device=device)
    weights[-END:] = 1
    start = 0 if replacement else n - END  # counts draws, or weights
    alone = pysel.weighted_sample(weights[-END:], 900, replacement, order=order, key=key, start=start)
    got = pysel.weighted_sample(weights, 900, replacement, order=order, key=key)
    assert torch.equal(got.sort().values, alone.sort().values + n - END)
    if order != "shuffled" or not replacement:
        assert torch.equal(got, alone + n - END)


@pytest.mark.parametrize("ascending", [True, False])
def test_usage(n, ascending, device):
    counts, scores = torch.zeros(n, device=device), torch.zeros(n, dtype=HALF, device=device)
    selected = torch.tensor([0, n // 2, n - 2, n - 1], device=device)
    penalised = pysel.usage_step_(
        counts, selected if ascending else selected.flip(0), scores, 0.5, 0.9, "linear", out=scores
    )
    assert (penalised[selected] == -0.5).all()
    assert torch.count_nonzero(penalised) == 4
    assert (counts[selected] == 1).all()
    assert torch.count_nonzero(counts) == 4


def test_factors(rows, device):
    weight = cyclic(rows, device)
    last = rows - 1
    values = torch.tensor([[1.0, 2.0]], dtype=HALF, device=device)
    indices = torch.tensor([[last, 1]], device=device)
    wanted = pysel.sparse_decode(values, indices.new_tensor([[1, 0]]), weight[[1, last]])
    assert_same_bits(pysel.sparse_decode(values, indices, weight), wanted)
    grad = weight[:1]
    to_values, to_weight = OPS.sparse_decode_backward(grad, values, indices, weight)
    assert_same_bits(to_values, OPS.sddmm(indices.new_tensor([[1, 0]]), weight[[1, last]], grad))
    assert_same_bits(to_weight[last], grad[0])


def test_encoder(rows, device):
    weight = torch.zeros(rows, WIDTH, dtype=HALF, device=device)
    weight[-1, 7], weight[-2, 7], weight[0, 7] = 3, 2, 1
    x = torch.zeros(2, WIDTH, dtype=HALF, device=device)
    x[:, 7] = 1
    values, indices = pysel.topk_encode(x, weight, k=3)
    assert values[1].tolist() == [3, 2, 1]
    assert indices[1].tolist() == [rows - 1, rows - 2, 0]


def test_codes(rows, device):
    if device == "cpu" and rows > 3:
        pytest.skip("values, their indices and a mask take 24 GB")
    k = 32
    values = cyclic(rows, device).view(-1, k)
    indices = torch.arange(values.numel(), device=device).remainder_(97).view(-1, k)
    end = values[-4:].clone(), indices[-4:].clone()
    weight = torch.ones(97, 4, dtype=HALF, device=device)
    assert_same_bits(pysel.sparse_decode(values, indices, weight)[-4:], pysel.sparse_decode(*end, weight))
    tables = torch.rand(2, 97, device=device)
    assert_same_bits(pysel.factor_scores(values, indices, tables)[-4:], pysel.factor_scores(*end, tables))
    assert pysel.factor_counts(values, indices, 97).sum() == torch.count_nonzero(values > 0)
