// Processes train to the bits of threads. CTest starts it as ranks over TCP and under mpirun.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::failures_of_ranks;
using testing_support::run_tiny;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;

class ProcessRanksTest : public testing::TestWithParam<std::tuple<DType, int>> {};

INSTANTIATE_TEST_SUITE_P(DTypesAndStages, ProcessRanksTest,
                         testing::Combine(testing::Values(DType::bf16, DType::fp16),
                                          testing::Values(0, 1, 2, 3)),
                         [](const auto& param_info) {
                           return std::string(name(std::get<0>(param_info.param))) + "_stage_" +
                                  std::to_string(std::get<1>(param_info.param));
                         });

// In fp16 the first steps overflow, and all ranks skip them.
TEST_P(ProcessRanksTest, TrainToTheBitsOfThreads) {
  constexpr int kSteps = 8;
  const World world = World::from_environment();
  const TemporaryDirectory directory;
  Config config = tiny_config();
  config.nvme_paths = {directory.path()};
  const auto [dtype, stage] = GetParam();
  config.dtype = dtype;
  config.stage = stage;
  config.loss_scale = {.initial_power = 19, .hysteresis = 1};
  if (stage == 3) config.param = {0.5, 0.2, 0.3};
  config.grad = {0, 0.5, 0.5};
  config.activation = {0, 0.5, 0.5};
  config.optimizer_state.fill({0.2, 0.37, 0.43});
  config.sub_group_numel = 2 * kGrainNumel;
  config.reduce_bucket_numel = 1;
  config.compute_threads = config.optimizer_threads = 1;
  const RunOutcome processes = run_tiny(config, kSteps, {}, world);

  RunOutcome threads;
  const auto failures = failures_of_ranks(world.size, [&](const World& local) {
    const RunOutcome outcome = run_tiny(config, kSteps, {}, local);
    if (local.rank == 0) threads = outcome;
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  EXPECT_EQ(processes.digest, threads.digest);
  EXPECT_EQ(processes.losses, threads.losses);
  EXPECT_EQ(processes.loss_scales, threads.loss_scales);
  EXPECT_EQ(processes.skipped_steps > 0, dtype == DType::fp16);
  EXPECT_LT(processes.skipped_steps, kSteps);
}

}  // namespace
}  // namespace strata
