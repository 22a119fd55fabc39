#pragma once

// Rows of numbers, four neighbours at a time.

#include "common/random.h"
#include "common/sum.h"
#include "cuda/block.cuh"
#include "cuda/call.cuh"

namespace pysel {

// Noise for the elements of a tensor that are numbered from `start`, or none, or what has been made of their words
// already, where elements that are neighbours are not in memory.
struct NoiseArgument {
  KeyArgument key;
  std::uint64_t start;
  bool on;
  const void* exponentials = nullptr;  // of the type that the tensor is computed in; then `on` is false
};

enum class Distribution { exponential, gumbel, logistic };

// Elements [first, first + width) of a tensor in quads. With noise, a quad is what shares a Philox block, so the first
// may begin before the row does:
//
//   elements      . . 0 1   2 3 4 5   6 7 8 .      phase 2, width 9
//   quads        |   0   |    1    |    2    |
class Row {
 public:
  __device__ Row(const NoiseArgument& noise, std::int64_t first, std::int64_t width)
      : width_(width), phase_(0), on_(noise.on), block_(0), key_{}, exponentials_(noise.exponentials), first_(first) {
    if (!on_) return;
    const std::uint64_t element = noise.start + static_cast<std::uint64_t>(first);
    phase_ = static_cast<int>(element & 3);
    block_ = element >> 2;
    key_ = noise.key.read();
  }

  __device__ std::int64_t quads() const { return (width_ + phase_ + 3) / 4; }
  __device__ std::int64_t begin(std::int64_t quad) const { return 4 * quad - phase_; }
  __device__ bool holds(std::int64_t at) const { return 0 <= at && at < width_; }

  // A bit for each element of a quad that the row holds.
  __device__ unsigned held(std::int64_t quad) const {
    const std::int64_t at = begin(quad);
    if (at >= 0 && at + 4 <= width_) return 0xf;
    unsigned bits = 0;
    for (int i = 0; i < 4; ++i) bits |= holds(at + i) ? 1u << i : 0u;
    return bits;
  }

  // What a quad holds, and `outside` where it lies outside the row.
  template <typename T, typename A>
  __device__ void load(const T* row, std::int64_t quad, A outside, A (&v)[4]) const {
    const std::int64_t at = begin(quad);
    if (whole(row, at)) {
      const Vec<T, 4> four = load_vec<4>(row + at);
      for (int i = 0; i < 4; ++i) v[i] = static_cast<A>(four.of[i]);
    } else {
      for (int i = 0; i < 4; ++i) v[i] = holds(at + i) ? static_cast<A>(row[at + i]) : outside;
    }
  }

  template <typename T, typename A>
  __device__ void store(T* row, std::int64_t quad, const A (&v)[4]) const {
    const std::int64_t at = begin(quad);
    if (whole(row, at)) {
      Vec<T, 4> four;
      for (int i = 0; i < 4; ++i) four.of[i] = static_cast<T>(v[i]);
      store_vec(row + at, four);
    } else {
      for (int i = 0; i < 4; ++i)
        if (holds(at + i)) row[at + i] = static_cast<T>(v[i]);
    }
  }

  __device__ PhiloxBlock high_words(std::int64_t quad) const {
    return key_.block(Stream::high, block_ + static_cast<std::uint64_t>(quad));
  }

  // The uniform of element `place` of a quad, whose high word is known.
  template <typename A>
  __device__ Uniform<A> uniform_at(std::int64_t quad, unsigned place, std::uint32_t high) const {
    return uniform_of<A>(4 * (block_ + static_cast<std::uint64_t>(quad)) + place, high);
  }

  // The uniform of one element of the row.
  template <typename A>
  __device__ Uniform<A> uniform_of(std::int64_t at) const {
    const std::uint64_t element = 4 * block_ + static_cast<std::uint64_t>(at - begin(0));
    return uniform_of<A>(element, key_.word(Stream::high, element));
  }

  // Only what is near the ends of (0, 1) needs the low words in float.
  template <Distribution kKind, typename A>
  __device__ void noise(std::int64_t quad, A (&v)[4]) const {
    const PhiloxBlock high = high_words(quad);
    bool tail = sizeof(A) > 4;
    for (int i = 0; i < 4; ++i) tail |= in_tail(high.word[i]);
    PhiloxBlock low{};
    if (tail) low = key_.block(Stream::low, block_ + static_cast<std::uint64_t>(quad));
    for (int i = 0; i < 4; ++i) {
      const Uniform<A> u = uniform<A>(high.word[i], low.word[i]);
      v[i] = kKind == Distribution::exponential ? exponential(u)
             : kKind == Distribution::gumbel    ? gumbel(u)
                                                : logistic(u);
    }
  }

  template <Distribution kKind, typename A>
  __device__ void add_noise(std::int64_t quad, A (&v)[4]) const {
    if (!on_) return;
    A g[4];
    noise<kKind>(quad, g);
    for (int i = 0; i < 4; ++i) v[i] = v[i] + g[i];
  }

  // Made now, or before.
  template <typename A>
  __device__ void exponentials(std::int64_t quad, A (&e)[4]) const {
    if (exponentials_ != nullptr)
      load(static_cast<const A*>(exponentials_) + first_, quad, A{1}, e);
    else
      noise<Distribution::exponential>(quad, e);
  }

 private:
  template <typename A>
  __device__ Uniform<A> uniform_of(std::uint64_t element, std::uint32_t high) const {
    if constexpr (sizeof(A) == 4)
      if (!in_tail(high)) return uniform_from_high(high);
    return uniform<A>(high, key_.word(Stream::low, element));
  }

  template <typename T>
  __device__ bool whole(const T* row, std::int64_t at) const {
    return at >= 0 && at + 4 <= width_ && is_aligned<4>(row + at);
  }

  std::int64_t width_;
  int phase_;
  bool on_;
  std::uint64_t block_;  // of quad 0
  Key key_;
  const void* exponentials_;
  std::int64_t first_;
};

template <typename A>
__device__ WideSum<A> shuffle_xor(WideSum<A> sum, unsigned offset) {
  sum.high = shuffle_xor(sum.high, offset);
  if constexpr (requires { sum.low; }) sum.low = shuffle_xor(sum.low, offset);
  return sum;
}

// The most quads that one of some rows has. Phases repeat after four rows, and are all the same where the width is a
// multiple of four: then a row has no quad beyond its own, and one of a power of two fills its threads.
inline std::int64_t most_quads(std::int64_t rows, std::int64_t width, const NoiseArgument& noise) {
  std::uint64_t phase = 0;
  for (std::int64_t r = 0; noise.on && r < std::min<std::int64_t>(rows, 4); ++r)
    phase = std::max(phase, (noise.start + static_cast<std::uint64_t>(r * width)) & 3);
  return (width + static_cast<std::int64_t>(phase) + 3) / 4;
}

// How many rows, how many threads share each, and how many rows a block takes at a time.
struct Shape {
  std::int64_t rows, width;
  unsigned group, block;

  // Rows of `quads` quads at the most. Those of up to a thousand elements get a part of a warp, longer ones a block of
  // `most` threads at the most, each with `each` quads or more.
  Shape(std::int64_t rows, std::int64_t width, std::int64_t quads, int each, unsigned most) : rows(rows), width(width) {
    group = 1;
    while (group < kWarp && group < quads) group *= 2;
    block = 4 * kWarp;
    if (quads <= std::int64_t{kWarp} * 8) return;
    const std::int64_t threads = (quads + each - 1) / each;
    group = block =
        static_cast<unsigned>(std::clamp<std::int64_t>((threads + kWarp - 1) / kWarp * kWarp, 2 * kWarp, most));
  }

  unsigned grid() const { return grid_size(rows, block / group); }
};

}  // namespace pysel
