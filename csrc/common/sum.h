#pragma once

#include "common/macros.h"

namespace pysel {

// A sum of A with bits to spare, so that the order of what is added hardly shows in the result: in double, and for
// double with the rounding errors kept (Knuth's two-sum).
template <typename A>
struct WideSum;

template <>
struct WideSum<float> {
  double high;

  PYSEL_HD void add(double x) { high += x; }
  PYSEL_HD void add(WideSum other) { high += other.high; }
  PYSEL_HD double value() const { return high; }
};

template <>
struct WideSum<double> {
  double high, low;

  PYSEL_HD void add(double x) {
    const double sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part);
    high = sum;
  }
  PYSEL_HD void add(WideSum other) {
    add(other.high);
    low += other.low;
  }
  PYSEL_HD double value() const { return high + low; }
};

}  // namespace pysel
