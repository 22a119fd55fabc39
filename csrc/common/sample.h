#pragma once

// Argument checks of weighted_sample and select, the same on every device. Each gives the result's shape.

#include <optional>
#include <string>
#include <vector>

#include "common/tensor.h"

namespace pysel {

// Group of each element, and how many of each group: both or neither.
inline void check_groups(const char* op, const std::optional<Tensor>& groups, const std::optional<Tensor>& quotas,
                         const char* like_name, const Tensor& like) {
  if (!groups && !quotas) return;
  check_value(groups.has_value(), op, ": groups must be given with quotas, got None");
  check_value(quotas.has_value(), op, ": quotas must be given with groups, got None");
  check_value(sizes(*groups) == sizes(like), op, ": groups must have the shape of ", like_name, ", ", shape(like),
              ", got ", shape(*groups));
  check_value(groups->scalar_type() == ScalarType::Long || groups->scalar_type() == ScalarType::Int, op,
              ": groups must be int64 or int32");
  check_value(quotas->dim() == 1, op, ": quotas must have shape [G], got ", shape(*quotas));
  check_dtype(op, "quotas", *quotas, ScalarType::Long, "int64");
  check_device(op, "groups", *groups, like);
  check_device(op, "quotas", *quotas, like);
}

// The caller's tensor for indices of `from`.
inline void check_indices_out(const char* op, const Tensor& out, const std::vector<int64_t>& size,
                              const char* from_name, const Tensor& from, const std::optional<Tensor>& groups,
                              const std::optional<Tensor>& quotas) {
  check_out(op, out, size, ScalarType::Long, from);
  check_apart(op, out, from_name, from);
  if (groups) check_apart(op, out, "groups", *groups);
  if (quotas) check_apart(op, out, "quotas", *quotas);
}

inline std::vector<int64_t> check_weighted_sample(const char* op, const Tensor& weights, int64_t k, bool replacement,
                                                  const std::string& order, const std::optional<Tensor>& groups,
                                                  const std::optional<Tensor>& quotas, int64_t start) {
  check_floating(op, "weights", weights);
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
  if (groups || quotas) {
    check_value(!replacement, op, ": replacement must be False with groups, got True");
    check_value(weights.dim() == 1, op, ": weights must have shape [n] with groups, got ", shape(weights));
    check_groups(op, groups, quotas, "weights", weights);
  }
  std::vector<int64_t> size = sizes(weights);
  size.back() = k;
  return size;
}

inline std::vector<int64_t> check_select(const char* op, const Tensor& scores, int64_t k,
                                         const std::optional<Tensor>& groups, const std::optional<Tensor>& quotas,
                                         int64_t start) {
  check_value(scores.dim() == 1, op, ": scores must have shape [n], got ", shape(scores));
  check_k(op, k, scores.size(0));
  check_start(op, start);
  const ScalarType type = scores.scalar_type();
  if (type != ScalarType::Long && type != ScalarType::Int) check_floating(op, "scores", scores);
  check_groups(op, groups, quotas, "scores", scores);
  return {k};
}

}  // namespace pysel
