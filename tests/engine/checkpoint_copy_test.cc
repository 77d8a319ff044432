// P3 and P1, by checkpoints that are copied while training goes on: what is saved is the state of
// the step it was begun at, and the steps beside it are as without it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/checkpoint/checkpoint_reader.h"
#include "engine/checkpoint/run_directory.h"
#include "strata/error.h"
#include "tests/engine/resumed_run.h"
#include "tests/temporary_directory.h"

namespace strata {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing_support::Life;
using testing_support::LifeOutcome;
using testing_support::live;
using testing_support::recoverable_config;
using testing_support::TemporaryDirectory;

constexpr int kBegun = 3, kEnd = 8;
// Stands still until somebody waits for it.
constexpr double kHardlyAny = 1e-9;

class CheckpointCopyTest : public testing::Test {
 protected:
  CheckpointCopyTest() { fs::create_directory(nvme_); }

  Life life(int ranks, int snapshot_slots, double share) const {
    Life life;
    life.config = recoverable_config(nvme_);
    life.config.snapshot_slots = snapshot_slots;
    life.config.checkpoint_share = share;
    life.ranks = ranks;
    life.run_directory = run_;
    life.until_step = kEnd;
    return life;
  }
  // Without a checkpoint, and elsewhere.
  static LifeOutcome plain(Life life, int until_step) {
    const TemporaryDirectory elsewhere;
    life.config.nvme_paths = {elsewhere.path()};
    life.config.snapshot_slots = 0;
    life.run_directory = elsewhere.path() + "/run";
    life.after_step = {};
    life.until_step = until_step;
    return live(life);
  }
  std::string checkpoint(int step) const { return engine::checkpoint_folder(run_).of_step(step); }
  auto is_saved(int step) const {
    return AllOf(Field(&CheckpointOutcome::step, step),
                 Field(&CheckpointOutcome::path, checkpoint(step)),
                 Field(&CheckpointOutcome::failure, ""));
  }
  // What a checkpoint has, and where a run from it ends.
  static LifeOutcome resumed(Life life, const std::string& path) {
    const TemporaryDirectory elsewhere;
    life.config.nvme_paths = {elsewhere.path()};
    life.run_directory = elsewhere.path() + "/run";
    life.resume = path;
    life.after_step = {};
    return live(life);
  }

  TemporaryDirectory directory_;
  const std::string nvme_ = directory_.path() + "/nvme";
  const std::string run_ = directory_.path() + "/run";
};

struct Case {
  int ranks = 1;
  int snapshot_slots = 1;
  double share = 1;
  SpeculateChoice speculate = SpeculateChoice::never;
};

class CheckpointCopyOf : public CheckpointCopyTest, public testing::WithParamInterface<Case> {};

TEST_P(CheckpointCopyOf, HasTheStateOfItsStepWhateverTrainsOnMeanwhile) {
  const Case& of = GetParam();
  Life copying = life(of.ranks, of.snapshot_slots, of.share);
  copying.config.speculate = of.speculate;
  copying.is_frozen = [](const std::string& name) { return name.ends_with("ln_f.bias"); };
  std::vector<CheckpointOutcome> told;  // on rank 0
  std::vector<double> waited;
  copying.after_step = [&](Engine& engine, const StepResult& result, int rank) {
    if (result.step == kBegun) {
      engine.begin_checkpoint();
    }
    std::vector<CheckpointOutcome> now = result.checkpoints;
    if (result.step == kEnd) {
      for (CheckpointOutcome& outcome : engine.await_checkpoints()) now.push_back(outcome);
    }
    if (rank > 0) return;
    told.insert(told.end(), now.begin(), now.end());
    waited.push_back(result.exposed.checkpoint);
  };
  const LifeOutcome trained = live(copying);
  ASSERT_THAT(trained.failures, Each(""));
  EXPECT_THAT(told, ElementsAre(is_saved(kBegun)));
  // A slot less, and the second step from there had to wait.
  for (int step = 1; step <= kEnd; ++step) {
    if (of.share > kHardlyAny) continue;
    const double seconds = waited[static_cast<size_t>(step - 1)];
    if (of.snapshot_slots > 0) {
      EXPECT_EQ(seconds, 0) << step;
    } else if (step == kBegun + 2) {
      EXPECT_GT(seconds, 0);
    }
  }
  EXPECT_EQ(trained.digest, plain(copying, kEnd).digest);
  const LifeOutcome from_there = resumed(copying, checkpoint(kBegun));
  ASSERT_THAT(from_there.failures, Each(""));
  EXPECT_EQ(from_there.first_step, kBegun);
  EXPECT_EQ(from_there.first_digest, plain(copying, kBegun).digest);
  EXPECT_EQ(from_there.digest, trained.digest);
}

INSTANTIATE_TEST_SUITE_P(Cases, CheckpointCopyOf,
                         testing::Values(Case{1, 1, 1}, Case{1, 1, kHardlyAny},
                                         Case{1, 0, kHardlyAny}, Case{2, 1, 0.2}, Case{2, 0, 1},
                                         Case{2, 1, kHardlyAny, SpeculateChoice::always},
                                         Case{1, 0, 1, SpeculateChoice::always}));

// Of one that stands still, no step waits for it and nobody is told of it before somebody waits.
TEST_F(CheckpointCopyTest, WithASlotOfItsOwnItRunsUnderAnyNumberOfSteps) {
  Life copying = life(1, 1, kHardlyAny);
  copying.until_step = kBegun + 10;
  copying.after_step = [&](Engine& engine, const StepResult& result, int) {
    if (result.step == kBegun) engine.begin_checkpoint();
    EXPECT_TRUE(result.checkpoints.empty());
    EXPECT_EQ(engine::checkpoint_folder(run_).newest(), "");
    if (result.step == copying.until_step) {
      EXPECT_THAT(engine.await_checkpoints(), ElementsAre(is_saved(kBegun)));
      EXPECT_TRUE(engine.await_checkpoints().empty());
    }
  };
  EXPECT_THAT(live(copying).failures, Each(""));
  EXPECT_EQ(engine::checkpoint_folder(run_).newest(), checkpoint(kBegun));
}

TEST_F(CheckpointCopyTest, TheNextOneWaitsForItAndOldOnesGo) {
  Life copying = life(2, 1, kHardlyAny);
  std::vector<CheckpointOutcome> told;
  copying.after_step = [&](Engine& engine, const StepResult& result, int rank) {
    if (result.step == 3 || result.step == 5) {
      engine.begin_checkpoint(2);
    }
    if (result.step == 7) {
      EXPECT_EQ(engine.save_checkpoint(2), checkpoint(7));
    }
    if (rank > 0) return;
    told.insert(told.end(), result.checkpoints.begin(), result.checkpoints.end());
  };
  EXPECT_THAT(live(copying).failures, Each(""));
  EXPECT_THAT(told, ElementsAre(is_saved(3), is_saved(5)));
  EXPECT_THAT(engine::checkpoint_folder(run_).all(), ElementsAre(checkpoint(5), checkpoint(7)));
}

TEST_F(CheckpointCopyTest, OneThatIsNotFinishedLeavesNothingAndTheRunGoesOn) {
  Life copying = life(2, 1, kHardlyAny);
  copying.until_step = kBegun + 2;
  copying.after_step = [&](Engine& engine, const StepResult& result, int) {
    if (result.step == kBegun) engine.begin_checkpoint();
  };
  const LifeOutcome first = live(copying);
  EXPECT_THAT(first.failures, Each(""));
  EXPECT_TRUE(fs::is_empty(run_ + "/checkpoints"));
  Life second = copying;
  second.after_step = {};
  second.resume = std::exchange(second.run_directory, "");
  second.until_step = kEnd;
  const LifeOutcome end = live(second);
  EXPECT_EQ(end.first_digest, first.digest);
  EXPECT_EQ(end.digest, plain(copying, kEnd).digest);
}

// Its slot is damaged under it; the steps have the others.
TEST_F(CheckpointCopyTest, OneThatFailsIsToldOnAllRanksAndTheRunGoesOn) {
  Life copying = life(2, 1, kHardlyAny);
  copying.after_step = [&](Engine& engine, const StepResult& result, int rank) {
    if (result.step == kBegun) engine.begin_checkpoint();
    // The first step from there has read it all.
    if (result.step == kBegun + 2 && rank == 1) {
      const std::string id = engine::RunDirectory::read(run_).id;
      const std::string path = nvme_ + "/strata-" + id + "/rank-1.state";
      // Slots of a sub-group follow each other: a bit of a master weight.
      const auto slot_bytes = static_cast<int64_t>(5 * kGrainNumel * 3 * sizeof(float));
      std::fstream stream(path, std::ios::in | std::ios::out | std::ios::binary);
      const int64_t at = (kBegun % 3) * slot_bytes + 12;
      stream.seekg(at);
      const int byte = stream.get();
      stream.seekp(at);
      stream.put(static_cast<char>(byte ^ 1));
      ASSERT_TRUE(stream.good());
    }
    if (result.step == kEnd) {
      EXPECT_THAT(engine.await_checkpoints(),
                  ElementsAre(Field(&CheckpointOutcome::failure, HasSubstr("rank-1.state"))));
      EXPECT_EQ(engine.save_checkpoint(), checkpoint(kEnd));
    }
  };
  const LifeOutcome trained = live(copying);
  EXPECT_THAT(trained.failures, Each(""));
  EXPECT_EQ(trained.digest, plain(copying, kEnd).digest);
  EXPECT_THAT(engine::checkpoint_folder(run_).all(), ElementsAre(checkpoint(kEnd)));
}

// Its slot is free again, and the next one finds its place.
TEST_F(CheckpointCopyTest, OneThatCannotBeginIsToldAndTheRunGoesOn) {
  Life copying = life(2, 0, kHardlyAny);
  const std::string folder = run_ + "/checkpoints";
  copying.after_step = [&](Engine& engine, const StepResult& result, int rank) {
    if (result.step == 2) {
      if (rank == 0) std::ofstream(folder) << "in the way";
      engine.begin_checkpoint();
    }
    if (result.step == 5) {
      if (rank == 0) fs::remove(folder);
      engine.begin_checkpoint();
      EXPECT_THAT(engine.await_checkpoints(), ElementsAre(is_saved(5)));
    }
    if (result.step == 3) {
      EXPECT_THAT(result.checkpoints,
                  ElementsAre(Field(&CheckpointOutcome::failure, HasSubstr(folder))));
    }
  };
  EXPECT_THAT(live(copying).failures, Each(""));
}

TEST_F(CheckpointCopyTest, WhereStepsAreNotRecoverableItIsThereAtOnce) {
  Life saving = life(1, 0, kHardlyAny);
  saving.config.recovery = RecoveryChoice::checkpoint;
  saving.after_step = [&](Engine& engine, const StepResult& result, int) {
    if (result.step == kBegun) {
      engine.begin_checkpoint();
      EXPECT_THAT(engine.await_checkpoints(), ElementsAre(is_saved(kBegun)));
      EXPECT_TRUE(engine.await_checkpoints().empty());
    }
  };
  EXPECT_THAT(live(saving).failures, Each(""));
  EXPECT_EQ(resumed(saving, checkpoint(kBegun)).first_step, kBegun);
}

}  // namespace
}  // namespace strata
