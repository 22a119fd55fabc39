#pragma once

// One wording for each error: op, argument, what was wanted, what came. std::invalid_argument arrives in Python as
// ValueError and std::out_of_range as IndexError. Wrong dtypes are refused as TypeError in Python, before an op is
// called; what stands here keeps a raw call from reading foreign memory.

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/philox.h"

namespace pysel {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());  // not the one that the process has set, which may group digits
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
void check_value(bool ok, const Parts&... parts) {
  if (!ok) throw std::invalid_argument(text(parts...));
}

template <typename... Parts>
void check_index(bool ok, const Parts&... parts) {
  if (!ok) throw std::out_of_range(text(parts...));
}

inline void check_k(const char* op, int64_t k, int64_t n) {
  check_index(0 <= k && k <= n, op, ": k must be between 0 and ", n, ", got ", k);
}

inline void check_not_negative(const char* op, const char* argument, int64_t number) {
  check_value(number >= 0, op, ": ", argument, " must be at least 0, got ", number);
}

inline void check_start(const char* op, int64_t start) { check_not_negative(op, "start", start); }

inline void check_stream(const char* op, int64_t stream) {
  constexpr auto last = static_cast<int64_t>(Stream::permutation);
  check_value(0 <= stream && stream <= last, op, ": stream must be between 0 and ", last, ", got ", stream);
}

inline void check_noise_kind(const char* op, const std::string& kind) {
  check_value(kind == "exponential" || kind == "gumbel" || kind == "logistic", op,
              ": kind must be exponential, gumbel or logistic, got ", kind);
}

// Elements [start, stop) of n.
inline void check_range(const char* op, int64_t n, int64_t start, int64_t stop) {
  check_not_negative(op, "n", n);
  check_index(0 <= start && start <= n, op, ": start must be between 0 and ", n, ", got ", start);
  check_index(start <= stop && stop <= n, op, ": stop must be between ", start, " and ", n, ", got ", stop);
}

}  // namespace pysel
