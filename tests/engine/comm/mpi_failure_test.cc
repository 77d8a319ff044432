// A rank that fails, leaves, stalls, disagrees or is killed ends the run on every rank, and each is
// told why: ranks as processes, started here with mpirun.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/engine/comm/failure_scenarios.h"
#include "tests/temporary_directory.h"

namespace strata {
namespace {

using testing_support::failure_scenarios;
using testing_support::FailureScenario;
using testing_support::kScenarioRanks;
using testing_support::TemporaryDirectory;

constexpr char kNeverWritten[] = "(nothing was written)";

class MpiFailureTest : public testing::Test {
 protected:
  // The exit status of the run as the shell has it.
  int run(const std::string& launcher, const std::string& scenario) const {
    const std::string command = launcher + " " STRATA_FAILURE_RANK " " + scenario + " " +
                                directory_.path() + " >" + directory_.path() + "/output 2>&1";
    return std::system(command.c_str());
  }
  int run_ranks(const std::string& scenario) const {
    return run(STRATA_MPIRUN " -n " + std::to_string(kScenarioRanks), scenario);
  }

  std::string told(int rank) const { return read("rank-" + std::to_string(rank)); }
  std::string read(const std::string& name) const {
    std::ifstream file(directory_.path() + "/" + name);
    if (!file) return kNeverWritten;
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const TemporaryDirectory directory_;
};

class MpiFailureScenarioTest : public MpiFailureTest,
                               public testing::WithParamInterface<FailureScenario> {};
INSTANTIATE_TEST_SUITE_P(Scenarios, MpiFailureScenarioTest, testing::ValuesIn(failure_scenarios()),
                         [](const testing::TestParamInfo<FailureScenario>& scenario) {
                           return std::string(scenario.param.name);
                         });

TEST_P(MpiFailureScenarioTest, EveryRankIsToldWhoAndWhy) {
  const FailureScenario& scenario = GetParam();
  const int status = run_ranks(scenario.name);
  for (int rank = 0; rank < kScenarioRanks; ++rank) {
    const bool spared = rank == 1 && !scenario.rank_1_is_told;
    EXPECT_THAT(told(rank), testing::MatchesRegex(spared ? "" : scenario.told))
        << "rank " << rank << "\n"
        << read("output");
  }
  EXPECT_EQ(status == 0, scenario.told[0] == '\0') << read("output");
}

TEST_F(MpiFailureTest, AKilledRankIsNamedToTheOthersBeforeMpirunEndsThem) {
  EXPECT_NE(run_ranks("killed"), 0);
  EXPECT_EQ(told(0), "rank 1 died") << read("output");
  EXPECT_EQ(told(1), kNeverWritten);
  EXPECT_EQ(told(2), "rank 1 died") << read("output");
}

TEST_F(MpiFailureTest, AWorldThatMpiDoesNotSeeSaysHowToStart) {
  run("env -u OMPI_COMM_WORLD_RANK RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", "end_well");
  EXPECT_EQ(told(1),
            "the launcher's variables say rank 1 of 2, MPI sees rank 0 of 1: start with "
            "mpirun -n 2, or with srun --mpi=pmix")
      << read("output");
}

}  // namespace
}  // namespace strata
