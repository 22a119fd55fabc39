// Prepared weights: draws with replacement that look at a few hundred weights each instead of at all of them, and
// changes of a few weights that cost as little.
//
// Sums are integers, in the fixed point that weighted_sample makes of the weights as they stand: so they do not depend
// on how they came about, and draws are the same as from the plain weights. The scale follows the largest weight's
// exponent; where a change moves that, all sums are made anew.
#include "common/prepared.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "common/fixed_point.h"
#include "common/op.h"
#include "cpu/chunk.h"

#define PYSEL_KERNELS "cpu/prepared_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

template <typename T>
class SumTree {
 public:
  SumTree(T* w, int64_t n, const Tensor& sums, const Tensor& largest) : w_(w), n_(n) {
    auto* sum = static_cast<uint64_t*>(sums.data_ptr());
    auto* most = static_cast<T*>(largest.data_ptr());
    for (const int64_t size : level_sizes(n)) {
      levels_.push_back({size, sum, most});
      sum += size;
      most += size;
    }
  }

  // Both kinds of levels from the weights.
  void make() {
    parallel_for(levels_[0].size, kGrain / kFan, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) levels_[0].largest[b] = largest_of(w_, n_, b);
    });
    for (size_t l = 1; l < levels_.size(); ++l)
      for (int64_t b = 0; b < levels_[l].size; ++b)
        levels_[l].largest[b] = largest_of(levels_[l - 1].largest, levels_[l - 1].size, b);
    add_up();
  }

  // Weights and the levels above them; of an index that is listed twice the last weight stands.
  void update(const int64_t* index, const T* weight, int64_t m) {
    const FixedPoint before = fixed();
    for (int64_t j = 0; j < m; ++j) {
      const T old = w_[index[j]], now = weight[j];
      w_[index[j]] = now;
      const uint64_t more = before(static_cast<double>(now)) - before(static_cast<double>(old));
      int64_t at = index[j];
      for (const Level& level : levels_) {
        at /= kFan;
        PYSEL_CHOOSE(add_to_all)(level.sum + at, static_cast<int>(block_end(level.size, at / kFan) - at), more);
      }
      follow(index[j], old);
    }
    const FixedPoint after = fixed();
    if (after.scale0 != before.scale0 || after.scale1 != before.scale1) add_up();
  }

  uint64_t total() const { return levels_.back().sum[levels_.back().size - 1]; }

  FixedPoint fixed() const {
    const Level& top = levels_.back();
    return FixedPoint(false, static_cast<double>(*std::max_element(top.largest, top.largest + top.size)), n_);
  }

  // The weights that targets below the total fall upon. Several are on their way at once, for memory to keep up.
  void find(const uint64_t* targets, int count, const FixedPoint& fixed, int64_t* out) const {
    uint64_t rest[kTogether];
    for (int j = 0; j < count; ++j) {
      int64_t block = 0;
      rest[j] = targets[j];
      for (size_t l = levels_.size(); l-- > 0;) {
        const int64_t begin = block * kFan, end = block_end(levels_[l].size, block);
        const uint64_t* sum = levels_[l].sum + begin;
        const int below = PYSEL_CHOOSE(count_at_most)(sum, static_cast<int>(end - begin), rest[j]);
        const int64_t skipped = std::min<int64_t>(below, end - begin - 1);
        if (skipped > 0) rest[j] -= sum[skipped - 1];
        block = begin + skipped;
      }
      out[j] = block * kFan;
      for (size_t byte = 0; byte < kFan * sizeof(T); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w_ + out[j]) + byte);
    }
    for (int j = 0; j < count; ++j) {
      const int size = static_cast<int>(std::min(n_ - out[j], kFan));
      out[j] += PYSEL_CHOOSE(place_of<T>)(w_ + out[j], size, fixed, rest[j]);
    }
  }

  static constexpr int kTogether = 16;

 private:
  struct Level {
    int64_t size;
    uint64_t* sum;
    T* largest;
  };

  static int64_t block_end(int64_t size, int64_t block) { return std::min(size, (block + 1) * kFan); }

  static T largest_of(const T* from, int64_t size, int64_t block) {
    return *std::max_element(from + block * kFan, from + block_end(size, block));
  }

  void add_up() {
    const FixedPoint scale = fixed();
    parallel_for(blocks_of(levels_[0].size), kGrain / kFan / kFan, [&](int64_t begin, int64_t end) {
      alignas(64) uint64_t each[kFan];
      for (int64_t b = begin; b < end; ++b) {
        uint64_t sum = 0;
        for (int64_t at = b * kFan; at < block_end(levels_[0].size, b); ++at) {
          const int size = static_cast<int>(std::min(n_ - at * kFan, kFan));
          levels_[0].sum[at] = sum += PYSEL_CHOOSE(fixed_weights<T>)(w_ + at * kFan, size, scale, each);
        }
      }
    });
    for (size_t l = 1; l < levels_.size(); ++l) {
      const Level& below = levels_[l - 1];
      uint64_t sum = 0;
      for (int64_t at = 0; at < levels_[l].size; ++at) {
        sum = at % kFan == 0 ? 0 : sum;
        levels_[l].sum[at] = sum += below.sum[block_end(below.size, at) - 1];
      }
    }
  }

  // The largest of each block above weight i, which was `old`.
  void follow(int64_t i, T old) {
    const T* from = w_;
    int64_t size = n_, b = i;
    const T now = w_[i];
    for (const Level& level : levels_) {
      T& most = level.largest[b /= kFan];
      if (now >= most) {
        most = now;
      } else if (most == old) {
        most = largest_of(from, size, b);
        if (most == old) return;  // another one like it
      } else {
        return;
      }
      from = level.largest;
      size = level.size;
    }
  }

  T* w_;
  int64_t n_;
  std::vector<Level> levels_;
};

template <typename T>
void check_weights(const char* op, const char* name, const T* w, int64_t n) {
  std::atomic<bool> bad{false};
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    bool odd = false;
    for (int64_t i = begin; i < end; ++i) {
      const auto x = static_cast<Compute<T>>(w[i]);
      odd |= !(x >= 0 && x <= std::numeric_limits<Compute<T>>::max());
    }
    if (odd) bad = true;
  });
  check_value(!bad, op, ": ", name, " must be finite and at least 0, got a negative, infinite or NaN weight");
}

std::tuple<Tensor, Tensor> prepare(Tensor weights) {
  constexpr const char* op = "prepare";
  check_value(weights.dim() == 1 && weights.size(0) > 0, op, ": weights must have shape [n] with n > 0, got ",
              shape(weights));
  const int64_t n = weights.size(0), size = size_of_levels(n);
  return dispatch_floating(op, "weights", weights, [&]<typename T>() {
    const Tensor w_c = packed(weights);
    auto* w = static_cast<T*>(w_c.data_ptr());
    check_weights(op, "weights", w, n);
    const Tensor sums = empty_cpu({size}, ScalarType::Long), largest = empty_cpu({size}, weights.scalar_type());
    SumTree<T>(w, n, sums, largest).make();
    return std::tuple<Tensor, Tensor>(sums, largest);
  });
}

void update_prepared_(Tensor weights, Tensor sums, Tensor largest, Tensor index, Tensor weight) {
  constexpr const char* op = "update_";
  check_prepared(op, weights, sums, largest);
  check_value(index.dim() == 1, op, ": index must have shape [m], got ", shape(index));
  check_value(sizes(weight) == sizes(index), op, ": weight must have the shape of index, ", shape(index), ", got ",
              shape(weight));
  check_dtype(op, "index", index, ScalarType::Long, "int64");
  check_same_dtype(op, "weights", weights, "weight", weight);
  check_device(op, "index", index, weights);
  check_device(op, "weight", weight, weights);
  dispatch_floating(op, "weights", weights, [&]<typename T>() {
    const Tensor index_c = packed(index), weight_c = packed(weight);
    const auto* at = static_cast<const int64_t*>(index_c.data_ptr());
    const auto* new_weight = static_cast<const T*>(weight_c.data_ptr());
    const int64_t n = weights.size(0), m = index.size(0);
    for (int64_t j = 0; j < m; ++j)
      check_index(0 <= at[j] && at[j] < n, op, ": index must be between 0 and ", n - 1, ", got ", at[j]);
    check_weights(op, "weight", new_weight, m);
    SumTree<T>(static_cast<T*>(weights.data_ptr()), n, sums, largest).update(at, new_weight, m);
  });
}

Tensor sample_prepared(Tensor weights, Tensor sums, Tensor largest, int64_t k, std::string order, Tensor key,
                       int64_t start) {
  constexpr const char* op = "weighted_sample";
  check_prepared(op, weights, sums, largest);
  check_index(k >= 0, op, ": k must be at least 0, got ", k);
  check_value(order == "draw" || order == "index" || order == "shuffled", op,
              ": order must be draw, index or shuffled, got ", order);
  check_start(op, start);
  const Key from = read_key(op, key);
  Tensor out;
  dispatch_floating(op, "weights", weights, [&]<typename T>() {
    const SumTree<T> tree(static_cast<T*>(weights.data_ptr()), weights.size(0), sums, largest);
    const uint64_t total = tree.total();
    check_value(k == 0 || total > 0, op, ": weights must have at least one above 0 in every row, got a row of zeros");
    out = empty_cpu({k}, ScalarType::Long);
    auto* drawn = static_cast<int64_t*>(out.data_ptr());
    const FixedPoint fixed = tree.fixed();
    constexpr int kTogether = SumTree<T>::kTogether;
    parallel_for(k, 1024, [&](int64_t begin, int64_t end) {
      uint64_t targets[kTogether];
      for (int64_t at = begin; at < end; at += kTogether) {
        const int count = static_cast<int>(std::min<int64_t>(kTogether, end - at));
        for (int j = 0; j < count; ++j)
          targets[j] =
              high_product(from.word64(Stream::with_replacement, static_cast<uint64_t>(start + at + j)), total);
        tree.find(targets, count, fixed, drawn + at);
      }
    });
    if (order == "index") std::sort(drawn, drawn + k);
  });
  return out;
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("prepare", PYSEL_OP(&pysel::prepare));
  m.impl("update_prepared_", PYSEL_OP(&pysel::update_prepared_));
  m.impl("sample_prepared", PYSEL_OP(&pysel::sample_prepared));
}
