#pragma once

// Where each group's last selected key is sought.

#include "cpu/group_keys.h"

namespace pysel {

// From a sample or, for groups too small to be sampled, from counts between quantiles of one. Returns about how many
// keys will be within brackets, 0 where that is known of each group instead.
template <typename Bits>
int64_t guess_brackets(const GroupKeys<Bits>& keys, int64_t most_kept, std::vector<GroupState<Bits>>& states);

// From histograms of open groups within their brackets.
template <typename Bits>
void narrow_brackets(const GroupKeys<Bits>& keys, std::vector<GroupState<Bits>>& states);

extern template int64_t guess_brackets<uint32_t>(const GroupKeys<uint32_t>&, int64_t,
                                                 std::vector<GroupState<uint32_t>>&);
extern template void narrow_brackets<uint32_t>(const GroupKeys<uint32_t>&, std::vector<GroupState<uint32_t>>&);
extern template int64_t guess_brackets<uint64_t>(const GroupKeys<uint64_t>&, int64_t,
                                                 std::vector<GroupState<uint64_t>>&);
extern template void narrow_brackets<uint64_t>(const GroupKeys<uint64_t>&, std::vector<GroupState<uint64_t>>&);

}  // namespace pysel
