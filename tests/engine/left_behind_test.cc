// P7: however a process ends, its scratch is gone with it. What stays in the directories of
// nvme_path is a run's state files, from which it goes on; and they go when the run is gone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/checkpoint/run_directory.h"
#include "tests/engine/resumed_run.h"
#include "tests/temporary_directory.h"

namespace strata {
namespace {

namespace fs = std::filesystem;
using testing::IsEmpty;
using testing_support::failures_of_ranks;
using testing_support::TemporaryDirectory;

constexpr int kEnd = 4;
constexpr int kSignalled = 2;  // steps that are done when a signal comes

struct Mode {
  const char* name;
  RecoveryChoice recovery;
  bool has_directory = true;
  int ranks = 1;
};

// One process of a run: to its end, unless something comes between.
struct Process {
  int signal = 0;        // raised behind a step, with its writes under way; 0: none
  int64_t fail_at = -1;  // the last rank's transfer that ends in EIO; -1: none
};

// What a process exits with.
constexpr int kFailedAtStart = 1, kFailedInStep = 2;

// A person's SIGTERM, as `strata train` takes it.
std::atomic<int> stop = 0;

class LeftBehindTest : public testing::TestWithParam<Mode> {
 protected:
  LeftBehindTest() {
    for (const std::string& path : paths_) fs::create_directory(path);
  }

  // Runs a process; how it ended, as waitpid() says.
  int live(const Process& process, const Mode& mode = GetParam()) const {
    const pid_t child = fork();
    if (child == 0) {
      std::signal(SIGTERM, [](int) { stop = 1; });
      std::atomic<int> steps = 0;
      const auto failures = failures_of_ranks(
          mode.ranks, [&](const World& world) { train(mode, process, world, steps); });
      const bool failed = std::ranges::any_of(failures, [](auto& text) { return !text.empty(); });
      _exit(!failed ? 0 : steps == 0 ? kFailedAtStart : kFailedInStep);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
  }

  void train(const Mode& mode, const Process& process, const World& world,
             std::atomic<int>& steps) const {
    const Config config = testing_support::for_world(config_of(mode), world);
    Engine::Options options;
    options.micro_batch = {config.micro_batch, testing_support::tiny_gpt2().n_positions};
    options.stop = &stop;
    if (mode.has_directory) {
      (engine::RunDirectory::exists(run_) ? options.resume : options.run_directory) = run_;
    }
    engine::Disturbance disturbance;
    if (world.rank == world.size - 1) disturbance.io = io::FaultPlan{.fail_at = process.fail_at};
    Engine engine = EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), config,
                                           options, disturbance, world);
    while (engine.steps_done() < kEnd) {
      const auto batches = testing_support::tiny_batches(
          config.accumulation_steps * world.size, static_cast<uint64_t>(engine.steps_done()) + 100);
      const auto own = testing_support::of_rank(testing_support::views(batches), world);
      if (engine.train_step(own).stop != 0) return engine.settle();
      if (world.rank > 0) continue;
      ++steps;
      if (engine.steps_done() == kSignalled && process.signal != 0) std::raise(process.signal);
    }
    const std::string digest = engine.digest();
    if (world.rank == 0) std::ofstream(result_) << digest;
  }

  Config config_of(const Mode& mode) const {
    Config config = testing_support::recoverable_config(paths_[0]);
    config.nvme_paths = paths_;
    config.nvme_weights = {1, 1};
    config.recovery = mode.recovery;
    config.slots = keeps_state(mode) ? 2 : 1;
    config.param = {0, 0, 1};  // scratch beside the state, in every mode
    return config;
  }
  static bool keeps_state(const Mode& mode) { return mode.recovery == RecoveryChoice::step; }

  // What lies under a directory, with ID for the run's own.
  std::vector<std::string> listing(const std::string& path) const {
    const std::string id =
        engine::RunDirectory::exists(run_) ? engine::RunDirectory::read(run_).id : "no run";
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      std::string name = fs::relative(entry.path(), path).string();
      const size_t at = name.find(id);
      if (at != std::string::npos) name.replace(at, id.size(), "ID");
      names.push_back(name);
    }
    return names;
  }

  void expect_state_files_alone() const {
    if (!keeps_state(GetParam())) {
      for (const std::string& path : paths_) EXPECT_THAT(listing(path), IsEmpty()) << path;
      return;
    }
    std::vector<std::string> first = {"strata-ID"}, second = first;
    for (int rank = 0; rank < GetParam().ranks; ++rank) {
      const std::string name = "strata-ID/rank-" + std::to_string(rank);
      for (const char* suffix : {".state", ".journal", ".json", ".lock"}) {
        first.push_back(name + suffix);
      }
      second.push_back(name + ".state");
    }
    EXPECT_THAT(listing(paths_[0]), testing::UnorderedElementsAreArray(first));
    EXPECT_THAT(listing(paths_[1]), testing::UnorderedElementsAreArray(second));
  }

  // Goes on, or starts again where nothing was kept.
  std::string digest_at_the_end() const {
    fs::remove(result_);
    EXPECT_EQ(live({}), 0);
    expect_state_files_alone();
    std::string digest;
    std::ifstream(result_) >> digest;
    return digest;
  }
  // The next start finds a run whose directory is gone, and cleans up after it.
  void forget_run() const { fs::remove_all(run_); }

  TemporaryDirectory directory_;
  const std::vector<std::string> paths_ = {directory_.path() + "/a", directory_.path() + "/b"};
  const std::string run_ = directory_.path() + "/run";
  const std::string result_ = directory_.path() + "/result";
};

TEST_P(LeftBehindTest, NoScratchAfterAnExitOrASignal) {
  const std::string whole = digest_at_the_end();
  EXPECT_EQ(whole.size(), 32u);
  for (const int signal : {SIGTERM, SIGKILL}) {
    SCOPED_TRACE(signal);
    forget_run();
    const int end = live({.signal = signal});
    if (signal == SIGKILL) {
      EXPECT_TRUE(WIFSIGNALED(end));
    } else {
      EXPECT_EQ(end, 0);
    }
    expect_state_files_alone();
    EXPECT_EQ(digest_at_the_end(), whole);
  }
  // Whoever starts next, in whatever mode.
  forget_run();
  EXPECT_EQ(live({}, {"Scratch", RecoveryChoice::checkpoint, /*has_directory=*/false}), 0);
  for (const std::string& path : paths_) EXPECT_THAT(listing(path), IsEmpty()) << path;
}

// Wherever a transfer fails.
TEST_P(LeftBehindTest, NoScratchAfterAnException) {
  const std::string whole = digest_at_the_end();
  constexpr int64_t kStride = 97;
  bool failed_in_step = false;
  int end = kFailedAtStart;
  for (int64_t fail_at = 0; end != 0; fail_at += kStride) {
    SCOPED_TRACE(fail_at);
    ASSERT_LT(fail_at, 5000) << "a run of some steps ends";
    forget_run();
    end = live({.fail_at = fail_at});
    ASSERT_TRUE(WIFEXITED(end));
    failed_in_step = failed_in_step || WEXITSTATUS(end) == kFailedInStep;
    expect_state_files_alone();
    EXPECT_EQ(digest_at_the_end(), whole);
  }
  EXPECT_TRUE(failed_in_step);
}

INSTANTIATE_TEST_SUITE_P(Modes, LeftBehindTest,
                         testing::Values(Mode{"Scratch", RecoveryChoice::checkpoint,
                                              /*has_directory=*/false},
                                         Mode{"Checkpoint", RecoveryChoice::checkpoint},
                                         Mode{"Step", RecoveryChoice::step},
                                         Mode{"StepOnTwoRanks", RecoveryChoice::step, true, 2}),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace strata
