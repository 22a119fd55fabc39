#pragma once

// What the kernels of Gumbel samples share: their temperature, what is refused of logits, and rows of these.

#include "common/gumbel.h"
#include "cuda/rows.cuh"

namespace pysel {

constexpr unsigned kBlock = 256;

template <typename A>
PYSEL_HD A infinity() {
  return static_cast<A>(__builtin_inf());
}

template <typename A>
PYSEL_HD A not_a_number() {
  return static_cast<A>(__builtin_nan(""));
}

// A temperature that lies on the device, or whose value the host has read and checked.
struct TauArgument {
  const void* pointer = nullptr;
  ScalarType type;
  double value = 0;
  bool zero_allowed;
  Report bad;

  TauArgument(const char* op, const Tensor& tau, bool zero_allowed, const Tensor& input, Report bad)
      : type(tau.scalar_type()), zero_allowed(zero_allowed), bad(bad) {
    check_value(tau.dim() == 0, op, ": tau must be a number or a 0-d tensor, got shape ", shape(tau));
    const void* data = tau.data_ptr();
    dispatch_floating(op, "tau", tau, [&]<typename T>() {
      if (on_host(tau)) value = static_cast<double>(*static_cast<const T*>(data));
    });
    if (on_host(tau)) {
      check_value(permitted(value), op, ": tau must be finite and above 0 (0 only with hard=True), got ", value);
    } else {
      check_device(op, "tau", tau, input);
      pointer = data;
    }
  }

  PYSEL_HD bool permitted(double tau) const {
    return tau < infinity<double>() && (tau > 0 || (tau == 0 && zero_allowed));
  }

  // NaN in place of a value that must be refused.
  __device__ double read() const {
    if (pointer == nullptr) return value;
    const double tau = type == ScalarType::Double  ? *static_cast<const double*>(pointer)
                       : type == ScalarType::Float ? static_cast<double>(*static_cast<const float*>(pointer))
                       : type == ScalarType::Half  ? static_cast<double>(*static_cast<const Half*>(pointer))
                                                   : static_cast<double>(*static_cast<const BFloat16*>(pointer));
    if (permitted(tau)) return tau;
    if (bad && thread_in_grid() == 0) bad();
    return not_a_number<double>();
  }
};

// Logits that a row must not have.
struct LogitReports {
  Report plus_inf;
  Report only_minus_inf;

  // Whether a row is permitted, by the largest of its perturbed logits, NaN apart. The warp calls it together; the
  // lanes that speak for a row report.
  template <typename A>
  __device__ bool permit(A max, bool nan, bool speaks) const {
    const bool checked = speaks && plus_inf;
    const bool plus = checked && max == infinity<A>(), minus = checked && max == -infinity<A>() && !nan;
    plus_inf.of_warp(plus);
    only_minus_inf.of_warp(minus);
    return !plus && !minus;
  }
};

// x + g, where g is the Gumbel noise of exponential variates.
template <typename A>
__device__ void perturb(const Row& row, std::int64_t quad, A (&z)[4]) {
  A e[4];
  row.exponentials(quad, e);
  for (int i = 0; i < 4; ++i) z[i] = z[i] - log_normal(e[i]);
}

// [outer, width, inner] -> [outer, inner, width], or back: in memory, not as a view.
inline Tensor transposed(const Tensor& t, std::int64_t outer, std::int64_t rows, std::int64_t columns) {
  const std::vector<std::int64_t> size{outer, rows, columns};
  const Tensor view = torch::stable::view(t, {size.data(), size.size()});
  return torch::stable::contiguous(torch::stable::transpose(view, 1, 2));
}

// Logits along the last dim: those given, or, where dim is another one, copies that are transposed as their exponential
// variates are.
struct LogitRows {
  Tensor x;
  std::int64_t rows, width;
  NoiseArgument noise;
  std::optional<Tensor> exponentials;

  LogitRows(const Call& call, const char* op, const Tensor& logits, const Layout& layout, const NoiseArgument& noise);
};

// The index of each row's largest x + g; -1 if the row must be refused, or is NaN and `nan_is_none`.
void argmax_rows(const Call& call, const char* op, const LogitRows& logits, const LogitReports& reports,
                 bool nan_is_none, std::int64_t* out);

}  // namespace pysel
