// Fused Gumbel-softmax and the categorical draw (Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712).
//
// A row is handled in chunks of kChunk elements: noise is made in L1 and added to the logits. Soft rows keep the
// perturbed logits (in the output itself where types allow) for the passes that exponentiate and scale, and short ones
// share a chunk; hard rows and argmax make noise only where a cheap bound leaves a chance to win. Sums run over 16
// lanes in a chunk, then over chunks in order, so that neither threads nor instruction set show in the result.
#include "common/op.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/gumbel.h"
#include "common/random.h"
#include "common/sum.h"
#include "cpu/chunk.h"
#include "cpu/gumbel.h"
#include "cpu/transpose.h"

namespace pysel {
namespace {

// What a row needs to know of one of its chunks.
template <typename A>
struct ChunkSummary {
  A max;  // ignoring NaN
  bool nan;
  bool plus_inf;
};

template <typename A>
struct ChunkBest : ChunkSummary<A> {
  int at;  // the first that holds the maximum, or the first NaN
};

constexpr int kShortRow = 128;  // rows up to this width go through a kernel together

}  // namespace
}  // namespace pysel

#define PYSEL_KERNELS "cpu/gumbel_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

template <typename A>
struct RowSummary {
  A max = -std::numeric_limits<A>::infinity();
  bool nan = false;
  int64_t chunk = 0;  // the first that holds the maximum, or the first NaN
};

template <typename Summary>
auto merge(const char* op, const std::vector<Summary>& chunks, bool validate) {
  using A = decltype(Summary::max);
  RowSummary<A> row;
  bool plus_inf = false;
  for (size_t c = 0; c < chunks.size(); ++c) {
    plus_inf |= chunks[c].plus_inf;
    if (chunks[c].max > row.max) {
      row.max = chunks[c].max;
      if (!row.nan) row.chunk = static_cast<int64_t>(c);
    }
    if (chunks[c].nan && !row.nan) {
      row.nan = true;
      row.chunk = static_cast<int64_t>(c);
    }
  }
  if (validate) {
    check_value(!plus_inf, op, ": logits must be below +inf, got +inf");
    check_value(row.nan || row.max > -std::numeric_limits<A>::infinity(), op,
                ": logits must have a finite value in every row, got a row of only -inf");
  }
  return row;
}

template <typename A>
constexpr ScalarType kTypeOf = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

// Rows of logits, perturbed chunk by chunk.
template <typename T>
class PerturbedRows {
 public:
  using A = Compute<T>;
  static constexpr bool kDivide = false;

  PerturbedRows(const Tensor& logits, const Layout& layout, Key key, uint64_t start)
      : x_(static_cast<const T*>(logits.data_ptr())), layout_(layout), key_(key), start_(start) {
    if (layout.inner > 1) stage();
  }

  const Layout& layout() const { return layout_; }

  // Rows of another dim than the last, one after the other: see stage().
  A* staged() const { return staged_; }

  // Writes a chunk to z, where a staged one is already.
  ChunkSummary<A> summarise(int64_t row, int64_t c, A* z) const {
    const int n = chunk_size(layout_.width, c);
    const int64_t at = row * layout_.width + c * kChunk;
    if (staged_ != nullptr) return PYSEL_CHOOSE(summarise<A>)(z, n);
    return PYSEL_CHOOSE(perturb_and_summarise<T, A>)(x_ + at, key_, start_ + static_cast<uint64_t>(at), n, z);
  }

  // What summarise() wrote becomes its exponentials, whose sum this is.
  WideSum<A> exponentiate(int64_t, int64_t c, A max, A tau, A* z) const {
    return PYSEL_CHOOSE(exponentiate<A>)(z, chunk_size(layout_.width, c), max, tau);
  }

  // Writes rows that fit in a chunk to z, and the largest of each to `most`; false if one of them is not finite.
  bool summarise_rows(int64_t first, int rows, A* z, A* most) const {
    const int64_t at = first * layout_.width;
    const int width = static_cast<int>(layout_.width), n = rows * width;
    if (staged_ != nullptr)
      std::memcpy(z, staged_ + at, sizeof(A) * static_cast<size_t>(n));
    else
      make(at, n, z);
    return PYSEL_CHOOSE(largest_of_rows<A, A>)(z, rows, width, most);
  }

  void exponentiate_rows(int64_t, int rows, const A* most, A tau, A* z) const {
    PYSEL_CHOOSE(exponentiate_rows<A>)(z, most, rows, static_cast<int>(layout_.width), tau);
  }

  // The chunk's largest, if it exceeds `floor`.
  ChunkBest<A> best(int64_t row, int64_t c, A floor) const {
    const int n = chunk_size(layout_.width, c);
    const int64_t at = row * layout_.width + c * kChunk;
    if (staged_ == nullptr)
      return PYSEL_CHOOSE(best<T, A>)(x_ + at, key_, start_ + static_cast<uint64_t>(at), n, floor);
    const A* z = staged_ + at;
    ChunkBest<A> result{PYSEL_CHOOSE(summarise<A>)(z, n), 0};
    while (result.nan ? z[result.at] == z[result.at] : z[result.at] != result.max) ++result.at;
    return result;
  }

 private:
  void make(int64_t at, int n, A* z) const {
    PYSEL_CHOOSE(perturb<T, A>)(x_ + at, key_, start_ + static_cast<uint64_t>(at), n, z);
  }

  // The element number follows the logical order, in which a row of a dim other than the last is not contiguous: make
  // the noise in logical order and keep it transposed, [outer, inner, width].
  void stage() {
    const auto& [outer, width, inner] = layout_;
    memory_ = empty_cpu({outer * inner * width}, kTypeOf<A>);
    staged_ = static_cast<A*>(memory_.data_ptr());
    transpose<A>(
        outer, width, inner,
        [this](int64_t line, int64_t first, int n, A* z) { make(line * layout_.inner + first, n, z); }, staged_);
  }

  const T* x_;
  Layout layout_;
  Key key_;
  uint64_t start_;
  Tensor memory_;
  A* staged_ = nullptr;
};

// The same for soft samples at tau = 1, which are exp(x) / E over its sum: see exp_over(). The maximum is that of the
// logits alone.
template <typename T>
class RacedRows {
 public:
  using A = Compute<T>;
  static constexpr bool kDivide = true;  // what is certain has to come out as 1

  RacedRows(const Tensor& logits, const Layout& layout, Key key, uint64_t start)
      : x_(static_cast<const T*>(logits.data_ptr())), layout_(layout), key_(key), start_(start) {
    if (layout.inner > 1) stage();
  }

  const Layout& layout() const { return layout_; }

  A* staged() const { return staged_; }

  ChunkSummary<A> summarise(int64_t row, int64_t c, const A*) const {
    if (staged_ != nullptr)
      return {most_[row], std::isnan(most_[row]), most_[row] == std::numeric_limits<A>::infinity()};
    return PYSEL_CHOOSE(summarise_logits<T, A>)(x_ + place(row, c), chunk_size(layout_.width, c));
  }

  WideSum<A> exponentiate(int64_t row, int64_t c, A max, A, A* z) const {
    const int n = chunk_size(layout_.width, c);
    if (staged_ != nullptr) return PYSEL_CHOOSE(sum_of<A>)(z, n);
    return PYSEL_CHOOSE(race<T, A>)(x_ + place(row, c), key_, element(place(row, c)), n, max, z);
  }

  bool summarise_rows(int64_t first, int rows, const A*, A* most) const {
    if (staged_ != nullptr) {
      std::copy_n(most_.data() + first, rows, most);
      return std::all_of(most, most + rows, [](A m) { return std::isfinite(m); });
    }
    return PYSEL_CHOOSE(largest_of_rows<T, A>)(x_ + place(first, 0), rows, static_cast<int>(layout_.width), most);
  }

  void exponentiate_rows(int64_t first, int rows, const A* most, A, A* z) const {
    const int width = static_cast<int>(layout_.width);
    if (staged_ != nullptr)
      std::copy_n(staged_ + place(first, 0), rows * width, z);
    else
      PYSEL_CHOOSE(race_rows<T, A>)(x_ + place(first, 0), key_, element(place(first, 0)), most, rows, width, z);
  }

 private:
  // The largest of each column of matrices [outer, lines, inner]: see larger().
  template <typename X>
  static std::vector<A> largest_of_columns(const X* x, int64_t outer, int64_t lines, int64_t inner) {
    constexpr int64_t kColumns = 256;  // side by side
    const int64_t blocks = (inner + kColumns - 1) / kColumns, threads = torch::stable::get_num_threads();
    // a few matrices of few columns are cut across
    const int64_t parts = outer * blocks < threads ? std::min(threads, lines / kChunk + 1) : 1;
    std::vector<A> largest(static_cast<size_t>(parts * outer * inner));
    parallel_for(parts * outer * blocks, rows_per_thread(lines / parts * kColumns), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t matrix = b / blocks % outer, part = b / blocks / outer, first = b % blocks * kColumns;
        const int64_t line = lines * part / parts, count = lines * (part + 1) / parts - line;
        PYSEL_CHOOSE(largest_of_columns<X, A>)
        (x + (matrix * lines + line) * inner + first, count, inner, static_cast<int>(std::min(kColumns, inner - first)),
         largest.data() + (part * outer + matrix) * inner + first);
      }
    });
    return parts == 1 ? largest : largest_of_columns<A>(largest.data(), 1, parts, outer * inner);
  }

  int64_t place(int64_t row, int64_t c) const { return row * layout_.width + c * kChunk; }
  uint64_t element(int64_t at) const { return start_ + static_cast<uint64_t>(at); }

  // As PerturbedRows does, with the exponentials, for which the largest logit of each row is found first.
  void stage() {
    const int64_t outer = layout_.outer, width = layout_.width, inner = layout_.inner;
    most_ = largest_of_columns(x_, outer, width, inner);
    memory_ = empty_cpu({outer * inner * width}, kTypeOf<A>);
    staged_ = static_cast<A*>(memory_.data_ptr());
    transpose<A>(
        outer, width, inner,
        [&](int64_t line, int64_t first, int n, A* p) {
          alignas(64) A most[kChunk];
          const A* of = most_.data() + line / width * inner + first;
          int64_t lines = width - line % width;                     // that are left of the same matrix
          for (int64_t i = 0; i < n; of += inner, lines = width) {  // several lines, if they are short: doubled
            const int64_t end = std::min<int64_t>(n, i + lines * inner), begin = i;
            for (int64_t size = std::min(inner, end - i); i < end; i += size, size = std::min(i - begin, end - i))
              std::copy_n(i == begin ? of : most + begin, size, most + i);
          }
          const int64_t begin = line * inner + first;
          PYSEL_CHOOSE(race_each<T, A>)(x_ + begin, key_, element(begin), n, most, p);
        },
        staged_);
  }

  const T* x_;
  Layout layout_;
  Key key_;
  uint64_t start_;
  Tensor memory_;
  A* staged_ = nullptr;
  std::vector<A> most_;  // of each row, if staged
};

// Where row r's elements go: base + i * step.
struct RowPlace {
  int64_t base, step;

  RowPlace(const Layout& l, int64_t r) : base((r / l.inner) * l.width * l.inner + r % l.inner), step(l.inner) {}
};

// Many short rows, as many at a time as fit in a chunk.
template <typename Source, typename Out>
void soft_short_rows(const char* op, const Source& source, double tau, bool validate, Out* out) {
  using A = typename Source::A;
  const auto width = static_cast<int>(source.layout().width);
  const int64_t rows = source.layout().outer * source.layout().inner, together = kChunk / width;
  parallel_for((rows + together - 1) / together, kGrain / kChunk, [&](int64_t begin, int64_t end) {
    alignas(64) A z[kChunk + 16] = {};
    alignas(64) A most[kChunk];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * together;
      const auto count = static_cast<int>(std::min(together, rows - first));
      if (!source.summarise_rows(first, count, z, most)) {
        for (int r = 0; r < count; ++r) {
          const std::vector row{source.summarise(first + r, 0, z + r * width)};
          most[r] = merge(op, row, validate).max;
        }
      }
      source.exponentiate_rows(first, count, most, divisor<A>(tau), z);
      PYSEL_CHOOSE(normalise_rows<Source::kDivide, Out, A>)(z, count, width, out + first * width);
    }
  });
}

// Soft samples of rows one after the other. `out` may be where they are staged.
template <typename Source, typename Out>
void soft_rows(const char* op, const Source& source, double tau, bool validate, Out* out) {
  using A = typename Source::A;
  const int64_t width = source.layout().width;
  if (width <= kShortRow) return soft_short_rows(op, source, tau, validate, out);
  each_row(source.layout().outer * source.layout().inner, width, [&](int64_t r, bool parallel) {
    std::vector<A> short_room;
    Tensor long_room;  // which is neither cleared nor of small pages
    A* z;
    if constexpr (std::is_same_v<Out, A>) {
      z = out + r * width;
    } else if (width <= kGrain) {
      short_room.resize(static_cast<size_t>(width));
      z = short_room.data();
    } else {
      long_room = empty_cpu({width}, kTypeOf<A>);
      z = static_cast<A*>(long_room.data_ptr());
    }
    std::vector<ChunkSummary<A>> summary(static_cast<size_t>(chunks_of(width)));
    each_chunk(width, parallel, [&](int64_t c) { summary[c] = source.summarise(r, c, z + c * kChunk); });
    const A max = merge(op, summary, validate).max;
    std::vector<WideSum<A>> sums(summary.size());
    each_chunk(width, parallel,
               [&](int64_t c) { sums[c] = source.exponentiate(r, c, max, divisor<A>(tau), z + c * kChunk); });
    WideSum<A> total{};
    for (const auto& sum : sums) total.add(sum);
    const auto sum = static_cast<A>(total.value());
    each_chunk(width, parallel, [&](int64_t c) {
      PYSEL_CHOOSE(normalise<Source::kDivide, Out, A>)(z + c * kChunk, chunk_size(width, c), sum,
                                                       out + r * width + c * kChunk);
    });
  });
}

// Soft samples of any rows.
template <typename Source, typename T>
void soft(const char* op, const Source& source, double tau, bool validate, T* out) {
  if (source.staged() == nullptr) return soft_rows(op, source, tau, validate, out);
  using A = typename Source::A;
  A* rows = source.staged();
  soft_rows(op, source, tau, validate, rows);
  const auto& [outer, width, inner] = source.layout();
  transpose<A>(
      outer, inner, width,
      [rows, width = width](int64_t row, int64_t first, int n, A* y) {
        std::memcpy(y, rows + row * width + first, sizeof(A) * static_cast<size_t>(n));
      },
      out);
}

// Calls write(row, index, is_nan) with the first maximum of each perturbed row, NaN counting as largest.
template <typename T, typename F>
void argmax_rows(const char* op, const PerturbedRows<T>& source, const Layout& layout, bool validate, const F& write) {
  using A = Compute<T>;
  each_row(layout.outer * layout.inner, layout.width, [&](int64_t r, bool parallel) {
    std::vector<ChunkBest<A>> best(static_cast<size_t>(chunks_of(layout.width)));
    std::atomic<A> floor{std::numeric_limits<A>::lowest()};
    each_chunk(layout.width, parallel, [&](int64_t c) {
      best[c] = source.best(r, c, floor.load(std::memory_order_relaxed));
      // Threads may overwrite each other's: any earlier maximum will do.
      if (best[c].max > floor.load(std::memory_order_relaxed)) floor.store(best[c].max, std::memory_order_relaxed);
    });
    const RowSummary<A> row = merge(op, best, validate);
    write(r, row.chunk * kChunk + best[row.chunk].at, row.nan);
  });
}

// What check_below_inf() does, and refuses rows of only -inf.
template <typename T>
void check_rows(const char* op, const Tensor& logits, const Layout& layout) {
  using A = Compute<T>;
  check_below_inf(op, logits);
  const T* x = static_cast<const T*>(logits.data_ptr());
  each_row(layout.outer * layout.inner, layout.width, [&](int64_t r, bool) {
    const RowPlace place(layout, r);
    int64_t i = 0;  // usually the first already is above -inf
    while (i < layout.width && static_cast<A>(x[place.base + i * place.step]) == -std::numeric_limits<A>::infinity())
      ++i;
    check_value(i < layout.width, op, ": logits must have a finite value in every row, got a row of only -inf");
  });
}

// Writes into the caller's tensor, or into a fresh one.
Tensor write_gumbel_softmax(const Tensor& logits, const Tensor& tau, const Tensor& key, int64_t dim, bool hard,
                            int64_t start, bool validate, const std::optional<Tensor>& own) {
  constexpr const char* op = "gumbel_softmax";
  check_floating(op, "logits", logits);
  const Layout layout(op, logits, dim);
  const double t = read_tau(op, tau, hard);
  const Key k = read_key(op, key);
  check_start(op, start);
  const Tensor out = own ? *own : empty_cpu(sizes(logits), logits.scalar_type());
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    if (logits.numel() == 0) return;
    const Tensor x = packed(logits);
    if (validate && own) check_rows<T>(op, x, layout);
    T* y = static_cast<T*>(out.data_ptr());
    const auto first = static_cast<uint64_t>(start);
    if (!hard && divisor<Compute<T>>(t) == 1) return soft(op, RacedRows<T>(x, layout, k, first), t, validate, y);
    const PerturbedRows<T> source(x, layout, k, first);
    if (!hard) return soft(op, source, t, validate, y);
    const int64_t n = logits.numel();
    if (layout.inner > 1)
      each_chunk(n, true, [&](int64_t c) { std::fill_n(y + c * kChunk, chunk_size(n, c), static_cast<T>(0.0f)); });
    argmax_rows<T>(op, source, layout, validate, [&](int64_t r, int64_t index, bool nan) {
      const RowPlace place(layout, r);
      const T rest = static_cast<T>(nan ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
      if (place.step == 1) {
        std::fill_n(y + place.base, layout.width, rest);
      } else if (nan) {
        for (int64_t i = 0; i < layout.width; ++i) y[place.base + i * place.step] = rest;
      }
      if (!nan) y[place.base + index * place.step] = static_cast<T>(1.0f);
    });
  });
  return out;
}

Tensor gumbel_softmax(Tensor logits, Tensor tau, Tensor key, int64_t dim, bool hard, int64_t start,
                      std::optional<bool> validate) {
  return write_gumbel_softmax(logits, tau, key, dim, hard, start, validate.value_or(true), std::nullopt);
}

void gumbel_softmax_out(Tensor logits, Tensor tau, Tensor key, int64_t dim, bool hard, int64_t start,
                        std::optional<bool> validate, Tensor out) {
  check_samples_out("gumbel_softmax", out, logits);
  write_gumbel_softmax(logits, tau, key, dim, hard, start, validate.value_or(true), out);
}

Tensor gumbel_argmax(Tensor logits, Tensor key, int64_t dim, int64_t start, std::optional<bool> validate) {
  constexpr const char* op = "gumbel_argmax";
  check_floating(op, "logits", logits);
  const Layout layout(op, logits, dim);
  const Key k = read_key(op, key);
  check_start(op, start);
  Tensor out = empty_cpu(check_argmax(op, logits, dim, layout), ScalarType::Long);
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    if (logits.numel() == 0) return;
    const Tensor x = packed(logits);
    const PerturbedRows<T> source(x, layout, k, static_cast<uint64_t>(start));
    auto* index = static_cast<int64_t*>(out.data_ptr());
    argmax_rows<T>(op, source, layout, validate.value_or(true), [&](int64_t r, int64_t i, bool) { index[r] = i; });
  });
  return out;
}

Tensor gumbel_softmax_backward(Tensor grad, Tensor y, Tensor tau, int64_t dim) {
  constexpr const char* op = "gumbel_softmax_backward";
  check_gradient(op, grad, "y", y);
  const Layout layout(op, y, dim);
  const double t = read_tau(op, tau, true);
  Tensor out = empty_cpu(sizes(y), y.scalar_type());
  dispatch_floating(op, "y", y, [&]<typename T>() {
    using A = Compute<T>;
    if (y.numel() == 0) return;
    T* to = static_cast<T*>(out.data_ptr());
    if (t == 0) {  // the limit is a step: no gradient
      std::fill(to, to + y.numel(), static_cast<T>(0.0f));
      return;
    }
    const Tensor grad_c = packed(grad), y_c = packed(y);
    const T* g = static_cast<const T*>(grad_c.data_ptr());
    const T* p = static_cast<const T*>(y_c.data_ptr());
    const auto [outer, width, inner] = layout;
    if (inner == 1) {
      each_row(outer, width, [&](int64_t r, bool parallel) {
        const int64_t base = r * layout.width;
        std::vector<A> sums(static_cast<size_t>(chunks_of(layout.width)));
        each_chunk(layout.width, parallel, [&](int64_t c) {
          const int64_t at = base + c * kChunk;
          sums[c] = PYSEL_CHOOSE(dot<T, A>)(g + at, p + at, chunk_size(layout.width, c));
        });
        double mean = 0;
        for (A s : sums) mean += static_cast<double>(s);
        each_chunk(layout.width, parallel, [&](int64_t c) {
          const int64_t at = base + c * kChunk;
          PYSEL_CHOOSE(softmax_gradient<T, A>)
          (g + at, p + at, chunk_size(layout.width, c), static_cast<A>(mean), divisor<A>(t), to + at);
        });
      });
      return;
    }
    constexpr int64_t kColumns = 64;  // neighbouring rows side by side
    const A divide_by = divisor<A>(t);
    const int64_t blocks = (inner + kColumns - 1) / kColumns;
    parallel_for(outer * blocks, rows_per_thread(width * kColumns), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b % blocks * kColumns, n = std::min(kColumns, layout.inner - first);
        const int64_t base = b / blocks * layout.width * layout.inner + first,
                      after = base + layout.width * layout.inner;
        double sum[kColumns] = {};
        for (int64_t at = base; at < after; at += layout.inner)
          for (int64_t j = 0; j < n; ++j)
            sum[j] += static_cast<double>(static_cast<A>(g[at + j]) * static_cast<A>(p[at + j]));
        A mean[kColumns];
        for (int64_t j = 0; j < n; ++j) mean[j] = static_cast<A>(sum[j]);
        for (int64_t at = base; at < after; at += layout.inner)
          for (int64_t j = 0; j < n; ++j)
            to[at + j] = static_cast<T>(static_cast<A>(p[at + j]) * (static_cast<A>(g[at + j]) - mean[j]) / divide_by);
      }
    });
  });
  return out;
}

}  // namespace

void check_below_inf(const char* op, const Tensor& logits) {
  dispatch_floating(op, "logits", logits, [&]<typename T>() {
    const T* x = static_cast<const T*>(logits.data_ptr());
    const int64_t n = logits.numel();
    each_chunk(n, true, [&](int64_t c) {
      check_value(!PYSEL_CHOOSE(has_plus_inf<T, Compute<T>>)(x + c * kChunk, chunk_size(n, c)), op,
                  ": logits must be below +inf, got +inf");
    });
  });
}

}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("gumbel_softmax", PYSEL_OP(&pysel::gumbel_softmax));
  m.impl("gumbel_softmax.out", PYSEL_OP(&pysel::gumbel_softmax_out));
  m.impl("gumbel_softmax_backward", PYSEL_OP(&pysel::gumbel_softmax_backward));
  m.impl("gumbel_argmax", PYSEL_OP(&pysel::gumbel_argmax));
}
