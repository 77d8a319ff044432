// Runs that end early, by a signal or by a kill, and go on: `strata train --output` and --resume.
#include <csignal>
#include <filesystem>
#include <string>

#include "tests/tools/train_command.h"

namespace strata::testing_support {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class ResumeCommandTest : public TrainCommandTest {
 protected:
  ResumeCommandTest() {
    fs::create_directory(path("nvme"));
    config_["zero_optimization"]["offload_optimizer"]["nvme_path"] = path("nvme");
  }
  // The line with the digest.
  static std::string digest(const Result& result) {
    const size_t at = result.out.find("\ndigest ");
    return at == std::string::npos ? "none: " + result.err : result.out.substr(at + 8, 32);
  }
  // Trains for as long as it takes to see `steps` of them in the metrics, then gets the signal.
  Result interrupted(const std::string& more, int steps, int signal) const {
    const std::string metrics = path("metrics.jsonl");
    fs::remove(metrics);
    const std::string command = strata_binary() + " " + training(more + " --metrics " + metrics);
    return run("{ " + command + " & p=$!; while [ $(cat " + metrics + " 2>/dev/null | wc -l) -lt " +
               std::to_string(steps) + " ] && kill -0 $p; do sleep 0.01; done; kill -" +
               std::to_string(signal) + " $p; wait $p; }");
  }
  bool nvme_is_empty() const { return fs::is_empty(path("nvme")); }
};

// In both modes SIGTERM ends the run after its step with nothing lost, and exit code 0.
TEST_F(ResumeCommandTest, ASignalKeepsTheStepAndResumeGoesOnFromIt) {
  for (const char* recovery : {"step", "checkpoint"}) {
    config_["strata"]["recovery"] = recovery;
    const std::string run = path(recovery);
    const Result first = interrupted("--steps 1000000 --output " + run, 3, SIGTERM);
    ASSERT_EQ(first.exit_code, 0) << first.err;
    EXPECT_THAT(first.out, HasSubstr("stopped after step"));
    EXPECT_THAT(first.out, HasSubstr(std::string("recovery: ") + recovery));
    EXPECT_EQ(nvme_is_empty(), recovery == std::string("checkpoint"));
    const size_t at = first.out.find("stopped after step ");
    const int stopped = std::stoi(first.out.substr(at + 19));
    const std::string steps =
        "--digest --validation-batches 1 --steps " + std::to_string(stopped + 4);
    const Result second = train(steps + " --resume " + run);
    ASSERT_EQ(second.exit_code, 0) << second.err;
    EXPECT_THAT(second.out, HasSubstr("going on from step " + std::to_string(stopped)));
    EXPECT_TRUE(fs::exists(run + "/checkpoints/latest/manifest.json"));
    EXPECT_TRUE(nvme_is_empty());
    EXPECT_EQ(digest(second), digest(train(steps + " --output " + run + "-whole")));
  }
}

TEST_F(ResumeCommandTest, AKilledRunGoesOnFromTheStepItWasIn) {
  config_["strata"]["recovery"] = "step";
  const Result killed = interrupted("--steps 1000000 --output " + path("run"), 5, SIGKILL);
  EXPECT_EQ(killed.exit_code, 128 + SIGKILL);
  const Result second = interrupted("--steps 1000000 --resume " + path("run"), 2, SIGTERM);
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.out, HasSubstr("as it was recovered"));
  EXPECT_THAT(second.out, Not(HasSubstr("beginning with")));
}

// One that was stopped at its last step owes its checkpoint, and pays it.
TEST_F(ResumeCommandTest, ARunStoppedAtItsEndStillGetsItsCheckpoint) {
  config_["strata"]["recovery"] = "step";
  const Result first = interrupted("--steps 1000000 --output " + path("run"), 3, SIGTERM);
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const std::string stopped =
      std::to_string(std::stoi(first.out.substr(first.out.find("stopped after step ") + 19)));
  const Result second =
      train("--validation-batches 1 --steps " + stopped + " --resume " + path("run"));
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_TRUE(fs::exists(path("run/checkpoints/latest/manifest.json")));
  EXPECT_TRUE(nvme_is_empty());
}

// A checkpoint on the way, of which the newest two stay; another run starts from one of them.
TEST_F(ResumeCommandTest, CheckpointsOnTheWayStartOtherRuns) {
  const std::string run = path("run");
  const Result first = train(
      "--steps 7 --checkpoint-every 2 --keep 2 --digest --validation-batches 1 "
      "--output " +
      run);
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_FALSE(fs::exists(run + "/checkpoints/step-00000004"));
  EXPECT_TRUE(fs::exists(run + "/checkpoints/step-00000006"));
  const Result other = train("--steps 7 --digest --validation-batches 1 --resume " + run +
                             "/checkpoints/step-00000006");
  ASSERT_EQ(other.exit_code, 0) << other.err;
  EXPECT_EQ(digest(other), digest(first));
}

TEST_F(ResumeCommandTest, WhatDoesNotFitIsRefusedBeforeAnyWork) {
  ASSERT_EQ(train("--steps 1 --validation-batches 1 --output " + path("run")).exit_code, 0);
  expect_refused(train("--steps 2 --output " + path("run")), 2, "has a run already");
  expect_refused(train("--steps 2 --resume " + path("nothing")), 2, "neither a run's directory");
  expect_refused(train("--steps 2 --seed 5 --resume " + path("run")), 2, "has seed");
  expect_refused(train("--steps 1 --resume " + path("run")), 2, "--steps");
  config_["strata"]["recovery"] = "step";
  expect_refused(train("--steps 2"), 2, "has no directory to be found by");
}

}  // namespace
}  // namespace strata::testing_support
