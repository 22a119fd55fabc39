#pragma once

// Items brought into buckets, in parallel and without changing the order within a bucket. What comes next (a sort, a
// search) then works on one bucket at a time, in cache.

#include <cstdint>
#include <vector>

#include "cpu/chunk.h"

namespace pysel {

// Has items [0, n) written grouped by bucket; returns where each bucket starts, and n.
//   each_item(begin, end, f): f(item, its bucket, below `buckets`) for items [begin, end), from a chunk on; called
//   twice write(place, item)
template <typename EachItem, typename Write>
std::vector<int64_t> group(int64_t n, size_t buckets, const EachItem& each_item, const Write& write) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  // each worth a thread, and its counts no more memory than its items
  const int64_t most = std::min(n / kGrain, n / (static_cast<int64_t>(buckets) + 1));
  const int64_t parts = std::max<int64_t>(1, std::min(threads, most));
  std::vector<int64_t> place(static_cast<size_t>(parts) * buckets);
  const auto each_part = [&](const auto& f) {
    parallel_for(parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        int64_t* mine = place.data() + static_cast<size_t>(p) * buckets;
        const int64_t begin = chunks_of(n) * p / parts * kChunk;
        const int64_t end = std::min(n, chunks_of(n) * (p + 1) / parts * kChunk);
        each_item(begin, end, [&](auto item, size_t bucket) { f(item, mine[bucket]); });
      }
    });
  };
  each_part([](auto, int64_t& count) { ++count; });
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
  each_part([&write](auto item, int64_t& next) { write(next++, item); });
  return start;
}

// The same of 64-bit items that are made a chunk at a time, written to `to`.
//   produce(first, count, room) -> const uint64_t*: items [first, first + count), in `room` or elsewhere
//   buckets_of(items, count, out): each item's bucket; count <= kChunk
template <typename Produce, typename BucketsOf>
std::vector<int64_t> bucket(int64_t n, size_t buckets, const Produce& produce, const BucketsOf& buckets_of,
                            uint64_t* to) {
  return group(
      n, buckets,
      [&](int64_t begin, int64_t end, const auto& f) {
        alignas(64) uint64_t room[kChunk];
        alignas(64) uint32_t buckets_here[kChunk];
        for (int64_t at = begin; at < end; at += kChunk) {
          const auto count = static_cast<int>(std::min<int64_t>(kChunk, end - at));
          const uint64_t* items = produce(at, count, room);
          buckets_of(items, count, buckets_here);
          for (int i = 0; i < count; ++i) f(items[i], buckets_here[i]);
        }
      },
      [to](int64_t place, uint64_t item) { to[place] = item; });
}

}  // namespace pysel
