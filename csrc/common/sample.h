#pragma once

// Argument checks of weighted_sample and select, the same on every device. Each gives the result's shape.

#include <string>
#include <vector>

#include "common/tensor.h"

namespace pysel {

inline std::vector<int64_t> check_weighted_sample(const char* op, const Tensor& weights, int64_t k, bool replacement,
                                                  const std::string& order, int64_t start) {
  check_value(weights.dim() == 1 || weights.dim() == 2, op, ": weights must have shape [n] or [B, n], got ",
              shape(weights));
  check_value(order == "draw" || order == "index" || order == "shuffled", op,
              ": order must be draw, index or shuffled, got ", order);
  check_start(op, start);
  const int64_t n = weights.size(weights.dim() - 1);
  if (replacement) {
    check_index(k >= 0, op, ": k must be at least 0, got ", k);
    check_value(k == 0 || n > 0, op, ": weights must have at least one element a row, got shape ", shape(weights));
  } else {
    check_k(op, k, n);
  }
  std::vector<int64_t> size = sizes(weights);
  size.back() = k;
  return size;
}

inline std::vector<int64_t> check_select(const char* op, const Tensor& scores, int64_t k) {
  check_value(scores.dim() == 1, op, ": scores must have shape [n], got ", shape(scores));
  check_k(op, k, scores.size(0));
  return {k};
}

}  // namespace pysel
