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

TEST(MpiRanksTest, TrainToTheBitsOfThreads) {
  const World world = World::from_environment();
  const TemporaryDirectory directory;
  Config config = tiny_config();
  config.nvme_paths = {directory.path()};
  config.param = {0.5, 0.5, 0};
  config.optimizer_state.fill({0.2, 0.37, 0.43});
  config.sub_group_numel = 2 * kGrainNumel;
  config.reduce_bucket_numel = 1;
  config.compute_threads = config.optimizer_threads = 1;
  const RunOutcome processes = run_tiny(config, 3, {}, world);

  RunOutcome threads;
  const auto failures = failures_of_ranks(world.size, [&](const World& local) {
    const RunOutcome outcome = run_tiny(config, 3, {}, local);
    if (local.rank == 0) threads = outcome;
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  EXPECT_EQ(processes.digest, threads.digest);
  EXPECT_EQ(processes.losses, threads.losses);
}

}  // namespace
}  // namespace strata
