// CPUs are divided without overlap, by nearness, and never beyond what the process may use.
#include "kernels/device/cpu_topology.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "strata/error.h"

namespace strata {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr const char* kTwoNodes = "pack:2 numa:1 core:4 pu:2";  // CPUs 0 to 7, and 8 to 15

std::vector<int> all_of(int cpus) {
  std::vector<int> numbers(static_cast<size_t>(cpus));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

std::vector<int> numbers_of(const std::vector<Cpu>& cpus) {
  std::vector<int> numbers;
  for (const Cpu& cpu : cpus) numbers.push_back(cpu.number);
  return numbers;
}

TEST(CpuTopologyTest, CpusAreOrderedByNodeCoreAndThread) {
  const Machine machine = synthetic_machine(kTwoNodes, all_of(16));
  EXPECT_EQ(machine.nodes, 2);
  ASSERT_EQ(machine.cpus.size(), 16u);
  for (int i = 0; i < 16; ++i) {
    const Cpu& cpu = machine.cpus[static_cast<size_t>(i)];
    EXPECT_EQ(cpu.number, i);
    EXPECT_EQ(cpu.core, i / 2);
    EXPECT_EQ(cpu.node, i / 8);
  }
  EXPECT_EQ(core_count(machine.cpus), 8);
  EXPECT_THAT(nodes_of(machine.cpus), ElementsAre(0, 1));
}

// As many machines number them: all cores' first threads, then all their second ones.
TEST(CpuTopologyTest, TheOrderIsNearnessAndNotTheSystemsNumbers) {
  const std::string numbered = "pack:2 numa:1 core:2 pu:2(indexes=0,4,1,5,2,6,3,7)";
  const Machine machine = synthetic_machine(numbered, all_of(8));
  EXPECT_THAT(numbers_of(machine.cpus), ElementsAre(0, 4, 1, 5, 2, 6, 3, 7));
  EXPECT_THAT(places_for(machine.cpus, 4), ElementsAre(ElementsAre(0, 4), ElementsAre(1, 5),
                                                       ElementsAre(2, 6), ElementsAre(3, 7)));
}

TEST(CpuTopologyTest, OnlyWhatIsAllowedIsUsed) {
  const Machine machine = synthetic_machine(kTwoNodes, {13, 2, 3, 6});
  EXPECT_THAT(numbers_of(machine.cpus), ElementsAre(2, 3, 6, 13));
  EXPECT_EQ(machine.nodes, 2);
  EXPECT_EQ(core_count(machine.cpus), 3);
  const std::vector<Cpu> first = share_of(machine.cpus, 0, 2);
  EXPECT_THAT(numbers_of(first), ElementsAre(2, 3));
  EXPECT_EQ(core_count(first), 1);
  EXPECT_THAT(nodes_of(first), ElementsAre(0));
  EXPECT_THROW(synthetic_machine(kTwoNodes, {16}), DeviceError);
  EXPECT_THROW(synthetic_machine("no machine", {0}), DeviceError);
}

class Division : public testing::TestWithParam<int> {};

TEST_P(Division, GivesEachCpuToOneRankAndThere) {
  const Machine machine = synthetic_machine(kTwoNodes, all_of(16));
  const int ranks = GetParam();
  std::vector<int> given;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::vector<Cpu> share = share_of(machine.cpus, rank, ranks);
    EXPECT_GE(static_cast<int>(share.size()), 16 / ranks);
    if (ranks == 2) {
      EXPECT_THAT(nodes_of(share), ElementsAre(rank));
    }
    for (int threads = 1; threads <= static_cast<int>(share.size()); ++threads) {
      const std::vector<CpuPlace> places = places_for(share, threads);
      ASSERT_EQ(places.size(), static_cast<size_t>(threads));
      std::vector<int> taken;
      for (const CpuPlace& place : places) {
        EXPECT_FALSE(place.empty());
        taken.insert(taken.end(), place.begin(), place.end());
      }
      EXPECT_EQ(taken, numbers_of(share)) << "to one thread each, in order, and all of them";
    }
    EXPECT_THAT(places_for(share, static_cast<int>(share.size()) + 1), IsEmpty());
    for (const int number : numbers_of(share)) given.push_back(number);
  }
  EXPECT_EQ(given, all_of(16));
}

INSTANTIATE_TEST_SUITE_P(Ranks, Division, testing::Values(1, 2, 3, 5, 8, 16));

TEST(CpuTopologyTest, ThisMachineIsWhatTheThreadMayUse) {
  std::thread([] {
    const CpuPlace allowed = place_of_this_thread();
    std::vector<int> found = numbers_of(this_machine().cpus);
    std::sort(found.begin(), found.end());
    EXPECT_EQ(found, allowed);
    bind_this_thread({allowed.back()});
    EXPECT_THAT(place_of_this_thread(), ElementsAre(allowed.back()));
    EXPECT_THAT(numbers_of(this_machine().cpus), ElementsAre(allowed.back()));
    EXPECT_THROW(bind_this_thread({1 << 16}), std::system_error) << "no machine has it";
  }).join();
}

}  // namespace
}  // namespace strata
