// The fp32 scalars that one AdamW call computes with, derived once, however the call is cut.
#pragma once

#include <cmath>

#include "kernels/ops/optimizer_ops.h"

namespace strata::ops {

struct AdamWFactors {
  float grad_scale;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float minus_decay;      // -lr * weight_decay
  float minus_step_size;  // -lr / bias_correction1
  float v_scale;          // 1 / sqrt(bias_correction2)
  float eps;
};

inline AdamWFactors derive_factors(const AdamWScalars& s) {
  return {.grad_scale = static_cast<float>(s.grad_scale),
          .beta1 = static_cast<float>(s.beta1),
          .one_minus_beta1 = static_cast<float>(1 - s.beta1),
          .beta2 = static_cast<float>(s.beta2),
          .one_minus_beta2 = static_cast<float>(1 - s.beta2),
          .minus_decay = static_cast<float>(-s.lr * s.weight_decay),
          .minus_step_size = static_cast<float>(-s.lr / s.bias_correction1),
          .v_scale = static_cast<float>(1 / std::sqrt(s.bias_correction2)),
          .eps = static_cast<float>(s.eps)};
}

}  // namespace strata::ops
