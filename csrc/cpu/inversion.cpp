// Weighted sampling with replacement: weights become integers in fixed point, so that their prefix sums are exact and
// in any order the same; draw j looks its own 64-bit uniform up in them.
#include "common/op.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

#include "common/fixed_point.h"
#include "common/random.h"
#include "cpu/bucket.h"
#include "cpu/sample.h"

#define PYSEL_KERNELS "cpu/inversion_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

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
  static constexpr int kMostMore = 5;  // bits of a bucket's parts
  static constexpr int64_t kBucket = 4096;
  static constexpr int64_t kSpan = 32;  // chunks whose cumulative weights stay in L2

  // A thread's room.
  struct Room {
    std::vector<uint64_t> cumulative;
    std::vector<uint32_t> table;
    std::vector<uint32_t> count;
    std::vector<uint64_t> draws;
    std::vector<int64_t> next;
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
        if (sorted) {
          room.sorted.resize(static_cast<size_t>(size) + kAhead);
          int64_t* next = room.sorted.data();
          each_part(static_cast<uint64_t>(b), bits, draws + at, size, room, [&](int64_t first, int64_t n) {
            for (int64_t i = 0; i < n; ++i) {
              const uint32_t times = room.count[static_cast<size_t>(i)];
              for (int copy = 0; copy < kAhead; ++copy) next[copy] = first + i;  // usually enough, and no branch
              for (uint32_t copy = kAhead; copy < times; ++copy) next[copy] = first + i;
              next += times;
            }
          });
          std::copy_n(room.sorted.data(), size, out + at);
        } else {
          each_part(static_cast<uint64_t>(b), bits, draws + at, size, room, out);
        }
      }
    });
  }

  static constexpr int kAhead = 2;

  // Brings the draws of a bucket, by the bits that come after its own, into parts whose weights are a span's, and looks
  // up one part after the other.
  template <typename Result>
  void each_part(uint64_t bucket, int bits, const uint64_t* draws, int64_t size, Room& room,
                 const Result& result) const {
    const int own = bits;
    while (bits < own + kMostMore && (kSpan * kChunk) << bits < n_) ++bits;
    const size_t parts = size_t{1} << (bits - own);
    const int shift = 64 - bits;
    std::vector<int64_t>& next = room.next;
    next.assign(parts + 1, 0);
    if (parts > 1) {
      const auto part_of = [&](uint64_t draw) { return static_cast<size_t>(draw >> shift) & (parts - 1); };
      for (int64_t d = 0; d < size; ++d) ++next[part_of(draws[d]) + 1];
      std::partial_sum(next.begin(), next.end(), next.begin());
      room.draws.resize(static_cast<size_t>(size));
      for (int64_t d = 0; d < size; ++d) room.draws[static_cast<size_t>(next[part_of(draws[d])]++)] = draws[d];
      draws = room.draws.data();
    } else {
      next[0] = size;
    }
    for (size_t p = 0, at = 0; p < parts; at = static_cast<size_t>(next[p++])) {
      const uint64_t low = bits == 0 ? 0 : (bucket * parts + p) << shift;
      const uint64_t high = low + (bits == 0 ? ~uint64_t{0} : (uint64_t{1} << shift) - 1);
      each_span(low, high, draws + at, next[p] - static_cast<int64_t>(at), room, result);
    }
  }

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

template <typename T>
void invert(const T* w, int64_t n, const Request& request, uint64_t first, int64_t* out) {
  Inversion<T>(w, n, request, first).run(out);
}

template void invert<float>(const float*, int64_t, const Request&, uint64_t, int64_t*);
template void invert<double>(const double*, int64_t, const Request&, uint64_t, int64_t*);
template void invert<BFloat16>(const BFloat16*, int64_t, const Request&, uint64_t, int64_t*);
template void invert<Half>(const Half*, int64_t, const Request&, uint64_t, int64_t*);

}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("draw_targets", PYSEL_OP(&pysel::draw_targets));
  m.impl("fixed_weights", PYSEL_OP(&pysel::fixed_weights_of));
}
