// The fused update: right by a double-precision reference, and the same bits however it is run.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>

#include "strata/error.h"
#include "strata/grain.h"
#include "tests/kernels/ops/adamw_reference.h"
#include "tests/kernels/ops/optimizer_testing.h"
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace strata::ops {
namespace {

AdamWScalars scalars_at_step(int step) {
  AdamWScalars s{.lr = 3e-4, .weight_decay = 0.1, .grad_scale = 0.37};
  s.bias_correction1 = 1 - std::pow(s.beta1, step);
  s.bias_correction2 = 1 - std::pow(s.beta2, step);
  return s;
}

// Everything an update reads and writes.
struct State {
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

  void update(const AdamWScalars& scalars, int64_t begin, int64_t end) {
    adamw_update(scalars, {.master = reinterpret_cast<float*>(master.at(begin)),
                           .exp_avg = reinterpret_cast<float*>(exp_avg.at(begin)),
                           .exp_avg_sq = reinterpret_cast<float*>(exp_avg_sq.at(begin)),
                           .grad = grad.at(begin),
                           .param = param.at(begin),
                           .numel = end - begin,
                           .grad_dtype = grad.dtype(),
                           .param_dtype = param.dtype()});
  }
  void update(const AdamWScalars& scalars) { update(scalars, 0, master.numel()); }

  bool guards_intact() const {
    return master.guards_intact() && exp_avg.guards_intact() && exp_avg_sq.guards_intact() &&
           grad.guards_intact() && param.guards_intact();
  }

  Elements master, exp_avg, exp_avg_sq, grad, param;
};

void expect_same(const State& a, const State& b, const std::string& how) {
  EXPECT_TRUE(same_bits(a.master, b.master)) << "master, " << how;
  EXPECT_TRUE(same_bits(a.exp_avg, b.exp_avg)) << "exp_avg, " << how;
  EXPECT_TRUE(same_bits(a.exp_avg_sq, b.exp_avg_sq)) << "exp_avg_sq, " << how;
  EXPECT_TRUE(same_bits(a.grad, b.grad)) << "grad, " << how;
  EXPECT_TRUE(same_bits(a.param, b.param)) << "param, " << how;
}

class AdamWDTypes : public ::testing::TestWithParam<std::tuple<DType, DType>> {
 protected:
  State state(int64_t numel, uint64_t seed) const {
    return State(std::get<0>(GetParam()), std::get<1>(GetParam()), numel, seed);
  }
  // By the scalar kernels on one thread.
  static State expected(const State& start, const AdamWScalars& scalars) {
    const ForcedIsa forced("scalar");
    State result(start, 0);
    result.update(scalars);
    return result;
  }
};

TEST_P(AdamWDTypes, IsaThreadsAndAlignmentDoNotChangeBits) {
  const State start = state(3 * kGrainNumel + 77, 1);
  const AdamWScalars scalars = scalars_at_step(3);
  const State whole = expected(start, scalars);
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    for (int threads = 1; threads <= 3; ++threads) {
      const TeamScope team(threads);
      for (int64_t offset : {0, 1, 5}) {
        State run(start, offset);
        run.update(scalars);
        expect_same(run, whole,
                    std::string(isa) + ", threads " + std::to_string(threads) + ", offset " +
                        std::to_string(offset));
        EXPECT_TRUE(run.guards_intact());
      }
    }
  }
}

TEST_P(AdamWDTypes, SliceDoesNotChangeBits) {
  const State start = state(139, 2);
  const AdamWScalars scalars = scalars_at_step(1);
  const State whole = expected(start, scalars);
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    for (int64_t cut = 1; cut < 139; cut += 2) {
      State run(start, 0);
      run.update(scalars, 0, cut);
      run.update(scalars, cut, 139);
      expect_same(run, whole, std::string(isa) + ", cut at " + std::to_string(cut));
    }
  }
}

TEST_P(AdamWDTypes, ParameterIsTheMasterRounded) {
  State run = state(4000, 4);
  run.update(scalars_at_step(5));
  Elements expected_param(run.param.dtype(), run.param.numel());
  for (int64_t i = 0; i < run.param.numel(); ++i) {
    expected_param.set_value(i, run.master.get<float>(i));
  }
  EXPECT_TRUE(same_bits(run.param, expected_param));
}

INSTANTIATE_TEST_SUITE_P(EveryPair, AdamWDTypes,
                         ::testing::Combine(::testing::ValuesIn(kFloatDTypes),
                                            ::testing::ValuesIn(kFloatDTypes)),
                         [](const auto& test) {
                           return std::string(name(std::get<0>(test.param))) + "_to_" +
                                  std::string(name(std::get<1>(test.param)));
                         });

class AdamWParamDType : public ::testing::TestWithParam<DType> {};

TEST_P(AdamWParamDType, LongSpansHaveTheBitsOfShortOnes) {
  // Long enough for streaming stores, which need an aligned output.
  constexpr int64_t kNumel = (int64_t{1} << 19) + 33;
  constexpr int64_t kPiece = 50001;
  const State start(DType::bf16, GetParam(), kNumel, 3);
  const AdamWScalars scalars = scalars_at_step(2);
  State pieces(start, 0);
  for (int64_t at = 0; at < kNumel; at += kPiece) {
    pieces.update(scalars, at, std::min(at + kPiece, kNumel));
  }
  const TeamScope team(2);
  for (int64_t offset : {0, 1}) {
    State whole(start, offset);
    whole.update(scalars);
    expect_same(whole, pieces, "offset " + std::to_string(offset));
    EXPECT_TRUE(whole.guards_intact());
  }
}

INSTANTIATE_TEST_SUITE_P(Every, AdamWParamDType, ::testing::ValuesIn(kFloatDTypes),
                         [](const auto& test) { return std::string(name(test.param)); });

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

class AdamWStep : public ::testing::TestWithParam<int> {};

TEST_P(AdamWStep, IsWithinRoundingOfTheReference) {
  State before(DType::fp32, DType::fp32, 20000, 0);
  fill_as_in_training(before, 5);
  const AdamWScalars scalars = scalars_at_step(GetParam());
  State after(before, 0);
  after.update(scalars);
  for (int64_t i = 0; i < before.master.numel(); ++i) {
    const AdamWReference reference =
        adamw_reference(scalars,
                        {before.master.get<float>(i), before.exp_avg.get<float>(i),
                         before.exp_avg_sq.get<float>(i)},
                        before.grad.get<float>(i));
    ASSERT_NEAR(after.exp_avg.get<float>(i), reference.value.exp_avg, reference.bound.exp_avg);
    ASSERT_NEAR(after.exp_avg_sq.get<float>(i), reference.value.exp_avg_sq,
                reference.bound.exp_avg_sq);
    ASSERT_NEAR(after.master.get<float>(i), reference.value.master, reference.bound.master) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Steps, AdamWStep, ::testing::Values(1, 2, 10, 1000, 1000000));

TEST(AdamW, MomentsBelowTheSmallestNormalBecomeZero) {
  constexpr float kMin = std::numeric_limits<float>::min();
  const AdamWScalars keep{.beta1 = 1, .beta2 = 1};
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
      ASSERT_EQ(run.exp_avg.bits(i), normal ? 0x8080'0000u : 0u) << isa << " " << i;
      ASSERT_EQ(run.exp_avg_sq.bits(i), normal ? 0x0080'0000u : 0u) << isa << " " << i;
    }
  }
}

TEST(AdamW, EveryNanIsTheSameNan) {
  const float negative = std::bit_cast<float>(0xffc1'2345u);
  const float signaling = std::bit_cast<float>(0x7f80'0001u);
  const float inf = std::numeric_limits<float>::infinity();
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    for (DType dtype : kFloatDTypes) {
      State run(DType::fp32, dtype, 99, 7);
      for (int64_t i = 0; i < 99; ++i) {
        // One met as gradient, one met as moment, one made: infinity over infinity.
        run.grad.set(i, i % 3 == 0 ? negative : i % 3 == 1 ? 0.0f : inf);
        run.exp_avg.set(i, i % 3 == 1 ? signaling : 0.0f);
        run.exp_avg_sq.set(i, 0.0f);
      }
      run.update(scalars_at_step(1));
      Elements expected(dtype, 1);
      expected.set_value(0, std::bit_cast<float>(0x7fc0'0000u));
      for (int64_t i = 0; i < 99; ++i) {
        ASSERT_EQ(run.master.bits(i), 0x7fc0'0000u) << isa << " " << i;
        ASSERT_EQ(run.param.bits(i), expected.bits(0)) << isa << " " << i;
        ASSERT_EQ(run.exp_avg.bits(i), i % 3 == 2 ? 0x7f80'0000u : 0x7fc0'0000u) << isa << " " << i;
      }
    }
  }
}

TEST(AdamW, CallersFloatModeDoesNotMatterAndIsLeftAlone) {
  const AdamWScalars scalars = scalars_at_step(3);
  const State start(DType::fp32, DType::fp16, 2000, 8);
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    State expected(start, 0);
    expected.update(scalars);

    State upward(start, 0);
    std::fesetround(FE_UPWARD);
    upward.update(scalars);
    EXPECT_EQ(std::fegetround(), FE_UPWARD);
    std::fesetround(FE_TONEAREST);
    expect_same(upward, expected, std::string(isa) + ", rounding upward");

#ifdef __SSE2__
    constexpr unsigned kFlushAndDenormalsAreZero = 0x8040;
    const unsigned before = _mm_getcsr();
    State flushing(start, 0);
    _mm_setcsr(before | kFlushAndDenormalsAreZero);
    flushing.update(scalars);
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    EXPECT_EQ(after & kFlushAndDenormalsAreZero, kFlushAndDenormalsAreZero);
    expect_same(flushing, expected, std::string(isa) + ", flush to zero");
#endif
  }
}

TEST(AdamW, PaddingStaysZero) {
  State run(DType::bf16, DType::bf16, kGrainNumel, 9);
  for (Elements* elements : {&run.master, &run.exp_avg, &run.exp_avg_sq, &run.grad}) {
    for (int64_t i = 0; i < kGrainNumel; ++i) elements->set_value(i, 0);
  }
  const State zero(run, 0);
  for (int step = 1; step <= 3; ++step) run.update(scalars_at_step(step));
  for (int64_t i = 0; i < kGrainNumel; ++i) {
    ASSERT_EQ(run.master.bits(i), 0u);
    ASSERT_EQ(run.exp_avg.bits(i), 0u);
    ASSERT_EQ(run.exp_avg_sq.bits(i), 0u);
    ASSERT_EQ(run.param.bits(i), 0u);
  }
}

TEST(AdamW, RefusesIntegersAndNegativeLengths) {
  State run(DType::fp32, DType::fp32, 8, 10);
  EXPECT_THROW(adamw_update({}, {.numel = 8, .grad_dtype = DType::int32}), Error);
  EXPECT_THROW(adamw_update({}, {.numel = 8, .param_dtype = DType::int32}), Error);
  EXPECT_THROW(adamw_update({}, {.numel = -1}), Error);
  EXPECT_NO_THROW(adamw_update({}, {.numel = 0}));
}

}  // namespace
}  // namespace strata::ops
