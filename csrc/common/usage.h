#pragma once

// The penalty's arithmetic and the argument checks of the usage ops, the same on every device.

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>

#include "common/math.h"
#include "common/tensor.h"

namespace pysel {

// exp(x) also above zero (counts below zero): exp_nonpositive holds there until 2^(x / ln 2) leaves the range, and
// gives inf soon after.
template <typename A>
PYSEL_HD A exp_clamped(A x) {
  constexpr A most = sizeof(A) == 4 ? A{128} : A{1024};
  return exp_nonpositive(x > most ? most : x);
}

// The penalty is computed in float32 only where counts and scores are no wider. Integer counts go through float64,
// which holds them exactly to 2^53.
template <typename S, typename C>
using PenaltyType = std::conditional_t<std::is_same_v<C, float> && !std::is_same_v<S, double>, float, double>;

struct PenaltyArguments {
  enum Form { linear, exp, rate } form;
  double gamma;
  int64_t step;

  PenaltyArguments(const char* op, double gamma, const std::string& name, int64_t step)
      : form(name == "exp"    ? exp
             : name == "rate" ? rate
                              : linear),
        gamma(gamma),
        step(step) {
    check_value(std::isfinite(gamma) && gamma >= 0, op, ": gamma must be finite and at least 0, got ", gamma);
    check_value(name == "linear" || name == "exp" || name == "rate", op, ": form must be linear, exp or rate, got ",
                name);
    check_value(step >= 1, op, ": step must be at least 1, got ", step);
  }

  // The largest number of a narrower type, not inf: inf times a count of 0 is NaN.
  template <typename A>
  A gamma_as() const {
    return static_cast<A>(std::min(gamma, static_cast<double>(std::numeric_limits<A>::max())));
  }
};

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
    case ScalarType::Long:
      return f.template operator()<int64_t>();
    default:
      throw std::invalid_argument(text(op, ": counts must be float32, float64, int32 or int64"));
  }
}

}  // namespace pysel
