// See group_select.h.
#include "cpu/group_select.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "common/random.h"
#include "cpu/group_brackets.h"

namespace pysel {
namespace {

constexpr uint32_t kTallyCopies = 4;  // of few groups
constexpr int64_t kFewGroups = 64;
constexpr int64_t kVectorGroups = 16;  // whose entries fit into a vector

// Each group's.
template <typename Bits>
struct GroupBrackets {
  const Bits *low, *high;
  bool few;  // at most kVectorGroups
};

// How many keys one thread saw above a group's bracket, and within. Its range has fewer than 2^31 elements.
struct GroupTally {
  uint32_t above, within;
};

// The value of which a group takes some.
template <typename Bits>
struct TieCell {
  Bits value;
  bool ties;
};

}  // namespace
}  // namespace pysel

#define PYSEL_KERNELS "cpu/group_select_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr int64_t kFewTies = 64;  // that are kept

// Item: a key, complemented, and its index, each a half of it, so that the smallest are wanted.
template <typename Bits, typename Item>
class GroupSelection {
  using At = std::conditional_t<sizeof(Item) == 8, uint32_t, int64_t>;

 public:
  GroupSelection(int64_t n, const Groups& groups, const KeysOf<Bits>& keys_of, const GroupOptions<Bits>& options)
      : n_(n),
        options_(options),
        all_(n, groups, keys_of, options),
        copies_(groups.count <= kFewGroups ? kTallyCopies : 1),
        most_kept_(all_.few() ? n : std::max(options.most_kept < 0 ? n / 4 : options.most_kept, kGrain)),
        open_(static_cast<size_t>(groups.count)),
        keep_(static_cast<size_t>(groups.count)),
        state_(static_cast<size_t>(groups.count)),
        ranges_(all_.ranges()),
        words_(empty_cpu({(n + 63) / 64}, ScalarType::Long)),
        bits_(static_cast<uint64_t*>(words_.data_ptr())) {
    for (Range& range : ranges_) {
      range.tallies.resize(state_.size() * copies_);
      range.place.resize(state_.size());
    }
    for (size_t g = 0; g < state_.size(); ++g) {
      state_[g].wanted = groups.quotas[g];
      state_[g].low = options.lowest;
      if (state_[g].wanted == 0) state_[g].low = state_[g].high;
    }
  }

  void run(int64_t* indices) {
    expected_ = guess_brackets(all_, most_kept_, state_);
    if (expected_ > most_kept_) narrow_brackets(all_, state_);
    while (!mark())
      if (too_much_) narrow_brackets(all_, state_);
    write(indices);
  }

 private:
  using State = GroupState<Bits>;
  using Found = typename State::Found;

  static constexpr Bits kMost = std::numeric_limits<Bits>::max();
  static constexpr int kHalf = 4 * sizeof(Item);

  struct Kept {
    Bits key;
    uint32_t group;
    At at;
  };

  // Grows in huge pages.
  struct KeptList {
    Tensor memory = empty_cpu({0}, ScalarType::Byte);
    Kept* data = nullptr;
    int64_t size = 0;

    int64_t capacity() const { return memory.numel() / static_cast<int64_t>(sizeof(Kept)); }
    void clear(int64_t expected) {
      size = 0;
      if (capacity() < expected) grow(expected);
    }
    // Where `count` more may be written.
    Kept* room(int64_t count) {
      if (capacity() < size + count) grow(2 * size + count);
      return data + size;
    }
    void grow(int64_t to) {
      const Tensor before = memory;
      memory = empty_cpu({to * static_cast<int64_t>(sizeof(Kept))}, ScalarType::Byte);
      auto* from = static_cast<const Kept*>(std::exchange(data, static_cast<Kept*>(memory.data_ptr())));
      std::copy_n(from, size, data);
    }
  };

  struct GroupTied {
    Tied tied;
    uint32_t group;
  };

  // Of the keys in a bracket that are not kept.
  struct Extremes {
    Bits least, most;
    void add(Bits key) {
      least = std::min(least, key);
      most = std::max(most, key);
    }
  };

  struct Range {
    std::vector<GroupTally> tallies;  // copies_ of each group
    std::vector<int64_t> place;       // where a group's next goes
    KeptList kept;
    std::vector<Extremes> extremes;
    std::vector<GroupTied> tied;
  };

  // --- mark ---

  // The pass over all keys. True when every group is settled.
  bool mark() {
    bool all_open = true;
    int64_t known = 0;
    for (const State& s : state_) {
      all_open &= s.found == Found::open;
      if (s.found == Found::open && s.low != s.high) known += std::max<int64_t>(s.within, 0);
    }
    // when not all can be kept, small brackets are; of the others it is seen whether they come down to one value
    const int64_t most = known <= most_kept_ ? n_ : most_kept_ / static_cast<int64_t>(state_.size());
    const int64_t expected = 1024 + std::max(known, expected_) * 9 / 8 / static_cast<int64_t>(ranges_.size());
    for (size_t g = 0; g < state_.size(); ++g) {
      const State& s = state_[g];
      open_[g] = s.found == Found::open;
      keep_[g] = open_[g] && (s.low != s.high ? s.within <= most : s.within >= 0 && s.within <= kFewTies);
    }
    const size_t entries = std::max(state_.size(), static_cast<size_t>(kVectorGroups));
    std::vector<Bits> low(entries), high(entries);
    for (size_t g = 0; g < state_.size(); ++g) {
      low[g] = state_[g].low;
      high[g] = state_[g].high;
    }
    const GroupBrackets<Bits> brackets{low.data(), high.data(), static_cast<int64_t>(state_.size()) <= kVectorGroups};
    std::atomic<int64_t> kept{0};
    all_.each_range([&](size_t r) {
      Range& range = ranges_[r];
      range.kept.clear(expected);
      range.extremes.assign(most < n_ ? state_.size() : 0, {kMost, 0});
      GroupTally* tallies = range.tallies.data();
      std::fill_n(tallies, range.tallies.size(), GroupTally{0, 0});
      alignas(64) uint32_t within[kChunk];
      all_.each_chunk_of(r, [&](int64_t first, int count, const Bits* keys, const uint32_t* groups) {
        uint64_t* bits = bits_ + first / 64;
        const int found = mark_chunk(all_open, keys, groups, count, brackets, tallies, bits, within);
        const bool room = kept.load(std::memory_order_relaxed) <= most_kept_;
        Kept* const begin = range.kept.room(kChunk);
        Kept* to = begin;
        for (int i = 0; i < found; ++i) {
          const uint32_t at = within[i], g = groups[at];
          ++tallies[g * copies_].within;
          if (keep_[g] == 0) {
            if (most < n_) range.extremes[g].add(keys[at]);
          } else if (room) {
            *to++ = {keys[at], g, static_cast<At>(first + at)};
          }
        }
        range.kept.size += to - begin;
        kept.fetch_add(to - begin, std::memory_order_relaxed);
      });
      for (size_t g = 0; g < state_.size(); ++g)
        for (size_t c = 1; c < copies_; ++c) tallies[g * copies_].above += tallies[g * copies_ + c].above;
    });
    return settle(kept <= most_kept_);
  }

  int mark_chunk(bool all_open, const Bits* keys, const uint32_t* groups, int count,
                 const GroupBrackets<Bits>& brackets, GroupTally* tallies, uint64_t* bits, uint32_t* within) const {
    const auto call = [&](auto* kernel) {
      return kernel(keys, groups, count, brackets, open_.data(), tallies, bits, within);
    };
    if (copies_ == 1)
      return all_open ? call(PYSEL_CHOOSE(mark_groups<Bits, true, 1>))
                      : call(PYSEL_CHOOSE(mark_groups<Bits, false, 1>));
    return all_open ? call(PYSEL_CHOOSE(mark_groups<Bits, true, kTallyCopies>))
                    : call(PYSEL_CHOOSE(mark_groups<Bits, false, kTallyCopies>));
  }

  // After a pass.
  bool settle(bool all_kept) {
    bool missed = false, ties = false, kept = false;
    for (size_t g = 0; g < state_.size(); ++g) {
      State& s = state_[g];
      if (s.found != Found::open) continue;
      Extremes extremes{kMost, 0};
      s.above = s.within = 0;
      for (Range& range : ranges_) {
        s.above += seen(range, g).above;
        s.within += seen(range, g).within;
        if (range.extremes.empty()) continue;
        const Extremes& mine = range.extremes[g];
        extremes = {std::min(extremes.least, mine.least), std::max(extremes.most, mine.most)};
      }
      if (s.above > s.wanted) {
        s.low = static_cast<Bits>(s.high + 1);
        s.high = kMost;
        s.within = s.above;
        missed = true;
      } else if (s.above + s.within < s.wanted) {
        all_.check_size(g, s, s.above + s.within);
        s.high = static_cast<Bits>(s.low - 1);
        s.low = options_.lowest;
        s.within = n_;
        missed = true;
      } else if (s.above == s.wanted) {
        s.found = Found::settled;
      } else if (keep_[g] != 0 && all_kept) {
        s.found = Found::settled;
        kept = true;
      } else {
        if (extremes.least <= extremes.most) {
          s.low = extremes.least;
          s.high = extremes.most;
        }
        if (s.low == s.high) {
          s.found = Found::ties;
          ties = true;
        } else {
          missed = true;
        }
      }
    }
    if (kept) settle_kept();
    if (ties) take_ties();
    int64_t known = 0;
    for (const State& s : state_)
      if (s.found == Found::open) known += std::max<int64_t>(s.within, 0);
    too_much_ = !all_kept || known > most_kept_;
    return !missed;
  }

  // --- settle ---

  // Brings what was kept together by group, and finds each group's last selected among it.
  void settle_kept() {
    std::vector<int64_t> start(state_.size() + 1);
    for (size_t g = 0; g < state_.size(); ++g) {
      start[g + 1] = start[g];
      for (Range& range : ranges_)
        if (keep_[g] != 0) {
          range.place[g] = start[g + 1];
          start[g + 1] += seen(range, g).within;
        }
    }
    const Tensor items_tensor =
        empty_cpu({start.back() * static_cast<int64_t>(sizeof(Item) / sizeof(int64_t))}, ScalarType::Long);
    auto* items = static_cast<Item*>(items_tensor.data_ptr());
    all_.each_range([&](size_t r) {
      Range& range = ranges_[r];
      for (const Kept *kept = range.kept.data, *end = kept + range.kept.size; kept < end; ++kept)
        items[range.place[kept->group]++] = item_of(*kept);
    });
    std::vector<Item> ends(state_.size());  // of each group, where its selected items end
    all_.each_group([&](size_t g) {
      const State& s = state_[g];
      if (keep_[g] != 0 && s.found == Found::settled && s.above < s.wanted)
        ends[g] = end_of_best(items + start[g], items + start[g + 1], s.wanted - s.above);
    });
    all_.each_range([&](size_t r) {
      Range& range = ranges_[r];
      for (const Kept *kept = range.kept.data, *end = kept + range.kept.size; kept < end; ++kept) {
        const uint64_t take = item_of(*kept) < ends[kept->group];
        bits_[kept->at / 64] |= take << kept->at % 64;
      }
    });
    // several threads set bits of these, so they come last
    all_.each_group([&](size_t g) {
      const State& s = state_[g];
      if (options_.tie_order && keep_[g] != 0 && s.found == Found::settled && s.above < s.wanted)
        take_tied(items + start[g], items + start[g + 1], s.wanted - s.above);
    });
  }

  static Item item_of(const Kept& kept) {
    return static_cast<Item>(static_cast<Bits>(~kept.key)) << kHalf | static_cast<Item>(kept.at);
  }

  // Below which items are certain to be among the `wanted` first: with a tie order, none that ties with those outside.
  Item end_of_best(Item* first, Item* last, int64_t wanted) const {
    std::nth_element(first, first + (wanted - 1), last);
    const Item nth = first[wanted - 1];
    if (!options_.tie_order) return nth + 1;
    const Item tied = nth >> kHalf;
    const bool outside = std::any_of(first + wanted, last, [&](Item i) { return i >> kHalf == tied; });
    return outside ? tied << kHalf : nth + 1;
  }

  // What end_of_best left out, by the order of ties. Items are as it left them.
  void take_tied(Item* first, Item* last, int64_t wanted) {
    const Item tied = first[wanted - 1] >> kHalf;
    if (std::none_of(first + wanted, last, [&](Item i) { return i >> kHalf == tied; })) return;
    std::vector<Tied> ties;
    int64_t inside = 0;
    for (Item* i = first; i < last; ++i) {
      if (*i >> kHalf != tied) continue;
      inside += i < first + wanted;
      ties.push_back({options_.tie_order->word(index_of(*i)), index_of(*i)});
    }
    take_first(ties.begin(), ties.end(), inside);
  }

  // Sets the bits of the `wanted` first of some that tie.
  template <typename Iterator>
  void take_first(Iterator begin, Iterator end, int64_t wanted) {
    std::nth_element(begin, begin + wanted, end);
    for (Iterator i = begin; i < begin + wanted; ++i) set(i->at);
  }

  static int64_t index_of(Item item) { return static_cast<int64_t>(item & ((Item{1} << kHalf) - 1)); }

  // From several threads.
  void set(int64_t at) { std::atomic_ref(bits_[at / 64]).fetch_or(uint64_t{1} << at % 64, std::memory_order_relaxed); }

  // --- ties ---

  // Where a group's bracket is one value, takes as many of those that have it as are wanted.
  void take_ties() {
    std::vector<TieCell<Bits>> cells(state_.size());
    for (size_t g = 0; g < state_.size(); ++g) cells[g] = {state_[g].low, state_[g].found == Found::ties};
    if (options_.tie_order) {
      for (double deviations = 6; !take_ties_by_word(cells.data(), deviations);) deviations *= 8;
    } else {
      take_first_ties(cells.data());
    }
    for (State& s : state_)
      if (s.found == Found::ties) s.found = Found::settled;
  }

  void take_first_ties(const TieCell<Bits>* cells) {
    for (size_t g = 0; g < state_.size(); ++g) {
      int64_t left = state_[g].wanted - state_[g].above;
      for (Range& range : ranges_) {
        range.place[g] = std::min<int64_t>(left, seen(range, g).within);
        left -= range.place[g];
      }
    }
    all_.each_range([&](size_t r) {
      Range& range = ranges_[r];
      alignas(64) uint32_t at[kChunk];
      all_.each_chunk_of(r, [&](int64_t first, int count, const Bits* keys, const uint32_t* groups) {
        const int tied = PYSEL_CHOOSE(tied_places<Bits>)(keys, groups, count, cells, at);
        for (int i = 0; i < tied; ++i)
          if (range.place[groups[at[i]]]-- > 0) bits_[(first + at[i]) / 64] |= uint64_t{1} << at[i] % 64;
      });
    });
  }

  // The words of those that tie are spread evenly, so the last one wanted is known to within a few, which are kept and
  // compared. False if it was not among these.
  bool take_ties_by_word(const TieCell<Bits>* cells, double deviations) {
    std::vector<WordRange> near(state_.size());
    for (size_t g = 0; g < state_.size(); ++g) {
      const State& s = state_[g];
      if (s.found == Found::ties) near[g] = WordRange(s.wanted - s.above, s.within, deviations);
    }
    all_.each_range([&](size_t r) {
      Range& range = ranges_[r];
      range.tied.clear();
      std::fill(range.place.begin(), range.place.end(), 0);
      alignas(64) uint32_t at[kChunk];
      alignas(64) uint64_t words[kChunk];
      all_.each_chunk_of(r, [&](int64_t first, int count, const Bits* keys, const uint32_t* groups) {
        const int tied = PYSEL_CHOOSE(tied_places<Bits>)(keys, groups, count, cells, at);
        PYSEL_CHOOSE(words_at)(options_.tie_order->key, options_.tie_order->first + static_cast<uint64_t>(first), at,
                               tied, words);
        for (int i = 0; i < tied; ++i) {
          const uint32_t g = groups[at[i]];
          uint64_t& bits = bits_[(first + at[i]) / 64];
          const uint64_t bit = uint64_t{1} << at[i] % 64, take = words[i] < near[g].low;
          bits = (bits & ~bit) | (take ? bit : 0);
          range.place[g] += static_cast<int64_t>(take);
          if (words[i] >= near[g].low && words[i] <= near[g].high) range.tied.push_back({{words[i], first + at[i]}, g});
        }
      });
    });
    std::vector<int64_t> left(state_.size()), start(state_.size() + 1);
    for (const Range& range : ranges_)
      for (const GroupTied& t : range.tied) ++start[t.group + 1];
    for (size_t g = 0; g < state_.size(); ++g) {
      if (state_[g].found == Found::ties) left[g] = state_[g].wanted - state_[g].above;
      for (const Range& range : ranges_) left[g] -= range.place[g];
      if (left[g] < 0 || left[g] > start[g + 1]) return false;
    }
    std::partial_sum(start.begin(), start.end(), start.begin());
    std::vector<Tied> by_group(static_cast<size_t>(start.back()));
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (const Range& range : ranges_)
      for (const GroupTied& t : range.tied) by_group[static_cast<size_t>(next[t.group]++)] = t.tied;
    all_.each_group(
        [&](size_t g) { take_first(by_group.begin() + start[g], by_group.begin() + start[g + 1], left[g]); });
    return true;
  }

  GroupTally& seen(Range& range, size_t g) const { return range.tallies[g * copies_]; }

  // --- write ---

  void write(int64_t* indices) const {
    constexpr int64_t kPart = 64 * kChunk / 64;  // words
    const int64_t words = (n_ + 63) / 64, parts = (words + kPart - 1) / kPart;
    std::vector<int64_t> start(static_cast<size_t>(parts) + 1);
    const auto each_part = [&](const auto& f) {
      parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p)
          f(static_cast<size_t>(p), bits_ + p * kPart, std::min(kPart, words - p * kPart));
      });
    };
    each_part([&](size_t p, const uint64_t* bits, int64_t count) {
      for (int64_t w = 0; w < count; ++w) start[p + 1] += __builtin_popcountll(bits[w]);
    });
    std::partial_sum(start.begin(), start.end(), start.begin());
    each_part([&](size_t p, const uint64_t* bits, int64_t count) {
      PYSEL_CHOOSE(expand)(bits, count, static_cast<int64_t>(p) * kPart * 64, indices + start[p]);
      if (options_.written) options_.written(indices + start[p], indices + start[p + 1]);
    });
  }

  int64_t n_;
  const GroupOptions<Bits>& options_;
  GroupKeys<Bits> all_;
  size_t copies_;  // of cells
  int64_t most_kept_;
  int64_t expected_ = 0;   // to be kept
  bool too_much_ = false;  // in brackets that missed
  std::vector<uint8_t> open_, keep_;
  std::vector<State> state_;
  std::vector<Range> ranges_;
  Tensor words_;  // one bit an element
  uint64_t* bits_;
};

}  // namespace

template <typename Bits>
void select_of_groups(int64_t n, const Groups& groups, const KeysOf<Bits>& keys_of, const GroupOptions<Bits>& options,
                      int64_t* indices) {
  __extension__ typedef unsigned __int128 Wide;
  if (n == 0) return;
  if (sizeof(Bits) == 4 && n < int64_t{1} << 32)
    GroupSelection<Bits, uint64_t>(n, groups, keys_of, options).run(indices);
  else
    GroupSelection<Bits, Wide>(n, groups, keys_of, options).run(indices);
}

template void select_of_groups<uint32_t>(int64_t, const Groups&, const KeysOf<uint32_t>&, const GroupOptions<uint32_t>&,
                                         int64_t*);
template void select_of_groups<uint64_t>(int64_t, const Groups&, const KeysOf<uint64_t>&, const GroupOptions<uint64_t>&,
                                         int64_t*);

}  // namespace pysel
