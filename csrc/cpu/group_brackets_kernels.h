// Included inside a variant's namespace (each_variant.h).

// How many of 15 ascending splits are at most the key.
template <typename Bits>
void split_bins(const Bits* keys, int n, const Bits* splits, Bits* out) {
  for (int i = 0; i < n; ++i) out[i] = 0;
  for (int s = 0; s < 15; ++s) {
    const Bits split = splits[s];
    for (int i = 0; i < n; ++i) out[i] += keys[i] >= split ? 1 : 0;
  }
}
