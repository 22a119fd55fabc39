#pragma once

// Sorting and gathering along the last dim, by torch's own kernels.

#include <array>
#include <tuple>

#include "common/tensor.h"

namespace pysel {

// Stable: equal values stay in order. torch sorts NaN as largest.
inline std::tuple<Tensor, Tensor> sort_rows(const Tensor& t, bool descending) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(t), from(std::optional<bool>(true)), from(std::int64_t{-1}), from(descending)};
  call_torch("aten::sort", "stable", stack.data());
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

inline Tensor gather_rows(const Tensor& t, const Tensor& index) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(t), from(std::int64_t{-1}), from(index), from(false)};
  call_torch("aten::gather", "", stack.data());
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace pysel
