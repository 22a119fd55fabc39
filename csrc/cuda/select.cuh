#pragma once

// The k largest keys of each row, exactly, as ascending indices. Keys are functions of the element, asked for anew
// instead of stored. The host waits for nothing, and allocates by n and k alone.
//
//   sample    a few thousand keys of a row bracket its k-th largest within [low, high]
//   mark      one pass over all elements: a bit for each above `high`; those within the bracket become candidates, and
//             where keys are dear, so that most elements are told without, those of which nothing is told
//   keys      of these candidates
//   digits    radix selection among the candidates, or, where the bracket missed or held too many of them, among all
//             keys: by the bytes of the key, then by those that break ties (see ranking.cuh), so that none are left.
//             Bytes that the bracket's ends share are not counted. Once few candidates share the settled digits, a
//             pass sets the bits of those above, and leaves only these few to later passes
//   finish    bits for what is selected beside those above `high`
//   then      the indices are read off the bits (marks.cuh)
//
// Each step is a kernel that finds on the device what the step before left there.

#include <cmath>

#include "cuda/marks.cuh"
#include "cuda/ranking.cuh"

namespace pysel {

// What a source of keys notes of a quad. A source gives the keys of a quad of row r, as integers of which the largest
// are wanted, and anything for elements outside the row:
//
//   struct Source {
//     using Bits = ...;
//     void keys(const Row& row, int64_t r, int64_t quad, Bits (&key)[4], Seen& seen) const;
//     Source rows_from(int64_t first) const;  // where row `first` is row 0
//   };
//
// One whose keys are dear may also tell on which side of a bracket most elements of a quad lie. It then makes a
// candidate's key of what it `kept`:
//
//     Bracket bracket(Bits low, Bits high) const;
//     Sides sides(const Row& row, int64_t r, int64_t quad, const Bracket& bracket, Bits (&kept)[4], Seen& seen) const;
//     Bits key_of(const Row& row, int64_t at, Bits kept) const;
struct Seen {
  unsigned permitted = 0;  // a bit for each element that may be selected
  bool bad = false;        // an element that must be refused
};

// A bit for each element of a quad that is above the bracket, and for each that may be within.
struct Sides {
  unsigned above = 0, open = 0;
};

template <typename Source>
concept TellsSides = requires { &Source::sides; };

// Tells by the keys themselves, which it keeps.
template <typename Source>
struct ByKeys : Source {
  using Bits = typename Source::Bits;
  struct Bracket {
    Bits low, high;
  };

  __device__ Bracket bracket(Bits low, Bits high) const { return {low, high}; }

  __device__ Sides sides(const Row& row, std::int64_t r, std::int64_t quad, const Bracket& bracket, Bits (&key)[4],
                         Seen& seen) const {
    this->keys(row, r, quad, key, seen);
    Sides sides;
    for (int i = 0; i < 4; ++i) {
      sides.above |= key[i] > bracket.high ? 1u << i : 0u;
      sides.open |= key[i] >= bracket.low && key[i] <= bracket.high ? 1u << i : 0u;
    }
    return sides;
  }
};

// What to tell when a row cannot be selected from.
struct SelectReports {
  Report bad;
  Report too_few;  // with the number that may be selected, and k
};

constexpr int kSampled = 4096;
constexpr std::int64_t kFew = 2 * kSampled;  // elements that are not worth a guess: all are candidates
constexpr int kDigitBits = 8;
constexpr int kBins = 1 << kDigitBits;

// Per row. Zero to begin with, but for the bracket.
template <typename Bits>
struct RowTally {
  Bits low, high;  // of the bracket
  unsigned long long above, candidates, permitted;
  unsigned long long outside;  // candidates that are not within the bracket after all
  unsigned bad;
  unsigned left;  // of the candidates, by a pass that moves them
};

template <typename Bits>
struct SelectCandidate {
  std::int64_t at;
  Bits key;
};

// Where the elements lie that share what digits have settled.
enum class Among { row, candidates, few };

// What digits have settled: elements above the cut are in, and `wanted` of those that share its settled digits.
template <typename Bits>
struct Settled {
  Cut<Bits> cut;
  std::int64_t wanted;
  int common;  // leading digits that all candidates within the bracket have, and no pass counts
  Among among;
  bool moves;  // the next pass leaves few of the candidates
  bool done;   // all of those are wanted
  bool bad;    // nothing is
};

// All of a selection but its source.
template <typename Bits>
struct Selection {
  Marks marks;
  Digits digits;
  std::int64_t room, few_room;        // for candidates of a row, and for the few that are left of them
  RowTally<Bits>* tally;              // [rows]
  Settled<Bits>* settled;             // [digits + 1, rows]
  unsigned long long* histogram;      // [digits, rows, kBins]
  SelectCandidate<Bits>* candidates;  // [rows, room]
  SelectCandidate<Bits>* few;         // [rows, few_room]

  __device__ Ranking ranking(std::int64_t r) const { return Ranking(digits, r * marks.n); }

  // Calls f(candidate) for those of row r, or for the few of them, which the threads of `blocks` blocks share.
  template <typename F>
  __device__ void for_each(Among among, std::int64_t r, std::int64_t block, unsigned blocks, F f) const {
    const bool all = among == Among::candidates;
    const SelectCandidate<Bits>* list = all ? candidates + r * room : few + r * few_room;
    const auto count = static_cast<std::int64_t>(all ? tally[r].candidates : tally[r].left);
    for (std::int64_t c = block * kSelectBlock + threadIdx.x; c < count; c += std::int64_t{blocks} * kSelectBlock)
      f(list[c]);
  }

  // Element `place` of row r, counted from where its quads begin, is in.
  __device__ void mark(std::int64_t r, std::int64_t place) const {
    atomicOr(&marks.bits[r * marks.words + place / 32], 1u << place % 32);
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
  for (std::int64_t r = blockIdx.x; r < s.marks.rows; r += gridDim.x) {
    const Row row = s.marks.row(r);
    const std::int64_t stratum = s.marks.n / (kSampled / 4);
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
    block_sort(sample.key, kSampled);
    if (threadIdx.x == 0) {
      s.tally[r].high = from < 0 ? static_cast<Bits>(~Bits{0}) : sample.key[from];
      s.tally[r].low = to >= kSampled ? Bits{0} : sample.key[to];
    }
    __syncthreads();  // before the next row's sample
  }
}

template <typename Bits>
__global__ void __launch_bounds__(kSelectBlock) no_sample_kernel(Selection<Bits> s) {
  for (std::int64_t r = thread_in_grid(); r < s.marks.rows; r += threads_in_grid())
    s.tally[r].high = static_cast<Bits>(~Bits{0});
}

template <typename Source>
__global__ void __launch_bounds__(kSelectBlock) mark_kernel(Source source, Selection<typename Source::Bits> s) {
  using Bits = typename Source::Bits;
  struct Mark {
    ScanSlots<std::uint64_t> sum;
    unsigned long long first;
    Vec<Bits, 4> kept[kTileQuads][kSelectBlock];
  };
  Mark& mark = shared<Mark>();
  for (std::int64_t tile = blockIdx.x; tile < s.marks.rows * s.marks.tiles; tile += gridDim.x) {
    const std::int64_t r = tile / s.marks.tiles, first_quad = tile % s.marks.tiles * kTile;
    const Row row = s.marks.row(r);
    RowTally<Bits>& tally = s.tally[r];
    const auto bracket = source.bracket(tally.low, tally.high);
    unsigned open = 0;  // a bit for each element of this thread's quads
    unsigned above_count = 0, permitted_count = 0;
    bool bad = false;
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) {
      const std::int64_t quad = first_quad + j * kSelectBlock + threadIdx.x;
      unsigned above = 0;
      if (quad < row.quads()) {
        Seen seen;
        Vec<Bits, 4> kept;
        const Sides sides = source.sides(row, r, quad, bracket, kept.of, seen);
        mark.kept[j][threadIdx.x] = kept;
        permitted_count += static_cast<unsigned>(__popc(seen.permitted));
        bad |= seen.bad;
        const unsigned held = row.held(quad);
        above = sides.above & held;
        open |= (sides.open & held) << 4 * j;
      }
      above_count += __popc(above);
      const unsigned word = word_of(above);
      const std::int64_t at = (first_quad + j * kSelectBlock + threadIdx.x) / 8;
      if (threadIdx.x % 8 == 0 && at < s.marks.words) s.marks.bits[r * s.marks.words + at] = word;
    }
    // three counts below 2^20 in one sum
    const BlockSum<std::uint64_t> sum =
        block_sum(__popc(open) | std::uint64_t{above_count} << 20 | std::uint64_t{permitted_count} << 40, mark.sum);
    const bool any_bad = __syncthreads_or(bad) != 0;
    if (threadIdx.x == 0) {
      const unsigned long long found = sum.all & 0xfffff, above = sum.all >> 20 & 0xfffff, permitted = sum.all >> 40;
      mark.first = found > 0 ? atomicAdd(&tally.candidates, found) : 0;
      if (above > 0) atomicAdd(&tally.above, above);
      if (permitted > 0) atomicAdd(&tally.permitted, permitted);
      if (any_bad) atomicOr(&tally.bad, 1u);
    }
    __syncthreads();
    const std::int64_t begin = row.begin(first_quad + threadIdx.x);
    SelectCandidate<Bits>* candidates = s.candidates + r * s.room;
    auto to = static_cast<std::int64_t>(mark.first + (sum.before & 0xfffff));
    for (; open != 0 && to < s.room; open &= open - 1, ++to) {
      const unsigned e = static_cast<unsigned>(__ffs(static_cast<int>(open))) - 1, j = e / 4, i = e % 4;
      candidates[to] = {begin + 4 * j * kSelectBlock + i, mark.kept[j][threadIdx.x].of[i]};
    }
  }
}

// A row's blocks stride over its candidates. Where there are too many, nobody asks for them. Those above the bracket
// are in, and take the key 0, which no element of a source that tells sides has, so that no digit finds them wanted.
template <typename Source>
__global__ void __launch_bounds__(kSelectBlock)
    keys_kernel(Source source, Selection<typename Source::Bits> s, unsigned blocks_of_row) {
  using Bits = typename Source::Bits;
  struct Keys {
    ScanSlots<std::uint64_t> over, outside;
  };
  Keys& keys = shared<Keys>();
  for (std::int64_t b = blockIdx.x; b < s.marks.rows * blocks_of_row; b += gridDim.x) {
    const std::int64_t r = b / blocks_of_row, block = b % blocks_of_row;
    RowTally<Bits>& tally = s.tally[r];
    const Bits low = tally.low, high = tally.high;
    const auto candidates = static_cast<std::int64_t>(tally.candidates);
    if (candidates > s.room) continue;
    const Row row = s.marks.row(r);
    std::uint64_t over = 0, outside = 0;
    for (std::int64_t c = block * kSelectBlock + threadIdx.x; c < candidates;
         c += std::int64_t{blocks_of_row} * kSelectBlock) {
      SelectCandidate<Bits>& candidate = s.candidates[r * s.room + c];
      const Bits key = source.key_of(row, candidate.at, candidate.key);
      const bool above = key > high;
      candidate.key = above ? Bits{0} : key;
      if (above) s.mark(r, candidate.at - row.begin(0));
      over += above;
      outside += above || key < low;
    }
    over = block_sum(over, keys.over).all;
    outside = block_sum(outside, keys.outside).all;
    if (threadIdx.x == 0) {
      if (over > 0) atomicAdd(&tally.above, static_cast<unsigned long long>(over));
      if (outside > 0) atomicAdd(&tally.outside, static_cast<unsigned long long>(outside));
    }
  }
}

// What is settled before digit d: the same in every thread of the block, found from the digit before.
template <typename Bits>
__device__ Settled<Bits> settle(const Selection<Bits>& s, const SelectReports& reports, std::int64_t r, int d,
                                bool leader) {
  struct Settle {
    BinSlots<unsigned long long> bin;
  };
  Settle& slots = shared<Settle>();
  Settled<Bits> now;
  if (d == 0) {
    const RowTally<Bits>& t = s.tally[r];
    const auto k = static_cast<unsigned long long>(s.marks.k);
    const bool bad = reports.bad && t.bad != 0, too_few = reports.too_few && t.permitted < k;
    const bool hit = t.above < k && k + t.outside <= t.above + t.candidates &&
                     t.candidates <= static_cast<unsigned long long>(s.room);
    now = {{}, s.marks.k, 0, Among::row, false, s.marks.k == 0, bad || too_few};
    if (hit) {
      now.wanted -= static_cast<std::int64_t>(t.above);
      now.among = Among::candidates;
      now.common = s.digits.settle_common(now.cut, t.low, t.high);
    }
    if (leader && threadIdx.x == 0) {
      if (bad)
        reports.bad();
      else if (too_few)
        reports.too_few(static_cast<std::int64_t>(t.permitted), s.marks.k);
    }
  } else {
    now = s.settled[(d - 1) * s.marks.rows + r];
    if (now.moves) now.among = Among::few;
    if (!now.done && !now.bad && d > now.common) {
      // thread 0 has the largest digit
      const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
      const unsigned long long count = s.histogram[((d - 1) * s.marks.rows + r) * kBins + bin];
      const auto found = choose_bin(bin, count, static_cast<unsigned long long>(now.wanted), slots.bin);
      now.wanted -= static_cast<std::int64_t>(found.before);
      now.done = static_cast<unsigned long long>(now.wanted) == found.inside;
      now.moves =
          !now.done && now.among == Among::candidates && found.inside <= static_cast<unsigned long long>(s.few_room);
      s.digits.settle(now.cut, d - 1, found.bin);
      __syncthreads();  // before the next row's
    }
  }
  if (leader && threadIdx.x == 0) s.settled[d * s.marks.rows + r] = now;
  return now;
}

// Counts digit d of what shares all digits before it with what is settled. A row's blocks stride over its elements.
template <typename Source>
__global__ void __launch_bounds__(kSelectBlock, 4) digit_kernel(Source source, Selection<typename Source::Bits> s,
                                                                SelectReports reports, int d, unsigned blocks_of_row) {
  using Bits = typename Source::Bits;
  struct Histogram {
    unsigned count[kBins];
    ScanSlots<unsigned> sum;
    unsigned next;  // place among the few
  };
  Histogram& histogram = shared<Histogram>();
  for (std::int64_t b = blockIdx.x; b < s.marks.rows * blocks_of_row; b += gridDim.x) {
    const std::int64_t r = b / blocks_of_row, block = b % blocks_of_row;
    const Settled<Bits> settled = settle(s, reports, r, d, block == 0);
    if (settled.done || settled.bad || d < settled.common) continue;
    histogram.count[threadIdx.x] = 0;
    __syncthreads();
    const Ranking ranking = s.ranking(r);
    const auto count = [&](Bits key, std::int64_t at) {
      const int digit = ranking.digit(settled.cut, d, key, at);
      if (digit >= 0) atomicAdd(&histogram.count[digit], 1u);
    };
    if (settled.among != Among::row) {
      s.for_each(settled.among, r, block, blocks_of_row,
                 [&](const SelectCandidate<Bits>& candidate) { count(candidate.key, candidate.at); });
    } else {
      const Row row = s.marks.row(r);
      for (std::int64_t quad = block * kSelectBlock + threadIdx.x; quad < row.quads();
           quad += std::int64_t{blocks_of_row} * kSelectBlock) {
        Bits key[4];
        Seen seen;
        source.keys(row, r, quad, key, seen);
        for (int i = 0; i < 4; ++i)
          if (row.holds(row.begin(quad) + i)) count(key[i], row.begin(quad) + i);
      }
    }
    __syncthreads();
    const unsigned mine = histogram.count[threadIdx.x];
    if (mine > 0)
      atomicAdd(&s.histogram[(d * s.marks.rows + r) * kBins + threadIdx.x], static_cast<unsigned long long>(mine));
    if (settled.moves) {
      // looked at again, in a cache, so that a block asks for all its places at once
      const unsigned counted = block_sum(mine, histogram.sum).all;
      if (threadIdx.x == 0) histogram.next = atomicAdd(&s.tally[r].left, counted);
      __syncthreads();
      const std::int64_t begin = s.marks.row(r).begin(0);
      s.for_each(Among::candidates, r, block, blocks_of_row, [&](const SelectCandidate<Bits>& candidate) {
        const int digit = ranking.digit(settled.cut, d, candidate.key, candidate.at);
        if (digit == Ranking::kAbove) s.mark(r, candidate.at - begin);
        if (digit >= 0) s.few[r * s.few_room + atomicAdd(&histogram.next, 1u)] = candidate;
      });
    }
    __syncthreads();  // before the next row's
  }
}

template <typename Source>
__global__ void __launch_bounds__(kSelectBlock, 4)
    finish_kernel(Source source, Selection<typename Source::Bits> s, SelectReports reports, unsigned blocks_of_row) {
  using Bits = typename Source::Bits;
  for (std::int64_t b = blockIdx.x; b < s.marks.rows * blocks_of_row; b += gridDim.x) {
    const std::int64_t r = b / blocks_of_row, block = b % blocks_of_row;
    const Settled<Bits> settled = settle(s, reports, r, s.digits.all(), block == 0);
    if (block == 0 && threadIdx.x == 0) s.marks.refused[r] = settled.bad;
    if (settled.bad) continue;
    const Ranking ranking = s.ranking(r);
    const Row row = s.marks.row(r);
    if (settled.among != Among::row) {
      s.for_each(settled.among, r, block, blocks_of_row, [&](const SelectCandidate<Bits>& candidate) {
        if (ranking.reaches(settled.cut, candidate.key, candidate.at)) s.mark(r, candidate.at - row.begin(0));
      });
    } else {
      unsigned* bits = s.marks.bits + r * s.marks.words;
      // whole warps, for the words' sake
      for (std::int64_t first = block * kSelectBlock; first < s.marks.words * 8;
           first += std::int64_t{blocks_of_row} * kSelectBlock) {
        const std::int64_t quad = first + threadIdx.x;
        unsigned four = 0;
        if (quad < row.quads()) {
          Bits key[4];
          Seen seen;
          source.keys(row, r, quad, key, seen);
          for (int i = 0; i < 4; ++i) {
            const std::int64_t at = row.begin(quad) + i;
            four |= row.holds(at) && ranking.reaches(settled.cut, key[i], at) ? 1u << i : 0u;
          }
        }
        const unsigned word = word_of(four);
        if (threadIdx.x % 8 == 0 && quad / 8 < s.marks.words) bits[quad / 8] = word;
      }
    }
  }
}

// Memory for a selection of some rows.
template <typename Bits>
struct SelectionRoom {
  Room<RowTally<Bits>> tally;
  Room<Settled<Bits>> settled;
  Room<unsigned long long> histogram;
  Room<SelectCandidate<Bits>> candidates, few;
  MarksRoom marks;

  SelectionRoom(const Call& call, Selection<Bits>& s)
      : tally(call.zeros<RowTally<Bits>>(s.marks.rows)),
        settled(call.room<Settled<Bits>>((s.digits.all() + 1) * s.marks.rows)),
        histogram(call.zeros<unsigned long long>(s.digits.all() * s.marks.rows * kBins)),
        candidates(call.room<SelectCandidate<Bits>>(s.marks.rows * s.room)),
        few(call.room<SelectCandidate<Bits>>(s.marks.rows * s.few_room)),
        marks(call, s.marks) {
    s.tally = tally.data();
    s.settled = settled.data();
    s.histogram = histogram.data();
    s.candidates = candidates.data();
    s.few = few.data();
  }
};

template <typename Source>
void launch_selection(const Call& call, const Source& source, const Selection<typename Source::Bits>& s,
                      const SelectReports& reports) {
  using Bits = typename Source::Bits;
  const std::int64_t rows = s.marks.rows, n = s.marks.n, k = s.marks.k;
  if (n <= kFew) {
    call.launch(no_sample_kernel<Bits>, grid_size(rows, kSelectBlock), kSelectBlock, s);
  } else {
    const double share = static_cast<double>(k) / static_cast<double>(n), rank = share * kSampled;
    const double slack = 4 + 4 * std::sqrt(rank * (1 - share));
    call.launch(sample_kernel<Source>, grid_size(rows, 1), 1024, source, s, static_cast<int>(std::floor(rank - slack)),
                static_cast<int>(std::ceil(rank + slack)));
  }
  // That share a row. Each finds anew what the digit before has settled, so there are not more than fill a device.
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>(1024 / rows, 1, s.marks.tiles));
  const auto mark = [&]<typename Teller>(const Teller& teller) {
    call.launch(mark_kernel<Teller>, grid_size(rows * s.marks.tiles, 1), kSelectBlock, teller, s);
  };
  if (!TellsSides<Source> || n <= kFew) mark(ByKeys<Source>{source});
  if constexpr (TellsSides<Source>)
    if (n > kFew) {
      mark(source);
      call.launch(keys_kernel<Source>, grid_size(rows * blocks, 1), kSelectBlock, source, s, blocks);
    }
  const int digits = k > 0 ? s.digits.all() : 1;  // the first looks at what must be refused
  for (int d = 0; d < digits; ++d)
    call.launch(digit_kernel<Source>, grid_size(rows * blocks, 1), kSelectBlock, source, s, reports, d, blocks);
  if (k == 0) return;
  call.launch(finish_kernel<Source>, grid_size(rows * blocks, 1), kSelectBlock, source, s, reports, blocks);
  write_marked(call, s.marks);
}

// Selects from rows of n > 0 elements into `out`, [rows, k]; equal keys by their words in `ties` if it is on, then by
// lowest index. Many short rows take turns, so that what a row needs beside its elements (a few kilobytes) does not add
// up; in the interpreter two long ones do.
template <typename Source>
void select_rows(const Call& call, const Source& source, const NoiseArgument& noise, const NoiseArgument& ties,
                 std::int64_t rows, std::int64_t n, std::int64_t k, const SelectReports& reports, std::int64_t* out) {
#ifdef __CUDACC__
  constexpr std::int64_t kRoom = std::int64_t{256} << 20;
#else
  constexpr std::int64_t kRoom = std::int64_t{384} << 10;
#endif
  using Bits = typename Source::Bits;
  Selection<Bits> s{};
  s.marks = Marks(n, k, noise);
  s.digits = Digits::of<Bits>(n, kDigitBits, ties);
  s.room = n <= kFew ? n : std::max(n / 8, kFew);
  s.few_room = s.room / 16;
  const std::int64_t together = std::max<std::int64_t>(1, kRoom / (8 * kBins * s.digits.all() + 16 * s.room));
  for (std::int64_t first = 0; first < rows; first += together) {
    s.marks.rows = std::min(together, rows - first);
    s.marks.noise.start = noise.start + static_cast<std::uint64_t>(first * n);
    s.digits.ties.start = ties.start + static_cast<std::uint64_t>(first * n);
    s.marks.out = out + first * k;
    const SelectionRoom room(call, s);
    launch_selection(call, source.rows_from(first), s, reports);
  }
}

}  // namespace pysel
