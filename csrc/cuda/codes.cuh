#pragma once

// What kernels for top-k codes share: indices checked on the device, and blocks for their work.

#include "common/codes.h"
#include "common/math.h"
#include "cuda/call.cuh"

namespace pysel {

constexpr unsigned kBlock = 256;
constexpr unsigned kMostBlocks = 4096;  // of kernels that check or fill, or a warp of which may report an entry

template <typename T>
__device__ T not_a_number() {
  return static_cast<T>(static_cast<Compute<T>>(__builtin_nanf("")));
}

inline unsigned few_blocks(std::int64_t items) { return std::min(grid_size(items, kBlock), kMostBlocks); }

// Whole warps for `items`, at most a block.
inline unsigned block_size(std::int64_t items) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((items + kWarp - 1) / kWarp * kWarp, kWarp, kBlock));
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}

// Sets `invalid` where an index is none of `count` factors, or groups; who sets it reports.
static __global__ void check_indices_kernel(const std::int64_t* __restrict__ indices,  // [n]
                                            std::int64_t n, std::int64_t count, Report report, unsigned* invalid) {
  std::int64_t outside = -1;  // where
  for (std::int64_t i = thread_in_grid(); i < n; i += threads_in_grid())
    if (outside < 0 && static_cast<std::uint64_t>(indices[i]) >= static_cast<std::uint64_t>(count)) outside = i;
  if (leads(__ballot_sync(kAllLanes, outside >= 0)) && atomicExch(invalid, 1u) == 0)
    report(count - 1, indices[outside]);
}

// Whether an index was none, on the device.
class InvalidFlag {
 public:
  explicit InvalidFlag(const Call& call) : call_(call), flag_(call.zeros<unsigned>(1)) {}

  unsigned* get() const { return flag_.data(); }

  void check_indices(const Tensor& indices, std::int64_t count, const Fault& fault) const {
    if (indices.numel() > 0)
      call_.launch(check_indices_kernel, few_blocks(indices.numel()), kBlock, data<std::int64_t>(indices),
                   indices.numel(), count, call_.always(fault), get());
  }

 private:
  const Call& call_;
  Room<unsigned> flag_;
};

}  // namespace pysel
