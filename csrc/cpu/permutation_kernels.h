// Included inside a variant's namespace (each_variant.h).

#include "cpu/noise.h"

// x ^ x >> bits of the low half of each lane.
inline __attribute__((always_inline)) Words fold(Words x, int bits) {
  typedef uint32_t Halves __attribute__((vector_size(PYSEL_VECTOR_BYTES)));
  const auto halves = reinterpret_cast<Halves>(x);
  return reinterpret_cast<Words>(halves ^ halves >> bits);
}

// As FeistelRound::value and add_modulo.
inline __attribute__((always_inline)) Words added(Words to, const FeistelRound& round, Words x, uint32_t modulus) {
  const Words zero = {}, m = zero + modulus;
  const Words line = multiply(x, zero + round.slope_low) + round.shift;
  Words high = (line >> 32) + multiply(x, zero + round.slope_high);
  high = multiply(fold(high, 16), zero + kPhiloxMultiplier0);
  high = multiply(fold(high, 15), zero + kPhiloxMultiplier1);
  const Words below = to + ((multiply(high, m) + (multiply(line, m) >> 32)) >> 32) - m;
  return below + (-(below >> 63) & m);
}

// One pass of elements [first, first + n) through the network. Returns whether some came out past the end.
inline bool pass(const FeistelTable& table, const FeistelRound* rounds, uint64_t first, int n, uint64_t* out) {
  constexpr int kStep = 4;  // vectors side by side: each is a long chain of dependent instructions
  const Words zero = {};
  Words row, column, past = {};
  for (int l = 0; l < kLanes; ++l) {
    row[l] = (first + static_cast<uint64_t>(l)) / table.columns;
    column[l] = (first + static_cast<uint64_t>(l)) % table.columns;
  }
  for (int i = 0; i < n; i += kStep * kLanes) {
    Words rows[kStep], columns[kStep];
#pragma GCC unroll 4
    for (int s = 0; s < kStep; ++s) {
      rows[s] = row;
      columns[s] = column;
      const Words next = column + static_cast<uint64_t>(kLanes) - table.columns;  // a row is longer than a vector
      row += 1 - (next >> 63);
      column = next + (-(next >> 63) & (zero + table.columns));
    }
    for (int k = 0; k < kFeistelRounds; k += 2) {
#pragma GCC unroll 4
      for (int s = 0; s < kStep; ++s) rows[s] = added(rows[s], rounds[k], columns[s], table.rows);
#pragma GCC unroll 4
      for (int s = 0; s < kStep; ++s) columns[s] = added(columns[s], rounds[k + 1], rows[s], table.columns);
    }
    Words element[kStep];
#pragma GCC unroll 4
    for (int s = 0; s < kStep; ++s) {
      element[s] = multiply(rows[s], zero + table.columns) + columns[s];
      past |= table.n - 1 - element[s];  // the sign
    }
    if (i + kStep * kLanes <= n)
      memcpy(out + i, element, sizeof(element));
    else
      memcpy(out + i, element, sizeof(uint64_t) * static_cast<size_t>(n - i));
  }
  uint64_t any = 0;
  for (int l = 0; l < kLanes; ++l) any |= past[l];
  return any >> 63;
}
