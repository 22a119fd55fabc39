#pragma once

// Numbers as unsigned integers of the same order. Floats: -0 and +0 are equal, and every NaN is the largest.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "common/macros.h"
#include "common/math.h"

namespace pysel {

template <typename T>
struct Order;  // Bits: the integers; kInfinity: the bits of +inf

template <>
struct Order<float> {
  using Bits = uint32_t;
  static constexpr Bits kInfinity = 0x7f800000;
};
template <>
struct Order<double> {
  using Bits = uint64_t;
  static constexpr Bits kInfinity = 0x7ff0000000000000;
};
template <>
struct Order<torch::headeronly::BFloat16> {
  using Bits = uint16_t;
  static constexpr Bits kInfinity = 0x7f80;
};
template <>
struct Order<torch::headeronly::Half> {
  using Bits = uint16_t;
  static constexpr Bits kInfinity = 0x7c00;
};
template <>
struct Order<int32_t> {
  using Bits = uint32_t;
};
template <>
struct Order<int64_t> {
  using Bits = uint64_t;
};

template <typename T>
using OrderBits = typename Order<T>::Bits;

// order(a) < order(b) exactly when a < b, or b alone is NaN. Written without branches, so that loops vectorise.
template <typename T>
PYSEL_HD OrderBits<T> order(T x) {
  using Bits = OrderBits<T>;
  using Int = std::make_signed_t<Bits>;
  constexpr int top = 8 * sizeof(Bits) - 1;
  constexpr Bits sign = static_cast<Bits>(Bits{1} << top);
  const Bits bits = pysel::bit_cast<Bits>(x);  // torch has one too
  if constexpr (requires { Order<T>::kInfinity; }) {
    const Bits negative = static_cast<Bits>(static_cast<Int>(bits) >> top);  // all ones or none
    const Bits key = static_cast<Bits>(((bits ^ negative) - negative) | (sign & ~negative));
    const Int magnitude = static_cast<Int>(bits & ~sign);
    return magnitude > static_cast<Int>(Order<T>::kInfinity) ? static_cast<Bits>(~Bits{0}) : key;
  } else {
    return static_cast<Bits>(bits ^ sign);
  }
}

// By what numbers are ranked.
enum class Rank { value, magnitude };

template <Rank kRank, typename T>
PYSEL_HD OrderBits<T> order_by(T x) {
  using Bits = OrderBits<T>;
  constexpr Bits magnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  if constexpr (kRank == Rank::magnitude)
    x = pysel::bit_cast<T>(static_cast<Bits>(pysel::bit_cast<Bits>(x) & magnitude));
  return order(x);
}

// An index to go below an order key: with the sign of the number where only its magnitude is ranked. Equal ones so come
// by index still.
template <Rank kRank, typename T>
PYSEL_HD int64_t signed_index(int64_t index, T x) {
  using Bits = OrderBits<T>;
  if constexpr (kRank == Rank::magnitude)
    return 2 * index + static_cast<int64_t>(pysel::bit_cast<Bits>(x) >> (8 * sizeof(Bits) - 1));
  else
    return index;
}

// The number of a magnitude, given its order() and its sign.
template <typename T>
PYSEL_HD T from_magnitude(OrderBits<T> bits, bool negative) {
  using Bits = OrderBits<T>;
  constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  return pysel::bit_cast<T>(static_cast<Bits>(negative ? bits | sign : bits & static_cast<Bits>(~sign)));
}

// The float whose order() is `bits`: +0 and one NaN stand for all of theirs.
template <typename T>
PYSEL_HD T from_order(OrderBits<T> bits) {
  using Bits = OrderBits<T>;
  constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  return pysel::bit_cast<T>(bits >= sign ? static_cast<Bits>(bits ^ sign) : static_cast<Bits>(Bits{0} - bits));
}

}  // namespace pysel
