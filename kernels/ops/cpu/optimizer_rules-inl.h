// The optimizers' lines (kernels/ops/optimizer_rules.inc) on vectors of elements. Everything else
// about an update is the skeleton's (optimizer_update.cc). Included once for each target.
#if defined(STRATA_OPTIMIZER_RULES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef STRATA_OPTIMIZER_RULES_INL_H
#undef STRATA_OPTIMIZER_RULES_INL_H
#else
#define STRATA_OPTIMIZER_RULES_INL_H
#endif

#include <cmath>

#include "kernels/ops/cpu/elements-inl.h"
#include "kernels/ops/optimizer_ops.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

// One vector of training state; a moment that the optimizer lacks is zero. What rules make of a NaN
// is some NaN.
struct StateVector {
  F32Vec master;
  F32Vec exp_avg;
  F32Vec exp_avg_sq;
};

// NaN where something of x is. With a second moment the master divides by it, and is NaN wherever a
// moment is; without one the master goes by the signs of an average that may be finite where the
// stored one is not.
template <class Rule>
HWY_INLINE F32Vec nan_witness(const StateVector& x) {
  if constexpr (Rule::kMoments.exp_avg_sq) return x.master;
  return hn::Add(x.master, x.exp_avg);
}

HWY_INLINE void replace_nan(StateVector& x) {
  const F32 d;
  x = {one_nan(d, x.master), one_nan(d, x.exp_avg), one_nan(d, x.exp_avg_sq)};
}

// Nearly always there is no NaN, and one test finds that out for all vectors. It may err the other
// way, where infinities of both signs meet, and then costs time only.
template <class Rule>
HWY_INLINE void make_one_nan(StateVector& x) {
  if (HWY_LIKELY(hn::AllFalse(F32(), hn::IsNaN(nan_witness<Rule>(x))))) return;
  replace_nan(x);
}
template <class Rule>
HWY_INLINE void make_one_nan(StateVector& x, StateVector& y) {
  const F32Vec witness = hn::Add(nan_witness<Rule>(x), nan_witness<Rule>(y));
  if (HWY_LIKELY(hn::AllFalse(F32(), hn::IsNaN(witness)))) return;
  replace_nan(x);
  replace_nan(y);
}

HWY_INLINE F32Vec factor(float value) { return hn::Set(F32(), value); }

HWY_INLINE F32Vec mul(F32Vec a, F32Vec b) { return hn::Mul(a, b); }
HWY_INLINE F32Vec add(F32Vec a, F32Vec b) { return hn::Add(a, b); }
HWY_INLINE F32Vec div(F32Vec a, F32Vec b) { return hn::Div(a, b); }
HWY_INLINE F32Vec root(F32Vec a) { return hn::Sqrt(a); }
HWY_INLINE F32Vec fused(F32Vec a, F32Vec b, F32Vec c) { return fused_multiply_add(F32(), a, b, c); }

// What a moment is stored as, and what the rest of the step computes with.
HWY_INLINE F32Vec flushed(F32Vec moment) { return flush_denormal(F32(), moment); }

// -1, 0 or 1; of a NaN, NaN.
HWY_INLINE F32Vec sign(F32Vec x) {
  const F32 d;
  const F32Vec zero_or_nan = hn::Mul(x, hn::Zero(d));
  const auto is_signed = hn::Gt(hn::Abs(x), hn::Zero(d));
  return hn::IfThenElse(is_signed, hn::CopySign(hn::Set(d, 1.0f), x), zero_or_nan);
}

using Value = F32Vec;
using State = StateVector;
#define STRATA_RULE HWY_INLINE
#include "kernels/ops/optimizer_rules.inc"
#undef STRATA_RULE

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
