// The sparse products that use top-k codes, and how often and how widely their factors are active (TopK sparse
// autoencoders: Gao et al., arXiv 2406.04093).
//
// What sums over rows of codes goes by factor instead, over each factor's entries in ascending order: no two threads
// meet, and results do not depend on their number.
#include "common/op.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "common/codes.h"
#include "cpu/bucket.h"
#include "cpu/chunk.h"

#define PYSEL_KERNELS "cpu/codes_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

// --- sparse products ---

// Numbers of `count` factors, or of groups, contiguous and checked.
class Indices {
 public:
  Indices(const char* op, const Tensor& indices, int64_t count, const char* argument = "indices")
      : tensor_(packed(indices)) {
    const int64_t* data = this->data();
    parallel_for(indices.numel(), kGrain, [&](int64_t begin, int64_t end) {
      bool outside = false;
      for (int64_t i = begin; i < end; ++i) outside |= static_cast<uint64_t>(data[i]) >= static_cast<uint64_t>(count);
      if (!outside) return;
      const int64_t bad = *std::find_if(data + begin, data + end, [&](int64_t i) { return i < 0 || i >= count; });
      check_index(false, op, ": ", argument, " must be between 0 and ", count - 1, ", got ", bad);
    });
  }

  const int64_t* data() const { return static_cast<const int64_t*>(tensor_.data_ptr()); }

 private:
  Tensor tensor_;
};

// Writes into the caller's tensor, or into a fresh one.
Tensor write_sparse_decode(const Tensor& values, const Tensor& indices, const Tensor& weight,
                           const std::optional<Tensor>& bias, const std::optional<Tensor>& own) {
  constexpr const char* op = "sparse_decode";
  check_sparse_decode(op, values, indices, weight, bias);
  if (own) check_sparse_decode_out(op, *own, values, indices, weight, bias);
  const int64_t rows = values.size(0), k = values.size(1), d = weight.size(1);
  const Indices which(op, indices, weight.size(0));
  const Tensor out = own ? *own : empty_cpu({rows, d}, values.scalar_type());
  dispatch_floating(op, "values", values, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor values_c = packed(values), weight_c = packed(weight);
    std::vector<A> start(static_cast<size_t>(d));
    if (bias) {
      const Tensor bias_c = packed(*bias);
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

Tensor sparse_decode(Tensor values, Tensor indices, Tensor weight, std::optional<Tensor> bias) {
  return write_sparse_decode(values, indices, weight, bias, std::nullopt);
}

void sparse_decode_out(Tensor values, Tensor indices, Tensor weight, std::optional<Tensor> bias, Tensor out) {
  write_sparse_decode(values, indices, weight, bias, out);
}

Tensor sddmm(Tensor indices, Tensor weight, Tensor grad) {
  constexpr const char* op = "sddmm";
  check_sddmm(op, indices, weight, grad);
  const int64_t rows = indices.size(0), k = indices.size(1), d = weight.size(1);
  const Indices which(op, indices, weight.size(0));
  Tensor out = empty_cpu({rows, k}, weight.scalar_type());
  dispatch_floating(op, "weight", weight, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor weight_c = packed(weight), grad_c = packed(grad);
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
class ByFactor {
 public:
  ByFactor(const int64_t* indices, int64_t entries, int64_t factors)
      : entry_(empty_cpu({entries}, ScalarType::Long)),
        start_(group(
            entries, static_cast<size_t>(factors),
            [indices](int64_t begin, int64_t end, const auto& f) {
              for (int64_t e = begin; e < end; ++e) f(e, static_cast<size_t>(indices[e]));
            },
            [to = static_cast<int64_t*>(entry_.data_ptr())](int64_t place, int64_t e) { to[place] = e; })) {}

  // f(factor, its first entry, the end) for all factors, in parts of equal work however skewed they are.
  template <typename F>
  void each(int64_t d, const F& f) const {
    const auto factors = static_cast<int64_t>(start_.size()) - 1;
    const auto* entry = static_cast<const int64_t*>(entry_.data_ptr());  // b * k + j
    parallel_for(factors + entry_.numel(), rows_per_thread(d), [&](int64_t begin, int64_t end) {
      const int64_t last = factor_at(end);
      for (int64_t factor = factor_at(begin); factor < last; ++factor)
        f(factor, entry + start_[static_cast<size_t>(factor)], entry + start_[static_cast<size_t>(factor + 1)]);
    });
  }

 private:
  // The first factor that has `work` entries and factors before it.
  int64_t factor_at(int64_t work) const {
    int64_t low = 0, high = static_cast<int64_t>(start_.size()) - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (start_[static_cast<size_t>(middle)] + middle < work)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  Tensor entry_;
  std::vector<int64_t> start_;
};

Tensor spmm_t(Tensor values, Tensor indices, Tensor rows, int64_t num_factors) {
  constexpr const char* op = "spmm_t";
  check_spmm_t(op, values, indices, rows, num_factors);
  const Indices which(op, indices, num_factors);
  const int64_t k = values.size(1), d = rows.size(1);
  Tensor out = empty_cpu({num_factors, d}, values.scalar_type());
  dispatch_floating(op, "values", values, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor values_c = packed(values), rows_c = packed(rows);
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
  check_sparse_decode_backward(op, grad, values, indices, weight);
  const int64_t k = values.size(1), d = weight.size(1);
  const Indices which(op, indices, weight.size(0));
  Tensor to_values = empty_cpu(sizes(values), values.scalar_type());
  Tensor to_weight = empty_cpu(sizes(weight), weight.scalar_type());
  dispatch_floating(op, "values", values, [&]<typename T>() {
    using A = Compute<T>;
    const Tensor values_c = packed(values), grad_c = packed(grad);
    const Tensor weight_c = packed(weight);
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

struct Nothing {};

// What a thread needs of each factor, beside a mark of the row that it was last active in: to look one up is to have
// the other in cache.
template <typename Entry>
class ActiveFactors {
 public:
  explicit ActiveFactors(int64_t factors) : cells_(static_cast<size_t>(factors)) {}

  Entry& operator[](int64_t factor) { return cells_[static_cast<size_t>(factor)].entry; }

  // f(factor, value, entry) for each factor active in row b (its value above 0), once even if the row lists it twice.
  template <typename T, typename F>
  void each(int64_t b, const T* values, const int64_t* indices, int64_t k, const F& f) {
    if (++mark_ == 0) {  // all marks have been used
      for (Cell& cell : cells_) cell.mark = 0;
      mark_ = 1;
    }
    for (int64_t e = b * k; e < (b + 1) * k; ++e) {
      Cell& cell = cells_[static_cast<size_t>(indices[e])];
      const auto value = static_cast<Compute<T>>(values[e]);
      if (!(value > 0) || cell.mark == mark_) continue;
      cell.mark = mark_;
      f(indices[e], value, cell.entry);
    }
  }

 private:
  struct Cell {
    uint32_t mark = 0;
    [[no_unique_address]] Entry entry{};
  };

  uint32_t mark_ = 0;
  std::vector<Cell> cells_;
};

// Rows worth a thread that also has to go through arrays over the factors.
int64_t factor_grain(int64_t factors, int64_t k) { return rows_per_thread(k) + factors / std::max<int64_t>(1, k); }

// Rows in the order of their groups: group g has rows [start[g], start[g + 1]). A thread that takes neighbours counts
// into one group's counts at a time, which stay in cache, and only its first and last group have rows of other threads.
struct ByGroup {
  std::vector<int64_t> start;
  std::vector<int64_t> row;  // empty where there is one group

  ByGroup(const int64_t* groups, int64_t rows, int64_t count) {
    if (groups == nullptr) {
      start = {0, rows};
      return;
    }
    row.resize(static_cast<size_t>(rows));
    start = group(
        rows, static_cast<size_t>(count),
        [groups](int64_t begin, int64_t end, const auto& f) {
          for (int64_t r = begin; r < end; ++r) f(r, static_cast<size_t>(groups[r]));
        },
        [this](int64_t place, int64_t r) { row[static_cast<size_t>(place)] = r; });
  }

  int64_t row_at(int64_t i) const { return row.empty() ? i : row[static_cast<size_t>(i)]; }

  // f(group, begin, end, whole) for the parts of groups in [begin, end).
  template <typename F>
  void each(int64_t begin, int64_t end, const F& f) const {
    auto after = std::upper_bound(start.begin(), start.end(), begin);
    for (; begin < end; ++after) {
      const int64_t to = std::min(*after, end);
      if (to > begin) f(after - start.begin() - 1, begin, to, after[-1] == begin && *after == to);
      begin = to;
    }
  }
};

Tensor factor_counts(Tensor values, Tensor indices, int64_t num_factors, std::optional<Tensor> groups,
                     std::optional<int64_t> num_groups) {
  constexpr const char* op = "factor_counts";
  check_factor_counts(op, values, indices, num_factors, groups, num_groups);
  const Indices which(op, indices, num_factors);
  std::optional<Indices> group;
  if (groups) group.emplace(op, *groups, *num_groups, "groups");
  Tensor out = empty_cpu(groups ? std::vector{*num_groups, num_factors} : std::vector{num_factors}, ScalarType::Long);
  torch::stable::zero_(out);
  if (out.numel() == 0 || values.numel() == 0) return out;
  const ByGroup by_group(group ? group->data() : nullptr, values.size(0), num_groups.value_or(1));
  dispatch_floating(op, "values", values, [&]<typename T>() {
    const int64_t k = values.size(1);
    const Tensor values_c = packed(values);
    const T* v = static_cast<const T*>(values_c.data_ptr());
    std::mutex mutex;
    parallel_for(values.size(0), factor_grain(num_factors, k), [&](int64_t begin, int64_t end) {
      ActiveFactors<Nothing> active(num_factors);
      std::vector<int64_t> mine(static_cast<size_t>(num_factors));
      by_group.each(begin, end, [&](int64_t g, int64_t from, int64_t to, bool whole) {
        int64_t* counts = static_cast<int64_t*>(out.data_ptr()) + g * num_factors;
        int64_t* sum = whole ? counts : mine.data();
        for (int64_t i = from; i < to; ++i) {
          // rows of a group come from anywhere in memory, so those to come are asked for early
          if (groups && i + 4 < to) {
            const int64_t e = by_group.row_at(i + 4) * k;
            for (int64_t j = 0; j < k; j += 8) __builtin_prefetch(which.data() + e + j);
            for (int64_t j = 0; j < k; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(v + e + j);
          }
          active.each(by_group.row_at(i), v, which.data(), k, [&](int64_t f, Compute<T>, Nothing) { ++sum[f]; });
        }
        if (whole) return;
        std::lock_guard lock(mutex);
        for (int64_t& count : mine) *counts++ += std::exchange(count, 0);
      });
    });
  });
  return out;
}

template <typename T, typename R>
void score_rows(const T* values, const int64_t* indices, int64_t rows, int64_t k, const R* entries /* [H, T] */,
                int64_t factors, int64_t tables, bool mean, bool weighted, R* out) {
  parallel_for(rows, factor_grain(factors, k), [&](int64_t begin, int64_t end) {
    ActiveFactors<R> active(factors);  // with the first table's entries
    for (int64_t f = 0; f < factors; ++f) active[f] = entries[f * tables];
    std::vector<double> sums(static_cast<size_t>(tables));
    for (int64_t b = begin; b < end; ++b) {
      std::fill(sums.begin(), sums.end(), 0.0);
      double first = 0, total = 0;
      active.each(b, values, indices, k, [&](int64_t f, Compute<T> value, R entry) {
        const double weight = weighted ? static_cast<double>(value) : 1.0;
        total += weight;
        first += weight * static_cast<double>(entry);
        for (int64_t t = 1; t < tables; ++t)
          sums[static_cast<size_t>(t)] += weight * static_cast<double>(entries[f * tables + t]);
      });
      sums[0] = first;
      const double divisor = mean && total > 0 ? total : 1.0;
      for (int64_t t = 0; t < tables; ++t) out[b * tables + t] = static_cast<R>(sums[static_cast<size_t>(t)] / divisor);
    }
  });
}

Tensor factor_scores(Tensor values, Tensor indices, Tensor tables, std::string reduce, bool weighted) {
  constexpr const char* op = "factor_scores";
  check_factor_scores(op, values, indices, tables, reduce);
  const int64_t rows = values.size(0), factors = tables.size(tables.dim() - 1);
  const int64_t count = tables.dim() == 1 ? 1 : tables.size(0);
  const Indices which(op, indices, factors);
  Tensor out = empty_cpu(tables.dim() == 1 ? std::vector{rows} : std::vector{rows, count}, tables.scalar_type());
  if (out.numel() == 0) return out;
  // a factor's entries side by side
  const Tensor entries = packed(tables.dim() == 1 ? tables : torch::stable::transpose(tables, 0, 1));
  auto run = [&]<typename R>() {
    dispatch_floating(op, "values", values, [&]<typename T>() {
      const Tensor values_c = packed(values);
      score_rows(static_cast<const T*>(values_c.data_ptr()), which.data(), rows, values.size(1),
                 static_cast<const R*>(entries.data_ptr()), factors, count, reduce == "mean", weighted,
                 static_cast<R*>(out.data_ptr()));
    });
  };
  if (tables.scalar_type() == ScalarType::Float)
    run.operator()<float>();
  else
    run.operator()<double>();
  return out;
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("sparse_decode", PYSEL_OP(&pysel::sparse_decode));
  m.impl("sparse_decode.out", PYSEL_OP(&pysel::sparse_decode_out));
  m.impl("sddmm", PYSEL_OP(&pysel::sddmm));
  m.impl("spmm_t", PYSEL_OP(&pysel::spmm_t));
  m.impl("sparse_decode_backward", PYSEL_OP(&pysel::sparse_decode_backward));
  m.impl("factor_counts", PYSEL_OP(&pysel::factor_counts));
  m.impl("factor_scores", PYSEL_OP(&pysel::factor_scores));
}
