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
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Blocks [counter, counter + kLanes) of a stream, as philox() in common/philox.h.
inline __attribute__((always_inline)) void philox_blocks(Key key, Stream stream, uint64_t counter, uint32_t* out) {
  constexpr uint64_t kIota[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const Words zero = {};
  Words x0;
  memcpy(&x0, kIota, sizeof(x0));
  x0 += counter;
  Words x1 = x0 >> 32, x2 = zero + static_cast<uint32_t>(stream), x3 = zero;
  auto key0 = static_cast<uint32_t>(key.seed), key1 = static_cast<uint32_t>(key.seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Words p0 = multiply(x0, zero + kPhiloxMultiplier0), p1 = multiply(x2, zero + kPhiloxMultiplier1);
    x0 = (p1 >> 32) ^ x1 ^ key0;
    x1 = p1;
    x2 = (p0 >> 32) ^ x3 ^ key1;
    x3 = p0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  const Words low = (x0 & 0xffffffffu) | (x1 << 32), high = (x2 & 0xffffffffu) | (x3 << 32);
#if PYSEL_VECTOR_BYTES == 64
  const Words a = __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11);
  const Words b = __builtin_shufflevector(low, high, 4, 12, 5, 13, 6, 14, 7, 15);
#elif PYSEL_VECTOR_BYTES == 32
  const Words a = __builtin_shufflevector(low, high, 0, 4, 1, 5);
  const Words b = __builtin_shufflevector(low, high, 2, 6, 3, 7);
#else
  const Words a = __builtin_shufflevector(low, high, 0, 2);
  const Words b = __builtin_shufflevector(low, high, 1, 3);
#endif
  memcpy(out, &a, sizeof(a));
  memcpy(out + 2 * kLanes, &b, sizeof(b));
}

// Elements [first, first + n) of a 32-bit stream, n <= kChunk.
inline void fill_words(Key key, Stream stream, uint64_t first, int n, uint32_t* out) {
  constexpr int kStep = 4 * kLanes;
  const uint64_t counter = key.offset + (first >> 2);
  const int skip = static_cast<int>(first & 3);
  if (skip == 0) {
    int i = 0;
    for (; i + kStep <= n; i += kStep) philox_blocks(key, stream, counter + static_cast<uint64_t>(i / 4), out + i);
    if (i == n) return;
    uint32_t rest[kStep];
    philox_blocks(key, stream, counter + static_cast<uint64_t>(i / 4), rest);
    memcpy(out + i, rest, sizeof(uint32_t) * static_cast<size_t>(n - i));
    return;
  }
  uint32_t words[kChunk + 2 * kStep];
  for (int i = 0; i < skip + n; i += kStep)
    philox_blocks(key, stream, counter + static_cast<uint64_t>(i / 4), words + i);
  memcpy(out, words + skip, sizeof(uint32_t) * static_cast<size_t>(n));
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
  constexpr int kTerms = sizeof(F::kLog) / sizeof(float);
  alignas(64) float y[kWide];
  for (int l = 0; l < kWide; ++l) y[l] = F::kLog[kTerms - 1];
#pragma GCC unroll 16
  for (int c = kTerms - 2; c >= 0; --c)
    for (int l = 0; l < kWide; ++l) y[l] = fma_(y[l], x.fraction[l], F::kLog[c]);
  for (int l = 0; l < kWide; ++l) y[l] = fma_(x.fraction[l] * x.fraction[l], y[l], x.fraction[l]);
  for (int l = 0; l < kWide; ++l) y[l] = fma_(x.exponent[l], F::kLn2Lo, y[l]);
  for (int l = 0; l < kWide; ++l) out[l] = fma_(x.exponent[l], F::kLn2Hi, y[l]);
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

template <typename Noise>
inline void fill_noise(Key key, uint64_t first, int n, double* out) {
  alignas(64) uint32_t high[kChunk];
  alignas(64) uint32_t low[kChunk];
  fill_words(key, Stream::high, first, n, high);
  fill_words(key, Stream::low, first, n, low);
  for (int i = 0; i < n; ++i) out[i] = Noise::of(uniform<double>(high[i], low[i]));
}
