#pragma once

// CUDA's functions for the host, as far as csrc/cuda calls them: what they do when all is well, and the two ways in
// which a test has them go wrong. Included by cuda_runtime.h.
//
// While a stream is captured, whoever waits gets an error; as in CUDA, an error is remembered until somebody asks for
// it, whatever succeeds in between. And a launch may hold back all blocks but the first, which run when the host waits
// or launches again: that is how a host finds a kernel that has not ended.

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };
constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace simt {

struct Host {
  bool capturing = false;
  bool holding = false;
  cudaError_t last_error = cudaSuccess;
  std::function<void()> held;  // blocks of the last launch
  std::uint64_t waits = 0;
};

inline Host host;

inline cudaError_t remembered(cudaError_t status) {
  if (status != cudaSuccess) host.last_error = status;
  return status;
}

inline void run_held() {
  if (host.held) std::exchange(host.held, nullptr)();
}

inline cudaError_t wait() {
  if (host.capturing) return remembered(cudaErrorStreamCaptureUnsupported);
  ++host.waits;
  run_held();
  return cudaSuccess;
}

}  // namespace simt

inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "operation not permitted when stream is capturing";
}
inline cudaError_t cudaGetLastError() { return std::exchange(simt::host.last_error, cudaSuccess); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return simt::wait(); }
inline cudaError_t cudaDeviceSynchronize() { return simt::wait(); }
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = simt::host.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** memory, std::size_t size, unsigned) {
  *memory = ::operator new(size);
  return cudaSuccess;
}

// Where CUDA would tell of a misuse of kernels, or would not notice, the interpreter throws.
template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), const Args&... args) {
  static_assert((std::is_trivially_copyable_v<Params> && ...), "what a kernel takes is copied as bytes");
  struct Arguments {
    void (*kernel)(Params...);
    std::tuple<Params...> values;
  } arguments{kernel, {args...}};
  auto body = [](void* p) {
    auto& a = *static_cast<Arguments*>(p);
    std::apply(a.kernel, a.values);
  };
  simt::run_held();
  const auto* of = reinterpret_cast<const void*>(kernel);
  const dim3 grid = config->gridDim, block = config->blockDim;
  std::vector<std::uint64_t> blocks = simt::begin_launch(of, grid, block);
  if (simt::host.holding) {
    const std::vector<std::uint64_t> rest(blocks.begin() + 1, blocks.end());
    simt::host.held = [=]() mutable { simt::run(of, grid, block, body, &arguments, rest); };
    blocks.resize(1);
  }
  simt::run(of, grid, block, body, &arguments, blocks);
  return cudaSuccess;
}

// --- What Python calls ---

// Whether a stream is being captured.
SIMT_EXPORT void simt_capture(int capturing) { simt::host.capturing = capturing != 0; }

// Whether launches hold back all blocks but the first. What they were given has to live until those have run.
SIMT_EXPORT void simt_hold(int holding) {
  simt::run_held();
  simt::host.holding = holding != 0;
}

// A call of somebody's has failed, and nobody has asked why.
SIMT_EXPORT void simt_fail() { simt::remembered(cudaErrorStreamCaptureUnsupported); }

// How often the host has waited for kernels.
SIMT_EXPORT std::uint64_t simt_waits() { return simt::host.waits; }
