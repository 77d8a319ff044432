#include "tests/engine/tiny_run.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "kernels/ops/random.h"
#include "tests/engine/local_ranks.h"

namespace strata::testing_support {

models::Gpt2Config tiny_gpt2() {
  models::Gpt2Config config;
  config.vocab_size = 65;
  config.n_positions = 16;
  config.n_embd = 64;
  config.n_layer = 2;
  config.n_head = 4;
  return config;
}

DeviceChoice device_under_test() {
  const char* const asked = std::getenv("STRATA_TEST_DEVICE");
  return asked != nullptr && std::string_view(asked) == "cuda" ? DeviceChoice::cuda
                                                               : DeviceChoice::host;
}

Config tiny_config() {
  Config config;
  config.micro_batch = 2;
  config.accumulation_steps = 2;
  config.dtype = DType::bf16;
  config.gradient_clipping = 0.5;
  config.optimizer.lr = 1e-3;
  config.optimizer.weight_decay = 0.1;
  config.sub_group_numel = 1 << 20;
  config.param = {1, 0, 0};
  config.optimizer_state.fill({1, 0, 0});
  config.device = device_under_test();
  config.compute_threads = 2;
  config.optimizer_threads = 2;
  config.io_block_bytes = 64 << 10;
  config.seed = 7;
  return config;
}

std::vector<OwnedBatch> tiny_batches(int64_t count, uint64_t seed) {
  const ops::Philox random{seed};
  const auto gpt2 = tiny_gpt2();
  std::vector<OwnedBatch> batches;
  for (int64_t b = 0; b < count; ++b) {
    OwnedBatch batch;
    batch.shape = {2, gpt2.n_positions};
    for (int64_t i = 0; i < batch.shape.tokens(); ++i) {
      const auto bits = random(static_cast<uint64_t>(i), static_cast<uint64_t>(b));
      batch.tokens.push_back(
          static_cast<int32_t>(bits[0] % static_cast<uint32_t>(gpt2.vocab_size)));
      batch.targets.push_back(
          static_cast<int32_t>((batch.tokens.back() * 3 + 1) % gpt2.vocab_size));
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

std::vector<Batch> of_rank(const std::vector<Batch>& batches, const World& world) {
  std::vector<Batch> own;
  for (size_t i = static_cast<size_t>(world.rank); i < batches.size();
       i += static_cast<size_t>(world.size)) {
    own.push_back(batches[i]);
  }
  return own;
}

std::vector<Batch> views(const std::vector<OwnedBatch>& batches) {
  std::vector<Batch> result;
  for (const OwnedBatch& batch : batches) result.push_back(batch.view());
  return result;
}

Config for_world(Config config, const World& world) {
  config.world_size = world.size;
  return config;
}

engine::ProgramInput program_input(const engine::ModelLayout& layout) {
  const size_t units = layout.units().size();
  return {.layout = layout,
          .access = std::vector(units, engine::ParameterAccess::in_place),
          .keeps_saved = std::vector<bool>(units, false),
          .output_bytes = std::vector<uint64_t>(units, 1),
          .checkpoint_tier = std::vector(units, Tier::device)};
}

io::FaultPlan rough_disk(uint64_t seed) {
  return {.seed = seed,
          .short_transfer_permille = 200,
          .error_permille = 0,
          .again_permille = 100,
          .delay_permille = 300,
          .max_delay_us = 400,
          .reorder = true,
          .fail_at = -1};
}

RunOutcome run_tiny(const Config& config, int steps, const engine::Disturbance& disturbance,
                    const World& world, const models::Gpt2Config& gpt2) {
  Engine::Options options;
  options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
  Engine engine = EngineTestAccess::make(models::gpt2(gpt2), for_world(config, world), options,
                                         disturbance, world);
  const PlanSummary& plan = engine.plan();
  RunOutcome outcome;
  for (int step = 0; step < steps; ++step) {
    const auto batches =
        tiny_batches(config.accumulation_steps * world.size, static_cast<uint64_t>(step) + 100);
    const auto own = of_rank(views(batches), world);
    const StepResult result = engine.train_step(own);
    EXPECT_TRUE(!result.skipped || config.dtype == DType::fp16);
    EXPECT_TRUE(result.skipped ||
                result.moved == plan.step_traffic + result.speculation.redone_bytes)
        << "step " << step;
    for (size_t tier = 0; tier < kTierCount; ++tier) {
      EXPECT_LE(result.peak[tier], plan.needed_bytes[tier]) << name(kTiers[tier]);
      EXPECT_LE(plan.needed_bytes[tier], plan.budget_bytes[tier]) << name(kTiers[tier]);
    }
    outcome.losses.push_back(result.loss);
    outcome.loss_scales.push_back(result.loss_scale);
    outcome.skipped_steps += result.skipped ? 1 : 0;
  }
  outcome.digest = engine.digest();
  return outcome;
}

RunOutcome run_tiny_on_ranks(int size, const Config& config, int steps,
                             const engine::Disturbance& disturbance,
                             const models::Gpt2Config& gpt2) {
  std::vector<RunOutcome> outcomes(static_cast<size_t>(size));
  const auto failures = failures_of_ranks(size, [&](const World& world) {
    engine::Disturbance own = disturbance;
    if (own.delay_seed != 0) own.delay_seed += static_cast<uint64_t>(world.rank);
    outcomes[static_cast<size_t>(world.rank)] = run_tiny(config, steps, own, world, gpt2);
  });
  for (size_t rank = 0; rank < failures.size(); ++rank) {
    EXPECT_EQ(failures[rank], "");
    EXPECT_EQ(outcomes[rank].digest, outcomes[0].digest) << "rank " << rank;
    EXPECT_EQ(outcomes[rank].losses, outcomes[0].losses) << "rank " << rank;
  }
  return outcomes[0];
}

}  // namespace strata::testing_support
