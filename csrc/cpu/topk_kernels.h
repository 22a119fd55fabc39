// Included inside a variant's namespace (each_variant.h).

#include "cpu/lanes.h"

template <typename T, int kGroup, Rank kRank>
void group_maxima(const T* x, int64_t groups, OrderBits<T>* out) {
  alignas(64) OrderBits<T> keys[kGroup];
  for (int64_t g = 0; g < groups; ++g) {
    for (int i = 0; i < kGroup; ++i) keys[i] = order_by<kRank>(x[g * kGroup + i]);
    OrderBits<T> most = 0;
    for (int i = 0; i < kGroup; ++i) most = keys[i] > most ? keys[i] : most;
    out[g] = most;
  }
}

// Writes the entries of elements whose key is above the gate, in order; returns how many. `out` has room for all.
template <typename T, typename Entry, Rank kRank>
int64_t survivors(const T* x, int n, OrderBits<T> gate, int64_t first, Entry* out) {
  static_assert(kMostGroup == 64);
  alignas(64) OrderBits<T> keys[kMostGroup];
  alignas(64) uint8_t passed[kMostGroup] = {};
  for (int i = 0; i < n; ++i) keys[i] = order_by<kRank>(x[i]);
  for (int i = 0; i < n; ++i) passed[i] = keys[i] > gate;
  int64_t count = 0;
  for (uint64_t bits = bits_of(passed); bits != 0; bits &= bits - 1) {
    const int i = __builtin_ctzll(bits);
    out[count++] = pack<Entry>(keys[i], signed_index<kRank>(first + i, x[i]));
  }
  return count;
}
