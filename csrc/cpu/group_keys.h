#pragma once

// What the passes of a selection by group go through: keys with their groups, in ranges of chunks, one or more a
// thread.

#include <limits>
#include <vector>

#include "cpu/chunk.h"
#include "cpu/group_select.h"

namespace pysel {

// What is known of a group.
template <typename Bits>
struct GroupState {
  enum class Found { open, ties, settled };

  Bits low = 0, high = std::numeric_limits<Bits>::max();  // holds the key of the last to be selected
  int64_t wanted = 0;
  int64_t within = -1;  // keys in the bracket, where known
  int64_t above = 0;    // keys above it
  Found found = Found::open;
};

// Groups of elements [first, first + count) as 32-bit numbers. Throws if there is no such group.
void read_groups(const char* op, const Groups& groups, int64_t first, int count, uint32_t* out);

template <typename Bits>
class GroupKeys {
 public:
  GroupKeys(int64_t n, const Groups& groups, const KeysOf<Bits>& keys_of, const GroupOptions<Bits>& options)
      : n_(n), groups_(groups), keys_of_(keys_of), options_(options) {
    // as few as threads, so that tables stay small; each begins with a word of bits
    const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
    ranges_ = std::max({int64_t{1}, std::min(threads, n / kGrain), (n - 1) / kLongestRange + 1});
  }

  int64_t size() const { return n_; }
  size_t groups() const { return static_cast<size_t>(groups_.count); }
  size_t ranges() const { return static_cast<size_t>(ranges_); }
  const GroupOptions<Bits>& options() const { return options_; }

  // Keys are too few, or groups too small, for anything to be gained by brackets.
  bool few() const {
    constexpr int64_t kFew = 4096, kTiny = 32;  // elements: in all; of a group
    return n_ <= kFew || n_ / kTiny < groups_.count;
  }

  // f(range) for every range, by its number, over all threads.
  template <typename F>
  void each_range(const F& f) const {
    parallel_for(ranges_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) f(static_cast<size_t>(r));
    });
  }

  // f(group) for every group, over all threads.
  template <typename F>
  void each_group(const F& f) const {
    const int64_t grain = std::max<int64_t>(1, kGrain * groups_.count / std::max<int64_t>(n_, 1));
    parallel_for(groups_.count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) f(static_cast<size_t>(g));
    });
  }

  // Elements [first, first + count).
  void read(int64_t first, int count, Bits* keys, uint32_t* groups) const {
    read_groups(options_.op, groups_, first, count, groups);
    keys_of_(first, count, {}, keys);
  }

  // f(first, count, keys, groups) for every chunk of a range.
  template <typename F>
  void each_chunk_of(size_t range, const F& f) const {
    alignas(64) Bits keys[kChunk];
    alignas(64) uint32_t groups[kChunk];
    const auto r = static_cast<int64_t>(range);
    const int64_t begin = chunks_of(n_) * r / ranges_, end = chunks_of(n_) * (r + 1) / ranges_;
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * kChunk;
      const int count = chunk_size(n_, c);
      read(first, count, keys, groups);
      f(first, count, keys, groups);
    }
  }

  // Throws if all of a group's elements have been seen, of which `size` may be selected.
  void check_size(size_t g, const GroupState<Bits>& state, int64_t size) const {
    check_value(state.low > options_.lowest, options_.op, ": quotas must be at most ", options_.size_name,
                " of each group, ", size, " for group ", g, ", got ", state.wanted);
  }

 private:
  static constexpr int64_t kLongestRange = int64_t{1} << 30;

  int64_t n_;
  const Groups& groups_;
  const KeysOf<Bits>& keys_of_;
  const GroupOptions<Bits>& options_;
  int64_t ranges_;
};

}  // namespace pysel
