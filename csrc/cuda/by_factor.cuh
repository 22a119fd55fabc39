#pragma once

// Entries of top-k codes sorted by factor, keeping their order:
//
//   indices   [4 1] [1 0] [4 2]       entries 0 1 | 2 3 | 4 5
//   entry      3 | 1 2 | 5 | | 0 4    of factors 0, 1, 2, 3, 4
//   start      0   1     3   4 4   6
//
// A stable radix sort, eight bits of the factor a pass.

#include <utility>

#include "cuda/block.cuh"
#include "cuda/codes.cuh"

namespace pysel {

constexpr unsigned kDigits = 256;
static_assert(kDigits == kBlock && kBlock == kMostScanned);  // a thread a digit
constexpr unsigned kSortWarps = kBlock / kWarp;
constexpr int kRounds = 8;  // entries of a thread
constexpr int kTile = kBlock * kRounds;

// Entries in the order of the passes so far, null before the first, and the digit that this pass looks at.
struct FactorDigits {
  const std::int64_t* indices;  // [n]
  const std::int64_t* entry;    // [n]
  std::int64_t n;
  int shift;

  __device__ std::int64_t entry_at(std::int64_t i) const { return entry == nullptr ? i : entry[i]; }
  __device__ unsigned digit(std::int64_t e) const {
    return static_cast<unsigned>(static_cast<std::uint64_t>(indices[e]) >> shift) % kDigits;
  }
};

struct DigitCounts {
  unsigned of[kDigits];
};

static __global__ void count_digits_kernel(FactorDigits digits, std::int64_t* __restrict__ count) {  // [kDigits, tiles]
  auto& tile = shared<DigitCounts>();
  tile.of[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t first = std::int64_t{blockIdx.x} * kTile;
  for (unsigned i = threadIdx.x; i < kTile && first + i < digits.n; i += kBlock)
    atomicAdd(&tile.of[digits.digit(digits.entry_at(first + i))], 1u);
  __syncthreads();
  count[std::int64_t{threadIdx.x} * gridDim.x + blockIdx.x] = tile.of[threadIdx.x];
}

// Counts become sums over the tiles before; a block a digit.
static __global__ void scan_digits_kernel(std::int64_t tiles,
                                          std::int64_t* __restrict__ count,    // [kDigits, tiles]
                                          std::int64_t* __restrict__ total) {  // [kDigits]
  struct Scan {
    ScanSlots<std::int64_t> sum;
  };
  Scan& scan = shared<Scan>();
  std::int64_t* of_digit = count + blockIdx.x * tiles;
  std::int64_t before = 0;
  for (std::int64_t first = 0; first < tiles; first += kBlock) {
    const std::int64_t tile = first + threadIdx.x;
    const auto sum = block_sum(tile < tiles ? of_digit[tile] : std::int64_t{0}, scan.sum);
    if (tile < tiles) of_digit[tile] = before + sum.before;
    before += sum.all;
  }
  if (threadIdx.x == 0) total[blockIdx.x] = before;
}

struct TileRanks {
  unsigned seen[kSortWarps][kDigits];  // by each warp so far; then by the warps before it
  std::int64_t base[kDigits];          // where the tile's first entry of a digit goes
  ScanSlots<std::int64_t> sum;
};

static __global__ void place_kernel(FactorDigits digits,
                                    const std::int64_t* __restrict__ before,  // [kDigits, tiles]
                                    const std::int64_t* __restrict__ total,   // [kDigits]
                                    std::int64_t* __restrict__ out) {         // [n]
  auto& tile = shared<TileRanks>();
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  tile.base[threadIdx.x] =
      block_sum(total[threadIdx.x], tile.sum).before + before[std::int64_t{threadIdx.x} * gridDim.x + blockIdx.x];
  for (unsigned w = 0; w < kSortWarps; ++w) tile.seen[w][threadIdx.x] = 0;
  __syncthreads();

  // a warp ranks consecutive entries, 32 a round
  std::int64_t entry[kRounds];
  unsigned digit[kRounds], rank[kRounds];
  const std::int64_t first = std::int64_t{blockIdx.x} * kTile + warp * (kWarp * kRounds) + lane;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const bool valid = first + r * kWarp < digits.n;
    entry[r] = valid ? digits.entry_at(first + r * kWarp) : 0;
    digit[r] = valid ? digits.digit(entry[r]) : 0;
    unsigned peers = __ballot_sync(kAllLanes, valid);
    for (unsigned bit = 1; bit < kDigits; bit *= 2) {
      const unsigned set = __ballot_sync(kAllLanes, (digit[r] & bit) != 0);
      peers &= (digit[r] & bit) != 0 ? set : ~set;
    }
    const unsigned earlier = peers & ((1u << lane) - 1);
    unsigned seen = 0;
    if (valid && earlier == 0) {
      seen = tile.seen[warp][digit[r]];
      tile.seen[warp][digit[r]] = seen + static_cast<unsigned>(__popc(peers));
    }
    seen = __shfl_sync(kAllLanes, seen, valid ? __ffs(peers) - 1 : 0);
    rank[r] = seen + static_cast<unsigned>(__popc(earlier));
    __syncwarp();
  }
  __syncthreads();
  unsigned sum = 0;
  for (unsigned w = 0; w < kSortWarps; ++w) {
    const unsigned mine = tile.seen[w][threadIdx.x];
    tile.seen[w][threadIdx.x] = sum;
    sum += mine;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRounds; ++r)
    if (first + r * kWarp < digits.n) out[tile.base[digit[r]] + tile.seen[warp][digit[r]] + rank[r]] = entry[r];
}

// start[f]: how many entries are of factors below f.
static __global__ void start_kernel(const std::int64_t* __restrict__ indices,  // [n]
                                    const std::int64_t* __restrict__ entry,    // [n], by factor
                                    std::int64_t n, std::int64_t factors,
                                    std::int64_t* __restrict__ start) {  // [factors + 1]
  for (std::int64_t f = thread_in_grid(); f <= factors; f += threads_in_grid()) {
    std::int64_t low = 0, high = n;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (indices[entry[middle]] < f)
        low = middle + 1;
      else
        high = middle;
    }
    start[f] = low;
  }
}

// Entries sorted by factor.
struct ByFactor {
  Tensor entry, start;

  ByFactor(const Call& call, const Tensor& indices, std::int64_t factors)
      : entry(call.empty({indices.numel()}, ScalarType::Long)), start(call.empty({factors + 1}, ScalarType::Long)) {
    const std::int64_t n = indices.numel(), tiles = (n + kTile - 1) / kTile;
    Tensor other = call.empty({n}, ScalarType::Long);
    Tensor count = call.empty({kDigits, tiles}, ScalarType::Long), total = call.empty({kDigits}, ScalarType::Long);
    auto* counts = static_cast<std::int64_t*>(count.data_ptr());
    auto* totals = static_cast<std::int64_t*>(total.data_ptr());
    for (int shift = 0; n > 0 && (shift == 0 || (shift < 64 && (factors - 1) >> shift > 0)); shift += 8) {
      const FactorDigits digits{data<std::int64_t>(indices), shift == 0 ? nullptr : data<std::int64_t>(entry), n,
                                shift};
      call.launch(count_digits_kernel, static_cast<unsigned>(tiles), kBlock, digits, counts);
      call.launch(scan_digits_kernel, kDigits, kBlock, tiles, counts, totals);
      call.launch(place_kernel, static_cast<unsigned>(tiles), kBlock, digits, counts, totals,
                  static_cast<std::int64_t*>(other.data_ptr()));
      std::swap(entry, other);
    }
    call.launch(start_kernel, few_blocks(factors + 1), kBlock, data<std::int64_t>(indices), data<std::int64_t>(entry),
                n, factors, static_cast<std::int64_t*>(start.data_ptr()));
  }
};

}  // namespace pysel
