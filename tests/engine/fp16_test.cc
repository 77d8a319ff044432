// Training in fp16 with a loss scale: a gradient that is not finite skips the step on every rank
// and changes nothing but the scale, and runs with skipped steps keep P1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/runtime/loss_scaler.h"
#include "strata/error.h"
#include "tests/engine/local_ranks.h"
#include "tests/engine/planted_ops.h"
#include "tests/engine/tiny_run.h"

namespace strata::testing_support {
namespace {

using testing::HasSubstr;

constexpr Plant kInfinity = {"linear_backward.weight_grad", 3, Plant::Kind::infinite};

Config fp16_config(const LossScaleConfig& loss_scale) {
  Config config = tiny_config();
  config.dtype = DType::fp16;
  config.loss_scale = loss_scale;
  config.compute_threads = config.optimizer_threads = 1;
  config.comm_timeout_s = 60;
  return config;
}

// An engine of one rank, with errors on demand.
class PlantedRun {
 public:
  PlantedRun(const Config& config, const World& world)
      : world_(world), config_(for_world(config, world)), engine_(make()) {}

  StepResult step(uint64_t seed, const std::optional<Plant>& plant = {}) {
    probe_->begin(plant);
    const auto batches = tiny_batches(config_.accumulation_steps * world_.size, seed);
    return engine_.train_step(of_rank(views(batches), world_));
  }
  Engine& engine() { return engine_; }

 private:
  Engine make() {
    Engine::Options options;
    options.micro_batch = {config_.micro_batch, tiny_gpt2().n_positions};
    engine::Disturbance disturbance;
    disturbance.wrap_ops = [this](std::unique_ptr<ops::LayerOps> inner) {
      return plant_errors(std::move(inner), *probe_);
    };
    return EngineTestAccess::make(models::gpt2(tiny_gpt2()), config_, options, disturbance, world_);
  }

  const World world_;
  const Config config_;
  const std::unique_ptr<OpProbe> probe_ = std::make_unique<OpProbe>();  // before what uses it
  Engine engine_;
};

std::vector<std::vector<float>> whole_state(Engine& engine) {
  std::vector<std::vector<float>> state;
  for (const auto& layer : models::gpt2(tiny_gpt2()).layers) {
    for (const Parameter& parameter : layer->parameters()) {
      for (const StateKind kind :
           {StateKind::param, StateKind::master, StateKind::exp_avg, StateKind::exp_avg_sq}) {
        state.push_back(engine.read_parameter(parameter.name, kind));
      }
    }
  }
  return state;
}

class Overflow : public testing::TestWithParam<int> {
 protected:
  // Runs body on as many ranks; all must get through.
  void on_ranks(const std::function<void(const World&)>& body) const {
    const auto failures = failures_of_ranks(GetParam(), body);
    for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  }
  // The error, on the last rank alone.
  static std::optional<Plant> on_last(const World& world) {
    if (world.rank + 1 == world.size) return kInfinity;
    return {};
  }
  TemporaryDirectory directory_;
};

INSTANTIATE_TEST_SUITE_P(Ranks, Overflow, testing::Values(1, 2, 3));

TEST_P(Overflow, SkipsTheStepOnEveryRankAndLeavesEveryBit) {
  for (const auto& [dtype, stage] : {std::pair{DType::fp16, 3}, std::pair{DType::bf16, 2},
                                     std::pair{DType::fp32, 1}, std::pair{DType::fp16, 0}}) {
    Config config = fp16_config({.constant = 256});
    config.dtype = dtype;
    config.stage = stage;
    config.optimizer_state.fill({0.2, 0.37, 0.43});
    config.slots = 2;
    config.nvme_paths = {directory_.path()};
    config.schedule.kind = ScheduleKind::warmup;
    on_ranks([&, type = dtype](const World& world) {
      PlantedRun run(config, world), undisturbed(config, world);
      EXPECT_FALSE(run.step(1).skipped);
      undisturbed.step(1);
      const std::string digest = run.engine().digest();
      const auto state = whole_state(run.engine());
      for (uint64_t seed : {2, 3}) {
        const StepResult result = run.step(seed, on_last(world));
        EXPECT_TRUE(result.skipped) << name(type) << " on " << world.rank;
        EXPECT_FALSE(std::isfinite(result.grad_norm));
      }
      EXPECT_EQ(run.engine().steps_done(), 1);
      EXPECT_EQ(run.engine().digest(), digest) << name(type) << " on " << world.rank;
      EXPECT_EQ(whole_state(run.engine()), state) << name(type) << " on " << world.rank;
      // It goes on as if nothing had been, schedule included.
      const StepResult next = run.step(4), expected = undisturbed.step(4);
      EXPECT_FALSE(next.skipped);
      EXPECT_EQ(next.step, expected.step);
      EXPECT_EQ(next.lr, expected.lr);
      EXPECT_EQ(next.loss, expected.loss);
      EXPECT_EQ(run.engine().digest(), undisturbed.engine().digest()) << name(type);
    });
  }
}

TEST_P(Overflow, ChangesTheScaleAlone) {
  const Config config = fp16_config({.initial_power = 9, .hysteresis = 2});
  on_ranks([&](const World& world) {
    PlantedRun run(config, world);
    const std::string start = run.engine().digest();
    const auto state = whole_state(run.engine());
    EXPECT_EQ(run.step(1, on_last(world)).loss_scale, 512);
    EXPECT_EQ(run.engine().digest(), start) << "the hysteresis lets one overflow pass";
    EXPECT_EQ(run.step(1, on_last(world)).loss_scale, 512);
    EXPECT_NE(run.engine().digest(), start) << "the digest has the scale in it";
    EXPECT_EQ(whole_state(run.engine()), state);
    const StepResult result = run.step(1);
    EXPECT_EQ(result.loss_scale, 256);
    EXPECT_FALSE(result.skipped);
    EXPECT_NE(whole_state(run.engine()), state);
  });
}

TEST_P(Overflow, AtTheSmallestScaleEndsAllRanksWithOneSentence) {
  const Config config = fp16_config({.initial_power = 1, .hysteresis = 1});
  const auto failures = failures_of_ranks(GetParam(), [&](const World& world) {
    PlantedRun run(config, world);
    EXPECT_TRUE(run.step(1, on_last(world)).skipped);
    run.step(2, on_last(world));
    ADD_FAILURE() << "an overflow at scale 1 went through";
  });
  for (const std::string& failure : failures) {
    EXPECT_THAT(failure, HasSubstr("overflow fp16 at the smallest loss scale, 1"));
  }
}

// The scale begins far too high, falls until gradients fit, and grows into overflows again.
LossScaleConfig restless() { return {.initial_power = 22, .window = 2, .hysteresis = 1}; }
constexpr int kRestlessSteps = 16;

void expect_restless(const RunOutcome& outcome) {
  EXPECT_GT(outcome.skipped_steps, 3);
  EXPECT_LT(outcome.skipped_steps, kRestlessSteps - 3);
  bool grew = false;
  for (size_t step = 1; step < outcome.loss_scales.size(); ++step) {
    grew |= outcome.loss_scales[step] > outcome.loss_scales[step - 1];
  }
  EXPECT_TRUE(grew);
}

struct Way {
  const char* name;
  std::function<void(Config&)> edit;
};

std::vector<Way> ways() {
  return {
      {"host",
       [](Config& c) {
         c.optimizer_state.fill({0, 1, 0});
       }},
      {"nvme_one_slot",
       [](Config& c) {
         c.optimizer_state.fill({0, 0, 1});
         c.sub_group_numel = kGrainNumel;
       }},
      {"nvme_two_slots",
       [](Config& c) {
         c.optimizer_state.fill({0, 0, 1});
         c.slots = 2;
       }},
      {"all_split",
       [](Config& c) {
         c.param = {0.5, 0.5, 0};
         c.optimizer_state.fill({0.2, 0.37, 0.43});
         c.sub_group_numel = 2 * kGrainNumel;
       }},
      {"no_overlap",
       [](Config& c) {
         c.overlap = false;
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"always_recompute", [](Config& c) { c.recompute = RecomputeChoice::always; }},
  };
}

TEST_P(Overflow, PlacementDoesNotChangeBits) {
  const auto run = [&](const Config& config) {
    std::vector<RunOutcome> outcomes(static_cast<size_t>(GetParam()));
    on_ranks([&](const World& world) {
      outcomes[static_cast<size_t>(world.rank)] = run_tiny(config, kRestlessSteps, {}, world);
    });
    for (const RunOutcome& outcome : outcomes) {
      EXPECT_EQ(outcome.digest, outcomes[0].digest);
      EXPECT_EQ(outcome.loss_scales, outcomes[0].loss_scales);
    }
    return outcomes[0];
  };
  Config base = fp16_config(restless());
  base.nvme_paths = {directory_.path()};
  const RunOutcome reference = run(base);
  expect_restless(reference);
  for (const Way& way : ways()) {
    Config changed = base;
    way.edit(changed);
    const RunOutcome outcome = run(changed);
    EXPECT_EQ(outcome.digest, reference.digest) << way.name;
    EXPECT_EQ(outcome.losses, reference.losses) << way.name;
    EXPECT_EQ(outcome.loss_scales, reference.loss_scales) << way.name;
  }
}

TEST(Fp16, TheScaleIsTheLossScalers) {
  const Config config = fp16_config(restless());
  PlantedRun run(config, {});
  engine::LossScaler scaler(config);
  int skipped = 0;
  for (int step = 0; step < kRestlessSteps; ++step) {
    const StepResult result = run.step(static_cast<uint64_t>(step));
    EXPECT_EQ(result.loss_scale, scaler.scale()) << step;
    scaler.update(result.skipped);
    skipped += result.skipped ? 1 : 0;
  }
  EXPECT_EQ(run.engine().steps_done(), kRestlessSteps - skipped);
}

// Adam's update hides a factor of the gradient; the moments show it.
TEST(Fp16, MomentsAreOfTheUnscaledGradient) {
  const auto moments = [](double scale) {
    PlantedRun run(fp16_config({.constant = scale}), {});
    EXPECT_EQ(run.step(1).loss_scale, scale);
    const std::string name = "transformer.h.1.mlp.c_fc.weight";
    return std::pair(run.engine().read_parameter(name, StateKind::exp_avg),
                     run.engine().read_parameter(name, StateKind::exp_avg_sq));
  };
  const auto expect_near = [](const std::vector<float>& a, const std::vector<float>& b) {
    float largest = 0;
    for (const float value : a) largest = std::max(largest, std::abs(value));
    EXPECT_GT(largest, 0);
    // A dozen roundings to fp16 are between them.
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 12 * 0x1p-11 * largest) << i;
  };
  const auto [mean, square] = moments(512);
  const auto [other_mean, other_square] = moments(3 * 512);
  expect_near(mean, other_mean);
  expect_near(square, other_square);
}

TEST(Fp16, StartUpSaysWhereItsProductsAreComputed) {
  PlantedRun run(fp16_config({}), {});
  EXPECT_THAT(run.engine().description(),
              testing::Contains(HasSubstr("fp16 products are computed in fp32")));
}

}  // namespace
}  // namespace strata::testing_support
