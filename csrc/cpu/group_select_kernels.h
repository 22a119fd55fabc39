// Included inside a variant's namespace (each_variant.h).

#include "cpu/lanes.h"
#include "cpu/noise.h"

// Each element's entry of a table by group, which has room for kVectorGroups; n <= kChunk.
template <typename Bits>
void look_up(const Bits* table, const uint32_t* groups, int n, bool few, Bits* out) {
#if PYSEL_VECTOR_BYTES == 64 && !defined(__clang__)
  if constexpr (sizeof(Bits) == 4) {
    if (few) {
      typedef uint32_t Sixteen __attribute__((vector_size(64)));
      Sixteen entries, at;
      memcpy(&entries, table, sizeof(entries));
      for (int i = 0; i < n; i += 16) {
        memcpy(&at, groups + i, sizeof(at));
        const Sixteen found = __builtin_shuffle(entries, at);
        memcpy(out + i, &found, sizeof(found));
      }
      return;
    }
  }
#endif
  for (int i = 0; i < n; ++i) out[i] = table[groups[i]];
}

// A bit for each key above its group's bracket; lists the places of those within. Elements of groups that are not open
// keep their bits. A group has `copies` counts of what is above, which neighbours take in turn: few groups' would
// otherwise wait for each other.
template <typename Bits, bool all_open, uint32_t copies>
int mark_groups(const Bits* keys, const uint32_t* groups, int n, const GroupBrackets<Bits>& brackets,
                const uint8_t* open_groups, GroupTally* tallies, uint64_t* bits, uint32_t* within) {
  alignas(64) Bits low[kChunk], high[kChunk];
  alignas(64) uint8_t above[kChunk], inside[kChunk], open[kChunk];
  look_up(brackets.low, groups, n, brackets.few, low);
  look_up(brackets.high, groups, n, brackets.few, high);
  for (int i = 0; i < n; ++i) above[i] = keys[i] > high[i];
  for (int i = 0; i < n; ++i) inside[i] = (keys[i] >= low[i]) & (keys[i] <= high[i]);
  if (!all_open) {
    for (int i = 0; i < n; ++i) open[i] = open_groups[groups[i]];
    for (int i = 0; i < n; ++i) above[i] &= open[i];
    for (int i = 0; i < n; ++i) inside[i] &= open[i];
  }
  const int padded = (n + 63) & ~63;
  for (int i = n; i < padded; ++i) above[i] = inside[i] = open[i] = 0;
  int count = 0;
  for (int at = 0; at < padded; at += 64) {
    const uint64_t word = bits_of(above + at);
    bits[at / 64] = word | (all_open ? 0 : bits[at / 64] & ~bits_of(open + at));
    for (uint64_t left = word; left != 0; left &= left - 1) {
      const auto i = static_cast<uint32_t>(at + __builtin_ctzll(left));
      ++tallies[groups[i] * copies + i % copies].above;
    }
    for (uint64_t left = bits_of(inside + at); left != 0; left &= left - 1)
      within[count++] = static_cast<uint32_t>(at + __builtin_ctzll(left));
  }
  return count;
}

// Lists the places of keys that equal their group's value, where the group is one that ties.
template <typename Bits>
int tied_places(const Bits* keys, const uint32_t* groups, int n, const TieCell<Bits>* cells, uint32_t* at) {
  int count = 0;
  for (int i = 0; i < n; ++i) {
    const TieCell<Bits>& cell = cells[groups[i]];
    at[count] = static_cast<uint32_t>(i);
    count += (keys[i] == cell.value) & cell.ties;
  }
  return count;
}

// The order stream's words of some places, numbered from `first`; n <= kChunk.
inline void words_at(Key key, uint64_t first, const uint32_t* at, int n, uint64_t* out) {
  alignas(64) uint64_t elements[kChunk];
  for (int i = 0; i < n; ++i) elements[i] = first + at[i];
  gather_words(key, Stream::order, elements, n, out);
}
