// The update's threads keep to this rank's CPUs, nobody else is bound, and ranks that share a
// machine never crowd onto the same cores.
#include "engine/runtime/cpu_binding.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/tiny_run.h"
#include "tests/environment_variable.h"

namespace strata::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Machine two_nodes() {
  std::vector<int> all(16);
  std::iota(all.begin(), all.end(), 0);
  return synthetic_machine("pack:2 numa:1 core:4 pu:2", all);
}

World local(int rank, int size) {
  World world;
  world.rank = world.local_rank = rank;
  world.size = world.local_size = size;
  return world;
}

class CpuBindingTest : public testing::Test {
 protected:
  EnvironmentVariable proc_bind_{"OMP_PROC_BIND"};
  EnvironmentVariable places_{"OMP_PLACES"};
  EnvironmentVariable affinity_{"GOMP_CPU_AFFINITY"};
  EnvironmentVariable dynamic_{"OMP_DYNAMIC"};
  EnvironmentVariable limit_{"OMP_THREAD_LIMIT"};
};

TEST_F(CpuBindingTest, OneRankTakesTheWholeMachine) {
  const CpuBinding binding = cpu_binding({}, {}, two_nodes(), 8);
  ASSERT_EQ(binding.places.size(), 8u);
  EXPECT_THAT(binding.places[0], ElementsAre(0, 1)) << "a core with both its threads";
  EXPECT_THAT(binding.places[7], ElementsAre(14, 15));
  EXPECT_THAT(binding.memory_nodes, ElementsAre(0, 1));
  EXPECT_EQ(binding.description, "update threads on 8 cores of 2 NUMA nodes");
}

TEST_F(CpuBindingTest, RanksOfOneMachineTakeAPartEach) {
  std::set<int> taken;
  for (int rank = 0; rank < 4; ++rank) {
    const CpuBinding binding = cpu_binding({}, local(rank, 4), two_nodes(), 4);
    ASSERT_EQ(binding.places.size(), 4u);
    for (const CpuPlace& place : binding.places) {
      for (const int cpu : place) EXPECT_TRUE(taken.insert(cpu).second) << "CPU " << cpu;
    }
    EXPECT_THAT(binding.memory_nodes, ElementsAre(rank / 2));
    EXPECT_EQ(binding.description, "update threads on 2 cores of 1 NUMA node");
  }
  EXPECT_EQ(taken.size(), 16u);
}

// The launcher has divided the machine already.
TEST_F(CpuBindingTest, ARankWithCpusOfItsOwnTakesThemAll) {
  World world = local(1, 2);
  world.bound = true;
  const Machine own = synthetic_machine("pack:2 numa:1 core:4 pu:2", {8, 9, 10, 11});
  const CpuBinding binding = cpu_binding({}, world, own, 2);
  EXPECT_THAT(binding.places, ElementsAre(ElementsAre(8, 9), ElementsAre(10, 11)));
  EXPECT_THAT(binding.memory_nodes, ElementsAre(1));
}

TEST_F(CpuBindingTest, NothingIsBoundWhereCpusAreTooFew) {
  const Machine three = synthetic_machine("pack:2 numa:1 core:4 pu:2", {0, 1, 8});
  CpuBinding binding = cpu_binding({}, local(3, 4), three, 1);
  EXPECT_THAT(binding.places, IsEmpty());
  EXPECT_EQ(binding.description, "update threads are not bound: 4 ranks share 3 CPUs");
  EXPECT_THAT(binding.memory_nodes, ElementsAre(0, 1));
  binding = cpu_binding({}, local(0, 2), three, 4);
  EXPECT_THAT(binding.places, IsEmpty());
  EXPECT_EQ(binding.description, "update threads are not bound: 4 threads are more than 2 CPUs");
  EXPECT_THAT(binding.memory_nodes, ElementsAre(0, 1)) << "it may run anywhere";
}

TEST_F(CpuBindingTest, NothingIsBoundWhereTheSystemForbidsIt) {
  Machine machine = two_nodes();
  machine.may_bind = false;
  const CpuBinding binding = cpu_binding({}, {}, machine, 8);
  EXPECT_THAT(binding.places, IsEmpty());
  EXPECT_EQ(binding.description,
            "update threads are not bound: the system does not let threads be bound");
}

TEST_F(CpuBindingTest, NothingIsBoundWhereAPersonSaysSo) {
  Config config;
  config.cpu_binding = CpuBindingChoice::none;
  const CpuBinding none = cpu_binding(config, local(0, 2), two_nodes(), 8);
  EXPECT_THAT(none.places, IsEmpty());
  EXPECT_THAT(none.memory_nodes, ElementsAre(0, 1)) << "it may run anywhere";
  EXPECT_EQ(none.description, "update threads are not bound: strata.cpu_binding is \"none\"");
  for (const auto& [name, value] :
       {std::pair{"OMP_PROC_BIND", "false"}, std::pair{"OMP_PLACES", "cores"},
        std::pair{"GOMP_CPU_AFFINITY", "0-3"}, std::pair{"OMP_DYNAMIC", "true"},
        std::pair{"OMP_THREAD_LIMIT", "4"}}) {
    const EnvironmentVariable variable(name, value);
    const CpuBinding binding = cpu_binding({}, {}, two_nodes(), 8);
    EXPECT_THAT(binding.places, IsEmpty());
    EXPECT_THAT(binding.description, HasSubstr(std::string(name) + " is set"));
  }
}

TEST_F(CpuBindingTest, OnOneNodeMemoryIsLeftToTheKernel) {
  const Machine one = synthetic_machine("numa:1 core:2 pu:1", {0, 1});
  EXPECT_THAT(cpu_binding({}, {}, one, 2).memory_nodes, IsEmpty());
}

// CPUs of the threads of this process, by their names.
std::multimap<std::string, std::string> threads_of_this_process() {
  std::multimap<std::string, std::string> threads;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name, line, cpus;
    std::getline(std::ifstream(task.path() / "comm"), name);
    std::ifstream status(task.path() / "status");
    while (std::getline(status, line)) {
      const std::string key = "Cpus_allowed_list:\t";
      if (line.starts_with(key)) cpus = line.substr(key.size());
    }
    threads.emplace(name, cpus);
  }
  return threads;
}

// In a run, as the system sees it. A team's threads have their master's name.
TEST_F(CpuBindingTest, TheUpdatesThreadsAreBoundAndNoOthers) {
  const CpuPlace allowed = place_of_this_thread();
  if (allowed.size() < 2) GTEST_SKIP() << "one CPU is nothing to divide";
  testing_support::TemporaryDirectory directory;
  for (const bool binds : {true, false}) {
    Config config = testing_support::tiny_config();
    config.nvme_paths = {directory.path()};
    config.optimizer_state.fill({0, 0.3, 0.7});
    config.optimizer_threads = config.compute_threads = static_cast<int>(allowed.size());
    if (!binds) config.cpu_binding = CpuBindingChoice::none;
    const auto before = threads_of_this_process();
    ASSERT_FALSE(before.contains("host update"));
    const std::string everywhere = before.begin()->second;
    Engine::Options options;
    options.micro_batch = {config.micro_batch, testing_support::tiny_gpt2().n_positions};
    Engine engine =
        EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), config, options, {});
    const auto batches = testing_support::tiny_batches(config.accumulation_steps, 1);
    engine.train_step(testing_support::views(batches));
    engine.settle();
    std::multiset<std::string> places, expected;
    for (const int cpu : allowed) expected.insert(binds ? std::to_string(cpu) : everywhere);
    for (const auto& [name, cpus] : threads_of_this_process()) {
      if (name == "host update") {
        places.insert(cpus);
      } else {
        EXPECT_EQ(cpus, everywhere) << name;
      }
    }
    EXPECT_EQ(places, expected);
    EXPECT_EQ(place_of_this_thread(), allowed);
    EXPECT_THAT(engine.description(),
                testing::Contains(HasSubstr(binds ? "update threads on " : "are not bound")));
  }
}

// Ranks that are threads of one process share its CPUs as processes would.
TEST_F(CpuBindingTest, LocalRanksDivideTheProcesssCpus) {
  std::set<int> taken;
  const std::vector<World> worlds = World::local(2);
  for (const World& world : worlds) {
    for (const CpuPlace& place : cpu_binding({}, world, two_nodes(), 8).places) {
      for (const int cpu : place) EXPECT_TRUE(taken.insert(cpu).second);
    }
  }
  EXPECT_EQ(taken.size(), 16u);
}

}  // namespace
}  // namespace strata::engine
