#pragma once

// The arithmetic beside the noise itself and the argument checks of the Gumbel ops, the same on every device.

#include "common/math.h"
#include "common/tensor.h"

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
struct GateRange<BFloat16> {
  static constexpr float low = 0x1p-126f, high = 0x1.fep-1f;
};
template <>
struct GateRange<Half> {
  static constexpr float low = 0x1p-14f, high = 0x1.ffcp-1f;
};

// A soft sample has no limit at tau = 0.
PYSEL_HD bool tau_permitted(double tau, bool zero_allowed) {
  return tau <= Float<double>::kLargest && (tau > 0 || (tau == 0 && zero_allowed));
}

inline void check_tau(const char* op, const Tensor& tau) {
  check_value(tau.dim() == 0, op, ": tau must be a number or a 0-d tensor, got shape ", shape(tau));
  check_floating(op, "tau", tau);
}

// Where the host may read it.
inline double read_tau(const char* op, const Tensor& tau, bool zero_allowed) {
  check_tau(op, tau);
  check_value(tau.is_cpu(), op, ": tau must be a number or on the CPU like the input");
  const double value = dispatch_floating(
      op, "tau", tau, [&]<typename T>() { return static_cast<double>(*static_cast<const T*>(tau.data_ptr())); });
  check_value(tau_permitted(value, zero_allowed), op, ": tau must be finite and above 0 (0 only with hard=True), got ",
              value);
  return value;
}

// The caller's tensor for samples, which may be the logits.
inline void check_samples_out(const char* op, const Tensor& out, const Tensor& logits) {
  check_out(op, out, sizes(logits), logits.scalar_type(), logits);
  check_apart(op, out, "logits", logits, true);
}

// The shape of what gumbel_argmax gives.
inline std::vector<int64_t> check_argmax(const char* op, const Tensor& logits, int64_t dim, const Layout& layout) {
  std::vector<int64_t> size = sizes(logits);
  if (!size.empty()) size.erase(size.begin() + wrap_dim(op, dim, logits.dim()));
  check_index(layout.width > 0, op, ": dim must have at least one element, got shape ", shape(logits));
  return size;
}

// A gradient that comes back, beside what was given or what was made of it.
inline void check_gradient(const char* op, const Tensor& grad, const char* name, const Tensor& t) {
  check_floating(op, name, t);
  check_value(sizes(grad) == sizes(t), op, ": grad must have the shape of ", name, ", ", shape(t), ", got ",
              shape(grad));
  check_same_dtype(op, name, t, "grad", grad);
  check_device(op, "grad", grad, t);
}

}  // namespace pysel
