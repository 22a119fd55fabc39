// How often and how widely the factors of top-k codes are active.
#include "common/op.h"

#include "cuda/codes.cuh"

namespace pysel {
namespace {

constexpr unsigned kTables = 2;  // that a block adds up at a time

struct RowFactors {
  std::int64_t factor[kBlock];       // -1 where inactive
  double term[kTables + 1][kBlock];  // of each table, and what a mean is divided by the sum of
};

// Whether thread t's entry, at + t of a row of k, is active (its value above 0) and the row's first of its factor.
// All threads of the block call it.
template <typename T>
__device__ bool first_active(const T* __restrict__ values,              // [k]
                             const std::int64_t* __restrict__ indices,  // [k]
                             std::int64_t k, std::int64_t at, std::int64_t* staged) {
  auto active_factor = [&](std::int64_t j) {
    return j < k && static_cast<Compute<T>>(values[j]) > 0 ? indices[j] : -1;
  };
  const std::int64_t factor = active_factor(at + threadIdx.x);
  bool first = factor >= 0;
  for (std::int64_t from = 0; from <= at; from += blockDim.x) {
    __syncthreads();  // what was staged has been read
    staged[threadIdx.x] = active_factor(from + threadIdx.x);
    __syncthreads();
    const unsigned earlier = from < at ? blockDim.x : threadIdx.x;
    for (unsigned i = 0; i < earlier; ++i) first &= staged[i] != factor;
  }
  return first;
}

__global__ void fill_counts_kernel(const unsigned* __restrict__ invalid, std::int64_t n,
                                   std::int64_t* __restrict__ out) {  // [n]
  const std::int64_t value = *invalid != 0 ? -1 : 0;
  for (std::int64_t i = thread_in_grid(); i < n; i += threads_in_grid()) out[i] = value;
}

// A block a row.
template <typename T>
__global__ void factor_counts_kernel(const T* __restrict__ values,              // [B, k]
                                     const std::int64_t* __restrict__ indices,  // [B, k]
                                     const std::int64_t* __restrict__ groups,   // [B] or null
                                     std::int64_t rows, std::int64_t k, std::int64_t factors,
                                     const unsigned* __restrict__ invalid,
                                     std::int64_t* __restrict__ out) {  // [G, H]
  if (*invalid != 0) return;
  auto& row = shared<RowFactors>();
  for (std::int64_t b = blockIdx.x; b < rows; b += gridDim.x) {
    std::int64_t* counts = out + (groups == nullptr ? 0 : groups[b] * factors);
    for (std::int64_t at = 0; at < k; at += blockDim.x)
      if (first_active(values + b * k, indices + b * k, k, at, row.factor))
        atomicAdd(reinterpret_cast<unsigned long long*>(counts + indices[b * k + at + threadIdx.x]), 1ull);
  }
}

// A block a row, a few tables at a time. A thread for each of them, and one for the weights, adds up what all threads
// look up, in the order of the entries.
template <typename T, typename R>
__global__ void factor_scores_kernel(const T* __restrict__ values,              // [B, k]
                                     const std::int64_t* __restrict__ indices,  // [B, k]
                                     std::int64_t rows, std::int64_t k,
                                     const R* __restrict__ tables,  // [T, H]
                                     std::int64_t count, std::int64_t factors, bool mean, bool weighted,
                                     const unsigned* __restrict__ invalid, R* __restrict__ out) {  // [B, T]
  auto& row = shared<RowFactors>();
  const bool refused = *invalid != 0;
  for (std::int64_t b = blockIdx.x; b < rows; b += gridDim.x) {
    bool first = false;
    for (std::int64_t table = 0; table < count; table += kTables) {
      double sum = 0;
      for (std::int64_t at = 0; at < k && !refused; at += blockDim.x) {
        const std::int64_t e = b * k + at + threadIdx.x;
        if (table == 0 || k > blockDim.x)
          first = first_active(values + b * k, indices + b * k, k, at, row.factor);
        else
          __syncthreads();  // the terms of the tables before have been added
        const double weight = !first ? 0 : weighted ? static_cast<double>(static_cast<Compute<T>>(values[e])) : 1;
        for (unsigned t = 0; t < kTables; ++t) {
          const bool counts = first && table + t < count;
          row.term[t][threadIdx.x] =
              counts ? weight * static_cast<double>(tables[(table + t) * factors + indices[e]]) : 0;
        }
        row.term[kTables][threadIdx.x] = weight;
        __syncthreads();
        if (threadIdx.x <= kTables)
          for (unsigned i = 0; i < blockDim.x; ++i) sum += row.term[threadIdx.x][i];
      }
      if (threadIdx.x >= kWarp) continue;
      const double total = __shfl_sync(kAllLanes, sum, kTables);
      if (threadIdx.x >= kTables || table + threadIdx.x >= count) continue;
      const double score = mean && total > 0 ? sum / total : sum;
      out[b * count + table + threadIdx.x] = refused ? not_a_number<R>() : static_cast<R>(score);
    }
  }
}

// --- ops ---

constexpr Fault kCountsFault{Fault::index, "factor_counts: indices must be between 0 and #, got #"};
constexpr Fault kScoresFault{Fault::index, "factor_scores: indices must be between 0 and #, got #"};
constexpr Fault kGroupsFault{Fault::index, "factor_counts: groups must be between 0 and #, got #"};

Tensor factor_counts(Tensor values, Tensor indices, int64_t num_factors, std::optional<Tensor> groups,
                     std::optional<int64_t> num_groups) {
  constexpr const char* op = "factor_counts";
  check_factor_counts(op, values, indices, num_factors, groups, num_groups);
  const Call call(values);
  Tensor out = call.empty(groups ? std::vector{*num_groups, num_factors} : std::vector{num_factors}, ScalarType::Long);
  auto* counts = static_cast<std::int64_t*>(out.data_ptr());
  const Tensor values_c = torch::stable::contiguous(values), indices_c = torch::stable::contiguous(indices);
  std::optional<Tensor> groups_c;
  if (groups) groups_c = torch::stable::contiguous(*groups);
  const InvalidFlag invalid(call);
  invalid.check_indices(indices_c, num_factors, kCountsFault);
  if (groups) invalid.check_indices(*groups_c, *num_groups, kGroupsFault);
  if (out.numel() == 0) return out;
  call.launch(fill_counts_kernel, few_blocks(out.numel()), kBlock, invalid.get(), out.numel(), counts);
  if (values.numel() == 0) return out;
  dispatch_floating(op, "values", values, [&]<typename T>() {
    call.launch(factor_counts_kernel<T>, grid_size(values.size(0), 1), block_size(values.size(1)), data<T>(values_c),
                data<std::int64_t>(indices_c), groups ? data<std::int64_t>(*groups_c) : nullptr, values.size(0),
                values.size(1), num_factors, invalid.get(), counts);
  });
  return out;
}

Tensor factor_scores(Tensor values, Tensor indices, Tensor tables, std::string reduce, bool weighted) {
  constexpr const char* op = "factor_scores";
  check_factor_scores(op, values, indices, tables, reduce);
  const Call call(values);
  const std::int64_t rows = values.size(0), k = values.size(1), factors = tables.size(tables.dim() - 1);
  const std::int64_t count = tables.dim() == 1 ? 1 : tables.size(0);
  Tensor out = call.empty(tables.dim() == 1 ? std::vector{rows} : std::vector{rows, count}, tables.scalar_type());
  const Tensor values_c = torch::stable::contiguous(values), indices_c = torch::stable::contiguous(indices);
  const Tensor tables_c = torch::stable::contiguous(tables);
  const InvalidFlag invalid(call);
  invalid.check_indices(indices_c, factors, kScoresFault);
  if (out.numel() == 0) return out;
  auto run = [&]<typename R>() {
    dispatch_floating(op, "values", values, [&]<typename T>() {
      call.launch(factor_scores_kernel<T, R>, grid_size(rows, 1), block_size(k), data<T>(values_c),
                  data<std::int64_t>(indices_c), rows, k, data<R>(tables_c), count, factors, reduce == "mean", weighted,
                  invalid.get(), static_cast<R*>(out.data_ptr()));
    });
  };
  if (tables.scalar_type() == ScalarType::Float)
    run.operator()<float>();
  else
    run.operator()<double>();
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("factor_counts", PYSEL_OP(&pysel::factor_counts));
  m.impl("factor_scores", PYSEL_OP(&pysel::factor_scores));
}
