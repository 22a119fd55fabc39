// An epoch of dynamic selection (arXiv 2603.04981, algorithm 1) without a temporary of its size: each pass of the
// selection makes a chunk's keys anew from two tables and the counts, and what is selected is counted as it is written.
#include "common/op.h"

#include "common/order.h"
#include "common/sample.h"
#include "common/usage.h"
#include "cpu/chunk.h"
#include "cpu/group_select.h"

namespace pysel {
namespace {

// Shares of the two tables.
template <typename S>
struct Mixture {
  S first, second;
};

}  // namespace
}  // namespace pysel

#define PYSEL_KERNELS "cpu/usage_select_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr const char* kOp = "usage_select_";

Tensor usage_select_(Tensor counts, Tensor first, Tensor second, double mix, double gamma, std::string form,
                     int64_t step, int64_t k, std::optional<Tensor> groups, std::optional<Tensor> quotas,
                     std::optional<Tensor> key, std::optional<bool> validate) {
  check_usage_select(kOp, counts, first, second, mix, k, groups, quotas);
  const PenaltyArguments penalty(kOp, gamma, form, step);
  std::optional<TieOrder> tie_order;
  if (key) tie_order = TieOrder{read_key(kOp, *key), 0};
  const GroupTensors given(kOp, groups, quotas, k);

  const int64_t n = counts.size(0), stride = n > 0 ? counts.stride(0) : 1;
  const Tensor first_c = packed(first), second_c = packed(second);
  const Tensor out = empty_cpu({k}, ScalarType::Long);
  auto* indices = static_cast<int64_t*>(out.data_ptr());
  const auto run = [&]<typename S, typename C>() {
    using Bits = OrderBits<S>;
    const S* x = static_cast<const S*>(first_c.data_ptr());
    const S* y = static_cast<const S*>(second_c.data_ptr());
    C* used = static_cast<C*>(counts.data_ptr());
    const Mixture<S> mixture{static_cast<S>(1 - mix), static_cast<S>(mix)};
    const KeysOf<Bits> keys_of = [&](int64_t at, int count, KeyRange<Bits>, Bits* keys) {
      alignas(64) C gathered[kChunk];
      alignas(64) S scores[kChunk];
      alignas(64) PenaltyType<S, C> wide[kChunk];
      if (stride != 1)
        for (int i = 0; i < count; ++i) gathered[i] = used[(at + i) * stride];
      const bool nan = PYSEL_CHOOSE(epoch_keys<S, C>)(x + at, y + at, stride == 1 ? used + at : gathered, count,
                                                      mixture, penalty, scores, wide, keys);
      check_value(!nan || !validate.value_or(true), kOp,
                  ": scores of first, second and counts must not be NaN, got NaN");
      return true;
    };
    const Written count = [&](const int64_t* begin, const int64_t* end) {
      for (; begin < end; ++begin) used[*begin * stride] = add_one(used[*begin * stride]);
    };
    if (given.groups)
      select_of_groups<Bits>(
          n, *given.groups, keys_of,
          {.op = kOp, .size_name = "the size", .tie_order = tie_order, .most_kept = n / 160, .written = count},
          indices);
    else
      select_largest<Bits>(n, k, keys_of, {.tie_order = tie_order, .most_kept = n / 64, .written = count}, indices);
  };
  dispatch_counts(kOp, counts, [&]<typename C>() {
    if (first.scalar_type() == ScalarType::Float)
      run.template operator()<float, C>();
    else
      run.template operator()<double, C>();
  });
  return out;
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) { m.impl("usage_select_", PYSEL_OP(&pysel::usage_select_)); }
