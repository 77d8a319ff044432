// P2: at one world size every ZeRO stage, order of units and dtype's training leaves one training
// state a definition of the gradient, and each rank holds the bytes that its stage's formula says.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::failures_of_ranks;
using testing_support::for_world;
using testing_support::run_tiny_on_ranks;
using testing_support::RunOutcome;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;

constexpr int kSteps = 3;

struct Case {
  int ranks;
  DType dtype;
  int micro_batches;
  AccumulateChoice accumulate;
};

std::string case_name(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return "World" + std::to_string(c.ranks) + "_" + std::string(name(c.dtype)) + "_" +
         std::to_string(c.micro_batches) +
         (c.accumulate == AccumulateChoice::local ? "_local" : "_reduced");
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
      all.push_back({ranks, dtype, 1, AccumulateChoice::reduced});
      for (AccumulateChoice choice : {AccumulateChoice::reduced, AccumulateChoice::local}) {
        all.push_back({ranks, dtype, 4, choice});
      }
    }
  }
  return all;
}

class Stages : public testing::TestWithParam<Case> {
 protected:
  Config config(int stage, OrderChoice order) const {
    Config config = tiny_config();
    config.compute_threads = config.optimizer_threads = 1;
    config.comm_timeout_s = 60;
    config.dtype = GetParam().dtype;
    config.loss_scale.initial_power = 8;
    config.accumulation_steps = GetParam().micro_batches;
    config.accumulate = GetParam().accumulate;
    config.stage = stage;
    config.order = order;
    // The update on the host in odd stages, so that both ways of landing are under test.
    if (stage % 2 == 1) config.optimizer_state.fill({0, 1, 0});
    return config;
  }
};

TEST_P(Stages, LeaveOneTrainingState) {
  const RunOutcome reference =
      run_tiny_on_ranks(GetParam().ranks, config(3, OrderChoice::plain), kSteps);
  for (int stage = 0; stage <= 3; ++stage) {
    for (OrderChoice order : {OrderChoice::plain, OrderChoice::vertical}) {
      if (order == OrderChoice::vertical && GetParam().micro_batches == 1) continue;
      const RunOutcome outcome = run_tiny_on_ranks(GetParam().ranks, config(stage, order), kSteps);
      const bool vertical = order == OrderChoice::vertical;
      EXPECT_EQ(outcome.digest, reference.digest) << "stage " << stage << " vertical " << vertical;
      EXPECT_EQ(outcome.losses, reference.losses) << "stage " << stage << " vertical " << vertical;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Stages, testing::ValuesIn(cases()), case_name);

// Summing over ranks or over micro-batches first are two definitions.
TEST(GradientDefinitions, DifferInBits) {
  Config config = tiny_config();
  config.compute_threads = config.optimizer_threads = 1;
  config.accumulation_steps = 4;
  const std::string reduced = run_tiny_on_ranks(3, config, kSteps).digest;
  config.accumulate = AccumulateChoice::local;
  EXPECT_NE(run_tiny_on_ranks(3, config, kSteps).digest, reduced);
}

// What a rank holds of one kind: in memory and on disk.
uint64_t bytes_of(const PlanSummary& plan, StateKind kind, const std::string& part = "") {
  uint64_t bytes = 0;
  for (const Reservation& r : plan.reservations) {
    if (r.kind == kind && r.name.find(part) != std::string::npos) bytes += r.bytes;
  }
  return bytes;
}

class StageBytes : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Worlds, StageBytes, testing::Values(1, 2, 3, 4));

// Elements of a model, each unit padded to a grain a rank, and bytes by ZeRO's formulas
// (Rajbhandari et al. 2020, figure 1): 2 of bf16 parameters, 2 of bf16 local gradients where they
// are whole, 4 of accumulated gradients and 12 of fp32 state where they are updated.
TEST_P(StageBytes, AreTheFormulas) {
  const auto ranks = static_cast<uint64_t>(GetParam());
  uint64_t elements = 0;
  for (const auto& layer : models::gpt2(tiny_gpt2()).layers) {
    int64_t unit = 0;
    for (const Parameter& p : layer->parameters()) {
      unit = round_up(unit, kCodecBlockNumel) + p.shape.numel();
    }
    elements += static_cast<uint64_t>(round_up(unit, kGrainNumel * GetParam()));
  }
  for (int stage = 0; stage <= 3; ++stage) {
    std::vector<PlanSummary> plans(ranks);
    const auto failures = failures_of_ranks(GetParam(), [&](const World& world) {
      Config config = for_world(tiny_config(), world);
      config.stage = stage;
      config.order = OrderChoice::plain;
      Engine::Options options;
      options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
      plans[static_cast<size_t>(world.rank)] =
          Engine(models::gpt2(tiny_gpt2()), config, world, options).plan();
    });
    for (size_t rank = 0; rank < ranks; ++rank) {
      ASSERT_EQ(failures[rank], "");
      const PlanSummary& plan = plans[rank];
      const uint64_t held = stage == 3 ? elements / ranks : elements;
      const uint64_t updated = stage == 0 ? elements : elements / ranks;
      EXPECT_EQ(bytes_of(plan, StateKind::param) - bytes_of(plan, StateKind::param, "window"),
                2 * held)
          << stage;
      EXPECT_EQ(bytes_of(plan, StateKind::grad, "grad on"), 4 * updated) << stage;
      for (StateKind kind : kOptimizerKinds) EXPECT_EQ(bytes_of(plan, kind), 4 * updated) << stage;
      // P5: beside its shards a rank's device holds the window alone: what a unit needs, which is
      // two units for the head, and those ahead.
      const uint64_t window = bytes_of(plan, StateKind::param, "window");
      const bool sharded = stage == 3 && ranks > 1;
      EXPECT_EQ(window > 0, sharded);
      EXPECT_LE(static_cast<uint64_t>(plan.gather_window_units), sharded ? 4u : 0u);
      EXPECT_LE(window, 2 * elements);
      const uint64_t local = bytes_of(plan, StateKind::grad, "local");
      if (stage <= 1) {
        EXPECT_EQ(local, 2 * elements) << stage;
      } else {
        EXPECT_LT(local, 2 * elements) << stage;
      }
    }
  }
}

}  // namespace
}  // namespace strata
