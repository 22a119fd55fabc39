// Included inside a variant's namespace (each_variant.h).

// Groups of a chunk as 32-bit numbers. True if one is outside [0, count).
template <typename G>
bool narrow_groups(const G* groups, int n, int64_t count, uint32_t* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<uint32_t>(groups[i]);
  uint64_t all = 0;
  if (sizeof(G) == 8)
    for (int i = 0; i < n; ++i) all |= static_cast<uint64_t>(groups[i]);
  // each a loop of one width, which vectorises
  const uint32_t limit = count >> 32 ? ~uint32_t{0} : static_cast<uint32_t>(count);
  uint32_t outside = 0;
  for (int i = 0; i < n; ++i) outside += out[i] >= limit ? 1 : 0;
  return outside != 0 || all >> 32 != 0;
}
