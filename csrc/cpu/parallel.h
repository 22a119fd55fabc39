#pragma once

#include <exception>
#include <mutex>

#include "common/op.h"
#include "common/subnormals.h"
#include "common/tensor.h"

namespace pysel {

// f(begin, end) over parts of [0, n) of at least `grain`. Exceptions keep their type and text, which torch's own
// parallel_for would lose.
template <typename F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    const KeepSubnormals guard;  // a thread of torch's has its own
    try {
      f(begin, end);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = caught();
    }
  });
  if (error) std::rethrow_exception(error);
}

// A contiguous tensor of the same values. torch's own would go through its dispatcher only to return its argument.
inline Tensor packed(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// A fresh CPU tensor. Large ones are advised for huge pages (memory.cpp).
Tensor empty_cpu(const std::vector<int64_t>& size, ScalarType dtype);

inline Key read_key(const char* op, const Tensor& key) {
  check_key(op, key);
  check_value(key.is_cpu(), op, ": key must be on the CPU like the input");
  return read_key(key);
}

}  // namespace pysel
