// Included inside a variant's namespace (each_variant.h).

// Order keys of a long vector, complemented if `flip`. True if there is a NaN.
template <typename T, typename Bits>
bool fill_keys(const T* x, int n, Bits flip, Bits* out) {
  for (int i = 0; i < n; ++i) out[i] = order(x[i]);
  Bits most = 0;
  for (int i = 0; i < n; ++i) most = out[i] > most ? out[i] : most;
  for (int i = 0; i < n; ++i) out[i] ^= flip;
  return most == static_cast<OrderBits<T>>(~OrderBits<T>{0});
}
