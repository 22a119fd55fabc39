// Top-k of one long vector, or of each of its groups.
#include "common/op.h"

#include "common/sample.h"
#include "cuda/group_select.cuh"

namespace pysel {
namespace {

template <typename T>
struct Scores {
  using Bits = OrderBits<T>;
  const T* scores;  // [n]
  Bits flip;        // all ones if the smallest are wanted

  Scores rows_from(std::int64_t) const { return *this; }  // there is one row

  __device__ void keys(const Row& row, std::int64_t, std::int64_t quad, Bits (&key)[4], Seen& seen) const {
    T x[4];
    row.load(scores, quad, static_cast<T>(0), x);
    seen.permitted = 0xf;
    for (int i = 0; i < 4; ++i) {
      const Bits bits = order(x[i]);
      if constexpr (!std::is_integral_v<T>) seen.bad |= bits == static_cast<Bits>(~Bits{0});  // NaN
      key[i] = static_cast<Bits>(bits ^ flip);
    }
  }
};

constexpr Fault kNan{Fault::value, "select: scores must not be NaN, got NaN"};
constexpr GroupFaults kGroupFaults = PYSEL_GROUP_FAULTS("select", "the size");

constexpr const char* kOp = "select";

void write_select(const Call& call, const Tensor& scores, int64_t k, bool largest, const std::optional<Tensor>& groups,
                  const std::optional<Tensor>& quotas, const std::optional<Tensor>& key, int64_t start,
                  const Tensor& out) {
  const int64_t n = scores.size(0);
  const NoiseArgument ties =
      key ? NoiseArgument{KeyArgument(kOp, *key, scores), static_cast<std::uint64_t>(start), true} : NoiseArgument{};
  if (n == 0 && !groups) return;
  const Tensor x = torch::stable::contiguous(scores);
  auto* index = static_cast<int64_t*>(out.data_ptr());
  const auto run = [&]<typename T>() {
    using Bits = OrderBits<T>;
    const Scores<T> source{static_cast<const T*>(x.data_ptr()), largest ? Bits{0} : static_cast<Bits>(~Bits{0})};
    if (groups) {
      const GroupArguments g(*groups, *quotas);
      select_groups(call, source, NoiseArgument{}, ties, g.groups, n, k, {call, kNan, kGroupFaults, g.groups.count},
                    index);
    } else {
      select_rows(call, source, NoiseArgument{}, ties, 1, n, k, {call.report(kNan), Report{}}, index);
    }
  };
  if (scores.scalar_type() == ScalarType::Long)
    run.template operator()<int64_t>();
  else if (scores.scalar_type() == ScalarType::Int)
    run.template operator()<int32_t>();
  else
    dispatch_floating(kOp, "scores", scores, run);
  call.finish();
}

Tensor select(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
              std::optional<Tensor> key, std::optional<bool> validate, int64_t start) {
  const std::vector<int64_t> size = check_select(kOp, scores, k, groups, quotas, start);
  const Call call(scores, validate);
  Tensor out = call.empty(size, ScalarType::Long);
  write_select(call, scores, k, largest, groups, quotas, key, start, out);
  return out;
}

void select_out(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
                std::optional<Tensor> key, std::optional<bool> validate, int64_t start, Tensor out) {
  const std::vector<int64_t> size = check_select(kOp, scores, k, groups, quotas, start);
  check_indices_out(kOp, out, size, "scores", scores, groups, quotas);
  write_select(Call(scores, validate), scores, k, largest, groups, quotas, key, start, out);
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("select", PYSEL_OP(&pysel::select));
  m.impl("select.out", PYSEL_OP(&pysel::select_out));
}
