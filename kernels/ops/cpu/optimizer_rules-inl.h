// The optimizers: of each its moments, its factors and what it does to one vector of elements.
// Everything else about an update is the skeleton's (optimizer_update.cc). Included once for each
// target.
//
// A rule is made from the step's scalars, in the default floating-point mode: factors are derived
// in double and rounded to fp32 once, so that they are the same however the call is cut.
//
// Decoupled decay is p - (lr * weight_decay) * p in one rounding, as in PyTorch's fused kernel. Its
// unfused AdamW multiplies by fp32(1 - lr * weight_decay), within one unit in the last place of it;
// that factor is too coarse a grid for small decays (1e-6 becomes 1.013e-6, every step).
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

// a * b + c, rounded once.
HWY_INLINE F32Vec fused(float a, F32Vec b, F32Vec c) {
  return fused_multiply_add(F32(), factor(a), b, c);
}

// What a moment is stored as, and what the rest of the step computes with.
HWY_INLINE F32Vec flushed(F32Vec moment) { return flush_denormal(F32(), moment); }

// An exponential moving average's two weights.
struct Average {
  explicit Average(double beta)
      : keep(static_cast<float>(beta)), take(static_cast<float>(1 - beta)) {}

  HWY_INLINE F32Vec operator()(F32Vec old, F32Vec x) const {
    return fused(keep, old, hn::Mul(factor(take), x));
  }
  // Of x's square.
  HWY_INLINE F32Vec of_square(F32Vec old, F32Vec x) const {
    return fused(keep, old, hn::Mul(hn::Mul(factor(take), x), x));
  }

  float keep;
  float take;
};

// What Adam and AdamW share: the moments and the step along them.
struct AdamStep {
  static constexpr OptimizerMoments kMoments = moments_of(OptimizerKind::adam);

  explicit AdamStep(const OptimizerScalars& s)
      : first(s.beta1),
        second(s.beta2),
        minus_step_size(static_cast<float>(-s.lr / s.bias_correction1)),
        v_scale(static_cast<float>(1 / std::sqrt(s.bias_correction2))),
        eps(static_cast<float>(s.eps)) {}

  // Updates the moments; steps from `master`.
  HWY_INLINE void update(F32Vec grad, F32Vec master, StateVector& x) const {
    x.exp_avg = flushed(first(x.exp_avg, grad));
    x.exp_avg_sq = flushed(second.of_square(x.exp_avg_sq, grad));
    const F32Vec denominator = fused(v_scale, hn::Sqrt(x.exp_avg_sq), factor(eps));
    x.master = fused(minus_step_size, hn::Div(x.exp_avg, denominator), master);
  }

  Average first;
  Average second;
  float minus_step_size;
  float v_scale;
  float eps;
};

struct AdamW : AdamStep {
  explicit AdamW(const OptimizerScalars& s)
      : AdamStep(s), minus_decay(static_cast<float>(-s.lr * s.weight_decay)) {}

  HWY_INLINE void operator()(F32Vec grad, StateVector& x) const {
    update(grad, fused(minus_decay, x.master, x.master), x);
  }

  float minus_decay;
};

struct Adam : AdamStep {
  explicit Adam(const OptimizerScalars& s)
      : AdamStep(s), weight_decay(static_cast<float>(s.weight_decay)) {}

  HWY_INLINE void operator()(F32Vec grad, StateVector& x) const {
    update(fused(weight_decay, x.master, grad), x.master, x);
  }

  float weight_decay;
};

struct Adagrad {
  static constexpr OptimizerMoments kMoments = moments_of(OptimizerKind::adagrad);

  explicit Adagrad(const OptimizerScalars& s)
      : minus_lr(static_cast<float>(-s.lr)),
        eps(static_cast<float>(s.eps)),
        weight_decay(static_cast<float>(s.weight_decay)) {}

  HWY_INLINE void operator()(F32Vec grad, StateVector& x) const {
    const F32Vec decayed = fused(weight_decay, x.master, grad);
    x.exp_avg_sq = flushed(fused_multiply_add(F32(), decayed, decayed, x.exp_avg_sq));
    const F32Vec denominator = hn::Add(hn::Sqrt(x.exp_avg_sq), factor(eps));
    x.master = fused(minus_lr, hn::Div(decayed, denominator), x.master);
  }

  float minus_lr;
  float eps;
  float weight_decay;
};

struct Lion {
  static constexpr OptimizerMoments kMoments = moments_of(OptimizerKind::lion);

  explicit Lion(const OptimizerScalars& s)
      : direction(s.beta1),
        average(s.beta2),
        minus_lr(static_cast<float>(-s.lr)),
        minus_decay(static_cast<float>(-s.lr * s.weight_decay)) {}

  HWY_INLINE void operator()(F32Vec grad, StateVector& x) const {
    const F32Vec towards = direction(x.exp_avg, grad);
    x.exp_avg = flushed(average(x.exp_avg, grad));
    x.master = fused(minus_lr, sign(towards), fused(minus_decay, x.master, x.master));
  }

  // -1, 0 or 1; of a NaN, NaN.
  static HWY_INLINE F32Vec sign(F32Vec x) {
    const F32 d;
    const F32Vec zero_or_nan = hn::Mul(x, hn::Zero(d));
    const auto is_signed = hn::Gt(hn::Abs(x), hn::Zero(d));
    return hn::IfThenElse(is_signed, hn::CopySign(hn::Set(d, 1.0f), x), zero_or_nan);
  }

  Average direction;
  Average average;
  float minus_lr;
  float minus_decay;
};

struct Sgd {
  static constexpr OptimizerMoments kMoments = moments_of(OptimizerKind::sgd);

  explicit Sgd(const OptimizerScalars& s)
      : minus_lr(static_cast<float>(-s.lr)),
        momentum(static_cast<float>(s.momentum)),
        weight_decay(static_cast<float>(s.weight_decay)) {}

  HWY_INLINE void operator()(F32Vec grad, StateVector& x) const {
    x.exp_avg = flushed(fused(momentum, x.exp_avg, fused(weight_decay, x.master, grad)));
    x.master = fused(minus_lr, x.exp_avg, x.master);
  }

  float minus_lr;
  float momentum;
  float weight_decay;
};

// Calls body(rule) with the rule of the step.
template <class Body>
void with_rule(const OptimizerScalars& scalars, const Body& body) {
  switch (scalars.kind) {
    case OptimizerKind::adam:
      return body(Adam(scalars));
    case OptimizerKind::adamw:
      return body(AdamW(scalars));
    case OptimizerKind::adagrad:
      return body(Adagrad(scalars));
    case OptimizerKind::lion:
      return body(Lion(scalars));
    case OptimizerKind::sgd:
      return body(Sgd(scalars));
  }
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
