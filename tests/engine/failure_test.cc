// A disk that fails ends the run with what failed, wherever in a step it does: in the initial
// writes, under forward, in the update, and behind the last step.
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

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

// A wrong argument is refused before any work, and loses nothing.
TEST(WrongArgumentTest, LeavesTheEngineAsItWas) {
  Engine::Options options;
  const Config config = tiny_config();
  options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
  const auto batches = tiny_batches(config.accumulation_steps, 5);
  const auto digest_after = [&](const std::function<void(Engine&)>& refused) {
    Engine engine = EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, {});
    engine.train_step(views(batches));
    refused(engine);
    engine.train_step(views(batches));
    return engine.digest();
  };
  const std::string digest = digest_after([](Engine&) {});
  const std::vector<int32_t> none;
  const std::vector<float> one = {1.0f};
  EXPECT_EQ(digest, digest_after([&](Engine& engine) {
              EXPECT_THROW(engine.train_step({}), ConfigError);
              EXPECT_THROW(engine.read_parameter("no such", StateKind::param), ConfigError);
              EXPECT_THROW(engine.write_parameter("transformer.wte.weight", one), ConfigError);
              EXPECT_THROW(engine.next_token_scores(none), ConfigError);
            }));
}

}  // namespace
}  // namespace strata
