#pragma once

#include <algorithm>

#include "cpu/parallel.h"

namespace pysel {

// Long vectors are handled in chunks that stay in L1. The size is part of what float sums are (they run over a
// chunk, then over chunks in order), so it does not depend on the machine.
constexpr int kChunk = 1024;
constexpr int64_t kGrain = 16 * kChunk;  // elements worth a thread

inline int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

inline int chunk_size(int64_t n, int64_t chunk) {
  return static_cast<int>(std::min<int64_t>(kChunk, n - chunk * kChunk));
}

// f(chunk) for every chunk of n elements, on all threads if `parallel`.
template <typename F>
void each_chunk(int64_t n, bool parallel, const F& f) {
  const int64_t chunks = chunks_of(n);
  if (!parallel || n < 2 * kGrain) {
    for (int64_t c = 0; c < chunks; ++c) f(c);
    return;
  }
  parallel_for(chunks, kGrain / kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) f(c);
  });
}

// Rows worth a thread.
inline int64_t rows_per_thread(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

// f(row, parallel) for every row: rows over threads when there are enough of them, else each row over all threads.
template <typename F>
void each_row(int64_t rows, int64_t width, const F& f) {
  if (rows >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    parallel_for(rows, rows_per_thread(width), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) f(r, false);
    });
  } else {
    for (int64_t r = 0; r < rows; ++r) f(r, true);
  }
}

}  // namespace pysel
