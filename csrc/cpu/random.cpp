// The random stream itself, keys derived from a key, and noise made of given bits. The stream's definition is in
// common/philox.h.
#include "common/op.h"

#include "common/random.h"
#include "cpu/chunk.h"

#define PYSEL_KERNELS "cpu/random_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

// n 32-bit words of a stream, as int64: elements [start, start + n).
Tensor random_words(Tensor key, int64_t stream, int64_t start, int64_t n) {
  constexpr const char* op = "random_words";
  const Key k = read_key(op, key);
  check_stream(op, stream);
  check_start(op, start);
  check_not_negative(op, "n", n);
  Tensor out = empty_cpu({n}, ScalarType::Long);
  auto* word = static_cast<int64_t*>(out.data_ptr());
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      word[i] = k.word(static_cast<Stream>(stream), static_cast<uint64_t>(start) + static_cast<uint64_t>(i));
  });
  return out;
}

// 64-bit words of a stream by number, as int64.
Tensor words64(Tensor key, int64_t stream, Tensor items) {
  constexpr const char* op = "words64";
  const Key k = read_key(op, key);
  check_stream(op, stream);
  check_dtype(op, "items", items, ScalarType::Long, "int64");
  const Tensor items_c = packed(items);
  const auto* item = static_cast<const int64_t*>(items_c.data_ptr());
  Tensor out = empty_cpu(sizes(items), ScalarType::Long);
  auto* word = static_cast<uint64_t*>(out.data_ptr());
  parallel_for(items.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      word[i] = k.word64(static_cast<Stream>(stream), static_cast<uint64_t>(item[i]));
  });
  return out;
}

void write_key(Key key, int64_t* out) {
  out[0] = static_cast<int64_t>(key.seed);
  out[1] = static_cast<int64_t>(key.offset);
}

Tensor split(Tensor key, int64_t n) {
  const Key k = read_key("split", key);
  check_not_negative("split", "n", n);
  Tensor out = empty_cpu({n, 2}, ScalarType::Long);
  auto* children = static_cast<int64_t*>(out.data_ptr());
  for (int64_t i = 0; i < n; ++i) write_key(k.child(static_cast<uint64_t>(i)), children + 2 * i);
  return out;
}

Tensor fold_in(Tensor key, int64_t data) {
  const Key k = read_key("fold_in", key);
  check_not_negative("fold_in", "data", data);
  Tensor out = empty_cpu({2}, ScalarType::Long);
  write_key(k.child(static_cast<uint64_t>(data)), static_cast<int64_t*>(out.data_ptr()));
  return out;
}

Tensor noise(Tensor bits, std::string kind, bool double_precision) {
  constexpr const char* op = "noise";
  check_noise_kind(op, kind);
  check_dtype(op, "bits", bits, ScalarType::Long, "int64");
  const int which = kind == "exponential" ? 0 : kind == "gumbel" ? 1 : 2;
  const Tensor b = packed(bits);
  const auto* data = static_cast<const int64_t*>(b.data_ptr());
  Tensor out = empty_cpu(sizes(bits), double_precision ? ScalarType::Double : ScalarType::Float);
  parallel_for(bits.numel(), kGrain, [&](int64_t begin, int64_t end) {
    const auto fill = [&]<typename A>(A* to) {
      PYSEL_CHOOSE(noise_from_bits<A>)(data + begin, end - begin, which, to + begin);
    };
    if (double_precision) {
      fill(static_cast<double*>(out.data_ptr()));
    } else {
      fill(static_cast<float*>(out.data_ptr()));
    }
  });
  return out;
}
}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("random_words", PYSEL_OP(&pysel::random_words));
  m.impl("words64", PYSEL_OP(&pysel::words64));
  m.impl("split", PYSEL_OP(&pysel::split));
  m.impl("fold_in", PYSEL_OP(&pysel::fold_in));
  m.impl("noise", PYSEL_OP(&pysel::noise));
}
