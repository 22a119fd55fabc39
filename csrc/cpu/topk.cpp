// Top-k of rows, of one long vector and of an encoder's activations, and the sparse products that use them (TopK sparse
// autoencoders: Gao et al., arXiv 2406.04093).
//
// A row is read once, for the maximum of each group of elements. At least k elements reach the k-th largest of those
// maxima, so only groups that reach it are looked into, and what exceeds the gate there is kept:
//
//   row      |....|.x..|....|..x.|....|   groups
//   maxima     3    9    2    8    1      gate: just below the k-th largest (k = 2: below 8)
//   entries    9, 8                       key above inverted index in one integer, so ties go to the lowest index
//
// When the entries overflow, the k largest stay and the gate rises to the k-th. The encoder carries gate and entries
// from one tile of its hidden units to the next, so its activations exist a tile at a time only.
#ifdef PYSEL_VARIANT

#include "cpu/lanes.h"

template <typename T, int kGroup>
void group_maxima(const T* x, int64_t groups, OrderBits<T>* out) {
  alignas(64) OrderBits<T> keys[kGroup];
  for (int64_t g = 0; g < groups; ++g) {
    for (int i = 0; i < kGroup; ++i) keys[i] = order(x[g * kGroup + i]);
    OrderBits<T> most = 0;
    for (int i = 0; i < kGroup; ++i) most = keys[i] > most ? keys[i] : most;
    out[g] = most;
  }
}

// Writes the entries of elements whose key is above the gate, in order; returns how many. `out` has room for all.
template <typename T, typename Entry>
int64_t survivors(const T* x, int n, OrderBits<T> gate, int64_t first, Entry* out) {
  static_assert(kMostGroup == 64);
  alignas(64) OrderBits<T> keys[kMostGroup];
  alignas(64) uint8_t passed[kMostGroup] = {};
  for (int i = 0; i < n; ++i) keys[i] = order(x[i]);
  for (int i = 0; i < n; ++i) passed[i] = keys[i] > gate;
  int64_t count = 0;
  for (uint64_t bits = bits_of(passed); bits != 0; bits &= bits - 1) {
    const int i = __builtin_ctzll(bits);
    out[count++] = pack<Entry>(keys[i], first + i);
  }
  return count;
}

// Order keys of a long vector, complemented if `flip`. True if there is a NaN.
template <typename T, typename Bits>
bool fill_keys(const T* x, int n, Bits flip, Bits* out) {
  for (int i = 0; i < n; ++i) out[i] = order(x[i]);
  Bits most = 0;
  for (int i = 0; i < n; ++i) most = out[i] > most ? out[i] : most;
  for (int i = 0; i < n; ++i) out[i] ^= flip;
  return most == static_cast<OrderBits<T>>(~OrderBits<T>{0});
}

// sum[i] += coefficient[t] * rows[which[t]][i], terms in order.
template <typename T, typename A>
void add_rows(const T* rows, const A* coefficient, const int64_t* which, int64_t terms, int64_t d, A* sum) {
  int64_t t = 0;
  for (; t + 4 <= terms; t += 4) {
    const T *r0 = rows + which[t] * d, *r1 = rows + which[t + 1] * d;
    const T *r2 = rows + which[t + 2] * d, *r3 = rows + which[t + 3] * d;
    const A c0 = coefficient[t], c1 = coefficient[t + 1], c2 = coefficient[t + 2], c3 = coefficient[t + 3];
    for (int64_t i = 0; i < d; ++i)
      sum[i] = (((sum[i] + c0 * static_cast<A>(r0[i])) + c1 * static_cast<A>(r1[i])) + c2 * static_cast<A>(r2[i])) +
               c3 * static_cast<A>(r3[i]);
  }
  for (; t < terms; ++t) {
    const T* r = rows + which[t] * d;
    const A c = coefficient[t];
    for (int64_t i = 0; i < d; ++i) sum[i] += c * static_cast<A>(r[i]);
  }
}

template <typename A>
inline A sum_lanes(A* lane) {
  for (int l = 0; l < 8; ++l) lane[l] += lane[l + 8];
  for (int l = 0; l < 4; ++l) lane[l] += lane[l + 4];
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

// Over 16 lanes, then the lanes, so that the sum does not depend on the instruction set.
template <typename T, typename A>
inline A dot(const T* a, const T* b, int64_t d) {
  A lane[16] = {};
  int64_t i = 0;
  for (; i + 16 <= d; i += 16)
    for (int l = 0; l < 16; ++l) lane[l] += static_cast<A>(a[i + l]) * static_cast<A>(b[i + l]);
  for (int l = 0; i < d; ++i, ++l) lane[l] += static_cast<A>(a[i]) * static_cast<A>(b[i]);
  return sum_lanes(lane);
}

// sum += c * b; returns a . b, as dot() gives it.
template <typename T, typename A>
A dot_and_add(const T* a, const T* b, A c, int64_t d, A* sum) {
  Lanes<A> lanes = {};
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) {
    Lanes<A> u, v, s;
    load_lanes<T, A>(a + i, u);
    load_lanes<T, A>(b + i, v);
    memcpy(&s, sum + i, sizeof(s));
    lanes += u * v;
    s += c * v;
    memcpy(sum + i, &s, sizeof(s));
  }
  alignas(64) A lane[16];
  memcpy(lane, &lanes, sizeof(lane));
  for (int l = 0; i < d; ++i, ++l) {
    lane[l] += static_cast<A>(a[i]) * static_cast<A>(b[i]);
    sum[i] += c * static_cast<A>(b[i]);
  }
  return sum_lanes(lane);
}

// Dot products of rows with one vector. The rows come from anywhere in memory, so the next one is asked for early.
template <typename T, typename A>
void dots(const T* rows, const int64_t* which, int64_t terms, const T* vector, int64_t d, T* out) {
  for (int64_t t = 0; t < terms; ++t) {
    if (t + 1 < terms)
      for (int64_t i = 0; i < d; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(rows + which[t + 1] * d + i);
    out[t] = static_cast<T>(dot<T, A>(rows + which[t] * d, vector, d));
  }
}

template <typename From, typename To>
void convert(const From* from, int64_t n, To* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}

#else

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

#include "common/math.h"
#include "common/order.h"
#include "cpu/chunk.h"
#include "cpu/radix_select.h"

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

#define PYSEL_FILE "cpu/topk.cpp"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

int64_t rows_per_thread(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

// f.template operator()<Entry>() with 64-bit entries where key and index fit in 32 bits each.
template <typename T, typename F>
void dispatch_entry(int64_t n, F f) {
  if constexpr (sizeof(T) <= 4)
    if (n <= int64_t{1} << 32) return f.template operator()<uint64_t>();
  f.template operator()<Wide>();
}

// The k largest of a row that arrives from left to right. `entries` has room for room(k).
template <typename T, typename Entry>
class RowTop {
 public:
  using Bits = OrderBits<T>;

  static int64_t room(int64_t k) { return k + std::max<int64_t>(k, kMostGroup) + kMostGroup; }

  // Keys up to `gate` are never taken; no key is 0.
  RowTop(Entry* entries, int64_t k, Bits gate) : entries_(entries), k_(k), gate_(gate) {}

  // Row elements [first, first + n). `maxima` is scratch.
  void scan(const T* x, int64_t n, int64_t first, std::vector<Bits>& maxima) {
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
    PYSEL_CHOOSE(group_maxima<T, kGroup>)(x, groups, maxima.data());
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
    count_ += PYSEL_CHOOSE(survivors<T, Entry>)(x, n, gate_, first, entries_ + count_);
    if (count_ + kMostGroup > room(k_)) compact();
  }

  // Later elements that equal the k-th largest lose the tie, so from here on the gate is that key itself.
  void compact() {
    if (count_ <= k_) return;
    std::nth_element(entries_, entries_ + (k_ - 1), entries_ + count_, std::greater<>());
    count_ = k_;
    gate_ = std::max(gate_, static_cast<Bits>(entries_[k_ - 1] >> kIndexBits<Entry>));
  }

  Entry* entries_;
  int64_t count_ = 0;
  int64_t k_;
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
  const auto room = static_cast<size_t>(RowTop<T, Entry>::room(k));
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
  check_value(x.dim() >= 1, op, ": x must have shape [..., n], got ", shape(x));
  const int64_t n = x.size(x.dim() - 1);
  check_k(op, k, n);
  std::vector<int64_t> size = sizes(x);
  size.back() = k;
  Tensor values = empty_cpu(size, x.scalar_type()), indices = empty_cpu(size, ScalarType::Long);
  dispatch_floating(op, "x", x, [&]<typename T>() {
    if (values.numel() == 0) return;
    const Tensor rows = torch::stable::contiguous(x);
    dispatch_entry<T>(n, [&]<typename Entry>() {
      topk_rows<T, Entry>(static_cast<const T*>(rows.data_ptr()), x.numel() / n, n, k,
                          static_cast<T*>(values.data_ptr()), static_cast<int64_t*>(indices.data_ptr()));
    });
  });
  return {values, indices};
}

// --- topk_encode ---

void check_matrix(const char* op, const char* argument, const Tensor& t, const char* wanted) {
  check_value(t.dim() == 2, op, ": ", argument, " must have shape ", wanted, ", got ", shape(t));
  check_value(t.is_cpu(), op, ": ", argument, " must be on the CPU like the other arguments");
}

void check_bias(const char* op, const std::optional<Tensor>& bias, int64_t n, const char* like_name,
                const Tensor& like) {
  if (!bias) return;
  check_value(bias->dim() == 1 && bias->size(0) == n, op, ": bias must have shape [", n, "], got ", shape(*bias));
  check_value(bias->is_cpu(), op, ": bias must be on the CPU like the other arguments");
  check_same_dtype(op, like_name, like, "bias", *bias);
}

// out = x @ weight.T + bias by torch's own GEMM.
void linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(x), from(weight), from(bias), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the dispatcher returned a handle of its own: release it
}

// The k best of relu(row) after all its positive (or NaN) entries have been seen. Zeros fill up, lowest index first.
template <typename T, typename Entry>
void write_activations(RowTop<T, Entry>& top, int64_t k, T* values, int64_t* indices, std::vector<int64_t>& taken) {
  using Bits = OrderBits<T>;
  constexpr Bits magnitude = static_cast<Bits>(~Bits{0}) >> 1;
  const Entry* sorted = top.sorted();
  const int64_t active = top.count();
  for (int64_t j = 0; j < active; ++j) {
    indices[j] = index_of(sorted[j]);
    values[j] = pysel::bit_cast<T>(static_cast<Bits>(static_cast<Bits>(sorted[j] >> kIndexBits<Entry>) & magnitude));
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

template <typename T, typename Entry>
void encode(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t k, T* values,
            int64_t* indices) {
  // About a million activations at a time: a few megabytes, which the gate reads while they are still in cache.
  constexpr int64_t kTile = 1 << 20;
  constexpr int64_t kTileRows = 1024;
  const int64_t rows = x.size(0), hidden = weight.size(0);
  const int64_t tile_rows = std::min(rows, kTileRows);
  const int64_t tile_hidden = std::min(hidden, kTile / std::max<int64_t>(tile_rows, 16));
  const Tensor workspace = empty_cpu({tile_rows, tile_hidden}, x.scalar_type());
  const T* activations = static_cast<const T*>(workspace.data_ptr());

  const int64_t room = RowTop<T, Entry>::room(k);
  std::vector<Entry> entries(static_cast<size_t>(tile_rows * room));
  std::vector<RowTop<T, Entry>> tops;
  for (int64_t row = 0; row < rows; row += tile_rows) {
    const int64_t r = std::min(tile_rows, rows - row);
    tops.clear();
    for (int64_t b = 0; b < r; ++b) tops.emplace_back(entries.data() + b * room, k, order(static_cast<T>(0.0f)));
    const Tensor x_tile = torch::stable::narrow(const_cast<Tensor&>(x), 0, row, r);
    for (int64_t unit = 0; unit < hidden; unit += tile_hidden) {
      const int64_t h = std::min(tile_hidden, hidden - unit);
      std::optional<Tensor> bias_tile;
      if (bias) bias_tile = torch::stable::narrow(const_cast<Tensor&>(*bias), 0, unit, h);
      Tensor tile = torch::stable::narrow(const_cast<Tensor&>(workspace), 0, 0, r);
      tile = torch::stable::narrow(tile, 1, 0, h);
      linear_out(x_tile, torch::stable::narrow(const_cast<Tensor&>(weight), 0, unit, h), bias_tile, tile);
      parallel_for(r, rows_per_thread(h), [&](int64_t begin, int64_t end) {
        std::vector<OrderBits<T>> maxima;
        for (int64_t b = begin; b < end; ++b)
          tops[static_cast<size_t>(b)].scan(activations + b * tile_hidden, h, unit, maxima);
      });
    }
    parallel_for(r, rows_per_thread(k), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> taken;
      for (int64_t b = begin; b < end; ++b)
        write_activations(tops[static_cast<size_t>(b)], k, values + (row + b) * k, indices + (row + b) * k, taken);
    });
  }
}

std::tuple<Tensor, Tensor> topk_encode(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t k) {
  constexpr const char* op = "topk_encode";
  check_matrix(op, "x", x, "[B, d]");
  check_matrix(op, "weight", weight, "[H, d]");
  check_value(x.size(1) == weight.size(1), op, ": weight must have shape [H, ", x.size(1), "] to go with x, got ",
              shape(weight));
  check_same_dtype(op, "x", x, "weight", weight);
  check_bias(op, bias, weight.size(0), "x", x);
  check_k(op, k, weight.size(0));
  Tensor values = empty_cpu({x.size(0), k}, x.scalar_type()), indices = empty_cpu({x.size(0), k}, ScalarType::Long);
  dispatch_floating(op, "x", x, [&]<typename T>() {
    if (values.numel() == 0) return;
    dispatch_entry<T>(weight.size(0), [&]<typename Entry>() {
      encode<T, Entry>(x, weight, bias, k, static_cast<T*>(values.data_ptr()),
                       static_cast<int64_t*>(indices.data_ptr()));
    });
  });
  return {values, indices};
}

// --- sparse products ---

// Row indices into `count` factors, contiguous and checked.
class Indices {
 public:
  Indices(const char* op, const Tensor& indices, int64_t count) : tensor_(torch::stable::contiguous(indices)) {
    const int64_t* data = this->data();
    parallel_for(indices.numel(), kGrain, [&](int64_t begin, int64_t end) {
      bool outside = false;
      for (int64_t i = begin; i < end; ++i) outside |= static_cast<uint64_t>(data[i]) >= static_cast<uint64_t>(count);
      if (!outside) return;
      const int64_t bad = *std::find_if(data + begin, data + end, [&](int64_t i) { return i < 0 || i >= count; });
      check_index(false, op, ": indices must be between 0 and ", count - 1, ", got ", bad);
    });
  }

  const int64_t* data() const { return static_cast<const int64_t*>(tensor_.data_ptr()); }

 private:
  Tensor tensor_;
};

void check_codes(const char* op, const Tensor* values, const Tensor& indices) {
  check_matrix(op, "indices", indices, "[B, k]");
  check_dtype(op, "indices", indices, ScalarType::Long, "int64");
  if (!values) return;
  check_matrix(op, "values", *values, "[B, k]");
  check_value(sizes(*values) == sizes(indices), op, ": indices must have the shape of values, ", shape(*values),
              ", got ", shape(indices));
}

Tensor sparse_decode(Tensor values, Tensor indices, Tensor weight, std::optional<Tensor> bias) {
  constexpr const char* op = "sparse_decode";
  check_codes(op, &values, indices);
  check_matrix(op, "weight", weight, "[H, d]");
  check_same_dtype(op, "values", values, "weight", weight);
  const int64_t rows = values.size(0), k = values.size(1), d = weight.size(1);
  check_bias(op, bias, d, "values", values);
  const Indices which(op, indices, weight.size(0));
  Tensor out = empty_cpu({rows, d}, values.scalar_type());
  dispatch_floating(op, "values", values, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor values_c = torch::stable::contiguous(values), weight_c = torch::stable::contiguous(weight);
    std::vector<A> start(static_cast<size_t>(d));
    if (bias) {
      const Tensor bias_c = torch::stable::contiguous(*bias);
      PYSEL_CHOOSE(convert<T, A>)(static_cast<const T*>(bias_c.data_ptr()), d, start.data());
    }
    parallel_for(rows, rows_per_thread(k * d), [&](int64_t begin, int64_t end) {
      std::vector<A> coefficient(static_cast<size_t>(k)), sum(start.size());
      for (int64_t b = begin; b < end; ++b) {
        sum = start;
        PYSEL_CHOOSE(convert<T, A>)(static_cast<const T*>(values_c.data_ptr()) + b * k, k, coefficient.data());
        PYSEL_CHOOSE(add_rows<T, A>)
        (static_cast<const T*>(weight_c.data_ptr()), coefficient.data(), which.data() + b * k, k, d, sum.data());
        PYSEL_CHOOSE(convert<A, T>)(sum.data(), d, static_cast<T*>(out.data_ptr()) + b * d);
      }
    });
  });
  return out;
}

Tensor sddmm(Tensor indices, Tensor weight, Tensor grad) {
  constexpr const char* op = "sddmm";
  check_codes(op, nullptr, indices);
  check_matrix(op, "weight", weight, "[H, d]");
  check_matrix(op, "grad", grad, "[B, d]");
  check_same_dtype(op, "weight", weight, "grad", grad);
  const int64_t rows = indices.size(0), k = indices.size(1), d = weight.size(1);
  check_value(grad.size(0) == rows && grad.size(1) == d, op, ": grad must have shape [", rows, ", ", d, "], got ",
              shape(grad));
  const Indices which(op, indices, weight.size(0));
  Tensor out = empty_cpu({rows, k}, weight.scalar_type());
  dispatch_floating(op, "weight", weight, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor weight_c = torch::stable::contiguous(weight), grad_c = torch::stable::contiguous(grad);
    const T* w = static_cast<const T*>(weight_c.data_ptr());
    const T* g = static_cast<const T*>(grad_c.data_ptr());
    T* to = static_cast<T*>(out.data_ptr());
    parallel_for(rows, rows_per_thread(k * d), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        PYSEL_CHOOSE(dots<T, A>)(w, which.data() + b * k, k, g + b * d, d, to + b * k);
    });
  });
  return out;
}

// The entries of [B, k] codes by factor, in ascending order: factor f has entries [start[f], start[f + 1]).
struct ByFactor {
  std::vector<int64_t> start;
  std::vector<int64_t> entry;  // b * k + j

  ByFactor(const int64_t* indices, int64_t entries, int64_t factors)
      : start(static_cast<size_t>(factors + 1)), entry(static_cast<size_t>(entries)) {
    for (int64_t e = 0; e < entries; ++e) ++start[static_cast<size_t>(indices[e] + 1)];
    for (size_t f = 1; f < start.size(); ++f) start[f] += start[f - 1];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t e = 0; e < entries; ++e) entry[static_cast<size_t>(next[static_cast<size_t>(indices[e])]++)] = e;
  }

  // f(factor, its first entry, the end) for all factors, in parts of equal work however skewed they are.
  template <typename F>
  void each(int64_t d, const F& f) const {
    const auto factors = static_cast<int64_t>(start.size()) - 1;
    parallel_for(factors + static_cast<int64_t>(entry.size()), rows_per_thread(d), [&](int64_t begin, int64_t end) {
      const int64_t last = factor_at(end);
      for (int64_t factor = factor_at(begin); factor < last; ++factor)
        f(factor, entry.data() + start[static_cast<size_t>(factor)],
          entry.data() + start[static_cast<size_t>(factor + 1)]);
    });
  }

 private:
  // The first factor that has `work` entries and factors before it.
  int64_t factor_at(int64_t work) const {
    int64_t low = 0, high = static_cast<int64_t>(start.size()) - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (start[static_cast<size_t>(middle)] + middle < work)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

Tensor spmm_t(Tensor values, Tensor indices, Tensor rows, int64_t num_factors) {
  constexpr const char* op = "spmm_t";
  check_codes(op, &values, indices);
  check_matrix(op, "rows", rows, "[B, d]");
  check_value(num_factors >= 0, op, ": num_factors must be at least 0, got ", num_factors);
  check_value(rows.size(0) == values.size(0), op, ": rows must have shape [", values.size(0),
              ", d] to go with values, got ", shape(rows));
  check_same_dtype(op, "values", values, "rows", rows);
  const Indices which(op, indices, num_factors);
  const int64_t k = values.size(1), d = rows.size(1);
  Tensor out = empty_cpu({num_factors, d}, values.scalar_type());
  dispatch_floating(op, "values", values, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor values_c = torch::stable::contiguous(values), rows_c = torch::stable::contiguous(rows);
    const T* v = static_cast<const T*>(values_c.data_ptr());
    ByFactor(which.data(), values.numel(), num_factors).each(d, [&](int64_t f, const int64_t* from, const int64_t* to) {
      std::vector<A> coefficient(static_cast<size_t>(to - from)), sum(static_cast<size_t>(d));
      std::vector<int64_t> row(coefficient.size());
      for (size_t e = 0; e < row.size(); ++e) {
        coefficient[e] = static_cast<A>(v[from[e]]);
        row[e] = from[e] / k;
      }
      PYSEL_CHOOSE(add_rows<T, A>)
      (static_cast<const T*>(rows_c.data_ptr()), coefficient.data(), row.data(), to - from, d, sum.data());
      PYSEL_CHOOSE(convert<A, T>)(sum.data(), d, static_cast<T*>(out.data_ptr()) + f * d);
    });
  });
  return out;
}

// What sddmm and spmm_t give, each row of weight and of grad read once for both.
std::tuple<Tensor, Tensor> sparse_decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor weight) {
  constexpr const char* op = "sparse_decode_backward";
  check_codes(op, &values, indices);
  check_matrix(op, "weight", weight, "[H, d]");
  check_matrix(op, "grad", grad, "[B, d]");
  check_same_dtype(op, "values", values, "weight", weight);
  check_same_dtype(op, "values", values, "grad", grad);
  const int64_t k = values.size(1), d = weight.size(1);
  check_value(grad.size(0) == values.size(0) && grad.size(1) == d, op, ": grad must have shape [", values.size(0), ", ",
              d, "], got ", shape(grad));
  const Indices which(op, indices, weight.size(0));
  Tensor to_values = empty_cpu(sizes(values), values.scalar_type());
  Tensor to_weight = empty_cpu(sizes(weight), weight.scalar_type());
  dispatch_floating(op, "values", values, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor values_c = torch::stable::contiguous(values), grad_c = torch::stable::contiguous(grad);
    const Tensor weight_c = torch::stable::contiguous(weight);
    const T *v = static_cast<const T*>(values_c.data_ptr()), *g = static_cast<const T*>(grad_c.data_ptr());
    const T* w = static_cast<const T*>(weight_c.data_ptr());
    T* out = static_cast<T*>(to_values.data_ptr());
    ByFactor(which.data(), values.numel(), weight.size(0))
        .each(d, [&](int64_t f, const int64_t* from, const int64_t* to) {
          std::vector<A> sum(static_cast<size_t>(d));
          for (; from != to; ++from) {
            const A product =
                PYSEL_CHOOSE(dot_and_add<T, A>)(w + f * d, g + *from / k * d, static_cast<A>(v[*from]), d, sum.data());
            out[*from] = static_cast<T>(product);
          }
          PYSEL_CHOOSE(convert<A, T>)(sum.data(), d, static_cast<T*>(to_weight.data_ptr()) + f * d);
        });
  });
  return {to_values, to_weight};
}

// --- factors ---

// f(factor) for each factor active in row b (its value above 0), once even if the row lists it twice.
class ActiveFactors {
 public:
  explicit ActiveFactors(int64_t factors) : last_row_(static_cast<size_t>(factors), -1) {}

  template <typename T, typename F>
  void each(int64_t b, const T* values, const int64_t* indices, int64_t k, const F& f) {
    for (int64_t j = 0; j < k; ++j) {
      int64_t& last = last_row_[static_cast<size_t>(indices[j])];
      if (!(static_cast<Compute<T>>(values[j]) > 0) || last == b) continue;
      last = b;
      f(indices[j]);
    }
  }

 private:
  std::vector<int64_t> last_row_;
};

// Rows worth a thread that also has to go through arrays over the factors.
int64_t factor_grain(int64_t factors, int64_t k) { return rows_per_thread(k) + factors / std::max<int64_t>(1, k); }

Tensor factor_counts(Tensor values, Tensor indices, int64_t num_factors) {
  constexpr const char* op = "factor_counts";
  check_codes(op, &values, indices);
  check_value(num_factors >= 0, op, ": num_factors must be at least 0, got ", num_factors);
  const Indices which(op, indices, num_factors);
  Tensor out = empty_cpu({num_factors}, ScalarType::Long);
  auto* counts = static_cast<int64_t*>(out.data_ptr());
  std::fill(counts, counts + num_factors, 0);
  dispatch_floating(op, "values", values, [&]<typename T>() {
    const int64_t k = values.size(1);
    const Tensor values_c = torch::stable::contiguous(values);
    std::mutex mutex;
    parallel_for(values.size(0), factor_grain(num_factors, k), [&](int64_t begin, int64_t end) {
      ActiveFactors active(num_factors);
      std::vector<int64_t> mine(static_cast<size_t>(num_factors));
      for (int64_t b = begin; b < end; ++b)
        active.each(b, static_cast<const T*>(values_c.data_ptr()) + b * k, which.data() + b * k, k,
                    [&](int64_t f) { ++mine[static_cast<size_t>(f)]; });
      std::lock_guard lock(mutex);
      for (int64_t f = 0; f < num_factors; ++f) counts[f] += mine[static_cast<size_t>(f)];
    });
  });
  return out;
}

template <typename T, typename R>
void score_rows(const T* values, const int64_t* indices, int64_t rows, int64_t k, const R* rate, int64_t factors, R eps,
                R* representativeness, R* rarity) {
  std::vector<R> surprise(static_cast<size_t>(factors));
  for (int64_t f = 0; f < factors; ++f) surprise[static_cast<size_t>(f)] = -log_any(rate[f] + eps);
  parallel_for(rows, factor_grain(factors, k), [&](int64_t begin, int64_t end) {
    ActiveFactors active(factors);
    for (int64_t b = begin; b < end; ++b) {
      double rates = 0, surprises = 0;
      int64_t count = 0;
      active.each(b, values + b * k, indices + b * k, k, [&](int64_t f) {
        rates += static_cast<double>(rate[f]);
        surprises += static_cast<double>(surprise[static_cast<size_t>(f)]);
        ++count;
      });
      const auto divisor = static_cast<double>(std::max<int64_t>(count, 1));
      representativeness[b] = static_cast<R>(rates / divisor);
      rarity[b] = static_cast<R>(surprises / divisor);
    }
  });
}

std::tuple<Tensor, Tensor> factor_scores(Tensor values, Tensor indices, Tensor rate, double eps,
                                         std::optional<bool> validate) {
  constexpr const char* op = "factor_scores";
  check_codes(op, &values, indices);
  check_value(rate.dim() == 1, op, ": rate must have shape [H], got ", shape(rate));
  check_value(rate.is_cpu(), op, ": rate must be on the CPU like the other arguments");
  check_value(std::isfinite(eps) && eps >= 0, op, ": eps must be finite and at least 0, got ", eps);
  check_value(rate.scalar_type() == ScalarType::Float || rate.scalar_type() == ScalarType::Double, op,
              ": rate must be float32 or float64");
  const Indices which(op, indices, rate.size(0));
  Tensor representativeness = empty_cpu({values.size(0)}, rate.scalar_type());
  Tensor rarity = empty_cpu({values.size(0)}, rate.scalar_type());
  auto run = [&]<typename R>() {
    const Tensor rate_c = torch::stable::contiguous(rate);
    const R* rates = static_cast<const R*>(rate_c.data_ptr());
    if (validate.value_or(true))
      for (int64_t f = 0; f < rate.size(0); ++f)
        check_value(rates[f] >= 0 && rates[f] <= 1, op, ": rate must be between 0 and 1, got ", rates[f]);
    dispatch_floating(op, "values", values, [&]<typename T>() {
      const Tensor values_c = torch::stable::contiguous(values);
      score_rows(static_cast<const T*>(values_c.data_ptr()), which.data(), values.size(0), values.size(1), rates,
                 rate.size(0), static_cast<R>(eps), static_cast<R*>(representativeness.data_ptr()),
                 static_cast<R*>(rarity.data_ptr()));
    });
  };
  if (rate.scalar_type() == ScalarType::Float)
    run.operator()<float>();
  else
    run.operator()<double>();
  return {representativeness, rarity};
}

// --- select ---

template <typename T>
void select_from(const Tensor& scores, int64_t k, bool largest, bool validate, int64_t* indices) {
  using Bits = std::conditional_t<sizeof(T) <= 4, uint32_t, uint64_t>;
  const Tensor scores_c = torch::stable::contiguous(scores);
  const T* x = static_cast<const T*>(scores_c.data_ptr());
  const Bits flip = largest ? 0 : ~Bits{0};
  select_largest<Bits>(
      scores.size(0), k,
      [&](int64_t first, int count, Bits, Bits* out) {
        const bool nan = PYSEL_CHOOSE(fill_keys<T, Bits>)(x + first, count, flip, out);
        if constexpr (!std::is_integral_v<T>)
          check_value(!(nan && validate), "select: scores must not be NaN, got NaN");
        return true;
      },
      indices);
}

Tensor select(Tensor scores, int64_t k, bool largest, std::optional<bool> validate) {
  constexpr const char* op = "select";
  check_value(scores.dim() == 1, op, ": scores must have shape [n], got ", shape(scores));
  check_k(op, k, scores.size(0));
  Tensor out = empty_cpu({k}, ScalarType::Long);
  auto* indices = static_cast<int64_t*>(out.data_ptr());
  const bool check = validate.value_or(true);
  if (scores.scalar_type() == ScalarType::Long)
    select_from<int64_t>(scores, k, largest, check, indices);
  else if (scores.scalar_type() == ScalarType::Int)
    select_from<int32_t>(scores, k, largest, check, indices);
  else
    dispatch_floating(op, "scores", scores, [&]<typename T>() { select_from<T>(scores, k, largest, check, indices); });
  return out;
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("topk", TORCH_BOX(&pysel::topk));
  m.impl("topk_encode", TORCH_BOX(&pysel::topk_encode));
  m.impl("sparse_decode", TORCH_BOX(&pysel::sparse_decode));
  m.impl("sddmm", TORCH_BOX(&pysel::sddmm));
  m.impl("spmm_t", TORCH_BOX(&pysel::spmm_t));
  m.impl("sparse_decode_backward", TORCH_BOX(&pysel::sparse_decode_backward));
  m.impl("factor_counts", TORCH_BOX(&pysel::factor_counts));
  m.impl("factor_scores", TORCH_BOX(&pysel::factor_scores));
  m.impl("select", TORCH_BOX(&pysel::select));
}

#endif
