// Fused Gumbel-softmax, its two-class case and the categorical draw (Jang et al., arXiv 1611.01144; Maddison et al.,
// arXiv 1611.00712).
//
// Threads share a row and keep its perturbed logits in registers, so that logits are read once, noise is made once and
// the sample is written once. Rows too long for that go in parts, three times: for the row's maximum, for the sum of
// its exponentials, and for the sample, in whose memory the results of one pass wait for the next. Half types would
// round those, and make the noise anew instead. At tau = 1 exponentials are made of logits without noise and of
// exponential variates: see exp_over(). Where dim is not the last, logits and exponential variates are transposed
// first.
#include "common/op.h"

#include <cmath>
#include <type_traits>

#include "cuda/gumbel.cuh"

namespace pysel {
namespace {

// The longest row that threads keep in registers: kMostThreads of them, kMostQuads quads each. More threads would have
// fewer registers than that takes.
constexpr unsigned kMostThreads = 512;
constexpr int kQuads = 8;  // usually
template <typename A>
constexpr int kMostQuads = sizeof(A) == 4 ? 2 * kQuads : kQuads;

// A thread's share of a row's logits: quads member, member + group, ...
template <typename A, int kHeld, bool kOne>
struct Share {
  A z[kHeld][4];

  // Logits, to which noise is added if tau is not 1, or what store() has put there.
  template <bool kStored = false, typename T>
  __device__ void load(const Row& row, const T* x, std::int64_t first_quad, std::int64_t quads, unsigned group) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int64_t quad = first_quad + j * std::int64_t{group};
      if (quad < quads) {
        row.load(x, quad, -infinity<A>(), z[j]);
        if constexpr (!kOne && !kStored) perturb(row, quad, z[j]);
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

  template <typename T>
  __device__ void store(const Row& row, T* out, std::int64_t first_quad, std::int64_t quads, unsigned group) const {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const std::int64_t quad = first_quad + j * std::int64_t{group};
      if (quad < quads) row.store(out, quad, z[j]);
    }
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
    share.store(row, out + r * shape.width, group.member(), quads, shape.group);
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

// Whether passes leave what they make of a row in the sample's memory. That may be the logits': each element is read by
// the thread that writes it.
template <typename T>
constexpr bool kLeft = std::is_same_v<T, Compute<T>>;

template <typename T, bool kOne>
__global__ void __launch_bounds__(kBlock) max_parts_kernel(const T* x,  // [rows, width]
                                                           Parts shape, NoiseArgument noise, TauArgument tau,
                                                           Part<Compute<T>>* __restrict__ parts,  // [rows, parts]
                                                           T* out) {  // [rows, width]: perturbed logits
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
    const std::int64_t first = p % shape.parts * kPart + threadIdx.x;
    share.load(row, x + r * shape.width, first, row.quads(), kBlock);
    if constexpr (kLeft<T> && !kOne) share.store(row, out + r * shape.width, first, row.quads(), kBlock);
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
__global__ void __launch_bounds__(kBlock) sum_parts_kernel(const T* x,  // [rows, width]
                                                           Parts shape, NoiseArgument noise, TauArgument tau,
                                                           const Part<Compute<T>>* __restrict__ total,  // [rows]
                                                           Part<Compute<T>>* __restrict__ parts,        // [rows, parts]
                                                           T* out) {  // [rows, width]: exponentials
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
    constexpr bool stored = kLeft<T> && !kOne;
    share.template load<stored>(row, (stored ? out : x) + r * shape.width, first, row.quads(), kBlock);
    share.exponentiate(row, first, row.quads(), kBlock, total[r].max, t);
    if constexpr (kLeft<T>) share.store(row, out + r * shape.width, first, row.quads(), kBlock);
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
    share.template load<kLeft<T>>(row, (kLeft<T> ? out : x) + r * shape.width, first, row.quads(), kBlock);
    if constexpr (!kLeft<T>) share.exponentiate(row, first, row.quads(), kBlock, total[r].max, t);
    share.normalise(total[r].rounded_sum);
    share.store(row, out + r * shape.width, first, row.quads(), kBlock);
  }
}

// --- hard ---

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

// --- rows of logits ---

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

}  // namespace

LogitRows::LogitRows(const Call& call, const char* op, const Tensor& logits, const Layout& layout,
                     const NoiseArgument& noise)
    : x(torch::stable::contiguous(logits)), rows(layout.outer * layout.inner), width(layout.width), noise(noise) {
  if (layout.inner == 1) return;
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    using A = Compute<T>;
    const std::int64_t n = logits.numel();
    exponentials = call.empty({n}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
    call.launch(exponential_kernel<A>, grid_size(n / 4 + 1, kBlock), kBlock, n, noise,
                static_cast<A*>(exponentials->data_ptr()));
  });
  exponentials = transposed(*exponentials, layout.outer, width, layout.inner);
  x = transposed(x, layout.outer, width, layout.inner);
  this->noise = {noise.key, 0, false, exponentials->data_ptr()};
}

namespace {

// --- launches ---

// Samples of rows, in memory of the caller's.
template <typename T>
void soft_rows(const Call& call, const LogitRows& logits, const TauArgument& tau, const LogitReports& reports,
               const Tensor& out) {
  using A = Compute<T>;
  const std::int64_t rows = logits.rows, width = logits.width;
  const NoiseArgument& noise = logits.noise;
  const T* from = static_cast<const T*>(logits.x.data_ptr());
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
    call.launch(max_parts_kernel<T, one.value>, parts.grid(), kBlock, from, parts, noise, tau, part, to);
  });
  call.launch(max_rows_kernel<A>, grid_size(rows, 1), kBlock, parts, reports, part, total);
  each_tau([&](auto one) {
    call.launch(sum_parts_kernel<T, one.value>, parts.grid(), kBlock, from, parts, noise, tau, total, part, to);
  });
  call.launch(sum_rows_kernel<A>, grid_size(rows, 1), kBlock, parts, part, total);
  each_tau([&](auto one) {
    call.launch(softmax_write_kernel<T, one.value>, parts.grid(), kBlock, from, parts, noise, tau, total, to);
  });
}

// --- op ---

constexpr Fault kSoftmaxPlusInf{Fault::value, "gumbel_softmax: logits must be below +inf, got +inf"};
constexpr Fault kSoftmaxMinusInf{
    Fault::value, "gumbel_softmax: logits must have a finite value in every row, got a row of only -inf"};
constexpr Fault kSoftmaxTau{
    Fault::value, "gumbel_softmax: tau must be finite and above 0 (0 only with hard=True), got another value"};

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
  const LogitRows x(call, op, logits, layout, noise);
  const Tensor y = layout.inner == 1 ? out : call.empty({x.rows * x.width}, out.scalar_type());
  if (hard) {
    const auto index = call.room<int64_t>(x.rows);
    argmax_rows(call, op, x, reports, true, index.data());
    dispatch_floating(op, "logits", logits, [&]<typename T>() {
      call.launch(one_hot_kernel<T>, grid_size(x.rows * x.width, kBlock), kBlock, index.data(), x.rows, x.width, t,
                  static_cast<T*>(y.data_ptr()));
    });
  } else {
    dispatch_floating(op, "logits", logits, [&]<typename T>() { soft_rows<T>(call, x, t, reports, y); });
  }
  if (layout.inner > 1) {
    const std::vector<int64_t> size = sizes(out);
    const Tensor back = transposed(y, layout.outer, layout.inner, x.width);
    torch::stable::copy_(out, torch::stable::view(back, {size.data(), size.size()}));
  }
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

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("gumbel_softmax", PYSEL_OP(&pysel::gumbel_softmax));
  m.impl("gumbel_softmax.out", PYSEL_OP(&pysel::gumbel_softmax_out));
}
