// One step of each optimizer in double, with how far an fp32 implementation may be from it: the
// roundings of the formulas in optimizer_ops.h, a product and sum in one where the kernels fuse.
#pragma once

#include <cmath>

#include "kernels/ops/optimizer_ops.h"
#include "tests/kernels/ops/bounded.h"

namespace strata::ops {

struct ReferenceElement {
  Bounded master, exp_avg, exp_avg_sq;
};

namespace internal {

inline Bounded average(double beta, const Bounded& old, const Bounded& weighted) {
  return flushed(fused(scalar(beta), old, weighted));
}

// p - lr * weight_decay * p
inline Bounded decoupled_decay(const OptimizerScalars& s, const Bounded& p) {
  return fused(scalar(-s.lr * s.weight_decay), p, p);
}

inline ReferenceElement adam_step(const OptimizerScalars& s, const ReferenceElement& old,
                                  const Bounded& p, const Bounded& g) {
  const Bounded m = average(s.beta1, old.exp_avg, scalar(1 - s.beta1) * g);
  const Bounded v = average(s.beta2, old.exp_avg_sq, scalar(1 - s.beta2) * g * g);
  const Bounded root_scale = scalar(1 / std::sqrt(s.bias_correction2));
  const Bounded denominator = fused(sqrt(v), root_scale, scalar(s.eps));
  return {fused(scalar(-s.lr / s.bias_correction1), m / denominator, p), m, v};
}

inline ReferenceElement adagrad_step(const OptimizerScalars& s, const ReferenceElement& old,
                                     const Bounded& g) {
  const Bounded v = flushed(fused(g, g, old.exp_avg_sq));
  return {fused(scalar(-s.lr), g / (sqrt(v) + scalar(s.eps)), old.master), old.exp_avg, v};
}

inline ReferenceElement lion_step(const OptimizerScalars& s, const ReferenceElement& old,
                                  const Bounded& g) {
  const Bounded towards = fused(scalar(s.beta1), old.exp_avg, scalar(1 - s.beta1) * g);
  const Bounded m = average(s.beta2, old.exp_avg, scalar(1 - s.beta2) * g);
  const Bounded decayed = decoupled_decay(s, old.master);
  return {fused(scalar(-s.lr), sign(towards), decayed), m, old.exp_avg_sq};
}

inline ReferenceElement sgd_step(const OptimizerScalars& s, const ReferenceElement& old,
                                 const Bounded& g) {
  const Bounded m = flushed(fused(scalar(s.momentum), old.exp_avg, g));
  return {fused(scalar(-s.lr), m, old.master), m, old.exp_avg_sq};
}

}  // namespace internal

// `old` holds fp32 values, exact; what the optimizer lacks stays as it is.
inline ReferenceElement optimizer_reference(const OptimizerScalars& s, const ReferenceElement& old,
                                            double grad) {
  const Bounded g = scalar(s.grad_scale) * Bounded{grad};
  const Bounded with_l2 = fused(scalar(s.weight_decay), old.master, g);
  switch (s.kind) {
    case OptimizerKind::adam:
      return internal::adam_step(s, old, old.master, with_l2);
    case OptimizerKind::adamw:
      return internal::adam_step(s, old, internal::decoupled_decay(s, old.master), g);
    case OptimizerKind::adagrad:
      return internal::adagrad_step(s, old, with_l2);
    case OptimizerKind::lion:
      return internal::lion_step(s, old, g);
    case OptimizerKind::sgd:
      return internal::sgd_step(s, old, with_l2);
  }
  return old;
}

}  // namespace strata::ops
