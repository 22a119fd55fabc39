#pragma once

// How a kernel meets the dispatcher: PYSEL_OP(&kernel) in place of TORCH_BOX, so that what fails within torch, and lack
// of memory, is told in torch's own words. Training loops that look for a batch size which fits go by these. And so
// that subnormals count in all that an op computes.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <utility>

#include "common/subnormals.h"

// What the last failure within torch said, on this thread. Missing before torch 2.13.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace pysel {

// What was caught, in torch's words if it came from there. Only the thread on which torch failed has them.
inline std::exception_ptr caught() {
  try {
    throw;
  } catch (const std::runtime_error& e) {
    const bool from_torch = std::strstr(e.what(), "API call failed") != nullptr;
    if (from_torch && torch_exception_get_what_without_backtrace != nullptr)
      return std::make_exception_ptr(std::runtime_error(torch_exception_get_what_without_backtrace()));
  } catch (...) {
  }
  return std::current_exception();
}

template <auto kernel>
struct Op;

template <typename Result, typename... Arguments, Result (*kernel)(Arguments...)>
struct Op<kernel> {
  static Result call(Arguments... arguments) {
    const KeepSubnormals guard;
    try {
      return kernel(std::move(arguments)...);
    } catch (const std::bad_alloc&) {
      throw std::runtime_error("DefaultCPUAllocator: can't allocate memory: none was left for an op of pysel's");
    } catch (const std::runtime_error&) {
      std::rethrow_exception(caught());
    }
  }
};

}  // namespace pysel

#define PYSEL_OP(kernel) TORCH_BOX((&pysel::Op<kernel>::call))
