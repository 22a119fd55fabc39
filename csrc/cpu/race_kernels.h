// Included inside a variant's namespace (each_variant.h).

#include "cpu/bucket_kernels.h"
#include "cpu/lanes.h"

// Race keys of elements [first, first + n), n <= kChunk.
template <typename T, typename A>
void race_keys(const T* w, bool log_weights, Key key, uint64_t first, int n, OrderBits<A>* out) {
  alignas(64) A z[kChunk];
  alignas(64) A log_w[kChunk];
  fill_noise<ToGumbel>(key, first, n, z);
  for (int i = 0; i < n; ++i) log_w[i] = static_cast<A>(w[i]);
  if (!log_weights) fill_log(n, log_w);
  for (int i = 0; i < n; ++i) out[i] = order(log_w[i] + z[i]);
}

// Race keys of elements first + at[i], i < n <= kChunk, of which `high` holds the words. Bit for bit as race_keys.
template <typename T>
void race_keys_at(const T* w, bool log_weights, Key key, uint64_t first, const uint32_t* high, const uint32_t* at,
                  int n, uint32_t* out) {
  alignas(64) uint32_t word[kChunk];
  alignas(64) float log_w[kChunk], z[kChunk];
  const int padded = (n + kWide - 1) / kWide * kWide;
  for (int i = 0; i < n; ++i) word[i] = high[at[i]];
  for (int i = 0; i < n; ++i) log_w[i] = static_cast<float>(w[at[i]]);
  for (int i = n; i < padded; ++i) word[i] = kTail;
  for (int i = n; i < padded; ++i) log_w[i] = 1;
  for (int i = 0; i < padded; i += kWide) ToGumbel::wide(word + i, z + i);
  for (int i = 0; i < n; ++i)
    if (in_tail(word[i])) z[i] = noise_of<ToGumbel, float>(key, first + at[i], word[i]);
  if (!log_weights) fill_log(padded, log_w);
  for (int i = 0; i < n; ++i) out[i] = order(log_w[i] + z[i]);
}

// Writes the keys of flagged elements among [first, first + n); false if there are none.
template <typename T>
bool race_keys_where(const uint8_t* flags, const T* w, bool log_weights, Key key, uint64_t first, int n,
                     const uint32_t* high, uint32_t* out) {
  alignas(64) uint32_t at[kChunk], keys[kChunk];
  int count = 0;
  for (int i = 0; i < n; i += 64)
    for (uint64_t bits = bits_of(flags + i); bits != 0; bits &= bits - 1)
      at[count++] = static_cast<uint32_t>(i + __builtin_ctzll(bits));
  if (count == 0) return false;
  race_keys_at(w, log_weights, key, first, high, at, count, keys);
  for (int i = 0; i < count; ++i) out[at[i]] = keys[i];
  return true;
}

// As race_keys, where keys below `floor` do not matter and most are; false if all are. Most elements are told from
// their weight's and their noise's chords, without a logarithm.
template <typename T>
bool high_race_keys(const T* w, bool log_weights, Key key, uint64_t first, int n, float floor, uint32_t* out) {
  constexpr float kSlack = 1e-3f;
  alignas(64) uint32_t high[kChunk];
  alignas(64) float x[kChunk];
  alignas(64) uint8_t passed[kChunk];
  fill_words(key, Stream::high, first, n, high);
  for (int i = 0; i < n; ++i) x[i] = static_cast<float>(w[i]);
  if (log_weights) {
    for (int i = 0; i < n; ++i) {
      passed[i] = x[i] + most_gumbel(high[i]) < floor ? 0 : 1;  // NaN passes
    }
  } else {
    const float least = (floor - 31 * 0.693147181f - kChordGap - kSlack) / kChordScale;
    // within int32, below every difference of chords at the lower end
    const float bounded = least < -0x1.8p30f ? -0x1.8p30f : (least > 0x1p30f ? 0x1p30f : least);
    const auto threshold = static_cast<int32_t>(bounded) - 1024;  // least has 24 bits
    for (int i = 0; i < n; ++i) {
      const auto chord = bit_cast<int32_t>(x[i]);
      passed[i] = ((chord - chord_of_rest(high[i]) >= threshold) | (chord < 0)) ? 1 : 0;  // -0 and unchecked weights
    }
  }
  for (int i = n; i < (n + 63) / 64 * 64; ++i) passed[i] = 0;
  uint32_t some = 0;
  for (int i = 0; i < n; ++i) some |= passed[i];
  if (some == 0) return false;
  memset(out, 0, sizeof(uint32_t) * static_cast<size_t>(n));
  return race_keys_where(passed, w, log_weights, key, first, n, high, out);
}

// 2^y for y up to 126, with a relative error below 1e-4; NaN stays NaN.
inline float rough_exp2(float y) {
  constexpr float magic = Float<float>::kRoundMagic + Float<float>::kBias;
  const float power = -126.0f > y ? -126.0f : y;
  const float shifted = power + magic, r = power - (shifted - magic);
  const float value = fma_(fma_(fma_(0x1.c3f76p-5f, r, 0x1.f0de1ap-3f), r, 0x1.62f31ap-1f), r, 0x1.fff692p-1f);
  return value * bit_cast<float>(bit_cast<uint32_t>(shifted) << Float<float>::kMantissa);
}

// As race_keys, where keys below `low` or above `high` matter as such alone. A key exceeds t where its uniform exceeds
// exp(-w exp(-t)): exponentials instead of two logarithms tell what is below and what is above, roughly, and little
// more than what is in between gets its key.
template <typename T>
void race_keys_between(const T* w, bool log_weights, Key key, uint64_t first, int n, float low, float high,
                       uint32_t* out) {
  constexpr float kSlack = 1e-3f, kRough = 2e-4f;  // above the errors of keys, and of uniforms and their bounds
  constexpr float kLog2E = 0x1.715476p+0f, nan = __builtin_nanf("");
  low -= kSlack;
  high += kSlack;
  if (!(low > -64 && high < 64)) return race_keys<T, float>(w, log_weights, key, first, n, out);
  alignas(64) uint32_t words[kChunk];
  alignas(64) float x[kChunk];  // log2 of the uniform at `low`; NaN where a weight is not permitted
  alignas(64) uint8_t open[kChunk] = {};
  fill_words(key, Stream::high, first, n, words);
  if (log_weights) {
    for (int i = 0; i < n; ++i) {
      const float y = (static_cast<float>(w[i]) - low) * kLog2E;
      x[i] = rough_exp2(y > 126.0f ? 126.0f : y) * -kLog2E;
    }
  } else {
    const float scale = times_exp(-kLog2E, -low);
    for (int i = 0; i < n; ++i) {
      const auto v = static_cast<float>(w[i]);
      x[i] = v >= 0 ? v * scale : nan;
    }
  }
  const float ratio = times_exp(1.0f, low - high);
  for (int i = 0; i < n; ++i) {
    const float u = fma_(static_cast<float>(static_cast<int32_t>(words[i] ^ 0x80000000u)), 0x1p-32f, 0.5f);
    const bool below = u + kRough < rough_exp2(x[i]);
    const bool above = u - kRough > rough_exp2(x[i] * ratio);
    open[i] = below | above ? 0 : 1;
    out[i] = above ? ~uint32_t{0} : 0;
  }
  race_keys_where(open, w, log_weights, key, first, n, words, out);
}

// 32 bits that ascend where race keys descend, or stay equal.
template <typename A>
void leading_bits(const OrderBits<A>* keys, int n, uint32_t* out) {
  for (int i = 0; i < n; ++i)
    out[i] = ~(sizeof(A) == 4 ? static_cast<uint32_t>(keys[i]) : order(static_cast<float>(from_order<A>(keys[i]))));
}

// Buckets of items that lead with leading_bits of race keys, none of them below `lowest`. Equal weights' keys leave
// E = exp(-key) about evenly spread, so buckets divide that evenly, or what is near it and certain to be monotone: a
// float's bits in place of the exponential.
void draw_buckets(const uint64_t* items, int n, float lowest, float buckets, uint32_t* out) {
  for (int i = 0; i < n; ++i) {
    const float key = from_order<float>(~static_cast<uint32_t>(items[i] >> 32));
    const float bits = (lowest - key) * (0x1p23f * 1.44269504f) + 127 * 0x1p23f;
    const float share = bit_cast<float>(static_cast<int32_t>(bits > 0 ? bits : 0));  // 0 for NaN, too
    out[i] = static_cast<uint32_t>(static_cast<int32_t>(share * (buckets - 0.5f)));
  }
}
