#pragma once

// What every op needs from torch's stable ABI, under short names.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/philox.h"

namespace pysel {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type arithmetic is done in: half types accumulate in float.
template <typename T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename T>
using Compute = typename ComputeType<T>::type;

// Calls an op of torch's. `stack` holds its arguments, then its results; each Tensor among these is a handle to
// release, which torch::stable::detail::to<Tensor> does.
inline void call_torch(const char* op, const char* overload, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack, TORCH_ABI_VERSION));
}

inline std::vector<int64_t> sizes(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }
inline const std::vector<int64_t>& sizes(const std::vector<int64_t>& size) { return size; }

// A shape as messages write it. Only a message that is needed is written, so that a check costs next to nothing.
template <typename Sized>
struct ShapeText {
  const Sized& of;

  friend std::ostream& operator<<(std::ostream& out, const ShapeText& text) {
    const char* between = "[";
    for (const int64_t size : sizes(text.of)) out << std::exchange(between, ", ") << size;
    return out << (*between == '[' ? "[]" : "]");
  }
};

template <typename Sized>
ShapeText<Sized> shape(const Sized& sized) {
  return {sized};
}

inline void check_floating(const char* op, const char* argument, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  check_value(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                  type == ScalarType::Half,
              op, ": ", argument, " must be float32, float64, bfloat16 or float16");
}

// f.template operator()<T>() for the tensor's floating type.
template <typename F>
auto dispatch_floating(const char* op, const char* argument, const Tensor& t, F f) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::Double:
      return f.template operator()<double>();
    case ScalarType::BFloat16:
      return f.template operator()<BFloat16>();
    default:
      check_floating(op, argument, t);
      return f.template operator()<Half>();
  }
}

inline void check_dtype(const char* op, const char* argument, const Tensor& t, ScalarType wanted, const char* name) {
  check_value(t.scalar_type() == wanted, op, ": ", argument, " must be ", name);
}

inline void check_same_dtype(const char* op, const char* a_name, const Tensor& a, const char* b_name, const Tensor& b) {
  check_value(a.scalar_type() == b.scalar_type(), op, ": ", b_name, " must have the dtype of ", a_name);
}

inline void check_device(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  check_value(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index(), op, ": ", argument,
              " must be on the device of the other arguments");
}

// Checks the caller's tensor for a result. The public functions bring a contiguous one.
inline void check_out(const char* op, const Tensor& out, const std::vector<int64_t>& size, ScalarType dtype,
                      const Tensor& like) {
  check_value(sizes(out) == size, op, ": out must have shape ", shape(size), ", got ", shape(out));
  check_value(out.scalar_type() == dtype && out.is_contiguous(), op,
              ": out must be contiguous and of the result's dtype");
  check_device(op, "out", out, like);
}

// Kernels read an argument while they write `out`, so that the two may share no memory. An argument whose elements are
// read in step with the writing may be `out` itself.
inline void check_apart(const char* op, const Tensor& out, const char* argument, const Tensor& t,
                        bool in_step = false) {
  if (out.numel() == 0 || t.numel() == 0) return;
  const auto to = reinterpret_cast<uintptr_t>(out.data_ptr()), from = reinterpret_cast<uintptr_t>(t.data_ptr());
  if (in_step && to == from && t.is_contiguous()) return;
  int64_t last = 0;  // strides are never negative
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  check_value(to + static_cast<uintptr_t>(out.numel()) * out.element_size() <= from ||
                  from + static_cast<uintptr_t>(last + 1) * t.element_size() <= to,
              op, ": out must share no memory with ", argument, in_step ? " unless it is the same tensor" : "");
}

// A key's two words, to be read by the host.
inline Key read_key(const Tensor& key) {
  const auto* data = static_cast<const int64_t*>(key.data_ptr());
  return {static_cast<uint64_t>(data[0]), static_cast<uint64_t>(data[key.stride(0)])};
}

// int64 and uint64 hold the same bits.
inline void check_key(const char* op, const Tensor& key) {
  check_value(key.scalar_type() == ScalarType::Long || key.scalar_type() == ScalarType::UInt64, op,
              ": key must be int64");
  check_value(key.dim() == 1 && key.size(0) == 2, op, ": key must have shape [2], got ", shape(key));
}

inline int64_t wrap_dim(const char* op, int64_t dim, int64_t ndim) {
  const int64_t n = ndim > 0 ? ndim : 1;
  check_index(-n <= dim && dim < n, op, ": dim must be between ", -n, " and ", n - 1, ", got ", dim);
  return dim < 0 ? dim + n : dim;
}

// A tensor seen as [outer, width, inner] around dim.
struct Layout {
  int64_t outer = 1, width = 1, inner = 1;

  Layout(int64_t outer, int64_t width, int64_t inner) : outer(outer), width(width), inner(inner) {}
  Layout(const char* op, const Tensor& t, int64_t dim) {
    const int64_t d = wrap_dim(op, dim, t.dim());
    for (int64_t i = 0; i < t.dim(); ++i) (i < d ? outer : i == d ? width : inner) *= t.size(i);
  }
};

}  // namespace pysel
