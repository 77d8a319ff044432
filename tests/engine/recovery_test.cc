// P3 and P7, by state files: a run that ended anywhere goes on from the step it was in; nobody
// else's files are touched, and those of runs that are gone go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/checkpoint/run_directory.h"
#include "io/durable_file.h"
#include "strata/error.h"
#include "tests/engine/resumed_run.h"
#include "tests/temporary_directory.h"

namespace strata {
namespace {

namespace fs = std::filesystem;
using testing::Each;
using testing::HasSubstr;
using testing_support::Life;
using testing_support::LifeOutcome;
using testing_support::live;
using testing_support::recoverable_config;
using testing_support::TemporaryDirectory;

constexpr int kStopped = 3, kEnd = 6;

class RecoveryTest : public testing::Test {
 protected:
  RecoveryTest() { fs::create_directory(nvme_); }

  Life life(int ranks = 1) const {
    Life life;
    life.config = recoverable_config(nvme_);
    life.ranks = ranks;
    return life;
  }
  // In the run's directory, from its beginning or where it stopped.
  LifeOutcome go(Life life, int until_step) {
    (engine::RunDirectory::exists(run_) ? life.resume : life.run_directory) = run_;
    life.until_step = until_step;
    return live(life);
  }
  static std::string uninterrupted(Life life) {
    TemporaryDirectory elsewhere;
    life.config.nvme_paths = {elsewhere.path()};
    life.run_directory = elsewhere.path() + "/run";
    life.until_step = kEnd;
    return live(life).digest;
  }
  std::vector<std::string> state_files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(nvme_)) {
      if (entry.is_regular_file()) names.push_back(entry.path().filename());
    }
    return names;
  }
  static void damage(const std::string& path, const std::vector<uint64_t>& offsets) {
    for (const uint64_t at : offsets) {
      std::fstream stream(path, std::ios::in | std::ios::out | std::ios::binary);
      stream.seekp(static_cast<std::streamoff>(at));
      stream.put('x');
    }
  }
  std::string state_file(const std::string& name) const {
    return nvme_ + "/strata-" + engine::RunDirectory::read(run_).id + "/" + name;
  }

  TemporaryDirectory directory_;
  const std::string nvme_ = directory_.path() + "/nvme";
  const std::string run_ = directory_.path() + "/run";
};

TEST_F(RecoveryTest, GoesOnWithTheBitsOfARunThatNeverStopped) {
  for (const int ranks : {1, 2, 3}) {
    SCOPED_TRACE(ranks);
    const LifeOutcome first = go(life(ranks), kStopped);
    ASSERT_THAT(first.failures, Each(""));
    const LifeOutcome second = go(life(ranks), kEnd);
    ASSERT_THAT(second.failures, Each(""));
    EXPECT_EQ(second.first_step, kStopped);
    EXPECT_EQ(second.first_digest, first.digest);
    EXPECT_EQ(second.digest, uninterrupted(life(ranks)));
    fs::remove_all(run_);
  }
}

// Other settings of how it runs may change in between; the state's place may not.
TEST_F(RecoveryTest, OtherThreadsAndStagingGoOnAsWell) {
  const LifeOutcome first = go(life(), kStopped);
  Life other = life();
  other.config.optimizer_threads = 2;
  other.config.staging_buffers = 1;
  other.config.speculate = SpeculateChoice::always;
  EXPECT_EQ(go(other, kEnd).digest, uninterrupted(life()));
  other.config.sub_group_numel = 9 * kGrainNumel;
  EXPECT_THAT(go(other, kEnd).failures.front(), HasSubstr("of another model, optimizer"));
}

TEST_F(RecoveryTest, StripedStateGoesOn) {
  Life striped = life();
  for (const char* disk : {"/a", "/b"}) fs::create_directory(directory_.path() + disk);
  striped.config.nvme_paths = {directory_.path() + "/a", directory_.path() + "/b"};
  striped.config.nvme_weights = {2, 1};
  go(striped, kStopped);
  EXPECT_EQ(go(striped, kEnd).digest, uninterrupted(life()));
}

// A run from a checkpoint recovers its own steps from there on; its frozen parameters are those of
// the checkpoint, not the initial ones.
TEST_F(RecoveryTest, ARunThatBeganWithACheckpointKeepsItsFrozenParameters) {
  const std::string checkpoint = directory_.path() + "/checkpoint";
  Life first = life();
  first.until_step = 1;
  first.save_as = checkpoint;
  first.run_directory = directory_.path() + "/before";
  first.is_frozen = [](const std::string& name) { return name.ends_with("bias"); };
  ASSERT_THAT(live(first).failures, Each(""));
  Life second = first;
  second.save_as.clear();
  second.resume = checkpoint;
  second.run_directory = directory_.path() + "/whole";
  second.until_step = kEnd;
  const std::string whole = live(second).digest;
  second.run_directory = run_;
  second.until_step = kStopped;
  const LifeOutcome stopped = live(second);
  ASSERT_THAT(stopped.failures, Each(""));
  second.run_directory.clear();
  const LifeOutcome end = go(second, kEnd);
  EXPECT_EQ(end.first_digest, stopped.digest);
  EXPECT_EQ(end.digest, whole);
}

TEST_F(RecoveryTest, ABitOfTheStateIsFoundBeforeItIsUsed) {
  go(life(), kStopped);
  for (const uint64_t offset : {0, 20000, 100000}) {
    const std::string path = state_file("rank-0.state");
    const auto flip = [&](uint64_t at) {
      std::fstream stream(path, std::ios::in | std::ios::out | std::ios::binary);
      stream.seekg(static_cast<std::streamoff>(at));
      const int byte = stream.get();
      stream.seekp(static_cast<std::streamoff>(at));
      stream.put(static_cast<char>(byte ^ 1));
    };
    // In both slots of the first sub-group: one of them counts.
    const uint64_t slot = 5 * kGrainNumel * 12;
    flip(offset);
    flip(offset + slot);
    EXPECT_THAT(go(life(), kEnd).failures.front(),
                testing::AllOf(HasSubstr("rank-0.state"), HasSubstr("damaged")));
    flip(offset);
    flip(offset + slot);
  }
  EXPECT_EQ(go(life(), kEnd).digest, uninterrupted(life()));
}

// Which is not the same as a run that has not begun.
TEST_F(RecoveryTest, AJournalWithoutAWholeRecordIsNotABeginning) {
  go(life(), kStopped);
  const std::string path = state_file("rank-0.journal");
  damage(path, {30, fs::file_size(path) / 2 + 30});
  EXPECT_THAT(go(life(), kEnd).failures.front(), HasSubstr("records of the journal are damaged"));
}

// Where a run has begun, whatever hides all of a rank's state is no new beginning: the only record
// damaged beside a place never written, zeros in both, files that are gone.
TEST_F(RecoveryTest, StateThatIsGoneIsNotABeginningEither) {
  const auto expect_lost = [&](int ranks) {
    EXPECT_THAT(go(life(ranks), kEnd).failures.front(), HasSubstr("finds none that is whole"));
  };
  go(life(), 0);
  damage(state_file("rank-0.journal"), {30});
  expect_lost(1);
  fs::remove_all(run_);
  go(life(), kStopped);
  const std::string journal = state_file("rank-0.journal");
  const uint64_t bytes = fs::file_size(journal);
  fs::resize_file(journal, 0);
  fs::resize_file(journal, bytes);
  expect_lost(1);
  fs::remove_all(run_);
  go(life(2), kStopped);
  fs::rename(state_file("rank-1.json"), state_file("moved"));
  expect_lost(2);
  EXPECT_TRUE(fs::exists(state_file("rank-1.state"))) << "what is left is left alone";
  fs::remove_all(state_file(""));
  expect_lost(2);
}

// As a process leaves it that was stopped before the run had begun.
TEST_F(RecoveryTest, AFirstRecordThatWasNotFinishedIsABeginning) {
  go(life(), 0);
  damage(state_file("rank-0.journal"), {30});
  engine::RunRecord record = engine::RunDirectory::read(run_);
  EXPECT_TRUE(record.has_state);
  record.has_state = false;
  engine::RunDirectory::open(run_).write(record);
  const LifeOutcome again = go(life(), kEnd);
  EXPECT_EQ(again.first_step, 0);
  EXPECT_EQ(again.digest, uninterrupted(life()));
  EXPECT_TRUE(engine::RunDirectory::read(run_).has_state);
}

// A run that began with a checkpoint and kept nothing of its own cannot begin anew by itself.
TEST_F(RecoveryTest, ARunWithAnOriginDoesNotBeginWithInitialValues) {
  const std::string checkpoint = directory_.path() + "/checkpoint";
  Life first = life();
  first.config.recovery = RecoveryChoice::checkpoint;
  first.until_step = 1;
  first.save_as = checkpoint;
  ASSERT_THAT(live(first).failures, Each(""));
  first.save_as.clear();
  first.resume = checkpoint;
  first.run_directory = run_;
  first.until_step = kStopped;
  ASSERT_THAT(live(first).failures, Each(""));
  first.run_directory.clear();
  EXPECT_THAT(go(first, kEnd).failures.front(), HasSubstr("ended before any state of it was kept"));
}

TEST_F(RecoveryTest, TwoRunsNeverShare) {
  go(life(), 1);
  const auto lock = io::FileLock::take(run_ + "/lock");
  ASSERT_TRUE(lock.has_value());
  EXPECT_THAT(go(life(), kEnd).failures.front(),
              testing::AllOf(HasSubstr("belongs to process " + std::to_string(::getpid())),
                             HasSubstr("training it")));
}

TEST_F(RecoveryTest, ANewRunDoesNotTakeAnothersDirectory) {
  go(life(), 1);
  Life again = life();
  again.run_directory = run_;
  EXPECT_THAT(live(again).failures.front(), HasSubstr("has a run already"));
  again.run_directory.clear();
  again.resume = directory_.path() + "/nothing";
  EXPECT_THAT(live(again).failures.front(), HasSubstr("neither a run's directory"));
}

TEST_F(RecoveryTest, OtherWorldsAndModesAreRefusedInASentence) {
  go(life(2), 1);
  EXPECT_THAT(go(life(3), kEnd).failures.front(), HasSubstr("state of 2 ranks, and there are 3"));
  Life other = life(2);
  other.config.slots = 1;
  other.config.recovery = RecoveryChoice::automatic;
  EXPECT_THAT(go(other, kEnd).failures.front(),
              HasSubstr("goes on from there with strata.slots 2"));
  fs::create_directory(directory_.path() + "/other");
  other = life(2);
  other.config.nvme_paths = {directory_.path() + "/other"};
  EXPECT_THAT(go(other, kEnd).failures.front(), HasSubstr("keeps its state in"));
  other = life(2);
  other.config.optimizer_state.fill({0, 0.5, 0.5});
  EXPECT_THAT(go(other, kEnd).failures.front(),
              HasSubstr("takes all of the optimizer's state on nvme"));
}

// What is left of a run whose directory is gone goes with the next start on the machine; a run that
// can still go on stays.
TEST_F(RecoveryTest, StateOfRunsThatAreGoneIsCleanedUp) {
  go(life(2), 1);
  const auto files = state_files();
  EXPECT_EQ(files.size(), 8u);
  Life bystander = life();
  bystander.run_directory = directory_.path() + "/bystander";
  bystander.until_step = 1;
  live(bystander);
  EXPECT_EQ(state_files().size(), 12u);
  fs::remove_all(run_);
  bystander.run_directory.clear();
  bystander.resume = directory_.path() + "/bystander";
  bystander.until_step = 2;
  EXPECT_THAT(live(bystander).failures, Each(""));
  EXPECT_EQ(state_files().size(), 4u);
}

TEST_F(RecoveryTest, ParametersDoNotChangeBetweenTwoRecoverableSteps) {
  Engine::Options options;
  options.micro_batch = {2, 16};
  options.run_directory = run_;
  const Life life = this->life();
  Engine engine = EngineTestAccess::make(models::gpt2(life.gpt2), life.config, options, {});
  EXPECT_THROW(engine.write_parameter("transformer.ln_f.weight", std::vector<float>(64)),
               ConfigError);
  EXPECT_EQ(engine.plan().recovery, "step");
}

TEST(RecoveryChoiceTest, SaysWhatAStepWouldTake) {
  TemporaryDirectory directory;
  Engine::Options options;
  options.micro_batch = {2, 16};
  const auto plan_of = [&](const Config& config) {
    return EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), config, options, {})
        .plan();
  };
  Config config = recoverable_config(directory.path());
  EXPECT_THROW(plan_of(config), ConfigError);  // no run directory
  config.recovery = RecoveryChoice::automatic;
  EXPECT_EQ(plan_of(config).recovery, "none");
  options.run_directory = directory.path() + "/a";
  EXPECT_EQ(plan_of(config).recovery, "step");
  options.run_directory = directory.path() + "/b";
  config.recovery = RecoveryChoice::checkpoint;
  EXPECT_EQ(plan_of(config).recovery, "checkpoint");
  options.run_directory = directory.path() + "/c";
  config.recovery = RecoveryChoice::automatic;
  config.master_codec = Codec::split16;
  EXPECT_EQ(plan_of(config).recovery, "checkpoint");
  options.run_directory = directory.path() + "/d";
  EXPECT_THAT(plan_of(config).step_recovery_takes, HasSubstr("master_codec"));
  config.recovery = RecoveryChoice::step;
  options.run_directory = directory.path() + "/e";
  EXPECT_THROW(plan_of(config), ConfigError);
}

}  // namespace
}  // namespace strata
