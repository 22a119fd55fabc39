#pragma once

#include "cpu/chunk.h"

namespace pysel {

constexpr int kTileLines = 16, kTilePitch = kChunk + 16;  // its lines not all in one set of the cache

// Writes matrices [outer, lines, columns] transposed, as [outer, columns, lines], a tile at a time: both sides of it
// then go by whole cache lines.
//   line(number, first, n, room): makes n <= kChunk elements of a line, counted over all matrices, from the first on,
//   or beyond its end of those that follow
template <typename A, typename T, typename Line>
void transpose(int64_t outer, int64_t lines, int64_t columns, const Line& line, T* to) {
  const int64_t together = std::max<int64_t>(kTileLines, kChunk / columns);
  const bool adjacent = together * columns <= kChunk;
  const int64_t pitch = adjacent ? columns : kTilePitch;
  const int64_t tiles = (lines + together - 1) / together, chunks = chunks_of(columns);
  const int64_t size = together * std::min<int64_t>(columns, kChunk);
  parallel_for(outer * chunks * tiles, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    alignas(64) A tile[kTileLines * kTilePitch];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t % tiles * together, c = t / tiles % chunks, matrix = t / tiles / chunks;
      const int64_t count = std::min(together, lines - first), number = matrix * lines + first;
      const int n = chunk_size(columns, c);
      if (adjacent)
        line(number, 0, static_cast<int>(count * columns), tile);
      else
        for (int64_t l = 0; l < count; ++l) line(number + l, c * kChunk, n, tile + l * pitch);
      T* at = to + (matrix * columns + c * kChunk) * lines + first;
      for (int i = 0; i < n; ++i, at += lines)
        for (int64_t l = 0; l < count; ++l) at[l] = static_cast<T>(tile[l * pitch + i]);
    }
  });
}

}  // namespace pysel
