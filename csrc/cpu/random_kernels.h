// Included inside a variant's namespace (each_variant.h).

template <typename A>
void noise_from_bits(const int64_t* bits, int64_t n, int kind, A* out) {
  for (int64_t i = 0; i < n; ++i) {
    const auto high = static_cast<uint32_t>(static_cast<uint64_t>(bits[i]) >> 32);
    const Uniform<A> u = uniform<A>(high, static_cast<uint32_t>(bits[i]));
    out[i] = kind == 0 ? exponential(u) : kind == 1 ? gumbel(u) : logistic(u);
  }
}
