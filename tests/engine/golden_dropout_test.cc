// P4 with dropout: masks drawn by a second implementation of their definition, applied where
// Hugging Face's model does, lead to the same logits, gradients and steps.
//
// The bounds are those of a model without dropout (golden_bounds.h), which has fewer roundings: of
// a block's values two more, of 8.
#include <gtest/gtest.h>

#include <cstdio>
#include <optional>
#include <vector>

#include "tests/engine/golden_bounds.h"
#include "tests/engine/golden_run.h"

namespace strata::testing_support {
namespace {

class GoldenDropoutTest : public testing::Test {
 protected:
  // Of an engine's first step, whose masks the fixture has.
  Quantities measure(const std::optional<Plant>& plant = {}) const {
    return GoldenRun(options_).measure(0, plant);
  }

  const GoldenDropout golden_;
  const GoldenRun::Options options_ = {.model = golden_.model, .seed = golden_.seed};
  const Quantities truth_ = golden_truth(golden_.file);
  const Rounding rounding_{DType::fp32, truth_};
};

TEST_F(GoldenDropoutTest, LogitsLossAndEveryGradientMatch) {
  std::printf("largest error / bound, as shares of the tensor's largest element:\n");
  for (const Deviation& deviation : deviations(measure(), truth_, rounding_)) {
    print(deviation);
    EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity;
  }
}

TEST_F(GoldenDropoutTest, EightStepsOfAdamWMatch) {
  GoldenRun::Options options = options_;
  options.optimizer = golden_inputs().optimizer;
  GoldenRun run(options);
  const auto steps = training_deviations([&](size_t k) { return run.step(k); },
                                         golden_curve(golden_.file), rounding_);
  EXPECT_EQ(steps.size(), 2 * 8u);
  for (const Deviation& deviation : steps) {
    print(deviation);
    EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity;
  }
}

TEST_F(GoldenDropoutTest, AnotherSeedOrStepLeavesTheBounds) {
  GoldenRun::Options reseeded = options_;
  reseeded.seed += 1;
  EXPECT_GT(worst(deviations(GoldenRun(reseeded).measure(0), truth_, rounding_)).ratio(), 100);
  GoldenRun run(options_);
  run.step(0);
  EXPECT_GT(worst(deviations(run.measure(0), truth_, rounding_)).ratio(), 100);
}

// An error in every call; of dropout in each call alone, since all together only scale the
// residual, which layer norms do not see.
TEST_F(GoldenDropoutTest, PlantsLeaveTheBounds) {
  GoldenRun clean(options_);
  clean.step(0);
  std::vector<Plant> plants;
  for (const auto& [output, calls] : clean.probe().calls()) {
    const bool each_alone = output == "dropout.out";
    if (!each_alone) plants.push_back({output});
    for (int call = 0; each_alone && call < calls; ++call) plants.push_back({output, call});
  }
  for (const Plant& plant : plants) {
    const Deviation farthest = worst(deviations(measure(plant), truth_, rounding_));
    std::printf("  %-44s %7.0f x in %s\n", name(plant).c_str(), farthest.ratio(),
                farthest.quantity.c_str());
    EXPECT_GT(farthest.error, farthest.bound) << name(plant);
  }
}

}  // namespace
}  // namespace strata::testing_support
