#pragma once

#include "common/tensor.h"

namespace pysel {

// Refuses +inf among contiguous logits before anything is written, for outputs that a caller handed in.
void check_below_inf(const char* op, const Tensor& logits);

}  // namespace pysel
