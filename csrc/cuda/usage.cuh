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

  Penalty() = default;
  explicit Penalty(const PenaltyArguments& arguments)
      : form(arguments.form), gamma(arguments.gamma_as<A>()), step(static_cast<A>(arguments.step)) {}

  __device__ A operator()(A score, A count) const {
    switch (form) {
      case PenaltyArguments::log:
        return penalised<PenaltyArguments::log>(score, count, gamma, step);
      case PenaltyArguments::exp:
        return penalised<PenaltyArguments::exp>(score, count, gamma, step);
      case PenaltyArguments::rate:
        return penalised<PenaltyArguments::rate>(score, count, gamma, step);
      default:
        return penalised<PenaltyArguments::linear>(score, count, gamma, step);
    }
  }
};

}  // namespace pysel
