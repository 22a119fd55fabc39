#pragma once

// What a selection among all keys has in common with one by group: the elements that a sample takes, and which of equal
// keys come first.

#include <cmath>

#include "common/philox.h"

namespace pysel {

// Neighbours that a sample takes together, because one key alone takes longer than its share of several.
constexpr int kRun = 16;

// Where run r of a sample of n elements begins. By splitmix64's finaliser; any choice gives the same selection.
inline int64_t start_of_run(int64_t r, int64_t runs, int64_t n) {
  const int64_t stratum = n / runs;
  uint64_t x = static_cast<uint64_t>(r) + 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return r * stratum + static_cast<int64_t>(x % static_cast<uint64_t>(stratum - kRun + 1));
}

// Which of equal keys come first: those whose elements, numbered from `first`, have the smallest 64-bit words in the
// order stream, and then the lowest index.
struct TieOrder {
  Key key;
  uint64_t first;

  uint64_t word(int64_t i) const { return key.word64(Stream::order, first + static_cast<uint64_t>(i)); }
};

struct Tied {
  uint64_t word;
  int64_t at;

  bool operator<(const Tied& other) const { return word != other.word ? word < other.word : at < other.at; }
};

// The words among which the wanted-th smallest of `tied` lies, if it is no more than some standard deviations from
// where words that are spread evenly have it.
struct WordRange {
  uint64_t low = 0, high = 0;

  WordRange() = default;
  WordRange(int64_t wanted, int64_t tied, double deviations) {
    const auto n = static_cast<double>(tied);
    const double share = static_cast<double>(wanted) / n;
    const double slack = deviations * (std::sqrt(share * (1 - share) / n) + 2 / n);
    low = word_at(share - slack);
    high = word_at(share + slack);
  }

 private:
  // The word below which a share of all words lies.
  static uint64_t word_at(double share) {
    if (share <= 0) return 0;
    return share >= 1 ? ~uint64_t{0} : static_cast<uint64_t>(share * 0x1p64);
  }
};

}  // namespace pysel
