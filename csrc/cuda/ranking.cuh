#pragma once

// The order that decides a selection, digit by digit:
//
//   | key, largest first | word of the order stream, smallest first | index, smallest first |
//
// The words only where ties are broken by them. Those and the index are inverted, so that larger digits come first
// throughout, and no two elements of a row share all of them.

#include "common/order.h"
#include "cuda/rows.cuh"

namespace pysel {

// A place in that order; what the digits settled so far say of it, with zeros for those to come.
template <typename Bits>
struct Cut {
  Bits key;
  std::uint64_t word, index;
};

// How many digits there are of each kind.
struct Digits {
  int bits;  // of a digit
  int key, word, index;
  NoiseArgument ties;  // whose words break ties, if it is on

  template <typename Bits>
  static Digits of(std::int64_t n, int bits, const NoiseArgument& ties) {
    int index_bytes = 0;
    while (index_bytes < 8 && (n - 1) >> 8 * index_bytes > 0) ++index_bytes;
    const int a_byte = 8 / bits;
    return {bits, static_cast<int>(sizeof(Bits)) * a_byte, ties.on ? 8 * a_byte : 0, index_bytes * a_byte, ties};
  }

  PYSEL_HD int all() const { return key + word + index; }
  PYSEL_HD int bins() const { return 1 << bits; }

  // Settles the leading digits that the keys from `low` to `high` have in common, and tells how many these are.
  template <typename Bits>
  __device__ int settle_common(Cut<Bits>& cut, Bits low, Bits high) const {
    int d = 0;
    for (; d < key; ++d) {
      const int below = bits * (key - 1 - d);
      if (low >> below != high >> below) break;
      cut.key = static_cast<Bits>(low >> below << below);
    }
    return d;
  }

  template <typename Bits>
  __device__ void settle(Cut<Bits>& cut, int d, int digit) const {
    if (d < key)
      cut.key |= static_cast<Bits>(static_cast<Bits>(digit) << bits * (key - 1 - d));
    else if (d < key + word)
      cut.word |= static_cast<std::uint64_t>(digit) << bits * (key + word - 1 - d);
    else
      cut.index |= static_cast<std::uint64_t>(digit) << bits * (all() - 1 - d);
  }
};

// The elements of a row in that order.
class Ranking {
 public:
  enum { kBelow = -1, kAbove = -2 };

  __device__ Ranking(const Digits& digits, std::int64_t first) : digits_(digits), words_{}, start_(0) {
    if (!digits.ties.on) return;
    words_ = digits.ties.key.read();
    start_ = digits.ties.start + static_cast<std::uint64_t>(first);
  }

  // Digit d of an element that shares all digits before it with the cut; else on which side of the cut it lies.
  template <typename Bits>
  __device__ int digit(const Cut<Bits>& cut, int d, Bits key, std::int64_t at) const {
    if (d < digits_.key) return digit_of(key, cut.key, digits_.key - d);
    if (key != cut.key) return key > cut.key ? kAbove : kBelow;
    if (digits_.word > 0) {
      const std::uint64_t word = inverted_word(at);
      if (d < digits_.key + digits_.word) return digit_of(word, cut.word, digits_.key + digits_.word - d);
      if (word != cut.word) return word > cut.word ? kAbove : kBelow;
    }
    return digit_of(inverted_index(at), cut.index, digits_.all() - d);
  }

  // Whether an element is at the cut or above it.
  template <typename Bits>
  __device__ bool reaches(const Cut<Bits>& cut, Bits key, std::int64_t at) const {
    if (key != cut.key) return key > cut.key;
    if (digits_.word > 0) {
      const std::uint64_t word = inverted_word(at);
      if (word != cut.word) return word > cut.word;
    }
    return inverted_index(at) >= cut.index;
  }

 private:
  // The first of the `left` last digits.
  template <typename V>
  __device__ int digit_of(V value, V cut, int left) const {
    const int below = digits_.bits * (left - 1);
    const auto upto = static_cast<std::uint64_t>(value) >> below, cut_upto = static_cast<std::uint64_t>(cut) >> below;
    const auto before = upto >> digits_.bits, cut_before = cut_upto >> digits_.bits;
    if (before != cut_before) return before > cut_before ? kAbove : kBelow;
    return static_cast<int>(upto & static_cast<std::uint64_t>(digits_.bins() - 1));
  }

  __device__ std::uint64_t inverted_word(std::int64_t at) const {
    return ~words_.word64(Stream::order, start_ + static_cast<std::uint64_t>(at));
  }
  __device__ std::uint64_t inverted_index(std::int64_t at) const {
    const int bits = digits_.bits * digits_.index;
    return (bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1) - static_cast<std::uint64_t>(at);
  }

  Digits digits_;
  Key words_;
  std::uint64_t start_;
};

}  // namespace pysel
