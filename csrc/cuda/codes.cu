// The sparse products that use top-k codes, and how often and how widely their factors are active (TopK sparse
// autoencoders: Gao et al., arXiv 2406.04093).
//
// Codes of B rows are entries e = b k + j, each a factor indices[b, j] and a value. sparse_decode sums by row; its
// gradient to the weights sums by factor, so entries are sorted by factor first, keeping their order:
//
//   indices   [4 1] [1 0] [4 2]       entries 0 1 | 2 3 | 4 5
//   entry      3 | 1 2 | 5 | | 0 4    of factors 0, 1, 2, 3, 4
//   start      0   1     3   4 4   6
//
// A block then adds up a list of rows, one after another as the CPU does: no float atomics, and the same bits. A factor
// that most rows share is a long list for the few blocks that own it.
#include "common/op.h"

#include <initializer_list>
#include <tuple>
#include <utility>

#include "common/codes.h"
#include "common/math.h"
#include "cuda/call.cuh"

namespace pysel {
namespace {

constexpr unsigned kBlock = 256;
constexpr unsigned kMostBlocks = 4096;  // of kernels that check or fill, or a warp of which may report an entry

template <typename T>
__device__ T not_a_number() {
  return static_cast<T>(static_cast<Compute<T>>(__builtin_nanf("")));
}

// --- checks ---

__global__ void clear_kernel(unsigned* bad) { *bad = 0; }

// Sets `bad` where an index is none of `count` factors, or groups; who sets it reports.
__global__ void check_indices_kernel(const std::int64_t* __restrict__ indices,  // [n]
                                     std::int64_t n, std::int64_t count, Report report, unsigned* bad) {
  std::int64_t outside = -1;  // where
  for (std::int64_t i = thread_in_grid(); i < n; i += threads_in_grid())
    if (outside < 0 && static_cast<std::uint64_t>(indices[i]) >= static_cast<std::uint64_t>(count)) outside = i;
  if (leads(__ballot_sync(kAllLanes, outside >= 0)) && atomicExch(bad, 1u) == 0) report(count - 1, indices[outside]);
}

// --- sums of rows ---

// A thread's columns of a row, loaded at once.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Columns {
  T of[kWidth];
};

template <typename T, int kWidth>
__device__ void store(T* to, const Columns<T, kWidth>& columns) {
  if constexpr (sizeof(columns) == sizeof(uint4))  // a plain assignment becomes a store per column
    __stcg(reinterpret_cast<uint4*>(to), pysel::bit_cast<uint4>(columns));
  else
    *to = columns.of[0];
}

// What is summed into each row of a result: rows of a matrix, times values. By row of codes (start is null) term t is
// entry t and the matrix has a row for each factor; by factor, term t is entry[t] and the matrix has a row for each row
// of codes.
template <typename T>
struct Terms {
  const T* values;              // [B, k]
  const std::int64_t* indices;  // [B, k]
  std::int64_t k;
  const std::int64_t* entry;  // [B k], by factor
  const std::int64_t* start;  // [H + 1], or null

  __device__ std::int64_t begin(std::int64_t row) const { return start == nullptr ? row * k : start[row]; }
  __device__ std::int64_t entry_at(std::int64_t term) const { return start == nullptr ? term : entry[term]; }
  __device__ std::int64_t row_of(std::int64_t e) const { return start == nullptr ? indices[e] : e / k; }
};

template <typename A>
struct StagedTerms {
  static constexpr int kTerms = 256;
  std::int64_t row[kTerms];
  A coefficient[kTerms];
};

// out[r] = bias + the terms of r, in order. A block takes a row and as many columns as its threads hold.
template <typename T, int kWidth>
__global__ void sum_rows_kernel(Terms<T> terms,
                                const T* __restrict__ matrix,  // [n, d]
                                std::int64_t n, std::int64_t d,
                                const T* __restrict__ bias,  // [d] or null
                                const unsigned* __restrict__ bad, Report report, std::int64_t rows,
                                T* __restrict__ out) {  // [rows, d]
  using A = Compute<T>;
  auto& staged = shared<StagedTerms<A>>();
  const std::int64_t stride = std::int64_t{blockDim.x} * kWidth;
  const std::int64_t slices = d > 0 ? (d - 1) / stride + 1 : 1;
  const bool refused = bad != nullptr && *bad != 0;
  std::int64_t outside = -1;  // an entry whose row the matrix has not
  for (std::int64_t task = blockIdx.x; task < rows * slices; task += gridDim.x) {
    const std::int64_t row = task / slices;
    const std::int64_t column = task % slices * stride + threadIdx.x * kWidth;
    const bool mine = column < d;
    A sum[kWidth];
#pragma unroll
    for (int v = 0; v < kWidth; ++v)
      sum[v] = refused ? not_a_number<A>() : mine && bias != nullptr ? static_cast<A>(bias[column + v]) : A{0};
    const std::int64_t begin = refused ? 0 : terms.begin(row), end = refused ? 0 : terms.begin(row + 1);
    for (std::int64_t at = begin; at < end; at += staged.kTerms) {
      const int size = static_cast<int>(end - at < staged.kTerms ? end - at : staged.kTerms);
      __syncthreads();  // the terms before these have been added
      for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
        const std::int64_t e = terms.entry_at(at + i);
        std::int64_t from = terms.row_of(e);
        A coefficient = static_cast<A>(terms.values[e]);
        if (static_cast<std::uint64_t>(from) >= static_cast<std::uint64_t>(n)) {
          outside = e;
          from = 0;
          coefficient = not_a_number<A>();
        }
        staged.row[i] = from;
        staged.coefficient[i] = coefficient;
      }
      __syncthreads();
      if (n == 0) {
#pragma unroll
        for (int v = 0; v < kWidth; ++v) sum[v] = not_a_number<A>();
      } else if (mine) {
#pragma unroll 4
        for (int i = 0; i < size; ++i) {
          const auto x = *reinterpret_cast<const Columns<T, kWidth>*>(matrix + staged.row[i] * d + column);
          const A c = staged.coefficient[i];
#pragma unroll
          for (int v = 0; v < kWidth; ++v) sum[v] += c * static_cast<A>(x.of[v]);
        }
      }
    }
    if (!mine) continue;
    Columns<T, kWidth> result;
#pragma unroll
    for (int v = 0; v < kWidth; ++v) result.of[v] = static_cast<T>(sum[v]);
    store(out + row * d + column, result);
  }
  report.of_warp(outside >= 0, n - 1, outside >= 0 ? terms.row_of(outside) : 0);
}

// --- sampled products ---

// out[b, j] = weight[indices[b, j]] . grad[b], a warp an entry. Warps of a block share rows of grad in L1.
template <typename T, int kWidth>
__global__ void sddmm_kernel(const std::int64_t* __restrict__ indices,  // [B, k]
                             std::int64_t entries, std::int64_t k,
                             const T* __restrict__ weight,  // [H, d]
                             std::int64_t factors, std::int64_t d,
                             const T* __restrict__ grad,  // [B, d]
                             Report report,
                             T* __restrict__ out) {  // [B, k]
  using A = Compute<T>;
  const unsigned lane = threadIdx.x % kWarp;
  std::int64_t outside = -1;  // an entry without a factor
  for (std::int64_t e = thread_in_grid() / kWarp; e < entries; e += threads_in_grid() / kWarp) {
    const std::int64_t factor = indices[e];
    if (static_cast<std::uint64_t>(factor) >= static_cast<std::uint64_t>(factors)) {
      if (lane == 0) out[e] = not_a_number<T>();
      outside = e;
      continue;
    }
    const T *w = weight + factor * d, *g = grad + e / k * d;
    A part[kWidth] = {};
#pragma unroll 4
    for (std::int64_t i = lane * kWidth; i < d; i += kWarp * kWidth) {
      const auto x = *reinterpret_cast<const Columns<T, kWidth>*>(w + i);
      const auto y = *reinterpret_cast<const Columns<T, kWidth>*>(g + i);
#pragma unroll
      for (int v = 0; v < kWidth; ++v) part[v] += static_cast<A>(x.of[v]) * static_cast<A>(y.of[v]);
    }
    A sum = part[0];
#pragma unroll
    for (int v = 1; v < kWidth; ++v) sum += part[v];
    for (unsigned other = kWarp / 2; other > 0; other /= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
    if (lane == 0) out[e] = static_cast<T>(sum);
  }
  if (outside >= 0 && lane == 0) report(factors - 1, indices[outside]);
}

// --- entries by factor: a stable radix sort, eight bits of the factor a pass ---

constexpr unsigned kDigits = 256;
static_assert(kDigits == kBlock);  // a thread a digit
constexpr unsigned kSortWarps = kBlock / kWarp;
constexpr int kRounds = 8;  // entries of a thread
constexpr int kTile = kBlock * kRounds;

// Entries in the order of the passes so far, null before the first, and the digit that this pass looks at.
struct Digits {
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

__global__ void count_digits_kernel(Digits digits, std::int64_t* __restrict__ count) {  // [kDigits, tiles]
  auto& tile = shared<DigitCounts>();
  tile.of[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t first = std::int64_t{blockIdx.x} * kTile;
  for (unsigned i = threadIdx.x; i < kTile && first + i < digits.n; i += kBlock)
    atomicAdd(&tile.of[digits.digit(digits.entry_at(first + i))], 1u);
  __syncthreads();
  count[std::int64_t{threadIdx.x} * gridDim.x + blockIdx.x] = tile.of[threadIdx.x];
}

// The sum of x over the block's threads before this one; `total` over all.
__device__ std::int64_t sum_before(std::int64_t x, std::int64_t* of_warp, std::int64_t& total) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  std::int64_t sum = x;
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    const std::int64_t before = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += before;
  }
  __syncthreads();  // what of_warp held has been read
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  std::int64_t before = 0;
  total = 0;
  for (unsigned w = 0; w < kSortWarps; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  return before + sum - x;
}

struct WarpSums {
  std::int64_t of[kSortWarps];
};

// Counts become sums over the tiles before; a block a digit.
__global__ void scan_digits_kernel(std::int64_t tiles,
                                   std::int64_t* __restrict__ count,    // [kDigits, tiles]
                                   std::int64_t* __restrict__ total) {  // [kDigits]
  auto& sums = shared<WarpSums>();
  std::int64_t* of_digit = count + blockIdx.x * tiles;
  std::int64_t before = 0;
  for (std::int64_t first = 0; first < tiles; first += kBlock) {
    const std::int64_t tile = first + threadIdx.x;
    std::int64_t chunk = 0;
    const std::int64_t sum = sum_before(tile < tiles ? of_digit[tile] : 0, sums.of, chunk);
    if (tile < tiles) of_digit[tile] = before + sum;
    before += chunk;
  }
  if (threadIdx.x == 0) total[blockIdx.x] = before;
}

struct TileRanks {
  unsigned seen[kSortWarps][kDigits];  // by each warp so far; then by the warps before it
  std::int64_t base[kDigits];          // where the tile's first entry of a digit goes
  std::int64_t of_warp[kSortWarps];
};

__global__ void place_kernel(Digits digits,
                             const std::int64_t* __restrict__ before,  // [kDigits, tiles]
                             const std::int64_t* __restrict__ total,   // [kDigits]
                             std::int64_t* __restrict__ out) {         // [n]
  auto& tile = shared<TileRanks>();
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  std::int64_t all = 0;
  tile.base[threadIdx.x] =
      sum_before(total[threadIdx.x], tile.of_warp, all) + before[std::int64_t{threadIdx.x} * gridDim.x + blockIdx.x];
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
__global__ void start_kernel(const std::int64_t* __restrict__ indices,  // [n]
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

// --- factors ---

constexpr unsigned kTables = 2;  // that a block adds up at a time

struct RowFactors {
  std::int64_t factor[kBlock];       // -1 where inactive
  double term[kTables + 1][kBlock];  // of each table, and what a mean is divided by the sum of
};

// Whether thread t's entry, at + t of a row of k, is active (its value above 0) and the row's first of its factor.
// All threads of the block call it.
template <typename T>
__device__ bool first_active(const T* __restrict__ values,              // [k]
                             const std::int64_t* __restrict__ indices,  // [k]
                             std::int64_t k, std::int64_t at, std::int64_t* staged) {
  auto active_factor = [&](std::int64_t j) {
    return j < k && static_cast<Compute<T>>(values[j]) > 0 ? indices[j] : -1;
  };
  const std::int64_t factor = active_factor(at + threadIdx.x);
  bool first = factor >= 0;
  for (std::int64_t from = 0; from <= at; from += blockDim.x) {
    __syncthreads();  // what was staged has been read
    staged[threadIdx.x] = active_factor(from + threadIdx.x);
    __syncthreads();
    const unsigned earlier = from < at ? blockDim.x : threadIdx.x;
    for (unsigned i = 0; i < earlier; ++i) first &= staged[i] != factor;
  }
  return first;
}

__global__ void fill_counts_kernel(const unsigned* __restrict__ bad, std::int64_t n,
                                   std::int64_t* __restrict__ out) {  // [n]
  const std::int64_t value = *bad != 0 ? -1 : 0;
  for (std::int64_t i = thread_in_grid(); i < n; i += threads_in_grid()) out[i] = value;
}

// A block a row.
template <typename T>
__global__ void factor_counts_kernel(const T* __restrict__ values,              // [B, k]
                                     const std::int64_t* __restrict__ indices,  // [B, k]
                                     const std::int64_t* __restrict__ groups,   // [B] or null
                                     std::int64_t rows, std::int64_t k, std::int64_t factors,
                                     const unsigned* __restrict__ bad,
                                     std::int64_t* __restrict__ out) {  // [G, H]
  if (*bad != 0) return;
  auto& row = shared<RowFactors>();
  for (std::int64_t b = blockIdx.x; b < rows; b += gridDim.x) {
    std::int64_t* counts = out + (groups == nullptr ? 0 : groups[b] * factors);
    for (std::int64_t at = 0; at < k; at += blockDim.x)
      if (first_active(values + b * k, indices + b * k, k, at, row.factor))
        atomicAdd(reinterpret_cast<unsigned long long*>(counts + indices[b * k + at + threadIdx.x]), 1ull);
  }
}

// A block a row, a few tables at a time. A thread for each of them, and one for the weights, adds up what all threads
// look up, in the order of the entries.
template <typename T, typename R>
__global__ void factor_scores_kernel(const T* __restrict__ values,              // [B, k]
                                     const std::int64_t* __restrict__ indices,  // [B, k]
                                     std::int64_t rows, std::int64_t k,
                                     const R* __restrict__ tables,  // [T, H]
                                     std::int64_t count, std::int64_t factors, bool mean, bool weighted,
                                     const unsigned* __restrict__ bad, R* __restrict__ out) {  // [B, T]
  auto& row = shared<RowFactors>();
  const bool refused = *bad != 0;
  for (std::int64_t b = blockIdx.x; b < rows; b += gridDim.x) {
    bool first = false;
    for (std::int64_t table = 0; table < count; table += kTables) {
      double sum = 0;
      for (std::int64_t at = 0; at < k && !refused; at += blockDim.x) {
        const std::int64_t e = b * k + at + threadIdx.x;
        if (table == 0 || k > blockDim.x)
          first = first_active(values + b * k, indices + b * k, k, at, row.factor);
        else
          __syncthreads();  // the terms of the tables before have been added
        const double weight = !first ? 0 : weighted ? static_cast<double>(static_cast<Compute<T>>(values[e])) : 1;
        for (unsigned t = 0; t < kTables; ++t) {
          const bool counts = first && table + t < count;
          row.term[t][threadIdx.x] =
              counts ? weight * static_cast<double>(tables[(table + t) * factors + indices[e]]) : 0;
        }
        row.term[kTables][threadIdx.x] = weight;
        __syncthreads();
        if (threadIdx.x <= kTables)
          for (unsigned i = 0; i < blockDim.x; ++i) sum += row.term[threadIdx.x][i];
      }
      if (threadIdx.x >= kWarp) continue;
      const double total = __shfl_sync(kAllLanes, sum, kTables);
      if (threadIdx.x >= kTables || table + threadIdx.x >= count) continue;
      const double score = mean && total > 0 ? sum / total : sum;
      out[b * count + table + threadIdx.x] = refused ? not_a_number<R>() : static_cast<R>(score);
    }
  }
}

// --- launches ---

unsigned few_blocks(std::int64_t items) { return std::min(grid_size(items, kBlock), kMostBlocks); }

// Whole warps for `items`, at most a block.
unsigned block_size(std::int64_t items) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((items + kWarp - 1) / kWarp * kWarp, kWarp, kBlock));
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}

// f.template operator()<T, kWidth>() with as many columns as 16 bytes hold, or one where rows of d are not aligned.
template <typename F>
void dispatch_columns(const char* op, const char* argument, const Tensor& t, std::int64_t d,
                      std::initializer_list<Tensor> matrices, F f) {
  dispatch_floating(op, argument, t, [&]<typename T>() {
    constexpr int kWidth = 16 / sizeof(T);
    bool aligned = d % kWidth == 0;
    for (const Tensor& m : matrices) aligned = aligned && reinterpret_cast<std::uintptr_t>(m.data_ptr()) % 16 == 0;
    aligned ? f.template operator()<T, kWidth>() : f.template operator()<T, 1>();
  });
}

// Whether anything is bad, on the device.
class Bad {
 public:
  explicit Bad(const Call& call) : call_(call), tensor_(call.empty({1}, ScalarType::Int)) {
    call.launch(clear_kernel, 1, 1, flag());
  }

  unsigned* flag() const { return static_cast<unsigned*>(tensor_.data_ptr()); }

  void check_indices(const Tensor& indices, std::int64_t count, const Fault& fault) const {
    if (indices.numel() > 0)
      call_.launch(check_indices_kernel, few_blocks(indices.numel()), kBlock, data<std::int64_t>(indices),
                   indices.numel(), count, call_.always(fault), flag());
  }

 private:
  const Call& call_;
  Tensor tensor_;
};

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
      const Digits digits{data<std::int64_t>(indices), shift == 0 ? nullptr : data<std::int64_t>(entry), n, shift};
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

template <typename T, int kWidth>
void sum_rows(const Call& call, const Terms<T>& terms, const Tensor& matrix, const Tensor* bias, const unsigned* bad,
              const Report& report, const Tensor& out) {
  const std::int64_t rows = out.size(0), d = out.size(1);
  if (rows == 0) return;
  const std::int64_t packs = std::max<std::int64_t>(d / kWidth, 1);
  const unsigned block = block_size(packs);
  call.launch(sum_rows_kernel<T, kWidth>, grid_size(rows * ((packs - 1) / block + 1), 1), block, terms, data<T>(matrix),
              matrix.size(0), d, bias ? data<T>(*bias) : nullptr, bad, report, rows, static_cast<T*>(out.data_ptr()));
}

// Rows of [B, d] times values, summed by factor.
void sum_by_factor(const char* op, const Call& call, const Tensor& values, const Tensor& indices, const Tensor& rows,
                   const Fault& fault, const Tensor& out) {
  const std::int64_t factors = out.size(0), d = out.size(1);
  const Bad bad(call);
  bad.check_indices(indices, factors, fault);
  if (out.numel() == 0) return;
  const ByFactor by_factor(call, indices, factors);
  dispatch_columns(op, "values", values, d, {rows, out}, [&]<typename T, int kWidth>() {
    const Terms<T> terms{data<T>(values), data<std::int64_t>(indices), values.size(1),
                         data<std::int64_t>(by_factor.entry), data<std::int64_t>(by_factor.start)};
    sum_rows<T, kWidth>(call, terms, rows, nullptr, bad.flag(), call.always(fault), out);
  });
}

void dot_rows(const char* op, const Call& call, const Tensor& indices, const Tensor& weight, const Tensor& grad,
              const Fault& fault, const Tensor& out) {
  const std::int64_t entries = indices.numel(), d = weight.size(1);
  if (entries == 0) return;
  dispatch_columns(op, "weight", weight, d, {weight, grad}, [&]<typename T, int kWidth>() {
    call.launch(sddmm_kernel<T, kWidth>, std::min(grid_size(entries, kBlock / kWarp), kMostBlocks), kBlock,
                data<std::int64_t>(indices), entries, indices.size(1), data<T>(weight), weight.size(0), d,
                data<T>(grad), call.always(fault), static_cast<T*>(out.data_ptr()));
  });
}

// --- ops ---

constexpr Fault kDecodeFault{Fault::index, "sparse_decode: indices must be between 0 and #, got #"};
constexpr Fault kSddmmFault{Fault::index, "sddmm: indices must be between 0 and #, got #"};
constexpr Fault kSpmmFault{Fault::index, "spmm_t: indices must be between 0 and #, got #"};
constexpr Fault kBackwardFault{Fault::index, "sparse_decode_backward: indices must be between 0 and #, got #"};
constexpr Fault kCountsFault{Fault::index, "factor_counts: indices must be between 0 and #, got #"};
constexpr Fault kScoresFault{Fault::index, "factor_scores: indices must be between 0 and #, got #"};
constexpr Fault kGroupsFault{Fault::index, "factor_counts: groups must be between 0 and #, got #"};

void write_sparse_decode(const char* op, const Call& call, const Tensor& values, const Tensor& indices,
                         const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  const Tensor values_c = torch::stable::contiguous(values), indices_c = torch::stable::contiguous(indices);
  const Tensor weight_c = torch::stable::contiguous(weight);
  std::optional<Tensor> bias_c;
  if (bias) bias_c = torch::stable::contiguous(*bias);
  dispatch_columns(op, "values", values, weight.size(1), {weight_c, out}, [&]<typename T, int kWidth>() {
    const Terms<T> terms{data<T>(values_c), data<std::int64_t>(indices_c), values.size(1), nullptr, nullptr};
    sum_rows<T, kWidth>(call, terms, weight_c, bias_c ? &*bias_c : nullptr, nullptr, call.always(kDecodeFault), out);
  });
}

Tensor sparse_decode(Tensor values, Tensor indices, Tensor weight, std::optional<Tensor> bias) {
  constexpr const char* op = "sparse_decode";
  check_sparse_decode(op, values, indices, weight, bias);
  const Call call(values);
  Tensor out = call.empty({values.size(0), weight.size(1)}, values.scalar_type());
  write_sparse_decode(op, call, values, indices, weight, bias, out);
  return out;
}

void sparse_decode_out(Tensor values, Tensor indices, Tensor weight, std::optional<Tensor> bias, Tensor out) {
  constexpr const char* op = "sparse_decode";
  check_sparse_decode(op, values, indices, weight, bias);
  check_sparse_decode_out(op, out, values, indices, weight, bias);
  write_sparse_decode(op, Call(values), values, indices, weight, bias, out);
}

Tensor sddmm(Tensor indices, Tensor weight, Tensor grad) {
  constexpr const char* op = "sddmm";
  check_sddmm(op, indices, weight, grad);
  const Call call(weight);
  Tensor out = call.empty(sizes(indices), weight.scalar_type());
  dot_rows(op, call, torch::stable::contiguous(indices), torch::stable::contiguous(weight),
           torch::stable::contiguous(grad), kSddmmFault, out);
  return out;
}

Tensor spmm_t(Tensor values, Tensor indices, Tensor rows, int64_t num_factors) {
  constexpr const char* op = "spmm_t";
  check_spmm_t(op, values, indices, rows, num_factors);
  const Call call(values);
  Tensor out = call.empty({num_factors, rows.size(1)}, values.scalar_type());
  sum_by_factor(op, call, torch::stable::contiguous(values), torch::stable::contiguous(indices),
                torch::stable::contiguous(rows), kSpmmFault, out);
  return out;
}

// What sddmm and spmm_t give.
std::tuple<Tensor, Tensor> sparse_decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor weight) {
  constexpr const char* op = "sparse_decode_backward";
  check_sparse_decode_backward(op, grad, values, indices, weight);
  const Call call(values);
  Tensor to_values = call.empty(sizes(values), values.scalar_type());
  Tensor to_weight = call.empty(sizes(weight), weight.scalar_type());
  const Tensor grad_c = torch::stable::contiguous(grad), indices_c = torch::stable::contiguous(indices);
  dot_rows(op, call, indices_c, torch::stable::contiguous(weight), grad_c, kBackwardFault, to_values);
  sum_by_factor(op, call, torch::stable::contiguous(values), indices_c, grad_c, kBackwardFault, to_weight);
  return {to_values, to_weight};
}

Tensor factor_counts(Tensor values, Tensor indices, int64_t num_factors, std::optional<Tensor> groups,
                     std::optional<int64_t> num_groups) {
  constexpr const char* op = "factor_counts";
  check_factor_counts(op, values, indices, num_factors, groups, num_groups);
  const Call call(values);
  Tensor out = call.empty(groups ? std::vector{*num_groups, num_factors} : std::vector{num_factors}, ScalarType::Long);
  auto* counts = static_cast<std::int64_t*>(out.data_ptr());
  const Tensor values_c = torch::stable::contiguous(values), indices_c = torch::stable::contiguous(indices);
  std::optional<Tensor> groups_c;
  if (groups) groups_c = torch::stable::contiguous(*groups);
  const Bad bad(call);
  bad.check_indices(indices_c, num_factors, kCountsFault);
  if (groups) bad.check_indices(*groups_c, *num_groups, kGroupsFault);
  if (out.numel() == 0) return out;
  call.launch(fill_counts_kernel, few_blocks(out.numel()), kBlock, bad.flag(), out.numel(), counts);
  if (values.numel() == 0) return out;
  dispatch_floating(op, "values", values, [&]<typename T>() {
    call.launch(factor_counts_kernel<T>, grid_size(values.size(0), 1), block_size(values.size(1)), data<T>(values_c),
                data<std::int64_t>(indices_c), groups ? data<std::int64_t>(*groups_c) : nullptr, values.size(0),
                values.size(1), num_factors, bad.flag(), counts);
  });
  return out;
}

Tensor factor_scores(Tensor values, Tensor indices, Tensor tables, std::string reduce, bool weighted) {
  constexpr const char* op = "factor_scores";
  check_factor_scores(op, values, indices, tables, reduce);
  const Call call(values);
  const std::int64_t rows = values.size(0), k = values.size(1), factors = tables.size(tables.dim() - 1);
  const std::int64_t count = tables.dim() == 1 ? 1 : tables.size(0);
  Tensor out = call.empty(tables.dim() == 1 ? std::vector{rows} : std::vector{rows, count}, tables.scalar_type());
  const Tensor values_c = torch::stable::contiguous(values), indices_c = torch::stable::contiguous(indices);
  const Tensor tables_c = torch::stable::contiguous(tables);
  const Bad bad(call);
  bad.check_indices(indices_c, factors, kScoresFault);
  if (out.numel() == 0) return out;
  auto run = [&]<typename R>() {
    dispatch_floating(op, "values", values, [&]<typename T>() {
      call.launch(factor_scores_kernel<T, R>, grid_size(rows, 1), block_size(k), data<T>(values_c),
                  data<std::int64_t>(indices_c), rows, k, data<R>(tables_c), count, factors, reduce == "mean", weighted,
                  bad.flag(), static_cast<R*>(out.data_ptr()));
    });
  };
  if (tables.scalar_type() == ScalarType::Float)
    run.operator()<float>();
  else
    run.operator()<double>();
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("sparse_decode", PYSEL_OP(&pysel::sparse_decode));
  m.impl("sparse_decode.out", PYSEL_OP(&pysel::sparse_decode_out));
  m.impl("sddmm", PYSEL_OP(&pysel::sddmm));
  m.impl("spmm_t", PYSEL_OP(&pysel::spmm_t));
  m.impl("sparse_decode_backward", PYSEL_OP(&pysel::sparse_decode_backward));
  m.impl("factor_counts", PYSEL_OP(&pysel::factor_counts));
  m.impl("factor_scores", PYSEL_OP(&pysel::factor_scores));
}
