// See group_brackets.h.
#include "cpu/group_brackets.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#define PYSEL_KERNELS "cpu/group_brackets_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr int kSplitBins = 16;

template <typename Bits>
struct Sample {
  std::vector<Bits> keys;
  std::vector<uint32_t> groups;

  Sample(const GroupKeys<Bits>& all, int64_t size)
      : keys(static_cast<size_t>(size / kRun * kRun)), groups(keys.size()) {
    const int64_t runs = size / kRun;
    parallel_for(runs, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const auto at = static_cast<size_t>(r * kRun);
        all.read(start_of_run(r, runs, all.size()), kRun, &keys[at], &groups[at]);
      }
    });
  }
};

// Numbers of each group and bin, added up over ranges.
template <typename Bits, typename Count>
std::vector<uint32_t> histogram(const GroupKeys<Bits>& keys, size_t bins, const Count& count) {
  std::vector<uint32_t> total;
  std::mutex mutex;
  keys.each_range([&](size_t range) {
    std::vector<uint32_t> mine(keys.groups() * bins);
    keys.each_chunk_of(range, [&](int64_t, int size, const Bits* some, const uint32_t* groups) {
      count(size, some, groups, mine.data());
    });
    std::lock_guard lock(mutex);
    if (total.empty())
      total.swap(mine);
    else
      for (size_t i = 0; i < total.size(); ++i) total[i] += mine[i];
  });
  return total;
}

// For groups too small to be sampled.
template <typename Bits>
void guess_by_splits(const GroupKeys<Bits>& keys, std::vector<GroupState<Bits>>& states) {
  Sample<Bits> s(keys, std::min<int64_t>(keys.size() / 16, 1 << 16));
  std::sort(s.keys.begin(), s.keys.end());
  Bits splits[kSplitBins - 1];
  for (size_t i = 1; i < kSplitBins; ++i) splits[i - 1] = s.keys[s.keys.size() * i / kSplitBins];
  const auto table =
      histogram(keys, kSplitBins, [&](int count, const Bits* some, const uint32_t* groups, uint32_t* found) {
        alignas(64) Bits bins[kChunk];
        PYSEL_CHOOSE(split_bins<Bits>)(some, count, splits, bins);
        for (int i = 0; i < count; ++i) ++found[groups[i] * size_t{kSplitBins} + bins[i]];
      });
  keys.each_group([&](size_t g) {
    GroupState<Bits>& state = states[g];
    if (state.wanted == 0) return;
    const uint32_t* row = table.data() + g * kSplitBins;
    int64_t above = 0;
    int bin = kSplitBins - 1;
    for (; bin > 0 && above + row[bin] < state.wanted; --bin) above += row[bin];
    state.high = bin == kSplitBins - 1 ? std::numeric_limits<Bits>::max() : static_cast<Bits>(splits[bin] - 1);
    state.low = std::max(keys.options().lowest, bin == 0 ? Bits{0} : splits[bin - 1]);
    state.high = std::max(state.low, state.high);
    state.within = row[bin];
  });
}

}  // namespace

template <typename Bits>
int64_t guess_brackets(const GroupKeys<Bits>& keys, int64_t most_kept, std::vector<GroupState<Bits>>& states) {
  constexpr int64_t kSmall = 1500;  // elements of a group
  const auto groups = static_cast<int64_t>(states.size());
  if (keys.few()) return keys.size();
  if (keys.size() / kSmall < groups) {
    guess_by_splits(keys, states);
    return 0;
  }
  const double n = static_cast<double>(keys.size());
  const auto wanted = static_cast<int64_t>(std::cbrt(n * n * static_cast<double>(groups)));
  const Sample<Bits> s(keys, std::min({wanted, 4 * most_kept, keys.size() / 16}));
  std::vector<size_t> end(states.size() + 1);
  for (uint32_t g : s.groups) ++end[g + 1];
  std::partial_sum(end.begin(), end.end(), end.begin());
  std::vector<size_t> next(end.begin(), end.end() - 1);
  std::vector<Bits> by_group(s.keys.size());
  for (size_t i = 0; i < s.keys.size(); ++i) by_group[next[s.groups[i]]++] = s.keys[i];
  const double share = static_cast<double>(s.keys.size()) / n;
  std::atomic<int64_t> within{0};  // of the sample
  keys.each_group([&](size_t g) {
    GroupState<Bits>& state = states[g];
    if (state.wanted == 0) return;
    const auto first = by_group.begin() + static_cast<std::ptrdiff_t>(end[g]);
    const auto last = by_group.begin() + static_cast<std::ptrdiff_t>(end[g + 1]);
    // Three and a half standard deviations of the last selected key's rank in the sample, and a few more where few
    // are wanted.
    const double rank = share * static_cast<double>(state.wanted), slack = 4 + 3.5 * std::sqrt(rank);
    const auto from_top = static_cast<int64_t>(std::floor(rank - slack)),
               to = static_cast<int64_t>(std::ceil(rank + slack));
    if (to < last - first) {
      std::nth_element(first, first + to, last, std::greater<>());
      state.low = std::max(keys.options().lowest, first[to]);
    }
    if (from_top >= 0 && from_top < last - first) {
      std::nth_element(first, first + from_top, std::min(last, first + to), std::greater<>());
      state.high = std::max(state.low, first[from_top]);
    }
    if (state.low != state.high) within += std::min<int64_t>(to, last - first) - std::max<int64_t>(from_top, 0);
  });
  return static_cast<int64_t>(static_cast<double>(within) / share);
}

// Histograms of each open group within its bracket.
template <typename Bits>
void narrow_brackets(const GroupKeys<Bits>& keys, std::vector<GroupState<Bits>>& states) {
  using State = GroupState<Bits>;
  int log_bins = 4;
  while (log_bins < 11 && states.size() << (log_bins + 1) <= size_t{1} << 18) ++log_bins;
  const size_t bins = size_t{1} << log_bins, below = 0, above = bins + 1;  // bins 1 to `bins` are of the bracket
  struct Scale {
    Bits low, high;
    uint32_t shift;
  };
  std::vector<Scale> scales(states.size());
  for (size_t g = 0; g < states.size(); ++g) {
    const State& s = states[g];
    uint32_t shift = 0;
    while (static_cast<Bits>(s.high - s.low) >> shift >= bins) ++shift;
    scales[g] = {s.low, s.high, shift};
  }
  const auto table =
      histogram(keys, bins + 2, [&](int count, const Bits* some, const uint32_t* groups, uint32_t* found) {
        for (int i = 0; i < count; ++i) {
          const Scale& s = scales[groups[i]];
          // without a branch, which would often be mispredicted
          size_t bin = static_cast<size_t>(static_cast<Bits>(some[i] - s.low) >> s.shift) + 1;
          bin = some[i] < s.low ? below : bin;
          bin = some[i] > s.high ? above : bin;
          ++found[groups[i] * (bins + 2) + bin];
        }
      });
  keys.each_group([&](size_t g) {
    State& s = states[g];
    if (s.found != State::Found::open || s.wanted == 0) return;
    const uint32_t* row = table.data() + g * (bins + 2);
    int64_t before = row[above];
    if (before >= s.wanted) {
      s.low = before > s.wanted ? static_cast<Bits>(s.high + 1) : s.high;
      s.high = before > s.wanted ? std::numeric_limits<Bits>::max() : s.high;
      s.within = before > s.wanted ? before : row[bins];
      return;
    }
    size_t bin = bins;
    for (; bin > below && before + row[bin] < s.wanted; --bin) before += row[bin];
    if (bin == below) {
      keys.check_size(g, s, before);
      s.high = static_cast<Bits>(s.low - 1);
      s.low = keys.options().lowest;
    } else {
      const Bits low = s.low;
      s.low = static_cast<Bits>(low + (static_cast<Bits>(bin - 1) << scales[g].shift));
      s.high = std::min<Bits>(s.high, s.low + static_cast<Bits>((Bits{1} << scales[g].shift) - 1));
    }
    s.within = row[bin];
  });
}

template int64_t guess_brackets<uint32_t>(const GroupKeys<uint32_t>&, int64_t, std::vector<GroupState<uint32_t>>&);
template void narrow_brackets<uint32_t>(const GroupKeys<uint32_t>&, std::vector<GroupState<uint32_t>>&);
template int64_t guess_brackets<uint64_t>(const GroupKeys<uint64_t>&, int64_t, std::vector<GroupState<uint64_t>>&);
template void narrow_brackets<uint64_t>(const GroupKeys<uint64_t>&, std::vector<GroupState<uint64_t>>&);

}  // namespace pysel
