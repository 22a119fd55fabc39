// The penalty, a chunk at a time. Included inside a variant's namespace (each_variant.h).

template <typename C, typename A>
void convert(const C* counts, int n, A* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<A>(counts[i]);
}

template <typename S, typename A>
void penalise(const S* scores, const A* counts, int n, PenaltyArguments::Form form, A gamma, A step, S* out) {
  switch (form) {
    case PenaltyArguments::log:
      for (int i = 0; i < n; ++i) out[i] = rounded<S>(static_cast<A>(scores[i]) - gamma * log1p_any(counts[i]));
      break;
    case PenaltyArguments::linear:
      for (int i = 0; i < n; ++i) out[i] = rounded<S>(static_cast<A>(scores[i]) - gamma * counts[i]);
      break;
    case PenaltyArguments::exp:
      for (int i = 0; i < n; ++i) out[i] = rounded<S>(static_cast<A>(scores[i]) * exp_clamped(-(gamma * counts[i])));
      break;
    case PenaltyArguments::rate:
      for (int i = 0; i < n; ++i) out[i] = rounded<S>(static_cast<A>(scores[i]) - gamma * counts[i] / step);
      break;
  }
}
