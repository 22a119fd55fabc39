// Included inside a variant's namespace (each_variant.h).

#include "cpu/fixed_kernels.h"

// How many of n running sums are at most `target`.
inline int count_at_most(const uint64_t* sums, int n, uint64_t target) {
  int count = 0;
  for (int i = 0; i < n; ++i) count += sums[i] <= target ? 1 : 0;
  return count;
}

inline void add_to_all(uint64_t* sums, int n, uint64_t more) {
  for (int i = 0; i < n; ++i) sums[i] += more;
}

// Which of n weights, n <= kFan, their running sum passes `target` with.
template <typename T>
int place_of(const T* w, int n, const FixedPoint& fixed, uint64_t target) {
  alignas(64) uint64_t each[kFan];
  fixed_weights(w, n, fixed, each);
  int i = 0;
  for (uint64_t sum = each[0]; i < n - 1 && sum <= target; sum += each[i]) ++i;
  return i;
}
