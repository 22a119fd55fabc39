#pragma once

#include <cstdint>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

namespace pysel {

// Results do not depend on torch.set_flush_denormal: subnormals count while one of these lives. (The clobbers hold back
// loads and stores, and with them the arithmetic between.)
class KeepSubnormals {
 public:
#ifdef __x86_64__
  KeepSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~KeepSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  KeepSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ & ~(uint64_t{1} << 24)) : "memory");
  }
  ~KeepSubnormals() { asm volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

 private:
  uint64_t saved_;
#else
  KeepSubnormals() {}
#endif
  KeepSubnormals(const KeepSubnormals&) = delete;
  KeepSubnormals& operator=(const KeepSubnormals&) = delete;
};

}  // namespace pysel
