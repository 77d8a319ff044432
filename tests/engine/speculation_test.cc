// Updating inside backward changes no bit, whether the speculation holds, is clipped or meets a
// gradient that is not finite, on any number of ranks; and what it costs is counted to the byte.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "engine/runtime/speculation_policy.h"
#include "tests/engine/local_ranks.h"
#include "tests/engine/planted_ops.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::failures_of_ranks;
using testing_support::Interlude;
using testing_support::OpProbe;
using testing_support::Plant;
using testing_support::TemporaryDirectory;
using testing_support::tiny_batches;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;

constexpr int kSteps = 6;

// What a run is disturbed by.
struct Course {
  double clipping = 0;
  std::set<int> overflows = {};  // attempts whose gradients are not finite
  uint64_t seed = 0;
  // Backward does not end before an update inside it is on disk: the norm comes too late for that.
  bool late_norms = false;
};

struct Outcome {
  std::string digest;
  std::vector<double> norms;
  int64_t speculated = 0;
  int64_t redone = 0;
  int redone_steps = 0;  // with something to do again
};

// Holds up the last operation of backward, after which the norm is known, until this step's updates
// have written something.
Interlude wait_for_writes(const Engine& engine, const Config& config) {
  const auto written = [&engine] {
    return EngineTestAccess::recorder(engine).link_bytes(
        Account::update)[static_cast<size_t>(Activity::nvme_write)];
  };
  const int last_micro_batch = static_cast<int>(config.accumulation_steps) - 1;
  return {"embedding_backward.position_table", last_micro_batch, [written, before = written()] {
            constexpr int kMostWaits = 60'000;
            for (int i = 0; i < kMostWaits && written() == before; ++i) {
              std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
          }};
}

Config nvme_config(const std::string& directory) {
  Config config = tiny_config();
  config.nvme_paths = {directory};
  config.optimizer_state.fill({0, 0, 1});
  config.slots = 2;
  config.sub_group_numel = 2 * kGrainNumel;
  config.speculate = SpeculateChoice::always;
  return config;
}

Outcome run(Config config, const Course& course, const World& world = {}) {
  config.gradient_clipping = course.clipping;
  OpProbe probe;
  engine::Disturbance disturbance;
  disturbance.delay_seed = course.seed == 0 ? 0 : course.seed + static_cast<uint64_t>(world.rank);
  disturbance.wrap_ops = [&](auto ops) { return plant_errors(std::move(ops), probe); };
  Engine::Options options;
  options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
  Engine engine =
      EngineTestAccess::make(models::gpt2(tiny_gpt2()), testing_support::for_world(config, world),
                             options, disturbance, world);
  Outcome outcome;
  for (int attempt = 0; attempt < kSteps; ++attempt) {
    const bool overflows = course.overflows.contains(attempt);
    // On one rank alone: all skip.
    std::optional<Plant> plant;
    if (overflows && world.rank == world.size - 1) {
      plant = {"linear_backward.weight_grad", Plant::kEveryCall, Plant::Kind::infinite};
    }
    std::optional<Interlude> interlude;
    if (course.late_norms) {
      engine.settle();  // the step before is on disk, its record too
      interlude = wait_for_writes(engine, config);
    }
    probe.begin(plant, interlude);
    const auto batches =
        tiny_batches(config.accumulation_steps * world.size, static_cast<uint64_t>(attempt) + 100);
    const auto own = testing_support::of_rank(testing_support::views(batches), world);
    const StepResult result = engine.train_step(own);
    EXPECT_EQ(result.skipped, overflows) << "attempt " << attempt;
    if (!overflows) {
      EXPECT_EQ(result.moved, engine.plan().step_traffic + result.speculation.redone_bytes);
      outcome.norms.push_back(result.grad_norm);
    }
    EXPECT_LE(result.speculation.redone, result.speculation.sub_groups);
    EXPECT_EQ(result.speculation.redone > 0, result.speculation.redone_bytes != LinkBytes{});
    outcome.speculated += result.speculation.sub_groups;
    outcome.redone += result.speculation.redone;
    outcome.redone_steps += result.speculation.redone > 0 ? 1 : 0;
  }
  outcome.digest = engine.digest();
  return outcome;
}

class SpeculationTest : public testing::Test {
 protected:
  TemporaryDirectory directory_;
};

class Courses : public SpeculationTest, public testing::WithParamInterface<Course> {};

void PrintTo(const Course& course, std::ostream* out) {
  *out << "clipping " << course.clipping << ", " << course.overflows.size() << " overflows, seed "
       << course.seed;
}

TEST_P(Courses, LeaveTheBitsOfARunThatNeverSpeculates) {
  Config plain = tiny_config();
  const Outcome reference = run(plain, GetParam());
  EXPECT_EQ(reference.speculated, 0);
  const std::vector<TierFractions> splits = {{0, 0, 1}, {0.2, 0.3, 0.5}};
  for (const TierFractions& split : splits) {
    for (const TierFractions& param : {TierFractions{1, 0, 0}, TierFractions{0.4, 0.6, 0}}) {
      Config config = nvme_config(directory_.path());
      config.optimizer_state.fill(split);
      config.param = param;
      const Outcome outcome = run(config, GetParam());
      EXPECT_EQ(outcome.digest, reference.digest);
      EXPECT_EQ(outcome.norms, reference.norms);
      EXPECT_GT(outcome.speculated, 0);
      if (GetParam().clipping == 0 && GetParam().overflows.empty()) {
        EXPECT_EQ(outcome.redone, 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Runs, Courses,
                         testing::Values(Course{}, Course{.clipping = 1e9}, Course{.clipping = 0.5},
                                         Course{.overflows = {2}},
                                         Course{.overflows = {0, 1, 4, 5}},
                                         Course{.clipping = 0.5, .overflows = {1, 3}, .seed = 3},
                                         Course{.overflows = {1, 2}, .seed = 4},
                                         Course{.seed = 5}));

// Whatever the timing: updates have begun before the norm says that they were wrong.
TEST_F(SpeculationTest, WhatWasWrongIsDoneAgain) {
  for (Course course :
       {Course{.clipping = 0.5}, Course{.overflows = {1, 2, kSteps - 1}},
        Course{.clipping = 0.5, .overflows = {0, 3}}, Course{.clipping = 0.5, .seed = 7}}) {
    const Outcome reference = run(tiny_config(), course);
    const auto clipped = course.clipping == 0
                             ? 0
                             : std::count_if(reference.norms.begin(), reference.norms.end(),
                                             [&](double norm) { return norm > course.clipping; });
    course.late_norms = true;
    const Outcome outcome = run(nvme_config(directory_.path()), course);
    EXPECT_EQ(outcome.redone_steps, clipped + static_cast<int>(course.overflows.size()));
    EXPECT_GT(outcome.redone_steps, 0);
    EXPECT_EQ(outcome.digest, reference.digest);
    EXPECT_EQ(outcome.norms, reference.norms);
  }
}

// Clipping that bites in some steps and not in others.
TEST_F(SpeculationTest, HoldsWhereClippingComesAndGoes) {
  const Outcome free = run(tiny_config(), {.clipping = 1e9});
  std::vector<double> norms = free.norms;
  std::nth_element(norms.begin(), norms.begin() + kSteps / 2, norms.end());
  const Course course{.clipping = norms[kSteps / 2]};
  const Outcome reference = run(tiny_config(), course);
  const auto clipped = std::count_if(reference.norms.begin(), reference.norms.end(),
                                     [&](double norm) { return norm > course.clipping; });
  ASSERT_GT(clipped, 0);
  ASSERT_LT(clipped, kSteps);
  EXPECT_EQ(run(nvme_config(directory_.path()), course).digest, reference.digest);
}

// Whole units, too: in stages below 3 the other ranks gather what a speculation wrote and put back.
class SpeculationStages : public SpeculationTest, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Stages, SpeculationStages, testing::Values(0, 1, 2, 3));

TEST_P(SpeculationStages, AreTheSameOnRanks) {
  for (int size = 1; size <= 3; ++size) {
    for (const Course& course : {Course{}, Course{.clipping = 0.5, .overflows = {2}},
                                 Course{.overflows = {0, 3}, .seed = 9}}) {
      std::vector<std::string> digests[2];
      for (const bool speculate : {false, true}) {
        auto& of_ranks = digests[speculate ? 1 : 0];
        of_ranks.resize(static_cast<size_t>(size));
        const auto failures = failures_of_ranks(size, [&](const World& world) {
          Config config = nvme_config(directory_.path());
          config.compute_threads = config.optimizer_threads = 1;
          config.comm_timeout_s = 60;
          config.stage = GetParam();
          if (!speculate) config.speculate = SpeculateChoice::never;
          of_ranks[static_cast<size_t>(world.rank)] = run(config, course, world).digest;
        });
        for (const std::string& failure : failures) EXPECT_EQ(failure, "");
      }
      EXPECT_EQ(digests[0], digests[1]) << size << " ranks";
    }
  }
}

// Reads, writes and restorations that fail end the run; nothing hangs.
TEST_F(SpeculationTest, ADiskThatFailsEndsTheRun) {
  Config config = nvme_config(directory_.path());
  config.gradient_clipping = 0.5;
  config.sub_group_numel = 8 * kGrainNumel;
  Engine::Options options;
  options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
  const auto batches = tiny_batches(config.accumulation_steps, 5);
  bool failed = true;
  for (int64_t fail_at = 45; failed; fail_at += 2) {
    ASSERT_LT(fail_at, 2000);
    engine::Disturbance disturbance;
    disturbance.io = io::FaultPlan{.fail_at = fail_at};
    failed = false;
    try {
      Engine engine =
          EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, disturbance);
      engine.train_step(testing_support::views(batches));
      engine.settle();
    } catch (const IoError& error) {
      failed = true;
      EXPECT_EQ(error.error_number, EIO);
    }
  }
}

// Steps that are always clipped switch it off after a few, and it comes back when they are not.
TEST(SpeculationPolicyTest, IsOffWhileStepsMissAndComesBack) {
  engine::SpeculationPolicy policy;
  EXPECT_TRUE(policy.worthwhile());
  int misses = 0;
  while (policy.worthwhile()) {
    policy.note(true);
    ++misses;
  }
  EXPECT_EQ(misses, 5);
  int hits = 0;
  while (!policy.worthwhile()) {
    policy.note(false);
    ++hits;
  }
  EXPECT_EQ(hits, 12);
  for (int step = 0; step < 100; ++step) policy.note(step % 5 == 0);
  EXPECT_TRUE(policy.worthwhile()) << "one in five";
}

TEST_F(SpeculationTest, AutoStopsWhereStepsAreClipped) {
  Config config = nvme_config(directory_.path());
  config.speculate = SpeculateChoice::automatic;
  const Outcome outcome = run(config, {.clipping = 1e-3});
  const Outcome always = run(nvme_config(directory_.path()), {.clipping = 1e-3});
  EXPECT_EQ(outcome.digest, always.digest);
  EXPECT_EQ(outcome.speculated * 6, always.speculated * 5) << "five of six steps";
  config.slots = 1;
  EXPECT_EQ(run(config, {}).speculated, 0) << "nowhere to write to";
}

// What was read ahead for a skipped step, parameters from the device too, is accounted for.
TEST(SplitMasters, SkippedStepsLeaveTheBitsOfWholeMasters) {
  TemporaryDirectory directory;
  for (const int slots : {1, 2}) {
    Config config = nvme_config(directory.path());
    config.speculate = SpeculateChoice::never;
    config.slots = slots;
    const Course course{.clipping = 0.5, .overflows = {1, kSteps - 1}};
    const Outcome whole = run(config, course);
    config.master_codec = Codec::split16;
    const Outcome split = run(config, course);
    EXPECT_EQ(split.digest, whole.digest) << slots << " slots";
    EXPECT_EQ(split.norms, whole.norms) << slots << " slots";
  }
}

}  // namespace
}  // namespace strata
