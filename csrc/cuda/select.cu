// Top-k of one long vector.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "common/sample.h"
#include "cuda/select.cuh"

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
    for (int i = 0; i < 4; ++i) {
      const Bits bits = order(x[i]);
      if constexpr (!std::is_integral_v<T>) seen.bad |= bits == static_cast<Bits>(~Bits{0});  // NaN
      key[i] = static_cast<Bits>(bits ^ flip);
    }
  }
};

constexpr Fault kNan{Fault::value, "select: scores must not be NaN, got NaN"};

constexpr const char* kOp = "select";

void write_select(const Call& call, const Tensor& scores, int64_t k, bool largest, const Tensor& out) {
  const int64_t n = scores.size(0);
  if (n == 0) return;
  const Tensor x = torch::stable::contiguous(scores);
  const auto run = [&]<typename T>() {
    using Bits = OrderBits<T>;
    const Scores<T> source{static_cast<const T*>(x.data_ptr()), largest ? Bits{0} : static_cast<Bits>(~Bits{0})};
    select_rows(call, source, NoiseArgument{}, 1, n, k, {call.report(kNan), Report{}},
                static_cast<int64_t*>(out.data_ptr()));
  };
  if (scores.scalar_type() == ScalarType::Long)
    run.template operator()<int64_t>();
  else if (scores.scalar_type() == ScalarType::Int)
    run.template operator()<int32_t>();
  else
    dispatch_floating(kOp, "scores", scores, run);
  call.finish();
}

void check_yet(const std::optional<Tensor>& groups, const std::optional<Tensor>& key) {
  check_value(!groups, kOp, ": groups must be None on a GPU, where they are not there yet");
  check_value(!key, kOp, ": key must be None on a GPU, where it is not there yet");
}

Tensor select(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
              std::optional<Tensor> key, std::optional<bool> validate) {
  const std::vector<int64_t> size = check_select(kOp, scores, k, groups, quotas);
  check_yet(groups, key);
  const Call call(scores, validate);
  Tensor out = call.empty(size, ScalarType::Long);
  write_select(call, scores, k, largest, out);
  return out;
}

void select_out(Tensor scores, int64_t k, bool largest, std::optional<Tensor> groups, std::optional<Tensor> quotas,
                std::optional<Tensor> key, std::optional<bool> validate, Tensor out) {
  check_out(kOp, out, check_select(kOp, scores, k, groups, quotas), ScalarType::Long, scores);
  check_apart(kOp, out, "scores", scores);
  check_yet(groups, key);
  write_select(Call(scores, validate), scores, k, largest, out);
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("select", TORCH_BOX(&pysel::select));
  m.impl("select.out", TORCH_BOX(&pysel::select_out));
}
