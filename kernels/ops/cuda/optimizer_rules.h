// The optimizers an element at a time, with the bits of the vector kernels
// (kernels/ops/cpu/optimizer_rules-inl.h; formulas in kernels/ops/optimizer_ops.h). Factors are
// derived in double on the host, once a call.
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

// An exponential moving average's two weights.
struct Average {
  explicit Average(double beta)
      : keep(static_cast<float>(beta)), take(static_cast<float>(1 - beta)) {}

  STRATA_HD float operator()(float old, float x) const { return fma(keep, old, mul(take, x)); }
  // Of x's square.
  STRATA_HD float of_square(float old, float x) const {
    return fma(keep, old, mul(mul(take, x), x));
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
  STRATA_HD void update(float grad, float master, StateElement& x) const {
    x.exp_avg = flush_denormal(first(x.exp_avg, grad));
    x.exp_avg_sq = flush_denormal(second.of_square(x.exp_avg_sq, grad));
    const float denominator = fma(v_scale, exact::sqrt(x.exp_avg_sq), eps);
    x.master = fma(minus_step_size, div(x.exp_avg, denominator), master);
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

  STRATA_HD void operator()(float grad, StateElement& x) const {
    update(grad, fma(minus_decay, x.master, x.master), x);
  }

  float minus_decay;
};

struct Adam : AdamStep {
  explicit Adam(const OptimizerScalars& s)
      : AdamStep(s), weight_decay(static_cast<float>(s.weight_decay)) {}

  STRATA_HD void operator()(float grad, StateElement& x) const {
    update(fma(weight_decay, x.master, grad), x.master, x);
  }

  float weight_decay;
};

struct Adagrad {
  static constexpr OptimizerMoments kMoments = moments_of(OptimizerKind::adagrad);

  explicit Adagrad(const OptimizerScalars& s)
      : minus_lr(static_cast<float>(-s.lr)),
        eps(static_cast<float>(s.eps)),
        weight_decay(static_cast<float>(s.weight_decay)) {}

  STRATA_HD void operator()(float grad, StateElement& x) const {
    const float decayed = fma(weight_decay, x.master, grad);
    x.exp_avg_sq = flush_denormal(fma(decayed, decayed, x.exp_avg_sq));
    const float denominator = add(exact::sqrt(x.exp_avg_sq), eps);
    x.master = fma(minus_lr, div(decayed, denominator), x.master);
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

  STRATA_HD void operator()(float grad, StateElement& x) const {
    const float towards = direction(x.exp_avg, grad);
    x.exp_avg = flush_denormal(average(x.exp_avg, grad));
    x.master = fma(minus_lr, sign(towards), fma(minus_decay, x.master, x.master));
  }

  // -1, 0 or 1; of a NaN, NaN.
  STRATA_HD static float sign(float x) {
    if (is_nan(x) || magnitude_bits(x) == 0) return mul(x, 0.0f);
    return from_bits((bits(x) & 0x8000'0000) | 0x3f80'0000);
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

  STRATA_HD void operator()(float grad, StateElement& x) const {
    x.exp_avg = flush_denormal(fma(momentum, x.exp_avg, fma(weight_decay, x.master, grad)));
    x.master = fma(minus_lr, x.exp_avg, x.master);
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

}  // namespace strata::ops::exact
