// Everything one update reads and writes, for tests of every optimizer.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {

// The scalars of step `step`, all of them of consequence.
inline OptimizerScalars scalars_at_step(OptimizerKind kind, int step) {
  OptimizerScalars s{.kind = kind, .lr = 3e-4, .weight_decay = 0.1, .grad_scale = 0.37};
  s.bias_correction1 = 1 - std::pow(s.beta1, step);
  s.bias_correction2 = 1 - std::pow(s.beta2, step);
  return s;
}

struct State {
  // Hard values, the same for every kind and dtype of one seed.
  State(DType grad_dtype, DType param_dtype, int64_t numel, uint64_t seed)
      : master(DType::fp32, numel),
        exp_avg(DType::fp32, numel),
        exp_avg_sq(DType::fp32, numel),
        grad(grad_dtype, numel),
        param(param_dtype, numel) {
    Elements* inputs[] = {&master, &exp_avg, &exp_avg_sq, &grad};
    for (Elements* elements : inputs) fill_with_hard_values(*elements, seed++);
  }
  // The same values, each span starting `offset` elements past alignment.
  State(const State& other, int64_t offset)
      : master(other.master, offset),
        exp_avg(other.exp_avg, offset + 1),
        exp_avg_sq(other.exp_avg_sq, offset + 2),
        grad(other.grad, offset + 3),
        param(other.param, offset) {}

  // Of elements [begin, end). A moment that the optimizer lacks is not handed over.
  void update(const OptimizerScalars& scalars, int64_t begin, int64_t end) {
    const OptimizerMoments moments = moments_of(scalars.kind);
    const auto floats = [begin](Elements& elements) {
      return reinterpret_cast<float*>(elements.at(begin));
    };
    optimizer_update(scalars, {.master = floats(master),
                               .exp_avg = moments.exp_avg ? floats(exp_avg) : nullptr,
                               .exp_avg_sq = moments.exp_avg_sq ? floats(exp_avg_sq) : nullptr,
                               .grad = grad.at(begin),
                               .param = param.at(begin),
                               .numel = end - begin,
                               .grad_dtype = grad.dtype(),
                               .param_dtype = param.dtype()});
  }
  void update(const OptimizerScalars& scalars) { update(scalars, 0, master.numel()); }

  bool guards_intact() const {
    return master.guards_intact() && exp_avg.guards_intact() && exp_avg_sq.guards_intact() &&
           grad.guards_intact() && param.guards_intact();
  }

  Elements master, exp_avg, exp_avg_sq, grad, param;
};

inline void expect_same(const State& a, const State& b, const std::string& how) {
  EXPECT_TRUE(same_bits(a.master, b.master)) << "master, " << how;
  EXPECT_TRUE(same_bits(a.exp_avg, b.exp_avg)) << "exp_avg, " << how;
  EXPECT_TRUE(same_bits(a.exp_avg_sq, b.exp_avg_sq)) << "exp_avg_sq, " << how;
  EXPECT_TRUE(same_bits(a.grad, b.grad)) << "grad, " << how;
  EXPECT_TRUE(same_bits(a.param, b.param)) << "param, " << how;
}

}  // namespace strata::ops
