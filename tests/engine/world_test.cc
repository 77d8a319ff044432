// A process learns its rank from its launcher, and nonsense in the environment is refused.
#include "strata/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "strata/error.h"

namespace strata {
namespace {

constexpr const char* kVariables[] = {"OMPI_COMM_WORLD_RANK",
                                      "OMPI_COMM_WORLD_SIZE",
                                      "OMPI_COMM_WORLD_LOCAL_RANK",
                                      "OMPI_COMM_WORLD_LOCAL_SIZE",
                                      "OMPI_MCA_orte_bound_at_launch",
                                      "RANK",
                                      "WORLD_SIZE",
                                      "LOCAL_RANK",
                                      "LOCAL_WORLD_SIZE",
                                      "MASTER_ADDR",
                                      "MASTER_PORT",
                                      "TORCHELASTIC_USE_AGENT_STORE",
                                      "SLURM_STEP_ID",
                                      "SLURM_PROCID",
                                      "SLURM_NTASKS",
                                      "SLURM_LOCALID",
                                      "SLURM_STEP_TASKS_PER_NODE",
                                      "SLURM_CPU_BIND_LIST"};

class WorldTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : kVariables) unsetenv(name);
  }
  void TearDown() override { SetUp(); }

  static World with(const std::map<std::string, std::string>& environment) {
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    return World::from_environment();
  }
};

TEST_F(WorldTest, IsOneProcessWithoutALauncher) {
  const World world = with({});
  EXPECT_EQ(world.rank, 0);
  EXPECT_EQ(world.size, 1);
  EXPECT_EQ(world.local_rank, 0);
}

TEST_F(WorldTest, ComesFromMpirunBeforeTheOthers) {
  const World world = with({{"OMPI_COMM_WORLD_RANK", "5"},
                            {"OMPI_COMM_WORLD_SIZE", "8"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                            {"OMPI_MCA_orte_bound_at_launch", "1"},
                            {"SLURM_STEP_ID", "0"},
                            {"SLURM_PROCID", "0"},
                            {"SLURM_NTASKS", "2"},
                            {"SLURM_LOCALID", "0"}});
  EXPECT_EQ(world.rank, 5);
  EXPECT_EQ(world.size, 8);
  EXPECT_EQ(world.local_rank, 1);
  EXPECT_EQ(world.local_size, 4);
  EXPECT_TRUE(world.bound);
}

TEST_F(WorldTest, ComesFromTorchrun) {
  const World world = with({{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}});
  EXPECT_EQ(world.rank, 3);
  EXPECT_EQ(world.size, 4);
  EXPECT_EQ(world.local_rank, 1);
  EXPECT_EQ(world.local_size, 4);  // all, when the launcher does not say
}

TEST_F(WorldTest, ComesFromASlurmStep) {
  const World world = with({{"SLURM_STEP_ID", "0"},
                            {"SLURM_PROCID", "6"},
                            {"SLURM_NTASKS", "16"},
                            {"SLURM_LOCALID", "2"},
                            {"SLURM_STEP_TASKS_PER_NODE", "5(x3),1"}});
  EXPECT_EQ(world.rank, 6);
  EXPECT_EQ(world.size, 16);
  EXPECT_EQ(world.local_rank, 2);
  EXPECT_EQ(world.local_size, 5);
  EXPECT_FALSE(world.bound);
}

TEST_F(WorldTest, RanksMeetAtTheMasterThatTheLauncherNames) {
  std::map<std::string, std::string> environment = {{"RANK", "1"},
                                                    {"WORLD_SIZE", "2"},
                                                    {"LOCAL_RANK", "1"},
                                                    {"MASTER_ADDR", "node1"},
                                                    {"MASTER_PORT", "29500"}};
  World world = with(environment);
  EXPECT_EQ(world.master.address, "node1");
  EXPECT_EQ(world.master.port, 29500);
  environment["TORCHELASTIC_USE_AGENT_STORE"] = "True";  // torchrun listens at the port itself
  EXPECT_EQ(with(environment).master.port, 29501);
  environment["TORCHELASTIC_USE_AGENT_STORE"] = "False";
  EXPECT_EQ(with(environment).master.port, 29500);
}

TEST_F(WorldTest, ASlurmStepMayNameAMaster) {
  const World world = with({{"SLURM_STEP_ID", "0"},
                            {"SLURM_PROCID", "0"},
                            {"SLURM_NTASKS", "2"},
                            {"SLURM_LOCALID", "0"},
                            {"MASTER_ADDR", "10.0.0.1"},
                            {"MASTER_PORT", "1"}});
  EXPECT_EQ(world.master.address, "10.0.0.1");
  EXPECT_EQ(world.master.port, 1);
}

TEST_F(WorldTest, MpirunAndARankAloneHaveNoMaster) {
  const std::map<std::string, std::string> master = {{"MASTER_ADDR", "node1"}};
  std::map<std::string, std::string> alone = master;
  alone.insert({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}});
  EXPECT_EQ(with(alone).master.address, "");
  std::map<std::string, std::string> mpirun = master;
  mpirun.insert({{"OMPI_COMM_WORLD_RANK", "0"},
                 {"OMPI_COMM_WORLD_SIZE", "2"},
                 {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}});
  EXPECT_EQ(with(mpirun).master.address, "");
}

TEST_F(WorldTest, AMasterWithoutAGoodPortIsRefused) {
  std::map<std::string, std::string> environment = {
      {"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "node1"}};
  EXPECT_THAT([&] { with(environment); },
              testing::ThrowsMessage<ConfigError>(
                  "environment: MASTER_ADDR is set but MASTER_PORT is not: set both, or neither"));
  for (const char* port : {"0", "65536", "http", ""}) {
    environment["MASTER_PORT"] = port;
    EXPECT_THAT([&] { with(environment); },
                testing::ThrowsMessage<ConfigError>(testing::StrEq(
                    "environment: MASTER_PORT is \"" + std::string(port) +
                    "\": set it to an integer from 1 to 65535, or unset MASTER_ADDR")));
  }
}

TEST_F(WorldTest, LocalRanksMeetInOneProcess) {
  const auto worlds = World::local(3);
  ASSERT_EQ(worlds.size(), 3u);
  for (int rank = 0; rank < 3; ++rank) {
    const World& world = worlds[static_cast<size_t>(rank)];
    EXPECT_EQ(world.rank, rank);
    EXPECT_EQ(world.size, 3);
    EXPECT_EQ(world.local_rank, rank);
    EXPECT_EQ(world.local_size, 3);
    EXPECT_EQ(world.group, worlds[0].group);
  }
  EXPECT_THROW(World::local(0), ConfigError);
}

TEST_F(WorldTest, ABatchScriptIsNotARank) {
  EXPECT_EQ(with({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}}).size, 1);
}

TEST_F(WorldTest, AMissingVariableIsNamed) {
  EXPECT_THAT(
      [] {
        with({{"WORLD_SIZE", "4"}, {"RANK", "1"}});
      },
      testing::ThrowsMessage<ConfigError>(
          "environment: WORLD_SIZE is set but LOCAL_RANK is not: set both, or neither"));
}

TEST_F(WorldTest, ARankOutsideTheWorldIsRefused) {
  EXPECT_THAT(
      [] {
        with({{"WORLD_SIZE", "4"}, {"RANK", "4"}, {"LOCAL_RANK", "0"}});
      },
      testing::ThrowsMessage<ConfigError>("environment: RANK is \"4\": set it to an integer "
                                          "from 0 to 3, or unset WORLD_SIZE"));
}

TEST_F(WorldTest, WhatIsNotANumberIsRefused) {
  EXPECT_THAT(
      [] {
        with({{"WORLD_SIZE", "two"}, {"RANK", "0"}, {"LOCAL_RANK", "0"}});
      },
      testing::ThrowsMessage<ConfigError>(testing::HasSubstr("WORLD_SIZE is \"two\"")));
  EXPECT_THAT(
      [] {
        with({{"WORLD_SIZE", "2x"}});
      },
      testing::ThrowsMessage<ConfigError>(testing::HasSubstr("WORLD_SIZE is \"2x\"")));
}

}  // namespace
}  // namespace strata
