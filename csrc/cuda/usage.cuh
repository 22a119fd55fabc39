#pragma once

// The usage penalty of one score.

#include "common/usage.h"
#include "cuda/launch.cuh"

namespace pysel {

template <typename A>
struct Penalty {
  PenaltyArguments::Form form;
  A gamma;
  A step;

  __device__ A operator()(A score, A count) const {
    const A used = gamma * count;
    switch (form) {
      case PenaltyArguments::log:
        return score - gamma * log1p_any(count);
      case PenaltyArguments::exp:
        return score * exp_clamped(-used);
      case PenaltyArguments::rate:
        return score - used / step;
      default:
        return score - used;
    }
  }
};

}  // namespace pysel
