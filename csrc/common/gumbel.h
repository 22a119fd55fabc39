#pragma once

// What the Gumbel kernels of every device share beside the noise itself.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/math.h"

namespace pysel {

// tau as a divisor: one that the type cannot hold becomes neither zero nor infinite.
template <typename A>
PYSEL_HD A divisor(double tau) {
  constexpr double smallest = Float<A>::kSmallestNormal, largest = Float<A>::kLargest;
  return static_cast<A>(tau < smallest ? smallest : tau > largest ? largest : tau);
}

// exp(t) / e times a power of two, for softmax(x + g) at tau = 1: as g = -log(e), it is exp(x) / e over its sum, with
// one logarithm instead of two, and no x + g that rounds. t <= 0 is x less the row's largest, and e an exponential
// variate, from 2^-65 to 45.1. The power keeps normal whatever is not 0 in the end, and a sum of 2^32 of the largest,
// 2^96, finite. From -153.4 on (-794.6 in double) all is 0 in the end: the smallest e, beside a largest x with the
// largest e, leaves less than half a subnormal.
template <typename A>
PYSEL_HD A exp_over(A t, A e) {
  constexpr A least = sizeof(A) == 4 ? A(-153.4) : A(-794.6);
  constexpr int up = sizeof(A) == 4 ? 95 : 128;  // 2^(power + up) is normal
  const ExpSplit<A> s = split_exp(t < least ? least : t);
  return s.value / (e * A{0x1p64}) * power_of_two<A>(s.power + up);
}

// sigmoid(t) from exp of -|t|, so that nothing overflows.
template <typename A>
PYSEL_HD A sigmoid(A t) {
  const A e = exp_nonpositive(t > A{0} ? -t : t);
  const A w = A{1} / (A{1} + e);
  return t > A{0} ? w : e * w;
}

// The soft gate's range in the output type, [smallest normal, largest below 1].
template <typename T>
struct GateRange;
template <>
struct GateRange<float> {
  static constexpr float low = 0x1p-126f, high = 0x1.fffffep-1f;
};
template <>
struct GateRange<double> {
  static constexpr double low = 0x1p-1022, high = 0x1.fffffffffffffp-1;
};
template <>
struct GateRange<torch::headeronly::BFloat16> {
  static constexpr float low = 0x1p-126f, high = 0x1.fep-1f;
};
template <>
struct GateRange<torch::headeronly::Half> {
  static constexpr float low = 0x1p-14f, high = 0x1.ffcp-1f;
};

}  // namespace pysel
