#pragma once

// log and exp by fixed polynomials, so that every compiler, instruction set and GPU gives the same bits. They rest on
// IEEE add, multiply, divide and fma alone; translation units are compiled with contraction off, and an fma stands
// only where it is written. Coefficients: weighted minimax fits, relative error of the polynomial below 2^-27.8
// (float) and 2^-56.8 (double).

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace pysel {

template <typename To, typename From>
PYSEL_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
#ifdef __CUDA_ARCH__
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
#else
  return __builtin_bit_cast(To, from);
#endif
}

PYSEL_HD float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
PYSEL_HD double fma_(double a, double b, double c) { return __builtin_fma(a, b, c); }

// A table that device code may read, too: what a function returns, unlike a static array.
template <typename T, int N>
struct Coefficients {
  T c[N];
};

template <typename T>
struct Float;

template <>
struct Float<float> {
  using Bits = uint32_t;
  using Int = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr Int kBias = 127;
  static constexpr Int kSqrtHalf = 0x3f3504f3;  // bits of sqrt(1/2)
  static constexpr float kSmallestNormal = 0x1p-126f;
  static constexpr float kLargest = 0x1.fffffep+127f;
  static constexpr float kSubnormalScale = 0x1p25f;
  static constexpr Int kSubnormalShift = 25;
  static constexpr float kLn2Hi = 0x1.62e400p-1f;  // 9 trailing zero bits: exact times an exponent
  static constexpr float kLn2Lo = 0x1.7f7d1cp-20f;
  static constexpr float kInvLn2 = 0x1.715476p+0f;
  static constexpr float kRoundMagic = 0x1.8p+23f;  // adding it rounds to an integer held in the low bits
  static constexpr float kExpMin = -104.0f;         // exp rounds to zero from here on
  PYSEL_HD static constexpr Coefficients<float, 9> log() {
    return {{-0x1.fffff8p-2f, 0x1.555550p-2f, -0x1.000428p-2f, 0x1.99a400p-3f, -0x1.5426fep-3f, 0x1.227056p-3f,
             -0x1.0f39f0p-3f, 0x1.085240p-3f, -0x1.383c1cp-4f}};
  }
  PYSEL_HD static constexpr Coefficients<float, 5> exp() {
    return {{0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239e2p-7f, 0x1.6a2434p-10f}};
  }
};

template <>
struct Float<double> {
  using Bits = uint64_t;
  using Int = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr Int kBias = 1023;
  static constexpr Int kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kSmallestNormal = 0x1p-1022;
  static constexpr double kLargest = 0x1.fffffffffffffp+1023;
  static constexpr double kSubnormalScale = 0x1p54;
  static constexpr Int kSubnormalShift = 54;
  static constexpr double kLn2Hi = 0x1.62e42fefa3800p-1;
  static constexpr double kLn2Lo = 0x1.ef35793c76730p-45;
  static constexpr double kInvLn2 = 0x1.71547652b82fep+0;
  static constexpr double kRoundMagic = 0x1.8p+52;
  static constexpr double kExpMin = -746.0;
  PYSEL_HD static constexpr Coefficients<double, 20> log() {
    return {{-0x1.0000000000003p-1, 0x1.555555555551ep-2, -0x1.fffffffffdc7fp-3, 0x1.99999999a1193p-3,
             -0x1.55555556f3e24p-3, 0x1.249249227c32ep-3, -0x1.fffffeef07487p-4, 0x1.c71c71bcaa15fp-4,
             -0x1.9999c9ed6ff76p-4, 0x1.745d48f999627p-4, -0x1.5550662da7a15p-4, 0x1.3b0a79fc5169bp-4,
             -0x1.24dcac106718bp-4, 0x1.11dbc091d1a9ep-4, -0x1.fb704680534d1p-5, 0x1.cf8bf37cc2738p-5,
             -0x1.d120bf03fd001p-5, 0x1.0b7f4bda4c98dp-4, -0x1.ec2efa0aecc58p-5, 0x1.acfabb8ffdacap-6}};
  }
  PYSEL_HD static constexpr Coefficients<double, 10> exp() {
    return {{0x1.000000000000ap-1, 0x1.55555555554fap-3, 0x1.555555555087dp-5, 0x1.1111111127be7p-7,
             0x1.6c16c1842a0ffp-10, 0x1.a01a012a570b6p-13, 0x1.a0199a0c691c3p-16, 0x1.71df2553cf019p-19,
             0x1.28ad72cc49578p-22, 0x1.ad7f6c633011bp-26}};
  }
};

// c[0] + x (c[1] + x (c[2] + ...))
template <typename T, int N>
PYSEL_HD T horner(Coefficients<T, N> table, T x) {
  T y = table.c[N - 1];
#ifdef __CUDA_ARCH__
#pragma unroll
#elif !defined(__CUDACC__)
#pragma GCC unroll 32
#endif
  for (int i = N - 2; i >= 0; --i) y = fma_(y, x, table.c[i]);
  return y;
}

// x = 2^exponent (1 + fraction) with 1 + fraction in [sqrt(1/2), sqrt(2)).
template <typename T>
struct LogSplit {
  T fraction;
  T exponent;
};

template <typename T>
PYSEL_HD T log_of(LogSplit<T> x) {
  using F = Float<T>;
  const T f = x.fraction;
  const T log1p_f = fma_(f * f, horner(F::log(), f), f);
  return fma_(x.exponent, F::kLn2Hi, fma_(x.exponent, F::kLn2Lo, log1p_f));
}

// x: positive, finite, normal.
template <typename T>
PYSEL_HD LogSplit<T> split_normal(T x) {
  using F = Float<T>;
  using Int = typename F::Int;
  const Int shifted = bit_cast<Int>(x) - F::kSqrtHalf;
  const Int mantissa = (shifted & ((Int{1} << F::kMantissa) - 1)) + F::kSqrtHalf;
  // by way of 32 bits, which every instruction set converts in vectors
  constexpr int kHigh = 8 * (sizeof(T) - sizeof(int32_t));
  const auto exponent = static_cast<int32_t>(shifted >> kHigh) >> (F::kMantissa - kHigh);
  return {bit_cast<T>(mantissa) - T{1}, static_cast<T>(exponent)};
}

// 1 - v for v in [0, 1/2], with no cancellation: 1 - 2 v is exact where it is used.
template <typename T>
PYSEL_HD LogSplit<T> split_complement(T v) {
  const bool half = v > T(0.29289321881345254);
  return {half ? T{1} - T{2} * v : -v, half ? T{-1} : T{0}};
}

template <typename T>
PYSEL_HD T log_normal(T x) {
  return log_of(split_normal(x));
}

// log of any x: -inf at zero of either sign, +inf at +inf, NaN below zero and at NaN; right for subnormals.
template <typename T>
PYSEL_HD T log_any(T x) {
  using F = Float<T>;
  const bool tiny = x < F::kSmallestNormal;
  LogSplit<T> s = split_normal(tiny ? x * F::kSubnormalScale : x);
  s.exponent = s.exponent - (tiny ? T(F::kSubnormalShift) : T{0});
  const T inf = T(__builtin_inf());
  const T finite = log_of(s);
  const T special = x == T{0} ? -inf : (x == inf ? inf : T(__builtin_nan("")));
  return ((x > T{0}) & (x < inf)) ? finite : special;
}

// log(1 + x), right for small x too: -inf at -1, +inf at +inf, NaN below -1 and at NaN. Only the exponent is that of
// the rounded sum: 1 + fraction = (1 + x) 2^-exponent is taken from x itself, unless x is so large that it makes no
// difference.
template <typename T>
PYSEL_HD T log1p_any(T x) {
  using F = Float<T>;
  using Int = typename F::Int;
  const T y = T{1} + x;
  LogSplit<T> s = split_normal(y);
  const Int exponent = (bit_cast<Int>(y) - F::kSqrtHalf) >> F::kMantissa;
  const T scale = bit_cast<T>((F::kBias - exponent) << F::kMantissa);
  s.fraction = s.exponent > T(F::kMantissa) ? s.fraction : fma_(x, scale, scale - T{1});
  const T inf = T(__builtin_inf());
  const T finite = log_of(s);
  const T special = y == T{0} ? -inf : (y == inf ? inf : T(__builtin_nan("")));
  return ((y > T{0}) & (y < inf)) ? finite : special;
}

// exp(x) = value 2^power with value in about [sqrt(1/2), sqrt(2)].
template <typename T>
struct ExpSplit {
  T value;
  typename Float<T>::Int power;
};

// |x| below 2^11.
template <typename T>
PYSEL_HD ExpSplit<T> split_exp(T x) {
  using F = Float<T>;
  using Int = typename F::Int;
  const T shifted = fma_(x, F::kInvLn2, F::kRoundMagic);
  const T n = shifted - F::kRoundMagic;
  const T r = fma_(n, -F::kLn2Lo, fma_(n, -F::kLn2Hi, x));
  return {fma_(r * r, horner(F::exp(), r), r) + T{1}, bit_cast<Int>(shifted) - bit_cast<Int>(F::kRoundMagic)};
}

// 2^power, which is normal.
template <typename T>
PYSEL_HD T power_of_two(typename Float<T>::Int power) {
  return bit_cast<T>((power + Float<T>::kBias) << Float<T>::kMantissa);
}

// exp(x) for x <= 0; NaN stays NaN.
template <typename T>
PYSEL_HD T exp_nonpositive(T x) {
  const ExpSplit<T> e = split_exp(x < Float<T>::kExpMin ? Float<T>::kExpMin : x);
  // 2^power in two factors, both normal, so that subnormal results round once
  const auto half = e.power >> 1;
  return e.value * power_of_two<T>(half) * power_of_two<T>(e.power - half);
}

// s exp(x) for any x and s, wherever exp(x) alone would leave the range; an infinite s stays infinite.
template <typename T>
PYSEL_HD T times_exp(T s, T x) {
  using Int = typename Float<T>::Int;
  constexpr T most = sizeof(T) == 4 ? T{218} : T{2036};  // beyond it every finite s becomes 0, or infinite
  constexpr Int normal = Float<T>::kBias - 2, step = sizeof(T) == 4 ? 96 : 960;
  const ExpSplit<T> e = split_exp(x < -most ? -most : (x > most ? most : x));
  Int power = e.power;
  // what 2^power has too much for a normal factor goes to s, which it makes inexact only where the result is 0
  auto shift = [&] {
    const Int excess = (step & -Int{power > normal}) - (step & -Int{power < -normal});
    s *= power_of_two<T>(excess);
    power -= excess;
  };
  shift();
  shift();
  const T result = s * (e.value * power_of_two<T>(power));
  return x == x ? result : T(__builtin_nan(""));
}

}  // namespace pysel
