#pragma once

// Argument checks of top-k, of the encoder, of the sparse products and of the factor ops, the same on every device.
// Codes are values and indices of one shape, [B, k].

#include "common/tensor.h"

namespace pysel {

// A matrix beside the other arguments, of which `like` is one.
inline void check_matrix(const char* op, const char* argument, const Tensor& t, const char* wanted,
                         const Tensor& like) {
  check_value(t.dim() == 2, op, ": ", argument, " must have shape ", wanted, ", got ", shape(t));
  check_device(op, argument, t, like);
}

inline void check_bias(const char* op, const std::optional<Tensor>& bias, int64_t n, const char* like_name,
                       const Tensor& like) {
  if (!bias) return;
  check_value(bias->dim() == 1 && bias->size(0) == n, op, ": bias must have shape [", n, "], got ", shape(*bias));
  check_device(op, "bias", *bias, like);
  check_same_dtype(op, like_name, like, "bias", *bias);
}

inline void check_activation(const char* op, const std::string& activation) {
  check_value(activation == "relu" || activation == "abs", op, ": activation must be relu or abs, got ", activation);
}

// How many elements a row has.
inline int64_t check_topk(const char* op, const Tensor& x, int64_t k) {
  check_floating(op, "x", x);
  check_value(x.dim() >= 1, op, ": x must have shape [..., n], got ", shape(x));
  const int64_t n = x.size(x.dim() - 1);
  check_k(op, k, n);
  return n;
}

inline void check_topk_encode(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                              int64_t k, const std::string& activation) {
  check_floating(op, "x", x);
  check_matrix(op, "x", x, "[B, d]", x);
  check_matrix(op, "weight", weight, "[H, d]", x);
  check_value(x.size(1) == weight.size(1), op, ": weight must have shape [H, ", x.size(1), "] to go with x, got ",
              shape(weight));
  check_same_dtype(op, "x", x, "weight", weight);
  check_bias(op, bias, weight.size(0), "x", x);
  check_k(op, k, weight.size(0));
  check_activation(op, activation);
}

inline void check_codes(const char* op, const Tensor* values, const Tensor& indices) {
  check_matrix(op, "indices", indices, "[B, k]", indices);
  check_dtype(op, "indices", indices, ScalarType::Long, "int64");
  if (!values) return;
  check_matrix(op, "values", *values, "[B, k]", indices);
  check_floating(op, "values", *values);
  check_value(sizes(*values) == sizes(indices), op, ": indices must have the shape of values, ", shape(*values),
              ", got ", shape(indices));
}

// [B, d] beside codes and weight [H, d].
inline void check_grad(const char* op, const Tensor& grad, const Tensor& indices, const Tensor& weight) {
  const int64_t rows = indices.size(0), d = weight.size(1);
  check_value(grad.size(0) == rows && grad.size(1) == d, op, ": grad must have shape [", rows, ", ", d, "], got ",
              shape(grad));
}

inline void check_sparse_decode(const char* op, const Tensor& values, const Tensor& indices, const Tensor& weight,
                                const std::optional<Tensor>& bias) {
  check_codes(op, &values, indices);
  check_matrix(op, "weight", weight, "[H, d]", indices);
  check_same_dtype(op, "values", values, "weight", weight);
  check_bias(op, bias, weight.size(1), "values", values);
}

inline void check_sparse_decode_out(const char* op, const Tensor& out, const Tensor& values, const Tensor& indices,
                                    const Tensor& weight, const std::optional<Tensor>& bias) {
  check_out(op, out, {values.size(0), weight.size(1)}, values.scalar_type(), values);
  check_apart(op, out, "values", values);
  check_apart(op, out, "indices", indices);
  check_apart(op, out, "weight", weight);
  if (bias) check_apart(op, out, "bias", *bias);
}

inline void check_sddmm(const char* op, const Tensor& indices, const Tensor& weight, const Tensor& grad) {
  check_codes(op, nullptr, indices);
  check_matrix(op, "weight", weight, "[H, d]", indices);
  check_matrix(op, "grad", grad, "[B, d]", indices);
  check_floating(op, "weight", weight);
  check_same_dtype(op, "weight", weight, "grad", grad);
  check_grad(op, grad, indices, weight);
}

inline void check_spmm_t(const char* op, const Tensor& values, const Tensor& indices, const Tensor& rows,
                         int64_t num_factors) {
  check_codes(op, &values, indices);
  check_matrix(op, "rows", rows, "[B, d]", indices);
  check_not_negative(op, "num_factors", num_factors);
  check_value(rows.size(0) == values.size(0), op, ": rows must have shape [", values.size(0),
              ", d] to go with values, got ", shape(rows));
  check_same_dtype(op, "values", values, "rows", rows);
}

inline void check_sparse_decode_backward(const char* op, const Tensor& grad, const Tensor& values,
                                         const Tensor& indices, const Tensor& weight) {
  check_codes(op, &values, indices);
  check_matrix(op, "weight", weight, "[H, d]", indices);
  check_matrix(op, "grad", grad, "[B, d]", indices);
  check_same_dtype(op, "values", values, "weight", weight);
  check_same_dtype(op, "values", values, "grad", grad);
  check_grad(op, grad, indices, weight);
}

inline void check_factor_counts(const char* op, const Tensor& values, const Tensor& indices, int64_t num_factors,
                                const std::optional<Tensor>& groups, const std::optional<int64_t>& num_groups) {
  check_codes(op, &values, indices);
  check_not_negative(op, "num_factors", num_factors);
  check_value(groups.has_value() == num_groups.has_value(), op, ": ", groups ? "num_groups" : "groups",
              " must be given with ", groups ? "groups" : "num_groups", ", got None");
  if (!groups) return;
  check_value(groups->dim() == 1 && groups->size(0) == values.size(0), op, ": groups must have shape [", values.size(0),
              "], got ", shape(*groups));
  check_dtype(op, "groups", *groups, ScalarType::Long, "int64");
  check_device(op, "groups", *groups, indices);
  check_not_negative(op, "num_groups", *num_groups);
}

inline void check_factor_scores(const char* op, const Tensor& values, const Tensor& indices, const Tensor& tables,
                                const std::string& reduce) {
  check_codes(op, &values, indices);
  check_value(tables.dim() == 1 || tables.dim() == 2, op, ": tables must have shape [H] or [T, H], got ",
              shape(tables));
  check_device(op, "tables", tables, indices);
  check_value(tables.scalar_type() == ScalarType::Float || tables.scalar_type() == ScalarType::Double, op,
              ": tables must be float32 or float64");
  check_value(reduce == "sum" || reduce == "mean", op, ": reduce must be sum or mean, got ", reduce);
}

}  // namespace pysel
