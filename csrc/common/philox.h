#pragma once

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011).

#include <cstdint>

#include "common/macros.h"

namespace pysel {

struct PhiloxBlock {
  uint32_t word[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;

struct Product {
  uint32_t high, low;
};

// Both words of a product. Where they come from 64 bits, nvcc adds a zero to each: 21 of the 96 instructions of a block
// on sm_90. Side by side, as here, it takes both from one multiplication.
PYSEL_HD Product multiply(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return {__umulhi(a, b), a * b};
#else
  const uint64_t product = uint64_t{a} * b;
  return {static_cast<uint32_t>(product >> 32), static_cast<uint32_t>(product)};
#endif
}

PYSEL_HD PhiloxBlock philox(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const Product p0 = multiply(kPhiloxMultiplier0, counter.word[0]);
    const Product p1 = multiply(kPhiloxMultiplier1, counter.word[2]);
    counter = {{p1.high ^ counter.word[1] ^ key0, p1.low, p0.high ^ counter.word[3] ^ key1, p0.low}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

// The third counter word. Streams of one key never overlap.
enum class Stream : uint32_t {
  high = 0,              // high 32 bits of an element's M
  low = 1,               // low 32 bits of M
  order = 2,             // 64 bits an element: shuffles and ties in draw order
  with_replacement = 3,  // 64 bits a draw
  derive = 4,            // split and fold_in
  permutation = 5,       // block n: the key of the permutation of n, whose words are in the same stream
};

// A key is int64 [seed, offset]. Element i of a stream is word i & 3 of block offset + i / 4 (mod 2^64).
struct Key {
  uint64_t seed;
  uint64_t offset;

  PYSEL_HD PhiloxBlock block(Stream stream, uint64_t index) const {
    const uint64_t counter = offset + index;
    return philox(
        {{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), static_cast<uint32_t>(stream), 0u}},
        static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }

  PYSEL_HD uint32_t word(Stream stream, uint64_t element) const {
    const PhiloxBlock b = block(stream, element >> 2);
    // an index known only when it runs would put the block into memory
    const uint32_t even = element & 2 ? b.word[2] : b.word[0], odd = element & 2 ? b.word[3] : b.word[1];
    return element & 1 ? odd : even;
  }

  // Item i of a 64-bit stream: elements 2i (high half) and 2i + 1.
  PYSEL_HD uint64_t word64(Stream stream, uint64_t item) const {
    const PhiloxBlock b = block(stream, item >> 1);
    return item & 1 ? uint64_t{b.word[2]} << 32 | b.word[3] : uint64_t{b.word[0]} << 32 | b.word[1];
  }

  // Child `index`: in Stream::derive, split(key, n)[index] and fold_in(key, index).
  PYSEL_HD Key child(uint64_t index, Stream stream = Stream::derive) const {
    const PhiloxBlock b = block(stream, index);
    return {uint64_t{b.word[0]} << 32 | b.word[1], uint64_t{b.word[2]} << 32 | b.word[3]};
  }
};

}  // namespace pysel
