// Included inside a variant's namespace (each_variant.h).

#include "cpu/noise.h"

// Soft or hard gates of elements [first, first + n); low and high clamp the soft ones inside the open interval.
template <typename T, typename A>
bool gate(const T* x, Key key, uint64_t first, int n, A tau, bool hard, A low, A high, T* out) {
  constexpr A kInf = static_cast<A>(__builtin_inf());
  alignas(64) A t[kChunk];
  fill_noise<ToLogistic>(key, first, n, t);
  uint32_t plus_inf = 0;
  for (int i = 0; i < n; ++i) {
    const A s = static_cast<A>(x[i]);
    plus_inf |= s == kInf ? 1u : 0u;
    t[i] = s + t[i];
  }
  if (hard) {
    for (int i = 0; i < n; ++i) t[i] = t[i] > A{0} ? A{1} : (t[i] != t[i] ? t[i] : A{0});
  } else {
    for (int i = 0; i < n; ++i) {
      const A w = sigmoid(t[i] / tau);
      const A floored = w < low ? low : w;
      t[i] = floored > high ? high : floored;
    }
  }
  for (int i = 0; i < n; ++i) out[i] = static_cast<T>(t[i]);
  return plus_inf != 0;
}

template <typename T, typename A>
void gate_gradient(const T* grad, const T* x, Key key, uint64_t first, int n, A tau, T* out) {
  alignas(64) A t[kChunk];
  fill_noise<ToLogistic>(key, first, n, t);
  for (int i = 0; i < n; ++i) {
    const A w = sigmoid((static_cast<A>(x[i]) + t[i]) / tau);
    out[i] = static_cast<T>(static_cast<A>(grad[i]) * (w * (A{1} - w)) / tau);
  }
}
