// Bugs on purpose, each beside its repair: what the interpreter and the sanitizers have to find. And a kernel of warp
// functions whose results are known.
#include <torch/csrc/stable/library.h>

#include "common/tensor.h"
#include "cuda/launch.cuh"

namespace pysel {
namespace {

constexpr unsigned kBlock = 256;
constexpr unsigned kWarps = kBlock / kWarp;

// --- Found by their results ---

struct Partials {
  float of[kWarps];
};

template <typename Operation>
__device__ float reduce_block(float x, Operation operation) {
  Partials& partials = shared<Partials>();
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = operation(x, __shfl_xor_sync(kAllLanes, x, offset));
  if (threadIdx.x % kWarp == 0) partials.of[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = partials.of[0];
  for (unsigned w = 1; w < kWarps; ++w) x = operation(x, partials.of[w]);
  return x;
}

// A warp that is ahead overwrites the partial sums that others have yet to read.
__global__ void missing_barrier_kernel(const float* x, float* out, bool repaired) {
  const std::int64_t i = thread_in_grid();
  const float sum = reduce_block(x[i], [](float a, float b) { return a + b; });
  if (repaired) __syncthreads();
  const float least = reduce_block(x[i], [](float a, float b) { return a < b ? a : b; });
  out[i] = sum + least;
}

struct Histogram {
  unsigned of[16];
};

// The histogram starts with what the block before left in it.
__global__ void uninitialised_kernel(const float* x, float* out, bool repaired) {
  Histogram& histogram = shared<Histogram>();
  if (repaired && threadIdx.x < 16) histogram.of[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t i = thread_in_grid();
  atomicAdd(&histogram.of[static_cast<unsigned>(x[i]) % 16], 1u);
  __syncthreads();
  out[i] = static_cast<float>(histogram.of[static_cast<unsigned>(x[i]) % 16]);
}

// --- Found by the interpreter ---

__global__ void missing_lane_kernel(const float* x, float* out, bool repaired) {
  const std::int64_t i = thread_in_grid();
  const bool last = threadIdx.x % kWarp == kWarp - 1;
  float y = x[i];
  if (repaired || !last) y += __shfl_xor_sync(kAllLanes, y, 1);
  out[i] = y;
}

__global__ void divergent_barrier_kernel(const float* x, float* out, bool repaired) {
  const std::int64_t i = thread_in_grid();
  if (repaired || threadIdx.x < 40) __syncthreads();
  out[i] = x[i];
}

// --- Found by AddressSanitizer and UndefinedBehaviorSanitizer ---

struct Hundred {
  float of[100];
};

__global__ void shared_overrun_kernel(const float* x, float* out, bool repaired) {
  float* copy = shared<Hundred>().of;
  const unsigned n = repaired ? 100 : 101;
  if (threadIdx.x < n) copy[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[thread_in_grid()] = copy[threadIdx.x % 100];
}

__global__ void global_overrun_kernel(const float* x, float* out, bool repaired) {
  const std::int64_t i = thread_in_grid();
  out[i] = repaired && i + 1 == threads_in_grid() ? x[i] : x[i + 1];
}

__global__ void misaligned_kernel(const float* x, float* out, bool repaired) {
  const std::int64_t i = thread_in_grid();
  const auto* vectors = reinterpret_cast<const float4*>(repaired ? x : x + 1);
  out[i] = i < threads_in_grid() / 4 - 1 ? vectors[i].y : 0;
}

// --- Found by ThreadSanitizer ---

__global__ void block_race_kernel(const float* x, float* out, bool repaired) {
  const std::int64_t i = thread_in_grid();
  if (threadIdx.x != 0) return;
  if (repaired)
    atomicAdd(out, x[i]);
  else
    *out += x[i];
}

// The last block sums what all blocks left behind a fence. Without fences the counter orders nothing.
__global__ void missing_fence_kernel(const float* x, float* out, bool repaired, unsigned* counter) {
  if (threadIdx.x != 0) return;
  out[blockIdx.x + 1] = x[thread_in_grid()];
  if (repaired) __threadfence();
  const bool last = atomicAdd(counter, 1u) == gridDim.x - 1;
  if (repaired) __threadfence();
  if (!last) return;
  out[0] = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) out[0] += out[b + 1];
}

// Lane 0 reads what its neighbour wrote.
__global__ void warp_race_kernel(const float* x, float* out, bool repaired) {
  Partials& partials = shared<Partials>();
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned lane = threadIdx.x % kWarp;
  if (lane == 1) partials.of[warp] = x[thread_in_grid()];
  if (repaired) __syncwarp();
  if (lane == 0) out[thread_in_grid() / kWarp] = partials.of[warp];
}

// --- The ops: x, 512 floats -> as many ---

Tensor zeros_like(const Tensor& x) {
  Tensor out = torch::stable::empty_like(x);
  return torch::stable::fill_(out, 0.0);
}

template <void (*kernel)(const float*, float*, bool)>
Tensor run(Tensor x, bool repaired) {
  Tensor out = zeros_like(x);
  launch(kernel, static_cast<unsigned>(x.numel()) / kBlock, kBlock, nullptr, static_cast<const float*>(x.data_ptr()),
         static_cast<float*>(out.data_ptr()), repaired);
  return out;
}

Tensor missing_fence(Tensor x, bool repaired) {
  Tensor out = zeros_like(x);
  unsigned counter = 0;
  launch(missing_fence_kernel, static_cast<unsigned>(x.numel()) / kBlock, kBlock, nullptr,
         static_cast<const float*>(x.data_ptr()), static_cast<float*>(out.data_ptr()), repaired, &counter);
  return out;
}

// --- Misuse of every other kind ---

struct TooMuch {
  float of[12289];
};

__global__ void misuse_kernel(std::int64_t which) {
  const unsigned lane = threadIdx.x % kWarp;
  if (which == 0 && threadIdx.x == 3) return;
  if (which == 0) __syncthreads();
  if (which == 1) {
    if (threadIdx.x % 2 == 0)
      __syncthreads();
    else
      __syncthreads();
  }
  if (which == 2) __syncwarp(0xfffffffeu);
  if (which == 3) __syncwarp(lane < 16 ? kAllLanes : 0xfffffffeu);
  if (which == 4 && lane < 16) __shfl_sync(0xffffu, 1.0f, 16);
  if (which == 5) __shfl_sync(kAllLanes, 1.0f, 0, 24);
  if (which == 6 && lane == 7) return;
  if (which == 6) __ballot_sync(kAllLanes, 1);
  if (which == 7) {
    if (lane < 16)
      __ballot_sync(kAllLanes, 1);
    else
      __any_sync(kAllLanes, 1);
  }
  if (which == 8) {  // 0 waits for 1, 1 for 2, 2 for 0
    if (lane == 0) __syncwarp(0b011);
    if (lane == 1) __syncwarp(0b110);
    if (lane == 2) __syncwarp(0b101);
  }
  if (which == 9) shared<TooMuch>().of[threadIdx.x] = 0;
  if (which == 10) {
    if (lane == 0)
      __syncthreads();
    else
      __syncwarp();
  }
}

void misuse(std::int64_t which) {
  auto start = [&](void (*kernel)(std::int64_t), dim3 grid, dim3 block) {
    launch(kernel, grid, block, nullptr, which);
  };
  if (which < 11) start(misuse_kernel, 2, 64);
  if (which == 11) start(misuse_kernel, 1, 0);
  if (which == 12) start(misuse_kernel, 1, dim3(32, 33));
  if (which == 13) start(misuse_kernel, 0, 32);
  if (which == 14) start(nullptr, 1, 32);
  if (which == 15) start(misuse_kernel, dim3(1, 65536), 32);
}

// --- Functions with known results ---

// One row of `out` for each function, one column for each lane.
__global__ void warp_functions_kernel(const std::int64_t* x, int operand, int width, std::int64_t* out) {  // [32]
  const unsigned lane = threadIdx.x;
  const std::int64_t value = x[lane];
  const bool odd = value % 2 != 0;
  const std::int64_t results[] = {
      __shfl_sync(kAllLanes, value, operand + static_cast<int>(lane), width),
      __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(operand), width),
      __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(operand), width),
      __shfl_xor_sync(kAllLanes, value, operand, width),
      __ballot_sync(kAllLanes, odd),
      __any_sync(kAllLanes, value == operand),
      __all_sync(kAllLanes, value < operand),
      __match_any_sync(kAllLanes, static_cast<unsigned>(value % 5)),
      __reduce_add_sync(kAllLanes, static_cast<unsigned>(value)),
      __reduce_min_sync(kAllLanes, static_cast<unsigned>(value)),
      __reduce_max_sync(kAllLanes, static_cast<unsigned>(value)),
      __syncthreads_count(odd),
      __syncthreads_or(value == operand),
      __syncthreads_and(value < operand),
  };
  for (const std::int64_t result : results) {
    out[lane] = result;
    out += kWarp;
  }
}

void warp_functions(Tensor x, std::int64_t operand, std::int64_t width, Tensor out) {
  launch(warp_functions_kernel, 1, kWarp, nullptr, static_cast<const std::int64_t*>(x.data_ptr()),
         static_cast<int>(operand), static_cast<int>(width), static_cast<std::int64_t*>(out.data_ptr()));
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY(simt_planted, m) {
  m.def("missing_barrier(Tensor x, bool repaired) -> Tensor");
  m.def("uninitialised(Tensor x, bool repaired) -> Tensor");
  m.def("missing_lane(Tensor x, bool repaired) -> Tensor");
  m.def("divergent_barrier(Tensor x, bool repaired) -> Tensor");
  m.def("shared_overrun(Tensor x, bool repaired) -> Tensor");
  m.def("global_overrun(Tensor x, bool repaired) -> Tensor");
  m.def("misaligned(Tensor x, bool repaired) -> Tensor");
  m.def("block_race(Tensor x, bool repaired) -> Tensor");
  m.def("missing_fence(Tensor x, bool repaired) -> Tensor");
  m.def("warp_race(Tensor x, bool repaired) -> Tensor");
  m.def("misuse(int which) -> ()");
  m.def("warp_functions(Tensor x, int operand, int width, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(simt_planted, CompositeExplicitAutograd, m) {
  m.impl("missing_barrier", TORCH_BOX(&pysel::run<pysel::missing_barrier_kernel>));
  m.impl("uninitialised", TORCH_BOX(&pysel::run<pysel::uninitialised_kernel>));
  m.impl("missing_lane", TORCH_BOX(&pysel::run<pysel::missing_lane_kernel>));
  m.impl("divergent_barrier", TORCH_BOX(&pysel::run<pysel::divergent_barrier_kernel>));
  m.impl("shared_overrun", TORCH_BOX(&pysel::run<pysel::shared_overrun_kernel>));
  m.impl("global_overrun", TORCH_BOX(&pysel::run<pysel::global_overrun_kernel>));
  m.impl("misaligned", TORCH_BOX(&pysel::run<pysel::misaligned_kernel>));
  m.impl("block_race", TORCH_BOX(&pysel::run<pysel::block_race_kernel>));
  m.impl("missing_fence", TORCH_BOX(&pysel::missing_fence));
  m.impl("warp_race", TORCH_BOX(&pysel::run<pysel::warp_race_kernel>));
  m.impl("misuse", TORCH_BOX(&pysel::misuse));
  m.impl("warp_functions", TORCH_BOX(&pysel::warp_functions));
}
