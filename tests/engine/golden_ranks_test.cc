// P4 over ranks: one global batch, divided among 1 to 4 ranks, gives the losses, norms and
// gradients of fp64 arithmetic, within the bounds that a single rank is held to.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tests/engine/golden_bounds.h"
#include "tests/engine/golden_run.h"
#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata::testing_support {
namespace {

struct Division {
  int ranks;
  int64_t rows;   // of a micro-batch
  int64_t steps;  // of accumulation
};
void PrintTo(const Division& division, std::ostream* out) {
  *out << division.ranks << " ranks, " << division.steps << " x " << division.rows << " rows each";
}

class GoldenRanks : public testing::TestWithParam<std::tuple<Division, DType>> {
 protected:
  const Division division_ = std::get<0>(GetParam());
  const DType dtype_ = std::get<1>(GetParam());
  const SafetensorsFixture file_ = golden_file("gpt2_ranks");
  const std::vector<OwnedBatch> batches_ = read_batches(file_);

  std::vector<double> truth(const std::string& quantity) const {
    return file_.values(std::string(name(dtype_)) + "." + quantity);
  }

  Engine make(const World& world, double lr) const {
    Config config = for_world(tiny_config(), world);
    config.micro_batch = division_.rows;
    config.accumulation_steps = division_.steps;
    config.dtype = dtype_;
    config.loss_scale.constant = kGoldenLossScale;
    config.gradient_clipping = golden_inputs().max_grad_norm;
    config.optimizer = golden_inputs().optimizer;
    config.optimizer.lr = lr;
    config.compute_threads = config.optimizer_threads = 1;
    Engine::Options options;
    options.micro_batch = {division_.rows, batches_[0].shape.sequence};
    Engine engine =
        EngineTestAccess::make(models::gpt2(golden_inputs().model), config, options, {}, world);
    write_golden_weights(engine);
    return engine;
  }

  // This rank's micro-batches of a global batch.
  std::vector<Batch> divide(const OwnedBatch& batch, const World& world) const {
    const auto numel = static_cast<size_t>(division_.rows * batch.shape.sequence);
    std::vector<Batch> parts;
    for (size_t at = 0; at < batch.tokens.size(); at += numel) {
      parts.push_back({{division_.rows, batch.shape.sequence},
                       std::span(batch.tokens).subspan(at, numel),
                       std::span(batch.targets).subspan(at, numel)});
    }
    return of_rank(parts, world);
  }
};

INSTANTIATE_TEST_SUITE_P(Divisions, GoldenRanks,
                         testing::Combine(testing::Values(Division{1, 12, 1}, Division{1, 3, 4},
                                                          Division{2, 3, 2}, Division{2, 6, 1},
                                                          Division{3, 2, 2}, Division{4, 3, 1}),
                                          testing::Values(DType::fp32, DType::bf16, DType::fp16)));

TEST_P(GoldenRanks, GradientsOfAGlobalBatchMatch) {
  Quantities expected;
  for (const std::string& parameter : golden_inputs().parameters) {
    expected["grad." + parameter] = truth("grad." + parameter);
  }
  const Rounding rounding(dtype_, golden_truth(golden_results(dtype_)));
  const auto failures = failures_of_ranks(division_.ranks, [&](const World& world) {
    Engine engine = make(world, /*lr=*/0);
    const StepResult result = engine.train_step(divide(batches_[0], world));
    // Gradients are sums over micro-batches and ranks before the step scales them.
    const double scale =
        1.0 / (result.loss_scale * static_cast<double>(division_.steps * world.size));
    Quantities measured;
    for (const std::string& parameter : golden_inputs().parameters) {
      for (const float g : engine.read_parameter(parameter, StateKind::grad)) {
        measured["grad." + parameter].push_back(g * scale);
      }
    }
    for (const Deviation& deviation : deviations(measured, expected, rounding)) {
      EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity << " on " << world.rank;
    }
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

TEST_P(GoldenRanks, StepsOfAdamWMatch) {
  const Rounding rounding(dtype_, golden_truth(golden_results(dtype_)));
  const TrainingCurve curve = {truth("losses"), truth("grad_norms")};
  ASSERT_EQ(curve.losses.size(), batches_.size());
  const auto failures = failures_of_ranks(division_.ranks, [&](const World& world) {
    Engine engine = make(world, golden_inputs().optimizer.lr);
    const auto step = [&](size_t k) { return engine.train_step(divide(batches_[k], world)); };
    const auto steps = training_deviations(step, curve, rounding);
    if (world.rank == 0) print(worst(steps));
    for (const Deviation& deviation : steps) {
      EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity << " on " << world.rank;
    }
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

}  // namespace
}  // namespace strata::testing_support
