// See radix_select.h.
#include "cpu/radix_select.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/random.h"

namespace pysel {
namespace {

// How many keys of a chunk are above the bracket, and within it.
struct Tally {
  int64_t above;
  int64_t band;
};

}  // namespace
}  // namespace pysel

#define PYSEL_KERNELS "cpu/radix_select_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr int64_t kPart = 64 * kChunk;  // elements that one thread handles at a time
constexpr int kBins = 2048;
constexpr int64_t kFew = 4096;  // elements that are not worth a guess

template <typename Bits>
class Selection {
 public:
  Selection(int64_t n, int64_t k, const KeysOf<Bits>& keys_of, const SelectOptions& options)
      : n_(n),
        k_(k),
        tie_order_(options.tie_order),
        most_kept_(std::max(options.most_kept < 0 ? n / 8 : options.most_kept, kPart)),
        keys_of_(keys_of),
        parts_(static_cast<size_t>((n + kPart - 1) / kPart)) {
    if (n > kFew) words_ = empty_cpu({(n + 63) / 64}, ScalarType::Long);
    bits_ = words_ ? static_cast<uint64_t*>(words_->data_ptr()) : few_words_.data();
  }

  void run(int64_t* indices, const Written& written) {
    for (Bracket b = guess(); !mark(b); b = narrow(b)) {
    }
    write(indices, written);
  }

 private:
  // Where the k-th largest key is sought; `above` keys are larger than `high`.
  struct Bracket : KeyRange<Bits> {
    int64_t above = 0;
  };

  struct Kept {
    Bits key;
    uint32_t at;  // within the part
  };

  struct Part {
    int64_t above = 0;
    int64_t band = 0;
    int64_t ties = 0;  // how many of the keys equal to the k-th largest belong to the selection
    std::vector<Kept> kept;
  };

  int64_t first_of(size_t part) const { return static_cast<int64_t>(part) * kPart; }
  int64_t size_of(size_t part) const { return std::min(kPart, n_ - first_of(part)); }

  // f(part) for every part, over all threads.
  template <typename F>
  void each_part(const F& f) const {
    parallel_for(static_cast<int64_t>(parts_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) f(static_cast<size_t>(p));
    });
  }

  // f(at, count, keys) for every chunk of a part, where `keys` is null if all are below `range`.
  template <typename F>
  void each_chunk_of(size_t part, KeyRange<Bits> range, const F& f) const {
    alignas(64) Bits keys[kChunk];
    for (int64_t at = 0; at < size_of(part); at += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, size_of(part) - at));
      f(at, count, keys_of_(first_of(part) + at, count, range, keys) ? keys : nullptr);
    }
  }

  Bracket guess() const {
    Bracket b;
    if (k_ == 0) b.low = b.high;  // keep as few as can be
    if (k_ == 0 || n_ <= kFew) return b;
    const auto n = static_cast<double>(n_);
    const auto runs = static_cast<int64_t>(std::cbrt(n * n)) / kRun;
    const int64_t size = runs * kRun;
    std::vector<Bits> sample(static_cast<size_t>(size));
    parallel_for(runs, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        keys_of_(start_of_run(r, runs, n_), kRun, {}, &sample[static_cast<size_t>(r * kRun)]);
    });
    // Four standard deviations of the k-th largest key's rank in the sample, and a few more where k is tiny.
    const double share = static_cast<double>(k_) / n;
    const double rank = share * static_cast<double>(size);
    const double slack = 4 + 4 * std::sqrt(rank * (1 - share));
    const auto from_top = static_cast<int64_t>(std::floor(rank - slack));
    const auto to = static_cast<int64_t>(std::ceil(rank + slack));
    auto nth = [&](int64_t i) {
      std::nth_element(sample.begin(), sample.begin() + i, sample.end(), std::greater<>());
      return sample[static_cast<size_t>(i)];
    };
    if (from_top >= 0) b.high = nth(from_top);
    if (to < size) b.low = nth(to);
    return b;
  }

  // The pass over all keys. True when the selection is complete; else the bracket holds the k-th largest key now.
  bool mark(Bracket& b) {
    std::atomic<int64_t> kept{0};
    each_part([&](size_t p) {
      Part& part = parts_[p];
      part = Part();
      each_chunk_of(p, b, [&](int64_t at, int count, const Bits* keys) {
        uint64_t band[kChunk / 64];
        uint64_t* above = bits_ + (first_of(p) + at) / 64;
        if (keys == nullptr) {
          std::fill_n(above, (count + 63) / 64, 0);
          return;
        }
        const auto tally = PYSEL_CHOOSE(classify<Bits>)(keys, count, b.low, b.high, above, band);
        part.above += tally.above;
        part.band += tally.band;
        if (tally.band == 0 || kept.fetch_add(tally.band, std::memory_order_relaxed) + tally.band > most_kept_) return;
        if (part.kept.empty()) part.kept.reserve(static_cast<size_t>(tally.band));
        for (int w = 0; w * 64 < count; ++w)
          for (uint64_t word = band[w]; word != 0; word &= word - 1) {
            const int i = w * 64 + __builtin_ctzll(word);
            part.kept.push_back({keys[i], static_cast<uint32_t>(at + i)});
          }
      });
    });
    int64_t above = 0, within = 0;
    for (const Part& part : parts_) {
      above += part.above;
      within += part.band;
    }
    if (k_ == 0) return true;
    if (above >= k_) {
      b = {{.low = static_cast<Bits>(b.high + 1)}, 0};
    } else if (above + within < k_) {
      b = {{.high = static_cast<Bits>(b.low - 1)}, above + within};
    } else if (within <= most_kept_) {
      take_from_kept(k_ - above, within);
      return true;
    } else if (b.low == b.high) {
      if (tie_order_)
        take_ties_by_word(b.low, k_ - above, within);
      else
        take_ties(b.low, k_ - above);
      return true;
    } else {
      b.above = above;
    }
    return false;
  }

  // Histograms of the keys within the bracket until few enough are left.
  Bracket narrow(Bracket b) const {
    for (;;) {
      int shift = 0;
      while ((b.high - b.low) >> shift >= kBins) ++shift;
      std::vector<int64_t> bins(kBins);
      std::mutex mutex;
      parallel_for(static_cast<int64_t>(parts_.size()), 1, [&](int64_t begin, int64_t end) {
        std::vector<int64_t> mine(kBins);
        for (int64_t p = begin; p < end; ++p)
          each_chunk_of(static_cast<size_t>(p), b, [&](int64_t, int count, const Bits* keys) {
            for (int i = 0; keys != nullptr && i < count; ++i)
              if (keys[i] >= b.low && keys[i] <= b.high) ++mine[static_cast<size_t>((keys[i] - b.low) >> shift)];
          });
        std::lock_guard lock(mutex);
        for (size_t i = 0; i < kBins; ++i) bins[i] += mine[i];
      });
      size_t bin = kBins - 1;
      for (; b.above + bins[bin] < k_; --bin) b.above += bins[bin];
      b.low += static_cast<Bits>(static_cast<Bits>(bin) << shift);
      b.high = std::min<Bits>(b.high, b.low + ((Bits{1} << shift) - 1));
      if (bins[bin] <= most_kept_ || b.low == b.high) return b;
    }
  }

  void take_from_kept(int64_t wanted, int64_t within) {
    std::vector<Bits> keys;
    keys.reserve(static_cast<size_t>(within));
    for (const Part& part : parts_)
      for (const Kept& kept : part.kept) keys.push_back(kept.key);
    std::nth_element(keys.begin(), keys.begin() + (wanted - 1), keys.end(), std::greater<>());
    const Bits threshold = keys[static_cast<size_t>(wanted - 1)];
    int64_t ties = wanted - std::count_if(keys.begin(), keys.end(), [&](Bits key) { return key > threshold; });
    std::vector<Tied> tied;
    const auto take = [&](size_t p, int64_t i) {
      bits_[i / 64] |= uint64_t{1} << (i % 64);
      ++parts_[p].above;
    };
    for (size_t p = 0; p < parts_.size(); ++p)
      for (const Kept& kept : parts_[p].kept) {
        const int64_t i = first_of(p) + kept.at;
        if (kept.key > threshold)
          take(p, i);
        else if (kept.key == threshold && tie_order_)
          tied.push_back({tie_order_->word(i), i});
        else if (kept.key == threshold && ties-- > 0)
          take(p, i);
      }
    if (!tie_order_) return;
    std::nth_element(tied.begin(), tied.begin() + ties, tied.end());
    for (int64_t t = 0; t < ties; ++t) {
      const int64_t i = tied[static_cast<size_t>(t)].at;
      take(static_cast<size_t>(i / kPart), i);
    }
  }

  // Among `tied` elements. Their words are spread evenly, so the wanted-th smallest is known to within a few: these are
  // kept and compared.
  void take_ties_by_word(Bits threshold, int64_t wanted, int64_t tied) {
    std::vector<Tied> near;
    int64_t wanted_near;
    for (double deviations = 6;; deviations *= 8) {
      const WordRange range(wanted, tied, deviations);
      std::atomic<int64_t> below{0};
      std::mutex mutex;
      near.clear();
      each_part([&](size_t p) {
        std::vector<Tied> mine;
        int64_t taken = 0;
        each_chunk_of(p, {threshold, threshold}, [&](int64_t at, int count, const Bits* keys) {
          if (keys == nullptr) return;
          uint64_t above[kChunk / 64], ties[kChunk / 64];
          if (PYSEL_CHOOSE(classify<Bits>)(keys, count, threshold, threshold, above, ties).band == 0) return;
          alignas(64) uint32_t places[kChunk];
          alignas(64) uint64_t words[kChunk];
          const int64_t first = first_of(p) + at;
          const int listed = PYSEL_CHOOSE(tie_words)(tie_order_->key, tie_order_->first + static_cast<uint64_t>(first),
                                                     ties, count, places, words);
          uint64_t* bits = bits_ + first / 64;
          for (int i = 0; i < listed; ++i) {
            const uint64_t bit = uint64_t{1} << places[i] % 64, take = words[i] < range.low;
            bits[places[i] / 64] = (bits[places[i] / 64] & ~bit) | (take ? bit : 0);
            taken += static_cast<int64_t>(take);
            if (words[i] >= range.low && words[i] <= range.high) mine.push_back({words[i], first + places[i]});
          }
        });
        parts_[p].ties = taken;
        below += taken;
        std::lock_guard lock(mutex);
        near.insert(near.end(), mine.begin(), mine.end());
      });
      wanted_near = wanted - below;
      if (wanted_near >= 0 && wanted_near <= static_cast<int64_t>(near.size())) break;
    }
    std::nth_element(near.begin(), near.begin() + wanted_near, near.end());
    for (Part& part : parts_) part.above += part.ties;
    for (int64_t t = 0; t < wanted_near; ++t) {
      const int64_t i = near[static_cast<size_t>(t)].at;
      bits_[i / 64] |= uint64_t{1} << (i % 64);
      ++parts_[static_cast<size_t>(i / kPart)].above;
    }
  }

  void take_ties(Bits threshold, int64_t wanted) {
    for (Part& part : parts_) {
      part.ties = std::min(wanted, part.band);
      wanted -= part.ties;
    }
    each_part([&](size_t p) {
      Part& part = parts_[p];
      part.above += part.ties;
      if (part.ties == 0) return;
      each_chunk_of(p, {threshold, threshold}, [&](int64_t at, int count, const Bits* keys) {
        if (keys == nullptr) return;
        uint64_t above[kChunk / 64], tied[kChunk / 64];
        PYSEL_CHOOSE(classify<Bits>)(keys, count, threshold, threshold, above, tied);
        uint64_t* bits = bits_ + (first_of(p) + at) / 64;
        for (int w = 0; w * 64 < count && part.ties > 0; ++w) {
          for (; __builtin_popcountll(tied[w]) > part.ties;) tied[w] ^= uint64_t{1} << (63 - __builtin_clzll(tied[w]));
          bits[w] |= tied[w];
          part.ties -= __builtin_popcountll(tied[w]);
        }
      });
    });
  }

  void write(int64_t* indices, const Written& written) {
    std::vector<int64_t> start(parts_.size());
    int64_t total = 0;
    for (size_t p = 0; p < parts_.size(); ++p) {
      start[p] = total;
      total += parts_[p].above;
    }
    if (k_ == 0) return;
    each_part([&](size_t p) {
      int64_t* begin = indices + start[p];
      int64_t* end = PYSEL_CHOOSE(expand)(bits_ + first_of(p) / 64, (size_of(p) + 63) / 64, first_of(p), begin);
      if (written) written(begin, end);
    });
  }

  int64_t n_, k_;
  std::optional<TieOrder> tie_order_;
  int64_t most_kept_;
  const KeysOf<Bits>& keys_of_;
  std::vector<Part> parts_;
  uint64_t* bits_;  // one an element, in one of these: a tensor has huge pages, and takes a small call's time
  std::optional<Tensor> words_;
  std::array<uint64_t, kFew / 64> few_words_;
};

}  // namespace

template <typename Bits>
void select_largest(int64_t n, int64_t k, const KeysOf<Bits>& keys_of, const SelectOptions& options, int64_t* indices) {
  if (n > 0) Selection<Bits>(n, k, keys_of, options).run(indices, options.written);
}

template void select_largest<uint32_t>(int64_t, int64_t, const KeysOf<uint32_t>&, const SelectOptions&, int64_t*);
template void select_largest<uint64_t>(int64_t, int64_t, const KeysOf<uint64_t>&, const SelectOptions&, int64_t*);

}  // namespace pysel
