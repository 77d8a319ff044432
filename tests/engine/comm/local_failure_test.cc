// A rank that fails, leaves, stalls or disagrees ends the run on every rank, and each is told why:
// ranks as threads of one process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <latch>
#include <thread>

#include "engine/comm/local_group.h"
#include "strata/error.h"
#include "tests/engine/comm/failure_scenarios.h"

namespace strata {
namespace {

using testing_support::failure_scenarios;
using testing_support::FailureScenario;
using testing_support::kScenarioRanks;
using testing_support::on_every_rank;
using testing_support::Rank;

constexpr TrafficTag kTag = {StateKind::param, 0, "gather"};

// Over each transport alone, and with one that watches over a device's network.
class LocalFailureTest : public testing::TestWithParam<std::tuple<FailureScenario, bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(Scenarios, LocalFailureTest,
                         testing::Combine(testing::ValuesIn(failure_scenarios()), testing::Bool(),
                                          testing::Bool()),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) +
                                  (std::get<1>(test.param) ? "Fabric" : "") +
                                  (std::get<2>(test.param) ? "Tcp" : "");
                         });

TEST_P(LocalFailureTest, EveryRankIsToldWhoAndWhy) {
  const auto& [scenario, fabric, tcp] = GetParam();
  std::array<std::string, kScenarioRanks> told;
  on_every_rank(
      {.size = kScenarioRanks, .fabric = fabric, .tcp = tcp, .timeout_s = scenario.timeout_s},
      [&](Rank& rank) { told[rank.rank()] = told_in(scenario, rank); });
  for (int rank = 0; rank < kScenarioRanks; ++rank) {
    const bool spared = rank == 1 && !scenario.rank_1_is_told;
    EXPECT_THAT(told[rank], testing::MatchesRegex(spared ? "" : scenario.told)) << "rank " << rank;
    EXPECT_LT(told[rank].size(), 2048u);
  }
}

TEST(LocalAbort, EndsTheWaitsOfItsOwnRankToo) {
  std::latch aborted(1);
  on_every_rank({.size = 2}, [&](Rank& rank) {
    std::array<std::byte, 20> flat = {};
    if (rank.rank() == 0) {
      rank.communicator->all_gather(flat.data(), 10, kTag);
      std::thread([&] { rank.communicator->abort("enough"); }).join();
      EXPECT_THAT([&] { rank.queue->synchronize(); },
                  testing::ThrowsMessage<CommError>("rank 0 failed: enough"));
      aborted.count_down();
    }
    aborted.wait();
  });
}

// What a rank gave is freed as soon as its wait has thrown. AddressSanitizer sees who reads on.
TEST(LocalAbort, NobodyReadsOnFromARankThatWasTold) {
  constexpr uint64_t kShardBytes = 3 << 20;
  for (int round = 0; round < 20; ++round) {
    on_every_rank({.size = 3}, [&](Rank& rank) {
      auto flat = std::make_unique<std::vector<std::byte>>(3 * kShardBytes);
      rank.communicator->all_gather(flat->data(), kShardBytes, kTag);
      if (rank.rank() == round % 3) {
        std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
        rank.communicator->abort("now");
      }
      try {
        rank.queue->synchronize();
      } catch (const CommError&) {
      }
      flat.reset();
    });
  }
}

TEST(LocalStall, RanksThatNeverConnectAreNamed) {
  const std::vector<World> worlds = World::local(4);
  NullTrafficSink sink;
  const auto ops = ops::make_host_state_ops();
  std::array<std::string, 2> told;
  {
    std::vector<std::jthread> threads;
    for (const int rank : {0, 2}) {
      threads.emplace_back([&, rank] {
        const auto queue = make_host_queue({.name = "compute"}, {}, sink);
        try {
          engine::make_communicator(worlds[rank], *queue, *ops, {.timeout_s = 0.2}, sink);
        } catch (const CommError& error) {
          told[rank / 2] = error.what();
        }
      });
    }
  }
  EXPECT_EQ(told[0], "ranks 1 and 3 did not come to make_communicator within 0.2 s");
  EXPECT_EQ(told[1], told[0]);
}

TEST(LocalWorld, ARankOutsideItsGroupIsRefused) {
  World world = World::local(2)[0];
  NullTrafficSink sink;
  const auto ops = ops::make_host_state_ops();
  const auto queue = make_host_queue({.name = "compute"}, {}, sink);
  world.rank = 2;
  EXPECT_THROW(engine::make_communicator(world, *queue, *ops, {}, sink), ConfigError);
  EXPECT_THROW(World::local(0), ConfigError);
}

TEST(SingleProcess, NeedsNeitherLauncherNorGroup) {
  NullTrafficSink sink;
  const auto ops = ops::make_host_state_ops();
  const auto queue = make_host_queue({.name = "compute"}, {}, sink);
  const auto communicator = engine::make_communicator(World{}, *queue, *ops, {}, sink);
  EXPECT_EQ(communicator->size(), 1);
  EXPECT_EQ(communicator->description(), "1 rank");
  communicator->abort("no more");
  std::array<std::byte, 4> mine = {};
  std::array<std::byte, 4> all = {};
  EXPECT_THAT([&] { communicator->exchange(mine, all); },
              testing::ThrowsMessage<CommError>("rank 0 failed: no more"));
}

}  // namespace
}  // namespace strata
