#include "cpu/variant.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace pysel {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

#ifdef __x86_64__
// Not all compilers' __builtin_cpu_supports() knows it.
bool supports_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

bool supported(Variant v) {
#if defined(__x86_64__)
  switch (v) {
    case Variant::portable:
      return true;
    case Variant::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
             supports_f16c();
    case Variant::avx512:
      return supported(Variant::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return v == Variant::portable;
#endif
}

Variant choose() {
  if (const char* forced = std::getenv("PYSEL_CPU_VARIANT"); forced && *forced) {
    for (Variant v : {Variant::portable, Variant::avx2, Variant::avx512})
      if (std::string(forced) == kNames[static_cast<int>(v)] && supported(v)) return v;
    throw std::invalid_argument(std::string("PYSEL_CPU_VARIANT must be portable, avx2 or avx512 and supported by this "
                                            "machine, got ") +
                                forced);
  }
  if (supported(Variant::avx512)) return Variant::avx512;
  return supported(Variant::avx2) ? Variant::avx2 : Variant::portable;
}

}  // namespace

Variant variant() {
  static const Variant chosen = choose();
  return chosen;
}

std::string chosen_variant() { return kNames[static_cast<int>(variant())]; }

std::vector<std::string> compiled_variants() {
#if defined(__x86_64__)
  return {"portable", "avx2", "avx512"};
#else
  return {"portable"};
#endif
}

}  // namespace pysel
