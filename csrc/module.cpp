// The Python module object and its host-only hooks. No tensor passes through here: ops reach Python as
// torch.ops.pysel.*, registered by the static initialisers of the other files when this module is loaded.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "cpu/variant.h"

namespace py = pybind11;

namespace pysel {
#ifdef PYSEL_CUDA
void wait_and_raise();  // cuda/call.cuh, which takes CUDA's headers
#else
void wait_and_raise() {}
#endif
}  // namespace pysel

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

py::dict build_info() {
  const py::list architectures = py::str(PYSEL_CUDA_ARCHITECTURES).attr("split")();
  py::dict info;
  info["version"] = PYSEL_VERSION;
  info["torch_target"] = torch_target();
  info["compiler"] = compiler();
  info["cpu_variants"] = pysel::compiled_variants();
  info["cpu_variant"] = pysel::chosen_variant();
  info["cuda"] = !architectures.empty();
  info["cuda_architectures"] = architectures;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pysel's compiled half; importing it registers torch.ops.pysel.*";
  m.def("build_info", &build_info, "How this binary was built and which CPU variant it chose.");
  m.def("wait_and_raise", &pysel::wait_and_raise, py::call_guard<py::gil_scoped_release>(),
        "Wait for all CUDA kernels, raise what they have reported, and forget it.");
}
