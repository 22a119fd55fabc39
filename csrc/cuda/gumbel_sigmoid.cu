// Gumbel samples of two classes: gates between 0 and 1, and their gradient.
#include "common/op.h"

#include "cuda/gumbel.cuh"

namespace pysel {
namespace {

// x and out may be the same memory.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    gate_kernel(const T* x,  // [n]
                std::int64_t n, NoiseArgument noise, TauArgument tau, bool hard, Report plus_inf,
                T* out) {  // [n]
  using A = Compute<T>;
  const double given = tau.read();
  const A t = divisor<A>(given);
  const Row all(noise, 0, n);
  bool refused = false;
  for (std::int64_t quad = thread_in_grid(); quad < all.quads(); quad += threads_in_grid()) {
    A s[4], w[4];
    all.load(x, quad, A{0}, s);
    for (int i = 0; i < 4; ++i) w[i] = s[i];
    all.add_noise<Distribution::logistic>(quad, w);
    for (int i = 0; i < 4; ++i) {
      if (hard) {
        w[i] = w[i] > A{0} ? A{1} : (w[i] != w[i] ? w[i] : A{0});
      } else {
        const A soft = sigmoid(w[i] / t);
        const A floored = soft < A{GateRange<T>::low} ? A{GateRange<T>::low} : soft;
        w[i] = floored > A{GateRange<T>::high} ? A{GateRange<T>::high} : floored;
      }
      if (given != given) w[i] = not_a_number<A>();
      if (plus_inf && s[i] == infinity<A>()) {
        refused = true;
        w[i] = not_a_number<A>();
      }
    }
    all.store(out, quad, w);
  }
  plus_inf.of_warp(refused);
}

template <typename T>
__global__ void __launch_bounds__(kBlock) gate_gradient_kernel(const T* __restrict__ grad,  // [n]
                                                               const T* __restrict__ x,     // [n]
                                                               std::int64_t n, NoiseArgument noise, TauArgument tau,
                                                               T* __restrict__ out) {  // [n]
  using A = Compute<T>;
  const double given = tau.read();
  const A t = divisor<A>(given);
  const Row all(noise, 0, n);
  for (std::int64_t quad = thread_in_grid(); quad < all.quads(); quad += threads_in_grid()) {
    A g[4], s[4];
    all.load(grad, quad, A{0}, g);
    all.load(x, quad, A{0}, s);
    all.add_noise<Distribution::logistic>(quad, s);
    for (int i = 0; i < 4; ++i) {
      const A w = sigmoid(s[i] / t);
      g[i] = given == 0 ? A{0} : g[i] * (w * (A{1} - w)) / t;  // the limit is a step
    }
    all.store(out, quad, g);
  }
}

// --- ops ---

constexpr Fault kSigmoidPlusInf{Fault::value, "gumbel_sigmoid: logits must be below +inf, got +inf"};
constexpr Fault kSigmoidTau{
    Fault::value, "gumbel_sigmoid: tau must be finite and above 0 (0 only with hard=True), got another value"};
constexpr Fault kSigmoidGradientTau{
    Fault::value, "gumbel_sigmoid_backward: tau must be finite and above 0 (0 only with hard=True), got another value"};

// Writes into the caller's tensor, or into a fresh one.
Tensor write_gumbel_sigmoid(const Tensor& logits, const Tensor& tau, const Tensor& key, bool hard, int64_t start,
                            std::optional<bool> validate, const std::optional<Tensor>& own) {
  constexpr const char* op = "gumbel_sigmoid";
  check_floating(op, "logits", logits);
  const Call call(logits, validate);
  const TauArgument t(op, tau, hard, logits, call.report(kSigmoidTau));
  const NoiseArgument noise{KeyArgument(op, key, logits), static_cast<uint64_t>(start), true};
  check_start(op, start);
  const Tensor out = own ? *own : call.empty(sizes(logits), logits.scalar_type());
  const int64_t n = logits.numel();
  if (n == 0) return out;
  const Tensor x = torch::stable::contiguous(logits);
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    call.launch(gate_kernel<T>, grid_size(n / 4 + 1, kBlock), kBlock, static_cast<const T*>(x.data_ptr()), n, noise, t,
                hard, call.report(kSigmoidPlusInf), static_cast<T*>(out.data_ptr()));
  });
  call.finish();
  return out;
}

Tensor gumbel_sigmoid(Tensor logits, Tensor tau, Tensor key, bool hard, int64_t start, std::optional<bool> validate) {
  return write_gumbel_sigmoid(logits, tau, key, hard, start, validate, std::nullopt);
}

void gumbel_sigmoid_out(Tensor logits, Tensor tau, Tensor key, bool hard, int64_t start, std::optional<bool> validate,
                        Tensor out) {
  check_samples_out("gumbel_sigmoid", out, logits);
  write_gumbel_sigmoid(logits, tau, key, hard, start, validate, out);
}

Tensor gumbel_sigmoid_backward(Tensor grad, Tensor logits, Tensor tau, Tensor key, int64_t start) {
  constexpr const char* op = "gumbel_sigmoid_backward";
  check_gradient(op, grad, "logits", logits);
  const Call call(logits);
  const TauArgument t(op, tau, true, logits, call.report(kSigmoidGradientTau));
  const NoiseArgument noise{KeyArgument(op, key, logits), static_cast<uint64_t>(start), true};
  Tensor out = call.empty(sizes(logits), logits.scalar_type());
  const int64_t n = logits.numel();
  if (n == 0) return out;
  const Tensor grad_c = torch::stable::contiguous(grad), x = torch::stable::contiguous(logits);
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    call.launch(gate_gradient_kernel<T>, grid_size(n / 4 + 1, kBlock), kBlock, static_cast<const T*>(grad_c.data_ptr()),
                static_cast<const T*>(x.data_ptr()), n, noise, t, static_cast<T*>(out.data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("gumbel_sigmoid", PYSEL_OP(&pysel::gumbel_sigmoid));
  m.impl("gumbel_sigmoid.out", PYSEL_OP(&pysel::gumbel_sigmoid_out));
  m.impl("gumbel_sigmoid_backward", PYSEL_OP(&pysel::gumbel_sigmoid_backward));
}
