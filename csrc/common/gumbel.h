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
