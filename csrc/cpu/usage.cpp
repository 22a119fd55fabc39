// How often each sample has been used, and the penalty that rotates samples (arXiv 2603.04981, whose form is log; the
// other forms and the decay are ours).
//
// Counts are handled in blocks that stay in cache: decay, +1 for each selected index of the block, penalty. Selected
// indices come grouped by block, which ascending ones are already; others are brought into groups first. So no two
// threads touch a count, and counts, scores and result cross the memory bus once.
#include "common/op.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "common/usage.h"
#include "cpu/bucket.h"

#define PYSEL_KERNELS "cpu/usage_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr int64_t kBlock = 16 * kChunk;

// A chunk of at most kChunk.
template <typename S, typename C>
void penalise_chunk(const PenaltyArguments& penalty, const S* scores, const C* counts, int n, S* out) {
  using A = PenaltyType<S, C>;
  alignas(64) A buffer[kChunk];
  const A* used = buffer;
  if constexpr (std::is_same_v<A, C>)
    used = counts;
  else
    PYSEL_CHOOSE(convert<C, A>)(counts, n, buffer);
  PYSEL_CHOOSE(penalise<S, A>)
  (scores, used, n, penalty.form, penalty.gamma_as<A>(), static_cast<A>(penalty.step), out);
}

// Selected indices grouped by the block of counts they fall into.
class Grouped {
 public:
  Grouped(const char* op, const Tensor& selected, int64_t n)
      : tensor_(packed(selected)),
        data_(static_cast<const int64_t*>(tensor_.data_ptr())),
        start_(static_cast<size_t>((n + kBlock - 1) / kBlock + 1)) {
    const int64_t m = selected.numel();
    std::atomic<bool> ascending{true};
    parallel_for(m, kGrain, [&](int64_t begin, int64_t end) {
      bool outside = false, descends = false;
      for (int64_t i = begin; i < end; ++i) {
        outside |= static_cast<uint64_t>(data_[i]) >= static_cast<uint64_t>(n);
        descends |= data_[i] < data_[std::max<int64_t>(i - 1, 0)];
      }
      if (descends) ascending = false;
      if (!outside) return;
      const int64_t bad = *std::find_if(data_ + begin, data_ + end, [&](int64_t i) { return i < 0 || i >= n; });
      check_index(n > 0, op, ": selected must be empty for empty counts, got ", bad);
      check_index(false, op, ": selected must be between 0 and ", n - 1, ", got ", bad);
    });
    if (ascending) {
      for (size_t b = 0; b + 1 < start_.size(); ++b)
        start_[b] = std::lower_bound(data_, data_ + m, static_cast<int64_t>(b) * kBlock) - data_;
      start_.back() = m;
    } else {
      sort_by_block(m);
    }
  }

  int64_t blocks() const { return static_cast<int64_t>(start_.size()) - 1; }
  const int64_t* begin(int64_t block) const { return data_ + start_[static_cast<size_t>(block)]; }
  const int64_t* end(int64_t block) const { return begin(block + 1); }

 private:
  void sort_by_block(int64_t m) {
    sorted_ = empty_cpu({m}, ScalarType::Long);
    auto* sorted = static_cast<int64_t*>(sorted_.data_ptr());
    start_ = group(
        m, start_.size() - 1,
        [this](int64_t begin, int64_t end, const auto& f) {
          for (int64_t i = begin; i < end; ++i) f(data_[i], static_cast<size_t>(data_[i]) / kBlock);
        },
        [sorted](int64_t place, int64_t index) { sorted[place] = index; });
    data_ = sorted;
  }

  Tensor tensor_, sorted_;
  const int64_t* data_;
  std::vector<int64_t> start_;  // of each block's group, and the end
};

// Decays and counts; then `after(at, n, counts)` sees each chunk, if `visit_all` even where nothing changed.
template <typename C, typename F>
void update(const Tensor& counts, const Grouped& grouped, double decay, bool visit_all, const F& after) {
  const int64_t n = counts.size(0), stride = n > 0 ? counts.stride(0) : 1;
  C* data = static_cast<C*>(counts.data_ptr());
  parallel_for(grouped.blocks(), 1, [&](int64_t first, int64_t last) {
    std::vector<C> gathered(stride == 1 ? 0 : kBlock);
    for (int64_t b = first; b < last; ++b) {
      if (decay == 1 && !visit_all && grouped.begin(b) == grouped.end(b)) continue;
      const int64_t at = b * kBlock;
      const int size = static_cast<int>(std::min(kBlock, n - at));
      C* block = stride == 1 ? data + at : gathered.data();
      if (stride != 1)
        for (int i = 0; i < size; ++i) block[i] = data[(at + i) * stride];
      if (decay != 1) PYSEL_CHOOSE(scale<C>)(block, size, static_cast<C>(decay));
      for (const int64_t* s = grouped.begin(b); s != grouped.end(b); ++s) block[*s - at] = add_one(block[*s - at]);
      for (int i = 0; i < size; i += kChunk) after(at + i, std::min(kChunk, size - i), block + i);
      if (stride != 1)
        for (int i = 0; i < size; ++i) data[(at + i) * stride] = block[i];
    }
  });
}

void usage_update_(Tensor counts, Tensor selected, double decay) {
  constexpr const char* op = "usage_update_";
  check_update(op, counts, selected, decay);
  const Grouped grouped(op, selected, counts.size(0));
  dispatch_counts(op, counts,
                  [&]<typename C>() { update<C>(counts, grouped, decay, false, [](int64_t, int, const C*) {}); });
}

// Writes into the caller's tensor, or into a fresh one.
Tensor write_usage_penalty(const Tensor& scores, const Tensor& counts, double gamma, const std::string& form,
                           int64_t step, const std::optional<Tensor>& own) {
  constexpr const char* op = "usage_penalty";
  check_usage_penalty(op, scores, counts, own);
  const PenaltyArguments penalty(op, gamma, form, step);
  const Tensor out = own ? *own : empty_cpu(sizes(scores), scores.scalar_type());
  dispatch_floating(op, "scores", scores, [&]<typename S>() {
    dispatch_counts(op, counts, [&]<typename C>() {
      const Tensor scores_c = packed(scores), counts_c = packed(counts);
      const S* from = static_cast<const S*>(scores_c.data_ptr());
      const C* used = static_cast<const C*>(counts_c.data_ptr());
      each_chunk(scores.numel(), true, [&](int64_t c) {
        const int64_t at = c * kChunk;
        penalise_chunk(penalty, from + at, used + at, chunk_size(scores.numel(), c),
                       static_cast<S*>(out.data_ptr()) + at);
      });
    });
  });
  return out;
}

Tensor usage_penalty(Tensor scores, Tensor counts, double gamma, std::string form, int64_t step) {
  return write_usage_penalty(scores, counts, gamma, form, step, std::nullopt);
}

void usage_penalty_out(Tensor scores, Tensor counts, double gamma, std::string form, int64_t step, Tensor out) {
  write_usage_penalty(scores, counts, gamma, form, step, out);
}

// Writes into the caller's tensor, or into a fresh one.
Tensor write_usage_step(const Tensor& counts, const Tensor& selected, const Tensor& scores, double gamma, double decay,
                        const std::string& form, int64_t step, const std::optional<Tensor>& own) {
  constexpr const char* op = "usage_step_";
  check_usage_step(op, counts, selected, scores, decay, own);
  const PenaltyArguments penalty(op, gamma, form, step);
  const Grouped grouped(op, selected, counts.size(0));
  const Tensor out = own ? *own : empty_cpu(sizes(scores), scores.scalar_type());
  dispatch_floating(op, "scores", scores, [&]<typename S>() {
    dispatch_counts(op, counts, [&]<typename C>() {
      const Tensor scores_c = packed(scores);
      const S* from = static_cast<const S*>(scores_c.data_ptr());
      S* to = static_cast<S*>(out.data_ptr());
      update<C>(counts, grouped, decay, true,
                [&](int64_t at, int n, const C* used) { penalise_chunk(penalty, from + at, used, n, to + at); });
    });
  });
  return out;
}

Tensor usage_step_(Tensor counts, Tensor selected, Tensor scores, double gamma, double decay, std::string form,
                   int64_t step) {
  return write_usage_step(counts, selected, scores, gamma, decay, form, step, std::nullopt);
}

void usage_step_out(Tensor counts, Tensor selected, Tensor scores, double gamma, double decay, std::string form,
                    int64_t step, Tensor out) {
  write_usage_step(counts, selected, scores, gamma, decay, form, step, out);
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("usage_update_", PYSEL_OP(&pysel::usage_update_));
  m.impl("usage_penalty", PYSEL_OP(&pysel::usage_penalty));
  m.impl("usage_penalty.out", PYSEL_OP(&pysel::usage_penalty_out));
  m.impl("usage_step_", PYSEL_OP(&pysel::usage_step_));
  m.impl("usage_step_.out", PYSEL_OP(&pysel::usage_step_out));
}
