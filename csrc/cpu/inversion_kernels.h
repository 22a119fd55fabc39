// Included inside a variant's namespace (each_variant.h).

#include "cpu/bucket_kernels.h"
#include "cpu/fixed_kernels.h"
#include "cpu/lanes.h"

template <typename T, typename A>
double largest(const T* w, int64_t n) {
  using L = Lanes<A>;
  using V = typename L::Vector;
  L most;
  for (V& part : most.part) part = V{} - static_cast<A>(__builtin_inf());
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int p = 0; p < L::kParts; ++p) {
      const V v = load_vector<A>(w + i + p * L::kWidth);
      most.part[p] = v > most.part[p] ? v : most.part[p];
    }
  alignas(64) A lane[16];
  memcpy(lane, &most, sizeof(lane));
  A max = lane[0];
  for (int l = 1; l < 16; ++l) max = lane[l] > max ? lane[l] : max;
  for (; i < n; ++i) max = static_cast<A>(w[i]) > max ? static_cast<A>(w[i]) : max;
  return static_cast<double>(max);
}
