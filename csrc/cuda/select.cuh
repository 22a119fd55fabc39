#pragma once

// The k largest keys of each row, exactly, ties by lowest index, as ascending indices. Keys are functions of the
// element, asked for anew instead of stored. The host waits for nothing, and allocates by n and k alone.
//
//   sample    a few thousand keys of a row bracket its k-th largest within [low, high]
//   mark      one pass over all keys: a bit for each above `high`; those within the bracket become candidates
//   digits    radix selection among the candidates, or, where the bracket missed or held too many of them, among all
//             keys: by the bytes of the key, then by those of the inverted index, so that no ties are left
//   finish    bits for what is selected beside those above `high`
//   count, place, expand    the indices are read off the bits
//
// Each step is a kernel that finds on the device what the step before left there. Bits lie at an element's position in
// its row plus the row's phase (see Row), so that quads never straddle words.

#include "common/order.h"
#include "cuda/rows.cuh"

namespace pysel {

// What a source of keys notes of the elements it sees. A source gives the keys of a quad of row r, as integers of which
// the largest are wanted, and anything for elements outside the row:
//
//   struct Source {
//     using Bits = ...;
//     void keys(const Row& row, int64_t r, int64_t quad, Bits (&key)[4], Seen& seen) const;
//     Source rows_from(int64_t first) const;  // where row `first` is row 0
//   };
struct Seen {
  unsigned permitted = 0;  // elements that may be selected
  bool bad = false;        // an element that must be refused
};

// What to tell when a row cannot be selected from.
struct SelectReports {
  Report bad;
  Report too_few;  // with the number that may be selected, and k
};

constexpr unsigned kSelectBlock = 256;
constexpr int kTileQuads = 4;                                            // of a thread
constexpr std::int64_t kTile = std::int64_t{kSelectBlock} * kTileQuads;  // quads of a tile
constexpr std::int64_t kTileWords = kTile / 8;                           // of bits
constexpr std::int64_t kPartWords = 4 * kTileWords;                      // counted together
constexpr int kSampled = 4096;
constexpr std::int64_t kFew = 2 * kSampled;  // elements that are not worth a guess: all are candidates
constexpr int kBins = 256;

// Per row. Zero to begin with, but for the bracket.
template <typename Bits>
struct RowTally {
  Bits low, high;  // of the bracket
  unsigned long long above, within, permitted;
  unsigned bad;
};

template <typename Bits>
struct SelectCandidate {
  std::int64_t at;
  Bits key;
};

// What digits have settled: elements of a larger (key, inverted index) are in, and `wanted` of those that share its
// settled digits.
template <typename Bits>
struct Settled {
  Bits key;
  std::uint64_t inverted;
  std::int64_t wanted;
  bool from_candidates;
  bool done;  // all of those are wanted
  bool bad;   // nothing is
};

// All of a selection but its source.
template <typename Bits>
struct Selection {
  std::int64_t rows, n, k;
  NoiseArgument noise;               // of the keys, if they have any
  std::int64_t tiles, words, parts;  // of a row
  std::int64_t room;                 // for candidates of a row
  int key_bytes, index_bytes;
  RowTally<Bits>* tally;              // [rows]
  Settled<Bits>* settled;             // [key_bytes + index_bytes + 1, rows]
  unsigned long long* histogram;      // [key_bytes + index_bytes, rows, kBins]
  SelectCandidate<Bits>* candidates;  // [rows, room]
  unsigned* bits;                     // [rows, words]
  unsigned long long* place;          // [rows, parts]: selected elements of a part, then of all before it
  std::int64_t* out;                  // [rows, k]

  PYSEL_HD int digits() const { return key_bytes + index_bytes; }
  __device__ Row row(std::int64_t r) const { return Row(noise, r * n, n); }
  __device__ std::uint64_t inverted(std::int64_t at) const {
    return (index_bytes == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << 8 * index_bytes) - 1) -
           static_cast<std::uint64_t>(at);
  }

  // The digit of an element that shares all digits before it with what is settled; else none.
  __device__ int digit(const Settled<Bits>& s, int d, Bits key, std::int64_t at) const {
    constexpr int top = 8 * static_cast<int>(sizeof(Bits));
    if (d < key_bytes) {
      if (d > 0 && (key ^ s.key) >> (top - 8 * d) != 0) return -1;
      return static_cast<int>(key >> (top - 8 * d - 8) & 0xff);
    }
    if (key != s.key) return -1;
    const std::uint64_t low = inverted(at);
    const int before = 8 * (d - key_bytes), all = 8 * index_bytes;
    if (before > 0 && (low ^ s.inverted) >> (all - before) != 0) return -1;
    return static_cast<int>(low >> (all - before - 8) & 0xff);
  }

  __device__ bool selected(const Settled<Bits>& s, Bits key, std::int64_t at) const {
    return !s.bad && (key > s.key || (key == s.key && inverted(at) >= s.inverted));
  }
};

// splitmix64's finaliser: which element of its stratum a sample takes. Any choice gives the same selection.
__device__ inline std::uint64_t scramble(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// A block a row. The sample is sorted, and the bracket spans four standard deviations of the k-th largest key's rank
// in it, and a few more where k is tiny: `from` to `to`, counted from the largest.
template <typename Source>
__global__ void __launch_bounds__(1024)
    sample_kernel(Source source, Selection<typename Source::Bits> s, int from, int to) {
  using Bits = typename Source::Bits;
  struct Sample {
    Bits key[kSampled];
  };
  Sample& sample = shared<Sample>();
  for (std::int64_t r = blockIdx.x; r < s.rows; r += gridDim.x) {
    const Row row = s.row(r);
    const std::int64_t stratum = s.n / (kSampled / 4);
    for (int i = static_cast<int>(threadIdx.x); i < kSampled / 4; i += static_cast<int>(blockDim.x)) {
      // a whole quad inside the stratum
      const std::int64_t begin = i * stratum + 4;
      const auto offset =
          static_cast<std::int64_t>(scramble(static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(stratum - 7));
      Bits key[4];
      Seen seen;
      source.keys(row, r, (begin + offset) / 4, key, seen);
      for (int j = 0; j < 4; ++j) sample.key[4 * i + j] = key[j];
    }
    __syncthreads();
    for (int run = 2; run <= kSampled; run *= 2)
      for (int apart = run / 2; apart > 0; apart /= 2) {
        for (int i = static_cast<int>(threadIdx.x); i < kSampled / 2; i += static_cast<int>(blockDim.x)) {
          const int a = i / apart * 2 * apart + i % apart, b = a + apart;
          const bool descending = (a & run) == 0;
          const Bits x = sample.key[a], y = sample.key[b];
          if ((x < y) == descending) {
            sample.key[a] = y;
            sample.key[b] = x;
          }
        }
        __syncthreads();
      }
    if (threadIdx.x == 0) {
      s.tally[r].high = from < 0 ? static_cast<Bits>(~Bits{0}) : sample.key[from];
      s.tally[r].low = to >= kSampled ? Bits{0} : sample.key[to];
    }
    __syncthreads();  // before the next row's sample
  }
}

template <typename Bits>
__global__ void __launch_bounds__(kSelectBlock) no_sample_kernel(Selection<Bits> s) {
  for (std::int64_t r = thread_in_grid(); r < s.rows; r += threads_in_grid())
    s.tally[r].high = static_cast<Bits>(~Bits{0});
}

// The bits of a warp's quads, four each, in words: lane 8 j holds word j of four.
__device__ inline unsigned word_of(unsigned four) {
  unsigned word = four << threadIdx.x % 8 * 4;
  for (int offset = 1; offset < 8; offset *= 2) word |= __shfl_xor_sync(kAllLanes, word, offset);
  return word;
}

// Sum over the block, and over the threads before this one.
struct BlockSum {
  std::uint64_t before, all;
};

struct BlockSumSlots {
  std::uint64_t warp[kSelectBlock / kWarp];
};

__device__ inline BlockSum block_sum(std::uint64_t mine, BlockSumSlots& slots) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  std::uint64_t upto = mine;
  for (unsigned offset = 1; offset < kWarp; offset *= 2) {
    const std::uint64_t other = __shfl_up_sync(kAllLanes, upto, offset);
    if (lane >= offset) upto += other;
  }
  if (lane == kWarp - 1) slots.warp[warp] = upto;
  __syncthreads();
  BlockSum sum{upto - mine, 0};
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
    if (w < warp) sum.before += slots.warp[w];
    sum.all += slots.warp[w];
  }
  __syncthreads();  // before the slots are used again
  return sum;
}

template <typename Source>
__global__ void __launch_bounds__(kSelectBlock) mark_kernel(Source source, Selection<typename Source::Bits> s) {
  using Bits = typename Source::Bits;
  struct Mark {
    BlockSumSlots sum;
    unsigned long long first;
  };
  Mark& mark = shared<Mark>();
  for (std::int64_t tile = blockIdx.x; tile < s.rows * s.tiles; tile += gridDim.x) {
    const std::int64_t r = tile / s.tiles, first_quad = tile % s.tiles * kTile;
    const Row row = s.row(r);
    RowTally<Bits>& tally = s.tally[r];
    const Bits low = tally.low, high = tally.high;
    Bits key[kTileQuads][4];
    unsigned within[kTileQuads];  // a bit an element
    unsigned above_count = 0, within_count = 0;
    Seen seen;
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) {
      const std::int64_t quad = first_quad + j * kSelectBlock + threadIdx.x;
      unsigned above = 0;
      within[j] = 0;
      if (quad < row.quads()) {
        source.keys(row, r, quad, key[j], seen);
        for (int i = 0; i < 4; ++i) {
          const bool here = row.holds(row.begin(quad) + i);
          above |= here && key[j][i] > high ? 1u << i : 0u;
          within[j] |= here && key[j][i] >= low && key[j][i] <= high ? 1u << i : 0u;
        }
      }
      above_count += __popc(above);
      within_count += __popc(within[j]);
      const unsigned word = word_of(above);
      const std::int64_t at = (first_quad + j * kSelectBlock + threadIdx.x) / 8;
      if (threadIdx.x % 8 == 0 && at < s.words) s.bits[r * s.words + at] = word;
    }
    // three counts below 2^20 in one sum
    const BlockSum sum =
        block_sum(within_count | std::uint64_t{above_count} << 20 | std::uint64_t{seen.permitted} << 40, mark.sum);
    const bool bad = __syncthreads_or(seen.bad) != 0;
    if (threadIdx.x == 0) {
      const unsigned long long found = sum.all & 0xfffff, above = sum.all >> 20 & 0xfffff, permitted = sum.all >> 40;
      mark.first = found > 0 ? atomicAdd(&tally.within, found) : 0;
      if (above > 0) atomicAdd(&tally.above, above);
      if (permitted > 0) atomicAdd(&tally.permitted, permitted);
      if (bad) atomicOr(&tally.bad, 1u);
    }
    __syncthreads();
    std::int64_t to = static_cast<std::int64_t>(mark.first + (sum.before & 0xfffff));
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) {
      const std::int64_t quad = first_quad + j * kSelectBlock + threadIdx.x;
      for (int i = 0; i < 4; ++i) {
        if ((within[j] >> i & 1) == 0) continue;
        if (to < s.room) s.candidates[r * s.room + to] = {row.begin(quad) + i, key[j][i]};
        ++to;
      }
    }
  }
}

// What is settled before digit d: the same in every thread of the block, found from the digit before.
template <typename Bits>
__device__ Settled<Bits> settle(const Selection<Bits>& s, const SelectReports& reports, std::int64_t r, int d,
                                bool leader) {
  struct Settle {
    BlockSumSlots sum;
    unsigned long long above;  // elements of larger digits
    unsigned long long here;
    int bin;
  };
  Settle& found = shared<Settle>();
  Settled<Bits> now;
  if (d == 0) {
    const RowTally<Bits>& t = s.tally[r];
    const auto k = static_cast<unsigned long long>(s.k);
    const bool bad = reports.bad && t.bad != 0, too_few = reports.too_few && t.permitted < k;
    const bool hit = t.above < k && k <= t.above + t.within && t.within <= static_cast<unsigned long long>(s.room);
    now = {0, 0, hit ? s.k - static_cast<std::int64_t>(t.above) : s.k, hit, s.k == 0, bad || too_few};
    if (leader && threadIdx.x == 0) {
      if (bad)
        reports.bad();
      else if (too_few)
        reports.too_few(static_cast<std::int64_t>(t.permitted), s.k);
    }
  } else {
    now = s.settled[(d - 1) * s.rows + r];
    if (!now.done && !now.bad) {
      // thread 0 has the largest digit
      const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
      const unsigned long long count = s.histogram[((d - 1) * s.rows + r) * kBins + bin];
      const BlockSum sum = block_sum(count, found.sum);
      const auto wanted = static_cast<unsigned long long>(now.wanted);
      if (sum.before < wanted && wanted <= sum.before + count) {
        found.above = sum.before;
        found.here = count;
        found.bin = bin;
      }
      __syncthreads();
      now.wanted -= static_cast<std::int64_t>(found.above);
      now.done = static_cast<unsigned long long>(now.wanted) == found.here;
      const int shift = 8 * (d <= s.key_bytes ? s.key_bytes - d : s.digits() - d);
      if (d <= s.key_bytes)
        now.key |= static_cast<Bits>(static_cast<Bits>(found.bin) << shift);
      else
        now.inverted |= static_cast<std::uint64_t>(found.bin) << shift;
      __syncthreads();  // before the next row's
    }
  }
  if (leader && threadIdx.x == 0) s.settled[d * s.rows + r] = now;
  return now;
}

// Counts digit d of what shares all digits before it with what is settled. A row's blocks stride over its elements.
template <typename Source>
__global__ void __launch_bounds__(kSelectBlock) digit_kernel(Source source, Selection<typename Source::Bits> s,
                                                             SelectReports reports, int d, unsigned blocks_of_row) {
  using Bits = typename Source::Bits;
  struct Histogram {
    unsigned count[kBins];
  };
  Histogram& histogram = shared<Histogram>();
  for (std::int64_t b = blockIdx.x; b < s.rows * blocks_of_row; b += gridDim.x) {
    const std::int64_t r = b / blocks_of_row, block = b % blocks_of_row;
    const Settled<Bits> settled = settle(s, reports, r, d, block == 0);
    if (settled.done || settled.bad) continue;
    histogram.count[threadIdx.x] = 0;
    __syncthreads();
    const auto count = [&](Bits key, std::int64_t at) {
      const int digit = s.digit(settled, d, key, at);
      if (digit >= 0) atomicAdd(&histogram.count[digit], 1u);
    };
    const std::int64_t first = block * kSelectBlock + threadIdx.x, stride = std::int64_t{blocks_of_row} * kSelectBlock;
    if (settled.from_candidates) {
      const auto within = static_cast<std::int64_t>(s.tally[r].within);
      for (std::int64_t c = first; c < within; c += stride) {
        const SelectCandidate<Bits> candidate = s.candidates[r * s.room + c];
        count(candidate.key, candidate.at);
      }
    } else {
      const Row row = s.row(r);
      for (std::int64_t quad = first; quad < row.quads(); quad += stride) {
        Bits key[4];
        Seen seen;
        source.keys(row, r, quad, key, seen);
        for (int i = 0; i < 4; ++i)
          if (row.holds(row.begin(quad) + i)) count(key[i], row.begin(quad) + i);
      }
    }
    __syncthreads();
    if (histogram.count[threadIdx.x] > 0)
      atomicAdd(&s.histogram[(d * s.rows + r) * kBins + threadIdx.x],
                static_cast<unsigned long long>(histogram.count[threadIdx.x]));
    __syncthreads();  // before the next row's
  }
}

template <typename Source>
__global__ void __launch_bounds__(kSelectBlock)
    finish_kernel(Source source, Selection<typename Source::Bits> s, SelectReports reports, unsigned blocks_of_row) {
  using Bits = typename Source::Bits;
  for (std::int64_t b = blockIdx.x; b < s.rows * blocks_of_row; b += gridDim.x) {
    const std::int64_t r = b / blocks_of_row, block = b % blocks_of_row;
    const Settled<Bits> settled = settle(s, reports, r, s.digits(), block == 0);
    const Row row = s.row(r);
    unsigned* bits = s.bits + r * s.words;
    if (settled.from_candidates) {
      const auto within = static_cast<std::int64_t>(s.tally[r].within);
      for (std::int64_t c = block * kSelectBlock + threadIdx.x; c < within;
           c += std::int64_t{blocks_of_row} * kSelectBlock) {
        const SelectCandidate<Bits> candidate = s.candidates[r * s.room + c];
        if (!s.selected(settled, candidate.key, candidate.at)) continue;
        const std::int64_t bit = candidate.at - row.begin(0);
        atomicOr(&bits[bit / 32], 1u << bit % 32);
      }
    } else {
      // whole warps, for the words' sake
      for (std::int64_t first = block * kSelectBlock; first < s.words * 8;
           first += std::int64_t{blocks_of_row} * kSelectBlock) {
        const std::int64_t quad = first + threadIdx.x;
        unsigned four = 0;
        if (quad < row.quads()) {
          Bits key[4];
          Seen seen;
          source.keys(row, r, quad, key, seen);
          for (int i = 0; i < 4; ++i) {
            const std::int64_t at = row.begin(quad) + i;
            four |= row.holds(at) && s.selected(settled, key[i], at) ? 1u << i : 0u;
          }
        }
        const unsigned word = word_of(four);
        if (threadIdx.x % 8 == 0 && quad / 8 < s.words) bits[quad / 8] = word;
      }
    }
  }
}

// The number of a part's bits.
template <typename Bits>
__global__ void __launch_bounds__(kSelectBlock) count_kernel(Selection<Bits> s) {
  struct Count {
    BlockSumSlots sum;
  };
  Count& count = shared<Count>();
  for (std::int64_t p = blockIdx.x; p < s.rows * s.parts; p += gridDim.x) {
    const std::int64_t r = p / s.parts, begin = p % s.parts * kPartWords;
    std::uint64_t mine = 0;
    for (std::int64_t w = begin + threadIdx.x; w < min(begin + kPartWords, s.words); w += kSelectBlock)
      mine += static_cast<unsigned>(__popc(s.bits[r * s.words + w]));
    const BlockSum sum = block_sum(mine, count.sum);
    if (threadIdx.x == 0) s.place[p] = sum.all;
  }
}

// Each row of sums becomes what comes before each of them. A block a row.
static __global__ void __launch_bounds__(kSelectBlock)
    sums_before_kernel(unsigned long long* __restrict__ sums, std::int64_t rows, std::int64_t columns) {
  struct Before {
    BlockSumSlots sum;
  };
  Before& before = shared<Before>();
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    std::uint64_t so_far = 0;
    for (std::int64_t first = 0; first < columns; first += kSelectBlock) {
      const std::int64_t c = first + threadIdx.x;
      const BlockSum sum = block_sum(c < columns ? sums[r * columns + c] : 0, before.sum);
      if (c < columns) sums[r * columns + c] = so_far + sum.before;
      so_far += sum.all;
    }
  }
}

// Writes the positions of bits; -1 throughout rows that cannot be selected from.
template <typename Bits>
__global__ void __launch_bounds__(kSelectBlock) expand_kernel(Selection<Bits> s) {
  struct Expand {
    BlockSumSlots sum;
  };
  Expand& expand = shared<Expand>();
  for (std::int64_t p = blockIdx.x; p < s.rows * s.parts; p += gridDim.x) {
    const std::int64_t r = p / s.parts, begin = p % s.parts * kPartWords;
    std::int64_t* out = s.out + r * s.k;
    if (s.settled[s.digits() * s.rows + r].bad) {
      for (std::int64_t i = p % s.parts * kSelectBlock + threadIdx.x; i < s.k; i += s.parts * kSelectBlock) out[i] = -1;
      continue;
    }
    const std::int64_t phase = -s.row(r).begin(0);
    std::uint64_t to = s.place[p];
    for (std::int64_t first = begin; first < min(begin + kPartWords, s.words); first += kSelectBlock) {
      const std::int64_t w = first + threadIdx.x;
      unsigned bits = w < s.words ? s.bits[r * s.words + w] : 0;
      const BlockSum sum = block_sum(static_cast<unsigned>(__popc(bits)), expand.sum);
      for (std::uint64_t at = to + sum.before; bits != 0; bits &= bits - 1, ++at)
        out[at] = w * 32 + (__ffs(static_cast<int>(bits)) - 1) - phase;
      to += sum.all;
    }
  }
}

// Memory for a selection of some rows.
template <typename Bits>
struct SelectionRoom {
  Room<RowTally<Bits>> tally;
  Room<Settled<Bits>> settled;
  Room<unsigned long long> histogram;
  Room<SelectCandidate<Bits>> candidates;
  Room<unsigned> bits;
  Room<unsigned long long> place;

  SelectionRoom(const Call& call, Selection<Bits>& s)
      : tally(call.zeros<RowTally<Bits>>(s.rows)),
        settled(call.room<Settled<Bits>>((s.digits() + 1) * s.rows)),
        histogram(call.zeros<unsigned long long>(s.digits() * s.rows * kBins)),
        candidates(call.room<SelectCandidate<Bits>>(s.rows * s.room)),
        bits(call.room<unsigned>(s.rows * s.words)),
        place(call.room<unsigned long long>(s.rows * s.parts)) {
    s.tally = tally.data();
    s.settled = settled.data();
    s.histogram = histogram.data();
    s.candidates = candidates.data();
    s.bits = bits.data();
    s.place = place.data();
  }
};

template <typename Source>
void launch_selection(const Call& call, const Source& source, const Selection<typename Source::Bits>& s,
                      const SelectReports& reports) {
  using Bits = typename Source::Bits;
  if (s.n <= kFew) {
    call.launch(no_sample_kernel<Bits>, grid_size(s.rows, kSelectBlock), kSelectBlock, s);
  } else {
    const double share = static_cast<double>(s.k) / static_cast<double>(s.n), rank = share * kSampled;
    const double slack = 4 + 4 * std::sqrt(rank * (1 - share));
    call.launch(sample_kernel<Source>, grid_size(s.rows, 1), 1024, source, s,
                static_cast<int>(std::floor(rank - slack)), static_cast<int>(std::ceil(rank + slack)));
  }
  call.launch(mark_kernel<Source>, grid_size(s.rows * s.tiles, 1), kSelectBlock, source, s);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(s.tiles, 1024));  // that share a row
  const int digits = s.k > 0 ? s.digits() : 1;  // the first looks at what must be refused
  for (int d = 0; d < digits; ++d)
    call.launch(digit_kernel<Source>, grid_size(s.rows * blocks, 1), kSelectBlock, source, s, reports, d, blocks);
  if (s.k == 0) return;
  call.launch(finish_kernel<Source>, grid_size(s.rows * blocks, 1), kSelectBlock, source, s, reports, blocks);
  call.launch(count_kernel<Bits>, grid_size(s.rows * s.parts, 1), kSelectBlock, s);
  call.launch(sums_before_kernel, grid_size(s.rows, 1), kSelectBlock, s.place, s.rows, s.parts);
  call.launch(expand_kernel<Bits>, grid_size(s.rows * s.parts, 1), kSelectBlock, s);
}

// Selects from rows of n > 0 elements into `out`, [rows, k]. Many short rows take turns, so that what a row needs
// beside its elements (a few kilobytes) does not add up; in the interpreter a few do.
template <typename Source>
void select_rows(const Call& call, const Source& source, const NoiseArgument& noise, std::int64_t rows, std::int64_t n,
                 std::int64_t k, const SelectReports& reports, std::int64_t* out) {
#ifdef __CUDACC__
  constexpr std::int64_t kRoom = std::int64_t{256} << 20;
#else
  constexpr std::int64_t kRoom = std::int64_t{32} << 10;
#endif
  Selection<typename Source::Bits> s{};
  s.n = n;
  s.k = k;
  const std::int64_t quads = (n + 6) / 4;
  s.tiles = (quads - 1) / kTile + 1;
  s.words = (quads - 1) / 8 + 1;
  s.parts = (s.words - 1) / kPartWords + 1;
  s.room = n <= kFew ? n : std::max(n / 8, kFew);
  s.key_bytes = sizeof(typename Source::Bits);
  while (s.index_bytes < 8 && (n - 1) >> 8 * s.index_bytes > 0) ++s.index_bytes;
  const std::int64_t together = std::max<std::int64_t>(1, kRoom / (8 * kBins * s.digits() + 16 * s.room));
  for (std::int64_t first = 0; first < rows; first += together) {
    s.rows = std::min(together, rows - first);
    s.noise = noise;
    s.noise.start += static_cast<std::uint64_t>(first * n);
    s.out = out + first * k;
    const SelectionRoom room(call, s);
    launch_selection(call, source.rows_from(first), s, reports);
  }
}

}  // namespace pysel
