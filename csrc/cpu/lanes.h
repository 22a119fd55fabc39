// What the compiler would leave scalar. Included inside a variant's namespace (each_variant.h).

// Sixteen numbers side by side, for reductions.

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

// 64 bytes of 0 or 1 to bits: the product moves byte i to bit 56 + i.
inline uint64_t bits_of(const uint8_t* flags) {
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    memcpy(&eight, flags + 8 * i, 8);
    bits |= (eight * 0x0102040810204080u >> 56) << (8 * i);
  }
  return bits;
}

// The positions of set bits in words, counted from `first`; where they end.
inline int64_t* expand(const uint64_t* words, int64_t n, int64_t first, int64_t* out) {
  for (int64_t w = 0; w < n; ++w, first += 64)
    for (uint64_t bits = words[w]; bits != 0; bits &= bits - 1) *out++ = first + __builtin_ctzll(bits);
  return out;
}
