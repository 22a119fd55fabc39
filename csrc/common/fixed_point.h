#pragma once

// Weights in fixed point, so that their sums are exact and in any order the same. The largest takes as many bits as
// leave the sum of n of them below 2^64.

#include "common/math.h"

namespace pysel {

// High 64 bits: of a uniform and a sum, the target that the uniform picks below the sum.
inline uint64_t high_product(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

struct FixedPoint {
  bool log_weights;
  double max;             // of the log weights
  double scale0, scale1;  // two exact factors, because 2^shift alone may overflow
  double limit;

  PYSEL_HD FixedPoint(bool log_weights, double max, int64_t n) : log_weights(log_weights), max(max) {
    int bits = 64;
    for (int64_t reach = 1; reach < n; reach *= 2) --bits;
    const int shift = bits - (log_weights ? 1 : exponent(max));
    scale0 = power(shift >> 1);
    scale1 = power(shift - (shift >> 1));
    limit = bits == 64 ? 0x1p64 - 0x1p11 : power(bits) - 1.0;
  }

  // A weight that has become a multiple of 2^-shift, before rounding.
  PYSEL_HD double scaled(double weight) const {
    const double x = log_weights ? exp_nonpositive(weight - max) : weight;
    const double y = x * scale0 * scale1;
    const double bounded = y > limit ? limit : y;
    return bounded > 0 ? bounded : 0;  // also for unchecked NaN and negative weights
  }

  PYSEL_HD uint64_t operator()(double weight) const {
    const double y = scaled(weight);
    // from 2^52 on every double is an integer
    return static_cast<uint64_t>(y < 0x1p52 ? (y + 0x1p52) - 0x1p52 : y);
  }

 private:
  // frexp's: x = fraction 2^exponent with fraction in [1/2, 1); 0 where there is none.
  PYSEL_HD static int exponent(double x) {
    const bool tiny = x < 0x1p-1022;
    const double normal = tiny ? x * 0x1p54 : x;
    if (!(normal > 0)) return 0;
    return static_cast<int>(bit_cast<uint64_t>(normal) >> 52 & 0x7ff) - 1022 - (tiny ? 54 : 0);
  }
  PYSEL_HD static double power(int n) { return bit_cast<double>(static_cast<uint64_t>(n + 1023) << 52); }
};

}  // namespace pysel
