// Top-k of one long vector.
#include <torch/csrc/stable/library.h>

#include <cmath>

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

Tensor select(Tensor scores, int64_t k, bool largest, std::optional<bool> validate) {
  constexpr const char* op = "select";
  check_value(scores.dim() == 1, op, ": scores must have shape [n], got ", shape(scores));
  const int64_t n = scores.size(0);
  check_k(op, k, n);
  const Call call(scores, validate);
  Tensor out = call.empty({k}, ScalarType::Long);
  if (n == 0) return out;
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
    dispatch_floating(op, "scores", scores, run);
  call.finish();
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) { m.impl("select", TORCH_BOX(&pysel::select)); }
