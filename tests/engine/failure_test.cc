// A disk that fails ends the run with what failed, wherever in a step it does: in the initial
// writes, under forward, in the update, and behind the last step.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::TemporaryDirectory;
using testing_support::tiny_batches;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;
using testing_support::views;

TEST(DiskFailureTest, EndsTheRunWithAnIoErrorAtEveryTransfer) {
  const TemporaryDirectory directory;
  Config config = tiny_config();
  config.nvme_paths = {directory.path()};
  config.optimizer_state.fill({0, 0, 1});
  config.sub_group_numel = 8 * kGrainNumel;
  config.staging_buffers = 8;
  Engine::Options options;
  options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
  const auto batches = tiny_batches(config.accumulation_steps, 5);

  std::set<std::string> places;  // where failures were met
  int64_t fail_at = 0;
  for (bool failed = true; failed; fail_at += 3) {
    engine::Disturbance disturbance;
    disturbance.io = io::FaultPlan{.fail_at = fail_at};
    failed = false;
    const char* place = "start";
    try {
      Engine engine =
          EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, disturbance);
      place = "step";
      engine.train_step(views(batches));
      engine.train_step(views(batches));
      place = "settle";
      engine.settle();
    } catch (const IoError& error) {
      failed = true;
      EXPECT_EQ(error.error_number, EIO);
      places.insert(place);
    }
    ASSERT_LT(fail_at, 2000) << "a run of two steps ends";
  }
  EXPECT_EQ(places, (std::set<std::string>{"start", "step", "settle"}));
}

}  // namespace
}  // namespace strata
