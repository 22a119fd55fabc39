// Compiles kernels once per instruction set, each time in a namespace of its own: the header that PYSEL_KERNELS names,
// which holds nothing else, and what it includes. Types that they use stand above this header. Plain loops vectorise,
// and where the compiler leaves one scalar (a maximum, Philox) its own vector types are used, PYSEL_VECTOR_BYTES wide:
// a SIMD library would hide the same few instructions behind a dependency. -ffp-contract=off and explicit fma keep the
// bits equal.
#include "cpu/variant.h"
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define PYSEL_VECTOR_BYTES 16
namespace pysel {
namespace {
namespace portable {
#include PYSEL_KERNELS
}
}  // namespace
}  // namespace pysel
#undef PYSEL_VECTOR_BYTES

#ifdef __x86_64__

#define PYSEL_VECTOR_BYTES 32
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,f16c")
#endif
namespace pysel {
namespace {
namespace avx2 {
#include PYSEL_KERNELS
}
}  // namespace
}  // namespace pysel
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef PYSEL_VECTOR_BYTES

#define PYSEL_VECTOR_BYTES 64
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace pysel {
namespace {
namespace avx512 {
#include PYSEL_KERNELS
}
}  // namespace
}  // namespace pysel
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef PYSEL_VECTOR_BYTES

// The chosen variant's `function`, which may be a template-id.
#define PYSEL_CHOOSE(...)                                               \
  (::pysel::variant() == ::pysel::Variant::avx512 ? avx512::__VA_ARGS__ \
   : ::pysel::variant() == ::pysel::Variant::avx2 ? avx2::__VA_ARGS__   \
                                                  : portable::__VA_ARGS__)

#else
#define PYSEL_CHOOSE(...) (portable::__VA_ARGS__)
#endif
