#pragma once

// Bits -> uniform -> exponential, Gumbel, logistic.
//
// The 64 bits of an element are M = high : low, and U = (M + 1/2) 2^-64 lies strictly inside (0, 1). Everything is
// evaluated from the nearer end of (0, 1): `v` is the distance to it, taken in integers, so both tails keep full
// relative precision and no noise is infinite. Away from the ends (a fraction 1 - 2^-11 of all draws) float needs the
// high word alone, and v = (high + 1/2) 2^-32.

#include "common/math.h"
#include "common/philox.h"

namespace pysel {

constexpr uint32_t kTail = 1u << 20;  // closer than this to an end, float takes both words

PYSEL_HD bool in_tail(uint32_t high) { return high + kTail < 2 * kTail; }

// Distance of U to the nearer end of (0, 1), and which end that is.
template <typename T>
struct Uniform {
  T v;         // in (0, 1/2]
  bool upper;  // U = 1 - v
};

// Away from the ends; float only.
PYSEL_HD Uniform<float> uniform_from_high(uint32_t high) {
  const int32_t sign = static_cast<int32_t>(high) >> 31;  // all ones in the upper half
  const int32_t near = static_cast<int32_t>(high) ^ sign;
  return {(static_cast<float>(near) + 0.5f) * 0x1p-32f, sign != 0};
}

PYSEL_HD Uniform<float> uniform_from_tail(uint32_t high, uint32_t low) {
  const bool upper = static_cast<int32_t>(high) < 0;
  const uint32_t near_high = upper ? ~high : high;
  const uint32_t near_low = upper ? ~low : low;
  const float v = fma_(static_cast<float>(near_high), 0x1p32f, static_cast<float>(near_low) + 0.5f);
  return {v * 0x1p-64f, upper};
}

template <typename T>
PYSEL_HD Uniform<T> uniform(uint32_t high, uint32_t low);

template <>
PYSEL_HD Uniform<float> uniform<float>(uint32_t high, uint32_t low) {
  return in_tail(high) ? uniform_from_tail(high, low) : uniform_from_high(high);
}

template <>
PYSEL_HD Uniform<double> uniform<double>(uint32_t high, uint32_t low) {
  const int32_t sign = static_cast<int32_t>(high) >> 31;  // all ones in the upper half
  const int32_t near_high = static_cast<int32_t>(high) ^ sign;
  const uint32_t near_low = low ^ static_cast<uint32_t>(sign);
  // 63 bits, rounded once, by way of 32, which every instruction set converts in vectors
  const double low_half = bit_cast<double>(uint64_t{near_low} | 0x4330000000000000u) - 0x1p52;
  const double near = static_cast<double>(near_high) * 0x1p32 + low_half;
  return {(near + 0.5) * 0x1p-64, sign != 0};
}

template <typename T>
PYSEL_HD LogSplit<T> split_uniform(Uniform<T> u) {
  const LogSplit<T> low = split_normal(u.v);
  const LogSplit<T> high = split_complement(u.v);
  return {u.upper ? high.fraction : low.fraction, u.upper ? high.exponent : low.exponent};
}

// Exp(1): E = -log(U).
template <typename T>
PYSEL_HD T exponential(Uniform<T> u) {
  return -log_of(split_uniform(u));
}

// Gumbel(0, 1): g = -log(E).
template <typename T>
PYSEL_HD T gumbel(Uniform<T> u) {
  return -log_normal(exponential(u));
}

// Logistic(0, 1): log(U / (1 - U)).
template <typename T>
PYSEL_HD T logistic(Uniform<T> u) {
  const T l = log_normal(u.v) - log_of(split_complement(u.v));
  return u.upper ? -l : l;
}

// A float's bits, read as an integer, are its logarithm's chord between powers of two: 2^23 (127 + log2 x), and less in
// between by up to 2^23 0.0861.
constexpr float kChordScale = 0x1p-23f * 0.693147181f;
constexpr float kChordGap = 0.0861f * 0.693147181f;

// The chord of 2^31 (1 - U), from below. It bounds Gumbel noise from above: g = -log E with E = -log U >= 1 - U, so
// g <= (31 + 127) log 2 - kChordScale chord.
PYSEL_HD int32_t chord_of_rest(uint32_t high) {
  return pysel::bit_cast<int32_t>(static_cast<float>(static_cast<int32_t>((high ^ 0xffffffffu) >> 1)));
}

// What Gumbel noise of this high word cannot exceed, and a little for rounding.
PYSEL_HD float most_gumbel(uint32_t high) {
  return fma_(static_cast<float>(chord_of_rest(high)), -kChordScale, 158 * 0.693147181f + 1e-3f);
}

}  // namespace pysel
