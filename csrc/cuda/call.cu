#include "cuda/call.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <mutex>

#ifdef __CUDACC__
// torch declares this only to those who build with its USE_CUDA, and a CPU-only torch lacks it. Weak, it is null there
// and the module still loads.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device_index,
                                                                                   void** ret_stream);
#endif

namespace pysel {
namespace {

// Allocation is forbidden to a thread that captures a graph, unless it says that this one may happen.
FaultRecord* allocate_record() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  void* record = nullptr;
  const cudaError_t status = cudaHostAlloc(&record, sizeof(FaultRecord), cudaHostAllocPortable | cudaHostAllocMapped);
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  check_cuda(status, "cudaHostAlloc");
  return new (record) FaultRecord{};
}

#ifdef __CUDACC__

// The stream that torch is using on this tensor's device.
cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr ||
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("pysel: this torch has no CUDA stream for the tensor's device; is it a CPU-only build?");
  return static_cast<cudaStream_t>(stream);
}

#else

cudaStream_t current_stream(const Tensor&) { return nullptr; }

#endif

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

// Devices that ops have been called on, a bit each: to wait for another one would give it a context, and memory.
std::atomic<std::uint64_t> devices_used{0};

// Until all kernels have ended. Returns the first thing that went wrong.
cudaError_t wait_for_devices() {
  cudaError_t status = cudaSuccess;
  for (std::uint64_t left = devices_used; left != 0; left &= left - 1) {
#ifdef __CUDACC__
    const torch::stable::accelerator::DeviceGuard guard(std::countr_zero(left));
#endif
    const cudaError_t one = cudaDeviceSynchronize();
    if (status == cudaSuccess) status = one;
  }
  return status;
}

}  // namespace

FaultRecord* fault_record() {
  static FaultRecord* const record = allocate_record();
  return record;
}

void raise_fault() {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  FaultRecord* record = fault_record();
  // Acquires the numbers, which were written before.
  const Fault* fault = __atomic_load_n(&record->fault, __ATOMIC_ACQUIRE);
  if (fault == nullptr) return;
  std::string message;
  const std::int64_t* number = record->number;
  for (const char* c = fault->text; *c != 0; ++c) message += *c == '#' ? std::to_string(*number++) : std::string(1, *c);
  // The kernel may still be running, and would report again what is raised here, or into a record that is half cleared.
  // Where another thread's capture forbids to wait, the fault is raised all the same.
  if (wait_for_devices() != cudaSuccess) cudaGetLastError();
  record->fault = nullptr;
  __atomic_store_n(&record->claimed, 0u, __ATOMIC_RELEASE);
  if (fault->kind == Fault::index) throw std::out_of_range(message);
  throw std::invalid_argument(message);
}

void wait_and_raise() {
  check_cuda(wait_for_devices(), "cudaDeviceSynchronize");
  raise_fault();
}

Call::Call(const Tensor& like, std::optional<bool> validate)
    :
#ifdef __CUDACC__
      guard_(like.get_device_index()),
#endif
      like_(like),
      validate_(validate),
      stream_(current_stream(like)) {
  devices_used |= std::uint64_t{1} << std::max(like.get_device_index(), 0);
  if (!capturing(stream_))
    raise_fault();
  else
    check_value(!validate_.value_or(false),
                "validate must not be True while a CUDA graph is captured, for it waits for the GPU; without it, "
                "pysel.check() raises what a replay meets");
}

void Call::finish() const {
  if (!validate_.value_or(false)) return;
  check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  raise_fault();
}

Tensor Call::empty(const std::vector<std::int64_t>& size, ScalarType dtype) const {
  return torch::stable::new_empty(like_, {size.data(), size.size()}, dtype);
}

KeyArgument::KeyArgument(const char* op, const Tensor& key, const Tensor& input) : words(nullptr), stride(1), value{} {
  check_key(op, key);
  if (on_host(key)) {
    value = read_key(key);
  } else {
    check_device(op, "key", key, input);
    words = static_cast<const std::int64_t*>(key.data_ptr());
    stride = key.stride(0);
  }
}

}  // namespace pysel
