// The optimizers an element at a time: the lines of the vector kernels
// (kernels/ops/optimizer_rules.inc).
#pragma once

#include <cmath>

#include "kernels/ops/cuda/exact_math.h"
#include "kernels/ops/optimizer_ops.h"

namespace strata::ops::exact {

// A moment that the optimizer lacks is zero, and stays so.
struct StateElement {
  float master = 0;
  float exp_avg = 0;
  float exp_avg_sq = 0;
};

STRATA_HD inline float factor(float value) { return value; }
STRATA_HD inline float root(float x) { return exact::sqrt(x); }
STRATA_HD inline float fused(float a, float b, float c) { return fma(a, b, c); }
STRATA_HD inline float flushed(float moment) { return flush_denormal(moment); }
STRATA_HD inline float sign(float x) {
  if (is_nan(x) || magnitude_bits(x) == 0) return mul(x, 0.0f);
  return from_bits((bits(x) & 0x8000'0000) | 0x3f80'0000);
}

using Value = float;
using State = StateElement;
#define STRATA_RULE STRATA_HD
#include "kernels/ops/optimizer_rules.inc"
#undef STRATA_RULE

}  // namespace strata::ops::exact
