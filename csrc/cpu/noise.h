// Noise of consecutive elements, in chunks that stay in L1. Included inside a variant's namespace (each_variant.h).

// Elements [first, first + n) of a 32-bit stream, n <= kChunk.
inline void fill_words(Key key, Stream stream, uint64_t first, int n, uint32_t* out) {
  constexpr int kBlocks = kChunk / 4 + 1;
  alignas(64) uint32_t words[4 * kBlocks];
  const int skip = static_cast<int>(first & 3);
  const int blocks = (skip + n + 3) / 4;
  const uint64_t counter = key.offset + (first >> 2);
  const auto counter_low = static_cast<uint32_t>(counter);
  const auto counter_high = static_cast<uint32_t>(counter >> 32);
  for (int b = 0; b < blocks; ++b) {
    const uint32_t low = counter_low + static_cast<uint32_t>(b);
    const uint32_t high = counter_high + (low < counter_low ? 1u : 0u);
    const PhiloxBlock block = philox({{low, high, static_cast<uint32_t>(stream), 0u}}, static_cast<uint32_t>(key.seed),
                                     static_cast<uint32_t>(key.seed >> 32));
    words[4 * b] = block.word[0];
    words[4 * b + 1] = block.word[1];
    words[4 * b + 2] = block.word[2];
    words[4 * b + 3] = block.word[3];
  }
  memcpy(out, words + skip, sizeof(uint32_t) * static_cast<size_t>(n));
}

struct ToGumbel {
  template <typename T>
  static PYSEL_HD T of(Uniform<T> u) {
    return gumbel(u);
  }
};

struct ToLogistic {
  template <typename T>
  static PYSEL_HD T of(Uniform<T> u) {
    return logistic(u);
  }
};

struct ToExponential {
  template <typename T>
  static PYSEL_HD T of(Uniform<T> u) {
    return exponential(u);
  }
};

template <typename Noise>
inline void fill_noise(Key key, uint64_t first, int n, float* out) {
  alignas(64) uint32_t high[kChunk];
  fill_words(key, Stream::high, first, n, high);
  uint32_t tails = 0;
  for (int i = 0; i < n; ++i) {
    out[i] = Noise::of(uniform_from_high(high[i]));
    tails |= in_tail(high[i]) ? 1u : 0u;
  }
  if (tails == 0) return;
  for (int i = 0; i < n; ++i)
    if (in_tail(high[i]))
      out[i] = Noise::of(uniform_from_tail(high[i], key.word(Stream::low, first + static_cast<uint64_t>(i))));
}

template <typename Noise>
inline void fill_noise(Key key, uint64_t first, int n, double* out) {
  alignas(64) uint32_t high[kChunk];
  alignas(64) uint32_t low[kChunk];
  fill_words(key, Stream::high, first, n, high);
  fill_words(key, Stream::low, first, n, low);
  for (int i = 0; i < n; ++i) out[i] = Noise::of(uniform<double>(high[i], low[i]));
}
