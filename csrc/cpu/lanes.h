// Sixteen numbers side by side, for reductions that the compiler would leave scalar. Included inside a variant's
// namespace (each_variant.h).

template <typename A>
struct SixteenOf {
  typedef A Lanes __attribute__((vector_size(16 * sizeof(A))));
};
template <typename A>
using Lanes = typename SixteenOf<A>::Lanes;

template <typename T, typename A>
inline __attribute__((always_inline)) void load_lanes(const T* from, Lanes<A>& to) {
  if constexpr (sizeof(T) == sizeof(A)) {
    memcpy(&to, from, sizeof(to));
  } else {
    alignas(64) A wide[16];
    for (int l = 0; l < 16; ++l) wide[l] = static_cast<A>(from[l]);
    memcpy(&to, wide, sizeof(to));
  }
}
