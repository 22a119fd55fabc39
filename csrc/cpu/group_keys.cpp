// See group_keys.h.
#include "cpu/group_keys.h"

#define PYSEL_KERNELS "cpu/group_keys_kernels.h"
#include "cpu/each_variant.h"

namespace pysel {

void read_groups(const char* op, const Groups& groups, int64_t first, int count, uint32_t* out) {
  const auto read = [&]<typename G>(const G* group) {
    if (!PYSEL_CHOOSE(narrow_groups<G>)(group, count, groups.count, out)) return;
    for (int i = 0; i < count; ++i) {
      check_index(groups.count > 0, op, ": groups must be empty for empty quotas, got ", group[i]);
      check_index(0 <= group[i] && group[i] < groups.count, op, ": groups must be between 0 and ", groups.count - 1,
                  ", got ", group[i]);
    }
  };
  if (groups.wide)
    read(static_cast<const int64_t*>(groups.of) + first);
  else
    read(static_cast<const int32_t*>(groups.of) + first);
}

GroupTensors::GroupTensors(const char* op, const std::optional<Tensor>& of, const std::optional<Tensor>& quotas,
                           int64_t k) {
  if (!of) return;
  quotas_c_ = packed(*quotas);
  const auto* quota = static_cast<const int64_t*>(quotas_c_->data_ptr());
  int64_t sum = 0;
  for (int64_t g = 0; g < quotas->size(0); ++g) {
    check_value(quota[g] >= 0, op, ": quotas must be at least 0, got ", quota[g], " for group ", g);
    if (__builtin_add_overflow(sum, quota[g], &sum)) sum = std::numeric_limits<int64_t>::max();
  }
  check_value(sum == k, op, ": quotas must sum to k, ", k, ", got a sum of ", sum);
  groups_c_ = packed(*of);
  groups = Groups{groups_c_->data_ptr(), of->scalar_type() == ScalarType::Long, quotas->size(0), quota};
}

}  // namespace pysel
