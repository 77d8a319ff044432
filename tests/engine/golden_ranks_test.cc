// P4 over ranks: one global batch, divided among 1 to 4 ranks, gives the losses, norms and
// gradients of fp64 arithmetic, within the bounds that a single rank is held to; and worlds agree
// with each other within what two such errors may differ by.
#include <gtest/gtest.h>

#include <cmath>
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

constexpr Division kDivisions[] = {{1, 12, 1}, {1, 3, 4}, {2, 3, 2},
                                   {2, 6, 1},  {3, 2, 2}, {4, 3, 1}};

// Global batches divided among ranks.
class DividedRun {
 public:
  DividedRun(const Division& division, DType dtype) : division_(division), dtype_(dtype) {}

  const SafetensorsFixture& file() const { return file_; }
  const std::vector<OwnedBatch>& batches() const { return batches_; }

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

  StepResult step(Engine& engine, size_t batch, const World& world) const {
    return engine.train_step(divide(batches_[batch], world));
  }

  // Of batch 0, by parameter.
  Quantities gradients(const World& world) const {
    Engine engine = make(world, /*lr=*/0);
    const StepResult result = step(engine, 0, world);
    // Gradients are sums over micro-batches and ranks before the step scales them.
    const double scale =
        1.0 / (result.loss_scale * static_cast<double>(division_.steps * world.size));
    Quantities measured;
    for (const std::string& parameter : golden_inputs().parameters) {
      for (const float g : engine.read_parameter(parameter, StateKind::grad)) {
        measured["grad." + parameter].push_back(g * scale);
      }
    }
    return measured;
  }

 private:
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

  const Division division_;
  const DType dtype_;
  const SafetensorsFixture file_ = golden_file("gpt2_ranks");
  const std::vector<OwnedBatch> batches_ = read_batches(file_);
};

class GoldenRanks : public testing::TestWithParam<std::tuple<Division, DType>> {
 protected:
  const Division division_ = std::get<0>(GetParam());
  const DType dtype_ = std::get<1>(GetParam());
  const DividedRun run_{division_, dtype_};

  std::vector<double> truth(const std::string& quantity) const {
    return run_.file().values(std::string(name(dtype_)) + "." + quantity);
  }
};

INSTANTIATE_TEST_SUITE_P(Divisions, GoldenRanks,
                         testing::Combine(testing::ValuesIn(kDivisions),
                                          testing::Values(DType::fp32, DType::bf16, DType::fp16)));

TEST_P(GoldenRanks, GradientsOfAGlobalBatchMatch) {
  Quantities expected;
  for (const std::string& parameter : golden_inputs().parameters) {
    expected["grad." + parameter] = truth("grad." + parameter);
  }
  const Rounding rounding(dtype_, golden_truth(golden_results(dtype_)));
  const auto failures = failures_of_ranks(division_.ranks, [&](const World& world) {
    for (const Deviation& deviation : deviations(run_.gradients(world), expected, rounding)) {
      EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity << " on " << world.rank;
    }
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

TEST_P(GoldenRanks, StepsOfAdamWMatch) {
  const Rounding rounding(dtype_, golden_truth(golden_results(dtype_)));
  const TrainingCurve curve = {truth("losses"), truth("grad_norms")};
  ASSERT_EQ(curve.losses.size(), run_.batches().size());
  const auto failures = failures_of_ranks(division_.ranks, [&](const World& world) {
    Engine engine = run_.make(world, golden_inputs().optimizer.lr);
    const auto step = [&](size_t k) { return run_.step(engine, k, world); };
    const auto steps = training_deviations(step, curve, rounding);
    if (world.rank == 0) print(worst(steps));
    for (const Deviation& deviation : steps) {
      EXPECT_LT(deviation.error, deviation.bound) << deviation.quantity << " on " << world.rank;
    }
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

// Each run's error is independent of the others' and within its sigma: a difference of two is
// within sqrt(2) of it.
class WorldsAgree : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(DTypes, WorldsAgree,
                         testing::Values(DType::fp32, DType::bf16, DType::fp16));

TEST_P(WorldsAgree, OnGradientsAndLosses) {
  const Rounding rounding(GetParam(), golden_truth(golden_results(GetParam())));
  Quantities gradients;
  TrainingCurve curve;
  std::vector<Deviation> all;
  for (const Division& division : kDivisions) {
    SCOPED_TRACE(testing::PrintToString(division));
    const DividedRun run(division, GetParam());
    const bool is_first = curve.losses.empty();
    const auto failures = failures_of_ranks(division.ranks, [&](const World& world) {
      const Quantities own = run.gradients(world);
      Engine engine = run.make(world, golden_inputs().optimizer.lr);
      std::vector<StepResult> results;
      for (size_t k = 0; k < run.batches().size(); ++k) {
        results.push_back(run.step(engine, k, world));
      }
      if (world.rank != 0) return;  // ranks agree to the bit, which stages_test holds
      if (is_first) {
        gradients = own;
        for (const StepResult& result : results) {
          curve.losses.push_back(result.loss);
          curve.grad_norms.push_back(result.grad_norm);
        }
        return;
      }
      all = deviations(own, gradients, rounding);
      const auto step = [&](size_t k) { return results[k]; };
      for (const Deviation& d : training_deviations(step, curve, rounding)) all.push_back(d);
    });
    for (const std::string& failure : failures) EXPECT_EQ(failure, "");
    if (is_first) continue;
    print(worst(all));
    for (const Deviation& deviation : all) {
      EXPECT_LT(deviation.error, std::sqrt(2.0) * deviation.bound) << deviation.quantity;
    }
  }
}

}  // namespace
}  // namespace strata::testing_support
