// Elements of a keyed permutation of [0, n), in any range. What it is, is in common/permutation.h.
#include "common/op.h"

#include <cstring>
#include <numeric>

#include "common/permutation.h"
#include "common/random.h"
#include "cpu/chunk.h"

#define PYSEL_KERNELS "cpu/permutation_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

std::vector<int64_t> shuffled(Key key, int64_t n) {
  std::vector<uint64_t> word(static_cast<size_t>(n));
  for (size_t i = 0; i < word.size(); ++i) word[i] = key.word64(Stream::permutation, i);
  std::vector<int64_t> order(word.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t x, int64_t y) { return word[static_cast<size_t>(x)] < word[static_cast<size_t>(y)]; });
  return order;
}

Tensor permutation(int64_t n, Tensor key, int64_t start, int64_t stop) {
  constexpr const char* op = "permutation";
  const Key given = read_key(op, key);
  check_range(op, n, start, stop);
  const Key own = permutation_key(given, n);
  Tensor out = empty_cpu({stop - start}, ScalarType::Long);
  auto* to = static_cast<int64_t*>(out.data_ptr());
  if (n <= kShuffled) {
    const std::vector<int64_t> order = shuffled(own, n);
    std::copy(order.begin() + start, order.begin() + stop, to);
    return out;
  }
  const FeistelTable table(static_cast<uint64_t>(n));
  FeistelRound rounds[kFeistelRounds];
  for (int r = 0; r < kFeistelRounds; ++r) rounds[r] = FeistelRound::of(own, r);
  each_chunk(stop - start, true, [&](int64_t chunk) {
    const int count = chunk_size(stop - start, chunk);
    auto* element = reinterpret_cast<uint64_t*>(to + chunk * kChunk);
    if (!PYSEL_CHOOSE(pass)(table, rounds, static_cast<uint64_t>(start + chunk * kChunk), count, element)) return;
    for (int i = 0; i < count; ++i)
      if (element[i] >= table.n) element[i] = feistel(table, rounds, element[i]);
  });
  return out;
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) { m.impl("permutation", PYSEL_OP(&pysel::permutation)); }
