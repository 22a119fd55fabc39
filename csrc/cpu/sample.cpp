// Weighted index sampling: what is drawn without replacement is in race.cpp, with replacement in inversion.cpp.
#include "cpu/sample.h"

#include "common/op.h"
#include "common/sample.h"
#include "cpu/chunk.h"

namespace pysel {
namespace {

struct WeightSummary {
  int64_t nonzero;
  bool bad;
};

}  // namespace
}  // namespace pysel

#define PYSEL_KERNELS "cpu/sample_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {
namespace {

constexpr const char* kOp = "weighted_sample";

template <typename T>
void check_weights(const T* w, int64_t n, const Request& request, bool replacement) {
  int64_t nonzero = 0;
  bool bad = false;
  std::mutex mutex;
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    const WeightSummary part = PYSEL_CHOOSE(summarise<T, Compute<T>>)(w + begin, end - begin, request.log_weights);
    std::lock_guard lock(mutex);
    nonzero += part.nonzero;
    bad |= part.bad;
  });
  check_value(!bad || !request.log_weights, kOp,
              ": weights must be below +inf and not NaN (log_weights=True), got +inf or NaN");
  check_value(!bad, kOp, ": weights must be finite and at least 0, got a negative, infinite or NaN weight");
  if (replacement) {
    check_value(request.k == 0 || nonzero > 0, kOp,
                ": weights must have at least one above 0 in every row, got a row of zeros");
  } else {
    check_value(request.groups || request.k <= nonzero, kOp, ": k must be at most the number of nonzero weights, ",
                nonzero, ", got ", request.k);
  }
}

// Writes into the caller's tensor, or into a fresh one.
Tensor write_weighted_sample(const Tensor& weights, int64_t k, bool replacement, bool log_weights,
                             const std::string& order, const std::optional<Tensor>& groups,
                             const std::optional<Tensor>& quotas, const Tensor& key, int64_t start, bool validate,
                             const std::optional<Tensor>& own) {
  const std::vector<int64_t> size = check_weighted_sample(kOp, weights, k, replacement, order, groups, quotas, start);
  if (own) check_indices_out(kOp, *own, size, "weights", weights, groups, quotas);
  const Key checked_key = read_key(kOp, key);
  const int64_t n = weights.size(weights.dim() - 1);
  const int64_t rows = weights.dim() == 2 ? weights.size(0) : 1;
  const GroupTensors given(kOp, groups, quotas, k);
  const Request request{given.groups,
                        validate,
                        k,
                        log_weights,
                        order == "draw"    ? Arrangement::draw
                        : order == "index" ? Arrangement::index
                                           : Arrangement::shuffled,
                        checked_key};
  Tensor out;
  dispatch_floating(kOp, "weights", weights, [&]<typename T>() {
    const Tensor w_c = packed(weights);
    const T* w = static_cast<const T*>(w_c.data_ptr());
    if (validate) each_row(rows, n, [&](int64_t r, bool) { check_weights(w + r * n, n, request, replacement); });
    out = own ? *own : empty_cpu(size, ScalarType::Long);
    auto* index = static_cast<int64_t*>(out.data_ptr());
    if (out.numel() == 0 && !given.groups) return;
    each_row(rows, std::max(n, k), [&](int64_t r, bool) {
      const auto row_start = static_cast<uint64_t>(start) + static_cast<uint64_t>(r * (replacement ? k : n));
      (replacement ? invert<T> : race<T>)(w + r * n, n, request, row_start, index + r * k);
    });
  });
  return out;
}

Tensor weighted_sample(Tensor weights, int64_t k, bool replacement, bool log_weights, std::string order,
                       std::optional<Tensor> groups, std::optional<Tensor> quotas, Tensor key, int64_t start,
                       std::optional<bool> validate) {
  return write_weighted_sample(weights, k, replacement, log_weights, order, groups, quotas, key, start,
                               validate.value_or(true), std::nullopt);
}

void weighted_sample_out(Tensor weights, int64_t k, bool replacement, bool log_weights, std::string order,
                         std::optional<Tensor> groups, std::optional<Tensor> quotas, Tensor key, int64_t start,
                         std::optional<bool> validate, Tensor out) {
  write_weighted_sample(weights, k, replacement, log_weights, order, groups, quotas, key, start,
                        validate.value_or(true), out);
}

}  // namespace
}  // namespace pysel

STABLE_TORCH_LIBRARY_IMPL(pysel, CPU, m) {
  m.impl("weighted_sample", PYSEL_OP(&pysel::weighted_sample));
  m.impl("weighted_sample.out", PYSEL_OP(&pysel::weighted_sample_out));
}
