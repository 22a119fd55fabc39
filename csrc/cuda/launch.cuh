#pragma once

// What every kernel needs, whoever runs it: a GPU, or the interpreter of tests/simt, whose cuda_runtime.h takes the
// place of CUDA's. The few things that C++ cannot spell for both have one name here.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace pysel {

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#ifdef __CUDACC__

// The block's shared T, uninitialised; T is an aggregate of a kernel's own, so that each kernel has one.
template <typename T>
__device__ __forceinline__ T& shared() {
  __shared__ T block;
  return block;
}

#else

using simt::shared;

#endif

// Throws if CUDA refused, and has it forget that: what it remembers would be taken for a failure of the next call that
// asks, and no success in between clears it.
inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("pysel: ") + what + " failed: " + cudaGetErrorString(status));
}

// kernel<<<grid, block, 0, stream>>>(args...), checked: a launch that CUDA refused (grid or block out of range, no code
// for this GPU) throws. The status is this launch's own; behind chevrons it would be that of anything before.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), "CUDA kernel launch");
}

// Blocks for `items` threads' worth of work, capped at what one grid dimension may hold: kernels stride over the grid,
// so the cap never loses an item. The interpreter's is low, so that small cases stride, too.
inline unsigned grid_size(std::int64_t items, std::int64_t block) {
#ifdef __CUDACC__
  constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;
#else
  constexpr std::int64_t kMostBlocks = 3;
#endif
  return static_cast<unsigned>(std::clamp<std::int64_t>((items - 1) / block + 1, 1, kMostBlocks));
}

// This thread's number in the grid, and how many there are.
__device__ __forceinline__ std::int64_t thread_in_grid() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ std::int64_t threads_in_grid() { return std::int64_t{gridDim.x} * blockDim.x; }

}  // namespace pysel
