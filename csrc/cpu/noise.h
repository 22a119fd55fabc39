// Noise of consecutive elements, in chunks that stay in L1. Included inside a variant's namespace (each_variant.h).

// A Philox state word of several blocks: the low half of each lane; what is in the high halves does not matter.
typedef uint64_t Words __attribute__((vector_size(PYSEL_VECTOR_BYTES)));
constexpr int kLanes = PYSEL_VECTOR_BYTES / 8;

// Full products of the low halves.
inline __attribute__((always_inline)) Words multiply(Words a, Words b) {
#if PYSEL_VECTOR_BYTES == 64
  return reinterpret_cast<Words>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif PYSEL_VECTOR_BYTES == 32
  return reinterpret_cast<Words>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Words>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#elif defined(__aarch64__)
  return reinterpret_cast<Words>(
      vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)), vmovn_u64(reinterpret_cast<uint64x2_t>(b))));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// kLanes blocks of a stream for each of kChains counters, as philox() in common/philox.h: words 0 and 1, and words 2
// and 3, in 64 bits each, the first of them low. Chains go in step, because each is a long one of dependent
// instructions.
template <int kChains>
inline __attribute__((always_inline)) void philox_blocks(Key key, Stream stream, const Words* counter, Words* low,
                                                         Words* high) {
  const Words zero = {};
  Words x0[kChains], x1[kChains], x2[kChains], x3[kChains];
  for (int c = 0; c < kChains; ++c) {
    x0[c] = counter[c];
    x1[c] = counter[c] >> 32;
    x2[c] = zero + static_cast<uint32_t>(stream);
    x3[c] = zero;
  }
  auto key0 = static_cast<uint32_t>(key.seed), key1 = static_cast<uint32_t>(key.seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      const Words p0 = multiply(x0[c], zero + kPhiloxMultiplier0), p1 = multiply(x2[c], zero + kPhiloxMultiplier1);
      x0[c] = (p1 >> 32) ^ x1[c] ^ key0;
      x1[c] = p1;
      x2[c] = (p0 >> 32) ^ x3[c] ^ key1;
      x3[c] = p0;
    }
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  for (int c = 0; c < kChains; ++c) {
    low[c] = (x0[c] & 0xffffffffu) | (x1[c] << 32);
    high[c] = (x2[c] & 0xffffffffu) | (x3[c] << 32);
  }
}

constexpr int kChains = 2;

// Words of blocks [counter, counter + kChains * kLanes).
inline __attribute__((always_inline)) void consecutive_blocks(Key key, Stream stream, uint64_t counter, uint32_t* out) {
  constexpr uint64_t kIota[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  Words iota, blocks[kChains], low[kChains], high[kChains];
  memcpy(&iota, kIota, sizeof(iota));
  for (int c = 0; c < kChains; ++c) blocks[c] = iota + (counter + static_cast<uint64_t>(c * kLanes));
  philox_blocks<kChains>(key, stream, blocks, low, high);
  for (int c = 0; c < kChains; ++c, out += 4 * kLanes) {
#if PYSEL_VECTOR_BYTES == 64
    const Words a = __builtin_shufflevector(low[c], high[c], 0, 8, 1, 9, 2, 10, 3, 11);
    const Words b = __builtin_shufflevector(low[c], high[c], 4, 12, 5, 13, 6, 14, 7, 15);
#elif PYSEL_VECTOR_BYTES == 32
    const Words a = __builtin_shufflevector(low[c], high[c], 0, 4, 1, 5);
    const Words b = __builtin_shufflevector(low[c], high[c], 2, 6, 3, 7);
#else
    const Words a = __builtin_shufflevector(low[c], high[c], 0, 2);
    const Words b = __builtin_shufflevector(low[c], high[c], 1, 3);
#endif
    memcpy(out, &a, sizeof(a));
    memcpy(out + 2 * kLanes, &b, sizeof(b));
  }
}

// Elements [first, first + n) of a 32-bit stream, n <= kChunk.
inline void fill_words(Key key, Stream stream, uint64_t first, int n, uint32_t* out) {
  constexpr int kStep = 4 * kChains * kLanes;
  const uint64_t counter = key.offset + (first >> 2);
  const int skip = static_cast<int>(first & 3);
  if (skip == 0) {
    int i = 0;
    for (; i + kStep <= n; i += kStep) consecutive_blocks(key, stream, counter + static_cast<uint64_t>(i / 4), out + i);
    if (i == n) return;
    uint32_t rest[kStep];
    consecutive_blocks(key, stream, counter + static_cast<uint64_t>(i / 4), rest);
    memcpy(out + i, rest, sizeof(uint32_t) * static_cast<size_t>(n - i));
    return;
  }
  uint32_t words[kChunk + 2 * kStep];
  for (int i = 0; i < skip + n; i += kStep)
    consecutive_blocks(key, stream, counter + static_cast<uint64_t>(i / 4), words + i);
  memcpy(out, words + skip, sizeof(uint32_t) * static_cast<size_t>(n));
}

// 64-bit items of a stream, as Key::word64, in any order.
inline void gather_words(Key key, Stream stream, const uint64_t* items, int64_t n, uint64_t* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    uint64_t some[kLanes] = {}, words[kLanes];
    memcpy(some, items + i, sizeof(uint64_t) * static_cast<size_t>(count));
    Words item, low, high;
    memcpy(&item, some, sizeof(item));
    const Words counter = (item >> 1) + key.offset;
    philox_blocks<1>(key, stream, &counter, &low, &high);
    const Words odd = -(item & 1);  // all ones or none
    const Words pair = (high & odd) | (low & ~odd);
    const Words word = (pair << 32) | (pair >> 32);
    memcpy(words, &word, sizeof(word));
    memcpy(out + i, words, sizeof(uint64_t) * static_cast<size_t>(count));
  }
}

// Logarithms of four vectors in step, because each is a long chain of dependent instructions. The values are those of
// log_of in common/math.h.
constexpr int kWide = PYSEL_VECTOR_BYTES;

struct WideSplit {
  alignas(64) float fraction[kWide];
  alignas(64) float exponent[kWide];

  void set(int lane, LogSplit<float> x) {
    fraction[lane] = x.fraction;
    exponent[lane] = x.exponent;
  }
};

inline __attribute__((always_inline)) void wide_log(const WideSplit& x, float* out) {
  using F = Float<float>;
  constexpr auto table = F::log();
  constexpr int kTerms = sizeof(table.c) / sizeof(float);
  alignas(64) float y[kWide];
  for (int l = 0; l < kWide; ++l) y[l] = table.c[kTerms - 1];
#pragma GCC unroll 16
  for (int c = kTerms - 2; c >= 0; --c)
    for (int l = 0; l < kWide; ++l) y[l] = fma_(y[l], x.fraction[l], table.c[c]);
  for (int l = 0; l < kWide; ++l) y[l] = fma_(x.fraction[l] * x.fraction[l], y[l], x.fraction[l]);
  for (int l = 0; l < kWide; ++l) y[l] = fma_(x.exponent[l], F::kLn2Lo, y[l]);
  for (int l = 0; l < kWide; ++l) out[l] = fma_(x.exponent[l], F::kLn2Hi, y[l]);
}

// log_any of x, 0 <= n <= kChunk, in place.
inline void fill_log(int n, float* x) {
  using F = Float<float>;
  constexpr float kInf = __builtin_inff();
  int i = 0;
  for (; i + kWide <= n; i += kWide) {
    WideSplit split;
    alignas(64) float log[kWide];
    for (int l = 0; l < kWide; ++l) {
      const float v = x[i + l];
      const bool tiny = v < F::kSmallestNormal;
      LogSplit<float> s = split_normal(tiny ? v * F::kSubnormalScale : v);
      s.exponent = s.exponent - (tiny ? static_cast<float>(F::kSubnormalShift) : 0.0f);
      split.set(l, s);
    }
    wide_log(split, log);
    for (int l = 0; l < kWide; ++l) {
      const float v = x[i + l];
      const float special = v == 0.0f ? -kInf : (v == kInf ? kInf : __builtin_nanf(""));
      x[i + l] = ((v > 0.0f) & (v < kInf)) ? log[l] : special;
    }
  }
  for (; i < n; ++i) x[i] = log_any(x[i]);
}

inline void fill_log(int n, double* x) {
  for (int i = 0; i < n; ++i) x[i] = log_any(x[i]);
}

// What to make of uniforms: one at a time, or kWide words that are in no tail.
struct ToExponential {
  template <typename T>
  static PYSEL_HD T of(Uniform<T> u) {
    return exponential(u);
  }
  static inline __attribute__((always_inline)) void wide(const uint32_t* high, float* out) {
    WideSplit x;
    for (int l = 0; l < kWide; ++l) x.set(l, split_uniform(uniform_from_high(high[l])));
    alignas(64) float log_u[kWide];
    wide_log(x, log_u);
    for (int l = 0; l < kWide; ++l) out[l] = -log_u[l];
  }
};

struct ToGumbel {
  template <typename T>
  static PYSEL_HD T of(Uniform<T> u) {
    return gumbel(u);
  }
  static inline __attribute__((always_inline)) void wide(const uint32_t* high, float* out) {
    alignas(64) float e[kWide];
    ToExponential::wide(high, e);
    WideSplit x;
    for (int l = 0; l < kWide; ++l) x.set(l, split_normal(e[l]));
    wide_log(x, e);
    for (int l = 0; l < kWide; ++l) out[l] = -e[l];
  }
};

struct ToLogistic {
  template <typename T>
  static PYSEL_HD T of(Uniform<T> u) {
    return logistic(u);
  }
  static inline __attribute__((always_inline)) void wide(const uint32_t* high, float* out) {
    WideSplit x;
    alignas(64) float near[kWide], far[kWide];
    for (int l = 0; l < kWide; ++l) x.set(l, split_normal(uniform_from_high(high[l]).v));
    wide_log(x, near);
    for (int l = 0; l < kWide; ++l) x.set(l, split_complement(uniform_from_high(high[l]).v));
    wide_log(x, far);
    for (int l = 0; l < kWide; ++l) {
      const float log_odds = near[l] - far[l];
      out[l] = uniform_from_high(high[l]).upper ? -log_odds : log_odds;
    }
  }
};

// Makes the few elements anew that take both words.
template <typename Noise>
__attribute__((noinline)) void mend_tails(Key key, uint64_t first, int n, const uint32_t* high, float* out) {
  constexpr int kGroup = 64;
  for (int at = 0; at < n; at += kGroup) {
    const int end = at + kGroup < n ? at + kGroup : n;
    uint32_t tails = 0;
    for (int i = at; i < end; ++i) tails |= in_tail(high[i]) ? 1u : 0u;
    if (tails == 0) continue;
    for (int i = at; i < end; ++i)
      if (in_tail(high[i]))
        out[i] = Noise::of(uniform_from_tail(high[i], key.word(Stream::low, first + static_cast<uint64_t>(i))));
  }
}

template <typename Noise>
inline void fill_noise(Key key, uint64_t first, int n, float* out) {
  alignas(64) uint32_t high[kChunk];
  fill_words(key, Stream::high, first, n, high);
  int i = 0;
  for (; i + kWide <= n; i += kWide) Noise::wide(high + i, out + i);
  for (; i < n; ++i) out[i] = Noise::of(uniform_from_high(high[i]));
  uint32_t tails = 0;
  for (i = 0; i < n; ++i) tails |= in_tail(high[i]) ? 1u : 0u;
  if (tails != 0) mend_tails<Noise>(key, first, n, high, out);
}

// The noise of one element, given its high word.
template <typename Noise, typename T>
T noise_of(Key key, uint64_t element, uint32_t high) {
  if constexpr (sizeof(T) == 4)
    if (!in_tail(high)) return Noise::of(uniform_from_high(high));
  return Noise::of(uniform<T>(high, key.word(Stream::low, element)));
}

template <typename Noise>
inline void fill_noise(Key key, uint64_t first, int n, double* out) {
  alignas(64) uint32_t high[kChunk];
  alignas(64) uint32_t low[kChunk];
  fill_words(key, Stream::high, first, n, high);
  fill_words(key, Stream::low, first, n, low);
  for (int i = 0; i < n; ++i) out[i] = Noise::of(uniform<double>(high[i], low[i]));
}
