// The fused update, every optimizer: the same bits however it is run.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <string>
#include <tuple>

#include "strata/error.h"
#include "strata/grain.h"
#include "tests/kernels/ops/optimizer_state.h"
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace strata::ops {
namespace {

class UpdateDTypes : public ::testing::TestWithParam<std::tuple<OptimizerKind, DType, DType>> {
 protected:
  OptimizerScalars scalars_at(int step) const {
    return scalars_at_step(std::get<0>(GetParam()), step);
  }
  State state(int64_t numel, uint64_t seed) const {
    return State(std::get<1>(GetParam()), std::get<2>(GetParam()), numel, seed);
  }
  // By the scalar kernels on one thread.
  static State expected(const State& start, const OptimizerScalars& scalars) {
    const ForcedIsa forced("scalar");
    State result(start, 0);
    result.update(scalars);
    return result;
  }
};

TEST_P(UpdateDTypes, IsaThreadsAndAlignmentDoNotChangeBits) {
  const State start = state(3 * kGrainNumel + 77, 1);
  const OptimizerScalars scalars = scalars_at(3);
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

TEST_P(UpdateDTypes, SliceDoesNotChangeBits) {
  const State start = state(139, 2);
  const OptimizerScalars scalars = scalars_at(1);
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

TEST_P(UpdateDTypes, ParameterIsTheMasterRounded) {
  State run = state(4000, 4);
  run.update(scalars_at(5));
  Elements expected_param(run.param.dtype(), run.param.numel());
  for (int64_t i = 0; i < run.param.numel(); ++i) {
    expected_param.set_value(i, run.master.get<float>(i));
  }
  EXPECT_TRUE(same_bits(run.param, expected_param));
}

INSTANTIATE_TEST_SUITE_P(Every, UpdateDTypes,
                         ::testing::Combine(::testing::ValuesIn(kOptimizers),
                                            ::testing::ValuesIn(kFloatDTypes),
                                            ::testing::ValuesIn(kFloatDTypes)),
                         [](const auto& test) {
                           return std::string(name(std::get<0>(test.param))) + "_" +
                                  std::string(name(std::get<1>(test.param))) + "_to_" +
                                  std::string(name(std::get<2>(test.param)));
                         });

class UpdateParamDType : public ::testing::TestWithParam<std::tuple<OptimizerKind, DType>> {};

TEST_P(UpdateParamDType, LongSpansHaveTheBitsOfShortOnes) {
  // Long enough for streaming stores, which need an aligned output.
  constexpr int64_t kNumel = (int64_t{1} << 19) + 33;
  constexpr int64_t kPiece = 50001;
  const auto [kind, param_dtype] = GetParam();
  const State start(DType::bf16, param_dtype, kNumel, 3);
  const OptimizerScalars scalars = scalars_at_step(kind, 2);
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

INSTANTIATE_TEST_SUITE_P(Every, UpdateParamDType,
                         ::testing::Combine(::testing::ValuesIn(kOptimizers),
                                            ::testing::ValuesIn(kFloatDTypes)),
                         [](const auto& test) {
                           return std::string(name(std::get<0>(test.param))) + "_" +
                                  std::string(name(std::get<1>(test.param)));
                         });

class Update : public ::testing::TestWithParam<OptimizerKind> {};

TEST_P(Update, CallersFloatModeDoesNotMatterAndIsLeftAlone) {
  const OptimizerScalars scalars = scalars_at_step(GetParam(), 3);
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

TEST_P(Update, RefusesMissingState) {
  float state[8] = {};
  const OptimizerScalars scalars{.kind = GetParam()};
  const OptimizerSpans whole = {.master = state,
                                .exp_avg = state,
                                .exp_avg_sq = state,
                                .grad = state,
                                .param = state,
                                .numel = 8};
  OptimizerSpans part = whole;
  part.master = nullptr;
  EXPECT_THROW(optimizer_update(scalars, part), Error);
  if (moments_of(GetParam()).exp_avg) {
    part = whole;
    part.exp_avg = nullptr;
    EXPECT_THROW(optimizer_update(scalars, part), Error);
  }
  if (moments_of(GetParam()).exp_avg_sq) {
    part = whole;
    part.exp_avg_sq = nullptr;
    EXPECT_THROW(optimizer_update(scalars, part), Error);
  }
}

TEST_P(Update, RefusesIntegersAndNegativeLengths) {
  const OptimizerScalars scalars{.kind = GetParam()};
  EXPECT_THROW(optimizer_update(scalars, OptimizerSpans{.grad_dtype = DType::int32}), Error);
  EXPECT_THROW(optimizer_update(scalars, OptimizerSpans{.param_dtype = DType::int32}), Error);
  EXPECT_THROW(optimizer_update(scalars, OptimizerSpans{.numel = -1}), Error);
  EXPECT_NO_THROW(optimizer_update(scalars, OptimizerSpans{.numel = 0}));
}

INSTANTIATE_TEST_SUITE_P(Every, Update, ::testing::ValuesIn(kOptimizers),
                         [](const auto& test) { return std::string(name(test.param)); });

}  // namespace
}  // namespace strata::ops
