// P3, by checkpoints: what is saved and loaded is the same state, whatever numbers of ranks,
// stages, placements and codecs are on the two sides; what is damaged is found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint_folder.h"
#include "engine/checkpoint/checkpoint_reader.h"
#include "strata/error.h"
#include "tests/engine/resumed_run.h"
#include "tests/temporary_directory.h"

namespace strata {
namespace {

namespace fs = std::filesystem;
using engine::CheckpointFolder;
using engine::CheckpointReader;
using testing::HasSubstr;
using testing_support::Life;
using testing_support::LifeOutcome;
using testing_support::live;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;

constexpr int kSaved = 3, kEnd = 6;

Config small_config() {
  Config config = tiny_config();
  config.compute_threads = config.optimizer_threads = 1;
  config.sub_group_numel = 7 * kGrainNumel;
  return config;
}

class CheckpointTest : public testing::Test {
 protected:
  // Trains to kSaved and saves.
  LifeOutcome save(Life life) {
    life.until_step = kSaved;
    life.save_as = path_;
    const LifeOutcome outcome = live(life);
    EXPECT_THAT(outcome.failures, testing::Each(""));
    return outcome;
  }
  // The first rank's failure.
  std::string resume_failure(Life life) {
    life.resume = path_;
    life.until_step = kEnd;
    return live(life).failures.front();
  }
  // Flips a bit of a file of the checkpoint.
  void damage(const std::string& file, uint64_t offset) {
    std::fstream stream(path_ + "/" + file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    const int byte = stream.get();
    ASSERT_TRUE(stream.good());
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(static_cast<char>(byte ^ 8));
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_.path() + "/checkpoint";
};

// Of one global batch: as many as most of the worlds below divide.
constexpr int kMicroBatches = 4;

// Sides of a checkpoint: what changes between saving and going on.
struct Side {
  std::string name;
  int ranks = 1;
  int stage = 3;
  bool on_nvme = false;
  double device = 1;  // of the state that is not on nvme, the rest is on the host
  Codec master = Codec::fp32;
};

Life life_of(const Side& side, const std::string& nvme, int micro_batches = kMicroBatches) {
  Life life;
  life.config = small_config();
  life.ranks = side.ranks;
  life.config.stage = side.stage;
  life.config.accumulation_steps = micro_batches / side.ranks;
  const TierFractions state =
      side.on_nvme ? TierFractions{0, 0.3, 0.7} : TierFractions{side.device, 1 - side.device, 0};
  life.config.optimizer_state.fill(state);
  if (side.on_nvme) life.config.nvme_paths = {nvme};
  life.config.master_codec = side.master;
  return life;
}

const Side kSides[] = {
    {"device"},
    {"nvme_split16", 1, 3, true, 1, Codec::split16},
    {"host_and_device", 1, 3, false, 0.4},
    {"two_ranks_stage_1", 2, 1},
    {"two_ranks_stage_3_nvme", 2, 3, true},
    {"four_ranks_stage_0", 4, 0},
};

class CheckpointBetween : public CheckpointTest,
                          public testing::WithParamInterface<std::tuple<int, int>> {
 protected:
  // The same digest at load everywhere; and where the world is the same one, no bit of what follows
  // changes.
  void expect_same_state(const Life& from, Life to) {
    const LifeOutcome saved = save(from);
    to.resume = path_;
    to.until_step = kEnd;
    const LifeOutcome resumed = live(to);
    ASSERT_THAT(resumed.failures, testing::Each(""));
    EXPECT_EQ(resumed.first_step, kSaved);
    EXPECT_EQ(resumed.first_digest, saved.digest);
    Life whole = from;
    whole.until_step = kEnd;
    const LifeOutcome uninterrupted = live(whole);
    ASSERT_THAT(uninterrupted.failures, testing::Each(""));
    if (from.ranks == to.ranks) {
      EXPECT_EQ(resumed.digest, uninterrupted.digest);
      return;
    }
    // Worlds round sums differently.
    for (int step = kSaved; step < kEnd; ++step) {
      const double loss = uninterrupted.losses[static_cast<size_t>(step)];
      EXPECT_NEAR(resumed.losses[static_cast<size_t>(step - kSaved)], loss, 0.01 * loss);
    }
  }
};

TEST_P(CheckpointBetween, TheStateIsTheSame) {
  const Side& from = kSides[std::get<0>(GetParam())];
  const Side& to = kSides[std::get<1>(GetParam())];
  expect_same_state(life_of(from, directory_.path()), life_of(to, directory_.path()));
}

INSTANTIATE_TEST_SUITE_P(Sides, CheckpointBetween,
                         testing::Combine(testing::Range(0, static_cast<int>(std::size(kSides))),
                                          testing::Range(0, static_cast<int>(std::size(kSides)))),
                         [](const auto& param) {
                           return kSides[std::get<0>(param.param)].name + "_to_" +
                                  kSides[std::get<1>(param.param)].name;
                         });

// Worlds that do not divide each other cut every tensor at other grains: 2 ranks' parts on 1, 3 and
// 4, and back.
class CheckpointBetweenWorlds : public CheckpointBetween {};

TEST_P(CheckpointBetweenWorlds, TheStateIsTheSame) {
  constexpr int kForAll = 12;
  const auto life = [&](int ranks) {
    Side side = {"ranks", ranks};
    side.on_nvme = ranks == 3;
    return life_of(side, directory_.path(), kForAll);
  };
  const auto [from, to] = GetParam();
  expect_same_state(life(from), life(to));
}

INSTANTIATE_TEST_SUITE_P(Worlds, CheckpointBetweenWorlds,
                         testing::Values(std::tuple{2, 1}, std::tuple{2, 3}, std::tuple{2, 4},
                                         std::tuple{1, 2}, std::tuple{3, 2}, std::tuple{4, 2}),
                         [](const auto& param) {
                           return std::to_string(std::get<0>(param.param)) + "_to_" +
                                  std::to_string(std::get<1>(param.param));
                         });

// Moments go on as the codec keeps them; from one codec to another they are rounded, the same
// wherever they lie.
TEST_F(CheckpointTest, MomentsKeepTheirCodecsBits) {
  for (const Codec codec : {Codec::bf16, Codec::int8}) {
    Life life = life_of(kSides[1], directory_.path());
    life.config.moment_codec = codec;
    const LifeOutcome saved = save(life);
    Life whole = life;
    whole.until_step = kEnd;
    life.resume = path_;
    life.until_step = kEnd;
    const LifeOutcome resumed = live(life);
    EXPECT_EQ(resumed.first_digest, saved.digest) << name(codec);
    EXPECT_EQ(resumed.digest, live(whole).digest) << name(codec);
  }
}

TEST_F(CheckpointTest, OtherCodecsRoundTheSameEverywhere) {
  for (const auto& [from, to] : {std::pair{Codec::fp32, Codec::int8},
                                 {Codec::int8, Codec::fp32},
                                 {Codec::bf16, Codec::int8},
                                 {Codec::bf16, Codec::fp32}}) {
    Life life = life_of(kSides[0], directory_.path());
    life.config.moment_codec = from;
    const LifeOutcome saved = save(life);
    std::vector<std::string> digests;
    for (const int side : {0, 1, 4}) {
      Life next = life_of(kSides[side], directory_.path());
      next.config.moment_codec = to;
      next.resume = path_;
      digests.push_back(live(next).first_digest);
    }
    EXPECT_THAT(digests, testing::Each(digests.front())) << name(from) << " to " << name(to);
    // What a wider codec takes over, it takes over whole.
    EXPECT_EQ(digests.front() == saved.digest, to == Codec::fp32) << name(from);
  }
}

TEST_F(CheckpointTest, ANewOneTakesTheOldOnesPlaceAndOldOnesGo) {
  Life life;
  life.config = small_config();
  save(life);
  const LifeOutcome again = save(life);
  EXPECT_EQ(CheckpointReader(path_).manifest().run.step, kSaved);
  EXPECT_FALSE(fs::exists(path_ + ".unfinished"));
  Life next = life;
  next.resume = path_;
  EXPECT_EQ(live(next).first_digest, again.digest);
  // As a run keeps them.
  fs::create_directory(directory_.path() + "/folder");
  const CheckpointFolder folder(directory_.path() + "/folder");
  for (const int64_t step : {99, 5, 100000000, 7}) fs::copy(path_, folder.of_step(step));
  fs::create_directory(folder.of_step(8));  // without a manifest
  fs::create_directory(folder.of_step(9) + ".unfinished");
  // Somebody else's.
  const std::string copy = folder.of_step(5) + "-copy";
  fs::copy(path_, copy);
  fs::create_directory(folder.of_step(4) + "-hf");
  EXPECT_EQ(folder.newest(), folder.of_step(100000000));
  folder.tidy(2);
  EXPECT_THAT(folder.all(), testing::ElementsAre(folder.of_step(99), folder.of_step(100000000)));
  EXPECT_EQ(CheckpointReader(directory_.path() + "/folder/latest").manifest().run.step, kSaved);
  EXPECT_TRUE(fs::exists(copy));
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_.path() + "/folder"), {}), 5);
}

TEST_F(CheckpointTest, EveryFileIsCheckedAgainstItsHashes) {
  Life life;
  life.config = small_config();
  save(life);
  for (const char* file : {"master.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"}) {
    const uint64_t last = fs::file_size(path_ + "/" + file) - 1;
    damage(file, last);
    EXPECT_THAT(resume_failure(life), testing::AllOf(HasSubstr(file), HasSubstr("was written")))
        << file;
    damage(file, last);
  }
  damage("manifest.json", 3);
  EXPECT_NE(resume_failure(life), "");
  damage("manifest.json", 3);
  EXPECT_EQ(resume_failure(life), "");
  fs::resize_file(path_ + "/master.safetensors", 8192);
  EXPECT_THAT(resume_failure(life), HasSubstr("master.safetensors"));
}

TEST_F(CheckpointTest, OtherModelsAndRunsAreRefusedInASentence) {
  Life life;
  life.config = small_config();
  save(life);
  Life other = life;
  other.gpt2.n_inner = 128;
  EXPECT_THAT(resume_failure(other), HasSubstr("is of another model or optimizer"));
  other = life;
  other.gpt2.n_layer = 1;
  EXPECT_THAT(resume_failure(other), HasSubstr("tensors where"));
  other = life;
  other.config.optimizer.kind = OptimizerKind::sgd;
  EXPECT_THAT(resume_failure(other), HasSubstr("is of another model or optimizer"));
  other = life;
  other.config.seed = 8;
  EXPECT_THAT(resume_failure(other), HasSubstr("has seed 7 and this one 8"));
  fs::remove(path_ + "/manifest.json");
  EXPECT_THAT(resume_failure(life), HasSubstr("neither a run's directory"));
}

TEST_F(CheckpointTest, AFullOrForbiddenDirectoryLeavesTheRunAsItWas) {
  const Life life{.config = small_config()};
  Engine::Options options;
  options.micro_batch = {life.config.micro_batch, life.gpt2.n_positions};
  Engine engine = EngineTestAccess::make(models::gpt2(life.gpt2), life.config, options, {});
  const std::string before = engine.digest();
  EXPECT_THROW(engine.save_checkpoint("/proc/nowhere/checkpoint"), IoError);
  std::ofstream(path_) << "in the way";
  EXPECT_THROW(engine.save_checkpoint(path_ + "/checkpoint"), IoError);
  EXPECT_EQ(engine.digest(), before);
  EXPECT_THROW(engine.save_checkpoint(1), ConfigError);  // no run directory
  const auto batches = testing_support::tiny_batches(2, 1);
  engine.train_step(testing_support::views(batches));
  engine.save_checkpoint(directory_.path() + "/other");
  EXPECT_EQ(CheckpointReader(directory_.path() + "/other").manifest().run.step, 1);
}

// All ranks are told, and none of them ends the run.
TEST_F(CheckpointTest, RanksGoOnAfterACheckpointThatFailed) {
  std::ofstream(path_) << "in the way";
  const auto failures = testing_support::failures_of_ranks(2, [&](const World& world) {
    const Config config = testing_support::for_world(small_config(), world);
    Engine::Options options;
    options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
    Engine engine(models::gpt2(tiny_gpt2()), config, world, options);
    EXPECT_THROW(engine.save_checkpoint(path_ + "/checkpoint"), IoError);
    const auto batches = testing_support::tiny_batches(4, 1);
    const auto own = testing_support::of_rank(testing_support::views(batches), world);
    engine.train_step(own);
    engine.save_checkpoint(directory_.path() + "/other/");
  });
  EXPECT_THAT(failures, testing::Each(""));
  EXPECT_EQ(CheckpointReader(directory_.path() + "/other").manifest().run.step, 1);
}

TEST_F(CheckpointTest, TheLossScaleComesAlong) {
  Life life;
  life.config = small_config();
  life.config.dtype = DType::fp16;
  life.config.loss_scale.initial_power = 30;
  life.config.loss_scale.window = 2;
  life.config.loss_scale.hysteresis = 1;
  save(life);
  const auto run = CheckpointReader(path_).manifest().run;
  EXPECT_LT(run.loss_scale, 0x1p30);
  Life whole = life;
  whole.until_step = kEnd;
  life.resume = path_;
  life.until_step = kEnd;
  EXPECT_EQ(live(life).digest, live(whole).digest);
}

}  // namespace
}  // namespace strata
