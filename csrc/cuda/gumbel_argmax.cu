// Categorical draws: the largest perturbed logit of each row (the Gumbel-max trick).
#include "common/op.h"

#include "cuda/gumbel.cuh"

namespace pysel {
namespace {

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

// The best that this thread knows of `size` that go through a row's quads, at least one of which knows the row's. Noise
// costs two logarithms, so that only those elements get theirs whose high word alone does not tell that they are below
// what the warp has seen of the row: of each quad first the likeliest. The warp calls this together.
template <typename T>
__device__ Candidate<Compute<T>> best_of(const Row& row, const T* x, std::int64_t begin, unsigned member,
                                         unsigned size) {
  using A = Compute<T>;
  const Group near(min(size, kWarp));
  Candidate<A> best = Candidate<A>::none();
  A enough = -infinity<A>();  // that an element has reached
  for (std::int64_t quad = member; __any_sync(kAllLanes, quad < row.quads()); quad += size) {
    A z[4], most[4] = {};
    PhiloxBlock high{};
    unsigned open = 0;  // a bit for each element that may be the best
    if (quad < row.quads()) {
      row.load(x, quad, -infinity<A>(), z);
      high = row.high_words(quad);
      for (int i = 0; i < 4; ++i) {
        most[i] = z[i] + static_cast<A>(most_gumbel(high.word[i]));
        open |= most[i] < enough ? 0u : 1u << i;  // NaN, too
      }
    }
    while (__any_sync(kAllLanes, open != 0)) {
      if (open != 0) {
        unsigned place = 4;
        A value{}, likeliest{};
        std::uint32_t word = 0;
        for (unsigned i = 0; i < 4; ++i)
          if ((open >> i & 1) != 0 && (place == 4 || most[i] > likeliest)) {
            place = i;
            value = z[i];
            likeliest = most[i];
            word = high.word[i];
          }
        open &= ~(1u << place);
        const std::int64_t at = row.begin(quad) + place;
        const Candidate<A> element{value + gumbel(row.uniform_at<A>(quad, place, word)), begin + at};
        if (row.holds(at) && best.loses_to(element)) best = element;
        enough = larger(enough, element.z);  // NaN is not, nor what is outside
      }
      enough = near.reduce(enough, enough, static_cast<A*>(nullptr), Largest());
      for (unsigned i = 0; i < 4; ++i)
        if (most[i] < enough) open &= ~(1u << i);
    }
  }
  return best;
}

// The same where exponential variates are given.
template <typename T>
__device__ Candidate<Compute<T>> best_of_given(const Row& row, const T* x, std::int64_t begin, unsigned member,
                                               unsigned size) {
  using A = Compute<T>;
  Candidate<A> best = Candidate<A>::none();
  for (std::int64_t quad = member; quad < row.quads(); quad += size) {
    A z[4];
    row.load(x, quad, -infinity<A>(), z);
    perturb(row, quad, z);
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = row.begin(quad) + i;
      const Candidate<A> element{z[i], begin + at};
      if (row.holds(at) && best.loses_to(element)) best = element;
    }
  }
  return best;
}

// Rows, or parts of kArgmaxPart elements of longer ones; then winners go to `parts`, else their indices to `out`.
template <typename T, bool kGiven>
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
    const T* here = x + r * shape.width + begin;
    Candidate<A> best = kGiven ? best_of_given(row, here, begin, group.member(), shape.group)
                               : best_of(row, here, begin, group.member(), shape.group);
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

template <typename T>
void typed_argmax_rows(const Call& call, const LogitRows& logits, const LogitReports& reports, bool nan_is_none,
                       std::int64_t* out) {
  using A = Compute<T>;
  const std::int64_t rows = logits.rows, width = logits.width;
  const NoiseArgument& noise = logits.noise;
  const T* from = static_cast<const T*>(logits.x.data_ptr());
  const Shape shape(rows, width, most_quads(rows, width, noise), 4, kBlock);
  const std::int64_t parts = width <= 2 * kArgmaxPart ? 1 : (width - 1) / kArgmaxPart + 1;
  const auto room = call.room<Candidate<A>>(parts == 1 ? 0 : rows * parts);
  Candidate<A>* best = parts == 1 ? nullptr : room.data();
  const unsigned grid = parts == 1 ? shape.grid() : grid_size(rows * parts, 1);
  call.launch(noise.on ? argmax_kernel<T, false> : argmax_kernel<T, true>, grid, parts == 1 ? shape.block : kBlock,
              from, shape, parts, noise, reports, nan_is_none, best, out);
  if (parts > 1)
    call.launch(argmax_total_kernel<A>, grid_size(rows, kBlock / kWarp), kBlock, best, rows, parts, reports,
                nan_is_none, out);
}

}  // namespace

void argmax_rows(const Call& call, const char* op, const LogitRows& logits, const LogitReports& reports,
                 bool nan_is_none, std::int64_t* out) {
  dispatch_floating(op, "logits", logits.x,
                    [&]<typename T>() { typed_argmax_rows<T>(call, logits, reports, nan_is_none, out); });
}

namespace {

// --- op ---

constexpr Fault kArgmaxPlusInf{Fault::value, "gumbel_argmax: logits must be below +inf, got +inf"};
constexpr Fault kArgmaxMinusInf{Fault::value,
                                "gumbel_argmax: logits must have a finite value in every row, got a row of only -inf"};

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
  const LogitRows x(call, op, logits, layout, noise);
  argmax_rows(call, op, x, reports, false, static_cast<int64_t*>(out.data_ptr()));
  call.finish();
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) { m.impl("gumbel_argmax", PYSEL_OP(&pysel::gumbel_argmax)); }
