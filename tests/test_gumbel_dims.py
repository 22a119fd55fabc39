"""Categories along a dimension other than the last, where rows are brought together in tiles."""

import pytest
import torch

import pysel
from pysel import reference
from tests.tensors import DTYPES, assert_same_bits, name

KEY = pysel.key(11)
# [outer, width, inner]: less than a tile, more, and more than a chunk either way; neighbouring lines together, or not
SHAPES = [(1, 2, 2), (2, 130, 70), (3, 17, 64), (1, 33, 65), (2, 5, 1100), (1, 1500, 3), (1, 1040, 9), (4, 16, 16)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def assert_same(got, wanted):
    """Equal bits, but for the sign of a NaN."""
    assert torch.equal(got.isnan(), wanted.isnan())
    assert_same_bits(got.nan_to_num(7), wanted.nan_to_num(7))


def logits(shape, dtype, bad=True):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if bad:
        x[0, 0, 0] = torch.nan  # makes its row NaN and leaves its neighbours
        x[-1, 1, -1] = -torch.inf
    return x.to(dtype)


@every_shape
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_samples_are_those_of_the_reference(shape, dtype, threads):
    x = logits(shape, dtype)
    for count in (1, 3):
        threads(count)
        for tau in (1.0, 0.3):
            as_tensor = torch.tensor(tau, dtype=torch.float64)
            for hard in (False, True):
                got = pysel.gumbel_softmax(x, tau, hard, dim=1, key=KEY, start=5)
                assert_same(got, reference.gumbel_softmax(x, as_tensor, KEY, 1, hard, 5, None))
                into = x.clone()
                assert_same(pysel.gumbel_softmax(into, tau, hard, dim=1, key=KEY, start=5, out=into), got)
        got = pysel.gumbel_argmax(x, dim=1, key=KEY, start=5)
        assert_same_bits(got, reference.gumbel_argmax(x, KEY, 1, 5, None))


@every_shape
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_gradient_sums_each_row_in_order(shape, dtype, threads):
    y = pysel.gumbel_softmax(logits(shape, dtype, bad=False), 0.5, dim=1, key=KEY)
    grad = logits(shape, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = torch.zeros(shape[0], shape[2], dtype=torch.float64)
    for g, p in zip(grad.unbind(1), y.unbind(1), strict=True):
        total += (g.to(wide) * p.to(wide)).double()
    wanted = (y.to(wide) * (grad.to(wide) - total.to(wide)[:, None]) / 0.7).to(dtype)
    for count in (1, 3):
        threads(count)
        got = torch.ops.pysel.gumbel_softmax_backward(grad, y, torch.tensor(0.7, dtype=torch.float64), 1)
        assert_same(got, wanted)


def test_rows_that_are_refused_are_refused_along_any_dimension():
    x = torch.zeros(3, 70, 40)
    for bad, message in ((torch.inf, "below"), (-torch.inf, "finite value in every row")):
        for hard in (False, True):
            given = x.clone()
            given[1, :, 39] = bad
            out = torch.full_like(x, 7)
            with pytest.raises(ValueError, match=f"gumbel_softmax: logits must .*{message}"):
                pysel.gumbel_softmax(given, hard=hard, dim=1, key=KEY)
            with pytest.raises(ValueError, match=f"gumbel_softmax: logits must .*{message}"):
                pysel.gumbel_softmax(given, hard=hard, dim=1, key=KEY, out=out)
            assert (out == 7).all()
