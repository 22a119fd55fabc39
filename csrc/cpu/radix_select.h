#pragma once

// The k largest of n keys, exactly, as ascending indices. Ties go to the lowest index, or to the smallest words of a
// random stream. Keys are asked for in chunks and never stored, so they may be made anew each time.
//
// One pass over the keys is the rule. A sample of n^(2/3) keys brackets the k-th largest within [low, high]; the pass
// sets a bit for each key above `high` and keeps the few within the bracket, the k-th largest is found among those, and
// the indices are read off the bits. When the bracket missed, or holds too many to keep, histograms over 11 bits at a
// time narrow it and the pass is repeated; when more keys tie with the k-th largest than fit, their bits are set by
// asking for keys once more. Memory: n / 8 bytes, and at most n / 8 + 2^16 keys of the bracket (usually about 1 %).

#include <cstdint>
#include <functional>
#include <optional>

#include "cpu/chunk.h"
#include "cpu/ranks.h"

namespace pysel {

// Which keys matter.
template <typename Bits>
struct KeyRange {
  Bits low = 0;
  Bits high = static_cast<Bits>(~Bits{0});
};

// Writes the keys of elements [first, first + count), count <= kChunk, to out. Keys below the range may be replaced
// by any that are, too, and keys above it by any above it; false says that all are below, and that nothing was written.
// Called from many threads. May throw: each element is asked for, even when k is 0.
template <typename Bits>
using KeysOf = std::function<bool(int64_t first, int count, KeyRange<Bits> range, Bits* out)>;

// Sees parts of the result as they are written, from many threads.
using Written = std::function<void(const int64_t* begin, const int64_t* end)>;

struct SelectOptions {
  std::optional<TieOrder> tie_order;
  int64_t most_kept = -1;  // keys of the bracket; -1: n / 8
  Written written = {};
};

template <typename Bits>  // uint32_t or uint64_t
void select_largest(int64_t n, int64_t k, const KeysOf<Bits>& keys_of, const SelectOptions& options,
                    int64_t* indices /* [k] */);

extern template void select_largest<uint32_t>(int64_t, int64_t, const KeysOf<uint32_t>&, const SelectOptions&,
                                              int64_t*);
extern template void select_largest<uint64_t>(int64_t, int64_t, const KeysOf<uint64_t>&, const SelectOptions&,
                                              int64_t*);

}  // namespace pysel
