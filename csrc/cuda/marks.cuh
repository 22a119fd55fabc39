#pragma once

// Bits for selected elements, and the ascending indices that are read off them:
//
//   count      the bits of each part of a row
//   before     what comes before each part
//   expand     positions of bits
//
// Bits lie at an element's position in its row plus the row's phase (see Row), so that quads never straddle words.

#include "cuda/rows.cuh"

namespace pysel {

constexpr unsigned kSelectBlock = kMostScanned;
constexpr int kTileQuads = 4;                                            // of a thread
constexpr std::int64_t kTile = std::int64_t{kSelectBlock} * kTileQuads;  // quads of a tile
constexpr std::int64_t kTileWords = kTile / 8;                           // of bits
constexpr std::int64_t kPartWords = 4 * kTileWords;                      // counted together

struct Marks {
  std::int64_t rows = 1, n = 0, k = 0;
  NoiseArgument noise{};                         // of the keys, if they have any
  std::int64_t tiles = 0, words = 0, parts = 0;  // of a row
  unsigned* bits = nullptr;                      // [rows, words]
  unsigned long long* place = nullptr;           // [rows, parts]: selected elements of a part, then of all before it
  unsigned* refused = nullptr;                   // [rows]: nothing is selected there
  std::int64_t* out = nullptr;                   // [rows, k]

  Marks() = default;
  Marks(std::int64_t n, std::int64_t k, const NoiseArgument& noise) : n(n), k(k), noise(noise) {
    const std::int64_t quads = (n + 6) / 4;  // the most that a row may have
    tiles = (quads - 1) / kTile + 1;
    words = (quads - 1) / 8 + 1;
    parts = (words - 1) / kPartWords + 1;
  }

  __device__ Row row(std::int64_t r) const { return Row(noise, r * n, n); }
};

struct MarksRoom {
  Room<unsigned> bits;
  Room<unsigned long long> place;
  Room<unsigned> refused;

  MarksRoom(const Call& call, Marks& m)
      : bits(call.room<unsigned>(m.rows * m.words)),
        place(call.room<unsigned long long>(m.rows * m.parts)),
        refused(call.zeros<unsigned>(m.rows)) {
    m.bits = bits.data();
    m.place = place.data();
    m.refused = refused.data();
  }
};

// The bits of a warp's quads, four each, in words: lane 8 j holds word j of four.
__device__ inline unsigned word_of(unsigned four) {
  unsigned word = four << threadIdx.x % 8 * 4;
  for (int offset = 1; offset < 8; offset *= 2) word |= __shfl_xor_sync(kAllLanes, word, offset);
  return word;
}

static __global__ void __launch_bounds__(kSelectBlock) count_kernel(Marks m) {
  struct Count {
    ScanSlots<std::uint64_t> sum;
  };
  Count& count = shared<Count>();
  for (std::int64_t p = blockIdx.x; p < m.rows * m.parts; p += gridDim.x) {
    const std::int64_t r = p / m.parts, begin = p % m.parts * kPartWords;
    const std::int64_t end = m.refused[r] != 0 ? begin : min(begin + kPartWords, m.words);
    std::uint64_t mine = 0;
    for (std::int64_t w = begin + threadIdx.x; w < end; w += kSelectBlock)
      mine += static_cast<unsigned>(__popc(m.bits[r * m.words + w]));
    const BlockSum<std::uint64_t> sum = block_sum(mine, count.sum);
    if (threadIdx.x == 0) m.place[p] = sum.all;
  }
}

// Each row of sums becomes what comes before each of them. A block a row.
static __global__ void __launch_bounds__(kSelectBlock)
    sums_before_kernel(unsigned long long* __restrict__ sums, std::int64_t rows, std::int64_t columns) {
  struct Before {
    ScanSlots<std::uint64_t> sum;
  };
  Before& before = shared<Before>();
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    std::uint64_t so_far = 0;
    for (std::int64_t first = 0; first < columns; first += kSelectBlock) {
      const std::int64_t c = first + threadIdx.x;
      const auto mine = static_cast<std::uint64_t>(c < columns ? sums[r * columns + c] : 0);
      const BlockSum<std::uint64_t> sum = block_sum(mine, before.sum);
      if (c < columns) sums[r * columns + c] = so_far + sum.before;
      so_far += sum.all;
    }
  }
}

// Writes the positions of bits; -1 throughout rows that were refused.
static __global__ void __launch_bounds__(kSelectBlock) expand_kernel(Marks m) {
  struct Expand {
    ScanSlots<std::uint64_t> sum;
  };
  Expand& expand = shared<Expand>();
  for (std::int64_t p = blockIdx.x; p < m.rows * m.parts; p += gridDim.x) {
    const std::int64_t r = p / m.parts, begin = p % m.parts * kPartWords;
    std::int64_t* out = m.out + r * m.k;
    if (m.refused[r] != 0) {
      for (std::int64_t i = p % m.parts * kSelectBlock + threadIdx.x; i < m.k; i += m.parts * kSelectBlock) out[i] = -1;
      continue;
    }
    const std::int64_t phase = -m.row(r).begin(0);
    std::uint64_t to = m.place[p];
    for (std::int64_t first = begin; first < min(begin + kPartWords, m.words); first += kSelectBlock) {
      const std::int64_t w = first + threadIdx.x;
      unsigned bits = w < m.words ? m.bits[r * m.words + w] : 0;
      const BlockSum<std::uint64_t> sum = block_sum(static_cast<std::uint64_t>(__popc(bits)), expand.sum);
      for (std::uint64_t at = to + sum.before; bits != 0; bits &= bits - 1, ++at)
        out[at] = w * 32 + (__ffs(static_cast<int>(bits)) - 1) - phase;
      to += sum.all;
    }
  }
}

// The indices of what is marked.
inline void write_marked(const Call& call, const Marks& m) {
  call.launch(count_kernel, grid_size(m.rows * m.parts, 1), kSelectBlock, m);
  call.launch(sums_before_kernel, grid_size(m.rows, 1), kSelectBlock, m.place, m.rows, m.parts);
  call.launch(expand_kernel, grid_size(m.rows * m.parts, 1), kSelectBlock, m);
}

}  // namespace pysel
