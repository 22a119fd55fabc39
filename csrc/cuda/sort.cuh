#pragma once

// Sorting and gathering along the last dim, by torch's own kernels.

#include <array>
#include <tuple>

#include "common/tensor.h"

namespace pysel {

// Its kernel counts a row's elements in 32 bits, and fails without a reason where there are more.
constexpr std::int64_t kMostSorted = (std::int64_t{1} << 31) - 1;

// Values and their places, contiguous. Stable: equal values stay in order.
inline std::tuple<Tensor, Tensor> sort_rows(const Tensor& t, bool descending) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(t), from(std::optional<bool>(true)), from(std::int64_t{-1}), from(descending)};
  call_torch("aten::sort", "stable", stack.data());
  const Tensor values = to<Tensor>(stack[0]), places = to<Tensor>(stack[1]);
  return {torch::stable::contiguous(values), torch::stable::contiguous(places)};
}

inline Tensor gather_rows(const Tensor& t, const Tensor& index) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(t), from(std::int64_t{-1}), from(index), from(false)};
  call_torch("aten::gather", "", stack.data());
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace pysel
