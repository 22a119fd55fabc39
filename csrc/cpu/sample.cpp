// Weighted index sampling.
//
// Without replacement: a race (Efraimidis and Spirakis 2006). Item i has the key log w_i + g_i and the k largest win,
// ties by lowest index. Keys are functions of the element's number, so a pass makes them anew instead of storing them.
//
// With replacement: weights become integers in fixed point, so that their prefix sums are exact and in any order the
// same; draw j looks its own 64-bit uniform up in them.
#ifdef PYSEL_VARIANT

#include "cpu/noise.h"

// Race keys of elements [first, first + n), n <= kChunk.
template <typename T, typename A>
void race_keys(const T* w, bool log_weights, Key key, uint64_t first, int n, OrderBits<A>* out) {
  alignas(64) A z[kChunk];
  fill_noise<ToGumbel>(key, first, n, z);
  if (log_weights) {
    for (int i = 0; i < n; ++i) out[i] = order(static_cast<A>(w[i]) + z[i]);
  } else {
    for (int i = 0; i < n; ++i) out[i] = order(log_any(static_cast<A>(w[i])) + z[i]);
  }
}

// What validation needs to know of weights: the number that can be drawn, and whether all are permitted.
template <typename T, typename A>
WeightSummary summarise(const T* w, int64_t n, bool log_weights) {
  const A inf = static_cast<A>(__builtin_inf());
  const A floor = log_weights ? -inf : A{0};
  int64_t nonzero = 0;
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const A v = static_cast<A>(w[i]);
    nonzero += v > floor;
    bad |= (v >= floor) & (v < inf) ? 0u : 1u;
  }
  return {nonzero, bad != 0};
}

template <typename T>
double largest(const T* w, int64_t n) {
  double max = -__builtin_inf();
  for (int64_t i = 0; i < n; ++i) {
    const double v = static_cast<double>(w[i]);
    max = v > max ? v : max;
  }
  return max;
}

#else

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "common/order.h"
#include "common/random.h"
#include "cpu/chunk.h"
#include "cpu/radix_select.h"

namespace pysel {
namespace {

struct WeightSummary {
  int64_t nonzero;
  bool bad;
};

}  // namespace
}  // namespace pysel

#define PYSEL_FILE "cpu/sample.cpp"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr const char* kOp = "weighted_sample";

enum class Arrangement { draw, index, shuffled };

struct Request {
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
    check_value(request.k <= nonzero, kOp, ": k must be at most the number of nonzero weights, ", nonzero, ", got ",
                request.k);
  }
}

// Sorts the winners (ascending, as `out` holds them) into draw order or a random order. Items are numbered from
// `first`. Equal race keys are put in random order too, since at 1e9 items many share a key.
template <typename T>
void arrange(const T* w, const Request& request, uint64_t first, int64_t* out) {
  using A = Compute<T>;
  using Bits = OrderBits<A>;
  struct Item {
    Bits race;
    uint64_t shuffle;
    int64_t index;
  };
  std::vector<Item> items(static_cast<size_t>(request.k));
  parallel_for(request.k, kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const int64_t i = out[j];
      const uint64_t element = first + static_cast<uint64_t>(i);
      Bits race = 0;
      if (request.arrangement == Arrangement::draw)
        portable::race_keys<T, A>(w + i, request.log_weights, request.key, element, 1, &race);
      items[j] = {race, request.key.word64(Stream::order, element), i};
    }
  });
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    if (a.race != b.race) return a.race > b.race;
    return a.shuffle != b.shuffle ? a.shuffle < b.shuffle : a.index < b.index;
  });
  for (int64_t j = 0; j < request.k; ++j) out[j] = items[j].index;
}

template <typename T>
void race(const T* w, int64_t n, const Request& request, uint64_t first, int64_t* out) {
  using A = Compute<T>;
  using Bits = OrderBits<A>;
  select_largest<Bits>(
      n, request.k,
      [&](int64_t begin, int count, Bits* keys) {
        PYSEL_CHOOSE(race_keys<T, A>)
        (w + begin, request.log_weights, request.key, first + static_cast<uint64_t>(begin), count, keys);
      },
      out);
  if (request.arrangement != Arrangement::index) arrange(w, request, first, out);
}

// Weights in fixed point. The largest takes `bits` bits, as many as leave the sum of n of them below 2^64.
class FixedPoint {
 public:
  FixedPoint(double max, int64_t n) {
    int bits = 64;
    for (int64_t reach = 1; reach < n; reach *= 2) --bits;
    int exponent;
    std::frexp(max, &exponent);
    const int shift = bits - exponent;
    scale0_ = std::ldexp(1.0, shift >> 1);  // two exact factors, because 2^shift alone may overflow
    scale1_ = std::ldexp(1.0, shift - (shift >> 1));
    limit_ = std::ldexp(1.0, bits) - 1.0;
  }

  uint64_t operator()(double w) const {
    const double scaled = std::min(std::nearbyint(w * scale0_ * scale1_), limit_);
    return scaled > 0 ? static_cast<uint64_t>(scaled) : 0;  // also for unchecked NaN and negative weights
  }

 private:
  double scale0_, scale1_, limit_;
};

template <typename T>
void inversion(const T* w, int64_t n, const Request& request, uint64_t first_draw, bool parallel, int64_t* out) {
  double max = -std::numeric_limits<double>::infinity();
  std::mutex mutex;
  const auto over = [&](int64_t count, const auto& f) { parallel ? parallel_for(count, kGrain, f) : f(0, count); };
  over(n, [&](int64_t begin, int64_t end) {
    const double part = PYSEL_CHOOSE(largest<T>)(w + begin, end - begin);
    std::lock_guard lock(mutex);
    max = std::max(max, part);
  });
  const FixedPoint fixed(request.log_weights ? 1.0 : max, n);
  const auto weight = [&](int64_t i) {
    const double v = static_cast<double>(w[i]);
    return fixed(request.log_weights ? exp_nonpositive(v - max) : v);
  };

  // Inclusive prefix sums: each part sums, parts are offset, each part scans.
  std::vector<uint64_t> cumulative(static_cast<size_t>(n));
  const int64_t part = parallel ? std::max<int64_t>(kGrain, n / (8 * torch::stable::get_num_threads())) : n;
  const int64_t parts = (n + part - 1) / part;
  std::vector<uint64_t> offset(static_cast<size_t>(parts) + 1);
  const auto each_part = [&](const auto& f) {
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) f(p, p * part, std::min(n, (p + 1) * part));
    };
    parallel ? parallel_for(parts, 1, run) : run(0, parts);
  };
  each_part([&](int64_t p, int64_t begin, int64_t end) {
    uint64_t sum = 0;
    for (int64_t i = begin; i < end; ++i) cumulative[i] = sum += weight(i);
    offset[p + 1] = sum;
  });
  std::partial_sum(offset.begin(), offset.end(), offset.begin());
  each_part([&](int64_t p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) cumulative[i] += offset[p];
  });

  const uint64_t total = offset.back();
  if (total == 0) {  // unchecked weights
    std::fill(out, out + request.k, int64_t{-1});
    return;
  }
  over(request.k, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const uint64_t u = request.key.word64(Stream::with_replacement, first_draw + static_cast<uint64_t>(j));
      const auto target = static_cast<uint64_t>(static_cast<unsigned __int128>(u) * total >> 64);
      out[j] = std::upper_bound(cumulative.begin(), cumulative.end(), target) - cumulative.begin();
    }
  });
  if (request.arrangement == Arrangement::index) std::sort(out, out + request.k);
}

Tensor weighted_sample(Tensor weights, int64_t k, bool replacement, bool log_weights, std::string order, Tensor key,
                       int64_t start, std::optional<bool> validate) {
  const KeepSubnormals guard;
  check_value(weights.dim() == 1 || weights.dim() == 2, kOp, ": weights must have shape [n] or [B, n], got ",
              shape(weights));
  check_value(order == "draw" || order == "index" || order == "shuffled", kOp,
              ": order must be draw, index or shuffled, got ", order);
  check_start(kOp, start);
  const int64_t n = weights.size(weights.dim() - 1);
  const int64_t rows = weights.dim() == 2 ? weights.size(0) : 1;
  if (replacement) {
    check_index(k >= 0, kOp, ": k must be at least 0, got ", k);
    check_value(k == 0 || n > 0, kOp, ": weights must have at least one element a row, got shape ", shape(weights));
  } else {
    check_k(kOp, k, n);
  }
  const Request request{k, log_weights,
                        order == "draw"    ? Arrangement::draw
                        : order == "index" ? Arrangement::index
                                           : Arrangement::shuffled,
                        read_key(kOp, key)};
  std::vector<int64_t> size = sizes(weights);
  size.back() = k;
  Tensor out = empty_cpu(size, ScalarType::Long);
  dispatch_floating(kOp, "weights", weights, [&]<typename T>() {
    const Tensor w_c = torch::stable::contiguous(weights);
    const T* w = static_cast<const T*>(w_c.data_ptr());
    auto* index = static_cast<int64_t*>(out.data_ptr());
    if (validate.value_or(true))
      for (int64_t r = 0; r < rows; ++r) check_weights(w + r * n, n, request, replacement);
    if (out.numel() == 0) return;
    each_row(rows, std::max(n, k), [&](int64_t r, bool parallel) {
      const auto row_start = static_cast<uint64_t>(start) + static_cast<uint64_t>(r * (replacement ? k : n));
      if (replacement) {
        inversion(w + r * n, n, request, row_start, parallel, index + r * k);
      } else {
        race(w + r * n, n, request, row_start, index + r * k);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) { m.impl("weighted_sample", TORCH_BOX(&pysel::weighted_sample)); }

#endif
