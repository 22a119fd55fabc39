#pragma once

// Which instruction set the CPU kernels run on: the best one compiled in that this machine has, or the one that the
// environment variable PYSEL_CPU_VARIANT names. Every variant gives the same bits.

#include <string>
#include <vector>

namespace pysel {

enum class Variant { portable, avx2, avx512 };

Variant variant();
std::string chosen_variant();
std::vector<std::string> compiled_variants();

}  // namespace pysel
