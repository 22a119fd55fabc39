// Included inside a variant's namespace (each_variant.h).

#include "cpu/select_kernels.h"
#include "cpu/usage_kernels.h"

// Keys of a chunk of at most kChunk. True if there is a NaN. There is room for n in `scores` and in `used`.
template <typename S, typename C>
bool epoch_keys(const S* first, const S* second, const C* counts, int n, const Mixture<S>& mixture,
                const PenaltyArguments& penalty, S* scores, PenaltyType<S, C>* used, OrderBits<S>* out) {
  using A = PenaltyType<S, C>;
  for (int i = 0; i < n; ++i) scores[i] = first[i] * mixture.first + second[i] * mixture.second;
  convert(counts, n, used);
  penalise<S, A>(scores, used, n, penalty.form, penalty.gamma_as<A>(), static_cast<A>(penalty.step), scores);
  return fill_keys<S, OrderBits<S>>(scores, n, 0, out);
}
