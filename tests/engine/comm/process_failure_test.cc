// A rank that fails, leaves, stalls, disagrees or is killed ends the run on every rank, and each is
// told why: ranks as processes, over TCP and, where it is built in, under mpirun.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <tuple>

#include "tests/engine/comm/failure_scenarios.h"
#include "tests/temporary_directory.h"

namespace strata {
namespace {

using testing_support::failure_scenarios;
using testing_support::FailureScenario;
using testing_support::kScenarioRanks;
using testing_support::TemporaryDirectory;

constexpr char kNeverWritten[] = "(nothing was written)";

enum class Way { tcp, mpi };
#ifdef STRATA_MPIRUN
constexpr Way kWays[] = {Way::tcp, Way::mpi};
#else
constexpr Way kWays[] = {Way::tcp};
#define STRATA_MPIRUN ""
#endif

class ProcessFailureTest : public testing::Test {
 protected:
  // The exit status of the run as the shell has it.
  int run(const std::string& launcher, const std::string& scenario) const {
    const std::string command = launcher + " " STRATA_FAILURE_RANK " " + scenario + " " +
                                directory_.path() + " >" + directory_.path() + "/output 2>&1";
    return std::system(command.c_str());
  }
  int run_ranks(Way way, const std::string& scenario) const {
    const std::string ranks = std::to_string(kScenarioRanks);
    return run(way == Way::mpi ? STRATA_MPIRUN " -n " + ranks : STRATA_START_RANKS " " + ranks,
               scenario);
  }

  std::string told(int rank) const { return read("rank-" + std::to_string(rank)); }
  std::string read(const std::string& name) const {
    std::ifstream file(directory_.path() + "/" + name);
    if (!file) return kNeverWritten;
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const TemporaryDirectory directory_;
};

std::string way_name(Way way) { return way == Way::tcp ? "Tcp" : "Mpi"; }

class ProcessFailureScenarioTest
    : public ProcessFailureTest,
      public testing::WithParamInterface<std::tuple<FailureScenario, Way>> {};
INSTANTIATE_TEST_SUITE_P(Scenarios, ProcessFailureScenarioTest,
                         testing::Combine(testing::ValuesIn(failure_scenarios()),
                                          testing::ValuesIn(kWays)),
                         [](const auto& test) {
                           return std::get<0>(test.param).name + way_name(std::get<1>(test.param));
                         });

TEST_P(ProcessFailureScenarioTest, EveryRankIsToldWhoAndWhy) {
  const auto& [scenario, way] = GetParam();
  const int status = run_ranks(way, scenario.name);
  for (int rank = 0; rank < kScenarioRanks; ++rank) {
    const bool spared = rank == 1 && !scenario.rank_1_is_told;
    EXPECT_THAT(told(rank), testing::MatchesRegex(spared ? "" : scenario.told))
        << "rank " << rank << "\n"
        << read("output");
  }
  EXPECT_EQ(status == 0, scenario.told[0] == '\0') << read("output");
}

class KilledRankTest : public ProcessFailureTest, public testing::WithParamInterface<Way> {};
INSTANTIATE_TEST_SUITE_P(Ways, KilledRankTest, testing::ValuesIn(kWays),
                         [](const auto& test) { return way_name(test.param); });

TEST_P(KilledRankTest, IsNamedToTheOthersBeforeTheLauncherEndsThem) {
  EXPECT_NE(run_ranks(GetParam(), "killed"), 0);
  EXPECT_EQ(told(0), "rank 1 died") << read("output");
  EXPECT_EQ(told(1), kNeverWritten);
  EXPECT_EQ(told(2), "rank 1 died") << read("output");
}

TEST_F(ProcessFailureTest, AWorldThatMpiDoesNotSeeSaysHowToStart) {
  if (kWays[std::size(kWays) - 1] != Way::mpi) GTEST_SKIP() << "no MPI";
  run("env -u OMPI_COMM_WORLD_RANK RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", "end_well");
  EXPECT_EQ(told(1),
            "the launcher's variables say rank 1 of 2, MPI sees rank 0 of 1: start with "
            "mpirun -n 2 or srun --mpi=pmix, or set MASTER_ADDR and MASTER_PORT")
      << read("output");
}

}  // namespace
}  // namespace strata
