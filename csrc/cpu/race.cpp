// Weighted sampling without replacement: a race (Efraimidis and Spirakis 2006). Item i has the key log w_i + g_i and
// the k largest win, ties by the order stream. Keys are functions of the element's number, so a pass makes them anew
// instead of storing them.
#include "common/op.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/order.h"
#include "common/random.h"
#include "cpu/bucket.h"
#include "cpu/sample.h"

#define PYSEL_KERNELS "cpu/race_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

// Puts the winners (ascending, as `out` holds them) into draw order or a random order. Items are numbered from `first`.
//
// A winner becomes one integer: 32 leading bits of what it is sorted by, then its index. These are brought into buckets
// by range, and each bucket is sorted in cache. Winners that share their leading bits are compared in full; race keys
// that are equal even so (at 1e9 items many are) go by the order stream.
template <typename T>
class Arranger {
  using A = Compute<T>;
  using Bits = OrderBits<A>;

 public:
  Arranger(const T* w, int64_t n, const Request& request, uint64_t first)
      : w_(w), n_(n), request_(request), first_(first), draw_(request.arrangement == Arrangement::draw) {}

  void run(int64_t* out) const {
    const int64_t k = request_.k;
    auto* sorted = reinterpret_cast<uint64_t*>(out);
    if (n_ > int64_t{1} << 32) {  // an index does not fit beside the leading bits
      std::vector<Contender> all(static_cast<size_t>(k));
      for (size_t j = 0; j < all.size(); ++j)
        all[j] = contender(sorted[j], request_.key.word64(Stream::order, element(sorted[j])), draw_);
      std::sort(all.begin(), all.end());
      for (size_t j = 0; j < all.size(); ++j) out[j] = all[j].index;
      return;
    }
    const Tensor items_tensor = empty_cpu({k}, ScalarType::Long);
    auto* items = static_cast<uint64_t*>(items_tensor.data_ptr());
    const float lowest = pack(out, items);

    int bits = 0;
    while (bits < kMostBits && kBucket << bits < k) ++bits;
    const size_t buckets = size_t{1} << bits;
    const auto start = bucket(
        k, buckets, [items](int64_t at, int, uint64_t*) { return items + at; },
        [&](const uint64_t* some, int count, uint32_t* to) {
          if (draw_) {
            PYSEL_CHOOSE(draw_buckets)(some, count, lowest, static_cast<float>(buckets), to);
          } else {
            PYSEL_CHOOSE(leading_buckets)(some, count, bits, to);
          }
        },
        sorted);
    parallel_for(static_cast<int64_t>(buckets), 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (auto b = static_cast<size_t>(begin); b < static_cast<size_t>(end); ++b) {
        uint64_t* bucket = sorted + start[b];
        const int64_t size = start[b + 1] - start[b];
        sort_by_leading(bucket, size, scratch.items);
        mend_ties(bucket, size, scratch);
        for (int64_t j = 0; j < size; ++j) bucket[j] &= 0xffffffffu;
      }
    });
  }

 private:
  static constexpr int kMostBits = 10;  // of a bucket's number
  static constexpr int64_t kBucket = 4096;

  // A thread's room.
  struct Scratch {
    std::vector<uint64_t> items;
    std::vector<uint32_t> at;
    std::vector<uint64_t> elements, words;
  };

  // All that decides a winner's place.
  struct Contender {
    Bits race;
    uint64_t shuffle;
    int64_t index;

    bool operator<(const Contender& other) const {
      if (race != other.race) return race > other.race;
      return shuffle != other.shuffle ? shuffle < other.shuffle : index < other.index;
    }
  };

  uint64_t element(uint64_t i) const { return first_ + i; }

  Contender contender(uint64_t index, uint64_t word, bool races) const {
    Bits race = 0;
    if (races) PYSEL_CHOOSE(race_keys<T, A>)(w_ + index, request_.log_weights, request_.key, element(index), 1, &race);
    return {race, word, static_cast<int64_t>(index)};
  }

  // Writes the winners' items, and returns the lowest race key. Where winners are dense, a chunk's words are made at
  // once.
  float pack(const int64_t* winners, uint64_t* items) const {
    constexpr int64_t kDense = 8;
    const int64_t k = request_.k;
    uint32_t last = 0;
    std::mutex mutex;
    parallel_for(k, kGrain, [&](int64_t begin, int64_t end) {
      alignas(64) uint32_t leading[kChunk];
      uint32_t mine = 0;
      for (int64_t j = begin; j < end;) {
        const int64_t at = winners[j] / kChunk * kChunk;
        const int64_t next = std::lower_bound(winners + j, winners + std::min(end, j + kChunk), at + kChunk) - winners;
        const auto count = static_cast<int>(next - j);
        lead(winners + j, count, at, count >= kDense, leading);
        for (int i = 0; i < count; ++i, ++j) {
          mine = std::max(mine, leading[i]);
          items[j] = uint64_t{leading[i]} << 32 | static_cast<uint64_t>(winners[j]);
        }
      }
      std::lock_guard lock(mutex);
      last = std::max(last, mine);
    });
    return from_order<float>(~last);
  }

  // Leading bits of winners, which are in the chunk that begins `at`.
  void lead(const int64_t* winners, int count, int64_t at, bool dense, uint32_t* out) const {
    const uint64_t first = element(static_cast<uint64_t>(at));
    const int n = chunk_size(n_, at / kChunk);
    alignas(64) uint32_t words[kChunk], places[kChunk];
    for (int i = 0; i < count; ++i) places[i] = static_cast<uint32_t>(winners[i] - at);
    if (!draw_) {
      if (dense) PYSEL_CHOOSE(leading_words)(request_.key, Stream::order, first, n, words);
      for (int i = 0; i < count; ++i)
        out[i] = dense ? words[places[i]]
                       : static_cast<uint32_t>(request_.key.word64(Stream::order, first + places[i]) >> 32);
      return;
    }
    alignas(64) Bits keys[kChunk];
    if constexpr (std::is_same_v<A, float>) {
      if (dense) PYSEL_CHOOSE(fill_words)(request_.key, Stream::high, first, n, words);
      for (int i = 0; i < count && !dense; ++i) words[places[i]] = request_.key.word(Stream::high, first + places[i]);
      PYSEL_CHOOSE(race_keys_at<T>)
      (w_ + at, request_.log_weights, request_.key, first, words, places, count, keys);
    } else {
      alignas(64) Bits all[kChunk];
      if (dense) PYSEL_CHOOSE(race_keys<T, A>)(w_ + at, request_.log_weights, request_.key, first, n, all);
      for (int i = 0; i < count; ++i)
        keys[i] = dense ? all[places[i]] : contender(static_cast<uint64_t>(winners[i]), 0, true).race;
    }
    PYSEL_CHOOSE(leading_bits<A>)(keys, count, out);
  }

  // By as many passes as the leading bits' range takes, least significant digit first.
  static void sort_by_leading(uint64_t* items, int64_t n, std::vector<uint64_t>& scratch) {
    constexpr int64_t kFew = 256;
    constexpr int kMostDigit = 11;
    if (n < kFew) {
      std::sort(items, items + n);
      return;
    }
    if (static_cast<int64_t>(scratch.size()) < n) scratch.resize(static_cast<size_t>(n));
    uint64_t least = items[0], most = items[0];
    for (int64_t i = 1; i < n; ++i) {
      least = std::min(least, items[i]);
      most = std::max(most, items[i]);
    }
    int bits = 0;
    while (((most >> 32) - (least >> 32)) >> bits > 0) ++bits;
    const int passes = std::max(1, (bits + kMostDigit - 1) / kMostDigit), digit = (bits + passes - 1) / passes;
    std::vector<uint32_t> place(size_t{1} << digit);
    uint64_t *from = items, *to = scratch.data();
    for (int pass = 0; pass < passes; ++pass) {
      const auto digit_of = [&, low = least >> 32](uint64_t item) {
        return static_cast<size_t>(((item >> 32) - low) >> (pass * digit)) & (place.size() - 1);
      };
      std::fill(place.begin(), place.end(), 0);
      for (int64_t i = 0; i < n; ++i) ++place[digit_of(from[i])];
      uint32_t total = 0;
      for (uint32_t& p : place) total += std::exchange(p, total);
      for (int64_t i = 0; i < n; ++i) to[place[digit_of(from[i])]++] = from[i];
      std::swap(from, to);
    }
    if (from != items) std::copy_n(from, n, items);
  }

  // Orders the few that share their leading bits.
  void mend_ties(uint64_t* items, int64_t n, Scratch& scratch) const {
    auto& [_, at, elements, words] = scratch;
    at.resize(static_cast<size_t>(n));
    size_t count = 0;
    for (int64_t j = 0; j < n; ++j) {  // without a branch, which would often be mispredicted
      at[count] = static_cast<uint32_t>(j);
      const bool as_before = items[j] >> 32 == items[std::max<int64_t>(j - 1, 0)] >> 32;
      const bool as_after = items[j] >> 32 == items[std::min(j + 1, n - 1)] >> 32;
      count += as_before + as_after > (j == 0) + (j == n - 1);  // the first equals itself, and the last
    }
    elements.resize(count);
    words.resize(count);
    for (size_t t = 0; t < count; ++t) elements[t] = element(items[at[t]] & 0xffffffffu);
    PYSEL_CHOOSE(gather_words)(request_.key, Stream::order, elements.data(), static_cast<int64_t>(count), words.data());
    const bool races = draw_ && sizeof(Bits) > 4;  // else the leading bits are all of them
    std::vector<Contender> tied;
    for (size_t run = 0, next; run < count; run = next) {
      for (next = run + 1; next < count && items[at[next]] >> 32 == items[at[run]] >> 32;) ++next;
      if (next - run == 2 && !races) {
        if (words[run + 1] < words[run]) std::swap(items[at[run]], items[at[run + 1]]);
        continue;
      }
      tied.clear();
      for (size_t t = run; t < next; ++t) tied.push_back(contender(items[at[t]] & 0xffffffffu, words[t], races));
      std::sort(tied.begin(), tied.end());
      // the leading bits have to stay for the next run's sake
      for (size_t t = run; t < next; ++t)
        items[at[t]] = (items[at[t]] >> 32 << 32) | static_cast<uint64_t>(tied[t - run].index);
    }
  }

  const T* w_;
  int64_t n_;
  const Request& request_;
  uint64_t first_;
  bool draw_;
};

// What the race is decided by, as numbers.
Tensor race_keys_of(Tensor weights, bool log_weights, Tensor key, int64_t start) {
  check_floating("race_keys", "weights", weights);
  check_start("race_keys", start);
  const Key k = read_key("race_keys", key);
  const bool wide = weights.scalar_type() == ScalarType::Double;
  Tensor out = empty_cpu(sizes(weights), wide ? ScalarType::Double : ScalarType::Float);
  dispatch_floating("race_keys", "weights", weights, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor w_c = packed(weights);
    const T* w = static_cast<const T*>(w_c.data_ptr());
    A* z = static_cast<A*>(out.data_ptr());
    each_chunk(weights.numel(), true, [&](int64_t chunk) {
      const int64_t at = chunk * kChunk;
      const int count = chunk_size(weights.numel(), chunk);
      alignas(64) OrderBits<A> keys[kChunk];
      PYSEL_CHOOSE(race_keys<T, A>)(w + at, log_weights, k, static_cast<uint64_t>(start + at), count, keys);
      for (int i = 0; i < count; ++i) z[at + i] = from_order<A>(keys[i]);
    });
  });
  return out;
}

}  // namespace

template <typename T>
void race(const T* w, int64_t n, const Request& request, uint64_t first, int64_t* out) {
  using A = Compute<T>;
  using Bits = OrderBits<A>;
  const bool few = request.k < n / 16;
  const Bits inf = order(std::numeric_limits<A>::infinity());
  const KeysOf<Bits> keys_of = [&](int64_t begin, int count, KeyRange<Bits> range, Bits* keys) {
    const uint64_t element = first + static_cast<uint64_t>(begin);
    if constexpr (std::is_same_v<A, float>) {
      const float low = from_order<float>(range.low), high = from_order<float>(range.high);
      if (few && range.low > 0 && range.low <= inf)
        return PYSEL_CHOOSE(high_race_keys<T>)(w + begin, request.log_weights, request.key, element, count, low, keys);
      if (range.low > 0 && range.high < inf) {
        PYSEL_CHOOSE(race_keys_between<T>)(w + begin, request.log_weights, request.key, element, count, low, high,
                                           keys);
        return true;
      }
    }
    PYSEL_CHOOSE(race_keys<T, A>)(w + begin, request.log_weights, request.key, element, count, keys);
    return true;
  };
  const TieOrder tie_order{request.key, first};
  if (request.groups) {
    GroupOptions<Bits> options{
        .op = "weighted_sample", .size_name = "the number of nonzero weights", .tie_order = tie_order};
    if (request.validate) options.lowest = order(-std::numeric_limits<A>::infinity()) + 1;
    select_of_groups<Bits>(n, *request.groups, keys_of, options, out);
  } else {
    select_largest<Bits>(n, request.k, keys_of, {.tie_order = tie_order}, out);
  }
  if (request.arrangement != Arrangement::index) Arranger<T>(w, n, request, first).run(out);
}

template void race<float>(const float*, int64_t, const Request&, uint64_t, int64_t*);
template void race<double>(const double*, int64_t, const Request&, uint64_t, int64_t*);
template void race<BFloat16>(const BFloat16*, int64_t, const Request&, uint64_t, int64_t*);
template void race<Half>(const Half*, int64_t, const Request&, uint64_t, int64_t*);

}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) { m.impl("race_keys", PYSEL_OP(&pysel::race_keys_of)); }
