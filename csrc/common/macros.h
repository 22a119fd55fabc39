#pragma once

// Shared by the host compiler and nvcc. Inlining is forced because a kernel compiled for a wider instruction set may
// inline code of the baseline, and only then does that code use the wider set.
#ifdef __CUDACC__
#define PYSEL_HD __host__ __device__ __forceinline__
#else
#define PYSEL_HD inline __attribute__((always_inline))
#endif
