#pragma once

// How weighted_sample draws from a row of weights. Elements, or with replacement draws, are numbered from `first`.

#include <optional>

#include "cpu/group_select.h"

namespace pysel {

enum class Arrangement { draw, index, shuffled };

struct Request {
  std::optional<Groups> groups;
  bool validate;
  int64_t k;
  bool log_weights;
  Arrangement arrangement;
  Key key;
};

// Without replacement (race.cpp).
template <typename T>
void race(const T* w, int64_t n, const Request& request, uint64_t first, int64_t* out);

// With replacement (inversion.cpp).
template <typename T>
void invert(const T* w, int64_t n, const Request& request, uint64_t first, int64_t* out);

extern template void race<float>(const float*, int64_t, const Request&, uint64_t, int64_t*);
extern template void race<double>(const double*, int64_t, const Request&, uint64_t, int64_t*);
extern template void race<BFloat16>(const BFloat16*, int64_t, const Request&, uint64_t, int64_t*);
extern template void race<Half>(const Half*, int64_t, const Request&, uint64_t, int64_t*);
extern template void invert<float>(const float*, int64_t, const Request&, uint64_t, int64_t*);
extern template void invert<double>(const double*, int64_t, const Request&, uint64_t, int64_t*);
extern template void invert<BFloat16>(const BFloat16*, int64_t, const Request&, uint64_t, int64_t*);
extern template void invert<Half>(const Half*, int64_t, const Request&, uint64_t, int64_t*);

}  // namespace pysel
