#pragma once

// Sums of prepared weights: level 0 has a sum for each block of 64 weights, each further level one for each block of 64
// of the level below, up to a level of at most 64. They are kept as running sums, which begin anew after every 64.
// All levels lie one after the other, and the largest weight below each sum likewise.

#include "common/tensor.h"

namespace pysel {

constexpr int64_t kFan = 64;

inline int64_t blocks_of(int64_t n) { return (n + kFan - 1) / kFan; }

inline std::vector<int64_t> level_sizes(int64_t n) {
  std::vector<int64_t> sizes{blocks_of(n)};
  while (sizes.back() > kFan) sizes.push_back(blocks_of(sizes.back()));
  return sizes;
}

inline int64_t size_of_levels(int64_t n) {
  int64_t sum = 0;
  for (const int64_t size : level_sizes(n)) sum += size;
  return sum;
}

inline void check_prepared(const char* op, const Tensor& weights, const Tensor& sums, const Tensor& largest) {
  check_value(weights.dim() == 1 && weights.size(0) > 0 && weights.is_contiguous(), op,
              ": weights must be contiguous, of shape [n] with n > 0, got shape ", shape(weights));
  const std::vector<int64_t> size{size_of_levels(weights.size(0))};
  check_value(sizes(sums) == size && sums.is_contiguous(), op, ": sums must be contiguous, of shape ", shape(size),
              ", got ", shape(sums));
  check_value(sizes(largest) == size && largest.is_contiguous(), op, ": largest must be contiguous, of shape ",
              shape(size), ", got ", shape(largest));
  check_dtype(op, "sums", sums, ScalarType::Long, "int64");
  check_same_dtype(op, "weights", weights, "largest", largest);
  check_device(op, "sums", sums, weights);
  check_device(op, "largest", largest, weights);
}

}  // namespace pysel
