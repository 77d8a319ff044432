// P3 and P7: SIGKILL at seeded moments of a training, from its first file to the removal of its
// last, each followed by another start, changes no bit and leaves nothing behind.
//
// STRATA_KILLS=200 makes it 200 kills a case instead of 20.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/checkpoint/run_directory.h"
#include "engine/checkpoint/state_directory.h"
#include "strata/error.h"
#include "tests/engine/killing.h"
#include "tests/engine/resumed_run.h"
#include "tests/free_port.h"
#include "tests/temporary_directory.h"

namespace strata {
namespace {

namespace fs = std::filesystem;
using testing_support::failures_of_ranks;
using testing_support::kill_by;
using testing_support::KillMoment;
using testing_support::KillPhase;
using testing_support::KillPlan;
using testing_support::kKillPhases;
using testing_support::TemporaryDirectory;

constexpr int kSteps = 6;
constexpr int kCheckpointEvery = 2;

struct Case {
  const char* name;
  RecoveryChoice recovery;
  int ranks = 1;
  bool processes = false;  // ranks are, or threads of one
};

int kills() {
  const char* const asked = std::getenv("STRATA_KILLS");
  return asked == nullptr ? 20 : std::max(1, std::atoi(asked));
}

class Kill : public testing::TestWithParam<Case> {
 protected:
  // Where a run lives.
  struct Place {
    std::string path;
    std::string root() const { return path + "/life"; }  // of what a kill may come amid
    std::string nvme() const { return root() + "/nvme"; }
    std::string run() const { return root() + "/run"; }
    std::string result() const { return path + "/result"; }
  };

  static Config config(const Place& place) {
    Config config = testing_support::recoverable_config(place.nvme());
    config.recovery = GetParam().recovery;
    config.slots = config.recovery == RecoveryChoice::step ? 2 : 1;
    config.io_engine = IoChoice::threads;
    config.comm_timeout_s = 60;
    return config;
  }

  // As `strata train`: from where the run is to its end, with checkpoints on the way and one there,
  // which takes the place of all else.
  static void train(const Place& place, const World& world, bool goes_on) {
    Engine::Options options;
    options.micro_batch = {2, testing_support::tiny_gpt2().n_positions};
    (goes_on ? options.resume : options.run_directory) = place.run();
    const Config config = testing_support::for_world(Kill::config(place), world);
    Engine engine(models::gpt2(testing_support::tiny_gpt2()), config, world, options);
    while (engine.steps_done() < kSteps) {
      const auto batches = testing_support::tiny_batches(
          config.accumulation_steps * world.size, static_cast<uint64_t>(engine.steps_done()) + 100);
      const auto own = testing_support::of_rank(testing_support::views(batches), world);
      engine.train_step(own);
      if (engine.steps_done() % kCheckpointEvery == 0 && engine.steps_done() < kSteps) {
        engine.begin_checkpoint(1);
      }
    }
    engine.save_checkpoint(1);
    const std::string digest = engine.digest();
    if (GetParam().recovery == RecoveryChoice::step) engine.remove_state_files();
    if (world.rank == 0) std::ofstream(place.result()) << digest;
  }

  // A life of the run in processes of its own. Returns how they ended.
  static std::vector<int> live(const Place& place, const KillPlan& plan, int victim) {
    const Case& c = GetParam();
    const bool goes_on = engine::RunDirectory::exists(place.run());
    const int processes = c.processes ? c.ranks : 1;
    const int port = testing_support::free_port();
    std::vector<pid_t> children;
    for (int i = 0; i < processes; ++i) {
      const pid_t child = fork();
      if (child == 0) {
        kill_by(i == victim ? plan : KillPlan{}, place.root());
        _exit(body(place, goes_on, i, port));
      }
      children.push_back(child);
    }
    std::vector<int> ends;
    for (const pid_t child : children) waitpid(child, &ends.emplace_back(), 0);
    return ends;
  }

  static int body(const Place& place, bool goes_on, int process, int port) {
    const Case& c = GetParam();
    try {
      if (c.processes) {
        for (const auto& [variable, value] : {std::pair{"RANK", process},
                                              {"LOCAL_RANK", process},
                                              {"WORLD_SIZE", c.ranks},
                                              {"LOCAL_WORLD_SIZE", c.ranks},
                                              {"MASTER_PORT", port}}) {
          setenv(variable, std::to_string(value).c_str(), 1);
        }
        setenv("MASTER_ADDR", "127.0.0.1", 1);
        train(place, World::from_environment(), goes_on);
        write_operations(place, process);
        return 0;
      }
      const auto failures =
          failures_of_ranks(c.ranks, [&](const World& world) { train(place, world, goes_on); });
      for (const std::string& failure : failures) {
        if (!failure.empty()) throw Error(failure);
      }
      write_operations(place, process);
      return 0;
    } catch (const CommError&) {
      return 3;  // another rank is gone
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 1;
    }
  }

  // Of a process that lived to its end.
  using Operations = std::array<int64_t, kKillPhases>;
  static std::string operations_path(const Place& place, int process) {
    return place.path + "/operations-" + std::to_string(process);
  }
  static void write_operations(const Place& place, int process) {
    std::ofstream file(operations_path(place, process));
    for (const int64_t count : testing_support::operations()) file << count << ' ';
  }
  static Operations read_operations(const Place& place, int process) {
    Operations operations = {};
    std::ifstream file(operations_path(place, process));
    for (int64_t& count : operations) file >> count;
    return operations;
  }

  // With state of a run that is gone, which the first start has to clean up.
  static Place make_place(const std::string& path) {
    const Place place = {path};
    fs::create_directories(place.nvme());
    constexpr uint64_t kBytes = 64 << 10;
    NullLogSink log;
    const std::string gone = place.root() + "/gone";
    engine::StateDirectory({gone, "0123456789abcdef", 0}, {place.nvme()})
        .create({{place.nvme()}, {1}}, kBytes, kBytes, /*layout=*/0, {}, log);
    return place;
  }
  // Files under a path. Of a folder that was being removed, an empty one may stay.
  static std::vector<std::string> listing(const std::string& path) {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (!entry.is_directory()) names.push_back(fs::relative(entry.path(), path));
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  static std::string digest(const Place& place) {
    std::string digest;
    std::ifstream(place.result()) >> digest;
    return digest;
  }
};

TEST_P(Kill, EndsWithTheBitsOfARunThatWasNotKilled) {
  TemporaryDirectory directory;
  // Not killed: its end, and how many operations each phase has.
  const Place whole = make_place(directory.path() + "/whole");
  ASSERT_THAT(live(whole, {}, 0), testing::Each(0));
  const std::string expected = digest(whole);
  ASSERT_EQ(expected.size(), 32u);
  EXPECT_TRUE(fs::is_empty(whole.nvme()));
  const std::vector<std::string> kept = listing(whole.run());
  std::vector<Operations> operations;  // by process
  for (int i = 0; i < (GetParam().processes ? GetParam().ranks : 1); ++i) {
    operations.push_back(read_operations(whole, i));
  }
  std::vector<KillPhase> phases;
  for (size_t i = 0; i < kKillPhases; ++i) {
    if (operations[0][i] > 0) phases.push_back(static_cast<KillPhase>(i));
  }
  // With checkpoints alone nothing is journaled.
  const bool has_journal = GetParam().recovery == RecoveryChoice::step;
  ASSERT_EQ(phases.size(), kKillPhases - (has_journal ? 0 : 1));

  std::mt19937_64 random(20);
  std::array<int, kKillPhases> hits = {};
  for (int i = 0; i < kills(); ++i) {
    const Place place = make_place(directory.path() + "/" + std::to_string(i));
    const KillPhase phase = phases[static_cast<size_t>(i) % phases.size()];
    bool killed = false;
    bool ended = false;  // every process of a life by itself
    for (int life = 0; life < 50 && !ended; ++life) {
      size_t victim = random() % operations.size();
      if (operations[victim][static_cast<size_t>(phase)] == 0) victim = 0;  // it renames for all
      const auto count = static_cast<uint64_t>(operations[victim][static_cast<size_t>(phase)]);
      const KillPlan plan = {phase, static_cast<int64_t>(random() % count),
                             static_cast<KillMoment>(random() % 3)};
      // Once killed it may go on; sometimes it is killed again first.
      const bool again = !killed || random() % 3 == 0;
      const auto ends = live(place, again ? plan : KillPlan{}, static_cast<int>(victim));
      ended = testing::Value(ends, testing::Each(0));
      for (size_t rank = 0; rank < ends.size(); ++rank) {
        const bool was_killed = WIFSIGNALED(ends[rank]) && WTERMSIG(ends[rank]) == SIGKILL;
        if (was_killed) {
          killed = true;
          ++hits[static_cast<size_t>(phase)];
          continue;
        }
        ASSERT_TRUE(WIFEXITED(ends[rank]));
        const bool alone = ends.size() == 1;
        ASSERT_TRUE(WEXITSTATUS(ends[rank]) == 0 || (!alone && WEXITSTATUS(ends[rank]) == 3))
            << "kill " << i << " in " << name(phase) << ", operation " << plan.at << ", moment "
            << static_cast<int>(plan.moment) << ", rank " << rank;
      }
    }
    ASSERT_EQ(digest(place), expected) << "kill " << i << " in " << name(phase);
    EXPECT_THAT(listing(place.nvme()), testing::IsEmpty()) << "kill " << i << " in " << name(phase);
    EXPECT_EQ(listing(place.run()), kept) << "kill " << i << " in " << name(phase);
    fs::remove_all(place.path);
  }
  for (const KillPhase phase : phases) {
    std::printf("killed in %-10s %3d times\n", std::string(name(phase)).c_str(),
                hits[static_cast<size_t>(phase)]);
    EXPECT_GT(hits[static_cast<size_t>(phase)], 0) << name(phase);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, Kill,
                         testing::Values(Case{"Step", RecoveryChoice::step},
                                         Case{"StepOnTwoRanks", RecoveryChoice::step, 2},
                                         Case{"StepOnTwoProcesses", RecoveryChoice::step, 2, true},
                                         Case{"Checkpoint", RecoveryChoice::checkpoint},
                                         Case{"CheckpointOnTwoProcesses",
                                              RecoveryChoice::checkpoint, 2, true}),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace strata
