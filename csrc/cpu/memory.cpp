// Where results and scratch lie. Page faults on fresh memory cost more than most kernels, and huge pages have 512 times
// fewer. Nothing is kept between calls: what an op took and does not return is free again when it ends.
#include <sys/mman.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/parallel.h"

namespace pysel {
namespace {

// Whether the system is asked for huge pages: unless PYSEL_MADVISE_HUGEPAGE is 0. Read once, as torch and numpy read
// theirs.
bool huge_pages() {
  static const bool wanted = [] {
    const char* given = std::getenv("PYSEL_MADVISE_HUGEPAGE");
    const std::string text = given == nullptr || *given == 0 ? "1" : given;
    if (text != "0" && text != "1") throw std::invalid_argument("PYSEL_MADVISE_HUGEPAGE must be 0 or 1, got " + text);
    return text == "1";
  }();
  return wanted;
}

}  // namespace

// By way of a torch function that needs no dispatcher.
Tensor empty_cpu(const std::vector<int64_t>& size, ScalarType dtype) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::vector<int64_t> stride(size.size(), 1);
  uint64_t elements = 1;  // modulo 2^64: torch tells of what is too large
  for (size_t d = size.size(); d-- > 0; elements *= static_cast<uint64_t>(std::max<int64_t>(1, size[d])))
    stride[d] = static_cast<int64_t>(elements);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(),
                                                  to<int32_t>(from(dtype)), aoti_torch_device_type_cpu(), 0, &handle));
  Tensor t(handle);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(t.numel()) * t.element_size();
  const uintptr_t aligned = (begin + kHuge - 1) & ~(kHuge - 1);
  if (aligned + kHuge <= end && huge_pages()) madvise(reinterpret_cast<void*>(aligned), end - aligned, MADV_HUGEPAGE);
#endif
  return t;
}

}  // namespace pysel
