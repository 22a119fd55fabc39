#pragma once

// 64-bit items brought into buckets, in parallel and without changing the order within a bucket. What comes next (a
// sort, a search) then works on one bucket at a time, in cache.

#include <cstdint>
#include <vector>

#include "cpu/chunk.h"

namespace pysel {

// Writes items [0, n) to `to`, grouped by bucket; returns where each bucket starts, and n.
//   produce(first, count, room) -> const uint64_t*: items [first, first + count), in `room` or elsewhere; called twice
//   buckets_of(items, count, out): each item's bucket, below `buckets`; count <= kChunk
template <typename Produce, typename BucketsOf>
std::vector<int64_t> bucket(int64_t n, size_t buckets, const Produce& produce, const BucketsOf& buckets_of,
                            uint64_t* to) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = std::max<int64_t>(1, std::min(threads, n / kGrain));
  std::vector<int64_t> place(static_cast<size_t>(parts) * buckets);
  const auto each_item = [&](const auto& f) {
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      alignas(64) uint64_t room[kChunk];
      alignas(64) uint32_t buckets_here[kChunk];
      for (int64_t p = begin; p < end; ++p) {
        int64_t* mine = place.data() + static_cast<size_t>(p) * buckets;
        const int64_t last = chunks_of(n) * (p + 1) / parts;
        for (int64_t c = chunks_of(n) * p / parts; c < last; ++c) {
          const int count = chunk_size(n, c);
          const uint64_t* items = produce(c * kChunk, count, room);
          buckets_of(items, count, buckets_here);
          for (int i = 0; i < count; ++i) f(items[i], mine[buckets_here[i]]);
        }
      }
    });
  };
  each_item([](uint64_t, int64_t& count) { ++count; });
  std::vector<int64_t> start(buckets + 1);
  int64_t total = 0;
  for (size_t b = 0; b < buckets; ++b) {
    start[b] = total;
    for (size_t p = 0; p < static_cast<size_t>(parts); ++p) {
      const int64_t count = place[p * buckets + b];
      place[p * buckets + b] = total;
      total += count;
    }
  }
  start[buckets] = total;
  each_item([to](uint64_t item, int64_t& next) { to[next++] = item; });
  return start;
}

}  // namespace pysel
