#pragma once

// What threads of a warp or of a block do together: reduce, scan, choose a radix digit, sort; and the vectors that one
// of them loads at once.
//
// None of it is CUB's. Its reductions leave the result with one thread, where all threads here need it: a barrier and a
// broadcast more. Its block size is fixed when it is compiled, where rows here get as many threads as they are long.
// And the interpreter of tests/simt, which tests every kernel, has C++ alone, no PTX.

#include <type_traits>

#include "cuda/launch.cuh"

namespace pysel {

// --- vectors ---

// N neighbours, loaded or stored at once where they are aligned.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vec {
  T of[N];
};

template <int N, typename T>
__device__ bool is_aligned(const T* at) {
  return reinterpret_cast<std::uintptr_t>(at) % sizeof(Vec<T, N>) == 0;
}

template <int N, typename T>
__device__ Vec<T, N> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}

template <int N, typename T>
__device__ void store_vec(T* to, const Vec<T, N>& v) {
  *reinterpret_cast<Vec<T, N>*>(to) = v;
}

// --- reduce ---

template <typename N>
__device__ N larger(N a, N b) {
  return a < b ? b : a;
}
template <typename N>
__device__ N smaller(N a, N b) {
  return a < b ? a : b;
}

struct Largest {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return larger(a, b);  // never NaN where neither argument is
  }
};

struct Sum {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    if constexpr (requires { a.add(b); })
      a.add(b);
    else
      a += b;
    return a;
  }
};

template <typename V>
__device__ V shuffle_xor(V v, unsigned offset) {
  if constexpr (sizeof(V) <= sizeof(std::uint64_t)) {
    return __shfl_xor_sync(kAllLanes, v, static_cast<int>(offset));
  } else {
    const std::uint64_t high = shuffle_xor(static_cast<std::uint64_t>(v >> 64), offset);
    return V{high} << 64 | shuffle_xor(static_cast<std::uint64_t>(v), offset);
  }
}

// The threads that share a row: a power of two of them, up to a warp, or the whole block.
class Group {
 public:
  __device__ explicit Group(unsigned size) : size_(size) {}

  __device__ bool is_block() const { return size_ > kWarp; }
  __device__ unsigned member() const { return threadIdx.x % size_; }

  // op over the group's values, the same in every member; `slot` holds one of each warp, for blocks. Two reductions in
  // sequence need slots of their own.
  template <typename V, typename Op>
  __device__ V reduce(V v, V neutral, V* slot, Op op) const {
    for (unsigned offset = (is_block() ? kWarp : size_) / 2; offset > 0; offset /= 2) v = op(v, shuffle_xor(v, offset));
    if (!is_block()) return v;
    const unsigned lane = threadIdx.x % kWarp;
    if (lane == 0) slot[threadIdx.x / kWarp] = v;
    __syncthreads();
    v = lane < size_ / kWarp ? slot[lane] : neutral;
    for (unsigned offset = kWarp / 2; offset > 0; offset /= 2) v = op(v, shuffle_xor(v, offset));
    return v;
  }

  __device__ bool any(bool mine) const {
    if (is_block()) return __syncthreads_or(mine) != 0;
    const unsigned all = __ballot_sync(kAllLanes, mine);
    const unsigned first = threadIdx.x % kWarp / size_ * size_;
    return (all >> first & (size_ == kWarp ? kAllLanes : (1u << size_) - 1)) != 0;
  }

 private:
  unsigned size_;
};

// op over a warp's values, the same in every lane.
template <typename V, typename Op>
__device__ V warp_reduce(V v, Op op) {
  return Group(kWarp).reduce(v, v, static_cast<V*>(nullptr), op);
}

// --- scan ---

constexpr unsigned kMostScanned = 256;  // threads of a block that scans

template <typename V>
struct ScanSlots {
  V warp[kMostScanned / kWarp];
};

// The sum over a warp's lanes up to this one.
template <typename V>
__device__ V warp_sum_upto(V x) {
  for (unsigned offset = 1; offset < kWarp; offset *= 2) {
    const V before = __shfl_up_sync(kAllLanes, x, offset);
    if (threadIdx.x % kWarp >= offset) x += before;
  }
  return x;
}

// Sum over the block, and over the threads before this one.
template <typename V>
struct BlockSum {
  V before, all;
};

template <typename V>
__device__ BlockSum<V> block_sum(V mine, ScanSlots<V>& slots) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const V upto = warp_sum_upto(mine);
  if (lane == kWarp - 1) slots.warp[warp] = upto;
  __syncthreads();
  BlockSum<V> sum{upto - mine, 0};
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
    if (w < warp) sum.before += slots.warp[w];
    sum.all += slots.warp[w];
  }
  __syncthreads();  // before the slots are used again
  return sum;
}

// --- radix digits ---

// The bin of a digit in which the wanted-th element lies, how many elements lie in bins before it, and how many in it.
template <typename V>
struct Bin {
  int bin;
  V before, inside;
};

template <typename V>
struct BinSlots {
  V warp[kMostScanned / kWarp];
  Bin<V> found;
};

// The same in every thread, of each of which a bin holds `mine` elements, those of thread 0 being the first. There are
// `wanted` at least. A barrier has to follow before the slots are used again.
template <typename V>
__device__ Bin<V> choose_bin(int bin, V mine, V wanted, BinSlots<V>& slots) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  V upto = warp_sum_upto(mine);
  if (lane == kWarp - 1) slots.warp[warp] = upto;
  __syncthreads();
  for (unsigned w = 0; w < warp; ++w) upto += slots.warp[w];
  if (upto - mine < wanted && wanted <= upto) slots.found = {bin, upto - mine, mine};
  __syncthreads();
  return slots.found;
}

// --- sort ---

// Orders a power of two of the block's shared values, largest first (bitonic).
template <typename V>
__device__ void block_sort(V* values, unsigned size) {
  for (unsigned width = 2; width <= size; width *= 2)
    for (unsigned stride = width / 2; stride > 0; stride /= 2) {
      for (unsigned t = threadIdx.x; t < size / 2; t += blockDim.x) {
        const unsigned i = 2 * t - (t & (stride - 1)), j = i + stride;
        const V a = values[i], b = values[j];
        if ((a < b) == ((i & width) == 0)) {
          values[i] = b;
          values[j] = a;
        }
      }
      __syncthreads();
    }
}

}  // namespace pysel
