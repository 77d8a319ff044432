// P4: the numbers are right. A tiny GPT-2 with PyTorch's weights computes what fp64 arithmetic
// does, within bounds that follow from the dtype (golden_bounds.h), and the bounds are tight enough
// that no op can be 1 % off, or leave out its bias, unseen.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "tests/engine/golden_bounds.h"
#include "tests/engine/golden_run.h"

namespace strata::testing_support {
namespace {

class Golden : public testing::TestWithParam<DType> {
 protected:
  const DType dtype_ = GetParam();
  const SafetensorsFixture results_ = golden_results(dtype_);
  const Quantities truth_ = golden_truth(results_);
  const Rounding rounding_{dtype_, truth_};
};

INSTANTIATE_TEST_SUITE_P(DTypes, Golden, testing::Values(DType::fp32, DType::bf16, DType::fp16),
                         [](const auto& param_info) {
                           return std::string(name(param_info.param));
                         });

TEST_P(Golden, LogitsLossAndEveryGradientMatch) {
  GoldenRun run({.dtype = dtype_});
  std::printf("largest error / bound, as shares of the tensor's largest element:\n");
  for (const Deviation& deviation : deviations(run.measure(0), truth_, rounding_)) {
    print(deviation);
    EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity;
  }
}

TEST_P(Golden, InTilesEverythingMatchesToo) {
  GoldenRun run({.dtype = dtype_, .tiles = 3});
  for (const Deviation& deviation : deviations(run.measure(0), truth_, rounding_)) {
    print(deviation);
    EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity;
  }
}

TEST_P(Golden, TwentyStepsOfAdamWMatch) {
  GoldenRun run({.dtype = dtype_, .optimizer = golden_inputs().optimizer});
  const auto steps =
      training_deviations([&](size_t k) { return run.step(k); }, golden_curve(results_), rounding_);
  EXPECT_EQ(steps.size(), 2 * 20u);
  std::printf("error / bound, as shares of the value:\n");
  for (const Deviation& deviation : steps) {
    print(deviation);
    EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity;
  }
}

struct WrongUpdate {
  const char* name;
  double OptimizerConfig::*scalar;
};

void PrintTo(const WrongUpdate& wrong, std::ostream* out) { *out << wrong.name; }

class GoldenUpdate : public testing::TestWithParam<WrongUpdate> {};

// Without eps, which is far below any gradient here, and clipping, whose scale Adam does not see.
INSTANTIATE_TEST_SUITE_P(Scalars, GoldenUpdate,
                         testing::Values(WrongUpdate{"lr", &OptimizerConfig::lr},
                                         WrongUpdate{"beta1", &OptimizerConfig::beta1},
                                         WrongUpdate{"beta2", &OptimizerConfig::beta2},
                                         WrongUpdate{"weight_decay",
                                                     &OptimizerConfig::weight_decay}),
                         [](const auto& param_info) { return param_info.param.name; });

TEST_P(GoldenUpdate, OnePercentOffLeavesTheBounds) {
  const SafetensorsFixture results = golden_results(DType::fp32);
  const Rounding rounding(DType::fp32, golden_truth(results));
  OptimizerConfig optimizer = golden_inputs().optimizer;
  optimizer.*GetParam().scalar *= 1 + kPlantedError;
  GoldenRun run({.dtype = DType::fp32, .optimizer = optimizer});
  const Deviation farthest = worst(
      training_deviations([&](size_t k) { return run.step(k); }, golden_curve(results), rounding));
  print(farthest);
  EXPECT_GT(farthest.error, farthest.bound);
}

// What an op leaves for its own backward. GPT-2 computes layer norms a second time in backward, so
// that of a single call nobody may read it.
bool is_statistic(std::string_view output) {
  return output == "layer_norm_forward.mean" || output == "layer_norm_forward.rstd" ||
         output == "attention_forward.saved";
}

// Every error that a step has room for: in all calls that compute an output, and in each alone.
std::vector<Plant> plants(int64_t tiles = 1) {
  GoldenRun run({.dtype = DType::fp32, .tiles = tiles});
  run.step(0);
  std::vector<Plant> result;
  const auto add = [&](std::string_view output, int calls, Plant::Kind kind) {
    result.push_back({output, Plant::kEveryCall, kind});
    if (calls == 1 || is_statistic(output)) return;
    for (int call = 0; call < calls; ++call) result.push_back({output, call, kind});
  };
  for (const auto& [output, calls] : run.probe().calls()) add(output, calls, Plant::Kind::scaled);
  for (const auto& [output, calls] : run.probe().biased_calls()) {
    add(output, calls, Plant::Kind::bias_dropped);
  }
  return result;
}

TEST(GoldenPlants, AreInAllThatLayerOpsCompute) {
  std::set<std::string_view> computed;
  const models::Gpt2Config plain = golden_inputs().model;
  for (const auto& [model, tiles] :
       {std::pair(plain, 1), std::pair(plain, 2), std::pair(GoldenDropout().model, 1)}) {
    GoldenRun run({.dtype = DType::fp32, .model = model, .tiles = tiles});
    run.step(0);
    for (const auto& [output, calls] : run.probe().calls()) computed.insert(output);
  }
  std::set<std::string_view> known(kOpOutputs.begin(), kOpOutputs.end());
  EXPECT_EQ(computed, known);
}

TEST(GoldenPlants, LeaveTheBoundsInFp32) {
  const Quantities truth = golden_truth(golden_results(DType::fp32));
  const Rounding rounding(DType::fp32, truth);
  GoldenRun run({.dtype = DType::fp32});
  std::printf("what leaves its bound farthest, where one op is %g %% off:\n", 100 * kPlantedError);
  for (const Plant& plant : plants()) {
    const Deviation farthest = worst(deviations(run.measure(0, plant), truth, rounding));
    std::printf("  %-44s %7.0f x in %s\n", name(plant).c_str(), farthest.ratio(),
                farthest.quantity.c_str());
    EXPECT_GT(farthest.error, farthest.bound) << name(plant);
  }
}

// What tiles alone compute.
TEST(GoldenPlants, OfTilesLeaveTheBoundsInFp32) {
  const Quantities truth = golden_truth(golden_results(DType::fp32));
  const Rounding rounding(DType::fp32, truth);
  GoldenRun run({.dtype = DType::fp32, .tiles = 2});
  int planted = 0;
  for (const Plant& plant : plants(2)) {
    const bool is_of_parts = plant.output.starts_with("cross_entropy_");
    if (!is_of_parts && !plant.output.starts_with("embedding_")) continue;
    ++planted;
    const Deviation farthest = worst(deviations(run.measure(0, plant), truth, rounding));
    std::printf("  %-44s %7.0f x in %s\n", name(plant).c_str(), farthest.ratio(),
                farthest.quantity.c_str());
    EXPECT_GT(farthest.error, farthest.bound) << name(plant);
  }
  EXPECT_GT(planted, 10);
}

// Truth for more batches than the fixture has is what fp32 computes from the rounded weights, a
// thousandth of a 16-bit dtype's error away from fp64.
class GoldenProjection : public testing::TestWithParam<DType> {
 protected:
  GoldenProjection() {
    for (size_t batch = 0; batch < golden_inputs().batches.size(); ++batch) {
      truth_.push_back(fp32_.measure(batch));
      clean_.push_back(narrow_.measure(batch));
    }
  }

  Projection project(const Plant& plant) {
    Projection projection;
    for (size_t batch = 0; batch < truth_.size(); ++batch) {
      projection.add({truth_[batch], fp32_.measure(batch, plant), clean_[batch],
                      narrow_.measure(batch, plant)},
                     rounding_);
    }
    return projection;
  }

  const Quantities fixture_ = golden_truth(golden_results(GetParam()));
  const Rounding rounding_{GetParam(), fixture_};
  GoldenRun fp32_{{.dtype = DType::fp32, .round_weights_to = GetParam()}};
  GoldenRun narrow_{{.dtype = GetParam()}};
  std::vector<Quantities> truth_, clean_;
};

INSTANTIATE_TEST_SUITE_P(DTypes, GoldenProjection, testing::Values(DType::bf16, DType::fp16),
                         [](const auto& param_info) {
                           return std::string(name(param_info.param));
                         });

TEST_P(GoldenProjection, TruthByFp32IsThatOfFp64) {
  const Rounding rounding(DType::fp32, fixture_);
  const Deviation farthest = worst(deviations(truth_.front(), fixture_, rounding));
  print(farthest);
  EXPECT_LT(farthest.error, farthest.bound);
}

// A plant is itself rounded, and to bf16, where 1 % is one to three units in the last place, it
// comes out a little smaller than planted.
TEST_P(GoldenProjection, TellsAPlantedErrorFromRounding) {
  constexpr double kThreshold = 0.5;
  std::printf("projection of the error, clean within %g sigma and planted:\n", kSigmas);
  for (const Plant& plant : plants()) {
    // 1 % of a mean is too little of what depends on it.
    if (plant.output == "layer_norm_forward.mean") continue;
    const Projection projection = project(plant);
    const double bound = kSigmas * projection.sigma();
    std::printf("  %-44s %6.3f / %.3f %6.3f\n", name(plant).c_str(), projection.clean(), bound,
                projection.planted());
    EXPECT_LT(std::abs(projection.clean()), bound) << name(plant);
    EXPECT_GT(projection.planted(), kThreshold) << name(plant);
    EXPECT_LT(bound, kThreshold) << name(plant) << ": more batches are needed";
  }
}

}  // namespace
}  // namespace strata::testing_support
