// Weighted index sampling.
//
// Without replacement: a race (Efraimidis and Spirakis 2006). Item i has the key log w_i + g_i and the k largest win,
// ties by the order stream. Keys are functions of the element's number, so a pass makes them anew instead of storing
// them.
//
// With replacement: weights become integers in fixed point, so that their prefix sums are exact and in any order the
// same; draw j looks its own 64-bit uniform up in them.
#include "common/op.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "common/fixed_point.h"
#include "common/order.h"
#include "common/random.h"
#include "common/sample.h"
#include "cpu/bucket.h"
#include "cpu/group_select.h"

namespace pysel {
namespace {

struct WeightSummary {
  int64_t nonzero;
  bool bad;
};

}  // namespace
}  // namespace pysel

#define PYSEL_KERNELS "cpu/sample_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr const char* kOp = "weighted_sample";

enum class Arrangement { draw, index, shuffled };

struct Request {
  std::optional<Groups> groups;
  bool validate;
  int64_t k;
  bool log_weights;
  Arrangement arrangement;
  Key key;
};

template <typename T>
void check_weights(const T* w, int64_t n, const Request& request, bool replacement) {
  int64_t nonzero = 0;
  bool bad = false;
  std::mutex mutex;
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    const WeightSummary part = PYSEL_CHOOSE(summarise<T, Compute<T>>)(w + begin, end - begin, request.log_weights);
    std::lock_guard lock(mutex);
    nonzero += part.nonzero;
    bad |= part.bad;
  });
  check_value(!bad || !request.log_weights, kOp,
              ": weights must be below +inf and not NaN (log_weights=True), got +inf or NaN");
  check_value(!bad, kOp, ": weights must be finite and at least 0, got a negative, infinite or NaN weight");
  if (replacement) {
    check_value(request.k == 0 || nonzero > 0, kOp,
                ": weights must have at least one above 0 in every row, got a row of zeros");
  } else {
    check_value(request.groups || request.k <= nonzero, kOp, ": k must be at most the number of nonzero weights, ",
                nonzero, ", got ", request.k);
  }
}

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
    GroupOptions<Bits> options{.op = kOp, .size_name = "the number of nonzero weights", .tie_order = tie_order};
    if (request.validate) options.lowest = order(-std::numeric_limits<A>::infinity()) + 1;
    select_of_groups<Bits>(n, *request.groups, keys_of, options, out);
  } else {
    select_largest<Bits>(n, request.k, keys_of, {.tie_order = tie_order}, out);
  }
  if (request.arrangement != Arrangement::index) Arranger<T>(w, n, request, first).run(out);
}

// Draws with replacement: each inverts the cumulative distribution at its own 64-bit uniform.
//
// Only the sums of chunks are kept. Draws are brought into buckets by the leading bits of their uniforms; a bucket's
// targets then fall into a few neighbouring chunks, whose cumulative weights are made anew, in cache, with a table of
// where to begin to search:
//
//   draws of a bucket    t   t t      t    t       targets
//   cumulative          |--|------|-|---|----|--|
//   table               ^   ^   ^   ^   ^   ^      the first weight to look at, at even distances
template <typename T>
class Inversion {
 public:
  Inversion(const T* w, int64_t n, const Request& request, uint64_t first)
      : w_(w),
        n_(n),
        request_(request),
        first_(first),
        fixed_(request.log_weights, largest_weight(w, n), n),
        start_(static_cast<size_t>(chunks_of(n)) + 1) {
    parallel_for(chunks_of(n), kGrain / kChunk, [&](int64_t begin, int64_t end) {
      alignas(64) uint64_t fixed[kChunk];
      for (int64_t c = begin; c < end; ++c) start_[static_cast<size_t>(c) + 1] = fill(c, fixed);
    });
    std::partial_sum(start_.begin(), start_.end(), start_.begin());
  }

  void run(int64_t* out) const {
    const int64_t k = request_.k;
    if (total() == 0) {  // unchecked weights
      std::fill_n(out, k, int64_t{-1});
    } else if (k < 2 * chunks_of(n_) || k > int64_t{1} << 32) {  // a draw alone takes a chunk's time
      one_by_one(out);
    } else {
      by_bucket(out);
    }
  }

 private:
  static constexpr size_t kMostBuckets = 1024;
  static constexpr int64_t kBucket = 4096;
  static constexpr int64_t kSpan = 32;  // chunks whose cumulative weights stay in L2

  // A thread's room.
  struct Room {
    std::vector<uint64_t> cumulative;
    std::vector<uint32_t> table;
    std::vector<uint32_t> count;
    std::vector<uint64_t> draws;
    std::vector<int64_t> sorted;
  };

  static double largest_weight(const T* w, int64_t n) {
    double max = -std::numeric_limits<double>::infinity();
    std::mutex mutex;
    parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
      const double part = PYSEL_CHOOSE(largest<T, Compute<T>>)(w + begin, end - begin);
      std::lock_guard lock(mutex);
      max = std::max(max, part);
    });
    return max;
  }

  uint64_t fill(int64_t chunk, uint64_t* fixed) const {
    return PYSEL_CHOOSE(fixed_weights<T>)(w_ + chunk * kChunk, chunk_size(n_, chunk), fixed_, fixed);
  }

  uint64_t total() const { return start_.back(); }

  uint64_t target_of(int64_t draw) const {
    const uint64_t u = request_.key.word64(Stream::with_replacement, first_ + static_cast<uint64_t>(draw));
    return high_product(u, total());
  }

  int64_t chunk_of(uint64_t target) const {
    return std::upper_bound(start_.begin() + 1, start_.end(), target) - (start_.begin() + 1);
  }

  // Of a draw's chunk, the weights up to the draw are made, a few at a time.
  void one_by_one(int64_t* out) const {
    constexpr int kPiece = 64;
    parallel_for(request_.k, 64, [&](int64_t begin, int64_t end) {
      alignas(64) uint64_t fixed[kPiece];
      for (int64_t j = begin; j < end; ++j) {
        const uint64_t target = target_of(j);
        const int64_t chunk = chunk_of(target);
        uint64_t sum = start_[static_cast<size_t>(chunk)];
        int64_t at = chunk * kChunk;
        for (;; at += kPiece) {
          const int size = static_cast<int>(std::min<int64_t>(kPiece, n_ - at));
          const uint64_t piece = PYSEL_CHOOSE(fixed_weights<T>)(w_ + at, size, fixed_, fixed);
          if (sum + piece > target) break;
          sum += piece;
        }
        for (const uint64_t* weight = fixed; (sum += *weight) <= target; ++weight) ++at;
        out[j] = at;
      }
    });
    if (request_.arrangement == Arrangement::index) std::sort(out, out + request_.k);
  }

  void by_bucket(int64_t* out) const {
    const int64_t k = request_.k;
    const bool sorted = request_.arrangement == Arrangement::index;
    int bits = 0;
    while (size_t{1} << bits < kMostBuckets && (kBucket << bits < k || (kSpan * kChunk) << bits < n_)) ++bits;
    // In index order a bucket's draws end up where its results go, so that the result itself holds them till then.
    const Tensor own = sorted ? Tensor() : empty_cpu({k}, ScalarType::Long);
    auto* draws = sorted ? reinterpret_cast<uint64_t*>(out) : static_cast<uint64_t*>(own.data_ptr());
    const auto start = bucket(
        k, size_t{1} << bits,
        [&](int64_t at, int count, uint64_t* room) {
          alignas(64) uint32_t leading[kChunk];
          PYSEL_CHOOSE(leading_words)
          (request_.key, Stream::with_replacement, first_ + static_cast<uint64_t>(at), count, leading);
          for (int i = 0; i < count; ++i) room[i] = uint64_t{leading[i]} << 32 | static_cast<uint64_t>(at + i);
          return static_cast<const uint64_t*>(room);
        },
        [bits](const uint64_t* some, int count, uint32_t* to) { PYSEL_CHOOSE(leading_buckets)(some, count, bits, to); },
        draws);
    parallel_for(int64_t{1} << bits, 1, [&](int64_t begin, int64_t end) {
      Room room;
      for (int64_t b = begin; b < end; ++b) {
        const int64_t at = start[static_cast<size_t>(b)], size = start[static_cast<size_t>(b) + 1] - at;
        if (size == 0) continue;
        const uint64_t low = bits == 0 ? 0 : static_cast<uint64_t>(b) << (64 - bits);
        const uint64_t high = low + (bits == 0 ? ~uint64_t{0} : (uint64_t{1} << (64 - bits)) - 1);
        if (sorted) {
          room.draws.assign(draws + at, draws + at + size);
          room.sorted.resize(static_cast<size_t>(size) + kAhead);
          int64_t* next = room.sorted.data();
          each_span(low, high, room.draws.data(), size, room, [&](int64_t first, int64_t n) {
            for (int64_t i = 0; i < n; ++i) {
              const uint32_t times = room.count[static_cast<size_t>(i)];
              for (int copy = 0; copy < kAhead; ++copy) next[copy] = first + i;  // usually enough, and no branch
              for (uint32_t copy = kAhead; copy < times; ++copy) next[copy] = first + i;
              next += times;
            }
          });
          std::copy_n(room.sorted.data(), size, out + at);
        } else {
          each_span(low, high, draws + at, size, room, out);
        }
      }
    });
  }

  static constexpr int kAhead = 2;

  // Looks up draws with uniforms within [low, high], a span of chunks after the other. `result` is where draws go, or
  // what to do with a span's counts.
  template <typename Result>
  void each_span(uint64_t low, uint64_t high, const uint64_t* draws, int64_t size, Room& room,
                 const Result& result) const {
    constexpr bool counting = !std::is_same_v<Result, int64_t*>;
    const uint64_t least = high_product(low, total()), most = high_product(high, total());
    const uint64_t slack = (total() >> 32) + 1;  // what the low half of a uniform can add to its target
    const int64_t last_chunk = chunk_of(most);
    for (int64_t c = chunk_of(least); c <= last_chunk; c += kSpan) {
      const int64_t end = std::min(last_chunk + 1, c + kSpan);
      const uint64_t base = std::max(least, start_[static_cast<size_t>(c)]);
      if (start_[static_cast<size_t>(end)] <= base) continue;  // zeros
      const uint64_t top = std::min(most, start_[static_cast<size_t>(end)] - 1);
      const bool whole = base == least && top == most;
      const int64_t first = c * kChunk, n = std::min(n_, end * kChunk) - first;
      room.cumulative.resize(static_cast<size_t>(std::min(kSpan, chunks_of(n_)) * kChunk));
      uint64_t* cumulative = room.cumulative.data();
      uint64_t sum = start_[static_cast<size_t>(c)];
      for (int64_t chunk = c; chunk < end; ++chunk) {
        uint64_t* to = cumulative + (chunk - c) * kChunk;
        fill(chunk, to);
        for (int i = 0; i < chunk_size(n_, chunk); ++i) to[i] = sum += to[i];
      }

      int shift = 0;
      while ((top - base) >> shift >= static_cast<uint64_t>(std::max<int64_t>(2, n))) ++shift;
      make_table(cumulative, n, base, top, shift, room.table);
      if constexpr (counting) room.count.assign(static_cast<size_t>(n), 0);

      for (int64_t d = 0; d < size; ++d) {
        // The low half of a uniform is made anew where it matters: where the high one leaves more than one weight.
        uint64_t target = high_product(draws[d] & 0xffffffff00000000u, total());
        uint64_t reach = target + slack;
        if (!whole && ((target < base && reach >= base) || (target <= top && reach > top)))
          target = reach = exact(draws[d]);
        if (!whole && (target < base || target > top)) continue;
        uint32_t at = room.table[static_cast<size_t>((target - base) >> shift)];
        at += cumulative[at] <= target;  // usually enough, and no branch
        at += cumulative[at] <= target;
        if (cumulative[at] <= reach) {
          while (cumulative[at] <= target) ++at;
          if (cumulative[at] <= reach) target = exact(draws[d]);
          while (cumulative[at] <= target) ++at;
        }
        if constexpr (counting)
          ++room.count[at];
        else
          result[draws[d] & 0xffffffffu] = first + at;
      }
      if constexpr (counting) result(first, n);
    }
  }

  // For each slot of 2^shift targets from `base` on, the first weight that its first target may fall into.
  static void make_table(const uint64_t* cumulative, int64_t n, uint64_t base, uint64_t top, int shift,
                         std::vector<uint32_t>& table) {
    const size_t slots = static_cast<size_t>((top - base) >> shift) + 1;
    table.assign(slots + 1, 0);
    uint32_t i = 0;
    while (cumulative[i] <= base) ++i;
    table[0] = i;
    for (; i < n && cumulative[i] <= top; ++i)  // later ones overwrite earlier ones of their slot
      table[static_cast<size_t>((cumulative[i] - base) >> shift) + 1] = i + 1;
    for (size_t slot = 1; slot < slots; ++slot) table[slot] = std::max(table[slot], table[slot - 1]);
  }

  uint64_t exact(uint64_t draw) const { return target_of(static_cast<int64_t>(draw & 0xffffffffu)); }

  const T* w_;
  int64_t n_;
  const Request& request_;
  uint64_t first_;
  FixedPoint fixed_;
  std::vector<uint64_t> start_;  // of each chunk, and the total
};

// Writes into the caller's tensor, or into a fresh one.
Tensor write_weighted_sample(const Tensor& weights, int64_t k, bool replacement, bool log_weights,
                             const std::string& order, const std::optional<Tensor>& groups,
                             const std::optional<Tensor>& quotas, const Tensor& key, int64_t start, bool validate,
                             const std::optional<Tensor>& own) {
  const std::vector<int64_t> size = check_weighted_sample(kOp, weights, k, replacement, order, groups, quotas, start);
  if (own) check_indices_out(kOp, *own, size, "weights", weights, groups, quotas);
  const Key checked_key = read_key(kOp, key);
  const int64_t n = weights.size(weights.dim() - 1);
  const int64_t rows = weights.dim() == 2 ? weights.size(0) : 1;
  const GroupTensors given(kOp, groups, quotas, k);
  const Request request{given.groups,
                        validate,
                        k,
                        log_weights,
                        order == "draw"    ? Arrangement::draw
                        : order == "index" ? Arrangement::index
                                           : Arrangement::shuffled,
                        checked_key};
  Tensor out;
  dispatch_floating(kOp, "weights", weights, [&]<typename T>() {
    const Tensor w_c = packed(weights);
    const T* w = static_cast<const T*>(w_c.data_ptr());
    if (validate) each_row(rows, n, [&](int64_t r, bool) { check_weights(w + r * n, n, request, replacement); });
    out = own ? *own : empty_cpu(size, ScalarType::Long);
    auto* index = static_cast<int64_t*>(out.data_ptr());
    if (out.numel() == 0 && !given.groups) return;
    each_row(rows, std::max(n, k), [&](int64_t r, bool) {
      const auto row_start = static_cast<uint64_t>(start) + static_cast<uint64_t>(r * (replacement ? k : n));
      if (replacement) {
        Inversion<T>(w + r * n, n, request, row_start).run(index + r * k);
      } else {
        race(w + r * n, n, request, row_start, index + r * k);
      }
    });
  });
  return out;
}

Tensor weighted_sample(Tensor weights, int64_t k, bool replacement, bool log_weights, std::string order,
                       std::optional<Tensor> groups, std::optional<Tensor> quotas, Tensor key, int64_t start,
                       std::optional<bool> validate) {
  return write_weighted_sample(weights, k, replacement, log_weights, order, groups, quotas, key, start,
                               validate.value_or(true), std::nullopt);
}

void weighted_sample_out(Tensor weights, int64_t k, bool replacement, bool log_weights, std::string order,
                         std::optional<Tensor> groups, std::optional<Tensor> quotas, Tensor key, int64_t start,
                         std::optional<bool> validate, Tensor out) {
  write_weighted_sample(weights, k, replacement, log_weights, order, groups, quotas, key, start,
                        validate.value_or(true), out);
}

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

// The points of the cumulative distribution, up to an unsigned `total`, that draws with replacement invert it at.
Tensor draw_targets(Tensor key, int64_t start, int64_t k, int64_t total) {
  check_start("draw_targets", start);
  const Key from = read_key("draw_targets", key);
  Tensor out = empty_cpu({k}, ScalarType::Long);
  auto* target = static_cast<uint64_t*>(out.data_ptr());
  parallel_for(k, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      target[j] = high_product(from.word64(Stream::with_replacement, static_cast<uint64_t>(start + j)),
                               static_cast<uint64_t>(total));
  });
  return out;
}

// Weights in fixed point, for a sum of n of which the largest is `max`.
Tensor fixed_weights_of(Tensor weights, bool log_weights, double max, int64_t n) {
  check_floating("fixed_weights", "weights", weights);
  Tensor out = empty_cpu(sizes(weights), ScalarType::Long);
  const FixedPoint fixed(log_weights, max, n);
  dispatch_floating("fixed_weights", "weights", weights, [&]<typename T>() {
    const Tensor w_c = packed(weights);
    const T* w = static_cast<const T*>(w_c.data_ptr());
    auto* to = static_cast<uint64_t*>(out.data_ptr());
    each_chunk(weights.numel(), true, [&](int64_t chunk) {
      const int64_t at = chunk * kChunk;
      PYSEL_CHOOSE(fixed_weights<T>)(w + at, chunk_size(weights.numel(), chunk), fixed, to + at);
    });
  });
  return out;
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("race_keys", PYSEL_OP(&pysel::race_keys_of));
  m.impl("draw_targets", PYSEL_OP(&pysel::draw_targets));
  m.impl("fixed_weights", PYSEL_OP(&pysel::fixed_weights_of));
  m.impl("weighted_sample", PYSEL_OP(&pysel::weighted_sample));
  m.impl("weighted_sample.out", PYSEL_OP(&pysel::weighted_sample_out));
}
