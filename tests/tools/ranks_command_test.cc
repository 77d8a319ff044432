// `strata train` under mpirun: one voice, one state, and one clear end when a rank is lost.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/tools/train_command.h"

namespace strata::testing_support {
namespace {

namespace fs = std::filesystem;
using testing::AnyOf;
using testing::HasSubstr;

class RanksCommandTest : public TrainCommandTest {
 protected:
  RanksCommandTest() { config_["strata"]["compute_threads"] = 1; }

  std::string mpirun(int ranks, const std::string& more) const {
    return std::string(STRATA_MPIRUN) + " -n " + std::to_string(ranks) +
           " --oversubscribe --bind-to none " + strata_binary() + " " + training(more);
  }
  // The process of that rank of a run on this test's directory; 0 while there is none.
  pid_t process_of_rank(int rank) const {
    const std::string variable = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      const std::string arguments = read(entry.path() / "cmdline");
      const std::string environment = read(entry.path() / "environ");
      if (arguments.find(directory_) != std::string::npos &&
          environment.find(variable + '\0') != std::string::npos) {
        return static_cast<pid_t>(std::stol(name));
      }
    }
    return 0;
  }
  int64_t steps_done() const {
    std::ifstream metrics(path("metrics.jsonl"));
    int64_t lines = 0;
    for (std::string line; std::getline(metrics, line);) ++lines;
    return lines;
  }
  static std::vector<std::string> lines_with(const std::string& text, const std::string& part) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
      if (line.find(part) != std::string::npos) lines.push_back(line);
    }
    return lines;
  }
};

TEST_F(RanksCommandTest, RankZeroSpeaksForAll) {
  const Result result =
      run(mpirun(2, "--steps 3 --digest --sample 5 --trace " + path("trace.json")));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* once : {"2 ranks over", "step 3/3", "validation loss", "digest ", "sample: 5"}) {
    EXPECT_EQ(lines_with(result.out, once).size(), 1u) << once << "\n" << result.out;
  }
  EXPECT_TRUE(fs::exists(path("trace.json")));
  EXPECT_THAT(read(path("trace.json")), HasSubstr("rank 0"));
  EXPECT_THAT(read(path("trace.json.rank1")), HasSubstr("rank 1"));
}

TEST_F(RanksCommandTest, KillingOneRankEndsTheOthersWithALineEach) {
  Result result;
  std::thread training(
      [&] { result = run(mpirun(3, "--steps 1000000 --metrics " + path("metrics.jsonl"))); });
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (steps_done() < 3 && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const pid_t victim = process_of_rank(1);
  EXPECT_GT(victim, 0);
  if (victim > 0) kill(victim, SIGKILL);
  training.join();
  EXPECT_NE(result.exit_code, 0);
  for (const char* speaker : {"strata (rank 0): ", "strata (rank 2): "}) {
    const auto lines = lines_with(result.err, speaker);
    ASSERT_EQ(lines.size(), 1u) << result.err;
    EXPECT_THAT(lines[0], HasSubstr("rank 1"));
  }
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename();
    EXPECT_THAT(name,
                AnyOf("data.txt", "model.json", "ds_config.json", "out", "err", "metrics.jsonl"));
  }
}

// Its checkpoint is one rank's: no command asks how many wrote it.
TEST_F(RanksCommandTest, ACheckpointOfTwoRanksIsWhole) {
  const Result trained = run(mpirun(2, "--steps 2 --output " + path("run")));
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const Result verified = strata("checkpoint verify " + path("run"));
  EXPECT_EQ(verified.exit_code, 0) << verified.err;
  EXPECT_THAT(verified.out, HasSubstr("step 2, "));
  const Result exported = strata("checkpoint export " + path("run") + " " + path("weights"));
  EXPECT_EQ(exported.exit_code, 0) << exported.err;
  const Result resharded = strata("checkpoint reshard " + path("run") + " " + path("new"));
  EXPECT_EQ(resharded.exit_code, 0) << resharded.err;
  // The same training state goes on from both, on one rank.
  const auto digest = [&](const std::string& checkpoint) {
    const Result result = train("--steps 3 --digest --resume " + checkpoint);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return lines_with(result.out, "digest ").at(0);
  };
  EXPECT_EQ(digest(path("new")), digest(path("run/checkpoints/latest")));
}

TEST_F(RanksCommandTest, APlanThatDoesNotFitIsRefused) {
  config_["strata"]["device_memory"] = 100000;
  const Result result = run(mpirun(2, "--steps 1"));
  EXPECT_EQ(result.exit_code, 3) << result.err;
  EXPECT_FALSE(lines_with(result.err, "the device tier needs").empty()) << result.err;
}

}  // namespace
}  // namespace strata::testing_support
