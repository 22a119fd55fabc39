#pragma once

// The k best of what a block is shown, step by step.
//
// What exceeds the gate is rare and is appended to a buffer in shared memory; when the buffer is full, the block keeps
// the k best in it and raises the gate to the k-th of them:
//
//   row       |........x...|...x........|............|.......x....|   steps: all threads, 64 bytes each
//   gate       ~~~~~~~~~~~~ ------------ ------------ ____________    from group maxima first, then from the k best
//   buffer    [ k best | x x x ...                               ]    order key above inverted index in one integer,
//                                                                     so ties go to the lowest index

#include <cmath>

#include "common/order.h"
#include "cuda/block.cuh"
#include "cuda/call.cuh"

namespace pysel {

constexpr unsigned kMostThreads = 256;
constexpr unsigned kMostK = 1024;  // of the path in shared memory
constexpr unsigned kLoads = 4;     // of 16 bytes, by each thread in each step

__extension__ using Wide = unsigned __int128;

// Order key above inverted index, larger is better. No key is 0, so 0 is no entry.
template <typename T, typename Entry>
struct Packed {
  using Bits = OrderBits<T>;
  static constexpr int kIndexBits = 8 * static_cast<int>(sizeof(Entry) - sizeof(T));
  static constexpr Entry kIndexMask = (Entry{1} << kIndexBits) - 1;

  __device__ static Entry pack(Bits key, std::int64_t index) {
    return static_cast<Entry>(key) << kIndexBits | (kIndexMask - static_cast<Entry>(index));
  }
  __device__ static Bits key(Entry e) { return static_cast<Bits>(e >> kIndexBits); }
  __device__ static std::int64_t index(Entry e) { return static_cast<std::int64_t>(kIndexMask - (e & kIndexMask)); }

  // The largest entry that any element of this key or a better one exceeds.
  __host__ __device__ static Entry below(Bits key) { return (static_cast<Entry>(key) << kIndexBits) - 1; }
};

__device__ int bit_width(std::uint64_t x) { return 64 - __clzll(static_cast<long long>(x)); }
__device__ int bit_width(Wide x) {
  const auto high = static_cast<std::uint64_t>(x >> 64);
  return high != 0 ? 64 + bit_width(high) : bit_width(static_cast<std::uint64_t>(x));
}

template <typename Entry>
__device__ Entry shift_right(Entry e, int by) {
  return by < 8 * static_cast<int>(sizeof(Entry)) ? e >> by : 0;
}

template <typename T>
constexpr unsigned kVec = 16 / sizeof(T);  // elements of one load

// The best entries of tasks (a row, or a part of one) between two kernels.
template <typename Entry>
struct State {
  Entry* entries;     // [tasks, room]
  unsigned* count;    // [tasks]
  Entry* gate;        // [tasks]
  unsigned room = 0;  // at least k; 0: no state
};

// --- the k best of what a block is shown ---

template <typename Entry, unsigned kRoom>
struct Buffer {
  Entry entries[kRoom];
  unsigned bins[kMostThreads];
  int width[kMostThreads / kWarp];
  BinSlots<unsigned> bin;
  unsigned count;  // of entries, and of those that found no room
};

// Every method is called by the whole block, a power of two of threads. Between calls no thread is writing the buffer.
template <typename T, typename Entry, unsigned kRoom, Rank kRank = Rank::value>
class Top {
 public:
  using Bits = OrderBits<T>;
  using A = Compute<T>;
  using P = Packed<T, Entry>;
  static constexpr unsigned kEach = kLoads * kVec<T>;  // elements of a thread in a step
  static_assert(kEach <= 32 && kRoom >= kLoads * kMostThreads);

  // Entries up to `gate` are not wanted.
  __device__ Top(Buffer<Entry, kRoom>& buffer, unsigned k, Entry gate) : s_(buffer), k_(k), gate_(gate) {
    __syncthreads();
    if (threadIdx.x == 0) s_.count = 0;
    __syncthreads();
  }

  __device__ Entry gate() const { return gate_; }
  __device__ unsigned count() const { return s_.count; }
  __device__ Entry* entries() { return s_.entries; }

  // Raises the gate by the first step of x[0, n): k of its elements reach the k-th largest of its vectors' maxima.
  __device__ void bound(const T* x, std::int64_t n) {
    const unsigned groups = kLoads * blockDim.x, skipped = to_boundary(x);
    x += skipped;
    if (n - skipped < std::int64_t{kEach} * blockDim.x || k_ > groups) return;
    Vec<T, kVec<T>> v[kLoads];
    for (unsigned u = 0; u < kLoads; ++u) v[u] = load(x, u * blockDim.x + threadIdx.x);
    for (unsigned u = 0; u < kLoads; ++u) {
      Bits most = 0;
      for (unsigned e = 0; e < kVec<T>; ++e) most = larger(most, order_by<kRank>(v[u].of[e]));
      const unsigned group = u * blockDim.x + threadIdx.x;
      s_.entries[group] = P::pack(most, group);
    }
    __syncthreads();
    const Cut cut = find_cut(groups);
    const Bits key = P::key(cut.prefix << cut.shift);
    if (key > 0) gate_ = larger(gate_, P::below(key));
  }

  // Elements x[0, n) of indices from `first` on, all above the indices that this or an earlier kernel has scanned.
  __device__ void scan(const T* x, std::int64_t n, std::int64_t first) {
    const unsigned full = kEach * blockDim.x;
    unsigned step = to_boundary(x);
    for (step = step > 0 ? step : full; n > 0; step = full) {
      const bool whole = step == full && n >= full;
      const A gate = value_gate();
      unsigned pending = 0;
      if (whole) {
        Vec<T, kVec<T>> v[kLoads];
#pragma unroll
        for (unsigned u = 0; u < kLoads; ++u) v[u] = load(x, u * blockDim.x + threadIdx.x);
#pragma unroll
        for (unsigned i = 0; i < kEach; ++i) {
          pending |= static_cast<unsigned>(passes(v[i / kVec<T>].of[i % kVec<T>], gate)) << i;
        }
      } else {
        const auto left = static_cast<unsigned>(smaller(n, std::int64_t{step}));
#pragma unroll 8
        for (unsigned i = 0; i < kEach; ++i) {
          const unsigned at = i * blockDim.x + threadIdx.x;
          if (at < left && passes(x[at], gate)) pending |= 1u << i;
        }
      }
      add(pending, [&](unsigned i) {
        constexpr unsigned size = kVec<T>;
        const unsigned at =
            whole ? (i / size * blockDim.x + threadIdx.x) * size + i % size : i * blockDim.x + threadIdx.x;
        return P::pack(order_by<kRank>(x[at]), signed_index<kRank>(first + at, x[at]));
      });
      x += step;
      first += step;
      n -= step;
    }
  }

  // What tasks [first, first + tasks), a few of them, have kept.
  __device__ void merge(const State<Entry>& state, std::int64_t first, unsigned tasks) {
    constexpr unsigned kSlots = 8;
    const unsigned slots = tasks * state.room;
    const Entry* entries = state.entries + first * state.room;
    const unsigned* count = state.count + first;
    for (unsigned at = threadIdx.x; at - threadIdx.x < slots; at += kSlots * blockDim.x) {
      unsigned pending = 0;
#pragma unroll
      for (unsigned i = 0; i < kSlots; ++i) {
        const unsigned slot = at + i * blockDim.x;
        if (slot < slots && slot % state.room < count[slot / state.room] && entries[slot] > gate_) pending |= 1u << i;
      }
      add(pending, [&](unsigned i) { return entries[at + i * blockDim.x]; });
    }
  }

  // Leaves at most k entries.
  __device__ void keep() {
    const unsigned count = s_.count;
    if (count > k_) keep_of(count);
  }

  // Orders entries [0, count), largest first. There is room for the next power of two.
  __device__ void sort(unsigned count) {
    unsigned size = 1;
    while (size < count) size *= 2;
    for (unsigned i = count + threadIdx.x; i < size; i += blockDim.x) s_.entries[i] = 0;
    __syncthreads();
    block_sort(s_.entries, size);
  }

 private:
  // The k best of some entries are those of this prefix or a larger one.
  struct Cut {
    Entry prefix;
    int shift;
  };

  // Elements from x to the next address that a vector may be loaded from.
  __device__ static unsigned to_boundary(const T* x) {
    constexpr unsigned size = sizeof(Vec<T, kVec<T>>);
    return (size - static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(x) % size)) % size / sizeof(T);
  }

  __device__ static Vec<T, kVec<T>> load(const T* x, unsigned i) { return load_vec<kVec<T>>(x + i * kVec<T>); }

  // passes(x, value_gate()) holds for every x, NaN included, whose key exceeds the gate's; the few others that pass
  // when the gate is NaN or infinite are found out by add(). Elements that come later and equal the gate lose the tie.
  __device__ static bool passes(T x, A gate) {
    const A a = static_cast<A>(x);
    return !((kRank == Rank::magnitude ? std::fabs(a) : a) <= gate);
  }
  __device__ A value_gate() const {
    constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
    const Bits key = P::key(gate_);
    if (key < static_cast<Bits>(sign - Order<T>::kInfinity)) return static_cast<A>(__builtin_nan(""));
    if (key >= static_cast<Bits>(sign + Order<T>::kInfinity)) return static_cast<A>(__builtin_inf());
    return static_cast<A>(from_order<T>(key));
  }

  // Appends entry_of(i) for the bits i of `pending`, as far as it exceeds the gate. Threads that find no room wait
  // until the block has made some.
  template <typename F>
  __device__ void add(unsigned pending, F entry_of) {
    for (;;) {
      unsigned left = 0;
      for (; pending != 0; pending &= pending - 1) {
        const auto i = static_cast<unsigned>(__ffs(static_cast<int>(pending)) - 1);
        const Entry e = entry_of(i);
        if (e <= gate_) continue;
        const unsigned at = atomicAdd(&s_.count, 1u);
        if (at < kRoom)
          s_.entries[at] = e;
        else
          left |= 1u << i;
      }
      if (__syncthreads_or(left != 0) == 0) return;
      keep_of(kRoom);
      pending = left;
    }
  }

  // Keeps the k best of entries [0, count) and raises the gate to just below the least of them.
  __device__ void keep_of(unsigned count) {
    const Cut cut = find_cut(count);
    if (threadIdx.x == 0) s_.count = 0;
    for (unsigned at = 0; at < count; at += blockDim.x) {
      const unsigned i = at + threadIdx.x;
      const Entry e = i < count ? s_.entries[i] : 0;
      __syncthreads();  // entries move down, into places that have been read
      if (i < count && shift_right(e, cut.shift) >= cut.prefix) s_.entries[atomicAdd(&s_.count, 1u)] = e;
    }
    __syncthreads();
    gate_ = larger(gate_, (cut.prefix << cut.shift) - 1);
  }

  // Radix select of the k largest of entries [0, count), which are all different: digits from the highest bit in which
  // they differ, until a digit's bin is taken whole. A thread counts a bin.
  __device__ Cut find_cut(unsigned count) {
    const int digit_bits = bit_width(static_cast<std::uint64_t>(blockDim.x)) - 1;
    const Entry one = s_.entries[0];
    int shift = 0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) shift = larger(shift, bit_width(s_.entries[i] ^ one));
    shift = Group(blockDim.x).reduce(shift, 0, s_.width, Largest());

    Entry prefix = shift_right(one, shift);
    Bin<unsigned> bin{};
    unsigned rest = k_;
    do {
      const int lower = larger(0, shift - digit_bits);
      const unsigned mask = (1u << (shift - lower)) - 1;
      s_.bins[threadIdx.x] = 0;
      __syncthreads();
      for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const Entry e = s_.entries[i];
        if (shift_right(e, shift) == prefix) atomicAdd(&s_.bins[static_cast<unsigned>(e >> lower) & mask], 1u);
      }
      __syncthreads();
      const unsigned digit = blockDim.x - 1 - threadIdx.x;
      bin = choose_bin(static_cast<int>(digit), s_.bins[digit], rest, s_.bin);
      prefix = prefix << (shift - lower) | static_cast<unsigned>(bin.bin);
      rest -= bin.before;
      shift = lower;
    } while (bin.inside != rest && shift > 0);
    return {prefix, shift};
  }

  Buffer<Entry, kRoom>& s_;
  unsigned k_;
  Entry gate_;
};

}  // namespace pysel
