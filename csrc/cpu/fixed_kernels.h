// Included inside a variant's namespace (each_variant.h).

// Weights in fixed point, n <= kChunk. Adds them up.
template <typename T>
uint64_t fixed_weights(const T* w, int n, const FixedPoint& fixed, uint64_t* out) {
  alignas(64) double x[kChunk];
  for (int i = 0; i < n; ++i) x[i] = static_cast<double>(w[i]);
  if (fixed.log_weights)
    for (int i = 0; i < n; ++i) x[i] = exp_nonpositive(x[i] - fixed.max);
  for (int i = 0; i < n; ++i) {
    const double scaled = x[i] * fixed.scale0 * fixed.scale1;
    const double bounded = scaled > fixed.limit ? fixed.limit : scaled;
    x[i] = bounded > 0 ? bounded : 0;  // also for unchecked NaN and negative weights
  }
  if (fixed.limit < 0x1p51) {
    // adding 2^52 rounds to an integer held in the low bits
    for (int i = 0; i < n; ++i) out[i] = bit_cast<uint64_t>(x[i] + 0x1p52) - bit_cast<uint64_t>(0x1p52);
  } else {
    for (int i = 0; i < n; ++i) out[i] = static_cast<uint64_t>(__builtin_nearbyint(x[i]));
  }
  uint64_t sum = 0;
  for (int i = 0; i < n; ++i) sum += out[i];
  return sum;
}
