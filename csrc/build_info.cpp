// The ops that take no tensor: how this library was built, and what its kernels have reported.

#include <cstdint>
#include <string>
#include <vector>

#include "common/op.h"
#include "cpu/variant.h"

namespace pysel {

#ifdef PYSEL_CUDA
void wait_and_raise();  // cuda/call.cuh, which takes CUDA's headers
#else
void wait_and_raise() {}
#endif

namespace {

// The oldest torch that this binary runs on, from the upper bytes of the version word it was compiled for.
std::string torch_target() {
  constexpr std::uint64_t word = TORCH_TARGET_VERSION;
  return std::to_string(word >> 56 & 0xff) + "." + std::to_string(word >> 48 & 0xff);
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : " ") + word;
  return all;
}

// Name and value by turns, for Python to make a dictionary of.
std::vector<std::string> build_info() {
  return {"version",
          PYSEL_VERSION,
          "torch_target",
          torch_target(),
          "compiler",
          compiler(),
          "cpu_variants",
          joined(compiled_variants()),
          "cpu_variant",
          chosen_variant(),
          "cuda_version",
          PYSEL_CUDA_VERSION,
          "cuda_architectures",
          PYSEL_CUDA_ARCHITECTURES};
}

STABLE_TORCH_LIBRARY_IMPL(pysel, CompositeExplicitAutograd, m) {
  m.impl("build_info", PYSEL_OP(&build_info));
  m.impl("wait_and_raise", PYSEL_OP(&wait_and_raise));
}

}  // namespace
}  // namespace pysel
