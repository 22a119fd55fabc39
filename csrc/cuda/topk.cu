// Top-k of rows, and of an encoder's activations (TopK sparse autoencoders: Gao et al., arXiv 2406.04093).
//
// A block reads a row once, and keeps what may be among its best: see top.cuh.
//
// Few long rows are cut into parts, a block each, and the parts' best are merged. The encoder's hidden units come as
// tiles of a GEMM; what a part has kept so far waits in global memory for the next tile:
//
//   State     entries [part 0: room][part 1: room] ...   count [parts]   gate [parts]
//
// Short rows with a small k take a warp each. Where k is too large for shared memory, the best are selected
// (select.cuh) and take torch's stable sort, by order keys as integers: torch sorts floats with negative NaN at the
// other end.
#include "common/op.h"

#include <array>
#include <tuple>

#include "common/codes.h"
#include "cuda/select.cuh"
#include "cuda/sort.cuh"
#include "cuda/top.cuh"

namespace pysel {
namespace {

constexpr unsigned kShortBlock = 4 * kWarp;
constexpr std::int64_t kShortRow = 256;  // up to here, and up to a warp's k, a warp takes a row

// --- what kernels write ---

template <typename T>
struct Output {
  T* values;              // [rows, k]
  std::int64_t* indices;  // [rows, k]
  const T* x;             // [rows, n], where the values come from; null: activations, which the entries hold
  std::int64_t n;
  Rank rank = Rank::value;  // of activations: magnitudes, with the sign below the index, or what relu leaves
};

template <typename T, typename Entry, unsigned kRoom, Rank kRank>
__device__ void write_row(Top<T, Entry, kRoom, kRank>& top, unsigned k, const Output<T>& out, std::int64_t row) {
  using P = Packed<T, Entry>;
  T* values = out.values + row * k;
  std::int64_t* indices = out.indices + row * k;
  Entry* entries = top.entries();
  top.keep();
  const unsigned count = top.count();
  top.sort(count);
  for (unsigned j = threadIdx.x; j < count; j += blockDim.x) {
    std::int64_t i = P::index(entries[j]);
    const bool negative = out.rank == Rank::magnitude && i % 2 != 0;
    if (out.rank == Rank::magnitude) i /= 2;
    indices[j] = i;
    values[j] = out.x != nullptr ? out.x[row * out.n + i] : from_magnitude<T>(P::key(entries[j]), negative);
  }
  if (count == k) return;

  // Fewer than k positive activations: zeros, lowest index first. Of the indices taken, in ascending order, the i-th
  // has taken[i] - i free ones below it.
  __syncthreads();
  for (unsigned j = threadIdx.x; j < count; j += blockDim.x) entries[j] &= P::kIndexMask;
  top.sort(count);
  for (unsigned j = count + threadIdx.x; j < k; j += blockDim.x) {
    const std::int64_t free = j - count;
    unsigned low = 0, high = count;
    while (low < high) {
      const unsigned middle = (low + high) / 2;
      if (P::index(entries[middle]) - middle > free)
        high = middle;
      else
        low = middle + 1;
    }
    indices[j] = free + low;
    values[j] = static_cast<T>(0.0f);
  }
}

template <typename T, typename Entry, unsigned kRoom, Rank kRank>
__device__ void save(Top<T, Entry, kRoom, kRank>& top, const State<Entry>& state, std::int64_t task, unsigned saved) {
  if (saved + top.count() > state.room) {
    __syncthreads();  // every thread has read the count
    if (saved > 0) top.merge(state, task, 1u);
    top.keep();
    saved = 0;
  }
  Entry* entries = state.entries + task * state.room;
  for (unsigned i = threadIdx.x; i < top.count(); i += blockDim.x) entries[saved + i] = top.entries()[i];
  if (threadIdx.x == 0) {
    state.count[task] = saved + top.count();
    state.gate[task] = top.gate();
  }
}

// --- the kernels ---

// The best of each part of each row, into `state` where there is one, else written.
template <typename T, typename Entry, unsigned kRoom, Rank kRank>
__global__ void __launch_bounds__(kMostThreads)
    rows_kernel(const T* __restrict__ x,  // [rows, n]
                std::int64_t rows, std::int64_t n, std::int64_t parts,
                std::int64_t part,       // parts of a row, and elements of each but the last
                std::int64_t first,      // index of a row's first element
                unsigned k, Entry gate,  // the gate of a task without saved state
                bool fresh,              // no task has any
                State<Entry> state, Output<T> out) {
  auto& buffer = shared<Buffer<Entry, kRoom>>();
  for (std::int64_t task = blockIdx.x; task < rows * parts; task += gridDim.x) {
    const std::int64_t row = task / parts, begin = task % parts * part;
    const std::int64_t size = larger(smaller(part, n - begin), std::int64_t{0});  // 0: behind a tile's end
    const T* here = x + row * n + begin;
    const unsigned saved = fresh ? 0 : state.count[task];  // here, as barriers follow before a thread changes it
    Top<T, Entry, kRoom, kRank> top(buffer, k, fresh ? gate : state.gate[task]);
    if (fresh && size > kRoom) top.bound(here, size);
    top.scan(here, size, first + begin);
    if (state.room > 0)
      save(top, state, task, saved);
    else
      write_row(top, k, out, row);
  }
}

// The best of every `fan` parts, into `merged` where it is one, else written.
template <typename T, typename Entry, unsigned kRoom>
__global__ void __launch_bounds__(kMostThreads, 2)
    merge_kernel(State<Entry> state,  // of [rows, parts] tasks
                 std::int64_t rows, std::int64_t parts, std::int64_t fan, unsigned k,
                 State<Entry> merged,  // of [rows, parts / fan] tasks
                 Output<T> out) {
  auto& buffer = shared<Buffer<Entry, kRoom>>();
  const std::int64_t groups = (parts - 1) / fan + 1;
  for (std::int64_t task = blockIdx.x; task < rows * groups; task += gridDim.x) {
    const std::int64_t row = task / groups, begin = task % groups * fan;
    Top<T, Entry, kRoom> top(buffer, k, 0);
    top.merge(state, row * parts + begin, static_cast<unsigned>(smaller(fan, parts - begin)));
    if (merged.room > 0)
      save(top, merged, task, 0u);
    else
      write_row(top, k, out, row);
  }
}

// A row of up to 32 kEach elements in the registers of a warp, which picks the best k times, k <= 32.
template <typename T, typename Entry, unsigned kEach>
__global__ void __launch_bounds__(kShortBlock) short_rows_kernel(std::int64_t rows, unsigned k, Output<T> out) {
  using P = Packed<T, Entry>;
  const auto n = static_cast<unsigned>(out.n);
  const unsigned lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  for (std::int64_t row = std::int64_t{blockIdx.x} * warps + threadIdx.x / kWarp; row < rows;
       row += std::int64_t{gridDim.x} * warps) {
    const T* x = out.x + row * n;
    Entry mine[kEach], most = 0, kept = 0;
#pragma unroll
    for (unsigned i = 0; i < kEach; ++i) {
      const unsigned at = i * kWarp + lane;
      mine[i] = at < n ? P::pack(order(x[at]), at) : 0;
      most = larger(most, mine[i]);
    }
    for (unsigned j = 0; j < k; ++j) {
      const Entry best = warp_reduce(most, Largest());
      if (lane == j) kept = best;
      if (most != best) continue;
      most = 0;
#pragma unroll
      for (unsigned i = 0; i < kEach; ++i) {
        if (mine[i] == best) mine[i] = 0;
        most = larger(most, mine[i]);
      }
    }
    if (lane < k) {
      const std::int64_t i = P::index(kept);
      out.indices[row * k + lane] = i;
      out.values[row * k + lane] = x[i];
    }
  }
}

// --- launches ---

constexpr std::int64_t kBlocks = 1024;  // enough for any GPU to have work everywhere

// The interpreter is slow, and its cases must see several parts, several tiles and wide entries.
#ifdef __CUDACC__
constexpr std::int64_t kNarrowIndices = std::int64_t{1} << 32;  // what 32 bits of an entry can tell apart
constexpr std::int64_t kLeastPart = 1 << 14;
constexpr std::int64_t kTileRows = 4096, kLeastColumns = 512;
constexpr std::int64_t kTileBytes = 32 << 20;  // stays in the L2 cache of the larger GPUs until it is scanned
constexpr std::int64_t kStateBytes = 64 << 20;
constexpr std::int64_t kRowsBytes = 128 << 20;   // of whole rows of activations: the GEMM wants some hundred rows
constexpr std::int64_t kSortedInBlock = 4096;    // elements of a row that torch's sort keeps in shared memory
constexpr std::int64_t kSortedAtOnce = 1 << 23;  // elements; the sort takes some 40 bytes for each
constexpr std::int64_t kWarps = 4096;            // that find work on any GPU at once
#else
constexpr std::int64_t kNarrowIndices = 1 << 15;
constexpr std::int64_t kLeastPart = 1 << 10;
constexpr std::int64_t kTileRows = 8, kLeastColumns = 64;
constexpr std::int64_t kTileBytes = 1 << 12, kStateBytes = 1 << 16, kRowsBytes = 1 << 13;
constexpr std::int64_t kSortedInBlock = 1100, kSortedAtOnce = 1 << 12;
constexpr std::int64_t kWarps = 1;
#endif

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a - 1) / b + 1; }

// Threads for a part of this many bytes: each has a step's worth, if it can.
unsigned block_for(std::int64_t bytes) {
  unsigned block = kWarp;
  while (block < kMostThreads && block * kLoads * 16 < bytes) block *= 2;
  return block;
}

// Threads for a part behind the first tile, of which the gate lets little through, unless activations rise from tile to
// tile. What a warp does once a part takes it as long as several steps, and its others would wait for it; so one warp
// takes a part, or as few as leave none of the device's warps without a part. Not where buffers are so large that a
// multiprocessor holds few blocks.
template <unsigned kRoom>
unsigned gated_block(unsigned block, std::int64_t tasks) {
  if constexpr (kRoom <= 1024)
    while (block > kWarp && tasks * (block / kWarp) >= 2 * kWarps) block /= 2;
  return block;
}

// How rows are cut into parts, so that few long ones still occupy the device.
struct Parts {
  std::int64_t count, size;

  Parts(std::int64_t rows, std::int64_t n, std::int64_t k) {
    const std::int64_t wanted = std::min(kBlocks / rows, n / std::max(kLeastPart, 16 * k));
    size = wanted > 1 ? ceil_div(ceil_div(n, wanted), 64) * 64 : n;  // a multiple, so that parts stay aligned
    count = ceil_div(n, size);
  }
};

// Workspace of a State.
template <typename Entry>
class Saved {
 public:
  Saved(const Call& call, std::int64_t tasks, std::int64_t room)
      : entries_(call.empty({tasks, room * kWords}, ScalarType::Long)),
        gate_(call.empty({tasks * kWords}, ScalarType::Long)),
        count_(call.empty({tasks}, ScalarType::Int)),
        room_(room) {}

  State<Entry> state() const {
    return {static_cast<Entry*>(entries_.data_ptr()), static_cast<unsigned*>(count_.data_ptr()),
            static_cast<Entry*>(gate_.data_ptr()), static_cast<unsigned>(room_)};
  }

 private:
  static constexpr std::int64_t kWords = sizeof(Entry) / sizeof(std::int64_t);
  Tensor entries_, gate_, count_;
  std::int64_t room_;
};

// The best of `parts` tasks a row, merged level by level, and written.
template <typename T, typename Entry, unsigned kRoom>
void merge(const Call& call, Saved<Entry> saved, std::int64_t rows, std::int64_t parts, std::int64_t k,
           const Output<T>& out) {
  constexpr std::int64_t kFan = 32;
  for (;;) {
    const std::int64_t fan = std::min(parts, kFan), groups = ceil_div(parts, fan);
    const State<Entry> state = saved.state();
    const unsigned block = block_for(fan * state.room * static_cast<std::int64_t>(sizeof(Entry)));
    if (groups == 1) {
      call.launch(merge_kernel<T, Entry, kRoom>, grid_size(rows, 1), block, state, rows, parts, fan,
                  static_cast<unsigned>(k), State<Entry>{}, out);
      return;
    }
    Saved<Entry> next(call, rows * groups, k);
    call.launch(merge_kernel<T, Entry, kRoom>, grid_size(rows * groups, 1), block, state, rows, parts, fan,
                static_cast<unsigned>(k), next.state(), out);
    saved = next;
    parts = groups;
  }
}

// f.template operator()<Entry, kRoom>(): 64-bit entries where key and index fit. A small buffer lets more blocks share
// a multiprocessor.
template <typename T, typename F>
void dispatch_entry(std::int64_t n, std::int64_t k, F f) {
  if constexpr (sizeof(T) <= 4) {
    if (sizeof(T) < 4 || n <= kNarrowIndices) {
      if (k <= 256)
        f.template operator()<std::uint64_t, 1024>();
      else
        f.template operator()<std::uint64_t, 4096>();
      return;
    }
  }
  if constexpr (sizeof(T) >= 4) f.template operator()<Wide, 2048>();
}

// --- by sorting ---

// Rows of elements, or of activations, which are ranked by what relu leaves of them or by their magnitudes: a source of
// keys for select_rows.
template <typename T>
struct Elements {
  using Bits = OrderBits<T>;
  const T* x;  // [rows, n]
  std::int64_t n;
  bool activations;
  Rank rank;

  Elements rows_from(std::int64_t first) const { return {x + first * n, n, activations, rank}; }

  __device__ Bits key(T element) const {
    if (rank == Rank::magnitude) return order_by<Rank::magnitude>(element);
    const Bits least = activations ? order(static_cast<T>(0.0f)) : Bits{0};
    return larger(order(element), least);
  }
  __device__ void keys(const Row& row, std::int64_t r, std::int64_t quad, Bits (&keys)[4], Seen&) const {
    T four[4];
    row.load(x + r * n, quad, static_cast<T>(0.0f), four);
    for (int i = 0; i < 4; ++i) keys[i] = key(four[i]);
  }

  // What is written of an element that is among the best.
  __device__ T value(T element) const {
    const bool negative = rank == Rank::magnitude && signed_index<Rank::magnitude>(0, element) != 0;
    return activations ? from_magnitude<T>(key(element), negative) : element;
  }
};

// Order keys as signed integers, for sorting by torch.
template <typename T>
using SortKey = std::make_signed_t<OrderBits<T>>;

template <typename T>
constexpr ScalarType kSortKeyType = sizeof(T) == 2   ? ScalarType::Short
                                    : sizeof(T) == 4 ? ScalarType::Int
                                                     : ScalarType::Long;

template <typename T>
__global__ void sort_keys_kernel(Elements<T> elements,
                                 const std::int64_t* __restrict__ some,  // [rows, width] to be sorted; null: all
                                 std::int64_t rows, std::int64_t width,
                                 SortKey<T>* __restrict__ keys) {  // [rows, width]
  constexpr auto sign = static_cast<OrderBits<T>>(OrderBits<T>{1} << (8 * sizeof(T) - 1));
  for (std::int64_t i = thread_in_grid(); i < rows * width; i += threads_in_grid()) {
    const std::int64_t at = some != nullptr ? some[i] : i % width;
    keys[i] = static_cast<SortKey<T>>(elements.key(elements.x[i / width * elements.n + at]) ^ sign);
  }
}

template <typename T>
__global__ void write_sorted_kernel(Elements<T> elements,
                                    const std::int64_t* __restrict__ some,    // as above
                                    const std::int64_t* __restrict__ sorted,  // [rows, width] places, best first
                                    std::int64_t rows, std::int64_t width, std::int64_t k,
                                    T* __restrict__ values,                // [rows, k]
                                    std::int64_t* __restrict__ indices) {  // [rows, k]
  for (std::int64_t i = thread_in_grid(); i < rows * k; i += threads_in_grid()) {
    const std::int64_t row = i / k, place = sorted[row * width + i % k];
    const std::int64_t at = some != nullptr ? some[row * width + place] : place;
    indices[i] = at;
    values[i] = elements.value(elements.x[row * elements.n + at]);
  }
}

// The k best are selected, in the order of their indices, and sorted: stably, so that ties stay in it. Rows that torch
// sorts in a block's memory are read and written once for that, and selecting would cost more.
template <typename T>
void topk_by_sort(const Call& call, const Elements<T>& elements, std::int64_t rows, std::int64_t k, T* values,
                  std::int64_t* indices) {
  const bool all = elements.n <= kSortedInBlock || elements.n == k;
  const std::int64_t width = all ? elements.n : k;
  const std::int64_t most = std::clamp<std::int64_t>(kSortedAtOnce / width, 1, rows);
  for (std::int64_t row = 0; row < rows; row += most) {
    const std::int64_t r = std::min(most, rows - row);
    const Elements<T> here = elements.rows_from(row);
    const auto best = call.room<std::int64_t>(all ? 0 : r * k);
    const std::int64_t* some = all ? nullptr : best.data();
    if (!all) select_rows(call, here, NoiseArgument{}, NoiseArgument{}, r, here.n, k, SelectReports{}, best.data());
    const Tensor keys = call.empty({r, width}, kSortKeyType<T>);
    call.launch(sort_keys_kernel<T>, grid_size(r * width, kMostThreads), kMostThreads, here, some, r, width,
                static_cast<SortKey<T>*>(keys.data_ptr()));
    const Tensor sorted = std::get<1>(sort_rows(keys, true));
    call.launch(write_sorted_kernel<T>, grid_size(r * k, kMostThreads), kMostThreads, here, some,
                static_cast<const std::int64_t*>(sorted.data_ptr()), r, width, k, values + row * k, indices + row * k);
  }
}

// --- topk ---

template <typename T>
void topk_rows(const Call& call, const T* x, std::int64_t rows, std::int64_t n, std::int64_t k, const Output<T>& out) {
  if (k > kMostK) return topk_by_sort<T>(call, {x, n, false, Rank::value}, rows, k, out.values, out.indices);
  const auto few = static_cast<unsigned>(k);
  if (n <= kShortRow && k <= kWarp) {
    using Entry = std::conditional_t<sizeof(T) <= 4, std::uint64_t, Wide>;
    constexpr unsigned block = kShortBlock;
    const unsigned grid = grid_size(rows, block / kWarp);
    if (n <= 2 * kWarp)
      call.launch(short_rows_kernel<T, Entry, 2>, grid, block, rows, few, out);
    else
      call.launch(short_rows_kernel<T, Entry, 8>, grid, block, rows, few, out);
    return;
  }
  dispatch_entry<T>(n, k, [&]<typename Entry, unsigned kRoom>() {
    const Parts parts(rows, n, k);
    const unsigned block = block_for(parts.size * static_cast<std::int64_t>(sizeof(T)));
    auto scan = [&](const State<Entry>& state) {
      call.launch(rows_kernel<T, Entry, kRoom, Rank::value>, grid_size(rows * parts.count, 1), block, x, rows, n,
                  parts.count, parts.size, std::int64_t{0}, few, Entry{0}, true, state, out);
    };
    if (parts.count == 1) return scan(State<Entry>{});
    const Saved<Entry> saved(call, rows * parts.count, k);
    scan(saved.state());
    merge<T, Entry, kRoom>(call, saved, rows, parts.count, k, out);
  });
}

std::tuple<Tensor, Tensor> topk(Tensor x, int64_t k) {
  constexpr const char* op = "topk";
  const int64_t n = check_topk(op, x, k);
  check_value(k <= kMostSorted, op, ": k must be below 2^31 on a GPU, got ", k);
  const Call call(x);
  std::vector<int64_t> size = sizes(x);
  size.back() = k;
  Tensor values = call.empty(size, x.scalar_type()), indices = call.empty(size, ScalarType::Long);
  dispatch_floating(op, "x", x, [&]<typename T>() {
    if (values.numel() == 0) return;
    const Tensor rows = torch::stable::contiguous(x);
    const T* data = static_cast<const T*>(rows.data_ptr());
    topk_rows<T>(call, data, x.numel() / n, n, k,
                 {static_cast<T*>(values.data_ptr()), static_cast<int64_t*>(indices.data_ptr()), data, n});
  });
  return {values, indices};
}

// --- topk_encode ---

// Tiles of x @ weight.T + bias by torch's own GEMM, one after the other in the same memory.
class Activations {
 public:
  Activations(const Call& call, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
              std::int64_t tile_rows, std::int64_t tile_hidden)
      : x_(x), weight_(weight), bias_(bias), workspace_(call.empty({tile_rows * tile_hidden}, x.scalar_type())) {}

  // Contiguous [r, h]: rows from `row` on, units from `unit` on.
  const void* tile(std::int64_t row, std::int64_t r, std::int64_t unit, std::int64_t h) {
    using torch::stable::narrow;
    using torch::stable::detail::from;
    const std::int64_t size[] = {r, h};
    const Tensor out = torch::stable::view(narrow(workspace_, 0, 0, r * h), {size, 2});
    std::optional<Tensor> bias;
    if (bias_) bias = narrow(*bias_, 0, unit, h);
    std::array<StableIValue, 4> stack{from(narrow(x_, 0, row, r)), from(narrow(weight_, 0, unit, h)), from(bias),
                                      from(out)};
    call_torch("aten::linear", "out", stack.data());
    torch::stable::detail::to<Tensor>(stack[0]);  // the dispatcher returned a handle of its own: release it
    return workspace_.data_ptr();
  }

 private:
  Tensor x_, weight_;
  std::optional<Tensor> bias_;
  Tensor workspace_;
};

template <typename T, typename Entry, unsigned kRoom, Rank kRank>
void encode(const Call& call, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, std::int64_t k,
            const Output<T>& out) {
  const std::int64_t rows = x.size(0), hidden = weight.size(0);
  const std::int64_t room = k + std::max<std::int64_t>(k, 64);
  const std::int64_t tile_rows =
      std::min({rows, kTileRows, kStateBytes / (room * static_cast<std::int64_t>(sizeof(Entry)))});
  const std::int64_t columns =
      std::max(kTileBytes / (tile_rows * static_cast<std::int64_t>(sizeof(T))), kLeastColumns) / 64 * 64;
  const std::int64_t tile_hidden = std::min(hidden, columns);
  const Parts parts(tile_rows, tile_hidden, k);
  const unsigned block = block_for(parts.size * static_cast<std::int64_t>(sizeof(T)));
  const Entry positive = Packed<T, Entry>::below(static_cast<OrderBits<T>>(order(static_cast<T>(0.0f)) + 1));
  const Entry gate = kRank == Rank::value ? positive : Entry{0};

  Activations activations(call, x, weight, bias, tile_rows, tile_hidden);
  const Saved<Entry> saved(call, tile_rows * parts.count, room);
  for (std::int64_t row = 0; row < rows; row += tile_rows) {
    const std::int64_t r = std::min(tile_rows, rows - row);
    for (std::int64_t unit = 0; unit < hidden; unit += tile_hidden) {
      const std::int64_t h = std::min(tile_hidden, hidden - unit);
      const T* tile = static_cast<const T*>(activations.tile(row, r, unit, h));
      const std::int64_t tasks = r * parts.count;
      call.launch(rows_kernel<T, Entry, kRoom, kRank>, grid_size(tasks, 1),
                  unit == 0 ? block : gated_block<kRoom>(block, tasks), tile, r, h, parts.count, parts.size, unit,
                  static_cast<unsigned>(k), gate, unit == 0, saved.state(), Output<T>{});
    }
    merge<T, Entry, kRoom>(call, saved, r, parts.count, k,
                           {out.values + row * k, out.indices + row * k, nullptr, 0, kRank});
  }
}

// Any k: tiles of whole rows.
template <typename T>
void encode_by_sort(const Call& call, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    std::int64_t k, const Output<T>& out) {
  const std::int64_t rows = x.size(0), hidden = weight.size(0);
  const std::int64_t tile_rows =
      std::clamp<std::int64_t>(kRowsBytes / (hidden * static_cast<std::int64_t>(sizeof(T))), 1, rows);
  Activations activations(call, x, weight, bias, tile_rows, hidden);
  for (std::int64_t row = 0; row < rows; row += tile_rows) {
    const std::int64_t r = std::min(tile_rows, rows - row);
    const T* tile = static_cast<const T*>(activations.tile(row, r, 0, hidden));
    topk_by_sort<T>(call, {tile, hidden, true, out.rank}, r, k, out.values + row * k, out.indices + row * k);
  }
}

std::tuple<Tensor, Tensor> topk_encode(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t k,
                                       std::string activation) {
  constexpr const char* op = "topk_encode";
  check_topk_encode(op, x, weight, bias, k, activation);
  check_value(k <= kMostSorted, op, ": k must be below 2^31 on a GPU, got ", k);
  const int64_t hidden = weight.size(0);
  const Rank rank = activation == "abs" ? Rank::magnitude : Rank::value;
  const Call call(x);
  Tensor values = call.empty({x.size(0), k}, x.scalar_type()), indices = call.empty({x.size(0), k}, ScalarType::Long);
  dispatch_floating(op, "x", x, [&]<typename T>() {
    if (values.numel() == 0) return;
    const Output<T> out{static_cast<T*>(values.data_ptr()), static_cast<int64_t*>(indices.data_ptr()), nullptr, 0,
                        rank};
    if (k > kMostK) return encode_by_sort<T>(call, x, weight, bias, k, out);
    if (rank == Rank::value)
      dispatch_entry<T>(hidden, k, [&]<typename Entry, unsigned kRoom>() {
        encode<T, Entry, kRoom, Rank::value>(call, x, weight, bias, k, out);
      });
    else
      dispatch_entry<T>(2 * hidden, k, [&]<typename Entry, unsigned kRoom>() {
        encode<T, Entry, kRoom, Rank::magnitude>(call, x, weight, bias, k, out);
      });
  });
  return {values, indices};
}

}  // namespace
}  // namespace pysel

PYSEL_CUDA_KERNELS(m) {
  m.impl("topk", PYSEL_OP(&pysel::topk));
  m.impl("topk_encode", PYSEL_OP(&pysel::topk_encode));
}
