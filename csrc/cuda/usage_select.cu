// An epoch of dynamic selection: two tables of scores are mixed, penalised by use, selected from, and the selected are
// counted as used (arXiv 2603.04981; the fusion is ours).
//
// A score is made anew from both tables and the counts wherever a pass of the selection asks for it, so that none is
// stored. Only the last kernel writes counts: one for each index selected, of which there are none (-1) on a fault.
#include "common/op.h"

#include "cuda/group_select.cuh"
#include "cuda/usage.cuh"

namespace pysel {
namespace {

template <typename S, typename C>
struct MixedScores {
  using A = PenaltyType<S, C>;
  using Bits = OrderBits<S>;
  const S *first, *second;  // [n]
  S first_share, second_share;
  const C* counts;  // [n]
  std::int64_t stride;
  Penalty<A> penalty;

  __device__ void keys(const Row& row, std::int64_t, std::int64_t quad, Bits (&key)[4], Seen& seen) const {
    S x[4], y[4];
    row.load(first, quad, S{0}, x);
    row.load(second, quad, S{0}, y);
    C used[4];
    if (stride == 1) {
      row.load(counts, quad, C{0}, used);
    } else {
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = row.begin(quad) + i;
        used[i] = row.holds(at) ? counts[at * stride] : C{0};
      }
    }
    seen.permitted = 0xf;
    for (int i = 0; i < 4; ++i) {
      const S mixed = x[i] * first_share + y[i] * second_share;
      key[i] = order(rounded<S>(penalty(static_cast<A>(mixed), static_cast<A>(used[i]))));
      seen.bad |= key[i] == static_cast<Bits>(~Bits{0});  // NaN
    }
  }
};

// +1 for each of distinct indices; none where the selection was refused.
template <typename C>
__global__ void __launch_bounds__(kSelectBlock) use_kernel(const std::int64_t* __restrict__ selected,  // [k]
                                                           std::int64_t k, C* counts, std::int64_t stride) {
  for (std::int64_t i = thread_in_grid(); i < k; i += threads_in_grid())
    if (selected[i] >= 0) {
      C& count = counts[selected[i] * stride];
      count = add_one(count);
    }
}

constexpr const char* kOp = "usage_select_";
constexpr Fault kNan{Fault::value, "usage_select_: scores of first, second and counts must not be NaN, got NaN"};
constexpr GroupFaults kGroupFaults = PYSEL_GROUP_FAULTS("usage_select_", "the size");

Tensor usage_select_(Tensor counts, Tensor first, Tensor second, double mix, double gamma, std::string form,
                     int64_t step, int64_t k, std::optional<Tensor> groups, std::optional<Tensor> quotas,
                     std::optional<Tensor> key, std::optional<bool> validate) {
  check_usage_select(kOp, counts, first, second, mix, k, groups, quotas);
  const PenaltyArguments arguments(kOp, gamma, form, step);
  const Call call(counts, validate);
  const NoiseArgument ties = key ? NoiseArgument{KeyArgument(kOp, *key, counts), 0, true} : NoiseArgument{};
  const int64_t n = counts.size(0), stride = n > 0 ? counts.stride(0) : 1;
  Tensor out = call.empty({k}, ScalarType::Long);
  auto* index = static_cast<int64_t*>(out.data_ptr());
  const Tensor first_c = torch::stable::contiguous(first), second_c = torch::stable::contiguous(second);
  const auto run = [&]<typename S>() {
    dispatch_counts(kOp, counts, [&]<typename C>() {
      using A = PenaltyType<S, C>;
      C* used = static_cast<C*>(counts.data_ptr());
      const MixedScores<S, C> source{static_cast<const S*>(first_c.data_ptr()),
                                     static_cast<const S*>(second_c.data_ptr()),
                                     static_cast<S>(1 - mix),
                                     static_cast<S>(mix),
                                     used,
                                     stride,
                                     Penalty<A>(arguments)};
      const auto select = [&](const Groups& of) {
        select_groups(call, source, NoiseArgument{}, ties, of, n, k, {call, kNan, kGroupFaults, of.count}, index);
      };
      if (groups)
        select(GroupArguments(*groups, *quotas).groups);
      else
        select(Groups{nullptr, false, nullptr, 1});
      if (k > 0) call.launch(use_kernel<C>, grid_size(k, kSelectBlock), kSelectBlock, index, k, used, stride);
    });
  };
  first.scalar_type() == ScalarType::Double ? run.template operator()<double>() : run.template operator()<float>();
  call.finish();
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) { m.impl("usage_select_", PYSEL_OP(&pysel::usage_select_)); }
