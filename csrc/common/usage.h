#pragma once

// The penalty's arithmetic and the argument checks of the usage ops, the same on every device.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include "common/math.h"
#include "common/sample.h"
#include "common/tensor.h"

namespace pysel {

// The penalty is computed in float32 only where counts and scores are no wider. Integer counts go through float64,
// which holds them exactly to 2^53.
template <typename S, typename C>
using PenaltyType = std::conditional_t<std::is_same_v<C, float> && !std::is_same_v<S, double>, float, double>;

// To the scores' type. Halves go by way of float everywhere: left to itself, aarch64 rounds a double to a half at once.
template <typename S, typename A>
PYSEL_HD S rounded(A x) {
  if constexpr (sizeof(S) == 2)
    return static_cast<S>(static_cast<float>(x));
  else
    return static_cast<S>(x);
}

// A variable, because device code may not call what makes it.
template <typename C>
inline constexpr C kMost = std::numeric_limits<C>::max();

// One use more. Whole counts stay at their type's largest, as floats do where the sum rounds back.
template <typename C>
PYSEL_HD C add_one(C x) {
  if constexpr (std::is_integral_v<C>) {
    return x + static_cast<C>(x != kMost<C>);
  } else {
    return x + C{1};
  }
}

struct PenaltyArguments {
  enum Form { log, linear, exp, rate } form;
  double gamma;
  int64_t step;

  PenaltyArguments(const char* op, double gamma, const std::string& name, int64_t step)
      : form(name == "linear" ? linear
             : name == "exp"  ? exp
             : name == "rate" ? rate
                              : log),
        gamma(gamma),
        step(step) {
    check_value(std::isfinite(gamma) && gamma >= 0, op, ": gamma must be finite and at least 0, got ", gamma);
    check_value(form != log || name == "log", op, ": form must be log, linear, exp or rate, got ", name);
    check_value(step >= 1, op, ": step must be at least 1, got ", step);
  }

  // The largest number of a narrower type, not inf: inf times a count of 0 is NaN.
  template <typename A>
  A gamma_as() const {
    return static_cast<A>(std::min(gamma, static_cast<double>(std::numeric_limits<A>::max())));
  }
};

// s - used; an infinite score stays what it is under any finite or infinite use.
template <typename A>
PYSEL_HD A minus_use(A s, A used) {
  const A difference = s - used;
  const bool clash = (difference != difference) & (s == s) & (used == used);
  return clash ? s : difference;
}

// The penalised score s of a sample used n times.
template <PenaltyArguments::Form form, typename A>
PYSEL_HD A penalised(A s, A n, A gamma, A step) {
  if (gamma == A{0}) return s;
  const A use = gamma * n;
  if constexpr (form == PenaltyArguments::log) {
    return minus_use(s, gamma * log1p_any(n));
  } else if constexpr (form == PenaltyArguments::exp) {
    return times_exp(s, -use);
  } else if constexpr (form == PenaltyArguments::rate) {
    const A inf = A(__builtin_inf());
    return minus_use(s, (use == inf) | (use == -inf) ? n / step * gamma : use / step);
  } else {
    return minus_use(s, use);
  }
}

inline void check_counts(const char* op, const Tensor& counts) {
  check_value(counts.dim() == 1, op, ": counts must have shape [n], got ", shape(counts));
  check_value(counts.size(0) < 2 || counts.stride(0) != 0, op,
              ": counts must not be an expanded tensor, whose elements share memory");
}

inline void check_count_dtype(const char* op, const Tensor& counts) {
  const ScalarType type = counts.scalar_type();
  check_value(
      type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Int || type == ScalarType::Long,
      op, ": counts must be float32, float64, int32 or int64");
}

inline void check_update(const char* op, const Tensor& counts, const Tensor& selected, double decay) {
  check_counts(op, counts);
  check_value(selected.dim() == 1, op, ": selected must have shape [m], got ", shape(selected));
  check_dtype(op, "selected", selected, ScalarType::Long, "int64");
  check_device(op, "selected", selected, counts);
  check_value(decay >= 0 && decay <= 1, op, ": decay must be between 0 and 1, got ", decay);
  check_count_dtype(op, counts);
  const bool whole = counts.scalar_type() == ScalarType::Int || counts.scalar_type() == ScalarType::Long;
  check_value(decay == 1 || !whole, op, ": decay must be 1 for integer counts, got ", decay);
}

// `out`: the caller's tensor for the result, if there is one.
inline void check_usage_penalty(const char* op, const Tensor& scores, const Tensor& counts,
                                const std::optional<Tensor>& out) {
  check_value(sizes(scores) == sizes(counts), op, ": scores must have the shape of counts, ", shape(counts), ", got ",
              shape(scores));
  check_device(op, "scores", scores, counts);
  check_floating(op, "scores", scores);
  check_count_dtype(op, counts);
  if (!out) return;
  check_out(op, *out, sizes(scores), scores.scalar_type(), scores);
  check_apart(op, *out, "scores", scores, true);
  check_apart(op, *out, "counts", counts);
}

inline void check_usage_step(const char* op, const Tensor& counts, const Tensor& selected, const Tensor& scores,
                             double decay, const std::optional<Tensor>& out) {
  check_update(op, counts, selected, decay);
  check_usage_penalty(op, scores, counts, out);
  if (out) check_apart(op, *out, "selected", selected);
}

inline void check_usage_select(const char* op, const Tensor& counts, const Tensor& first, const Tensor& second,
                               double mix, int64_t k, const std::optional<Tensor>& groups,
                               const std::optional<Tensor>& quotas) {
  check_counts(op, counts);
  check_value(sizes(first) == sizes(counts), op, ": first must have the shape of counts, ", shape(counts), ", got ",
              shape(first));
  check_value(sizes(second) == sizes(counts), op, ": second must have the shape of counts, ", shape(counts), ", got ",
              shape(second));
  check_value(first.scalar_type() == ScalarType::Float || first.scalar_type() == ScalarType::Double, op,
              ": first must be float32 or float64");
  check_same_dtype(op, "first", first, "second", second);
  check_count_dtype(op, counts);
  check_device(op, "first", first, counts);
  check_device(op, "second", second, counts);
  check_value(mix >= 0 && mix <= 1, op, ": mix must be between 0 and 1, got ", mix);
  check_k(op, k, counts.size(0));
  check_groups(op, groups, quotas, "counts", counts);
}

// f.template operator()<C>() for the counts' type.
template <typename F>
void dispatch_counts(const char* op, const Tensor& counts, F f) {
  switch (counts.scalar_type()) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::Double:
      return f.template operator()<double>();
    case ScalarType::Int:
      return f.template operator()<int32_t>();
    default:
      check_count_dtype(op, counts);
      return f.template operator()<int64_t>();
  }
}

}  // namespace pysel
