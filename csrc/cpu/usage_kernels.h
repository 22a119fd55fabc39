// The penalty, a chunk at a time. Included inside a variant's namespace (each_variant.h).

template <typename C, typename A>
void convert(const C* counts, int n, A* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<A>(counts[i]);
}

template <PenaltyArguments::Form form, typename S, typename A>
void penalise_by(const S* scores, const A* counts, int n, A gamma, A step, S* out) {
  for (int i = 0; i < n; ++i) out[i] = rounded<S>(penalised<form>(static_cast<A>(scores[i]), counts[i], gamma, step));
}

template <typename S, typename A>
void penalise(const S* scores, const A* counts, int n, PenaltyArguments::Form form, A gamma, A step, S* out) {
  switch (form) {
    case PenaltyArguments::log:
      return penalise_by<PenaltyArguments::log>(scores, counts, n, gamma, step, out);
    case PenaltyArguments::linear:
      return penalise_by<PenaltyArguments::linear>(scores, counts, n, gamma, step, out);
    case PenaltyArguments::exp:
      return penalise_by<PenaltyArguments::exp>(scores, counts, n, gamma, step, out);
    case PenaltyArguments::rate:
      return penalise_by<PenaltyArguments::rate>(scores, counts, n, gamma, step, out);
  }
}

template <typename C>
void scale(C* counts, int n, C factor) {
  for (int i = 0; i < n; ++i) counts[i] *= factor;
}
