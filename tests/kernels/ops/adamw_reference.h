// One AdamW step in double, with how far an fp32 implementation may be from it.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/ops/optimizer_ops.h"

namespace strata::ops {

struct AdamWElement {
  double master, exp_avg, exp_avg_sq;
};

struct AdamWReference {
  AdamWElement value;
  AdamWElement bound;  // absolute
};

// The bound counts roundings, u = 2^-24 each, to first order (hence the last factor):
//   g'    2: grad_scale, product
//   m     2 on beta1 m (scalar, sum), 5 on (1 - beta1) g' (scalar, g', product, sum)
//   v     2 on beta2 v, 8 on (1 - beta2) g'^2 (scalar, g' twice, two products, sum)
//   step  half of v's, 3 in the denominator (root, scalar, sum), m's, 1 division
//   p     1 on p, 1 on lr wd p, 1 on the result, 1 on the step size
// and moments that flush to zero are off by FLT_MIN.
inline AdamWReference adamw_reference(const AdamWScalars& s, const AdamWElement& old, double grad) {
  constexpr double u = 0x1p-24;
  constexpr double flush = std::numeric_limits<float>::min();
  const double g = grad * s.grad_scale;

  const double m_old = s.beta1 * old.exp_avg;
  const double m_new = (1 - s.beta1) * g;
  const double m = m_old + m_new;
  const double m_bound = u * (2 * std::abs(m_old) + 5 * std::abs(m_new)) + flush;

  const double v_old = s.beta2 * old.exp_avg_sq;
  const double v_new = (1 - s.beta2) * g * g;
  const double v = v_old + v_new;
  const double v_bound = u * (2 * v_old + 8 * v_new) + flush;

  const double root = std::sqrt(v) / std::sqrt(s.bias_correction2);
  const double denominator = root + s.eps;
  // Where v itself may vanish, so may its root.
  const double root_bound = v > v_bound ? 0.5 * v_bound / v * root + u * root : root;
  const double denominator_bound = root_bound + 2 * u * denominator;
  const double step = m / denominator;
  const double step_bound =
      m_bound / denominator + std::abs(step) * (denominator_bound / denominator + u);

  const double step_size = s.lr / s.bias_correction1;
  const double decay = s.lr * s.weight_decay * old.master;
  const double p = old.master - decay - step_size * step;
  const double p_bound = u * (std::abs(old.master) + std::abs(decay) + std::abs(p)) +
                         step_size * (step_bound + u * std::abs(step));
  return {{p, m, v}, {1.01 * p_bound, 1.01 * m_bound, 1.01 * v_bound}};
}

}  // namespace strata::ops
