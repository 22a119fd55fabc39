#include "cuda/call.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>
#include <mutex>

#ifdef __CUDACC__
// torch declares this only to those who build with its USE_CUDA, and a CPU-only torch lacks it. Weak, it is null there
// and the module still loads.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device_index,
                                                                                   void** ret_stream);
#endif

namespace pysel {
namespace {

#ifdef __CUDACC__

void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(text("pysel: ", what, " failed: ", cudaGetErrorString(status)));
}

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

// The stream that torch is using on this tensor's device.
cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr ||
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("pysel: this torch has no CUDA stream for the tensor's device; is it a CPU-only build?");
  return static_cast<cudaStream_t>(stream);
}

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

#else

FaultRecord* allocate_record() { return new FaultRecord{}; }
cudaStream_t current_stream(const Tensor&) { return nullptr; }
bool capturing(cudaStream_t) { return false; }

#endif

}  // namespace

FaultRecord* fault_record() {
  static FaultRecord* const record = allocate_record();
  return record;
}

void raise_fault() {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  FaultRecord* record = fault_record();
  const Fault* fault = *const_cast<const Fault* volatile*>(&record->fault);
  if (fault == nullptr) return;
  std::string message;
  const std::int64_t* number = record->number;
  for (const char* c = fault->text; *c != 0; ++c) message += *c == '#' ? std::to_string(*number++) : std::string(1, *c);
  *record = FaultRecord{};
  if (fault->kind == Fault::index) throw std::out_of_range(message);
  throw std::invalid_argument(message);
}

Call::Call(const Tensor& like, std::optional<bool> validate)
    :
#ifdef __CUDACC__
      guard_(like.get_device_index()),
#endif
      like_(like),
      validate_(validate),
      stream_(current_stream(like)) {
  if (!capturing(stream_)) raise_fault();
}

void Call::finish() const {
  if (!validate_.value_or(false)) return;
#ifdef __CUDACC__
  check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
#endif
  raise_fault();
}

Tensor Call::empty(const std::vector<std::int64_t>& size, ScalarType dtype) const {
  return torch::stable::new_empty(like_, {size.data(), size.size()}, dtype);
}

KeyArgument::KeyArgument(const char* op, const Tensor& key, const Tensor& input) : words(nullptr), stride(1), value{} {
  check_value(key.scalar_type() == ScalarType::Long || key.scalar_type() == ScalarType::UInt64, op,
              ": key must be int64");
  check_value(key.dim() == 1 && key.size(0) == 2, op, ": key must have shape [2], got ", shape(key));
  const auto* data = static_cast<const std::int64_t*>(key.data_ptr());
  if (on_host(key)) {
    value = {static_cast<std::uint64_t>(data[0]), static_cast<std::uint64_t>(data[key.stride(0)])};
  } else {
    check_device(op, "key", key, input);
    words = data;
    stride = key.stride(0);
  }
}

}  // namespace pysel
