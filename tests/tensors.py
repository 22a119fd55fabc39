"""Tensors in awkward memory, and distances between floats."""

import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
LAYOUTS = ["contiguous", "strided", "transposed", "unaligned", "negated"]


def name(dtype):
    return str(dtype).removeprefix("torch.")


def laid_out(x, layout):
    """The same values as x in other memory.

    strided: every second element of a larger tensor. transposed: memory order of the reversed dimensions. unaligned:
    storage begins one element before x. negated: memory holds -x and torch's lazy negative bit is set.
    """
    if layout == "contiguous":
        y = x.contiguous()
    elif layout == "strided":
        y = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)[..., ::2].copy_(x)
    elif layout == "transposed":
        y = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    elif layout == "unaligned":
        y = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)
    else:
        y = torch._neg_view(-x)
    assert torch.equal(y, x)
    return y


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x):
    """The bit patterns of floats, as integers; for comparisons that tell -0 from 0 and one NaN from another."""
    return x.contiguous().view(_BITS[x.element_size()])


def ulps(a, b):
    """How many floats lie between a and b, elementwise, as float64; 0 for two NaN, inf for one NaN."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape

    def number(x):
        i = bits(x).to(torch.int64)
        least = torch.iinfo(_BITS[x.element_size()]).min
        return torch.where(i < 0, least - i, i)  # -0 and +0 are both 0

    i, j = number(a), number(b)
    # float64 holds the difference of close numbers exactly, but not the numbers
    distance = torch.where((i < 0) == (j < 0), (i - j).double(), i.double() - j.double()).abs()
    nan = torch.isnan(a) | torch.isnan(b)
    return torch.where(nan, torch.where(torch.isnan(a) & torch.isnan(b), 0.0, torch.inf), distance)


def opcheck(op, arguments):
    """torch.library.opcheck with every utility it has."""
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
    utilities += ["test_aot_dispatch_static", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(op, arguments, test_utils=utilities)


def assert_same_bits(got, wanted):
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    if got.dtype.is_floating_point:
        got, wanted = bits(got), bits(wanted)
    assert torch.equal(got, wanted)


def assert_within_ulps(got, wanted, bound):
    distance = ulps(got, wanted)
    assert distance.numel() == 0 or distance.max() <= bound, f"{distance.max():.0f} ulp"
