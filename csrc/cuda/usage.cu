// How often each sample has been used, and the penalty that rotates samples (arXiv 2603.04981, whose form is log; the
// other forms and the decay are ours).
//
// What is selected becomes bits, which the L2 cache holds. Then counts are decayed, raised by their bits and used for
// the penalty in one pass, in which counts, scores and result cross the memory bus once:
//
//   selected   21 9 3 17 9
//   once       ...1.....1.......1...1..    a bit a count
//   again      .........1..............
//   counts     x decay + 1                 -> counts, and the penalised score
//
// A count that is selected again has been decayed and raised by atomic additions before that pass, which leaves it
// alone. Only the device knows whether there is one, so the kernels for that are launched wherever there may be, and
// return at once where there is none. Where nothing decays and nothing is penalised, atomic additions are all, without
// bits. Adding the same number in any order rounds the same way, so neither duplicates nor atomics make a difference to
// a count.
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
  unsigned outside;  // an index that is none of counts
  unsigned repeats;  // an index that came before
};

// Where a count's bit is.
struct Place {
  std::int64_t word;
  unsigned bit;

  PYSEL_HD explicit Place(std::int64_t i) : word(i >> 5), bit(1u << (i & 31)) {}
};

// Which counts are selected, a bit each.
struct Uses {
  Findings* found = nullptr;
  unsigned* once = nullptr;   // [words]; null where nobody asks for bits
  unsigned* again = nullptr;  // [words]

  __device__ bool refused() const { return found != nullptr && found->outside != 0; }
  __device__ bool repeats() const { return found != nullptr && found->repeats != 0; }
};

__global__ void mark_uses_kernel(const std::int64_t* __restrict__ selected,  // [m]
                                 std::int64_t m, std::int64_t n, Report report, Uses uses) {
  const unsigned lane = threadIdx.x % kWarp;
  std::int64_t outside = -1;  // where
  bool repeats = false;
  for (std::int64_t i = thread_in_grid(); i - lane < m; i += threads_in_grid()) {
    const std::int64_t index = i < m ? selected[i] : 0;
    const bool inside = i < m && static_cast<std::uint64_t>(index) < static_cast<std::uint64_t>(n);
    if (outside < 0 && i < m && !inside) outside = i;
    if (uses.once == nullptr) continue;

    // Of neighbours in one word, as ascending indices are, the first speaks for all.
    const Place at(inside ? index : -1);
    unsigned bits = inside ? at.bit : 0, twice = 0;
    const std::int64_t before = __shfl_up_sync(kAllLanes, at.word, 1);
    const bool first = lane == 0 || at.word != before;
    const unsigned firsts = __ballot_sync(kAllLanes, first);
    if (firsts != kAllLanes) {
      const unsigned later = firsts >> lane >> 1;
      const unsigned left = later != 0 ? static_cast<unsigned>(__ffs(static_cast<int>(later))) : kWarp - lane;
      for (unsigned offset = 1; offset < kWarp; offset *= 2) {
        const unsigned theirs = __shfl_down_sync(kAllLanes, bits, offset);
        const unsigned theirs_twice = __shfl_down_sync(kAllLanes, twice, offset);
        if (offset >= left) continue;
        twice |= theirs_twice | (bits & theirs);
        bits |= theirs;
      }
    }
    if (!inside || !first) continue;
    twice |= bits & atomicOr(&uses.once[at.word], bits);
    if (twice == 0) continue;
    atomicOr(&uses.again[at.word], twice);
    repeats = true;
  }
  const unsigned any_outside = __ballot_sync(kAllLanes, outside >= 0);
  if (leads(__ballot_sync(kAllLanes, repeats))) atomicExch(&uses.found->repeats, 1u);
  if (!leads(any_outside) || atomicExch(&uses.found->outside, 1u) != 0) return;  // one report is enough
  n == 0 ? report(selected[outside]) : report(n - 1, selected[outside]);
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

// counts *= decay, +1 for what is selected, and the penalty of scores, each of the three only where asked for.
template <typename S, typename C>
__global__ void usage_kernel(Uses uses, C* counts, std::int64_t stride, std::int64_t n, C decay,  // [n]
                             const S* scores, Penalty<PenaltyType<S, C>> penalty, S* out) {       // [n] or null
  // `out` may be `scores`.

  using A = PenaltyType<S, C>;
  const bool refused = uses.refused(), repeats = uses.repeats();
  const std::int64_t ranges = (n - 1) / kRange + 1;
  for (std::int64_t range = blockIdx.x; range < ranges; range += gridDim.x) {
    const std::int64_t first = range * kRange + threadIdx.x * kPack;
    Pack<C> used[kPacks];
    Pack<S> result[kPacks];
    unsigned once[kPacks] = {}, again[kPacks] = {};
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const std::int64_t i = first + p * (kBlock * kPack);
      used[p] = load(counts, stride, i, n);
      if (scores != nullptr) result[p] = load(scores, 1, i, n);
      if (uses.once != nullptr && i < n) once[p] = uses.once[Place(i).word];
      if (repeats && i < n) again[p] = uses.again[Place(i).word];
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const std::int64_t i = first + p * (kBlock * kPack);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        C& count = used[p].of[e];
        const unsigned bit = 1u << ((first & 31) + e);  // of each pack
        if ((again[p] & bit) == 0) {
          if constexpr (!std::is_integral_v<C>)
            if (decay != C{1}) count *= decay;
          if ((once[p] & bit) != 0) count = add_one(count);
        }
        if (scores != nullptr) {
          S& score = result[p].of[e];
          score = rounded<S>(refused ? A(__builtin_nan("")) : penalty(static_cast<A>(score), static_cast<A>(count)));
        }
      }
      if (!refused && (uses.once != nullptr || decay != C{1})) store(counts, stride, i, n, used[p]);
      if (scores != nullptr) store(out, 1, i, n, result[p]);
    }
  }
}

// --- what is selected again ---

__device__ void count_one(float* x, std::int64_t) { atomicAdd(x, 1.0f); }
__device__ void count_one(double* x, std::int64_t) { atomicAdd(x, 1.0); }

// Whole counts stay at their type's largest. One that all `others` together cannot bring there takes a plain addition.
template <typename Word, typename C>
__device__ void count_one_to_most(C* x, std::int64_t others) {
  constexpr C most = kMost<C>;
  auto* word = reinterpret_cast<Word*>(x);
  auto seen = static_cast<C>(atomicAdd(word, Word{0}));
  const std::uint64_t room = static_cast<std::uint64_t>(most) - static_cast<std::uint64_t>(seen);  // exact modulo 2^64
  if (static_cast<std::uint64_t>(others) < room) {
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

// +1 for each of `selected`: of those alone that come again, if there are bits.
template <typename C>
__global__ void add_kernel(Uses uses, const std::int64_t* __restrict__ selected,  // [m]
                           std::int64_t m, C* counts, std::int64_t stride) {      // [n]
  if (uses.refused() || (uses.again != nullptr && !uses.repeats())) return;
  for (std::int64_t i = thread_in_grid(); i < m; i += threads_in_grid()) {
    const Place at(selected[i]);
    if (uses.again == nullptr || (uses.again[at.word] & at.bit) != 0) count_one(counts + selected[i] * stride, m);
  }
}

// Decays what is selected again, before it is added to: once, by whoever takes its other bit.
template <typename C>
__global__ void decay_kernel(Uses uses, const std::int64_t* __restrict__ selected,       // [m]
                             std::int64_t m, C* counts, std::int64_t stride, C decay) {  // [n]
  if (uses.refused() || !uses.repeats()) return;
  for (std::int64_t i = thread_in_grid(); i < m; i += threads_in_grid()) {
    const Place at(selected[i]);
    if ((uses.again[at.word] & at.bit) != 0 && (atomicAnd(&uses.once[at.word], ~at.bit) & at.bit) != 0)
      counts[selected[i] * stride] *= decay;
  }
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

// The uses of counts, brought up to date.
template <typename C>
class Update {
 public:
  // `bits`: whether a pass over all counts will ask for them.
  Update(const Call& call, const Tensor& counts, const Tensor& selected, double decay, bool bits, const Faults& faults)
      : call_(call),
        selected_(torch::stable::contiguous(selected)),
        m_(selected.numel()),
        counts_(static_cast<C*>(counts.data_ptr())),
        n_(counts.size(0)),
        stride_(n_ > 0 ? counts.stride(0) : 1),
        decay_(static_cast<C>(decay)) {
    if (m_ == 0) return;
    constexpr std::int64_t kFindings = sizeof(Findings) / sizeof(unsigned);
    const std::int64_t words = bits ? Place(n_ - 1).word + 1 : 0;
    room_ = call.zeros<unsigned>(kFindings + 2 * words);
    uses_.found = reinterpret_cast<Findings*>(room_->data());
    if (words > 0) {
      uses_.once = room_->data() + kFindings;
      uses_.again = uses_.once + words;
    }
    call.launch(mark_uses_kernel, blocks_of(m_, kBlock), kBlock, index(), m_, n_,
                call.always(n_ == 0 ? faults.not_empty : faults.outside), uses_);
  }

  // +1 for each that is selected; where there are bits, for those alone that are selected again.
  void add() const {
    if (n_ > 0 && m_ > 0)
      call_.launch(add_kernel<C>, blocks_of(m_, kBlock), kBlock, uses_, index(), m_, counts_, stride_);
  }

  // The pass over all counts.
  template <typename S>
  void pass(const S* scores, const Penalty<PenaltyType<S, C>>& penalty, S* out) const {
    if (n_ == 0) return;
    if (m_ > 1) {
      if constexpr (!std::is_integral_v<C>)
        if (decay_ != C{1})
          call_.launch(decay_kernel<C>, blocks_of(m_, kBlock), kBlock, uses_, index(), m_, counts_, stride_, decay_);
      add();
    }
    call_.launch(usage_kernel<S, C>, blocks_of(n_, kRange), kBlock, uses_, counts_, stride_, n_, decay_, scores,
                 penalty, out);
  }

 private:
  const std::int64_t* index() const { return static_cast<const std::int64_t*>(selected_.data_ptr()); }

  const Call& call_;
  Tensor selected_;
  std::int64_t m_;
  C* counts_;
  std::int64_t n_, stride_;
  C decay_;
  std::optional<Room<unsigned>> room_;
  Uses uses_;
};

void usage_update_(Tensor counts, Tensor selected, double decay) {
  constexpr const char* op = "usage_update_";
  check_update(op, counts, selected, decay);
  dispatch_counts(op, counts, [&]<typename C>() {
    const Call call(counts);
    const Update<C> update(call, counts, selected, decay, decay != 1, kUpdateFaults);
    // without decay only the selected counts are touched
    if (decay == 1)
      update.add();
    else
      update.pass(static_cast<const float*>(nullptr), {}, static_cast<float*>(nullptr));
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
      const std::int64_t n = scores.numel();
      if (n == 0) return;
      const Tensor scores_c = torch::stable::contiguous(scores), counts_c = torch::stable::contiguous(counts);
      call.launch(usage_kernel<S, C>, blocks_of(n, kRange), kBlock, Uses{}, static_cast<C*>(counts_c.data_ptr()),
                  std::int64_t{1}, n, C{1}, static_cast<const S*>(scores_c.data_ptr()),
                  Penalty<PenaltyType<S, C>>(arguments), static_cast<S*>(out.data_ptr()));
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
      const Update<C> update(call, counts, selected, decay, true, kStepFaults);
      const Tensor scores_c = torch::stable::contiguous(scores);
      update.pass(static_cast<const S*>(scores_c.data_ptr()), Penalty<PenaltyType<S, C>>(arguments),
                  static_cast<S*>(out.data_ptr()));
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
