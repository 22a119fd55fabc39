// The random stream itself, and keys derived from a key. The stream's definition is in common/philox.h.
#include "common/op.h"

#include "common/random.h"
#include "cuda/call.cuh"

namespace pysel {
namespace {

constexpr unsigned kBlock = 256;

__global__ void random_words_kernel(KeyArgument key, Stream stream, std::uint64_t start, std::int64_t n,
                                    std::int64_t* __restrict__ out) {  // [n]
  const Key k = key.read();
  for (std::int64_t i = thread_in_grid(); i < n; i += threads_in_grid())
    out[i] = k.word(stream, start + static_cast<std::uint64_t>(i));
}

// Children [first, first + n), two words each.
__global__ void children_kernel(KeyArgument key, std::uint64_t first, std::int64_t n,
                                std::int64_t* __restrict__ out) {  // [n, 2]
  const Key k = key.read();
  for (std::int64_t i = thread_in_grid(); i < n; i += threads_in_grid()) {
    const Key child = k.child(first + static_cast<std::uint64_t>(i));
    out[2 * i] = static_cast<std::int64_t>(child.seed);
    out[2 * i + 1] = static_cast<std::int64_t>(child.offset);
  }
}

enum class Kind { exponential, gumbel, logistic };

template <typename A>
__global__ void noise_kernel(const std::int64_t* __restrict__ bits,  // [n]
                             Kind kind, std::int64_t n,
                             A* __restrict__ out) {  // [n]
  for (std::int64_t i = thread_in_grid(); i < n; i += threads_in_grid()) {
    const auto m = static_cast<std::uint64_t>(bits[i]);
    const Uniform<A> u = uniform<A>(static_cast<std::uint32_t>(m >> 32), static_cast<std::uint32_t>(m));
    out[i] = kind == Kind::exponential ? exponential(u) : kind == Kind::gumbel ? gumbel(u) : logistic(u);
  }
}

// n 32-bit words of a stream, as int64: elements [start, start + n).
Tensor random_words(Tensor key, int64_t stream, int64_t start, int64_t n) {
  constexpr const char* op = "random_words";
  const KeyArgument k(op, key, key);
  check_stream(op, stream);
  check_start(op, start);
  check_not_negative(op, "n", n);
  const Call call(key);
  Tensor out = call.empty({n}, ScalarType::Long);
  if (n > 0)
    call.launch(random_words_kernel, grid_size(n, kBlock), kBlock, k, static_cast<Stream>(stream),
                static_cast<std::uint64_t>(start), n, static_cast<int64_t*>(out.data_ptr()));
  return out;
}

Tensor split(Tensor key, int64_t n) {
  const KeyArgument k("split", key, key);
  check_not_negative("split", "n", n);
  const Call call(key);
  Tensor out = call.empty({n, 2}, ScalarType::Long);
  if (n > 0)
    call.launch(children_kernel, grid_size(n, kBlock), kBlock, k, std::uint64_t{0}, n,
                static_cast<int64_t*>(out.data_ptr()));
  return out;
}

Tensor fold_in(Tensor key, int64_t data) {
  const KeyArgument k("fold_in", key, key);
  check_not_negative("fold_in", "data", data);
  const Call call(key);
  Tensor out = call.empty({2}, ScalarType::Long);
  call.launch(children_kernel, 1, 1, k, static_cast<std::uint64_t>(data), int64_t{1},
              static_cast<int64_t*>(out.data_ptr()));
  return out;
}

Tensor noise(Tensor bits, std::string kind, bool double_precision) {
  constexpr const char* op = "noise";
  check_noise_kind(op, kind);
  check_dtype(op, "bits", bits, ScalarType::Long, "int64");
  const Kind which = kind == "exponential" ? Kind::exponential : kind == "gumbel" ? Kind::gumbel : Kind::logistic;
  const Call call(bits);
  const Tensor b = torch::stable::contiguous(bits);
  const auto* data = static_cast<const int64_t*>(b.data_ptr());
  const int64_t n = bits.numel();
  Tensor out = call.empty(sizes(bits), double_precision ? ScalarType::Double : ScalarType::Float);
  if (n == 0) return out;
  if (double_precision)
    call.launch(noise_kernel<double>, grid_size(n, kBlock), kBlock, data, which, n,
                static_cast<double*>(out.data_ptr()));
  else
    call.launch(noise_kernel<float>, grid_size(n, kBlock), kBlock, data, which, n, static_cast<float*>(out.data_ptr()));
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("random_words", PYSEL_OP(&pysel::random_words));
  m.impl("split", PYSEL_OP(&pysel::split));
  m.impl("fold_in", PYSEL_OP(&pysel::fold_in));
  m.impl("noise", PYSEL_OP(&pysel::noise));
}
