// Processes under MPI train to the bits of threads. CTest starts it under mpirun.
#include <gtest/gtest.h>

#include <string>

#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::failures_of_ranks;
using testing_support::run_tiny;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;

class MpiRanksTest : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(DTypes, MpiRanksTest, testing::Values(DType::bf16, DType::fp16),
                         [](const auto& param_info) {
                           return std::string(name(param_info.param));
                         });

// In fp16 the first steps overflow, and all ranks skip them.
TEST_P(MpiRanksTest, TrainToTheBitsOfThreads) {
  constexpr int kSteps = 8;
  const World world = World::from_environment();
  const TemporaryDirectory directory;
  Config config = tiny_config();
  config.nvme_paths = {directory.path()};
  config.dtype = GetParam();
  config.loss_scale = {.initial_power = 19, .hysteresis = 1};
  config.param = {0.5, 0.5, 0};
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
  EXPECT_EQ(processes.skipped_steps > 0, GetParam() == DType::fp16);
  EXPECT_LT(processes.skipped_steps, kSteps);
}

}  // namespace
}  // namespace strata
