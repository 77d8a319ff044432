// What `strata bench step` measures against each other does the same: element by element, the chain
// of passes leaves what the fused step leaves, but for the rounding of the norm.
#include "tools/offloaded_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/device/thread_team.h"
#include "strata/grain.h"

namespace strata::tools {
namespace {

constexpr int64_t kNumel = 5 * kGrainNumel;

struct Element {
  float master;
  float exp_avg;
  float exp_avg_sq;
  float param;
};

std::vector<Element> elements_of(const OffloadedStep& step) {
  const ops::OptimizerSpans spans = step.state().optimizer_spans();
  std::vector<float> param(kNumel);
  ops::cast(param.data(), DType::fp32, spans.param, spans.param_dtype, kNumel);
  std::vector<Element> elements;
  for (int64_t i = 0; i < kNumel; ++i) {
    elements.push_back(
        {spans.master[i], spans.exp_avg[i], spans.exp_avg_sq[i], param[static_cast<size_t>(i)]});
  }
  return elements;
}

void run(const std::vector<StepPass>& passes) {
  for (const StepPass& pass : passes) pass.run();
}

size_t bytes(const std::vector<StepPass>& passes) {
  size_t sum = 0;
  for (const StepPass& pass : passes) sum += pass.bytes_per_element;
  return sum;
}

class OffloadedStepTest : public testing::TestWithParam<std::tuple<DType, Stores>> {};

TEST_P(OffloadedStepTest, ChainLeavesWhatTheFusedStepLeaves) {
  const auto [dtype, stores] = GetParam();
  const TeamScope team(2);
  OffloadedStep by_fused(kNumel, dtype);
  OffloadedStep by_chain(kNumel, dtype);
  const std::vector<Element> before = elements_of(by_fused);
  for (int i = 0; i < 3; ++i) {
    run(by_fused.fused());
    run(by_chain.chain({stores, stores}));
  }
  const std::vector<Element> fused = elements_of(by_fused);
  const std::vector<Element> chain = elements_of(by_chain);

  // A grain's norm in fp32 is off by at most its 64 additions a lane, so that clipped gradients
  // differ by 2^-18; three steps of 0.1 % along them, by a hundredth of a unit in the last place of
  // the smallest weight but zero. The parameter is rounded from a weight near halfway either way.
  constexpr float kRelative = 0x1p-17f;
  const float param_ulp = dtype == DType::bf16 ? 0x1p-7f : 0x1p-10f;
  int changed = 0;
  for (size_t i = 0; i < fused.size(); ++i) {
    const Element& want = fused[i];
    const Element& got = chain[i];
    ASSERT_NEAR(got.exp_avg, want.exp_avg, kRelative * std::abs(want.exp_avg)) << i;
    ASSERT_NEAR(got.exp_avg_sq, want.exp_avg_sq, 2 * kRelative * want.exp_avg_sq) << i;
    ASSERT_NEAR(got.master, want.master, 1e-3f * 3 * kRelative + 0x1p-23f * std::abs(want.master))
        << i;
    ASSERT_NEAR(got.param, want.param, param_ulp * std::abs(want.param)) << i;
    changed += want.master != before[i].master && want.exp_avg != 0 && want.param != 0 ? 1 : 0;
  }
  EXPECT_GT(changed, kNumel * 9 / 10);
}

TEST_P(OffloadedStepTest, GradientsAreClipped) {
  const TeamScope team(1);
  OffloadedStep step(kNumel, std::get<DType>(GetParam()));
  run(step.fused());
  // The first step's moment is a tenth of the clipped gradient, whose norm is 1.
  double squares = 0;
  for (const Element& element : elements_of(step)) {
    squares += double{element.exp_avg} * element.exp_avg;
  }
  EXPECT_NEAR(std::sqrt(squares), 0.1, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(DTypes, OffloadedStepTest,
                         testing::Combine(testing::Values(DType::bf16, DType::fp16),
                                          testing::Values(Stores::plain, Stores::streaming)));

TEST(OffloadedStepBytes, AreWhatPassesReadAndWrite) {
  OffloadedStep step(kGrainNumel, DType::bf16);
  EXPECT_EQ(bytes(step.fused()), 2 + 2 + 12 + 2 + 12 + 2u);
  EXPECT_EQ(bytes(step.chain({})), (2 + 4) + 4 + (4 + 4) + (16 + 12) + (4 + 2u));
}

}  // namespace
}  // namespace strata::tools
