#pragma once

// What every CUDA op needs to start a kernel, once: the stream to start it on, a grid to cover the work, and the launch
// with its check.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

// torch declares this only to those who build with its USE_CUDA, and a CPU-only torch lacks it. Weak, it is null there
// and the module still loads.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device_index,
                                                                                   void** ret_stream);

namespace pysel {

// The stream that torch is using on this tensor's device.
inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr ||
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("pysel: this torch has no CUDA stream for the tensor's device; is it a CPU-only build?");
  }
  return static_cast<cudaStream_t>(stream);
}

// Blocks for `items` threads' worth of work, capped at what one grid dimension may hold: kernels stride over the grid,
// so the cap never loses an item.
inline unsigned grid_size(std::int64_t items, unsigned block) {
  constexpr std::int64_t kMaxBlocks = (std::int64_t{1} << 31) - 1;
  return static_cast<unsigned>(std::clamp<std::int64_t>((items - 1) / block + 1, 1, kMaxBlocks));
}

// Reports a launch that CUDA refused (grid, block or shared memory out of range, no code for this GPU). It does not
// wait for the kernel.
inline void check_launch() {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("pysel: CUDA kernel launch failed: ") + cudaGetErrorString(status));
  }
}

// kernel<<<grid, block, smem, stream>>>(args...), checked. The only place that spells the chevrons.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t smem, cudaStream_t stream, Args... args) {
  kernel<<<grid, block, smem, stream>>>(args...);
  check_launch();
}

}  // namespace pysel
