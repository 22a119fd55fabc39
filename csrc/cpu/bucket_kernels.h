// Included inside a variant's namespace (each_variant.h).

#include "cpu/noise.h"

// High halves of 64-bit items [first, first + n) of a stream, n <= kChunk.
inline void leading_words(Key key, Stream stream, uint64_t first, int n, uint32_t* out) {
  alignas(64) uint32_t words[kChunk];
  for (int at = 0; at < n; at += kChunk / 2) {
    const int count = n - at < kChunk / 2 ? n - at : kChunk / 2;
    fill_words(key, stream, 2 * (first + static_cast<uint64_t>(at)), 2 * count, words);
    for (int i = 0; i < count; ++i) out[at + i] = words[2 * i];
  }
}

// Buckets by the first `bits` of items.
inline void leading_buckets(const uint64_t* items, int n, int bits, uint32_t* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<uint32_t>(items[i] >> 32 >> (32 - bits));
}
