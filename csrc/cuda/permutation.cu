// Elements of a keyed permutation of [0, n), in any range. What it is, is in common/permutation.h.
#include "common/op.h"

#include "common/permutation.h"
#include "cuda/call.cuh"

namespace pysel {
namespace {

constexpr unsigned kBlock = 256;
constexpr int kEach = 4;  // elements of a thread: every block begins by drawing the rounds

struct Rounds {
  FeistelRound round[kFeistelRounds];
};

__global__ void feistel_kernel(KeyArgument key, FeistelTable table, std::uint64_t start, std::int64_t count,
                               std::int64_t* __restrict__ out) {  // [count]
  Rounds& rounds = shared<Rounds>();
  if (threadIdx.x < kFeistelRounds)
    rounds.round[threadIdx.x] = FeistelRound::of(permutation_key(key.read(), static_cast<std::int64_t>(table.n)),
                                                 static_cast<int>(threadIdx.x));
  __syncthreads();
  for (std::int64_t i = thread_in_grid(); i < count; i += threads_in_grid())
    out[i] = static_cast<std::int64_t>(feistel(table, rounds.round, start + static_cast<std::uint64_t>(i)));
}

struct Words {
  std::uint64_t word[kShuffled];
};

// A thread finds the place of one of the n words in their order.
__global__ void shuffle_kernel(KeyArgument key, unsigned n, unsigned start, unsigned stop,
                               std::int64_t* __restrict__ out) {  // [stop - start]
  auto& words = shared<Words>().word;
  const Key own = permutation_key(key.read(), n);
  for (unsigned i = threadIdx.x; i < n; i += blockDim.x) words[i] = own.word64(Stream::permutation, i);
  __syncthreads();
  const auto i = static_cast<unsigned>(thread_in_grid());
  if (i >= n) return;
  unsigned place = 0;
  for (unsigned j = 0; j < n; ++j) place += words[j] < words[i] || (words[j] == words[i] && j < i);
  if (start <= place && place < stop) out[place - start] = i;
}

Tensor permutation(int64_t n, Tensor key, int64_t start, int64_t stop) {
  constexpr const char* op = "permutation";
  const KeyArgument k(op, key, key);
  check_range(op, n, start, stop);
  const Call call(key);
  const int64_t count = stop - start;
  Tensor out = call.empty({count}, ScalarType::Long);
  auto* to = static_cast<int64_t*>(out.data_ptr());
  if (count == 0) return out;
  if (n <= kShuffled) {
    const auto blocks = static_cast<unsigned>((n - 1) / kBlock + 1);
    call.launch(shuffle_kernel, blocks, kBlock, k, static_cast<unsigned>(n), static_cast<unsigned>(start),
                static_cast<unsigned>(stop), to);
  } else {
    call.launch(feistel_kernel, grid_size(count, kBlock * kEach), kBlock, k, FeistelTable(static_cast<uint64_t>(n)),
                static_cast<std::uint64_t>(start), count, to);
  }
  return out;
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) { m.impl("permutation", PYSEL_OP(&pysel::permutation)); }
