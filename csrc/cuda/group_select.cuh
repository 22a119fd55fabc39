#pragma once

// The quotas[g] largest keys of each group g of a long row, exactly, as ascending indices. As in select.cuh, keys come
// from a source, the host waits for nothing, and allocates by n, k and the number of groups alone.
//
//   start     each group's cut is at zero, and its quota is wanted
//   digit     one pass counts, in all groups at once, the next digit of what shares its group's cut so far ...
//   settle    ... which gives each cut its next digit (see ranking.cuh)
//   finish    bits for what reaches its group's cut, and the indices are read off them (marks.cuh)
//
// Once all that shares its group's cut fits into the room for candidates, a digit's pass sets the bits of what lies
// above, and leaves the rest to the later passes as candidates. That is so when two bytes of the key are settled, if
// no more than one element of 128 shares these with its group's cut.
//
// Counters are 256 a group where those of all groups fit into a block's shared memory, else 16, for digits of 4 bits.
// With bits and candidates that makes n / 4 bytes beside those of groups.

#include "cuda/select.cuh"

namespace pysel {

constexpr int kLocalCounters = 8192;  // of a block
constexpr int kMostDigits = 48;       // 8 bytes of a key, a word and an index each, by 4 bits

// Which group each element is in, and how many of each group are wanted.
struct Groups {
  const void* of;              // [n] int32 or int64; null: all in group 0
  bool narrow;                 // int32
  const std::int64_t* quotas;  // [count]; null: k of the only group
  std::int64_t count;

  __device__ bool has(std::int64_t group) const { return 0 <= group && group < count; }

  __device__ std::int64_t operator[](std::int64_t at) const {
    if (of == nullptr) return 0;
    return narrow ? static_cast<const std::int32_t*>(of)[at] : static_cast<const std::int64_t*>(of)[at];
  }

  __device__ void load(const Row& row, std::int64_t quad, std::int64_t (&group)[4]) const {
    if (of == nullptr)
      for (std::int64_t& g : group) g = 0;
    else if (narrow)
      row.load(static_cast<const std::int32_t*>(of), quad, std::int64_t{-1}, group);
    else
      row.load(static_cast<const std::int64_t*>(of), quad, std::int64_t{-1}, group);
  }
};

// Groups and quotas from the caller, and the memory they lie in.
struct GroupArguments {
  Tensor of, quotas;
  Groups groups;

  GroupArguments(const Tensor& groups, const Tensor& quotas)
      : of(torch::stable::contiguous(groups)),
        quotas(torch::stable::contiguous(quotas)),
        groups{of.data_ptr(), of.scalar_type() == ScalarType::Int,
               static_cast<const std::int64_t*>(this->quotas.data_ptr()), quotas.numel()} {}
};

// What is refused even by those who ask for no checks, because indices and their number depend on it.
struct GroupFaults {
  Fault negative;   // a quota, and its group
  Fault sum;        // of quotas: k, and what it is
  Fault outside;    // the last group, and the one that came
  Fault not_empty;  // a group where there are no quotas
  Fault too_few;    // elements of a group that may be selected, the group, and its quota
};

// The faults of an op by its name; `size` says what a quota may not exceed.
#define PYSEL_GROUP_FAULTS(op, size)                                    \
  {{Fault::value, op ": quotas must be at least 0, got # for group #"}, \
   {Fault::value, op ": quotas must sum to k, #, got a sum of #"},      \
   {Fault::index, op ": groups must be between 0 and #, got #"},        \
   {Fault::index, op ": groups must be empty for empty quotas, got #"}, \
   {Fault::value, op ": quotas must be at most " size " of each group, # for group #, got #"}}

struct GroupReports {
  Report bad;  // an element that must be refused
  Report negative, sum, outside, too_few;

  GroupReports(const Call& call, const Fault& bad, const GroupFaults& faults, std::int64_t groups)
      : bad(call.report(bad)),
        negative(call.always(faults.negative)),
        sum(call.always(faults.sum)),
        outside(call.always(groups > 0 ? faults.outside : faults.not_empty)),
        too_few(call.always(faults.too_few)) {}
};

// Elements above a group's cut are in, and `wanted` of those that share its settled digits.
template <typename Bits>
struct GroupCut {
  Cut<Bits> cut;
  std::int64_t wanted;
  bool done;  // all of those are wanted, or nothing was from the beginning
};

// Zero to begin with.
struct GroupTally {
  unsigned long long quotas;      // their sum
  unsigned long long candidates;  // so far
  // Elements that, before digit d, share the cut of a group that is not done.
  unsigned long long sharing[kMostDigits + 1];
};

template <typename Bits>
struct GroupSelection {
  Marks marks;
  Digits digits;
  Groups groups;
  std::int64_t room;  // for candidates
  GroupTally* tally;
  GroupCut<Bits>* cuts;               // [groups]
  unsigned long long* counters;       // [groups, bins], of the digit that is being counted
  SelectCandidate<Bits>* candidates;  // [room]

  PYSEL_HD std::int64_t all_counters() const { return groups.count * digits.bins(); }
  __device__ bool refused() const { return *marks.refused != 0; }
  // Whether what shares a cut before digit d fits into the room.
  __device__ bool fits(int d) const { return tally->sharing[d] <= static_cast<unsigned long long>(room); }
  // Whether there are candidates before digit d.
  __device__ bool has_candidates(int d) const { return d > 0 && fits(d - 1); }
};

// Of a warp's threads that met what is refused, the first reports it, unless another has on this device.
template <typename... Numbers>
__device__ void refuse(unsigned* refused, bool mine, const Report& report, Numbers... numbers) {
  if (leads(__ballot_sync(kAllLanes, mine)) && atomicExch(refused, 1u) == 0) report(numbers...);
}

template <typename Bits>
__global__ void __launch_bounds__(kSelectBlock) start_groups_kernel(GroupSelection<Bits> s, GroupReports reports) {
  struct Start {
    ScanSlots<std::uint64_t> sum;
  };
  Start& start = shared<Start>();
  for (std::int64_t first = blockIdx.x * std::int64_t{kSelectBlock}; first < s.groups.count;
       first += threads_in_grid()) {
    const std::int64_t g = first + threadIdx.x;
    const std::int64_t quota = g >= s.groups.count ? 0 : s.groups.quotas == nullptr ? s.marks.k : s.groups.quotas[g];
    if (g < s.groups.count) s.cuts[g] = {{}, quota, quota <= 0};
    refuse(s.marks.refused, quota < 0, reports.negative, quota, g);
    const BlockSum<std::uint64_t> sum = block_sum(static_cast<std::uint64_t>(quota), start.sum);
    if (threadIdx.x == 0) atomicAdd(&s.tally->quotas, static_cast<unsigned long long>(sum.all));
  }
  if (thread_in_grid() == 0) s.tally->sharing[0] = static_cast<unsigned long long>(s.marks.n);
}

template <typename Source>
__global__ void __launch_bounds__(kSelectBlock)
    group_digit_kernel(Source source, GroupSelection<typename Source::Bits> s, GroupReports reports, int d) {
  using Bits = typename Source::Bits;
  struct Digit {
    unsigned counters[kLocalCounters];
    ScanSlots<std::uint64_t> sum;
    unsigned long long first;
  };
  if (d > 0 && s.refused()) return;
  Digit& digit = shared<Digit>();
  const bool local = s.all_counters() <= kLocalCounters;
  if (local) {
    for (unsigned c = threadIdx.x; c < s.all_counters(); c += kSelectBlock) digit.counters[c] = 0;
    __syncthreads();
  }
  // By whole warps; -1 counts nothing. Neighbours often have the same digit of the same group.
  const auto count = [&](std::int64_t counter) {
    const unsigned same = __match_any_sync(kAllLanes, static_cast<unsigned long long>(counter));
    if (counter < 0 || !leads(same)) return;
    const auto many = static_cast<unsigned>(__popc(same));
    if (local)
      atomicAdd(&digit.counters[counter], many);
    else
      atomicAdd(&s.counters[counter], static_cast<unsigned long long>(many));
  };
  const Row row = s.marks.row(0);
  const Ranking ranking(s.digits, 0);
  const int bins = s.digits.bins();
  if (s.has_candidates(d)) {
    const auto candidates = static_cast<std::int64_t>(s.tally->candidates);
    for (std::int64_t first = blockIdx.x * std::int64_t{kSelectBlock}; first < candidates; first += threads_in_grid()) {
      std::int64_t counter = -1;
      if (first + threadIdx.x < candidates) {
        const SelectCandidate<Bits> candidate = s.candidates[first + threadIdx.x];
        const std::int64_t group = s.groups[candidate.at];
        const GroupCut<Bits>& cut = s.cuts[group];
        const int bin = cut.done ? -1 : ranking.digit(cut.cut, d, candidate.key, candidate.at);
        if (bin >= 0) counter = group * bins + bin;
      }
      count(counter);
    }
  } else {
    const bool mark = s.fits(d);
    bool bad = false;
    std::int64_t outside = 0;
    bool any_outside = false;
    for (std::int64_t tile = blockIdx.x; tile < s.marks.tiles; tile += gridDim.x) {
      Bits key[kTileQuads][4];
      unsigned sharing[kTileQuads];  // a bit an element
      unsigned sharing_count = 0;
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j) {
        const std::int64_t quad = tile * kTile + j * kSelectBlock + threadIdx.x;
        std::int64_t counter[4] = {-1, -1, -1, -1};
        unsigned above = 0;
        sharing[j] = 0;
        if (quad < row.quads()) {
          Seen seen;
          std::int64_t group[4];
          source.keys(row, 0, quad, key[j], seen);
          s.groups.load(row, quad, group);
          bad |= seen.bad;
          for (int i = 0; i < 4; ++i) {
            const std::int64_t at = row.begin(quad) + i;
            if (!row.holds(at)) continue;
            if (!s.groups.has(group[i])) {
              outside = group[i];
              any_outside = true;
              continue;
            }
            if (reports.bad && (seen.permitted >> i & 1) == 0) continue;
            const GroupCut<Bits>& cut = s.cuts[group[i]];
            if (cut.done) {
              above |= mark && cut.wanted > 0 && ranking.reaches(cut.cut, key[j][i], at) ? 1u << i : 0u;
              continue;
            }
            const int bin = ranking.digit(cut.cut, d, key[j][i], at);
            if (bin >= 0) {
              counter[i] = group[i] * bins + bin;
              sharing[j] |= 1u << i;
            }
            above |= bin == Ranking::kAbove ? 1u << i : 0u;
          }
        }
        for (int i = 0; i < 4; ++i) count(counter[i]);
        sharing_count += static_cast<unsigned>(__popc(sharing[j]));
        if (!mark) continue;
        const unsigned word = word_of(above);
        if (threadIdx.x % 8 == 0 && quad / 8 < s.marks.words) s.marks.bits[quad / 8] = word;
      }
      if (!mark) continue;
      const BlockSum<std::uint64_t> sum = block_sum(std::uint64_t{sharing_count}, digit.sum);
      if (threadIdx.x == 0)
        digit.first = sum.all > 0 ? atomicAdd(&s.tally->candidates, static_cast<unsigned long long>(sum.all)) : 0;
      __syncthreads();
      auto to = static_cast<std::int64_t>(digit.first + sum.before);
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j) {
        const std::int64_t quad = tile * kTile + j * kSelectBlock + threadIdx.x;
        for (int i = 0; i < 4; ++i)
          if ((sharing[j] >> i & 1) != 0) s.candidates[to++] = {row.begin(quad) + i, key[j][i]};
      }
    }
    if (d == 0) {
      if (s.groups.count > 0)
        refuse(s.marks.refused, any_outside, reports.outside, s.groups.count - 1, outside);
      else
        refuse(s.marks.refused, any_outside, reports.outside, outside);
      if (reports.bad) refuse(s.marks.refused, bad, reports.bad);
    }
  }
  if (!local) return;
  __syncthreads();
  for (unsigned c = threadIdx.x; c < s.all_counters(); c += kSelectBlock)
    if (digit.counters[c] > 0) atomicAdd(&s.counters[c], static_cast<unsigned long long>(digit.counters[c]));
}

// Each cut gets digit d, a warp a group, and its counters are zero again.
template <typename Bits>
__global__ void __launch_bounds__(kSelectBlock)
    settle_groups_kernel(GroupSelection<Bits> s, GroupReports reports, int d) {
  struct Settle {
    ScanSlots<std::uint64_t> sum;
  };
  if (d > 0 && s.refused()) return;
  if (d == 0 && thread_in_grid() == 0 && s.tally->quotas != static_cast<unsigned long long>(s.marks.k)) {
    atomicOr(s.marks.refused, 1u);
    reports.sum(s.marks.k, static_cast<std::int64_t>(s.tally->quotas));
  }
  const int bins = s.digits.bins(), lane = static_cast<int>(threadIdx.x % kWarp);
  unsigned long long sharing = 0;
  for (std::int64_t g = thread_in_grid() / kWarp; g < s.groups.count; g += threads_in_grid() / kWarp) {
    GroupCut<Bits>& group = s.cuts[g];
    if (group.done) continue;
    const auto wanted = static_cast<unsigned long long>(group.wanted);
    unsigned long long so_far = 0, above = 0, here = 0;
    int settled = -1;
    for (int first = bins - 1; first >= 0; first -= static_cast<int>(kWarp)) {  // lane 0 has the largest digit
      const int bin = first - lane;
      unsigned long long* counter = bin >= 0 ? &s.counters[g * bins + bin] : nullptr;
      const unsigned long long count = counter != nullptr ? *counter : 0;
      if (counter != nullptr) *counter = 0;
      const unsigned long long upto = warp_sum_upto(count);
      if (so_far + upto - count < wanted && wanted <= so_far + upto) {
        settled = bin;
        above = so_far + upto - count;
        here = count;
      }
      so_far += __shfl_sync(kAllLanes, upto, kWarp - 1);
    }
    if (settled >= 0) {
      s.digits.settle(group.cut, d, settled);
      group.wanted = static_cast<std::int64_t>(wanted - above);
      group.done = wanted - above == here;
      if (!group.done) sharing += here;
    }
    if (so_far < wanted && lane == 0) {
      atomicOr(s.marks.refused, 1u);
      reports.too_few(static_cast<std::int64_t>(so_far), g, static_cast<std::int64_t>(wanted));
    }
  }
  const BlockSum<std::uint64_t> sum = block_sum(std::uint64_t{sharing}, shared<Settle>().sum);
  if (threadIdx.x == 0 && sum.all > 0) atomicAdd(&s.tally->sharing[d + 1], static_cast<unsigned long long>(sum.all));
}

template <typename Source>
__global__ void __launch_bounds__(kSelectBlock)
    finish_groups_kernel(Source source, GroupSelection<typename Source::Bits> s, GroupReports reports) {
  using Bits = typename Source::Bits;
  if (s.refused()) return;
  const Row row = s.marks.row(0);
  const Ranking ranking(s.digits, 0);
  if (s.has_candidates(s.digits.all())) {
    const auto candidates = static_cast<std::int64_t>(s.tally->candidates);
    for (std::int64_t c = thread_in_grid(); c < candidates; c += threads_in_grid()) {
      const SelectCandidate<Bits> candidate = s.candidates[c];
      if (!ranking.reaches(s.cuts[s.groups[candidate.at]].cut, candidate.key, candidate.at)) continue;
      const std::int64_t bit = candidate.at - row.begin(0);
      atomicOr(&s.marks.bits[bit / 32], 1u << bit % 32);
    }
    return;
  }
  // whole warps, for the words' sake
  for (std::int64_t first = blockIdx.x * std::int64_t{kSelectBlock}; first < s.marks.words * 8;
       first += threads_in_grid()) {
    const std::int64_t quad = first + threadIdx.x;
    unsigned four = 0;
    if (quad < row.quads()) {
      Bits key[4];
      Seen seen;
      std::int64_t group[4];
      source.keys(row, 0, quad, key, seen);
      s.groups.load(row, quad, group);
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = row.begin(quad) + i;
        if (!row.holds(at) || (reports.bad && (seen.permitted >> i & 1) == 0)) continue;
        const GroupCut<Bits>& cut = s.cuts[group[i]];
        four |= cut.wanted > 0 && ranking.reaches(cut.cut, key[i], at) ? 1u << i : 0u;
      }
    }
    const unsigned word = word_of(four);
    if (threadIdx.x % 8 == 0 && quad / 8 < s.marks.words) s.marks.bits[quad / 8] = word;
  }
}

// Selects from n elements into `out`, [k].
template <typename Source>
void select_groups(const Call& call, const Source& source, const NoiseArgument& noise, const NoiseArgument& ties,
                   const Groups& groups, std::int64_t n, std::int64_t k, const GroupReports& reports,
                   std::int64_t* out) {
  using Bits = typename Source::Bits;
  GroupSelection<Bits> s{};
  s.marks = Marks(n, k, noise);
  s.marks.out = out;
  s.groups = groups;
  s.digits = Digits::of<Bits>(n, groups.count * kBins <= kLocalCounters ? kDigitBits : kDigitBits / 2, ties);
  s.room = std::min(n, std::max(n / 128, kFew));
  const MarksRoom marks(call, s.marks);
  const auto tally = call.zeros<GroupTally>(1);
  const auto cuts = call.room<GroupCut<Bits>>(groups.count);
  const auto counters = call.zeros<unsigned long long>(s.all_counters());
  const auto candidates = call.room<SelectCandidate<Bits>>(s.room);
  s.tally = tally.data();
  s.cuts = cuts.data();
  s.counters = counters.data();
  s.candidates = candidates.data();

  const auto blocks = std::min(grid_size(s.marks.tiles, 1), 1024u);
  const auto group_blocks = std::min(grid_size(groups.count, kSelectBlock / kWarp), 1024u);
  call.launch(start_groups_kernel<Bits>, grid_size(groups.count, kSelectBlock), kSelectBlock, s, reports);
  const int digits = k > 0 ? s.digits.all() : 1;  // the first looks at what must be refused
  for (int d = 0; d < digits; ++d) {
    call.launch(group_digit_kernel<Source>, blocks, kSelectBlock, source, s, reports, d);
    call.launch(settle_groups_kernel<Bits>, group_blocks, kSelectBlock, s, reports, d);
  }
  if (k == 0) return;
  call.launch(finish_groups_kernel<Source>, blocks, kSelectBlock, source, s, reports);
  write_marked(call, s.marks);
}

}  // namespace pysel
