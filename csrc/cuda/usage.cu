// How often each sample has been used, and the penalty that rotates samples (arXiv 2603.04981, whose form is log; the
// other forms and the decay are ours).
//
// A block owns a range of counts. Among ascending selected indices it finds those of its range by search and tallies
// them in shared memory; then each thread decays, adds and penalises counts that it holds in registers:
//
//   selected   3 5 5 9 | 17 21 | 40 ...
//   tally      ..1.2...1...  |  1...1...  |  ...
//   counts     range 0       |  range 1   |  ...       x decay + 1 + 1 ... -> counts, and the penalised score
//
// Counts, scores and result so cross the memory bus once. Other indices take three passes: decay, atomic additions,
// penalty. Only the device knows which it is, so both ways are launched and the wrong one returns at once. Adding the
// same number in any order rounds the same way, so neither duplicates nor atomics make a difference to the bits.
#include "common/op.h"

#include "cuda/block.cuh"
#include "cuda/call.cuh"
#include "cuda/usage.cuh"

namespace pysel {
namespace {

constexpr unsigned kBlock = 256;
constexpr int kPack = 4;   // elements loaded at once
constexpr int kPacks = 2;  // loads of a thread before it needs the first
constexpr int kRange = kBlock * kPack * kPacks;
constexpr unsigned kMostBlocks = 4096;  // so that a pass that is not needed costs little

// What the device found out about `selected`.
struct Findings {
  unsigned outside;   // an index that is none of counts
  unsigned descends;  // an index below the one before it
};

__global__ void check_kernel(const std::int64_t* __restrict__ selected,  // [m]
                             std::int64_t m, std::int64_t n, Report report, Findings* found) {
  std::int64_t outside = -1;  // where
  bool descends = false;
  for (std::int64_t i = thread_in_grid(); i < m; i += threads_in_grid()) {
    const std::int64_t index = selected[i];
    if (outside < 0 && static_cast<std::uint64_t>(index) >= static_cast<std::uint64_t>(n)) outside = i;
    descends |= index < selected[i > 0 ? i - 1 : 0];
  }
  const unsigned any_outside = __ballot_sync(kAllLanes, outside >= 0);
  const unsigned any_descends = __ballot_sync(kAllLanes, descends);
  if (leads(any_descends)) atomicExch(&found->descends, 1u);
  if (!leads(any_outside) || atomicExch(&found->outside, 1u) != 0) return;  // one report is enough
  n == 0 ? report(selected[outside]) : report(n - 1, selected[outside]);
}

// How many of the ascending `selected` are below `value`. A warp asks at 32 places at once.
__device__ std::int64_t lower_bound(const std::int64_t* __restrict__ selected,  // [m]
                                    std::int64_t m, std::int64_t value) {
  const unsigned lane = threadIdx.x % kWarp;
  std::int64_t begin = 0;
  while (begin < m) {
    const std::int64_t part = (m - begin - 1) / kWarp + 1;
    const std::int64_t last = begin + (lane + 1) * part - 1;
    const int below = __popc(__ballot_sync(kAllLanes, last < m && selected[last] < value));
    begin += below * part;
    if (begin + part - 1 < m) m = begin + part - 1;  // the last of this part is not below
  }
  return begin;
}

template <typename T>
using Pack = Vec<T, kPack>;

// Elements [i, i + kPack) of [n].
template <typename T>
__device__ Pack<T> load(const T* data, std::int64_t stride, std::int64_t i, std::int64_t n) {
  if (stride == 1 && is_aligned<kPack>(data) && i + kPack <= n) return load_vec<kPack>(data + i);
  Pack<T> pack;
#pragma unroll
  for (int e = 0; e < kPack; ++e) pack.of[e] = i + e < n ? data[(i + e) * stride] : T(0);
  return pack;
}

template <typename T>
__device__ void store(T* data, std::int64_t stride, std::int64_t i, std::int64_t n, const Pack<T>& pack) {
  if (stride == 1 && is_aligned<kPack>(data) && i + kPack <= n) {
    store_vec(data + i, pack);
  } else {
#pragma unroll
    for (int e = 0; e < kPack; ++e)
      if (i + e < n) data[(i + e) * stride] = pack.of[e];
  }
}

// x + 1 + 1 + ..., each sum rounded, until it no longer grows.
template <typename C>
__device__ C add_ones(C x, std::uint64_t times) {
  if constexpr (std::is_integral_v<C>) {
    constexpr C most = kMost<C>;
    const std::uint64_t room = static_cast<std::uint64_t>(most) - static_cast<std::uint64_t>(x);  // exact modulo 2^64
    return times < room ? static_cast<C>(static_cast<std::uint64_t>(x) + times) : most;
  } else {
    for (; times > 0 && x + C{1} != x; --times) x += C{1};
    return x;
  }
}

struct Tally {
  unsigned of[kRange];
  std::int64_t bound[2];  // the range's part of `selected`
};

enum class When { ascending, descending, any };  // what `selected` has to be

// counts *= decay, +1 for each of `selected`, and the penalty of scores, each of the three only where asked for.
template <typename S, typename C>
__global__ void usage_kernel(const Findings* __restrict__ found, When when,
                             const std::int64_t* __restrict__ selected,                                // [m] ascending
                             std::int64_t m, C* counts, std::int64_t stride, std::int64_t n, C decay,  // [n]
                             const S* scores, Penalty<PenaltyType<S, C>> penalty, S* out) {            // [n] or null
  // `out` may be `scores`.

  using A = PenaltyType<S, C>;
  const bool outside = found != nullptr && found->outside != 0;
  const bool descends = found != nullptr && found->descends != 0;
  if (outside ? when == When::descending : when != When::any && descends != (when == When::descending)) return;
  if (outside) m = 0;

  auto& tally = shared<Tally>();
  const std::int64_t ranges = (n - 1) / kRange + 1;
  for (std::int64_t range = blockIdx.x; range < ranges; range += gridDim.x) {
    const std::int64_t first = range * kRange + threadIdx.x * kPack;
    Pack<C> used[kPacks];
    Pack<S> result[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const std::int64_t i = first + p * (kBlock * kPack);
      used[p] = load(counts, stride, i, n);
      if (scores != nullptr) result[p] = load(scores, 1, i, n);
    }
    if (m > 0) {
      __syncthreads();  // the tally of the block's last range has been read
      for (unsigned i = threadIdx.x; i < kRange; i += kBlock) tally.of[i] = 0;
      const unsigned warp = threadIdx.x / kWarp;
      if (warp < 2) {
        const std::int64_t bound = lower_bound(selected, m, (range + warp) * kRange);
        if (threadIdx.x % kWarp == 0) tally.bound[warp] = bound;
      }
      __syncthreads();
      for (std::int64_t i = tally.bound[0] + threadIdx.x; i < tally.bound[1]; i += kBlock)
        atomicAdd(&tally.of[selected[i] - range * kRange], 1u);
      __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const std::int64_t i = first + p * (kBlock * kPack);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        C& count = used[p].of[e];
        if constexpr (!std::is_integral_v<C>)
          if (decay != C{1}) count *= decay;
        if (m > 0) count = add_ones(count, tally.of[(p * kBlock + threadIdx.x) * kPack + e]);
        if (scores != nullptr) {
          S& score = result[p].of[e];
          score = rounded<S>(outside ? A(__builtin_nan("")) : penalty(static_cast<A>(score), static_cast<A>(count)));
        }
      }
      if (!outside && (m > 0 || decay != C{1})) store(counts, stride, i, n, used[p]);
      if (scores != nullptr) store(out, 1, i, n, result[p]);
    }
  }
}

__device__ void count_one(float* x, std::int64_t) { atomicAdd(x, 1.0f); }
__device__ void count_one(double* x, std::int64_t) { atomicAdd(x, 1.0); }

// Whole counts stay at their type's largest. One that all `others` together cannot bring there takes a plain addition.
template <typename Word, typename C>
__device__ void count_one_to_most(C* x, std::int64_t others) {
  constexpr C most = kMost<C>;
  auto* word = reinterpret_cast<Word*>(x);
  auto seen = static_cast<C>(atomicAdd(word, Word{0}));
  if (add_ones(seen, static_cast<std::uint64_t>(others)) < most) {
    atomicAdd(word, Word{1});
    return;
  }
  for (C before = add_one(seen); before != seen;) {
    before = seen;
    seen = static_cast<C>(atomicCAS(word, static_cast<Word>(before), static_cast<Word>(add_one(before))));
  }
}
__device__ void count_one(std::int32_t* x, std::int64_t others) { count_one_to_most<int>(x, others); }
__device__ void count_one(std::int64_t* x, std::int64_t others) { count_one_to_most<unsigned long long>(x, others); }

template <typename C>
__global__ void add_kernel(const Findings* __restrict__ found, When when,
                           const std::int64_t* __restrict__ selected,         // [m]
                           std::int64_t m, C* counts, std::int64_t stride) {  // [n]
  if (found->outside != 0 || (when == When::descending && found->descends == 0)) return;
  for (std::int64_t i = thread_in_grid(); i < m; i += threads_in_grid()) count_one(counts + selected[i] * stride, m);
}

unsigned blocks_of(std::int64_t items, std::int64_t block) { return std::min(grid_size(items, block), kMostBlocks); }

struct Faults {
  Fault outside;
  Fault not_empty;
};

constexpr Faults kUpdateFaults{{Fault::index, "usage_update_: selected must be between 0 and #, got #"},
                               {Fault::index, "usage_update_: selected must be empty for empty counts, got #"}};
constexpr Faults kStepFaults{{Fault::index, "usage_step_: selected must be between 0 and #, got #"},
                             {Fault::index, "usage_step_: selected must be empty for empty counts, got #"}};

// `selected`, checked on the device.
struct Selected {
  Tensor tensor;
  Room<Findings> findings;
  const std::int64_t* data;
  std::int64_t size;
  Findings* found;

  Selected(const Call& call, const Tensor& selected, std::int64_t n, const Faults& faults)
      : tensor(torch::stable::contiguous(selected)),
        findings(call.zeros<Findings>(1)),
        data(static_cast<const std::int64_t*>(tensor.data_ptr())),
        size(tensor.numel()),
        found(findings.data()) {
    if (size > 0)
      call.launch(check_kernel, blocks_of(size, kBlock), kBlock, data, size, n,
                  call.always(n == 0 ? faults.not_empty : faults.outside), found);
  }
};

void usage_update_(Tensor counts, Tensor selected, double decay) {
  constexpr const char* op = "usage_update_";
  check_update(op, counts, selected, decay);
  dispatch_counts(op, counts, [&]<typename C>() {
    const Call call(counts);
    const std::int64_t n = counts.size(0), stride = n > 0 ? counts.stride(0) : 1;
    const Selected s(call, selected, n, kUpdateFaults);
    if (n == 0) return;
    C* data = static_cast<C*>(counts.data_ptr());
    auto pass = [&](When when, std::int64_t m) {
      call.launch(usage_kernel<float, C>, blocks_of(n, kRange), kBlock, s.found, when, s.data, m, data, stride, n,
                  static_cast<C>(decay), static_cast<const float*>(nullptr), Penalty<PenaltyType<float, C>>{},
                  static_cast<float*>(nullptr));
    };
    if (decay != 1) {
      pass(When::ascending, s.size);
      if (s.size > 1) pass(When::descending, 0);
    }
    // without decay only the selected counts are touched, in whatever order they come
    if (s.size > 0)
      call.launch(add_kernel<C>, blocks_of(s.size, kBlock), kBlock, s.found, decay == 1 ? When::any : When::descending,
                  s.data, s.size, data, stride);
  });
}

// Writes into the caller's tensor, or into a fresh one.
Tensor write_usage_penalty(const Tensor& scores, const Tensor& counts, double gamma, const std::string& form,
                           int64_t step, const std::optional<Tensor>& own) {
  constexpr const char* op = "usage_penalty";
  check_usage_penalty(op, scores, counts, own);
  const PenaltyArguments arguments(op, gamma, form, step);
  const Call call(scores);
  const Tensor out = own ? *own : call.empty(sizes(scores), scores.scalar_type());
  dispatch_floating(op, "scores", scores, [&]<typename S>() {
    dispatch_counts(op, counts, [&]<typename C>() {
      using A = PenaltyType<S, C>;
      const std::int64_t n = scores.numel();
      if (n == 0) return;
      const Tensor scores_c = torch::stable::contiguous(scores), counts_c = torch::stable::contiguous(counts);
      const Penalty<A> penalty{arguments.form, arguments.gamma_as<A>(), static_cast<A>(step)};
      call.launch(usage_kernel<S, C>, blocks_of(n, kRange), kBlock, static_cast<const Findings*>(nullptr), When::any,
                  static_cast<const std::int64_t*>(nullptr), std::int64_t{0}, static_cast<C*>(counts_c.data_ptr()),
                  std::int64_t{1}, n, C{1}, static_cast<const S*>(scores_c.data_ptr()), penalty,
                  static_cast<S*>(out.data_ptr()));
    });
  });
  return out;
}

Tensor usage_penalty(Tensor scores, Tensor counts, double gamma, std::string form, int64_t step) {
  return write_usage_penalty(scores, counts, gamma, form, step, std::nullopt);
}

void usage_penalty_out(Tensor scores, Tensor counts, double gamma, std::string form, int64_t step, Tensor out) {
  write_usage_penalty(scores, counts, gamma, form, step, out);
}

// Writes into the caller's tensor, or into a fresh one.
Tensor write_usage_step(const Tensor& counts, const Tensor& selected, const Tensor& scores, double gamma, double decay,
                        const std::string& form, int64_t step, const std::optional<Tensor>& own) {
  constexpr const char* op = "usage_step_";
  check_usage_step(op, counts, selected, scores, decay, own);
  const PenaltyArguments arguments(op, gamma, form, step);
  const Call call(counts);
  const Tensor out = own ? *own : call.empty(sizes(scores), scores.scalar_type());
  dispatch_floating(op, "scores", scores, [&]<typename S>() {
    dispatch_counts(op, counts, [&]<typename C>() {
      using A = PenaltyType<S, C>;
      const std::int64_t n = counts.size(0), stride = n > 0 ? counts.stride(0) : 1;
      const Selected s(call, selected, n, kStepFaults);
      if (n == 0) return;
      const Tensor scores_c = torch::stable::contiguous(scores);
      const Penalty<A> penalty{arguments.form, arguments.gamma_as<A>(), static_cast<A>(step)};
      C* data = static_cast<C*>(counts.data_ptr());
      auto pass = [&](When when, std::int64_t m, double factor, bool penalise) {
        call.launch(usage_kernel<S, C>, blocks_of(n, kRange), kBlock, s.found, when, s.data, m, data, stride, n,
                    static_cast<C>(factor), penalise ? static_cast<const S*>(scores_c.data_ptr()) : nullptr, penalty,
                    static_cast<S*>(out.data_ptr()));
      };
      pass(When::ascending, s.size, decay, true);
      if (s.size < 2) return;
      if (decay != 1) pass(When::descending, 0, decay, false);
      call.launch(add_kernel<C>, blocks_of(s.size, kBlock), kBlock, s.found, When::descending, s.data, s.size, data,
                  stride);
      pass(When::descending, 0, 1, true);
    });
  });
  return out;
}

Tensor usage_step_(Tensor counts, Tensor selected, Tensor scores, double gamma, double decay, std::string form,
                   int64_t step) {
  return write_usage_step(counts, selected, scores, gamma, decay, form, step, std::nullopt);
}

void usage_step_out(Tensor counts, Tensor selected, Tensor scores, double gamma, double decay, std::string form,
                    int64_t step, Tensor out) {
  write_usage_step(counts, selected, scores, gamma, decay, form, step, out);
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("usage_update_", PYSEL_OP(&pysel::usage_update_));
  m.impl("usage_penalty", PYSEL_OP(&pysel::usage_penalty));
  m.impl("usage_penalty.out", PYSEL_OP(&pysel::usage_penalty_out));
  m.impl("usage_step_", PYSEL_OP(&pysel::usage_step_));
  m.impl("usage_step_.out", PYSEL_OP(&pysel::usage_step_out));
}
