#pragma once

// As many of each group's largest keys as its quota says, exactly, as ascending indices: select_largest by group, in a
// number of passes that does not depend on how many groups there are.
//
//   guess    a sample brackets each group's last selected key within [low, high]; groups too small to be sampled are
//            counted instead between the 16-quantiles of a sample of all
//   narrow   only where brackets hold too much to keep: a histogram of each within its bracket
//   mark     one pass: a bit for each key above its group's bracket, and the keys within are kept
//   settle   the kept are brought together by group, and each group's last selected is found among them
//   ties     where a bracket is one value, that too many share to be kept: one more pass takes as many as are wanted
//
// Groups whose bracket missed are narrowed, and marked again with the others left alone. Memory: n / 8 bytes, kept keys
// (20 or 40 bytes each), and tables of up to 16 or 2^19 numbers a group and thread.

#include "common/tensor.h"
#include "cpu/radix_select.h"

namespace pysel {

struct Groups {
  const void* of;         // [n], int64 or int32
  bool wide;              // int64
  int64_t count;          // G
  const int64_t* quotas;  // [count]
};

template <typename Bits>
struct GroupOptions {
  const char* op;
  const char* size_name;  // what an error calls a group's size
  Bits lowest = 0;        // keys below it cannot be selected
  std::optional<TieOrder> tie_order;
  int64_t most_kept = -1;  // keys; -1: n / 4
  Written written = {};
};

// Groups as an op gets them, if it does. Refuses quotas that are negative or do not sum to k.
struct GroupTensors {
  std::optional<Groups> groups;

  GroupTensors(const char* op, const std::optional<Tensor>& groups, const std::optional<Tensor>& quotas, int64_t k);

 private:
  std::optional<Tensor> groups_c_, quotas_c_;
};

template <typename Bits>
void select_of_groups(int64_t n, const Groups& groups, const KeysOf<Bits>& keys_of, const GroupOptions<Bits>& options,
                      int64_t* indices /* [sum of quotas] */);

extern template void select_of_groups<uint32_t>(int64_t, const Groups&, const KeysOf<uint32_t>&,
                                                const GroupOptions<uint32_t>&, int64_t*);
extern template void select_of_groups<uint64_t>(int64_t, const Groups&, const KeysOf<uint64_t>&,
                                                const GroupOptions<uint64_t>&, int64_t*);

}  // namespace pysel
