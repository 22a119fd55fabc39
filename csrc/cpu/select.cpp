// Top-k of one long vector, by radix selection.
#include "common/op.h"

#include <type_traits>

#include "common/order.h"
#include "common/sample.h"
#include "cpu/chunk.h"
#include "cpu/group_select.h"

#define PYSEL_KERNELS "cpu/select_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr const char* kOp = "select";

template <typename T>
void select_from(const Tensor& scores, int64_t k, bool largest, const std::optional<Groups>& groups,
                 const std::optional<TieOrder>& tie_order, bool validate, int64_t* indices) {
  using Bits = std::conditional_t<sizeof(T) <= 4, uint32_t, uint64_t>;
  const Tensor scores_c = packed(scores);
  const int64_t n = scores.size(0);
  const T* x = static_cast<const T*>(scores_c.data_ptr());
  const Bits flip = largest ? 0 : ~Bits{0};
  const KeysOf<Bits> keys_of = [&](int64_t first, int count, KeyRange<Bits>, Bits* out) {
    const bool nan = PYSEL_CHOOSE(fill_keys<T, Bits>)(x + first, count, flip, out);
    if constexpr (!std::is_integral_v<T>) check_value(!(nan && validate), kOp, ": scores must not be NaN, got NaN");
    return true;
  };
  if (groups)
    select_of_groups<Bits>(n, *groups, keys_of, {.op = kOp, .size_name = "the size", .tie_order = tie_order}, indices);
  else
    select_largest<Bits>(n, k, keys_of, {.tie_order = tie_order}, indices);
}

// Writes into the caller's tensor, or into a fresh one.
Tensor write_select(const Tensor& scores, int64_t k, bool largest, const std::optional<Tensor>& groups,
                    const std::optional<Tensor>& quotas, const std::optional<Tensor>& key, bool validate, int64_t start,
                    const std::optional<Tensor>& own) {
  const std::vector<int64_t> size = check_select(kOp, scores, k, groups, quotas, start);
  if (own) check_indices_out(kOp, *own, size, "scores", scores, groups, quotas);
  std::optional<TieOrder> tie_order;
  if (key) tie_order = TieOrder{read_key(kOp, *key), static_cast<uint64_t>(start)};
  const GroupTensors given(kOp, groups, quotas, k);
  const Tensor out = own ? *own : empty_cpu(size, ScalarType::Long);
  auto* indices = static_cast<int64_t*>(out.data_ptr());
  const auto run = [&]<typename T>() {
    select_from<T>(scores, k, largest, given.groups, tie_order, validate, indices);
  };
  if (scores.scalar_type() == ScalarType::Long)
    run.template operator()<int64_t>();
  else if (scores.scalar_type() == ScalarType::Int)
    run.template operator()<int32_t>();
  else
    dispatch_floating(kOp, "scores", scores, run);
  return out;
}

Tensor select(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
              std::optional<Tensor> key, std::optional<bool> validate, int64_t start) {
  return write_select(scores, k, largest, groups, quotas, key, validate.value_or(true), start, std::nullopt);
}

void select_out(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
                std::optional<Tensor> key, std::optional<bool> validate, int64_t start, Tensor out) {
  write_select(scores, k, largest, groups, quotas, key, validate.value_or(true), start, out);
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("select", PYSEL_OP(&pysel::select));
  m.impl("select.out", PYSEL_OP(&pysel::select_out));
}
