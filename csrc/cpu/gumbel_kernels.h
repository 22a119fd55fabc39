// Included inside a variant's namespace (each_variant.h).

#include "cpu/lanes.h"
#include "cpu/noise.h"

template <typename A>
ChunkSummary<A> summarise(const A* z, int n) {
  using L = Lanes<A>;
  using V = typename L::Vector;
  constexpr A kInf = static_cast<A>(__builtin_inf());
  L most;
  for (V& part : most.part) part = V{} - kInf;
  auto nan = V{} != V{};
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int p = 0; p < L::kParts; ++p) {
      const V v = load_vector<A>(z + i + p * L::kWidth);
      most.part[p] = v > most.part[p] ? v : most.part[p];
      nan |= v != v;
    }
  alignas(64) A lane[16];
  memcpy(lane, &most, sizeof(lane));
  A max = -kInf;
  bool any_nan = false;
  for (int l = 0; l < 16; ++l) max = lane[l] > max ? lane[l] : max;
  for (int l = 0; l < L::kWidth; ++l) any_nan |= nan[l] != 0;
  for (; i < n; ++i) {
    max = z[i] > max ? z[i] : max;
    any_nan |= z[i] != z[i];
  }
  return {max, any_nan, max == kInf};
}

// The same of logits.
template <typename T, typename A>
ChunkSummary<A> summarise_logits(const T* x, int n) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return summarise(x, n);
  } else {
    alignas(64) A z[kChunk];
    for (int i = 0; i < n; ++i) z[i] = static_cast<A>(x[i]);
    return summarise(z, n);
  }
}

// The larger of two, where +inf is larger than NaN, and NaN larger than the rest.
template <typename A>
inline A larger(A v, A most) {
  constexpr A kInf = static_cast<A>(__builtin_inf());
  return ((v > most) | (v == kInf) | ((v != v) & (most != kInf))) ? v : most;
}

// The largest of each of n <= kChunk columns, as larger() has it.
template <typename T, typename A>
void largest_of_columns(const T* x, int64_t lines, int64_t pitch, int n, A* largest) {
  alignas(64) A most[kChunk];
  // narrow lines that follow each other are taken together
  const int64_t fit = n == pitch ? kChunk / n : 1, together = fit < lines ? fit : lines;
  const int count = static_cast<int>(together) * n;
  for (int i = 0; i < count; ++i) most[i] = -static_cast<A>(__builtin_inf());
  int64_t line = 0;
  for (; line + together <= lines; line += together, x += together * pitch)
    for (int i = 0; i < count; ++i) most[i] = larger(static_cast<A>(x[i]), most[i]);
  for (int i = 0; i < static_cast<int>(lines - line) * n; ++i) most[i] = larger(static_cast<A>(x[i]), most[i]);
  for (int i = n; i < count; ++i) most[i % n] = larger(most[i], most[i % n]);
  for (int i = 0; i < n; ++i) largest[i] = most[i];
}

template <typename T, typename A>
bool has_plus_inf(const T* x, int n) {
  uint32_t found = 0;
  for (int i = 0; i < n; ++i) found |= static_cast<A>(x[i]) == static_cast<A>(__builtin_inf()) ? 1u : 0u;
  return found != 0;
}

// z = x + g, elements [first, first + n).
template <typename T, typename A>
void perturb(const T* x, Key key, uint64_t first, int n, A* z) {
  alignas(64) A g[kChunk];
  fill_noise<ToGumbel>(key, first, n, g);
  for (int i = 0; i < n; ++i) z[i] = static_cast<A>(x[i]) + g[i];
}

template <typename T, typename A>
ChunkSummary<A> perturb_and_summarise(const T* x, Key key, uint64_t first, int n, A* z) {
  perturb<T, A>(x, key, first, n, z);
  return summarise(z, n);
}

// Where the first element that equals `wanted` is, or the last of all if none does.
template <typename A>
inline int first_equal(const A* x, int n, A wanted) {
  constexpr int kGroup = 64;
  int i = 0;
  for (uint32_t found = 0; i + kGroup < n; i += kGroup) {
    for (int l = 0; l < kGroup; ++l) found |= x[i + l] == wanted ? 1u : 0u;
    if (found != 0) break;
  }
  while (i + 1 < n && x[i] != wanted) ++i;
  return i;
}

// The largest of x + g among elements [first, first + n), if it exceeds `floor`. Few need their noise.
template <typename T, typename A>
ChunkBest<A> best(const T* x, Key key, uint64_t first, int n, A floor) {
  alignas(64) uint32_t high[kChunk];
  alignas(64) A bound[kChunk];
  fill_words(key, Stream::high, first, n, high);
  for (int i = 0; i < n; ++i) {
    bound[i] = static_cast<A>(x[i]) + static_cast<A>(most_gumbel(high[i]));
  }
  const int likely = first_equal(bound, n, summarise(bound, n).max);
  const A z =
      static_cast<A>(x[likely]) + noise_of<ToGumbel, A>(key, first + static_cast<uint64_t>(likely), high[likely]);
  const A enough = z > floor ? z : floor;

  constexpr A kInf = static_cast<A>(__builtin_inf());
  ChunkBest<A> result{{-kInf, false, false}, 0};
  constexpr int kGroup = 64;
  for (int at = 0; at < n; at += kGroup) {
    const int end = at + kGroup < n ? at + kGroup : n;
    uint32_t some = 0;
    for (int i = at; i < end; ++i) some |= bound[i] < enough ? 0u : 1u;  // NaN, too
    if (some == 0) continue;
    for (int i = at; i < end; ++i) {
      if (bound[i] < enough) continue;
      const A v = static_cast<A>(x[i]) + noise_of<ToGumbel, A>(key, first + static_cast<uint64_t>(i), high[i]);
      if (v > result.max) {
        result.max = v;
        if (!result.nan) result.at = i;
      }
      if (v != v && !result.nan) {
        result.nan = true;
        result.at = i;
      }
    }
  }
  result.plus_inf = result.max == kInf;
  return result;
}

template <typename A>
inline __attribute__((always_inline)) WideSum<A> sum_of_lanes(WideSum<A>* lane) {
  for (int l = 0; l < 8; ++l) lane[l].add(lane[l + 8]);
  for (int l = 0; l < 4; ++l) lane[l].add(lane[l + 4]);
  for (int l = 0; l < 2; ++l) lane[l].add(lane[l + 2]);
  lane[0].add(lane[1]);
  return lane[0];
}

// WideSum's sums and their errors, of sixteen lanes; what a float sums up in double has no errors kept.
struct WideLanes {
  Lanes<double> high, low;
};

template <typename A>
inline __attribute__((always_inline)) void add_sixteen(const A* e, WideLanes& lanes) {
#pragma GCC unroll 8
  for (int p = 0; p < Lanes<double>::kParts; ++p) {
    auto &high = lanes.high.part[p], &low = lanes.low.part[p];
    const auto x = load_vector<double>(e + p * Lanes<double>::kWidth), sum = high + x;
    if constexpr (sizeof(A) == sizeof(double)) {
      const auto part = sum - high;
      low += (high - (sum - part)) + (x - part);
    }
    high = sum;
  }
}

// Over 16 lanes, then the lanes. Values are at least 0, so that one more 0 leaves a lane as it is.
template <typename A>
inline __attribute__((always_inline)) WideSum<A> wide_sum(const A* e, int n) {
  WideLanes lanes = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) add_sixteen(e + i, lanes);
  if (i < n) {
    alignas(64) A rest[16] = {};
    memcpy(rest, e + i, sizeof(A) * static_cast<size_t>(n - i));
    add_sixteen(rest, lanes);
  }
  alignas(64) double high[16], low[16];
  memcpy(high, &lanes.high, sizeof(high));
  memcpy(low, &lanes.low, sizeof(low));
  WideSum<A> lane[16];
  for (int l = 0; l < 16; ++l) {
    lane[l].high = high[l];
    if constexpr (sizeof(A) == sizeof(double)) lane[l].low = low[l];
  }
  return sum_of_lanes(lane);
}

// The same of n <= 16, where 16 may be read.
inline __attribute__((always_inline)) double sum_of_few(const float* e, int n) {
  using L = Lanes<float>;
  constexpr float kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  alignas(64) float few[16];
  for (int p = 0, at = 0; p < L::kParts; ++p, at += L::kWidth) {
    const auto x = load_vector<float>(e + at),
               taken = load_vector<float>(kIota + at) < static_cast<float>(n) ? x : L::Vector{};
    memcpy(few + at, &taken, sizeof(taken));
  }
  WideLanes lanes = {};
  add_sixteen(few, lanes);
  auto* part = lanes.high.part;
#pragma GCC unroll 4
  for (int parts = Lanes<double>::kParts / 2; parts > 0; parts /= 2)
    for (int p = 0; p < parts; ++p) part[p] += part[p + parts];
  double lane[Lanes<double>::kWidth];
  memcpy(lane, part, sizeof(lane));
#pragma GCC unroll 4
  for (int count = Lanes<double>::kWidth / 2; count > 0; count /= 2)
    for (int l = 0; l < count; ++l) lane[l] += lane[l + count];
  return lane[0];
}

template <typename A>
WideSum<A> sum_of(const A* e, int n) {
  return wide_sum(e, n);
}

// z = exp((z - max) / tau) in place; returns the sum.
template <typename A>
WideSum<A> exponentiate(A* z, int n, A max, A tau) {
  for (int i = 0; i < n; ++i) z[i] = exp_nonpositive((z[i] - max) / tau);
  return wide_sum(z, n);
}

// exp(x - max) / E of elements [first, first + n), as exp_over scales it; returns the sum. tau is 1.
template <typename T, typename A>
WideSum<A> race(const T* x, Key key, uint64_t first, int n, A max, A* p) {
  alignas(64) A e[kChunk];
  fill_noise<ToExponential>(key, first, n, e);
  for (int i = 0; i < n; ++i) p[i] = exp_over(static_cast<A>(x[i]) - max, e[i]);
  return wide_sum(p, n);
}

// The same without the sum, where each element has a maximum of its own.
template <typename T, typename A>
void race_each(const T* x, Key key, uint64_t first, int n, const A* max, A* p) {
  alignas(64) A e[kChunk];
  fill_noise<ToExponential>(key, first, n, e);
  for (int i = 0; i < n; ++i) p[i] = exp_over(static_cast<A>(x[i]) - max[i], e[i]);
}

// The largest of each of many short rows, ignoring NaN. False if a row has NaN, +inf or nothing but -inf.
template <typename T, typename A>
bool largest_of_rows(const T* x, int rows, int width, A* most) {
  constexpr A kInf = static_cast<A>(__builtin_inf());
  // the largest of what begins at each element and is `length` long: rows of any width, and all of them vectors
  alignas(64) A window[kChunk + kShortRow];
  const int n = rows * width;
  uint32_t nan = 0;
  for (int i = 0; i < n; ++i) window[i] = static_cast<A>(x[i]);
  for (int i = 0; i < n; ++i) nan |= window[i] != window[i] ? 1u : 0u;
  for (int i = n; i < n + width; ++i) window[i] = -kInf;
  int length = 1;
  for (; 2 * length <= width; length *= 2)
    for (int i = 0; i < n; ++i) window[i] = window[i + length] > window[i] ? window[i + length] : window[i];
  uint32_t odd = 0;
  for (int r = 0; r < rows; ++r) {
    const A a = window[r * width], b = window[(r + 1) * width - length];
    most[r] = a > b ? a : b;
    odd |= (most[r] == kInf) | (most[r] == -kInf) ? 1u : 0u;
  }
  return (nan | odd) == 0;
}

// to[r * width + i] = value[r] for i < width; what is beyond the last row, up to a vector, is overwritten.
template <typename A>
inline __attribute__((always_inline)) void spread(const A* value, int rows, int width, A* to) {
  using V = typename Lanes<A>::Vector;
  for (int r = 0; r < rows; ++r) {
    const V all = V{} + value[r];
    for (int i = 0; i < width; i += Lanes<A>::kWidth) memcpy(to + r * width + i, &all, sizeof(all));
  }
}

// Whole rows that fit in a chunk together: z = exp((z - its row's largest) / tau) in place.
template <typename A>
void exponentiate_rows(A* z, const A* most, int rows, int width, A tau) {
  alignas(64) A each[kChunk + 16];
  spread(most, rows, width, each);
  const int n = rows * width;
  for (int i = 0; i < n; ++i) z[i] = exp_nonpositive((z[i] - each[i]) / tau);
}

// race() of such rows, from the largest logit of each.
template <typename T, typename A>
void race_rows(const T* x, Key key, uint64_t first, const A* most, int rows, int width, A* p) {
  alignas(64) A each[kChunk + 16];
  spread(most, rows, width, each);
  race_each(x, key, first, rows * width, each, p);
}

// e over its sum: by a division, or by its reciprocal, which is faster and inexact at e = sum.
template <bool kDivide, typename A>
inline A over(A e, A sum_or_reciprocal) {
  return kDivide ? e / sum_or_reciprocal : e * sum_or_reciprocal;
}

// Divides such rows by their sums. z has room for 16 more.
template <bool kDivide, typename T, typename A>
void normalise_rows(const A* z, int rows, int width, T* out) {
  alignas(64) A each[kChunk + 16], total[kChunk];
  alignas(64) double sum[kChunk];
  const int n = rows * width;
  for (int r = 0; r < rows; ++r) {
    const A* e = z + r * width;
    if constexpr (sizeof(A) == sizeof(float)) {
      sum[r] = width <= 16 ? sum_of_few(e, width) : wide_sum(e, width).value();
    } else {
      sum[r] = wide_sum(e, width).value();
    }
  }
  for (int r = 0; r < rows; ++r) total[r] = kDivide ? static_cast<A>(sum[r]) : A{1} / static_cast<A>(sum[r]);
  spread(total, rows, width, each);
  for (int i = 0; i < n; ++i) out[i] = static_cast<T>(over<kDivide>(z[i], each[i]));
}

template <bool kDivide, typename T, typename A>
void normalise(const A* e, int n, A sum, T* out) {
  const A by = kDivide ? sum : A{1} / sum;
  for (int i = 0; i < n; ++i) out[i] = static_cast<T>(over<kDivide>(e[i], by));
}

template <typename T, typename A>
void softmax_gradient(const T* grad, const T* y, int n, A mean, A tau, T* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<A>(y[i]) * (static_cast<A>(grad[i]) - mean) / tau);
}
