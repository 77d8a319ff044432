// The optimizers' arithmetic: right by a double-precision reference, no denormal moments, one NaN.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>

#include "strata/grain.h"
#include "tests/kernels/ops/optimizer_reference.h"
#include "tests/kernels/ops/optimizer_state.h"

namespace strata::ops {
namespace {

constexpr uint32_t kTheNan = 0x7fc0'0000;

// Values over many magnitudes, as training has them: moments follow from gradients.
void fill_as_in_training(State& state, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0, 1);
  std::uniform_int_distribution<int> exponent(-30, 4);
  for (int64_t i = 0; i < state.master.numel(); ++i) {
    const float scale = std::ldexp(1.0f, exponent(rng));
    const float root = normal(rng) * scale;
    state.master.set(i, normal(rng) * std::ldexp(1.0f, exponent(rng)));
    state.exp_avg.set(i, normal(rng) * scale);
    state.exp_avg_sq.set(i, root * root);
    state.grad.set_value(i, normal(rng) * scale);
  }
}

void expect_near(float value, const Bounded& reference) {
  ASSERT_NEAR(value, reference.value, reference.bound);
}

class RuleStep : public ::testing::TestWithParam<std::tuple<OptimizerKind, int>> {};

TEST_P(RuleStep, IsWithinRoundingOfTheReference) {
  const auto [kind, step] = GetParam();
  State before(DType::fp32, DType::fp32, 20000, 0);
  fill_as_in_training(before, 5);
  const OptimizerScalars scalars = scalars_at_step(kind, step);
  State after(before, 0);
  after.update(scalars);
  for (int64_t i = 0; i < before.master.numel(); ++i) {
    SCOPED_TRACE(i);
    const ReferenceElement old = {{before.master.get<float>(i)},
                                  {before.exp_avg.get<float>(i)},
                                  {before.exp_avg_sq.get<float>(i)}};
    const ReferenceElement reference = optimizer_reference(scalars, old, before.grad.get<float>(i));
    expect_near(after.master.get<float>(i), reference.master);
    expect_near(after.exp_avg.get<float>(i), reference.exp_avg);
    expect_near(after.exp_avg_sq.get<float>(i), reference.exp_avg_sq);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Every, RuleStep,
                         ::testing::Combine(::testing::ValuesIn(kOptimizers),
                                            ::testing::Values(1, 2, 10, 1000, 1000000)),
                         [](const auto& test) {
                           return std::string(name(std::get<0>(test.param))) + "_step_" +
                                  std::to_string(std::get<1>(test.param));
                         });

class Rule : public ::testing::TestWithParam<OptimizerKind> {
 protected:
  const OptimizerMoments moments_ = moments_of(GetParam());
};

TEST_P(Rule, MomentsBelowTheSmallestNormalBecomeZero) {
  constexpr float kMin = std::numeric_limits<float>::min();
  const OptimizerScalars keep{.kind = GetParam(), .beta1 = 1, .beta2 = 1, .momentum = 1};
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    State run(DType::fp32, DType::bf16, 64, 6);
    for (int64_t i = 0; i < 64; ++i) {
      const bool normal = i % 3 == 0;
      run.grad.set(i, 0.0f);
      run.master.set(i, 1.0f);
      run.exp_avg.set(i, normal ? -kMin : -std::nextafter(kMin, 0.0f));
      run.exp_avg_sq.set(i, normal ? kMin : 0x1p-149f);
    }
    run.update(keep);
    for (int64_t i = 0; i < 64; ++i) {
      const bool normal = i % 3 == 0;
      if (moments_.exp_avg) {
        ASSERT_EQ(run.exp_avg.bits(i), normal ? 0x8080'0000u : 0u) << isa << " " << i;
      }
      if (moments_.exp_avg_sq) {
        ASSERT_EQ(run.exp_avg_sq.bits(i), normal ? 0x0080'0000u : 0u) << isa << " " << i;
      }
    }
  }
}

TEST_P(Rule, NanGradientsReachTheWholeState) {
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    for (DType dtype : kFloatDTypes) {
      State run(DType::fp32, dtype, 99, 7);
      for (int64_t i = 0; i < 99; ++i) {
        run.grad.set(i, i % 2 == 0 ? 0xffc1'2345u : 0x7f80'0001u);  // negative; signaling
        run.exp_avg.set(i, 0.5f);
        run.exp_avg_sq.set(i, 0.5f);
      }
      run.update(scalars_at_step(GetParam(), 1));
      Elements expected(dtype, 1);
      expected.set_value(0, std::bit_cast<float>(kTheNan));
      for (int64_t i = 0; i < 99; ++i) {
        ASSERT_EQ(run.master.bits(i), kTheNan) << isa << " " << i;
        ASSERT_EQ(run.param.bits(i), expected.bits(0)) << isa << " " << i;
        if (moments_.exp_avg) {
          ASSERT_EQ(run.exp_avg.bits(i), kTheNan) << isa << " " << i;
        }
        if (moments_.exp_avg_sq) {
          ASSERT_EQ(run.exp_avg_sq.bits(i), kTheNan) << isa << " " << i;
        }
      }
    }
  }
}

// Met in any part of the state, and made: of infinities, and of roots of negative numbers.
TEST_P(Rule, EveryNanIsTheSameNan) {
  State run(DType::fp32, DType::fp32, 5000, 12);
  run.update(scalars_at_step(GetParam(), 1));
  int64_t nans = 0;
  const auto check = [&nans](const Elements& elements) {
    for (int64_t i = 0; i < elements.numel(); ++i) {
      if (!std::isnan(elements.get<float>(i))) continue;
      ++nans;
      ASSERT_EQ(elements.bits(i), kTheNan) << i;
    }
  };
  check(run.master);
  if (moments_.exp_avg) check(run.exp_avg);
  if (moments_.exp_avg_sq) check(run.exp_avg_sq);
  EXPECT_GT(nans, 500);
}

TEST_P(Rule, PaddingStaysZero) {
  State run(DType::bf16, DType::bf16, kGrainNumel, 9);
  for (Elements* elements : {&run.master, &run.exp_avg, &run.exp_avg_sq, &run.grad}) {
    for (int64_t i = 0; i < kGrainNumel; ++i) elements->set_value(i, 0);
  }
  for (int step = 1; step <= 3; ++step) run.update(scalars_at_step(GetParam(), step));
  for (int64_t i = 0; i < kGrainNumel; ++i) {
    ASSERT_EQ(run.master.bits(i), 0u);
    ASSERT_EQ(run.exp_avg.bits(i), 0u);
    ASSERT_EQ(run.exp_avg_sq.bits(i), 0u);
    ASSERT_EQ(run.param.bits(i), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, Rule, ::testing::ValuesIn(kOptimizers),
                         [](const auto& test) { return std::string(name(test.param)); });

}  // namespace
}  // namespace strata::ops
