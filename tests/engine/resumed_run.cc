#include "tests/engine/resumed_run.h"

#include <gtest/gtest.h>

#include <utility>

#include "tests/engine/partly_frozen.h"

namespace strata::testing_support {

LifeOutcome live(const Life& life) {
  std::vector<LifeOutcome> outcomes(static_cast<size_t>(life.ranks));
  const auto failures = failures_of_ranks(life.ranks, [&](const World& world) {
    LifeOutcome& outcome = outcomes[static_cast<size_t>(world.rank)];
    Engine::Options options;
    options.micro_batch = {life.config.micro_batch, life.gpt2.n_positions};
    options.run_directory = life.run_directory;
    options.resume = life.resume;
    options.stuck = life.stuck;
    Model model = models::gpt2(life.gpt2);
    if (life.is_frozen) model = partly_frozen(std::move(model), life.is_frozen);
    const bool disturbed =
        life.disturbed_rank == Life::kEveryRank || life.disturbed_rank == world.rank;
    Engine engine =
        EngineTestAccess::make(std::move(model), for_world(life.config, world), options,
                               disturbed ? life.disturbance : engine::Disturbance{}, world);
    outcome.first_step = engine.steps_done();
    outcome.first_digest = engine.digest();
    EXPECT_EQ(engine.data_position() > 0, engine.steps_done() > 0);
    while (engine.steps_done() < life.until_step) {
      engine.set_data_position(engine.data_position() + 3);
      const auto batches = tiny_batches(life.config.accumulation_steps * world.size,
                                        static_cast<uint64_t>(engine.steps_done()) + 100);
      const auto own = of_rank(views(batches), world);
      const StepResult result = engine.train_step(own);
      outcome.losses.push_back(result.loss);
      if (life.after_step) life.after_step(engine, result, world.rank);
    }
    outcome.digest = engine.digest();
    if (!life.save_as.empty()) engine.save_checkpoint(life.save_as);
  });
  for (const LifeOutcome& outcome : outcomes) {
    if (!failures[0].empty()) break;
    EXPECT_EQ(outcome.digest, outcomes[0].digest);
    EXPECT_EQ(outcome.losses, outcomes[0].losses);
  }
  outcomes[0].failures = failures;
  return outcomes[0];
}

Config recoverable_config(const std::string& nvme_path) {
  Config config = tiny_config();
  config.optimizer_state.fill({0, 0, 1});
  config.nvme_paths = {nvme_path};
  config.sub_group_numel = 5 * kGrainNumel;
  config.slots = 2;
  config.recovery = RecoveryChoice::step;
  config.compute_threads = config.optimizer_threads = 1;
  return config;
}

}  // namespace strata::testing_support
