// The gradient of soft Gumbel-softmax samples: y (grad - sum(grad y)) / tau, by row.
#include "common/op.h"

#include "cuda/gumbel.cuh"

namespace pysel {
namespace {

constexpr unsigned kMostThreads = 512;
template <typename A>
constexpr int kMostQuads = sizeof(A) == 4 ? 16 : 4;  // that a thread holds

// Division by tau. A multiplication, of one instruction instead of 14, where it gives the same: by a power of two.
template <typename A>
class Quotient {
 public:
  __device__ explicit Quotient(A divisor) : divisor_(divisor), reciprocal_(A{1} / divisor) {
    using F = Float<A>;
    const auto mantissa = pysel::bit_cast<typename F::Bits>(divisor) & ((typename F::Bits{1} << F::kMantissa) - 1);
    exact_ = mantissa == 0 && reciprocal_ >= F::kSmallestNormal;
  }

  __device__ void divide(A (&v)[4]) const {
    if (exact_)
      for (int i = 0; i < 4; ++i) v[i] = v[i] * reciprocal_;
    else
      for (int i = 0; i < 4; ++i) v[i] = v[i] / divisor_;
  }

 private:
  A divisor_, reciprocal_;
  bool exact_;
};

// y (grad - mean) / tau, in place of grad.
template <typename A>
__device__ void gradient(A (&g)[4], const A (&y)[4], A mean, double tau, const Quotient<A>& t) {
  for (int i = 0; i < 4; ++i) g[i] = y[i] * (g[i] - mean);
  t.divide(g);
  for (int i = 0; i < 4; ++i) g[i] = tau == 0 ? A{0} : g[i];  // the limit is a step
}

// A row's threads keep its grad in registers, so that only y is read again, and soon enough to be in the L2 cache
// still.
template <typename T, int kHeld>
__global__ void __launch_bounds__(kMostThreads)
    softmax_gradient_kernel(const T* __restrict__ grad,  // [rows, width]
                            const T* __restrict__ y,     // [rows, width]
                            Shape shape, NoiseArgument none, TauArgument tau,
                            T* __restrict__ out) {  // [rows, width]
  using A = Compute<T>;
  struct GradientSlots {
    A sum[2][kWarp];
  };
  GradientSlots& slots = shared<GradientSlots>();
  const Group group(shape.group);
  const double given = tau.read();
  const Quotient<A> t(divisor<A>(given));
  const unsigned together = blockDim.x / shape.group;
  int turn = 0;
  for (std::int64_t base = std::int64_t{blockIdx.x} * together; base < shape.rows;
       base += std::int64_t{gridDim.x} * together) {
    const std::int64_t r = base + threadIdx.x / shape.group, at = r * shape.width;
    const Row row(none, at, r < shape.rows ? shape.width : 0);
    A g[kHeld][4], p[4], sum[4] = {};
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int64_t quad = group.member() + j * std::int64_t{shape.group};
      if (quad >= row.quads()) continue;
      row.load(grad + at, quad, A{0}, g[j]);
      row.load(y + at, quad, A{0}, p);
      for (int i = 0; i < 4; ++i) sum[i] += g[j][i] * p[i];
    }
    const A mean = group.reduce((sum[0] + sum[2]) + (sum[1] + sum[3]), A{0}, slots.sum[turn], Sum());
    turn ^= 1;  // a warp may be a row ahead of another
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int64_t quad = group.member() + j * std::int64_t{shape.group};
      if (quad >= row.quads()) continue;
      row.load(y + at, quad, A{0}, p);
      gradient(g[j], p, mean, given, t);
      row.store(out + at, quad, g[j]);
    }
  }
}

// --- rows in parts ---

constexpr std::int64_t kBackwardPart = 1 << 15;  // elements

template <typename T>
__global__ void __launch_bounds__(kBlock)
    dot_parts_kernel(const T* __restrict__ grad,  // [rows, width]
                     const T* __restrict__ y,     // [rows, width]
                     std::int64_t rows, std::int64_t width, std::int64_t parts_of_row, NoiseArgument none,
                     Compute<T>* __restrict__ sums) {  // [rows, parts]
  using A = Compute<T>;
  struct DotSlots {
    A sum[2][kWarp];
  };
  DotSlots& slots = shared<DotSlots>();
  const Group group(kBlock);
  int turn = 0;
  for (std::int64_t p = blockIdx.x; p < rows * parts_of_row; p += gridDim.x) {
    const std::int64_t begin = p % parts_of_row * kBackwardPart, at = p / parts_of_row * width + begin;
    const Row row(none, at, min(kBackwardPart, width - begin));
    A g[4], y4[4], sum[4] = {};
    for (std::int64_t quad = threadIdx.x; quad < row.quads(); quad += kBlock) {
      row.load(grad + at, quad, A{0}, g);
      row.load(y + at, quad, A{0}, y4);
      for (int i = 0; i < 4; ++i) sum[i] += g[i] * y4[i];
    }
    const A all = group.reduce((sum[0] + sum[2]) + (sum[1] + sum[3]), A{0}, slots.sum[turn], Sum());
    turn ^= 1;
    if (threadIdx.x == 0) sums[p] = all;
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    gradient_parts_kernel(const T* __restrict__ grad,  // [rows, width]
                          const T* __restrict__ y,     // [rows, width]
                          std::int64_t rows, std::int64_t width, std::int64_t parts_of_row, NoiseArgument none,
                          const Compute<T>* __restrict__ sums,  // [rows, parts]
                          TauArgument tau,
                          T* __restrict__ out) {  // [rows, width]
  struct MeanSlots {
    double sum[2][kWarp];
  };
  using A = Compute<T>;
  MeanSlots& slots = shared<MeanSlots>();
  const Group group(kBlock);
  const double given = tau.read();
  const Quotient<A> t(divisor<A>(given));
  int turn = 0;
  for (std::int64_t p = blockIdx.x; p < rows * parts_of_row; p += gridDim.x) {
    const std::int64_t r = p / parts_of_row, begin = p % parts_of_row * kBackwardPart, at = r * width + begin;
    double mine = 0;
    for (std::int64_t q = threadIdx.x; q < parts_of_row; q += kBlock)
      mine += static_cast<double>(sums[r * parts_of_row + q]);
    const double mean = group.reduce(mine, 0.0, slots.sum[turn], Sum());
    turn ^= 1;
    const Row row(none, at, min(kBackwardPart, width - begin));
    A g[4], y4[4];
    for (std::int64_t quad = threadIdx.x; quad < row.quads(); quad += kBlock) {
      row.load(grad + at, quad, A{0}, g);
      row.load(y + at, quad, A{0}, y4);
      gradient(g, y4, static_cast<A>(mean), given, t);
      row.store(out + at, quad, g);
    }
  }
}

// --- op ---

constexpr Fault kSoftmaxGradientTau{
    Fault::value, "gumbel_softmax_backward: tau must be finite and above 0 (0 only with hard=True), got another value"};

Tensor gumbel_softmax_backward(Tensor grad, Tensor y, Tensor tau, int64_t dim) {
  constexpr const char* op = "gumbel_softmax_backward";
  check_gradient(op, grad, "y", y);
  const Layout layout(op, y, dim);
  const Call call(y);
  const TauArgument t(op, tau, true, y, call.report(kSoftmaxGradientTau));
  if (y.numel() == 0) return call.empty(sizes(y), y.scalar_type());
  const int64_t rows = layout.outer * layout.inner, width = layout.width;
  Tensor g = torch::stable::contiguous(grad), p = torch::stable::contiguous(y);
  if (layout.inner > 1) {
    g = transposed(g, layout.outer, width, layout.inner);
    p = transposed(p, layout.outer, width, layout.inner);
  }
  Tensor out = call.empty(sizes(y), y.scalar_type());
  const NoiseArgument none{KeyArgument{}, 0, false};
  dispatch_floating(op, "y", y, [&]<typename T>() {
    using A = Compute<T>;
    const T *from = static_cast<const T*>(g.data_ptr()), *soft = static_cast<const T*>(p.data_ptr());
    T* to = static_cast<T*>(out.data_ptr());
    const std::int64_t quads = most_quads(rows, width, none);
    const Shape shape(rows, width, quads, kMostQuads<A>, kMostThreads);
    if (quads <= std::int64_t{kMostQuads<A>} * shape.group) {
      const auto kernel =
          quads <= shape.group ? softmax_gradient_kernel<T, 1> : softmax_gradient_kernel<T, kMostQuads<A>>;
      return call.launch(kernel, shape.grid(), shape.block, from, soft, shape, none, t, to);
    }
    const std::int64_t parts = (width - 1) / kBackwardPart + 1;
    const auto room = call.room<A>(rows * parts);
    A* sums = room.data();
    call.launch(dot_parts_kernel<T>, grid_size(rows * parts, 1), kBlock, from, soft, rows, width, parts, none, sums);
    call.launch(gradient_parts_kernel<T>, grid_size(rows * parts, 1), kBlock, from, soft, rows, width, parts, none,
                sums, t, to);
  });
  if (layout.inner == 1) return out;
  const std::vector<int64_t> size = sizes(y);
  return torch::stable::view(transposed(out, layout.outer, layout.inner, width), {size.data(), size.size()});
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) { m.impl("gumbel_softmax_backward", PYSEL_OP(&pysel::gumbel_softmax_backward)); }
