// Every optimizer and codec trains, and P1 holds for each: placement, cuts, threads, instruction
// sets and disturbances change no bit of the training state.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <tuple>

#include "kernels/ops/optimizer_ops.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::run_tiny;
using testing_support::run_tiny_on_ranks;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;

constexpr int kSteps = 3;
constexpr TierFractions kHost = {0, 1, 0};
constexpr TierFractions kNvme = {0, 0, 1};

using Setting = std::tuple<OptimizerKind, Codec, Codec>;

struct Way {
  const char* name;
  std::function<void(Config&)> edit;
};

std::vector<Way> ways() {
  return {
      {"on host", [](Config& c) { c.optimizer_state.fill(kHost); }},
      {"on nvme in small sub-groups",
       [](Config& c) {
         c.optimizer_state.fill(kNvme);
         c.sub_group_numel = 3 * kGrainNumel;
         c.optimizer_threads = 1;
       }},
      {"split, parameters on host",
       [](Config& c) {
         c.param = kHost;
         c.optimizer_state.fill({0, 0.37, 0.63});
         c.io_engine = IoChoice::threads;
       }},
      {"split over all tiers, one staging buffer",
       [](Config& c) {
         c.param = {0.5, 0.5, 0};
         c.optimizer_state.fill({0.2, 0.37, 0.43});
         c.sub_group_numel = kGrainNumel;
         c.staging_buffers = 1;
       }},
      {"two slots, no overlap",
       [](Config& c) {
         c.optimizer_state.fill(kNvme);
         c.slots = 2;
         c.overlap = false;
       }},
  };
}

class CodecTest : public testing::TestWithParam<Setting> {
 protected:
  Config config() const {
    Config config = tiny_config();
    config.nvme_paths = {directory_.path()};
    config.optimizer.kind = std::get<0>(GetParam());
    config.optimizer.momentum = 0.9;
    config.master_codec = std::get<1>(GetParam());
    config.moment_codec = std::get<2>(GetParam());
    return config;
  }
  TemporaryDirectory directory_;
};

TEST_P(CodecTest, PlacementLeavesTheSameBits) {
  const RunOutcome on_device = run_tiny(config(), kSteps);
  for (const Way& way : ways()) {
    Config varied = config();
    way.edit(varied);
    const RunOutcome outcome = run_tiny(varied, kSteps);
    EXPECT_EQ(outcome.digest, on_device.digest) << way.name;
    EXPECT_EQ(outcome.losses, on_device.losses) << way.name;
  }
}

// The master is the same number whichever way it is kept.
TEST_P(CodecTest, SplitMastersHaveTheBitsOfWholeOnes) {
  Config other = config();
  other.master_codec = config().master_codec == Codec::fp32 ? Codec::split16 : Codec::fp32;
  EXPECT_EQ(run_tiny(other, kSteps).digest, run_tiny(config(), kSteps).digest);
}

TEST_P(CodecTest, DisturbanceLeavesTheSameBits) {
  Config varied = config();
  varied.optimizer_state.fill({0, 0.3, 0.7});
  varied.sub_group_numel = 2 * kGrainNumel;
  engine::Disturbance disturbance;
  disturbance.delay_seed = 3;
  EXPECT_EQ(run_tiny(varied, kSteps, disturbance).digest, run_tiny(config(), kSteps).digest);
}

TEST_P(CodecTest, RanksAgreeWhereverStateLies) {
  Config on_device = config();
  on_device.compute_threads = on_device.optimizer_threads = 1;
  Config split = on_device;
  split.optimizer_state.fill({0.2, 0.37, 0.43});
  split.sub_group_numel = 2 * kGrainNumel;
  EXPECT_EQ(run_tiny_on_ranks(2, split, kSteps).digest,
            run_tiny_on_ranks(2, on_device, kSteps).digest);
}

INSTANTIATE_TEST_SUITE_P(Every, CodecTest,
                         testing::Values(Setting{OptimizerKind::adamw, Codec::fp32, Codec::fp32},
                                         Setting{OptimizerKind::adamw, Codec::split16, Codec::fp32},
                                         Setting{OptimizerKind::adamw, Codec::split16, Codec::bf16},
                                         Setting{OptimizerKind::adamw, Codec::fp32, Codec::bf16},
                                         Setting{OptimizerKind::adamw, Codec::split16, Codec::int8},
                                         Setting{OptimizerKind::adamw, Codec::fp32, Codec::int8},
                                         Setting{OptimizerKind::adam, Codec::fp32, Codec::fp32},
                                         Setting{OptimizerKind::adagrad, Codec::split16,
                                                 Codec::int8},
                                         Setting{OptimizerKind::lion, Codec::split16, Codec::bf16},
                                         Setting{OptimizerKind::sgd, Codec::fp32, Codec::int8}),
                         [](const auto& tested) {
                           return std::string(name(std::get<0>(tested.param))) + "_" +
                                  std::string(name(std::get<1>(tested.param))) + "_" +
                                  std::string(name(std::get<2>(tested.param)));
                         });

// What is lossy shows in the digest.
TEST(CodecChoiceTest, LossyMomentsLeaveOtherBits) {
  const std::string exact = run_tiny(tiny_config(), kSteps).digest;
  for (Codec codec : {Codec::bf16, Codec::int8}) {
    Config lossy = tiny_config();
    lossy.moment_codec = codec;
    EXPECT_NE(run_tiny(lossy, kSteps).digest, exact) << name(codec);
  }
}

// Read and written once a step: what each codec takes, and what fills the last disk block.
TEST(CodecChoiceTest, FewerBytesAreMoved) {
  struct Case {
    Codec master, moment;
    int64_t grain_bytes;
    int64_t filling_bytes;
  };
  for (const Case& c : {Case{Codec::fp32, Codec::fp32, 12 * kGrainNumel, 0},
                        Case{Codec::split16, Codec::bf16, 6 * kGrainNumel, 0},
                        Case{Codec::split16, Codec::int8, 4 * kGrainNumel + 2 * 64, 2 * 2240}}) {
    TemporaryDirectory directory;
    Config config = tiny_config();
    config.nvme_paths = {directory.path()};
    config.optimizer_state.fill(kNvme);
    config.master_codec = c.master;
    config.moment_codec = c.moment;
    Engine engine = EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), config,
                                           {.micro_batch = {config.micro_batch, 16}}, {});
    const LinkBytes& planned = engine.plan().step_traffic;
    constexpr int64_t kGrains = 29;  // one sub-group
    const auto expected = static_cast<uint64_t>(kGrains * c.grain_bytes + c.filling_bytes);
    EXPECT_EQ(planned[static_cast<size_t>(Activity::nvme_read)], expected) << name(c.moment);
    EXPECT_EQ(planned[static_cast<size_t>(Activity::nvme_write)], expected) << name(c.moment);
  }
}

}  // namespace
}  // namespace strata
