#pragma once

// A keyed permutation of [0, n), whose elements are computed one by one.
//
// It draws from a key of its own, child n of the caller's: so permutations of different n, and those of keys whose
// offsets are near each other, have nothing in common.
//
// Up to kShuffled elements it is the ascending order of n random 64-bit words: all n! orders are equally likely.
//
// Above, it is a Feistel network (Luby and Rackoff, SIAM Journal on Computing 17(2), 1988) on pairs: i is the cell
// (i / columns, i % columns) of a table that just holds n, and rounds add in turn
//
//     row    += f_k(column)  mod rows
//     column += f_k(row)     mod columns
//
// which any f_k makes a bijection of the table. A cell past n, of which there are fewer than rows, goes through the
// network again until it is none (Black and Rogaway, CT-RSA 2002). If rows and columns were both odd, every such
// network would be an even permutation; the rows are even.
//
// How many rounds: the high words of slope x + shift are independent for any two x (Dietzfelbinger, STACS 1996) and the
// mixing after it is a bijection, so that what happens to two elements is a Markov chain with known numbers: two of the
// same column keep their distance through r rounds with probability columns^(1 - r / 2). After 10 rounds it takes
// about 2 n^3 elements until any relation between two is off by one standard error, 2e9 of the smallest network; after
// 8 rounds 2 n^2. tests/test_permutation.py computes the chain. Linear hashes alone would give three elements away;
// that is what the mixing is for.

#include "common/philox.h"

namespace pysel {

constexpr int64_t kShuffled = 1024;
constexpr int kFeistelRounds = 10;

// The least even number of rows whose square holds n, and the columns that they need.
struct FeistelTable {
  uint64_t n;
  uint32_t rows, columns;  // n < 2^63, so both are below 2^32

  explicit FeistelTable(uint64_t n) : n(n) {
    uint64_t low = 0, high = uint64_t{1} << 31;  // half the rows
    while (low < high) {
      const uint64_t half = (low + high) / 2;
      if (4 * half * half >= n)
        high = half;
      else
        low = half + 1;
    }
    rows = static_cast<uint32_t>(2 * low);
    columns = static_cast<uint32_t>((n - 1) / rows + 1);
  }
};

// f_k: block k of the permutation's own key.
struct FeistelRound {
  uint32_t slope_high, slope_low;
  uint64_t shift;

  PYSEL_HD static FeistelRound of(Key key, int k) {
    const PhiloxBlock b = key.block(Stream::permutation, static_cast<uint64_t>(k));
    return {b.word[0], b.word[1], uint64_t{b.word[2]} << 32 | b.word[3]};
  }

  // From [0, modulus).
  PYSEL_HD uint32_t value(uint32_t x, uint32_t modulus) const {
    const uint64_t line = uint64_t{x} * slope_low + shift;
    uint32_t high = static_cast<uint32_t>(line >> 32) + x * slope_high;
    high = (high ^ high >> 16) * kPhiloxMultiplier0;
    high = (high ^ high >> 15) * kPhiloxMultiplier1;
    // 64 bits times the modulus: with 32, a large one would be biased
    const uint64_t carry = (line & 0xffffffffu) * modulus >> 32;
    return static_cast<uint32_t>((uint64_t{high} * modulus + carry) >> 32);
  }
};

PYSEL_HD Key permutation_key(Key key, int64_t n) { return key.child(static_cast<uint64_t>(n), Stream::permutation); }

PYSEL_HD uint32_t add_modulo(uint32_t x, uint32_t y, uint32_t modulus) {
  const uint64_t below = uint64_t{x} + y - modulus;  // wraps if the sum is less
  return static_cast<uint32_t>(below + (below >> 63) * modulus);
}

// Element i of a permutation of more than kShuffled.
PYSEL_HD uint64_t feistel(const FeistelTable& table, const FeistelRound* rounds, uint64_t i) {
  auto row = static_cast<uint32_t>(i / table.columns), column = static_cast<uint32_t>(i % table.columns);
  do {
    for (int k = 0; k < kFeistelRounds; k += 2) {
      row = add_modulo(row, rounds[k].value(column, table.rows), table.rows);
      column = add_modulo(column, rounds[k + 1].value(row, table.columns), table.columns);
    }
    i = uint64_t{row} * table.columns + column;
  } while (i >= table.n);
  return i;
}

}  // namespace pysel
