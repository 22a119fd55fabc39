// Top-k of one long vector, by radix selection.
#ifdef PYSEL_VARIANT

// Order keys of a long vector, complemented if `flip`. True if there is a NaN.
template <typename T, typename Bits>
bool fill_keys(const T* x, int n, Bits flip, Bits* out) {
  for (int i = 0; i < n; ++i) out[i] = order(x[i]);
  Bits most = 0;
  for (int i = 0; i < n; ++i) most = out[i] > most ? out[i] : most;
  for (int i = 0; i < n; ++i) out[i] ^= flip;
  return most == static_cast<OrderBits<T>>(~OrderBits<T>{0});
}

#else

#include <torch/csrc/stable/library.h>

#include <type_traits>

#include "common/order.h"
#include "common/sample.h"
#include "cpu/parallel.h"
#include "cpu/radix_select.h"

#define PYSEL_FILE "cpu/select.cpp"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

template <typename T>
void select_from(const Tensor& scores, int64_t k, bool largest, const std::optional<TieOrder>& tie_order, bool validate,
                 int64_t* indices) {
  using Bits = std::conditional_t<sizeof(T) <= 4, uint32_t, uint64_t>;
  const Tensor scores_c = torch::stable::contiguous(scores);
  const T* x = static_cast<const T*>(scores_c.data_ptr());
  const Bits flip = largest ? 0 : ~Bits{0};
  select_largest<Bits>(
      scores.size(0), k,
      [&](int64_t first, int count, Bits, Bits* out) {
        const bool nan = PYSEL_CHOOSE(fill_keys<T, Bits>)(x + first, count, flip, out);
        if constexpr (!std::is_integral_v<T>)
          check_value(!(nan && validate), "select: scores must not be NaN, got NaN");
        return true;
      },
      tie_order, indices);
}

constexpr const char* kOp = "select";

void write_select(const Tensor& scores, int64_t k, bool largest, const std::optional<Tensor>& groups,
                  const std::optional<Tensor>& key, std::optional<bool> validate, const Tensor& out) {
  check_value(!groups, kOp, ": groups must be None, they are not there yet");
  std::optional<TieOrder> tie_order;
  if (key) tie_order = TieOrder{read_key(kOp, *key), 0};
  auto* indices = static_cast<int64_t*>(out.data_ptr());
  const bool check = validate.value_or(true);
  if (scores.scalar_type() == ScalarType::Long)
    select_from<int64_t>(scores, k, largest, tie_order, check, indices);
  else if (scores.scalar_type() == ScalarType::Int)
    select_from<int32_t>(scores, k, largest, tie_order, check, indices);
  else
    dispatch_floating(kOp, "scores", scores,
                      [&]<typename T>() { select_from<T>(scores, k, largest, tie_order, check, indices); });
}

Tensor select(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
              std::optional<Tensor> key, std::optional<bool> validate) {
  Tensor out = empty_cpu(check_select(kOp, scores, k, groups, quotas), ScalarType::Long);
  write_select(scores, k, largest, groups, key, validate, out);
  return out;
}

void select_out(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
                std::optional<Tensor> key, std::optional<bool> validate, Tensor out) {
  check_out(kOp, out, check_select(kOp, scores, k, groups, quotas), ScalarType::Long, scores);
  check_apart(kOp, out, "scores", scores);
  write_select(scores, k, largest, groups, key, validate, out);
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("select", TORCH_BOX(&pysel::select));
  m.impl("select.out", TORCH_BOX(&pysel::select_out));
}

#endif
