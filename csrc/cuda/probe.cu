// Shows from end to end that this build's CUDA half works: compiled, registered, launched on torch's stream.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>

#include "cuda/launch.cuh"

namespace {

using torch::stable::Tensor;

__global__ void probe_kernel(const float* __restrict__ x,  // [n]
                             float* __restrict__ out,      // [n]
                             std::int64_t n) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    out[i] = x[i] + 1;
  }
}

Tensor probe(const Tensor& x) {
  if (x.scalar_type() != torch::headeronly::ScalarType::Float) {
    throw std::invalid_argument("_cuda_probe: x must be float32");
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor input = torch::stable::contiguous(x);
  Tensor out = torch::stable::empty_like(input);
  if (input.numel() == 0) {
    return out;
  }
  constexpr unsigned kBlock = 256;
  pysel::launch(probe_kernel, pysel::grid_size(input.numel(), kBlock), kBlock, 0, pysel::current_stream(input),
                input.const_data_ptr<float>(), out.mutable_data_ptr<float>(), input.numel());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pysel, CUDA, m) { m.impl("_cuda_probe", TORCH_BOX(&probe)); }
