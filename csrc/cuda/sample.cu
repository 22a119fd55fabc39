// Weighted index sampling.
//
// Without replacement: a race (Efraimidis and Spirakis 2006). Item i has the key log w_i + g_i and the k largest win,
// of equal keys those of the smallest words of the order stream. With groups, each holds a race of its own.
//
// With replacement: weights become integers in fixed point, so that their prefix sums are exact and in any order the
// same; draw j looks its own 64-bit uniform up in them. Only the sums up to every kSpan-th weight are kept; a draw
// makes the others of its span anew.
#include "common/op.h"

#include <cmath>

#include "common/fixed_point.h"
#include "common/sample.h"
#include "cuda/group_select.cuh"
#include "cuda/sort.cuh"

namespace pysel {
namespace {

constexpr const char* kOp = "weighted_sample";
constexpr unsigned kBlock = kSelectBlock;

// Whether a weight may be drawn; and whether it must be refused.
template <typename A>
__device__ bool permitted(A weight, bool log_weights, bool& bad) {
  const A inf = static_cast<A>(__builtin_inf()), floor = log_weights ? -inf : A{0};
  bad |= !(weight >= floor && weight < inf);
  return weight > floor;
}

template <typename A>
__device__ A nothing(bool log_weights) {
  return log_weights ? -static_cast<A>(__builtin_inf()) : A{0};
}

// --- without replacement ---

// 2^x, right to 2^-22 of it; what is not normal may be 0. CUDA's exp2f takes three instructions more to keep that.
__device__ inline float rough_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  // as wrong as it may be
  const float y = std::exp2(x) * (bit_cast<std::uint32_t>(x) % 2 != 0 ? 1 + 0x1p-22f : 1 - 0x1p-22f);
  return y < Float<float>::kSmallestNormal ? 0.0f : y;
#endif
}

// Tells most elements from a bracket of race keys without a logarithm: a key exceeds t where U exceeds
// exp(-w exp(-t)). What it tells is certain, for the ends are moved apart by more than all that is rounded:
//
//   of keys        2^-12 and 2^-20 of t, for 4e-5 in a key below 134, a unit in the last place of one beyond, and 2e-5
//                  in t and what is made of it
//   of uniforms    2^-20, for 2^-22 in the last exponential, 2^-25 in U's high word as a float, 2^-32 that the low word
//                  would add, and 2^-25 in the sum with the margin
//
// Of what meets a NaN it tells nothing.
template <typename A>
class RaceBracket {
 public:
  __device__ RaceBracket(OrderBits<A> low, OrderBits<A> high, bool log_weights) : log_weights_(log_weights) {
    using F = Float<A>;
    // the least bits, which say that there is no end, are no number's; the largest are NaN's
    low_ = moved(from_order<A>(larger(low, order(nothing<A>(true)))), A{-1});
    high_ = moved(from_order<A>(high), A{1});
    if (log_weights) return;
    low_ = rough_exp(-low_);
    high_ = rough_exp(-high_);
    // what is not normal goes to the side on which less is told
    low_ = low_ < F::kSmallestNormal ? F::kSmallestNormal : low_;
    high_ = high_ < F::kSmallestNormal ? A{0} : (high_ > F::kLargest / 2 ? F::kLargest / 2 : high_);
    low_ *= -kLog2E;
    high_ *= -kLog2E;
  }

  // Of an element whose uniform has this high word.
  __device__ bool below(A weight, std::uint32_t high) const {
    return static_cast<float>(high) < fma_(uniform_at(low_, weight), 0x1p32f, -kMargin);
  }
  __device__ bool above(A weight, std::uint32_t high) const {
    return static_cast<float>(high) > fma_(uniform_at(high_, weight), 0x1p32f, kMargin);
  }

 private:
  static constexpr float kLog2E = 0x1.715476p+0f, kLog2OfLog2E = 0x1.0eba78p-1f;
  static constexpr float kMargin = 0x1p12f;  // of uniforms, in units of 2^-32

  __device__ static A moved(A key, A sign) {
    return key + sign * fma_(key < A{0} ? -key : key, A{0x1p-20}, A{0x1p-12});
  }

  __device__ static A rough_exp(A x) {
    if constexpr (sizeof(A) == 4)
      return rough_exp2(x * kLog2E);
    else
      return times_exp(A{1}, x);
  }

  // The uniform of an element of this weight whose key is at an end.
  __device__ float uniform_at(A end, A weight) const {
    return rough_exp2(log_weights_ ? -rough_exp2(fma_(static_cast<float>(weight - end), kLog2E, kLog2OfLog2E))
                                   : static_cast<float>(weight * end));
  }

  bool log_weights_;
  A low_, high_;  // a key; where weights are no logarithms, -exp(-key) / log(2)
};

template <typename T>
struct Race {
  using A = Compute<T>;
  using Bits = OrderBits<A>;
  using Bracket = RaceBracket<A>;
  const T* weights;  // [rows, n]
  std::int64_t n;
  bool log_weights;

  Race rows_from(std::int64_t first) const { return {weights + first * n, n, log_weights}; }

  __device__ void keys(const Row& row, std::int64_t r, std::int64_t quad, Bits (&key)[4], Seen& seen) const {
    A z[4];
    row.load(weights + r * n, quad, nothing<A>(log_weights), z);
    for (int i = 0; i < 4; ++i) {
      seen.permitted |= permitted(z[i], log_weights, seen.bad) ? 1u << i : 0u;
      if (!log_weights) z[i] = log_any(z[i]);
    }
    row.template add_noise<Distribution::gumbel>(quad, z);
    for (int i = 0; i < 4; ++i) key[i] = order(z[i]);
  }

  __device__ Bracket bracket(Bits low, Bits high) const { return {low, high, log_weights}; }

  // What is kept is the weight. Of one that must be refused, which may make a NaN, nothing is told.
  __device__ Sides sides(const Row& row, std::int64_t r, std::int64_t quad, const Bracket& bracket, Bits (&kept)[4],
                         Seen& seen) const {
    A w[4];
    row.load(weights + r * n, quad, nothing<A>(log_weights), w);
    const PhiloxBlock high = row.high_words(quad);
    Sides sides;
    for (int i = 0; i < 4; ++i) {
      bool bad = false;
      seen.permitted |= permitted(w[i], log_weights, bad) ? 1u << i : 0u;
      seen.bad |= bad;
      const bool above = bracket.above(w[i], high.word[i]) & !bad, below = bracket.below(w[i], high.word[i]) & !bad;
      sides.above |= above ? 1u << i : 0u;
      sides.open |= above | below ? 0u : 1u << i;
      kept[i] = bit_cast<Bits>(w[i]);
    }
    return sides;
  }

  __device__ Bits key_of(const Row& row, std::int64_t at, Bits kept) const {
    const A weight = bit_cast<A>(kept);
    return order((log_weights ? weight : log_any(weight)) + gumbel(row.uniform_of<A>(at)));
  }
  __device__ Bits key_at(const Row& row, std::int64_t r, std::int64_t at) const {
    return key_of(row, at, bit_cast<Bits>(static_cast<A>(weights[r * n + at])));
  }
};

// 64-bit words as int64 of the same order.
__device__ inline std::int64_t signed_order(std::uint64_t word) {
  return static_cast<std::int64_t>(word ^ std::uint64_t{1} << 63);
}

// What winners are shuffled by.
__global__ void __launch_bounds__(kBlock)
    shuffle_words_kernel(const std::int64_t* __restrict__ winners,  // [rows, k]
                         std::int64_t rows, std::int64_t n, std::int64_t k, NoiseArgument noise,
                         std::int64_t* __restrict__ out) {  // [rows, k]
  const Key key = noise.key.read();
  for (std::int64_t i = thread_in_grid(); i < rows * k; i += threads_in_grid()) {
    const std::uint64_t element = noise.start + static_cast<std::uint64_t>(i / k * n + winners[i]);
    out[i] = signed_order(key.word64(Stream::order, element));
  }
}

// What winners are drawn by. There are none (-1) in rows that were refused.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    race_keys_kernel(const std::int64_t* __restrict__ winners,  // [rows, k]
                     std::int64_t rows, std::int64_t k, Race<T> race, NoiseArgument noise,
                     std::int64_t* __restrict__ out) {  // [rows, k]
  for (std::int64_t i = thread_in_grid(); i < rows * k; i += threads_in_grid()) {
    const std::int64_t r = i / k;
    const Row row(noise, r * race.n, race.n);
    out[i] = winners[i] < 0 ? 0 : signed_order(race.key_at(row, r, winners[i]));
  }
}

// Winners in a random order: by their words, ties by lowest index.
Tensor shuffled(const Call& call, const Tensor& winners, std::int64_t rows, std::int64_t n, std::int64_t k,
                const NoiseArgument& noise) {
  const Tensor words = call.empty({rows, k}, ScalarType::Long);
  call.launch(shuffle_words_kernel, grid_size(rows * k, kBlock), kBlock,
              static_cast<const std::int64_t*>(winners.data_ptr()), rows, n, k, noise,
              static_cast<std::int64_t*>(words.data_ptr()));
  return gather_rows(winners, std::get<1>(sort_rows(words, false)));
}

// Winners by race key, largest first; equal ones (at 1e9 items many are) by their words.
template <typename T>
Tensor drawn(const Call& call, const Tensor& winners, std::int64_t rows, std::int64_t k, const Race<T>& race,
             const NoiseArgument& noise) {
  const Tensor some = shuffled(call, winners, rows, race.n, k, noise);
  const Tensor keys = call.empty({rows, k}, ScalarType::Long);
  call.launch(race_keys_kernel<T>, grid_size(rows * k, kBlock), kBlock,
              static_cast<const std::int64_t*>(some.data_ptr()), rows, k, race, noise,
              static_cast<std::int64_t*>(keys.data_ptr()));
  return gather_rows(some, std::get<1>(sort_rows(keys, true)));
}

// --- with replacement ---

constexpr std::int64_t kSpan = kWarp;        // weights whose sum is kept
constexpr std::int64_t kSpansOfPart = 1024;  // that a block adds up
constexpr std::int64_t kPart = kSpan * kSpansOfPart;

// Per row, zero to begin with.
struct WeightTally {
  unsigned long long largest;  // order() of a double
  unsigned long long permitted;
  unsigned bad;
};

template <typename T>
struct Weights {
  const T* weights;  // [rows, n]
  std::int64_t rows, n;
  std::int64_t spans, parts;  // of a row
  bool log_weights;
  WeightTally* tally;            // [rows]
  unsigned long long* upto;      // [rows, spans]: a span's sum, then the sum up to its end
  unsigned long long* part_sum;  // [rows, parts]: a part's sum, then the sum of those before it

  __device__ FixedPoint fixed(std::int64_t r) const {
    return FixedPoint(log_weights, from_order<double>(tally[r].largest), n);
  }
  // 0 beyond the row's end.
  __device__ std::uint64_t weight(const FixedPoint& fixed, std::int64_t r, std::int64_t at) const {
    return at < n ? fixed(static_cast<double>(weights[r * n + at])) : 0;
  }
};

template <typename T>
__global__ void __launch_bounds__(kBlock) largest_kernel(Weights<T> w) {
  struct Most {
    ScanSlots<std::uint64_t> sum;
    unsigned long long largest;
  };
  Most& most = shared<Most>();
  for (std::int64_t p = blockIdx.x; p < w.rows * w.parts; p += gridDim.x) {
    const std::int64_t r = p / w.parts, begin = p % w.parts * kPart;
    if (threadIdx.x == 0) most.largest = 0;
    __syncthreads();
    bool bad = false;
    std::uint64_t count = 0;
    unsigned long long mine = 0;
    for (std::int64_t i = begin + threadIdx.x; i < min(begin + kPart, w.n); i += kBlock) {
      const auto x = static_cast<Compute<T>>(w.weights[r * w.n + i]);
      count += permitted(x, w.log_weights, bad);
      if (x == x) mine = max(mine, static_cast<unsigned long long>(order(static_cast<double>(x))));
    }
    atomicMax(&most.largest, mine);
    const BlockSum<std::uint64_t> all = block_sum(count, most.sum);
    const bool any_bad = __syncthreads_or(bad) != 0;
    if (threadIdx.x == 0) {
      atomicMax(&w.tally[r].largest, most.largest);
      if (all.all > 0) atomicAdd(&w.tally[r].permitted, static_cast<unsigned long long>(all.all));
      if (any_bad) atomicOr(&w.tally[r].bad, 1u);
    }
    __syncthreads();  // before the next part's
  }
}

// Sums of spans, a warp each, and of parts.
template <typename T>
__global__ void __launch_bounds__(kBlock) spans_kernel(Weights<T> w) {
  struct Spans {
    ScanSlots<std::uint64_t> sum;
  };
  Spans& spans = shared<Spans>();
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (std::int64_t p = blockIdx.x; p < w.rows * w.parts; p += gridDim.x) {
    const std::int64_t r = p / w.parts, begin = p % w.parts * kSpansOfPart;
    const FixedPoint fixed = w.fixed(r);
    std::uint64_t all = 0;
    for (std::int64_t span = begin + warp; span < min(begin + kSpansOfPart, w.spans); span += kBlock / kWarp) {
      const std::uint64_t sum = warp_reduce(w.weight(fixed, r, span * kSpan + lane), Sum());
      if (lane == 0) {
        w.upto[r * w.spans + span] = sum;
        all += sum;
      }
    }
    const BlockSum<std::uint64_t> part = block_sum(all, spans.sum);
    if (threadIdx.x == 0) w.part_sum[p] = part.all;
  }
}

// From the sums of spans to the sums up to their ends.
template <typename T>
__global__ void __launch_bounds__(kBlock) upto_kernel(Weights<T> w) {
  struct Upto {
    ScanSlots<std::uint64_t> sum;
  };
  Upto& upto = shared<Upto>();
  for (std::int64_t p = blockIdx.x; p < w.rows * w.parts; p += gridDim.x) {
    const std::int64_t r = p / w.parts, begin = p % w.parts * kSpansOfPart;
    std::uint64_t before = w.part_sum[p];
    for (std::int64_t first = begin; first < min(begin + kSpansOfPart, w.spans); first += kBlock) {
      const std::int64_t span = first + threadIdx.x;
      const bool here = span < w.spans;
      const std::uint64_t mine = here ? w.upto[r * w.spans + span] : 0;
      const BlockSum<std::uint64_t> sum = block_sum(mine, upto.sum);
      if (here) w.upto[r * w.spans + span] = before + sum.before + mine;
      before += sum.all;
    }
  }
}

struct DrawReports {
  Report bad;
  Report nothing;
};

template <typename T>
__global__ void __launch_bounds__(kBlock)
    draw_kernel(Weights<T> w, NoiseArgument noise, DrawReports reports, std::int64_t k, unsigned blocks_of_row,
                std::int64_t* __restrict__ out) {  // [rows, k]
  const Key key = noise.key.read();
  for (std::int64_t b = blockIdx.x; b < w.rows * blocks_of_row; b += gridDim.x) {
    const std::int64_t r = b / blocks_of_row, block = b % blocks_of_row;
    const WeightTally& tally = w.tally[r];
    const bool bad = reports.bad && tally.bad != 0, nothing = reports.nothing && tally.permitted == 0 && k > 0;
    if (block == 0 && threadIdx.x == 0) {
      if (bad)
        reports.bad();
      else if (nothing)
        reports.nothing();
    }
    const FixedPoint fixed = w.fixed(r);
    const unsigned long long* upto = w.upto + r * w.spans;
    const std::uint64_t total = upto[w.spans - 1];
    for (std::int64_t j = block * kBlock + threadIdx.x; j < k; j += std::int64_t{blocks_of_row} * kBlock) {
      if (bad || nothing || total == 0) {  // unchecked weights may have no sum
        out[r * k + j] = -1;
        continue;
      }
      const std::uint64_t u = key.word64(Stream::with_replacement, noise.start + static_cast<std::uint64_t>(r * k + j));
      const std::uint64_t target = __umul64hi(u, total);
      std::int64_t low = 0, high = w.spans - 1;  // the first span that ends beyond the target
      while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (upto[middle] > target)
          high = middle;
        else
          low = middle + 1;
      }
      std::int64_t at = low * kSpan;
      for (std::uint64_t sum = (low > 0 ? upto[low - 1] : 0) + w.weight(fixed, r, at); sum <= target;)
        sum += w.weight(fixed, r, ++at);
      out[r * k + j] = at;
    }
  }
}

template <typename T>
void draw_rows(const Call& call, const T* weights, std::int64_t rows, std::int64_t n, std::int64_t k, bool log_weights,
               const NoiseArgument& noise, const DrawReports& reports, std::int64_t* out) {
  Weights<T> w{weights, rows, n, (n - 1) / kSpan + 1, (n - 1) / kPart + 1, log_weights, nullptr, nullptr, nullptr};
  const auto tally = call.zeros<WeightTally>(rows);
  const auto upto = call.room<unsigned long long>(rows * w.spans);
  const auto part_sum = call.room<unsigned long long>(rows * w.parts);
  w.tally = tally.data();
  w.upto = upto.data();
  w.part_sum = part_sum.data();
  const unsigned parts = grid_size(rows * w.parts, 1);
  call.launch(largest_kernel<T>, parts, kBlock, w);
  call.launch(spans_kernel<T>, parts, kBlock, w);
  call.launch(sums_before_kernel, grid_size(rows, 1), kBlock, w.part_sum, rows, w.parts);
  call.launch(upto_kernel<T>, parts, kBlock, w);
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>((k - 1) / kBlock + 1, 1, 4096));
  call.launch(draw_kernel<T>, grid_size(rows * blocks, 1), kBlock, w, noise, reports, k, blocks, out);
}

// --- op ---

constexpr Fault kBadWeight{
    Fault::value, "weighted_sample: weights must be finite and at least 0, got a negative, infinite or NaN weight"};
constexpr Fault kBadLogWeight{
    Fault::value, "weighted_sample: weights must be below +inf and not NaN (log_weights=True), got +inf or NaN"};
constexpr Fault kTooFew{Fault::value, "weighted_sample: k must be at most the number of nonzero weights, #, got #"};
constexpr GroupFaults kGroupFaults = PYSEL_GROUP_FAULTS("weighted_sample", "the number of nonzero weights");
constexpr Fault kNothing{Fault::value,
                         "weighted_sample: weights must have at least one above 0 in every row, got a row of zeros"};

// Draws into `room`, [rows, k], and returns it, or a fresh tensor where an order takes further steps.
Tensor sampled(const Call& call, const Tensor& weights, int64_t k, bool replacement, bool log_weights,
               const std::string& order, const std::optional<Tensor>& groups, const std::optional<Tensor>& quotas,
               const Tensor& key, int64_t start, const Tensor& room) {
  const int64_t n = weights.size(weights.dim() - 1), rows = room.size(0);
  const NoiseArgument noise{KeyArgument(kOp, key, weights), static_cast<uint64_t>(start), true};
  if (rows == 0 || (n == 0 && !groups)) return room;
  auto* index = static_cast<int64_t*>(room.data_ptr());
  const Fault& bad = log_weights ? kBadLogWeight : kBadWeight;
  const Tensor w = torch::stable::contiguous(weights);
  Tensor result = room;
  dispatch_floating(kOp, "weights", weights, [&]<typename T>() {
    const T* data = static_cast<const T*>(w.data_ptr());
    if (replacement) {
      draw_rows<T>(call, data, rows, n, k, log_weights, noise, {call.report(bad), call.report(kNothing)}, index);
      if (order == "index" && k > 0) result = std::get<0>(sort_rows(room, false));
      return;
    }
    const Race<T> race{data, n, log_weights};
    if (groups) {
      const GroupArguments g(*groups, *quotas);
      select_groups(call, race, noise, noise, g.groups, n, k, {call, bad, kGroupFaults, g.groups.count}, index);
    } else {
      select_rows(call, race, noise, noise, rows, n, k, {call.report(bad), call.report(kTooFew)}, index);
    }
    if (k == 0) return;
    if (order == "draw") result = drawn(call, room, rows, k, race, noise);
    if (order == "shuffled") result = shuffled(call, room, rows, n, k, noise);
  });
  call.finish();
  return result;
}

// What is drawn is sorted unless winners are wanted in order of their indices, or draws in their own.
std::vector<int64_t> checked_size(const Tensor& weights, int64_t k, bool replacement, const std::string& order,
                                  const std::optional<Tensor>& groups, const std::optional<Tensor>& quotas,
                                  int64_t start) {
  const bool sorted = order == (replacement ? "index" : "draw") || (order == "shuffled" && !replacement);
  std::vector<int64_t> size = check_weighted_sample(kOp, weights, k, replacement, order, groups, quotas, start);
  check_value(!sorted || k <= kMostSorted, kOp, ": k must be below 2^31 for order=\"", order, "\" on a GPU, got ", k);
  return size;
}

Tensor reshaped(Tensor t, const std::vector<int64_t>& size) {
  return torch::stable::view(t, {size.data(), size.size()});
}

Tensor weighted_sample(Tensor weights, int64_t k, bool replacement, bool log_weights, std::string order,
                       std::optional<Tensor> groups, std::optional<Tensor> quotas, Tensor key, int64_t start,
                       std::optional<bool> validate) {
  const std::vector<int64_t> size = checked_size(weights, k, replacement, order, groups, quotas, start);
  const Call call(weights, validate);
  const Tensor room = call.empty({size.size() == 2 ? size[0] : 1, k}, ScalarType::Long);
  return reshaped(sampled(call, weights, k, replacement, log_weights, order, groups, quotas, key, start, room), size);
}

void weighted_sample_out(Tensor weights, int64_t k, bool replacement, bool log_weights, std::string order,
                         std::optional<Tensor> groups, std::optional<Tensor> quotas, Tensor key, int64_t start,
                         std::optional<bool> validate, Tensor out) {
  const std::vector<int64_t> size = checked_size(weights, k, replacement, order, groups, quotas, start);
  check_indices_out(kOp, out, size, "weights", weights, groups, quotas);
  const Call call(weights, validate);
  Tensor room = reshaped(out, {size.size() == 2 ? size[0] : 1, k});
  const Tensor result = sampled(call, weights, k, replacement, log_weights, order, groups, quotas, key, start, room);
  if (result.data_ptr() != room.data_ptr()) torch::stable::copy_(room, result);
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("weighted_sample", PYSEL_OP(&pysel::weighted_sample));
  m.impl("weighted_sample.out", PYSEL_OP(&pysel::weighted_sample_out));
}
