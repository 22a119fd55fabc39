// Fused Gumbel-softmax, its two-class case and the categorical draw (Jang et al., arXiv 1611.01144; Maddison et al.,
// arXiv 1611.00712).
//
// Threads share a row and keep its perturbed logits in registers, so that logits are read once, noise is made once and
// the sample is written once. Rows too long for that go in parts, three times, and make the noise anew: for the row's
// maximum, for the sum of its exponentials, and for the sample. At tau = 1 exponentials are made of logits without
// noise and of exponential variates: see exp_over(). Where dim is not the last, logits and exponential variates are
// transposed first.
#include "common/op.h"

#include <cmath>
#include <type_traits>

#include "common/gumbel.h"
#include "cuda/rows.cuh"

namespace pysel {
namespace {

constexpr unsigned kBlock = 256;

template <typename A>
PYSEL_HD A infinity() {
  return static_cast<A>(__builtin_inf());
}

template <typename A>
PYSEL_HD A not_a_number() {
  return static_cast<A>(__builtin_nan(""));
}

// A temperature that lies on the device, or whose value the host has read and checked.
struct TauArgument {
  const void* pointer = nullptr;
  ScalarType type;
  double value = 0;
  bool zero_allowed;
  Report bad;

  TauArgument(const char* op, const Tensor& tau, bool zero_allowed, const Tensor& input, Report bad)
      : type(tau.scalar_type()), zero_allowed(zero_allowed), bad(bad) {
    if (on_host(tau)) {
      value = read_tau(op, tau, zero_allowed);
    } else {
      check_tau(op, tau);
      check_device(op, "tau", tau, input);
      pointer = tau.data_ptr();
    }
  }

  // NaN in place of a value that must be refused.
  __device__ double read() const {
    if (pointer == nullptr) return value;
    const double tau = type == ScalarType::Double  ? *static_cast<const double*>(pointer)
                       : type == ScalarType::Float ? static_cast<double>(*static_cast<const float*>(pointer))
                       : type == ScalarType::Half  ? static_cast<double>(*static_cast<const Half*>(pointer))
                                                   : static_cast<double>(*static_cast<const BFloat16*>(pointer));
    if (tau_permitted(tau, zero_allowed)) return tau;
    if (bad && thread_in_grid() == 0) bad();
    return not_a_number<double>();
  }
};

struct Largest {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return b > a ? b : a;  // never NaN where neither argument is
  }
};

struct Sum {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
  template <typename A>
  __device__ WideSum<A> operator()(WideSum<A> a, WideSum<A> b) const {
    a.add(b);
    return a;
  }
};

// Logits that a row must not have.
struct LogitReports {
  Report plus_inf;
  Report only_minus_inf;

  // Whether a row is permitted, by the largest of its perturbed logits, NaN apart. The warp calls it together; the
  // lanes that speak for a row report.
  template <typename A>
  __device__ bool permit(A max, bool nan, bool speaks) const {
    const bool checked = speaks && plus_inf;
    const bool plus = checked && max == infinity<A>(), minus = checked && max == -infinity<A>() && !nan;
    plus_inf.of_warp(plus);
    only_minus_inf.of_warp(minus);
    return !plus && !minus;
  }
};

// --- soft ---

// The longest row that threads keep in registers: kMostThreads of them, kMostQuads quads each. More threads would have
// fewer registers than that takes.
constexpr unsigned kMostThreads = 512;
constexpr int kQuads = 8;  // usually
template <typename A>
constexpr int kMostQuads = sizeof(A) == 4 ? 2 * kQuads : kQuads;

// x + g, where g is the Gumbel noise of exponential variates.
template <typename A>
__device__ void perturb(const Row& row, std::int64_t quad, A (&z)[4]) {
  A e[4];
  row.exponentials(quad, e);
  for (int i = 0; i < 4; ++i) z[i] = z[i] - log_normal(e[i]);
}

// A thread's share of a row's logits: quads member, member + group, ...
template <typename A, int kHeld, bool kOne>
struct Share {
  A z[kHeld][4];

  // Logits, to which noise is added if tau is not 1.
  template <typename T>
  __device__ void load(const Row& row, const T* x, std::int64_t first_quad, std::int64_t quads, unsigned group) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int64_t quad = first_quad + j * std::int64_t{group};
      if (quad < quads) {
        row.load(x, quad, -infinity<A>(), z[j]);
        if constexpr (!kOne) perturb(row, quad, z[j]);
      } else {
        for (int i = 0; i < 4; ++i) z[j][i] = -infinity<A>();
      }
    }
  }

  __device__ A max(bool& nan) const {
    A most = -infinity<A>();
    nan = false;
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      for (int i = 0; i < 4; ++i) {
        most = Largest()(most, z[j][i]);
        nan |= z[j][i] != z[j][i];
      }
    return most;
  }

  // z = exp((z - max) / tau), or what exp_over() makes of it
  __device__ void exponentiate(const Row& row, std::int64_t first_quad, std::int64_t quads, unsigned group, A max,
                               A tau) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int64_t quad = first_quad + j * std::int64_t{group};
      if constexpr (kOne) {
        A e[4] = {1, 1, 1, 1};
        if (quad < quads) row.exponentials(quad, e);
        for (int i = 0; i < 4; ++i) z[j][i] = exp_over(z[j][i] - max, e[i]);
      } else {
        for (int i = 0; i < 4; ++i) z[j][i] = exp_nonpositive((z[j][i] - max) / tau);
      }
    }
  }

  // z over its row's sum; a division, at tau = 1, so that what is certain comes out as 1
  __device__ void normalise(A sum) {
    const A factor = A{1} / sum;
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      for (int i = 0; i < 4; ++i) z[j][i] = kOne ? z[j][i] / sum : z[j][i] * factor;
  }

  __device__ WideSum<A> sum() const {
    WideSum<A> sum{};
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      for (int i = 0; i < 4; ++i) sum.add(static_cast<double>(z[j][i]));
    return sum;
  }
};

// Kernels with kOne are for tau = 1, and those without for the rest; the others return at once.
// x and out may be the same memory: a row is written by those who have read it, after all of them have.
template <typename T, int kHeld, bool kOne>
__global__ void __launch_bounds__(kMostThreads)
    softmax_kernel(const T* x,  // [rows, width]
                   Shape shape, NoiseArgument noise, TauArgument tau, LogitReports reports,
                   T* out) {  // [rows, width]
  using A = Compute<T>;
  struct Slots {
    A max[kWarp];
    WideSum<A> sum[kWarp];
  };
  Slots& slots = shared<Slots>();
  const Group group(shape.group);
  const A t = divisor<A>(tau.read());
  if ((t == A{1}) != kOne) return;
  const unsigned together = blockDim.x / shape.group;
  for (std::int64_t base = std::int64_t{blockIdx.x} * together; base < shape.rows;
       base += std::int64_t{gridDim.x} * together) {
    const std::int64_t r = base + threadIdx.x / shape.group;
    const bool mine = r < shape.rows;
    const Row row(noise, r * shape.width, shape.width);
    const std::int64_t quads = mine ? row.quads() : 0;

    Share<A, kHeld, kOne> share;
    share.load(row, x + r * shape.width, group.member(), quads, shape.group);
    bool nan;
    const A max = group.reduce(share.max(nan), -infinity<A>(), slots.max, Largest());
    nan = group.any(nan);
    reports.permit(max, nan, mine && group.member() == 0);
    // NaN throughout if the row must be refused: from inf - inf, or from -inf - -inf
    share.exponentiate(row, group.member(), quads, shape.group, max, t);
    const WideSum<A> sum = group.reduce(share.sum(), WideSum<A>(), slots.sum, Sum());
    share.normalise(static_cast<A>(sum.value()));

#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int64_t quad = group.member() + j * std::int64_t{shape.group};
      if (quad < quads) row.store(out + r * shape.width, quad, share.z[j]);
    }
  }
}

// Of a row, or of a part of one.
template <typename A>
struct Part {
  A max;           // of its logits, perturbed or not
  bool nan;        // whether one is NaN
  WideSum<A> sum;  // of exp((z - max) / tau), with the row's maximum
  A rounded_sum;   // a row's alone
};

constexpr int kPartQuads = 4;
constexpr std::int64_t kPart = std::int64_t{kBlock} * kPartQuads;  // quads of a part

// A block takes a part; parts of a row follow each other.
struct Parts {
  std::int64_t rows, width, parts;

  Parts(std::int64_t rows, std::int64_t width, std::int64_t quads)
      : rows(rows), width(width), parts((quads - 1) / kPart + 1) {}
  unsigned grid() const { return grid_size(rows * parts, 1); }
};

template <typename T, bool kOne>
__global__ void __launch_bounds__(kBlock) max_parts_kernel(const T* __restrict__ x,  // [rows, width]
                                                           Parts shape, NoiseArgument noise, TauArgument tau,
                                                           Part<Compute<T>>* __restrict__ parts) {  // [rows, parts]
  using A = Compute<T>;
  struct MaxSlots {
    A max[2][kWarp];
  };
  MaxSlots& slots = shared<MaxSlots>();
  const Group group(kBlock);
  const A t = divisor<A>(tau.read());
  if ((t == A{1}) != kOne) return;
  int turn = 0;
  for (std::int64_t p = blockIdx.x; p < shape.rows * shape.parts; p += gridDim.x) {
    const std::int64_t r = p / shape.parts;
    const Row row(noise, r * shape.width, shape.width);
    Share<A, kPartQuads, kOne> share;
    share.load(row, x + r * shape.width, p % shape.parts * kPart + threadIdx.x, row.quads(), kBlock);
    bool nan;
    const A max = group.reduce(share.max(nan), -infinity<A>(), slots.max[turn], Largest());
    turn ^= 1;
    nan = group.any(nan);
    if (threadIdx.x == 0) parts[p] = {max, nan, {}, 0};
  }
}

template <typename A>
__global__ void __launch_bounds__(kBlock) max_rows_kernel(Parts shape, LogitReports reports,
                                                          const Part<A>* __restrict__ parts,  // [rows, parts]
                                                          Part<A>* __restrict__ total) {      // [rows]
  struct MaxSlots {
    A max[2][kWarp];
  };
  MaxSlots& slots = shared<MaxSlots>();
  const Group group(kBlock);
  int turn = 0;
  for (std::int64_t r = blockIdx.x; r < shape.rows; r += gridDim.x) {
    A max = -infinity<A>();
    bool nan = false;
    for (std::int64_t p = threadIdx.x; p < shape.parts; p += kBlock) {
      max = Largest()(max, parts[r * shape.parts + p].max);
      nan |= parts[r * shape.parts + p].nan;
    }
    max = group.reduce(max, -infinity<A>(), slots.max[turn], Largest());
    turn ^= 1;
    nan = group.any(nan);
    reports.permit(max, nan, threadIdx.x == 0);
    if (threadIdx.x == 0) total[r].max = max;
  }
}

template <typename T, bool kOne>
__global__ void __launch_bounds__(kBlock) sum_parts_kernel(const T* __restrict__ x,  // [rows, width]
                                                           Parts shape, NoiseArgument noise, TauArgument tau,
                                                           const Part<Compute<T>>* __restrict__ total,  // [rows]
                                                           Part<Compute<T>>* __restrict__ parts) {      // [rows, parts]
  using A = Compute<T>;
  struct SumSlots {
    WideSum<A> sum[2][kWarp];
  };
  SumSlots& slots = shared<SumSlots>();
  const Group group(kBlock);
  const A t = divisor<A>(tau.read());
  if ((t == A{1}) != kOne) return;
  int turn = 0;
  for (std::int64_t p = blockIdx.x; p < shape.rows * shape.parts; p += gridDim.x) {
    const std::int64_t r = p / shape.parts;
    const Row row(noise, r * shape.width, shape.width);
    Share<A, kPartQuads, kOne> share;
    const std::int64_t first = p % shape.parts * kPart + threadIdx.x;
    share.load(row, x + r * shape.width, first, row.quads(), kBlock);
    share.exponentiate(row, first, row.quads(), kBlock, total[r].max, t);
    const WideSum<A> sum = group.reduce(share.sum(), WideSum<A>(), slots.sum[turn], Sum());
    turn ^= 1;
    if (threadIdx.x == 0) parts[p].sum = sum;
  }
}

template <typename A>
__global__ void __launch_bounds__(kBlock) sum_rows_kernel(Parts shape,
                                                          const Part<A>* __restrict__ parts,  // [rows, parts]
                                                          Part<A>* __restrict__ total) {      // [rows]
  struct SumSlots {
    WideSum<A> sum[2][kWarp];
  };
  SumSlots& slots = shared<SumSlots>();
  const Group group(kBlock);
  int turn = 0;
  for (std::int64_t r = blockIdx.x; r < shape.rows; r += gridDim.x) {
    WideSum<A> sum{};
    for (std::int64_t p = threadIdx.x; p < shape.parts; p += kBlock) sum.add(parts[r * shape.parts + p].sum);
    sum = group.reduce(sum, WideSum<A>(), slots.sum[turn], Sum());
    turn ^= 1;
    if (threadIdx.x == 0) total[r].rounded_sum = static_cast<A>(sum.value());
  }
}

// x and out may be the same memory: each element is read by the thread that writes it.
template <typename T, bool kOne>
__global__ void __launch_bounds__(kBlock) softmax_write_kernel(const T* x,  // [rows, width]
                                                               Parts shape, NoiseArgument noise, TauArgument tau,
                                                               const Part<Compute<T>>* __restrict__ total,  // [rows]
                                                               T* out) {  // [rows, width]
  using A = Compute<T>;
  const A t = divisor<A>(tau.read());
  if ((t == A{1}) != kOne) return;
  for (std::int64_t p = blockIdx.x; p < shape.rows * shape.parts; p += gridDim.x) {
    const std::int64_t r = p / shape.parts;
    const Row row(noise, r * shape.width, shape.width);
    Share<A, kPartQuads, kOne> share;
    const std::int64_t first = p % shape.parts * kPart + threadIdx.x;
    share.load(row, x + r * shape.width, first, row.quads(), kBlock);
    share.exponentiate(row, first, row.quads(), kBlock, total[r].max, t);
    share.normalise(total[r].rounded_sum);
#pragma unroll
    for (int j = 0; j < kPartQuads; ++j) {
      const std::int64_t quad = first + j * std::int64_t{kBlock};
      if (quad < row.quads()) row.store(out + r * shape.width, quad, share.z[j]);
    }
  }
}

// --- argmax ---

// An element that may be the largest. NaN is larger than all; of equal ones the first counts.
template <typename A>
struct Candidate {
  A z;
  std::int64_t at;

  __device__ bool loses_to(const Candidate& other) const {
    const bool nan = z != z, other_nan = other.z != other.z;
    if (nan || other_nan) return other_nan && (!nan || other.at < at);
    return other.z > z || (other.z == z && other.at < at);
  }
  __device__ static Candidate none() { return {-infinity<A>(), INT64_MAX}; }
};

template <typename A>
__device__ Candidate<A> shuffle_xor(const Candidate<A>& c, unsigned offset) {
  return {pysel::shuffle_xor(c.z, offset), pysel::shuffle_xor(c.at, offset)};
}

struct Better {
  template <typename A>
  __device__ Candidate<A> operator()(const Candidate<A>& a, const Candidate<A>& b) const {
    return a.loses_to(b) ? b : a;
  }
};

// The index that a row's winner stands for: -1 if the row must be refused, or is NaN and `nan_is_none`. See permit().
template <typename A>
__device__ std::int64_t index_of(const Candidate<A>& winner, const LogitReports& reports, bool nan_is_none,
                                 bool speaks) {
  const bool nan = winner.z != winner.z, permitted = reports.permit(winner.z, nan, speaks);
  return !permitted || (nan && nan_is_none) ? -1 : winner.at;
}

constexpr std::int64_t kArgmaxPart = 1 << 16;  // elements that a group goes through one quad after the other

// Rows, or parts of kArgmaxPart elements of longer ones; then winners go to `parts`, else their indices to `out`.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    argmax_kernel(const T* __restrict__ x,  // [rows, width]
                  Shape shape, std::int64_t parts_of_row, NoiseArgument noise, LogitReports reports, bool nan_is_none,
                  Candidate<Compute<T>>* __restrict__ parts,  // [rows, parts]
                  std::int64_t* __restrict__ out) {           // [rows]
  using A = Compute<T>;
  struct ArgmaxSlots {
    Candidate<A> best[2][kWarp];
  };
  ArgmaxSlots& slots = shared<ArgmaxSlots>();
  const Group group(shape.group);
  const unsigned together = blockDim.x / shape.group;
  const std::int64_t all = shape.rows * parts_of_row;
  int turn = 0;
  for (std::int64_t base = std::int64_t{blockIdx.x} * together; base < all;
       base += std::int64_t{gridDim.x} * together) {
    const std::int64_t p = base + threadIdx.x / shape.group;
    const std::int64_t r = p / parts_of_row, begin = p % parts_of_row * kArgmaxPart;
    const std::int64_t size = p >= all ? 0 : parts_of_row == 1 ? shape.width : min(kArgmaxPart, shape.width - begin);
    const Row row(noise, r * shape.width + begin, size);
    Candidate<A> best = Candidate<A>::none();
    for (std::int64_t quad = group.member(); quad < row.quads(); quad += shape.group) {
      A z[4];
      row.load(x + r * shape.width + begin, quad, -infinity<A>(), z);
      perturb(row, quad, z);
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = row.begin(quad) + i;
        const Candidate<A> element{z[i], begin + at};
        if (row.holds(at) && best.loses_to(element)) best = element;
      }
    }
    best = group.reduce(best, Candidate<A>::none(), slots.best[turn], Better());
    turn ^= 1;  // a warp may be a row ahead of another
    const bool speaks = p < all && group.member() == 0;
    if (parts != nullptr) {
      if (speaks) parts[p] = best;
      continue;
    }
    const std::int64_t index = index_of(best, reports, nan_is_none, speaks);
    if (speaks) out[r] = index;
  }
}

// The best of each row's parts; a warp takes a row.
template <typename A>
__global__ void __launch_bounds__(kBlock)
    argmax_total_kernel(const Candidate<A>* __restrict__ parts,  // [rows, parts]
                        std::int64_t rows, std::int64_t parts_of_row, LogitReports reports, bool nan_is_none,
                        std::int64_t* __restrict__ out) {  // [rows]
  const Group group(kWarp);
  for (std::int64_t base = std::int64_t{blockIdx.x} * (kBlock / kWarp); base < rows;
       base += std::int64_t{gridDim.x} * (kBlock / kWarp)) {
    const std::int64_t r = base + threadIdx.x / kWarp;
    Candidate<A> best = Candidate<A>::none();
    for (std::int64_t p = group.member(); r < rows && p < parts_of_row; p += kWarp)
      best = Better()(best, parts[r * parts_of_row + p]);
    best = group.reduce(best, Candidate<A>::none(), static_cast<Candidate<A>*>(nullptr), Better());
    const bool speaks = r < rows && group.member() == 0;
    const std::int64_t index = index_of(best, reports, nan_is_none, speaks);
    if (speaks) out[r] = index;
  }
}

// A row of zeros with a one; of NaN where there is no index or tau is not permitted.
template <typename T>
__global__ void __launch_bounds__(kBlock) one_hot_kernel(const std::int64_t* __restrict__ index,  // [rows]
                                                         std::int64_t rows, std::int64_t width, TauArgument tau,
                                                         T* __restrict__ out) {  // [rows, width]
  const double t = tau.read();
  for (std::int64_t i = thread_in_grid(); i < rows * width; i += threads_in_grid()) {
    const std::int64_t at = index[i / width];
    const bool none = at < 0 || t != t;
    out[i] = static_cast<T>(none ? not_a_number<float>() : i % width == at ? 1.0f : 0.0f);
  }
}

// --- backward ---

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

// --- one vector ---

// Exponential variates of a whole tensor in logical order, for rows that are not contiguous.
template <typename A>
__global__ void __launch_bounds__(kBlock) exponential_kernel(std::int64_t n, NoiseArgument noise,
                                                             A* __restrict__ out) {  // [n]
  const Row all(noise, 0, n);
  for (std::int64_t quad = thread_in_grid(); quad < all.quads(); quad += threads_in_grid()) {
    A e[4];
    all.exponentials(quad, e);
    all.store(out, quad, e);
  }
}

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

// --- launches ---

// [outer, width, inner] -> [outer, inner, width], or back: in memory, not as a view.
Tensor transposed(const Tensor& t, std::int64_t outer, std::int64_t rows, std::int64_t columns) {
  const std::vector<std::int64_t> size{outer, rows, columns};
  const Tensor view = torch::stable::view(t, {size.data(), size.size()});
  return torch::stable::contiguous(torch::stable::transpose(view, 1, 2));
}

// f.template operator()<T>(rows, noise) of logits along the last dim: those given, or, where dim is another one, copies
// that are transposed as their exponential variates are.
template <typename F>
void with_rows(const Call& call, const char* op, const Tensor& logits, const Layout& layout, const NoiseArgument& noise,
               const F& f) {
  const Tensor x = torch::stable::contiguous(logits);
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    if (layout.inner == 1) return f.template operator()<T>(x, noise);
    using A = Compute<T>;
    const std::int64_t n = logits.numel();
    Tensor e = call.empty({n}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
    call.launch(exponential_kernel<A>, grid_size(n / 4 + 1, kBlock), kBlock, n, noise, static_cast<A*>(e.data_ptr()));
    e = transposed(e, layout.outer, layout.width, layout.inner);
    f.template operator()<T>(transposed(x, layout.outer, layout.width, layout.inner),
                             NoiseArgument{noise.key, 0, false, e.data_ptr()});
  });
}

// Samples of rows, in memory of the caller's.
template <typename T>
void soft_rows(const Call& call, const Tensor& x, std::int64_t rows, std::int64_t width, const NoiseArgument& noise,
               const TauArgument& tau, const LogitReports& reports, const Tensor& out) {
  using A = Compute<T>;
  const T* from = static_cast<const T*>(x.data_ptr());
  T* to = static_cast<T*>(out.data_ptr());
  const std::int64_t most = most_quads(rows, width, noise);
  const Shape shape(rows, width, most, kQuads, kMostThreads);
  // both kernels, if the host does not know tau
  const auto each_tau = [&](const auto& f) {
    const bool one = divisor<A>(tau.value) == A{1};
    if (tau.pointer != nullptr || one) f(std::true_type{});
    if (tau.pointer != nullptr || !one) f(std::false_type{});
  };
  const auto run = [&]<int kHeld>() {
    each_tau([&](auto one) {
      call.launch(softmax_kernel<T, kHeld, one.value>, shape.grid(), shape.block, from, shape, noise, tau, reports, to);
    });
  };
  if (most <= shape.group) return run.template operator()<1>();
  if (most <= std::int64_t{kQuads} * shape.group) return run.template operator()<kQuads>();
  if (most <= std::int64_t{kMostQuads<A>} * shape.group) return run.template operator()<kMostQuads<A>>();

  const Parts parts(rows, width, most);
  const auto room = call.room<Part<A>>(rows * parts.parts), row_room = call.room<Part<A>>(rows);
  Part<A>*part = room.data(), *total = row_room.data();
  each_tau([&](auto one) {
    call.launch(max_parts_kernel<T, one.value>, parts.grid(), kBlock, from, parts, noise, tau, part);
  });
  call.launch(max_rows_kernel<A>, grid_size(rows, 1), kBlock, parts, reports, part, total);
  each_tau([&](auto one) {
    call.launch(sum_parts_kernel<T, one.value>, parts.grid(), kBlock, from, parts, noise, tau, total, part);
  });
  call.launch(sum_rows_kernel<A>, grid_size(rows, 1), kBlock, parts, part, total);
  each_tau([&](auto one) {
    call.launch(softmax_write_kernel<T, one.value>, parts.grid(), kBlock, from, parts, noise, tau, total, to);
  });
}

template <typename T>
void argmax_rows(const Call& call, const Tensor& x, std::int64_t rows, std::int64_t width, const NoiseArgument& noise,
                 const LogitReports& reports, bool nan_is_none, std::int64_t* out) {
  using A = Compute<T>;
  const T* from = static_cast<const T*>(x.data_ptr());
  const Shape shape(rows, width, most_quads(rows, width, noise), 4, kBlock);
  const std::int64_t parts = width <= 2 * kArgmaxPart ? 1 : (width - 1) / kArgmaxPart + 1;
  if (parts == 1)
    return call.launch(argmax_kernel<T>, shape.grid(), shape.block, from, shape, parts, noise, reports, nan_is_none,
                       static_cast<Candidate<A>*>(nullptr), out);
  const auto room = call.room<Candidate<A>>(rows * parts);
  Candidate<A>* best = room.data();
  call.launch(argmax_kernel<T>, grid_size(rows * parts, 1), kBlock, from, shape, parts, noise, reports, nan_is_none,
              best, out);
  call.launch(argmax_total_kernel<A>, grid_size(rows, kBlock / kWarp), kBlock, best, rows, parts, reports, nan_is_none,
              out);
}

// --- ops ---

constexpr Fault kSoftmaxPlusInf{Fault::value, "gumbel_softmax: logits must be below +inf, got +inf"};
constexpr Fault kSoftmaxMinusInf{
    Fault::value, "gumbel_softmax: logits must have a finite value in every row, got a row of only -inf"};
constexpr Fault kSoftmaxTau{
    Fault::value, "gumbel_softmax: tau must be finite and above 0 (0 only with hard=True), got another value"};
constexpr Fault kArgmaxPlusInf{Fault::value, "gumbel_argmax: logits must be below +inf, got +inf"};
constexpr Fault kArgmaxMinusInf{Fault::value,
                                "gumbel_argmax: logits must have a finite value in every row, got a row of only -inf"};
constexpr Fault kSigmoidPlusInf{Fault::value, "gumbel_sigmoid: logits must be below +inf, got +inf"};
constexpr Fault kSigmoidTau{
    Fault::value, "gumbel_sigmoid: tau must be finite and above 0 (0 only with hard=True), got another value"};
constexpr Fault kSoftmaxGradientTau{
    Fault::value, "gumbel_softmax_backward: tau must be finite and above 0 (0 only with hard=True), got another value"};
constexpr Fault kSigmoidGradientTau{
    Fault::value, "gumbel_sigmoid_backward: tau must be finite and above 0 (0 only with hard=True), got another value"};

// Writes into the caller's tensor, or into a fresh one.
Tensor write_gumbel_softmax(const Tensor& logits, const Tensor& tau, const Tensor& key, int64_t dim, bool hard,
                            int64_t start, std::optional<bool> validate, const std::optional<Tensor>& own) {
  constexpr const char* op = "gumbel_softmax";
  check_floating(op, "logits", logits);
  const Call call(logits, validate);
  const Layout layout(op, logits, dim);
  const TauArgument t(op, tau, hard, logits, call.report(kSoftmaxTau));
  const NoiseArgument noise{KeyArgument(op, key, logits), static_cast<uint64_t>(start), true};
  check_start(op, start);
  Tensor out = own ? *own : call.empty(sizes(logits), logits.scalar_type());
  if (logits.numel() == 0) return out;
  const LogitReports reports{call.report(kSoftmaxPlusInf), call.report(kSoftmaxMinusInf)};
  const int64_t rows = layout.outer * layout.inner, width = layout.width;
  with_rows(call, op, logits, layout, noise, [&]<typename T>(const Tensor& x, const NoiseArgument& g) {
    Tensor y = layout.inner == 1 ? out : call.empty({rows * width}, out.scalar_type());
    if (hard) {
      const auto index = call.room<int64_t>(rows);
      int64_t* at = index.data();
      argmax_rows<T>(call, x, rows, width, g, reports, true, at);
      call.launch(one_hot_kernel<T>, grid_size(rows * width, kBlock), kBlock, at, rows, width, t,
                  static_cast<T*>(y.data_ptr()));
    } else {
      soft_rows<T>(call, x, rows, width, g, t, reports, y);
    }
    if (layout.inner == 1) return;
    const std::vector<int64_t> size = sizes(out);
    const Tensor back = transposed(y, layout.outer, layout.inner, width);
    torch::stable::copy_(out, torch::stable::view(back, {size.data(), size.size()}));
  });
  call.finish();
  return out;
}

Tensor gumbel_softmax(Tensor logits, Tensor tau, Tensor key, int64_t dim, bool hard, int64_t start,
                      std::optional<bool> validate) {
  return write_gumbel_softmax(logits, tau, key, dim, hard, start, validate, std::nullopt);
}

void gumbel_softmax_out(Tensor logits, Tensor tau, Tensor key, int64_t dim, bool hard, int64_t start,
                        std::optional<bool> validate, Tensor out) {
  check_samples_out("gumbel_softmax", out, logits);
  write_gumbel_softmax(logits, tau, key, dim, hard, start, validate, out);
}

Tensor gumbel_argmax(Tensor logits, Tensor key, int64_t dim, int64_t start, std::optional<bool> validate) {
  constexpr const char* op = "gumbel_argmax";
  check_floating(op, "logits", logits);
  const Layout layout(op, logits, dim);
  const NoiseArgument noise{KeyArgument(op, key, logits), static_cast<uint64_t>(start), true};
  check_start(op, start);
  const std::vector<int64_t> size = check_argmax(op, logits, dim, layout);
  const Call call(logits, validate);
  Tensor out = call.empty(size, ScalarType::Long);
  if (logits.numel() == 0) return out;
  const LogitReports reports{call.report(kArgmaxPlusInf), call.report(kArgmaxMinusInf)};
  with_rows(call, op, logits, layout, noise, [&]<typename T>(const Tensor& x, const NoiseArgument& g) {
    argmax_rows<T>(call, x, layout.outer * layout.inner, layout.width, g, reports, false,
                   static_cast<int64_t*>(out.data_ptr()));
  });
  call.finish();
  return out;
}

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
  m.impl("gumbel_softmax", PYSEL_OP(&pysel::gumbel_softmax));
  m.impl("gumbel_softmax.out", PYSEL_OP(&pysel::gumbel_softmax_out));
  m.impl("gumbel_softmax_backward", PYSEL_OP(&pysel::gumbel_softmax_backward));
  m.impl("gumbel_sigmoid", PYSEL_OP(&pysel::gumbel_sigmoid));
  m.impl("gumbel_sigmoid.out", PYSEL_OP(&pysel::gumbel_sigmoid_out));
  m.impl("gumbel_sigmoid_backward", PYSEL_OP(&pysel::gumbel_sigmoid_backward));
  m.impl("gumbel_argmax", PYSEL_OP(&pysel::gumbel_argmax));
}
