#pragma once

// One call of a CUDA op: its device, its stream, and what happens when its kernels meet values they must refuse.
//
// A kernel cannot throw, and the host does not wait for it. It writes what it met into a record that host and device
// share; the next call (outside a graph capture), or pysel.check(), finds it there and throws.

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <string>
#include <vector>

#include "common/philox.h"
#include "common/tensor.h"
#include "cuda/launch.cuh"

namespace pysel {

// What a kernel may refuse. Each '#' in the text stands for a number that the kernel gives with it.
struct Fault {
  enum Kind { value, index } kind;  // ValueError or IndexError
  const char* text;
};

// In memory that host and device share.
struct FaultRecord {
  unsigned claimed;
  const Fault* fault;  // an address of the host, which the device only carries
  std::int64_t number[3];
};

// Whether this lane is the first of some lanes of its warp.
__device__ inline bool leads(unsigned lanes) {
  return static_cast<unsigned>(__ffs(static_cast<int>(lanes))) == threadIdx.x % kWarp + 1;
}

// A kernel's way to report one fault. False when the caller asked for no checks.
struct Report {
  FaultRecord* record;
  const Fault* fault;

  __device__ explicit operator bool() const { return record != nullptr; }

  // The first report stays until it is read. GPUs may report at once, so the claim is atomic between them, too. Each
  // report crosses the bus to the host's memory and back, so that a kernel makes one a warp at the most: see of_warp().
  __device__ void operator()(std::int64_t first = 0, std::int64_t second = 0, std::int64_t third = 0) const {
    if (atomicCAS_system(&record->claimed, 0u, 1u) != 0) return;
    record->number[0] = first;
    record->number[1] = second;
    record->number[2] = third;
    __threadfence_system();
    *const_cast<const Fault* volatile*>(&record->fault) = fault;
  }

  // Of a warp's lanes, which call this together, the first of those that met the fault reports it.
  __device__ void of_warp(bool met, std::int64_t first = 0, std::int64_t second = 0) const {
    if (leads(__ballot_sync(kAllLanes, met))) (*this)(first, second);
  }
};

// The record of this process.
FaultRecord* fault_record();

// Throws what kernels have reported so far, and forgets it.
void raise_fault();

// The same when all kernels of this process have ended.
void wait_and_raise();

// Memory for the kernels of one call. It may go as soon as the last of them is launched: what takes its place on the
// stream comes after them.
template <typename T>
struct Room {
  Tensor tensor;
  T* data() const { return static_cast<T*>(tensor.data_ptr()); }
};

class Call {
 public:
  // validate: nothing: report faults; true: wait for them, which a graph capture does not allow; false: let kernels
  // skip their checks.
  explicit Call(const Tensor& like, std::optional<bool> validate = std::nullopt);

  Report report(const Fault& fault) const { return {validate_.value_or(true) ? fault_record() : nullptr, &fault}; }
  // For what has to be checked whatever the caller asked for: an index that would lead out of a tensor.
  Report always(const Fault& fault) const { return {fault_record(), &fault}; }

  template <typename... Params, typename... Args>
  void launch(void (*kernel)(Params...), dim3 grid, dim3 block, Args... args) const {
    pysel::launch(kernel, grid, block, stream_, args...);
  }

  // After the last launch.
  void finish() const;

  // A fresh tensor on the call's device.
  Tensor empty(const std::vector<std::int64_t>& size, ScalarType dtype) const;

  template <typename T>
  Room<T> room(std::int64_t count) const {
    return {empty(std::vector<std::int64_t>{count * static_cast<std::int64_t>(sizeof(T))}, ScalarType::Byte)};
  }

  template <typename T>
  Room<T> zeros(std::int64_t count) const {
    Room<T> zeroed = room<T>(count);
    torch::stable::zero_(zeroed.tensor);
    return zeroed;
  }

 private:
#ifdef __CUDACC__
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Tensor like_;
  std::optional<bool> validate_;
  cudaStream_t stream_;
};

// Whether the host may read a tensor. The interpreter's kernels get all of them as if they lay on a device.
inline bool on_host(const Tensor& t) {
#ifdef __CUDACC__
  return t.is_cpu();
#else
  return false;
#endif
}

// A key that lies on the device, or whose words the host has read.
struct KeyArgument {
  const std::int64_t* words;
  std::int64_t stride;
  Key value;

  KeyArgument() : words(nullptr), stride(1), value{} {}
  KeyArgument(const char* op, const Tensor& key, const Tensor& input);

  __device__ Key read() const {
    if (words == nullptr) return value;
    return {static_cast<std::uint64_t>(words[0]), static_cast<std::uint64_t>(words[stride])};
  }
};

// Registers CUDA kernels; the interpreter's go under its own name, for CPU tensors.
#ifdef __CUDACC__
#define PYSEL_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(pysel, CUDA, m)
#else
#define PYSEL_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m)
#endif

}  // namespace pysel
