// The sparse products that use top-k codes (TopK sparse autoencoders: Gao et al., arXiv 2406.04093).
//
// Codes of B rows are entries e = b k + j, each a factor indices[b, j] and a value. sparse_decode sums by row; its
// gradient to the weights sums by factor, so entries are sorted by factor first: see by_factor.cuh.
//
// A block then adds up a list of rows, one after another as the CPU does: no float atomics, and the same bits. A factor
// that most rows share is a long list for the few blocks that own it.
#include "common/op.h"

#include <initializer_list>
#include <tuple>

#include "cuda/by_factor.cuh"

namespace pysel {
namespace {

// --- sums of rows ---

// What is summed into each row of a result: rows of a matrix, times values. By row of codes (start is null) term t is
// entry t and the matrix has a row for each factor; by factor, term t is entry[t] and the matrix has a row for each row
// of codes.
template <typename T>
struct Terms {
  const T* values;              // [B, k]
  const std::int64_t* indices;  // [B, k]
  std::int64_t k;
  const std::int64_t* entry;  // [B k], by factor
  const std::int64_t* start;  // [H + 1], or null

  __device__ std::int64_t begin(std::int64_t row) const { return start == nullptr ? row * k : start[row]; }
  __device__ std::int64_t entry_at(std::int64_t term) const { return start == nullptr ? term : entry[term]; }
  __device__ std::int64_t row_of(std::int64_t e) const { return start == nullptr ? indices[e] : e / k; }
};

template <typename A>
struct StagedTerms {
  static constexpr int kTerms = 256;
  std::int64_t row[kTerms];
  A coefficient[kTerms];
};

// out[r] = bias + the terms of r, in order. A block takes a row and as many columns as its threads hold.
template <typename T, int kWidth>
__global__ void sum_rows_kernel(Terms<T> terms,
                                const T* __restrict__ matrix,  // [n, d]
                                std::int64_t n, std::int64_t d,
                                const T* __restrict__ bias,  // [d] or null
                                const unsigned* __restrict__ invalid, Report report, std::int64_t rows,
                                T* __restrict__ out) {  // [rows, d]
  using A = Compute<T>;
  auto& staged = shared<StagedTerms<A>>();
  const std::int64_t stride = std::int64_t{blockDim.x} * kWidth;
  const std::int64_t slices = d > 0 ? (d - 1) / stride + 1 : 1;
  const bool refused = invalid != nullptr && *invalid != 0;
  std::int64_t outside = -1;  // an entry whose row the matrix has not
  for (std::int64_t task = blockIdx.x; task < rows * slices; task += gridDim.x) {
    const std::int64_t row = task / slices;
    const std::int64_t column = task % slices * stride + threadIdx.x * kWidth;
    const bool mine = column < d;
    A sum[kWidth];
#pragma unroll
    for (int v = 0; v < kWidth; ++v)
      sum[v] = refused ? not_a_number<A>() : mine && bias != nullptr ? static_cast<A>(bias[column + v]) : A{0};
    const std::int64_t begin = refused ? 0 : terms.begin(row), end = refused ? 0 : terms.begin(row + 1);
    for (std::int64_t at = begin; at < end; at += staged.kTerms) {
      const int size = static_cast<int>(end - at < staged.kTerms ? end - at : staged.kTerms);
      __syncthreads();  // the terms before these have been added
      for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
        const std::int64_t e = terms.entry_at(at + i);
        std::int64_t from = terms.row_of(e);
        A coefficient = static_cast<A>(terms.values[e]);
        if (static_cast<std::uint64_t>(from) >= static_cast<std::uint64_t>(n)) {
          outside = e;
          from = 0;
          coefficient = not_a_number<A>();
        }
        staged.row[i] = from;
        staged.coefficient[i] = coefficient;
      }
      __syncthreads();
      if (n == 0) {
#pragma unroll
        for (int v = 0; v < kWidth; ++v) sum[v] = not_a_number<A>();
      } else if (mine) {
#pragma unroll 4
        for (int i = 0; i < size; ++i) {
          const auto x = load_vec<kWidth>(matrix + staged.row[i] * d + column);
          const A c = staged.coefficient[i];
#pragma unroll
          for (int v = 0; v < kWidth; ++v) sum[v] += c * static_cast<A>(x.of[v]);
        }
      }
    }
    if (!mine) continue;
    Vec<T, kWidth> result;
#pragma unroll
    for (int v = 0; v < kWidth; ++v) result.of[v] = static_cast<T>(sum[v]);
    store_vec(out + row * d + column, result);
  }
  report.of_warp(outside >= 0, n - 1, outside >= 0 ? terms.row_of(outside) : 0);
}

// --- sampled products ---

// out[b, j] = weight[indices[b, j]] . grad[b], a warp an entry. Warps of a block share rows of grad in L1.
template <typename T, int kWidth>
__global__ void sddmm_kernel(const std::int64_t* __restrict__ indices,  // [B, k]
                             std::int64_t entries, std::int64_t k,
                             const T* __restrict__ weight,  // [H, d]
                             std::int64_t factors, std::int64_t d,
                             const T* __restrict__ grad,  // [B, d]
                             Report report,
                             T* __restrict__ out) {  // [B, k]
  using A = Compute<T>;
  const unsigned lane = threadIdx.x % kWarp;
  std::int64_t outside = -1;  // an entry without a factor
  for (std::int64_t e = thread_in_grid() / kWarp; e < entries; e += threads_in_grid() / kWarp) {
    const std::int64_t factor = indices[e];
    if (static_cast<std::uint64_t>(factor) >= static_cast<std::uint64_t>(factors)) {
      if (lane == 0) out[e] = not_a_number<T>();
      outside = e;
      continue;
    }
    const T *w = weight + factor * d, *g = grad + e / k * d;
    A part[kWidth] = {};
#pragma unroll 4
    for (std::int64_t i = lane * kWidth; i < d; i += kWarp * kWidth) {
      const auto x = load_vec<kWidth>(w + i);
      const auto y = load_vec<kWidth>(g + i);
#pragma unroll
      for (int v = 0; v < kWidth; ++v) part[v] += static_cast<A>(x.of[v]) * static_cast<A>(y.of[v]);
    }
    A sum = part[0];
#pragma unroll
    for (int v = 1; v < kWidth; ++v) sum += part[v];
    sum = warp_reduce(sum, Sum());
    if (lane == 0) out[e] = static_cast<T>(sum);
  }
  if (outside >= 0 && lane == 0) report(factors - 1, indices[outside]);
}

// --- launches ---

// f.template operator()<T, kWidth>() with as many columns as 16 bytes hold, or one where rows of d are not aligned.
template <typename F>
void dispatch_columns(const char* op, const char* argument, const Tensor& t, std::int64_t d,
                      std::initializer_list<Tensor> matrices, F f) {
  dispatch_floating(op, argument, t, [&]<typename T>() {
    constexpr int kWidth = 16 / sizeof(T);
    bool aligned = d % kWidth == 0;
    for (const Tensor& m : matrices) aligned = aligned && reinterpret_cast<std::uintptr_t>(m.data_ptr()) % 16 == 0;
    aligned ? f.template operator()<T, kWidth>() : f.template operator()<T, 1>();
  });
}

template <typename T, int kWidth>
void sum_rows(const Call& call, const Terms<T>& terms, const Tensor& matrix, const Tensor* bias,
              const unsigned* invalid, const Report& report, const Tensor& out) {
  const std::int64_t rows = out.size(0), d = out.size(1);
  if (rows == 0) return;
  const std::int64_t packs = std::max<std::int64_t>(d / kWidth, 1);
  const unsigned block = block_size(packs);
  call.launch(sum_rows_kernel<T, kWidth>, grid_size(rows * ((packs - 1) / block + 1), 1), block, terms, data<T>(matrix),
              matrix.size(0), d, bias ? data<T>(*bias) : nullptr, invalid, report, rows,
              static_cast<T*>(out.data_ptr()));
}

// Rows of [B, d] times values, summed by factor.
void sum_by_factor(const char* op, const Call& call, const Tensor& values, const Tensor& indices, const Tensor& rows,
                   const Fault& fault, const Tensor& out) {
  const std::int64_t factors = out.size(0), d = out.size(1);
  const InvalidFlag invalid(call);
  invalid.check_indices(indices, factors, fault);
  if (out.numel() == 0) return;
  const ByFactor by_factor(call, indices, factors);
  dispatch_columns(op, "values", values, d, {rows, out}, [&]<typename T, int kWidth>() {
    const Terms<T> terms{data<T>(values), data<std::int64_t>(indices), values.size(1),
                         data<std::int64_t>(by_factor.entry), data<std::int64_t>(by_factor.start)};
    sum_rows<T, kWidth>(call, terms, rows, nullptr, invalid.get(), call.always(fault), out);
  });
}

void dot_rows(const char* op, const Call& call, const Tensor& indices, const Tensor& weight, const Tensor& grad,
              const Fault& fault, const Tensor& out) {
  const std::int64_t entries = indices.numel(), d = weight.size(1);
  if (entries == 0) return;
  dispatch_columns(op, "weight", weight, d, {weight, grad}, [&]<typename T, int kWidth>() {
    call.launch(sddmm_kernel<T, kWidth>, std::min(grid_size(entries, kBlock / kWarp), kMostBlocks), kBlock,
                data<std::int64_t>(indices), entries, indices.size(1), data<T>(weight), weight.size(0), d,
                data<T>(grad), call.always(fault), static_cast<T*>(out.data_ptr()));
  });
}

// --- ops ---

constexpr Fault kDecodeFault{Fault::index, "sparse_decode: indices must be between 0 and #, got #"};
constexpr Fault kSddmmFault{Fault::index, "sddmm: indices must be between 0 and #, got #"};
constexpr Fault kSpmmFault{Fault::index, "spmm_t: indices must be between 0 and #, got #"};
constexpr Fault kBackwardFault{Fault::index, "sparse_decode_backward: indices must be between 0 and #, got #"};

void write_sparse_decode(const char* op, const Call& call, const Tensor& values, const Tensor& indices,
                         const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  const Tensor values_c = torch::stable::contiguous(values), indices_c = torch::stable::contiguous(indices);
  const Tensor weight_c = torch::stable::contiguous(weight);
  std::optional<Tensor> bias_c;
  if (bias) bias_c = torch::stable::contiguous(*bias);
  dispatch_columns(op, "values", values, weight.size(1), {weight_c, out}, [&]<typename T, int kWidth>() {
    const Terms<T> terms{data<T>(values_c), data<std::int64_t>(indices_c), values.size(1), nullptr, nullptr};
    sum_rows<T, kWidth>(call, terms, weight_c, bias_c ? &*bias_c : nullptr, nullptr, call.always(kDecodeFault), out);
  });
}

Tensor sparse_decode(Tensor values, Tensor indices, Tensor weight, std::optional<Tensor> bias) {
  constexpr const char* op = "sparse_decode";
  check_sparse_decode(op, values, indices, weight, bias);
  const Call call(values);
  Tensor out = call.empty({values.size(0), weight.size(1)}, values.scalar_type());
  write_sparse_decode(op, call, values, indices, weight, bias, out);
  return out;
}

void sparse_decode_out(Tensor values, Tensor indices, Tensor weight, std::optional<Tensor> bias, Tensor out) {
  constexpr const char* op = "sparse_decode";
  check_sparse_decode(op, values, indices, weight, bias);
  check_sparse_decode_out(op, out, values, indices, weight, bias);
  write_sparse_decode(op, Call(values), values, indices, weight, bias, out);
}

Tensor sddmm(Tensor indices, Tensor weight, Tensor grad) {
  constexpr const char* op = "sddmm";
  check_sddmm(op, indices, weight, grad);
  const Call call(weight);
  Tensor out = call.empty(sizes(indices), weight.scalar_type());
  dot_rows(op, call, torch::stable::contiguous(indices), torch::stable::contiguous(weight),
           torch::stable::contiguous(grad), kSddmmFault, out);
  return out;
}

Tensor spmm_t(Tensor values, Tensor indices, Tensor rows, int64_t num_factors) {
  constexpr const char* op = "spmm_t";
  check_spmm_t(op, values, indices, rows, num_factors);
  const Call call(values);
  Tensor out = call.empty({num_factors, rows.size(1)}, values.scalar_type());
  sum_by_factor(op, call, torch::stable::contiguous(values), torch::stable::contiguous(indices),
                torch::stable::contiguous(rows), kSpmmFault, out);
  return out;
}

// What sddmm and spmm_t give.
std::tuple<Tensor, Tensor> sparse_decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor weight) {
  constexpr const char* op = "sparse_decode_backward";
  check_sparse_decode_backward(op, grad, values, indices, weight);
  const Call call(values);
  Tensor to_values = call.empty(sizes(values), values.scalar_type());
  Tensor to_weight = call.empty(sizes(weight), weight.scalar_type());
  const Tensor grad_c = torch::stable::contiguous(grad), indices_c = torch::stable::contiguous(indices);
  dot_rows(op, call, indices_c, torch::stable::contiguous(weight), grad_c, kBackwardFault, to_values);
  sum_by_factor(op, call, torch::stable::contiguous(values), indices_c, grad_c, kBackwardFault, to_weight);
  return {to_values, to_weight};
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("sparse_decode", PYSEL_OP(&pysel::sparse_decode));
  m.impl("sparse_decode.out", PYSEL_OP(&pysel::sparse_decode_out));
  m.impl("sddmm", PYSEL_OP(&pysel::sddmm));
  m.impl("spmm_t", PYSEL_OP(&pysel::spmm_t));
  m.impl("sparse_decode_backward", PYSEL_OP(&pysel::sparse_decode_backward));
}
