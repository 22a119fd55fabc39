"""The random stream, log, exp and the noise in plain torch: the same bits as csrc/common on any device.

32-bit words are held in int64. ``fma`` is emulated exactly: the product and the sum are kept with their rounding
errors, and the sum is rounded to odd before it is rounded to the result's precision (Boldo and Melquiond, IEEE Trans.
Computers 57(4), 2008), so there are no double-rounding exceptions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysel import _checks

HIGH, LOW, ORDER, WITH_REPLACEMENT, DERIVE, PERMUTATION = range(6)
"""Streams: see csrc/common/philox.h."""

_MASK = 0xFFFFFFFF
_TAIL = 1 << 20


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # int64 multiplication wraps, which leaves all 64 bits of the unsigned product in place
    product = b * a
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 of counters (four int64 tensors of 32-bit words) under an int64 seed."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _blocks(key: Tensor, stream: int, index: Tensor) -> Tensor:
    """Blocks of a stream by number: int64 [n] -> [n, 4]."""
    key = key.to(index.device).view(torch.int64)
    counter = key[1] + index
    zero = torch.zeros_like(counter)
    return torch.stack(philox((counter & _MASK, (counter >> 32) & _MASK, zero + stream, zero), key[0]), dim=-1)


def _range(key: Tensor, first: int, n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int64, device=key.device) + first


def random_words(key: Tensor, stream: int, start: int, n: int) -> Tensor:
    """Elements [start, start + n) of a stream of 32-bit words, as int64 [n]."""
    op = "random_words"
    if not 0 <= stream <= PERMUTATION:
        raise ValueError(f"{op}: stream must be between 0 and 5, got {stream}")
    _checks.start(op, start)
    if n < 0:
        raise ValueError(f"{op}: n must be at least 0, got {n}")
    first = start >> 2
    words = _blocks(key, stream, _range(key, first, ((start + n + 3) >> 2) - first))
    return words.flatten()[start & 3 : (start & 3) + n].clone()


def words64(key: Tensor, stream: int, items: Tensor) -> Tensor:
    """64-bit words of a stream by number: int64 of any shape -> the int64 with the same bits."""
    item = items.flatten()
    words = _blocks(key, stream, item >> 1)
    high, low = (words.gather(1, (2 * (item & 1) + j).unsqueeze(1)).squeeze(1) for j in (0, 1))
    return ((high << 32) | low).view(items.shape)


def unsigned_order(x: Tensor) -> Tensor:
    """int64 whose signed order is the unsigned order of x's bits."""
    return x ^ -(2**63)


def child(key: Tensor, stream: int, index: int) -> Tensor:
    """The key, int64 [2], that a block of a stream is."""
    w = _blocks(key, stream, _range(key, index, 1))[0]
    return torch.stack([(w[0] << 32) | w[1], (w[2] << 32) | w[3]])


def split(key: Tensor, n: int) -> Tensor:
    """int64 [n, 2]: see :func:`pysel.split`."""
    if n < 0:
        raise ValueError(f"split: n must be at least 0, got {n}")
    w = _blocks(key, DERIVE, _range(key, 0, n))
    return torch.stack([(w[:, 0] << 32) | w[:, 1], (w[:, 2] << 32) | w[:, 3]], dim=1)


def fold_in(key: Tensor, data: int) -> Tensor:
    """int64 [2]: see :func:`pysel.fold_in`."""
    if data < 0:
        raise ValueError(f"fold_in: data must be at least 0, got {data}")
    return child(key, DERIVE, data)


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b`` and its rounding error (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        c = x * 134217729.0  # 2^27 + 1
        high = c - (c - x)
        return high, x - high

    p = a * b
    (a1, a0), (b1, b0) = halves(a), halves(b)
    return p, ((a1 * b1 - p) + a1 * b0 + a0 * b1) + a0 * b0


def _round_to_odd(s: Tensor, error: Tensor) -> Tensor:
    """``s + error`` rounded to odd, for float64 ``s`` rounded to nearest with that error."""
    inexact = (error != 0) & torch.isfinite(error) & ((s.view(torch.int64) & 1) == 0)
    toward = torch.where(error > 0, math.inf, -math.inf).to(s.dtype)
    return torch.where(inexact, torch.nextafter(s, toward), s)


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """``a * b + c`` with one rounding, float32 or float64."""
    wide = [torch.as_tensor(v, dtype=torch.float64, device=a.device) for v in (a, b, c)]
    x, y, z = torch.broadcast_tensors(*wide)
    if a.dtype == torch.float32:
        s, error = two_sum(x * y, z)  # the product of two float32 is exact in float64
        return _round_to_odd(s, error).to(torch.float32)
    product_high, product_low = _two_product(x, y)
    sum_high, sum_low = two_sum(z, product_low)
    high, low = two_sum(product_high, sum_high)
    exact = high + _round_to_odd(*two_sum(sum_low, low))
    return torch.where(torch.isfinite(exact), exact, x * y + z)


class _Float32:
    bits, mantissa, bias, sqrt_half = torch.int32, 23, 127, 0x3F3504F3
    smallest_normal, subnormal_scale, subnormal_shift = 2.0**-126, 2.0**25, 25
    ln2_high, ln2_low, inv_ln2 = map(float.fromhex, ("0x1.62e400p-1", "0x1.7f7d1cp-20", "0x1.715476p+0"))
    round_magic, exp_min = 1.5 * 2.0**23, -104.0
    log = tuple(
        map(
            float.fromhex,
            "-0x1.fffff8p-2 0x1.555550p-2 -0x1.000428p-2 0x1.99a400p-3 -0x1.5426fep-3 "
            "0x1.227056p-3 -0x1.0f39f0p-3 0x1.085240p-3 -0x1.383c1cp-4".split(),
        )
    )
    exp = tuple(
        map(
            float.fromhex,
            "0x1.fffffcp-2 0x1.555492p-3 0x1.5558f2p-5 0x1.1239e2p-7 0x1.6a2434p-10".split(),
        )
    )


class _Float64:
    bits, mantissa, bias, sqrt_half = torch.int64, 52, 1023, 0x3FE6A09E667F3BCD
    smallest_normal, subnormal_scale, subnormal_shift = 2.0**-1022, 2.0**54, 54
    ln2_high, ln2_low, inv_ln2 = map(
        float.fromhex, ("0x1.62e42fefa3800p-1", "0x1.ef35793c76730p-45", "0x1.71547652b82fep+0")
    )
    round_magic, exp_min = 1.5 * 2.0**52, -746.0
    log = tuple(
        map(
            float.fromhex,
            "-0x1.0000000000003p-1 0x1.555555555551ep-2 -0x1.fffffffffdc7fp-3 0x1.99999999a1193p-3 "
            "-0x1.55555556f3e24p-3 0x1.249249227c32ep-3 -0x1.fffffeef07487p-4 0x1.c71c71bcaa15fp-4 "
            "-0x1.9999c9ed6ff76p-4 0x1.745d48f999627p-4 -0x1.5550662da7a15p-4 0x1.3b0a79fc5169bp-4 "
            "-0x1.24dcac106718bp-4 0x1.11dbc091d1a9ep-4 -0x1.fb704680534d1p-5 0x1.cf8bf37cc2738p-5 "
            "-0x1.d120bf03fd001p-5 0x1.0b7f4bda4c98dp-4 -0x1.ec2efa0aecc58p-5 0x1.acfabb8ffdacap-6".split(),
        )
    )
    exp = tuple(
        map(
            float.fromhex,
            "0x1.000000000000ap-1 0x1.55555555554fap-3 0x1.555555555087dp-5 0x1.1111111127be7p-7 "
            "0x1.6c16c1842a0ffp-10 0x1.a01a012a570b6p-13 0x1.a0199a0c691c3p-16 0x1.71df2553cf019p-19 "
            "0x1.28ad72cc49578p-22 0x1.ad7f6c633011bp-26".split(),
        )
    )


def _traits(x: Tensor) -> type[_Float32] | type[_Float64]:
    return _Float64 if x.dtype == torch.float64 else _Float32


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    y = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y = fma(y, x, c)
    return y


def _log_of(fraction: Tensor, exponent: Tensor) -> Tensor:
    f = _traits(fraction)
    log1p = fma(fraction * fraction, _horner(f.log, fraction), fraction)
    return fma(exponent, f.ln2_high, fma(exponent, f.ln2_low, log1p))


def _split_normal(x: Tensor) -> tuple[Tensor, Tensor]:
    f = _traits(x)
    shifted = x.contiguous().view(f.bits) - f.sqrt_half
    mantissa = (shifted & ((1 << f.mantissa) - 1)) + f.sqrt_half
    return mantissa.view(x.dtype) - 1, (shifted >> f.mantissa).to(x.dtype)


def _split_complement(v: Tensor) -> tuple[Tensor, Tensor]:
    limit = torch.tensor(0.29289321881345254, dtype=v.dtype, device=v.device)
    half = v > limit
    return torch.where(half, 1 - 2 * v, -v), torch.where(half, -1.0, 0.0).to(v.dtype)


def log(x: Tensor) -> Tensor:
    """log of any x, right for subnormals; -inf at 0, NaN below."""
    f = _traits(x)
    tiny = x < f.smallest_normal
    fraction, exponent = _split_normal(torch.where(tiny, x * f.subnormal_scale, x))
    y = _log_of(fraction, exponent - torch.where(tiny, float(f.subnormal_shift), 0.0).to(x.dtype))
    y = torch.where(x == math.inf, math.inf, y)
    y = torch.where(x == 0, -math.inf, y)
    return torch.where((x < 0) | torch.isnan(x), math.nan, y).to(x.dtype)


def log1p(x: Tensor) -> Tensor:
    """log(1 + x), right for small x too; -inf at -1, NaN below."""
    f = _traits(x)
    y = 1 + x
    fraction, exponent = _split_normal(y)
    scale = ((f.bias - exponent.to(f.bits)) << f.mantissa).view(x.dtype)
    result = _log_of(torch.where(exponent > f.mantissa, fraction, fma(x, scale, scale - 1)), exponent)
    result = torch.where(y == math.inf, math.inf, result)
    result = torch.where(y == 0, -math.inf, result)
    return torch.where((y < 0) | torch.isnan(y), math.nan, result).to(x.dtype)


def _split_exp(x: Tensor) -> tuple[Tensor, Tensor]:
    """exp(x) = value 2**power, as value and power."""
    f = _traits(x)
    shifted = fma(x, f.inv_ln2, f.round_magic)
    n = shifted - f.round_magic
    r = fma(n, -f.ln2_low, fma(n, -f.ln2_high, x))
    magic = torch.tensor(f.round_magic, dtype=x.dtype, device=x.device).view(f.bits)
    return fma(r * r, _horner(f.exp, r), r) + 1, shifted.view(f.bits) - magic


def _power_of_two(power: Tensor, like: Tensor) -> Tensor:
    f = _traits(like)
    return ((power + f.bias) << f.mantissa).view(like.dtype)


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp(x) for x <= 0; NaN stays NaN."""
    value, power = _split_exp(torch.where(x < _traits(x).exp_min, _traits(x).exp_min, x).to(x.dtype))
    half = power >> 1
    return torch.where(torch.isnan(x), x, value * _power_of_two(half, x) * _power_of_two(power - half, x))


def exp_over(t: Tensor, e: Tensor) -> Tensor:
    """exp(t) / e times a power of two, for t <= 0 and exponential variates e: see csrc/common/gumbel.h."""
    least, up = (-153.4, 95) if t.dtype == torch.float32 else (-794.6, 128)
    value, power = _split_exp(torch.where(t < least, least, t).to(t.dtype))
    return torch.where(torch.isnan(t), t, value / (e * 2.0**64) * _power_of_two(power + up, t))


def times_exp(s: Tensor, x: Tensor) -> Tensor:
    """s exp(x) for any x and s, wherever exp(x) alone would leave the range; an infinite s stays infinite."""
    most, step = (218.0, 96) if x.dtype == torch.float32 else (2036.0, 960)
    normal = _traits(x).bias - 2
    value, power = _split_exp(x.clamp(-most, most))
    for _ in range(2):
        excess = torch.where(power < -normal, -step, torch.where(power > normal, step, 0)).to(power.dtype)
        s = s * _power_of_two(excess, x)
        power = power - excess
    return torch.where(torch.isnan(x), torch.nan, s * (value * _power_of_two(power, x)))


def _uniform(high: Tensor, low: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Distance of U to the nearer end of (0, 1), and whether that is 1."""
    upper = high >= 1 << 31
    near_high = torch.where(upper, _MASK - high, high)
    near_low = torch.where(upper, _MASK - low, low)
    if dtype == torch.float64:
        return (((near_high << 32) | near_low).to(dtype) + 0.5) * 2.0**-64, upper
    from_high = (near_high.to(dtype) + 0.5) * 2.0**-32
    from_both = fma(near_high.to(dtype), 2.0**32, near_low.to(dtype) + 0.5) * 2.0**-64
    return torch.where(near_high < _TAIL, from_both, from_high), upper


def _exponential(v: Tensor, upper: Tensor) -> Tensor:
    low, high = _split_normal(v), _split_complement(v)
    return -_log_of(torch.where(upper, high[0], low[0]), torch.where(upper, high[1], low[1]))


def _logistic(v: Tensor, upper: Tensor) -> Tensor:
    y = _log_of(*_split_normal(v)) - _log_of(*_split_complement(v))
    return torch.where(upper, -y, y)


def _noise(high: Tensor, low: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    v, upper = _uniform(high, low, dtype)
    if kind == "logistic":
        return _logistic(v, upper)
    e = _exponential(v, upper)
    return e if kind == "exponential" else -_log_of(*_split_normal(e))


def noise(bits: Tensor, kind: str, double_precision: bool) -> Tensor:
    """Noise of given 64-bit words M (int64 with the same bits): kind exponential, gumbel or logistic."""
    _checks.choice("noise", "kind", kind, ("exponential", "gumbel", "logistic"))
    dtype = torch.float64 if double_precision else torch.float32
    return _noise((bits >> 32) & _MASK, bits & _MASK, kind, dtype)


def noise_like(x: Tensor, key: Tensor, start: int, kind: str) -> Tensor:
    """Noise of elements [start, start + x.numel()), in x's shape; float64 for float64 x, else float32."""
    key = key.to(x.device)
    high, low = (random_words(key, stream, start, x.numel()) for stream in (HIGH, LOW))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _noise(high, low, kind, dtype).view(x.shape)
