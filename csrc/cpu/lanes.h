// What the compiler would leave scalar. Included inside a variant's namespace (each_variant.h).

// Sixteen numbers side by side, for reductions: a maximum, or a sum whose order no instruction set may change. They are
// vectors of the variant's own width, because the compiler takes a wider one apart into scalars, and each is loaded by
// itself, because a processor is slow to read in one piece what it has just written in several.
template <typename A>
struct Lanes {
  typedef A Vector __attribute__((vector_size(PYSEL_VECTOR_BYTES)));
  static constexpr int kWidth = PYSEL_VECTOR_BYTES / static_cast<int>(sizeof(A));
  static constexpr int kParts = 16 / kWidth;

  Vector part[kParts];
};

template <typename A, typename T>
inline __attribute__((always_inline)) typename Lanes<A>::Vector load_vector(const T* from) {
  typename Lanes<A>::Vector to;
  if constexpr (sizeof(T) == sizeof(A)) {
    memcpy(&to, from, sizeof(to));
  } else {
    alignas(sizeof(to)) A wide[Lanes<A>::kWidth];
    for (int l = 0; l < Lanes<A>::kWidth; ++l) wide[l] = static_cast<A>(from[l]);
    memcpy(&to, wide, sizeof(to));
  }
  return to;
}

template <typename A>
inline A sum_lanes(A* lane) {
  for (int l = 0; l < 8; ++l) lane[l] += lane[l + 8];
  for (int l = 0; l < 4; ++l) lane[l] += lane[l + 4];
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

// Sum of a * b over 16 lanes, then the lanes.
template <typename T, typename A>
inline A dot(const T* a, const T* b, int64_t n) {
  Lanes<A> lanes = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int p = 0, at = 0; p < Lanes<A>::kParts; ++p, at += Lanes<A>::kWidth)
      lanes.part[p] += load_vector<A>(a + i + at) * load_vector<A>(b + i + at);
  alignas(64) A lane[16];
  memcpy(lane, &lanes, sizeof(lane));
  for (int l = 0; i < n; ++i, ++l) lane[l] += static_cast<A>(a[i]) * static_cast<A>(b[i]);
  return sum_lanes(lane);
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
