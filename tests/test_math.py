"""Bits -> noise: how exact it is, that kernels and reference agree in every bit, and that nothing contracts."""

import random
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from pysel import reference
from tests import golden
from tests.statistics import accept, kolmogorov_smirnov, reject, scipy_stats
from tests.tensors import assert_same_bits, bits, opcheck

KINDS = ["exponential", "gumbel", "logistic"]
FLOATS = [torch.float32, torch.float64]
kinds = pytest.mark.parametrize("kind", KINDS)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])
# ulp; measured (as `error` counts them): log 1.15, log1p 0.95, exp 0.96, exponential 1.75, Gumbel and logistic 1.95
BOUND = 2

TAIL = 2**20  # high words below it, and above 2^32 - 2^20 - 1, take the low word too in float32
EXPONENTS = [1, 2, 10, 20, 24, 31, 32, 33, 40, 51, 52, 53, 54, 60, 62, 63]
# Both ends, every scale between them, and both sides of every boundary.
CHOSEN = sorted(
    {0, 2**64 - 1}
    | {2**e + d for e in EXPONENTS for d in (-1, 0, 1)}
    | {2**64 - 2**e + d for e in EXPONENTS for d in (-1, 0, 1)}
    | {0x4AFB0CCC_06219B7D, 0x5E2D58D8_B3BCDF1A, 0xA1D2A727_4C4320E5}  # around the medians and E = 1
)


def as_int64(words):
    return torch.tensor([m - 2**64 if m >= 2**63 else m for m in words])


def native(words, kind, dtype):
    return torch.ops.pysel.noise(words, kind, dtype == torch.float64)


def oracle(words, kind, dtype):
    """The reference in pieces that stay below torch's parallel grain, where it is fastest."""
    pieces = [reference.noise(w, kind, dtype == torch.float64) for w in words.flatten().split(1 << 14)]
    return torch.cat(pieces).view(words.shape)


def exact(m, kind, dtype):
    """The noise of M as common/random.h defines it, to 60 digits."""
    high = m >> 32
    if dtype == torch.float32 and TAIL <= high < 2**32 - TAIL:
        u = (mpmath.mpf(high) + 0.5) / 2**32
    else:
        u = (mpmath.mpf(m) + 0.5) / mpmath.mpf(2) ** 64
    if kind == "logistic":
        return mpmath.log(u / (1 - u))
    e = -mpmath.log(u)
    return e if kind == "exponential" else -mpmath.log(e)


def error(got, wanted, dtype, least=0.0):
    """Distance in ulp of the wanted value, or of `least` if that is larger."""
    info = torch.finfo(dtype)
    size = max(abs(wanted), mpmath.mpf(least))
    ulp = mpmath.mpf(2) ** (mpmath.frexp(size)[1] - 1) * mpmath.mpf(info.eps) if size else 0
    return float(abs(mpmath.mpf(got) - wanted) / max(ulp, mpmath.mpf(info.smallest_normal) * mpmath.mpf(info.eps)))


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


# --- exactness ---


@kinds
@floats
def test_noise_of_chosen_words_is_exact_to_two_ulp(kind, dtype):
    rng = random.Random(1)
    scales = [int(2 ** rng.uniform(0, 64)) for _ in range(500)]
    words = CHOSEN + scales + [2**64 - 1 - m for m in scales] + [rng.getrandbits(64) for _ in range(1000)]
    # Gumbel noise near U = 1/e and logistic noise near U = 1/2 pass through 0 with an absolute error: 1 ulp of 1
    least = 0.0 if kind == "exponential" else 1.0
    for m, got in zip(words, native(as_int64(words), kind, dtype).tolist(), strict=True):
        assert error(got, exact(m, kind, dtype), dtype, least) <= BOUND, hex(m)


@kinds
@floats
def test_noise_is_finite_and_monotone_over_chosen_words(kind, dtype):
    noise = native(as_int64(CHOSEN), kind, dtype)
    assert torch.isfinite(noise).all()
    step = noise.diff() if kind != "exponential" else -noise.diff()
    assert (step >= 0).all()
    # between words that are a factor of two apart it is strictly so
    apart = native(as_int64([2**e for e in range(64)]), kind, dtype).diff().abs()
    assert (apart > 0).all()


@floats
def test_extremes_are_those_of_64_bits(dtype):
    lowest, highest = (m for m in native(as_int64([0, 2**64 - 1]), "exponential", dtype).tolist())
    assert lowest == pytest.approx(65 * np.log(2))
    assert highest == pytest.approx(2.0**-65)
    ends = native(as_int64([0, 2**64 - 1]), "logistic", dtype)
    assert ends[0] == -ends[1]  # the two ends mirror each other exactly


@floats
def test_logistic_is_odd(dtype):
    words = torch.randint(-(2**63), 2**63 - 1, (10_000,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(native(~words, "logistic", dtype), -native(words, "logistic", dtype))


@pytest.mark.parametrize(
    ("high", "takes_low"),
    [
        (0, True),
        (TAIL - 1, True),
        (TAIL, False),
        (2**31 - 1, False),
        (2**31, False),
        (2**32 - TAIL - 1, False),
        (2**32 - TAIL, True),
        (2**32 - 1, True),
    ],
)
def test_float32_takes_the_low_word_in_the_tails_alone(high, takes_low):
    # near U = 1 an exponential is 1 - U, near U = 0 a logistic is log(U): there the last bits show
    kind = "exponential" if high >= 2**31 else "logistic"
    words = as_int64([high << 32 | low for low in (0, 1, 2**31, 2**32 - 1)])
    single, double = (native(words, kind, dtype).unique().numel() for dtype in FLOATS)
    assert (single > 1) == takes_low
    assert double > 2


def positive(dtype, rng):
    """Numbers over the whole range, subnormals too, and many around 1, where log cancels."""
    info = torch.finfo(dtype)
    low, high = np.log2(info.smallest_normal * info.eps), np.log2(info.max)
    values = [2.0 ** rng.uniform(low, high - 1e-9) for _ in range(1500)]
    values += [rng.uniform(0.5, 2) for _ in range(1500)]
    values += [1 + rng.choice((-1, 1)) * 2.0 ** -rng.uniform(2, 22) for _ in range(1000)]
    values += [info.max, info.smallest_normal, info.smallest_normal * info.eps, 1.0, 2**0.5, 2**-0.5]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


@floats
def test_log_is_exact_to_two_ulp(dtype):
    x = positive(dtype, random.Random(2))
    for value, got in zip(x.tolist(), reference.random.log(x).tolist(), strict=True):
        assert error(got, mpmath.log(mpmath.mpf(value)), dtype) <= BOUND, value


@floats
def test_log1p_is_exact_to_two_ulp(dtype):
    x = positive(dtype, random.Random(4))
    whole = torch.cat([torch.arange(300), 2 ** torch.arange(10, 60) - 1]).to(dtype)
    below = -torch.cat([x[x < 1], 1 - x[(x < 1) & (x > 0)] / 2])
    x = torch.cat([x, whole, below[below > -1]])
    for value, got in zip(x.tolist(), reference.random.log1p(x).tolist(), strict=True):
        assert error(got, mpmath.log1p(mpmath.mpf(value)), dtype) <= BOUND, value


@floats
def test_exp_is_exact_to_two_ulp(dtype):
    rng = random.Random(3)
    lowest = 104 if dtype == torch.float32 else 746
    values = [-rng.uniform(0, lowest) for _ in range(2000)] + [-(2.0 ** rng.uniform(-60, 1)) for _ in range(1500)]
    x = torch.tensor([*values, -0.0, 0.0, -lowest, -lowest + 0.03], dtype=torch.float64).to(dtype)
    for value, got in zip(x.tolist(), reference.random.exp_nonpositive(x).tolist(), strict=True):
        assert error(got, mpmath.exp(mpmath.mpf(value)), dtype) <= BOUND, value


@floats
def test_exp_over_is_exact_to_two_ulp_and_nothing_beyond(dtype):
    # a result is it over a sum: at least that of a largest logit with the largest variate
    single = dtype == torch.float32
    rng, scale, smallest = random.Random(5), 31 if single else 64, 2.0**-149 if single else 2.0**-1074
    largest_e, smallest_e = 65 * np.log(2), 2.0**-65
    lowest = 153.4 if single else 794.6
    values = [(-rng.uniform(0, lowest), 2.0 ** rng.uniform(-65, 5.4)) for _ in range(2000)]
    values += [(t, e) for t in (0.0, -lowest, -lowest + 0.1) for e in (smallest_e, 1.0, largest_e)]
    t, e = (torch.tensor(v, dtype=torch.float64).to(dtype) for v in zip(*values, strict=True))
    got = reference.random.exp_over(t, e)
    assert (torch.isfinite(got)).all()
    for x, y, value in zip(t.tolist(), e.tolist(), got.tolist(), strict=True):
        wanted = mpmath.exp(mpmath.mpf(x)) / mpmath.mpf(y) * mpmath.mpf(2) ** scale
        least_sum = mpmath.mpf(2) ** scale / mpmath.mpf(largest_e)
        if wanted / least_sum >= smallest / 2:  # else the result is 0
            assert error(value, wanted, dtype) <= BOUND, (x, y)
    nothing = reference.random.exp_over(
        torch.tensor([-torch.inf], dtype=dtype), torch.tensor([smallest_e], dtype=dtype)
    )
    assert nothing / (2.0**scale / largest_e) == 0
    assert reference.random.exp_over(torch.tensor([torch.nan], dtype=dtype), nothing + 1).isnan()


@floats
def test_log_and_exp_at_special_values(dtype):
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1.0, 1.0], dtype=dtype)
    assert_same_bits(reference.random.log(special).nan_to_num(7), torch.log(special).nan_to_num(7))
    special = torch.cat([special, torch.tensor([-2.0, torch.finfo(dtype).max], dtype=dtype)])
    torch.testing.assert_close(reference.random.log1p(special), torch.log1p(special), equal_nan=True)
    x = torch.tensor([-torch.inf, -1e30, 0.0, -0.0, torch.nan], dtype=dtype)
    assert reference.random.exp_nonpositive(x).nan_to_num(7).tolist() == [0, 0, 1, 1, 7]


# --- the same bits ---


@kinds
@floats
@pytest.mark.parametrize(
    "source",
    [native, lambda w, kind, dtype: reference.noise(w, kind, dtype == torch.float64)],
    ids=["native", "reference"],
)
def test_golden_noise(source, kind, dtype):
    rows = golden.load("noise")
    noise = source(as_int64([int(row["M"], 16) for row in rows]), kind, dtype)
    wanted = [int(row[kind][FLOATS.index(dtype)], 16) for row in rows]
    assert [b % 2 ** (8 * dtype.itemsize) for b in bits(noise).tolist()] == wanted


def words_of(start, n):
    key = torch.tensor([20_240_601, 0])
    high, low = (torch.ops.pysel.random_words(key, stream, start, n) for stream in (0, 1))
    return high << 32 | low


@kinds
@floats
def test_kernels_equal_the_reference_in_every_bit(kind, dtype):
    # words of every magnitude, from both ends, besides random ones
    scale = torch.arange(1 << 14) % 64
    small = words_of(0, 1 << 14) >> scale & (torch.tensor(-1) >> 1)
    n = 1 << 20 if dtype == torch.float32 else 1 << 17
    words = torch.cat([as_int64(CHOSEN), small, ~small, words_of(0, n)])
    assert_same_bits(native(words, kind, dtype), oracle(words, kind, dtype))


@pytest.mark.slow
@kinds
@floats
def test_kernels_equal_the_reference_in_sixteen_million_words(kind, dtype):
    n = 1 << 20
    for start in range(0, 1 << 24, n):
        words = words_of(start, n)
        assert_same_bits(native(words, kind, dtype), oracle(words, kind, dtype))


@kinds
@floats
def test_noise_of_strided_words_is_the_same(kind, dtype):
    words = words_of(0, 600).view(20, 30)
    assert_same_bits(native(words[:, ::3], kind, dtype), native(words, kind, dtype)[:, ::3].contiguous())
    assert_same_bits(native(words.t(), kind, dtype), native(words, kind, dtype).t().contiguous())
    assert native(words[:0], kind, dtype).shape == (0, 30)


@pytest.mark.parametrize("op", [torch.ops.pysel.noise, reference.noise], ids=["native", "reference"])
def test_unknown_noise_is_refused(op):
    with pytest.raises(ValueError, match=r"noise: kind must be exponential, gumbel or logistic, got '?normal'?"):
        op(words_of(0, 4), "normal", False)


@pytest.mark.parametrize("double", [False, True])
def test_opcheck_noise(double):
    opcheck(torch.ops.pysel.noise.default, (words_of(0, 8), "gumbel", double))


# --- fma, where it is written and nowhere else ---


def rounded(x, dtype):
    """A fraction rounded once to the nearest normal float, ties to even."""
    if x == 0:
        return 0.0
    exponent = len(bin(abs(x.numerator))) - len(bin(x.denominator))
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    ulp = Fraction(2) ** exponent * Fraction(torch.finfo(dtype).eps)
    return float(round(x / ulp) * ulp)


@floats
def test_fma_of_the_reference_rounds_once(dtype):
    rng = np.random.default_rng(4)
    n = 3000
    a, b, c = (torch.tensor(rng.standard_normal(n) * 2.0 ** rng.integers(-20, 20, n)).to(dtype) for _ in range(3))
    c[::3] = (-a * b)[::3]  # cancels to the product's rounding error
    c[1::3] = (a * b * torch.finfo(dtype).eps * 0.5)[1::3]
    got = reference.random.fma(a, b, c)
    unfused = a * b + c
    for x, y, z, value in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        assert value == rounded(Fraction(x) * Fraction(y) + Fraction(z), dtype)
    assert (got != unfused).sum() > n / 4


def test_float32_fma_of_the_reference_is_free_of_double_rounding():
    # (1 + 2^-12)^2 lies halfway between two floats; what lifts it above the tie is lost in float64
    a = torch.tensor([1 + 2.0**-12])
    assert reference.random.fma(a, a, torch.tensor([2.0**-80])).item() == 1 + 2.0**-11 + 2.0**-23
    assert reference.random.fma(a, a, torch.tensor([-(2.0**-80)])).item() == 1 + 2.0**-11
    assert (a.double() * a + 2.0**-80).float().item() == 1 + 2.0**-11


@kinds
@floats
def test_noise_without_fma_would_be_other_bits(kind, dtype, monkeypatch):
    words = words_of(0, 2000)
    with_fma = native(words, kind, dtype)
    assert_same_bits(with_fma, reference.noise(words, kind, dtype == torch.float64))
    monkeypatch.setattr(reference.random, "fma", lambda a, b, c: a * b + c)
    without = reference.noise(words, kind, dtype == torch.float64)
    assert torch.allclose(without, with_fma, rtol=1e-5)
    assert (without != with_fma).sum() > 20


@floats
@pytest.mark.parametrize("dim", [0, 1])
def test_products_and_sums_are_not_contracted(dtype, dim):
    # Elements 0 and 16 share a lane: -(1 + 2e) * 1 + (1 + e)^2 is 0 when the square is rounded first and e^2 when it
    # is contracted into an fma. The result at element 1 is minus the sum.
    e = 2.0**-13 if dtype == torch.float32 else 2.0**-27
    y, grad = torch.zeros(2, 1024, dtype=dtype)
    y[0], grad[0] = 1, -(1 + 2 * e)
    y[16], grad[16] = 1 + e, 1 + e
    y[1] = 1
    shape = (-1, 2) if dim == 0 else (2, -1)
    y, grad = (torch.stack([v, v], dim=1 - dim).view(shape) for v in (y, grad))
    tau = torch.tensor(1.0)
    contracted = reference.random.fma(y.select(dim, 16), grad.select(dim, 16), -grad.new_tensor(1 + 2 * e))
    assert contracted.tolist() == [e * e] * 2
    for backward in (torch.ops.pysel.gumbel_softmax_backward, reference.gumbel_softmax_backward):
        assert backward(grad, y, tau, dim).select(dim, 1).tolist() == [0, 0]


# --- distribution ---


DISTRIBUTION = {"exponential": "expon", "gumbel": "gumbel_r", "logistic": "logistic"}  # scipy's names


def cdf(kind):
    return getattr(scipy_stats(), DISTRIBUTION[kind]).cdf


@kinds
@floats
def test_noise_has_its_distribution(kind, dtype):
    def check(noise):
        return {"all": kolmogorov_smirnov(noise, cdf(kind)), "tail": kolmogorov_smirnov(*tail_of(noise, kind))}

    words = words_of(0, 400_000)
    noise = native(words, kind, dtype)
    accept(check(noise))
    reject(check(noise * 1.03))
    reject(check(noise + 0.03))
    other = {"exponential": "gumbel", "gumbel": "logistic", "logistic": "gumbel"}[kind]
    reject(check(native(words, other, dtype)))
    # uniforms with the 11 bits of a half: right in the middle, wrong in the tail
    reject(check(native(words >> 53 << 53 | 1 << 52, kind, dtype)))


def tail_of(noise, kind):
    """The noise that wins races, the outermost 1 %, and its distribution given that."""
    edge = {"exponential": scipy_stats().expon.ppf(0.01)} | {
        "gumbel": scipy_stats().gumbel_r.ppf(0.99),
        "logistic": scipy_stats().logistic.ppf(0.99),
    }
    if kind == "exponential":
        return noise[noise < edge[kind]], lambda x: cdf(kind)(x) / 0.01
    return noise[noise > edge[kind]], lambda x: (cdf(kind)(x) - 0.99) / 0.01
