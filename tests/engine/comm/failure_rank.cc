// One process of a run that ends badly: plays its part and writes what it was told to
// DIRECTORY/rank-R. Started by process_failure_test.
//
//   failure_rank SCENARIO DIRECTORY
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>

#include "strata/clock.h"
#include "strata/error.h"
#include "tests/engine/comm/failure_scenarios.h"

namespace strata::testing_support {
namespace {

void be_killed(Rank& rank) {
  std::vector<std::byte> flat(300);
  for (int step = 0; step < 1000; ++step) {
    if (rank.rank() == 1 && step == 10) raise(SIGKILL);
    rank.communicator->all_gather(flat.data(), 100, {StateKind::param, 0, "gather"});
    rank.queue->synchronize();
  }
}

constexpr FailureScenario kKilled = {
    .name = "killed", .run = be_killed, .timeout_s = 120, .told = "rank 1 died"};

const FailureScenario& scenario_named(std::string_view name) {
  for (const FailureScenario& scenario : failure_scenarios()) {
    if (scenario.name == name) return scenario;
  }
  return kKilled;
}

std::string file_of(int rank, const std::string& directory) {
  return directory + "/rank-" + std::to_string(rank);
}

// A launcher ends those who are still at it when the first one exits.
void wait_for_all(int ranks, const std::string& directory) {
  const int64_t deadline_ns = now_ns() + 20'000'000'000;
  for (int rank = 0; rank < ranks; ++rank) {
    while (!std::filesystem::exists(file_of(rank, directory)) && now_ns() < deadline_ns) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
}

int play(const FailureScenario& scenario, const std::string& directory) {
  const World world = World::from_environment();
  std::string told;
  bool connected = false;
  try {
    Rank rank(world, {.size = world.size, .timeout_s = scenario.timeout_s});
    connected = true;
    told = told_in(scenario, rank);
  } catch (const Error& error) {
    told = error.what();
  }
  std::ofstream(file_of(world.rank, directory)) << told;
  if (told.empty()) return 0;
  if (connected && scenario.run != be_killed) wait_for_all(world.size, directory);
  return 1;
}

}  // namespace
}  // namespace strata::testing_support

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s SCENARIO DIRECTORY\n", argv[0]);
    return 2;
  }
  // mpirun sends it to all when one is lost, and SIGKILL a second later: time enough to be told.
  std::signal(SIGTERM, SIG_IGN);
  using strata::testing_support::play;
  return play(strata::testing_support::scenario_named(argv[1]), argv[2]);
}
