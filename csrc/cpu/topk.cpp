// Top-k of rows and of an encoder's activations (TopK sparse autoencoders: Gao et al., arXiv
// 2406.04093).
//
// A row is read once, for the maximum of each group of elements. At least k elements reach the k-th largest of those
// maxima, so only groups that reach it are looked into, and what exceeds the gate there is kept:
//
//   row      |....|.x..|....|..x.|....|   groups
//   maxima     3    9    2    8    1      gate: just below the k-th largest (k = 2: below 8)
//   entries    9, 8                       key above inverted index in one integer, so ties go to the lowest index
//
// When the entries overflow, the k largest stay and the gate rises to the k-th. The encoder carries gate and entries
// from one tile of its hidden units to the next, so its activations exist a tile a thread only; what it ranks by
// magnitude has its sign below the index. Tiles come in whatever order threads are done with them, of which the k
// largest do not depend.
#include "common/op.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <tuple>

#include "common/codes.h"
#include "common/math.h"
#include "common/order.h"
#include "cpu/chunk.h"

namespace pysel {
namespace {

constexpr int kMostGroup = 64;

// Order key and index in one integer, larger is better: key, then lowest index.
__extension__ using Wide = unsigned __int128;

template <typename Entry>
constexpr int kIndexBits = 4 * sizeof(Entry);

template <typename Entry, typename Bits>
PYSEL_HD Entry pack(Bits key, int64_t index) {
  constexpr Entry mask = (Entry{1} << kIndexBits<Entry>)-1;
  return static_cast<Entry>(key) << kIndexBits<Entry> | (mask - static_cast<Entry>(index));
}

template <typename Entry>
int64_t index_of(Entry e) {
  constexpr Entry mask = (Entry{1} << kIndexBits<Entry>)-1;
  return static_cast<int64_t>(mask - (e & mask));
}

}  // namespace
}  // namespace pysel

#define PYSEL_KERNELS "cpu/topk_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

// f.template operator()<Entry>() with 64-bit entries where key and index fit in 32 bits each.
template <typename T, typename F>
void dispatch_entry(int64_t n, F f) {
  if constexpr (sizeof(T) <= 4)
    if (n <= int64_t{1} << 32) return f.template operator()<uint64_t>();
  f.template operator()<Wide>();
}

// The k largest of a row that arrives a piece at a time. `entries` has room for room(k).
template <typename T, typename Entry, Rank kRank = Rank::value>
class RowTop {
 public:
  using Bits = OrderBits<T>;

  static int64_t room(int64_t k) { return k + std::max<int64_t>(k, kMostGroup) + kMostGroup; }

  // Keys up to `gate` are never taken; no key is 0.
  RowTop(Entry* entries, int64_t k, Bits gate) : entries_(entries), k_(k), gate_(gate) {}

  // Row elements [first, first + n). `maxima` is scratch.
  void scan(const T* x, int64_t n, int64_t first, std::vector<Bits>& maxima) {
    raise_gate(first);
    if (n / kMostGroup >= 4 * k_)
      scan_groups<kMostGroup>(x, n, first, maxima);
    else
      scan_groups<16>(x, n, first, maxima);
  }

  // The entries in descending order, at most k.
  Entry* sorted() {
    compact();
    std::sort(entries_, entries_ + count_, std::greater<>());
    return entries_;
  }

  int64_t count() const { return count_; }

 private:
  template <int kGroup>
  void scan_groups(const T* x, int64_t n, int64_t first, std::vector<Bits>& maxima) {
    const int64_t groups = n / kGroup;
    if (static_cast<int64_t>(maxima.size()) < 2 * groups) maxima.resize(static_cast<size_t>(2 * groups));
    PYSEL_CHOOSE(group_maxima<T, kGroup, kRank>)(x, groups, maxima.data());
    if (count_ == 0 && groups >= k_) {
      // Fewer and larger groups bound nearly as well, and are ranked sooner.
      Bits* copy = maxima.data() + groups;
      std::copy_n(maxima.data(), groups, copy);
      int64_t size = groups;
      for (; size >= 4 * k_; size -= size / 2)
        for (int64_t g = 0; g < size / 2; ++g) copy[g] = std::max(copy[g], copy[size - size / 2 + g]);
      std::nth_element(copy, copy + (k_ - 1), copy + size, std::greater<>());
      gate_ = std::max<Bits>(gate_, copy[k_ - 1] - 1);  // whatever equals the bound may be among the k
    }
    for (int64_t g = 0; g < groups; ++g)
      if (maxima[static_cast<size_t>(g)] > gate_) take(x + g * kGroup, kGroup, first + g * kGroup);
    take(x + groups * kGroup, static_cast<int>(n % kGroup), first + groups * kGroup);
  }

  void take(const T* x, int n, int64_t first) {
    count_ += PYSEL_CHOOSE(survivors<T, Entry, kRank>)(x, n, gate_, first, entries_ + count_);
    if (count_ + kMostGroup <= room(k_)) return;
    compact();
    raise_gate(first + n);
  }

  void compact() {
    if (count_ <= k_) return;
    std::nth_element(entries_, entries_ + (k_ - 1), entries_ + count_, std::greater<>());
    count_ = k_;
    kth_ = entries_[k_ - 1];
  }

  // For elements from `next` on, up to where the next piece begins: those that equal the k-th largest lose the tie to
  // it if it comes before them.
  void raise_gate(int64_t next) {
    if (kth_ == 0) return;
    const bool before = index_of(kth_) < signed_index<kRank>(next, T());
    gate_ = static_cast<Bits>(static_cast<Bits>(kth_ >> kIndexBits<Entry>) - !before);
  }

  Entry* entries_;
  int64_t count_ = 0;
  int64_t k_;
  Entry kth_ = 0;  // once there were more than k
  Bits gate_;
};

// --- topk ---

// Top-k of one row, block by block so that a block is still in L2 when its groups are looked into.
template <typename T, typename Entry>
RowTop<T, Entry> top_of(const T* x, int64_t begin, int64_t end, int64_t k, Entry* entries,
                        std::vector<OrderBits<T>>& maxima) {
  const int64_t block = std::max<int64_t>(1 << 16, 4 * k * kMostGroup);
  RowTop<T, Entry> top(entries, k, 0);
  for (int64_t at = begin; at < end; at += block) top.scan(x + at, std::min(block, end - at), at, maxima);
  return top;
}

template <typename T, typename Entry>
void topk_rows(const T* x, int64_t rows, int64_t n, int64_t k, T* values, int64_t* indices) {
  const auto room = static_cast<size_t>(std::min(n, RowTop<T, Entry>::room(k)));
  auto write = [&](int64_t row, const Entry* sorted) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t i = index_of(sorted[j]);
      indices[row * k + j] = i;
      values[row * k + j] = x[row * n + i];
    }
  };

  const int64_t part = std::max<int64_t>(1 << 17, 16 * k);
  const int64_t parts = (n + part - 1) / part;
  if (parts == 1 || rows >= 2 * static_cast<int64_t>(torch::stable::get_num_threads())) {
    parallel_for(rows, rows_per_thread(n), [&](int64_t begin, int64_t end) {
      std::vector<Entry> entries(room);
      std::vector<OrderBits<T>> maxima;
      for (int64_t row = begin; row < end; ++row)
        write(row, top_of(x + row * n, 0, n, k, entries.data(), maxima).sorted());
    });
    return;
  }

  // Few long rows: the best of each part, then the best of those.
  std::vector<Entry> best(static_cast<size_t>(rows * parts * k));
  std::vector<int64_t> found(static_cast<size_t>(rows * parts));
  parallel_for(rows * parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<Entry> entries(room);
    std::vector<OrderBits<T>> maxima;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / parts, from = task % parts * part;
      auto top = top_of(x + row * n, from, std::min(n, from + part), k, entries.data(), maxima);
      const Entry* sorted = top.sorted();
      found[static_cast<size_t>(task)] = top.count();
      std::copy_n(sorted, top.count(), best.data() + task * k);
    }
  });
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<Entry> all;
    for (int64_t row = begin; row < end; ++row) {
      all.clear();
      for (int64_t task = row * parts; task < (row + 1) * parts; ++task)
        all.insert(all.end(), best.data() + task * k, best.data() + task * k + found[static_cast<size_t>(task)]);
      std::nth_element(all.begin(), all.begin() + (k - 1), all.end(), std::greater<>());
      std::sort(all.begin(), all.begin() + k, std::greater<>());
      write(row, all.data());
    }
  });
}

std::tuple<Tensor, Tensor> topk(Tensor x, int64_t k) {
  constexpr const char* op = "topk";
  const int64_t n = check_topk(op, x, k);
  std::vector<int64_t> size = sizes(x);
  size.back() = k;
  Tensor values = empty_cpu(size, x.scalar_type()), indices = empty_cpu(size, ScalarType::Long);
  dispatch_floating(op, "x", x, [&]<typename T>() {
    if (values.numel() == 0) return;
    const Tensor rows = packed(x);
    dispatch_entry<T>(n, [&]<typename Entry>() {
      topk_rows<T, Entry>(static_cast<const T*>(rows.data_ptr()), x.numel() / n, n, k,
                          static_cast<T*>(values.data_ptr()), static_cast<int64_t*>(indices.data_ptr()));
    });
  });
  return {values, indices};
}

// --- topk_encode ---

// out = x @ weight.T + bias by torch's own GEMM.
void linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(x), from(weight), from(bias), from(out)};
  call_torch("aten::linear", "out", stack.data());
  torch::stable::detail::to<Tensor>(stack[0]);  // the dispatcher returned a handle of its own: release it
}

// The same values, of which no gradient is wanted. A thread of torch's would ask for one where the caller does not.
Tensor detached(const Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  call_torch("aten::detach", "", stack.data());
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Elements [begin, begin + n) along a dimension.
Tensor part(const Tensor& t, int64_t dim, int64_t begin, int64_t n) {
  return torch::stable::narrow(const_cast<Tensor&>(t), dim, begin, n);
}

// The k best of relu(row) after all its positive (or NaN) entries have been seen. Zeros fill up, lowest index first.
template <typename T, typename Entry>
void write_activations(RowTop<T, Entry>& top, int64_t k, T* values, int64_t* indices, std::vector<int64_t>& taken) {
  const Entry* sorted = top.sorted();
  const int64_t active = top.count();
  for (int64_t j = 0; j < active; ++j) {
    indices[j] = index_of(sorted[j]);
    values[j] = from_magnitude<T>(static_cast<OrderBits<T>>(sorted[j] >> kIndexBits<Entry>), false);
  }
  if (active == k) return;
  taken.assign(indices, indices + active);
  std::sort(taken.begin(), taken.end());
  auto next_taken = taken.begin();
  for (int64_t j = active, i = 0; j < k; ++i) {
    if (next_taken != taken.end() && *next_taken == i) {
      ++next_taken;
      continue;
    }
    indices[j] = i;
    values[j++] = static_cast<T>(0.0f);
  }
}

// The k of largest magnitude, in order.
template <typename T, typename Entry>
void write_magnitudes(RowTop<T, Entry, Rank::magnitude>& top, int64_t k, T* values, int64_t* indices) {
  const Entry* sorted = top.sorted();
  for (int64_t j = 0; j < k; ++j) {
    const int64_t index = index_of(sorted[j]);
    indices[j] = index >> 1;
    values[j] = from_magnitude<T>(static_cast<OrderBits<T>>(sorted[j] >> kIndexBits<Entry>), (index & 1) != 0);
  }
}

// Activations are made a tile at a time: a megabyte or so, which the gate reads while it is still in cache. Threads
// take tiles as they become free, and each multiplies its own: so they wait for one another once in `kMostRows` rows,
// however much of a core other processes take. Tiles do not depend on the number of threads, nor do products.
template <typename T, typename Entry, Rank kRank>
void encode(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t k, T* values,
            int64_t* indices) {
  constexpr int64_t kMostRows = 1024, kTileRows = 256, kTileHidden = 1024;
  const int64_t rows = x.size(0), hidden = weight.size(0);
  const int64_t most_rows = std::min(rows, kMostRows), tile_rows = std::min(rows, kTileRows);
  const int64_t tile_hidden = std::min(hidden, kTileHidden), across = (hidden + tile_hidden - 1) / tile_hidden;

  const int64_t room = RowTop<T, Entry, kRank>::room(k);
  std::vector<Entry> entries(static_cast<size_t>(most_rows * room));
  std::vector<RowTop<T, Entry, kRank>> tops;
  std::vector<std::mutex> in_use(static_cast<size_t>((most_rows + tile_rows - 1) / tile_rows));
  const OrderBits<T> gate = kRank == Rank::value ? order(static_cast<T>(0.0f)) : OrderBits<T>{0};
  for (int64_t from = 0; from < rows; from += most_rows) {
    const int64_t to = std::min(rows, from + most_rows), down = (to - from + tile_rows - 1) / tile_rows;
    tops.clear();
    for (int64_t b = 0; b < to - from; ++b) tops.emplace_back(entries.data() + b * room, k, gate);
    const auto threads = std::min<int64_t>(torch::stable::get_num_threads(), down * across);
    std::atomic<int64_t> taken{0};
    parallel_for(threads, 1, [&](int64_t, int64_t) {
      const Tensor workspace = empty_cpu({tile_rows, tile_hidden}, x.scalar_type());
      const T* activations = static_cast<const T*>(workspace.data_ptr());
      std::vector<OrderBits<T>> maxima;
      for (int64_t tile = taken++; tile < down * across; tile = taken++) {
        const int64_t row = from + tile % down * tile_rows, unit = tile / down * tile_hidden;
        const int64_t r = std::min(tile_rows, to - row), h = std::min(tile_hidden, hidden - unit);
        std::optional<Tensor> bias_tile;
        if (bias) bias_tile = part(*bias, 0, unit, h);
        linear_out(part(x, 0, row, r), part(weight, 0, unit, h), bias_tile, part(part(workspace, 0, 0, r), 1, 0, h));
        const std::lock_guard lock(in_use[static_cast<size_t>(tile % down)]);
        for (int64_t b = 0; b < r; ++b)
          tops[static_cast<size_t>(row - from + b)].scan(activations + b * tile_hidden, h, unit, maxima);
      }
    });
    parallel_for(to - from, rows_per_thread(k), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> active;
      for (int64_t b = begin; b < end; ++b) {
        auto& top = tops[static_cast<size_t>(b)];
        if constexpr (kRank == Rank::value)
          write_activations(top, k, values + (from + b) * k, indices + (from + b) * k, active);
        else
          write_magnitudes(top, k, values + (from + b) * k, indices + (from + b) * k);
      }
    });
  }
}

std::tuple<Tensor, Tensor> topk_encode(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t k,
                                       std::string activation) {
  constexpr const char* op = "topk_encode";
  check_topk_encode(op, x, weight, bias, k, activation);
  Tensor values = empty_cpu({x.size(0), k}, x.scalar_type()), indices = empty_cpu({x.size(0), k}, ScalarType::Long);
  dispatch_floating(op, "x", x, [&]<typename T>() {
    if (values.numel() == 0) return;
    T* to = static_cast<T*>(values.data_ptr());
    auto* to_indices = static_cast<int64_t*>(indices.data_ptr());
    const int64_t hidden = weight.size(0);
    const Tensor in = detached(x), w = detached(weight);
    if (bias) bias = detached(*bias);
    if (activation == "relu")
      dispatch_entry<T>(hidden,
                        [&]<typename Entry>() { encode<T, Entry, Rank::value>(in, w, bias, k, to, to_indices); });
    else
      dispatch_entry<T>(2 * hidden,
                        [&]<typename Entry>() { encode<T, Entry, Rank::magnitude>(in, w, bias, k, to, to_indices); });
  });
  return {values, indices};
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("topk", PYSEL_OP(&pysel::topk));
  m.impl("topk_encode", PYSEL_OP(&pysel::topk_encode));
}
