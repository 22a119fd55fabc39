// Included inside a variant's namespace (each_variant.h).

// What validation needs to know of weights: the number that can be drawn, and whether all are permitted.
template <typename T, typename A>
WeightSummary summarise(const T* w, int64_t n, bool log_weights) {
  const A inf = static_cast<A>(__builtin_inf());
  const A floor = log_weights ? -inf : A{0};
  int64_t nonzero = 0;
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const A v = static_cast<A>(w[i]);
    nonzero += v > floor;
    bad |= ((v >= floor) & (v < inf)) ? 0u : 1u;
  }
  return {nonzero, bad != 0};
}
