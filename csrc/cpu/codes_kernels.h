// Included inside a variant's namespace (each_variant.h).

#include "cpu/lanes.h"

// sum[i] += coefficient[t] * rows[which[t]][i], terms in order.
template <typename T, typename A>
void add_rows(const T* rows, const A* coefficient, const int64_t* which, int64_t terms, int64_t d, A* sum) {
  int64_t t = 0;
  for (; t + 4 <= terms; t += 4) {
    const T *r0 = rows + which[t] * d, *r1 = rows + which[t + 1] * d;
    const T *r2 = rows + which[t + 2] * d, *r3 = rows + which[t + 3] * d;
    const A c0 = coefficient[t], c1 = coefficient[t + 1], c2 = coefficient[t + 2], c3 = coefficient[t + 3];
    for (int64_t i = 0; i < d; ++i)
      sum[i] = (((sum[i] + c0 * static_cast<A>(r0[i])) + c1 * static_cast<A>(r1[i])) + c2 * static_cast<A>(r2[i])) +
               c3 * static_cast<A>(r3[i]);
  }
  for (; t < terms; ++t) {
    const T* r = rows + which[t] * d;
    const A c = coefficient[t];
    for (int64_t i = 0; i < d; ++i) sum[i] += c * static_cast<A>(r[i]);
  }
}

// sum += c * b; returns a . b, as dot() gives it.
template <typename T, typename A>
A dot_and_add(const T* a, const T* b, A c, int64_t d, A* sum) {
  using L = Lanes<A>;
  L lanes = {};
  int64_t i = 0;
  for (; i + 16 <= d; i += 16)
    for (int p = 0; p < L::kParts; ++p) {
      const int64_t at = i + p * L::kWidth;
      const auto v = load_vector<A>(b + at), added = load_vector<A>(sum + at) + c * v;
      lanes.part[p] += load_vector<A>(a + at) * v;
      memcpy(sum + at, &added, sizeof(added));
    }
  alignas(64) A lane[16];
  memcpy(lane, &lanes, sizeof(lane));
  for (int l = 0; i < d; ++i, ++l) {
    lane[l] += static_cast<A>(a[i]) * static_cast<A>(b[i]);
    sum[i] += c * static_cast<A>(b[i]);
  }
  return sum_lanes(lane);
}

// Dot products of rows with one vector. The rows come from anywhere in memory, so the next one is asked for early.
template <typename T, typename A>
void dots(const T* rows, const int64_t* which, int64_t terms, const T* vector, int64_t d, T* out) {
  for (int64_t t = 0; t < terms; ++t) {
    if (t + 1 < terms)
      for (int64_t i = 0; i < d; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(rows + which[t + 1] * d + i);
    out[t] = static_cast<T>(dot<T, A>(rows + which[t] * d, vector, d));
  }
}

template <typename From, typename To>
void convert(const From* from, int64_t n, To* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}
