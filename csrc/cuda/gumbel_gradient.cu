// The gradient of soft Gumbel-softmax samples: y (grad - sum(grad y)) / tau, by row.
#include "common/op.h"

#include "cuda/gumbel.cuh"

namespace pysel {
namespace {

constexpr unsigned kMostThreads = 512;
constexpr std::int64_t kBackwardPart = 1 << 15;  // elements of a part of a long row

// grad * y, summed over each row, or over each part of a longer one.
template <typename T>
__device__ Compute<T> dot(const Row& row, const T* grad, const T* y, unsigned member, unsigned group) {
  using A = Compute<T>;
  A sum[4] = {};
  for (std::int64_t quad = member; quad < row.quads(); quad += group) {
    A g[4], p[4];
    row.load(grad, quad, A{0}, g);
    row.load(y, quad, A{0}, p);
    for (int i = 0; i < 4; ++i) sum[i] += g[i] * p[i];
  }
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

template <typename T>
__device__ void write_gradient(const Row& row, const T* grad, const T* y, unsigned member, unsigned group,
                               Compute<T> mean, double tau, T* out) {
  using A = Compute<T>;
  const A t = divisor<A>(tau);
  for (std::int64_t quad = member; quad < row.quads(); quad += group) {
    A g[4], p[4];
    row.load(grad, quad, A{0}, g);
    row.load(y, quad, A{0}, p);
    for (int i = 0; i < 4; ++i) g[i] = tau == 0 ? A{0} : p[i] * (g[i] - mean) / t;  // the limit is a step
    row.store(out, quad, g);
  }
}

template <typename T>
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
  const double t = tau.read();
  const unsigned together = blockDim.x / shape.group;
  int turn = 0;
  for (std::int64_t base = std::int64_t{blockIdx.x} * together; base < shape.rows;
       base += std::int64_t{gridDim.x} * together) {
    const std::int64_t r = base + threadIdx.x / shape.group, at = r * shape.width;
    const Row row(none, at, r < shape.rows ? shape.width : 0);
    const A mine = dot(row, grad + at, y + at, group.member(), shape.group);
    const A mean = group.reduce(mine, A{0}, slots.sum[turn], Sum());
    turn ^= 1;  // a warp may be a row ahead of another
    write_gradient(row, grad + at, y + at, group.member(), shape.group, mean, t, out + at);
  }
}

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
    const A sum = group.reduce(dot(row, grad + at, y + at, threadIdx.x, kBlock), A{0}, slots.sum[turn], Sum());
    turn ^= 1;
    if (threadIdx.x == 0) sums[p] = sum;
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
  MeanSlots& slots = shared<MeanSlots>();
  const Group group(kBlock);
  const double t = tau.read();
  int turn = 0;
  for (std::int64_t p = blockIdx.x; p < rows * parts_of_row; p += gridDim.x) {
    const std::int64_t r = p / parts_of_row, begin = p % parts_of_row * kBackwardPart, at = r * width + begin;
    double mine = 0;
    for (std::int64_t q = threadIdx.x; q < parts_of_row; q += kBlock)
      mine += static_cast<double>(sums[r * parts_of_row + q]);
    const double mean = group.reduce(mine, 0.0, slots.sum[turn], Sum());
    turn ^= 1;
    const Row row(none, at, min(kBackwardPart, width - begin));
    write_gradient(row, grad + at, y + at, threadIdx.x, kBlock, static_cast<Compute<T>>(mean), t, out + at);
  }
}

// --- op ---

constexpr Fault kSoftmaxGradientTau{
    Fault::value, "gumbel_softmax_backward: tau must be finite and above 0 (0 only with hard=True), got another value"};

Tensor gumbel_softmax_backward(Tensor grad, Tensor y, Tensor tau, int64_t dim) {
  constexpr const char* op = "gumbel_softmax_backward";
  check_floating(op, "y", y);
  const Layout layout(op, y, dim);
  check_value(sizes(grad) == sizes(y), op, ": grad must have the shape of y, ", shape(y), ", got ", shape(grad));
  check_same_dtype(op, "y", y, "grad", grad);
  check_device(op, "grad", grad, y);
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
    const Shape shape(rows, width, most_quads(rows, width, none), 4, kMostThreads);
    const int64_t parts = width <= 2 * kBackwardPart ? 1 : (width - 1) / kBackwardPart + 1;
    if (parts == 1)
      return call.launch(softmax_gradient_kernel<T>, shape.grid(), shape.block, from, soft, shape, none, t, to);
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
