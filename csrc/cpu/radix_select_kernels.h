// Included inside a variant's namespace (each_variant.h).

#include "cpu/lanes.h"
#include "cpu/noise.h"

// One bit a key, in words of 64: those above `high`, and those within [low, high].
template <typename Bits>
Tally classify(const Bits* keys, int n, Bits low, Bits high, uint64_t* above, uint64_t* band) {
  alignas(64) uint8_t above_flags[kChunk];
  alignas(64) uint8_t band_flags[kChunk];
  for (int i = 0; i < n; ++i) above_flags[i] = keys[i] > high;
  for (int i = 0; i < n; ++i) band_flags[i] = (keys[i] >= low) & (keys[i] <= high);
  const int padded = (n + 63) & ~63;
  for (int i = n; i < padded; ++i) above_flags[i] = band_flags[i] = 0;
  Tally tally{0, 0};
  for (int i = 0; i < padded; i += 64) {
    above[i / 64] = bits_of(above_flags + i);
    band[i / 64] = bits_of(band_flags + i);
    tally.above += __builtin_popcountll(above[i / 64]);
    tally.band += __builtin_popcountll(band[i / 64]);
  }
  return tally;
}

// Lists the set bits of words, and the order stream's words of their elements, numbered from `first`.
inline int tie_words(Key key, uint64_t first, const uint64_t* bits, int n, uint32_t* at, uint64_t* out) {
  alignas(64) uint64_t elements[kChunk];
  int count = 0;
  for (int w = 0; w * 64 < n; ++w)
    for (uint64_t word = bits[w]; word != 0; word &= word - 1, ++count) {
      at[count] = static_cast<uint32_t>(w * 64 + __builtin_ctzll(word));
      elements[count] = first + at[count];
    }
  gather_words(key, Stream::order, elements, count, out);
  return count;
}
