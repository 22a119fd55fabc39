// Fused Gumbel-sigmoid, the two-class case of Gumbel-softmax (Jang et al., arXiv 1611.01144; Maddison et al.,
// arXiv 1611.00712): gates from logits and logistic noise, a chunk at a time.
#include "common/op.h"

#include "common/gumbel.h"
#include "common/random.h"
#include "cpu/chunk.h"
#include "cpu/gumbel.h"

#define PYSEL_KERNELS "cpu/gumbel_sigmoid_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

// Writes into the caller's tensor, or into a fresh one.
Tensor write_gumbel_sigmoid(const Tensor& logits, const Tensor& tau, const Tensor& key, bool hard, int64_t start,
                            bool validate, const std::optional<Tensor>& own) {
  constexpr const char* op = "gumbel_sigmoid";
  check_floating(op, "logits", logits);
  const double t = read_tau(op, tau, hard);
  const Key k = read_key(op, key);
  check_start(op, start);
  const Tensor out = own ? *own : empty_cpu(sizes(logits), logits.scalar_type());
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor x = packed(logits);
    const T* s = static_cast<const T*>(x.data_ptr());
    T* w = static_cast<T*>(out.data_ptr());
    const int64_t n = logits.numel();
    if (validate && own) check_below_inf(op, x);
    each_chunk(n, true, [&](int64_t c) {
      const int64_t at = c * kChunk;
      const bool plus_inf = PYSEL_CHOOSE(gate<T, A>)(
          s + at, k, static_cast<uint64_t>(start) + static_cast<uint64_t>(at), chunk_size(n, c), divisor<A>(t), hard,
          GateRange<T>::low, GateRange<T>::high, w + at);
      check_value(!plus_inf || !validate, op, ": logits must be below +inf, got +inf");
    });
  });
  return out;
}

Tensor gumbel_sigmoid(Tensor logits, Tensor tau, Tensor key, bool hard, int64_t start, std::optional<bool> validate) {
  return write_gumbel_sigmoid(logits, tau, key, hard, start, validate.value_or(true), std::nullopt);
}

void gumbel_sigmoid_out(Tensor logits, Tensor tau, Tensor key, bool hard, int64_t start, std::optional<bool> validate,
                        Tensor out) {
  check_samples_out("gumbel_sigmoid", out, logits);
  write_gumbel_sigmoid(logits, tau, key, hard, start, validate.value_or(true), out);
}

Tensor gumbel_sigmoid_backward(Tensor grad, Tensor logits, Tensor tau, Tensor key, int64_t start) {
  constexpr const char* op = "gumbel_sigmoid_backward";
  check_gradient(op, grad, "logits", logits);
  const double t = read_tau(op, tau, true);
  const Key k = read_key(op, key);
  Tensor out = empty_cpu(sizes(logits), logits.scalar_type());
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor grad_c = packed(grad), x = packed(logits);
    const T* g = static_cast<const T*>(grad_c.data_ptr());
    const T* s = static_cast<const T*>(x.data_ptr());
    T* to = static_cast<T*>(out.data_ptr());
    if (t == 0) {
      std::fill(to, to + logits.numel(), static_cast<T>(0.0f));
      return;
    }
    each_chunk(logits.numel(), true, [&](int64_t c) {
      const int64_t at = c * kChunk;
      PYSEL_CHOOSE(gate_gradient<T, A>)
      (g + at, s + at, k, static_cast<uint64_t>(start) + static_cast<uint64_t>(at), chunk_size(logits.numel(), c),
       divisor<A>(t), to + at);
    });
  });
  return out;
}
}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("gumbel_sigmoid", PYSEL_OP(&pysel::gumbel_sigmoid));
  m.impl("gumbel_sigmoid.out", PYSEL_OP(&pysel::gumbel_sigmoid_out));
  m.impl("gumbel_sigmoid_backward", PYSEL_OP(&pysel::gumbel_sigmoid_backward));
}
