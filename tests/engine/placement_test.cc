// P1: placement, cuts, overlap, threads, instruction sets, I/O engines and disturbances change no
// bit of the training state; and each run moves exactly the bytes that its plan says.
#include <gmock/gmock.h>

#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/optimizer_ops.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using testing_support::run_tiny;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;

constexpr int kSteps = 3;

// Instead of one directory, as many in it as there are weights.
void spread(Config& config, std::vector<uint32_t> weights) {
  const std::string parent = config.nvme_paths.front();
  config.nvme_paths.clear();
  for (size_t i = 0; i < weights.size(); ++i) {
    config.nvme_paths.push_back(parent + "/disk" + std::to_string(i));
    std::filesystem::create_directory(config.nvme_paths.back());
  }
  config.nvme_weights = std::move(weights);
}

struct Variant {
  std::string name;
  std::function<void(Config&)> edit;
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

constexpr TierFractions kDevice = {1, 0, 0};
constexpr TierFractions kHost = {0, 1, 0};
constexpr TierFractions kNvme = {0, 0, 1};

std::vector<Variant> placements() {
  return {
      {"device", [](Config& c) { c.optimizer_state.fill(kDevice); }},
      {"host", [](Config& c) { c.optimizer_state.fill(kHost); }},
      {"nvme", [](Config& c) { c.optimizer_state.fill(kNvme); }},
      {"host_37_nvme_63",
       [](Config& c) {
         c.optimizer_state.fill({0, 0.37, 0.63});
       }},
      {"device_37_host_63",
       [](Config& c) {
         c.optimizer_state.fill({0.37, 0.63, 0});
       }},
      {"device_20_host_37_nvme_43",
       [](Config& c) {
         c.optimizer_state.fill({0.2, 0.37, 0.43});
       }},
      {"moments_on_nvme",
       [](Config& c) {
         c.optimizer_state = {kHost, kNvme, kNvme};
       }},
      {"master_split_moments_split",
       [](Config& c) {
         c.optimizer_state = {TierFractions{0, 0.37, 0.63}, kHost, TierFractions{0, 0.7, 0.3}};
       }},
      {"params_on_host",
       [](Config& c) {
         c.param = kHost;
         c.optimizer_state.fill(kHost);
       }},
      {"params_on_host_state_on_nvme",
       [](Config& c) {
         c.param = kHost;
         c.optimizer_state.fill(kNvme);
       }},
      {"params_split_state_split",
       [](Config& c) {
         c.param = {0.37, 0.63, 0};
         c.optimizer_state.fill({0.1, 0.27, 0.63});
       }},
      {"nvme_two_slots",
       [](Config& c) {
         c.optimizer_state.fill(kNvme);
         c.slots = 2;
       }},
  };
}

std::vector<Variant> ways_to_run() {
  std::vector<Variant> ways = {
      {"as_is", [](Config&) {}},
      {"sub_group_1_grain", [](Config& c) { c.sub_group_numel = kGrainNumel; }},
      {"sub_group_3_grains", [](Config& c) { c.sub_group_numel = 3 * kGrainNumel; }},
      {"no_overlap",
       [](Config& c) {
         c.overlap = false;
         c.sub_group_numel = 5 * kGrainNumel;
       }},
      {"updates_within_the_step",
       [](Config& c) {
         c.overlap_update = false;
         c.sub_group_numel = 3 * kGrainNumel;
       }},
      {"never_speculating",
       [](Config& c) {
         c.speculate = SpeculateChoice::never;
         c.sub_group_numel = 2 * kGrainNumel;
       }},
      {"one_staging_buffer",
       [](Config& c) {
         c.staging_buffers = 1;
         c.sub_group_numel = 2 * kGrainNumel;
       }},
      {"one_optimizer_thread", [](Config& c) { c.optimizer_threads = 1; }},
      {"always_recompute", [](Config& c) { c.recompute = RecomputeChoice::always; }},
      {"thread_io", [](Config& c) { c.io_engine = IoChoice::threads; }},
      {"buffered_io", [](Config& c) { c.io_direct = DirectChoice::off; }},
      {"two_paths_3_1",
       [](Config& c) {
         spread(c, {3, 1});
       }},
      {"three_paths_1_2_5",
       [](Config& c) {
         spread(c, {1, 2, 5});
         c.io_block_bytes = 12 << 10;
         c.sub_group_numel = 3 * kGrainNumel;
       }},
  };
  return ways;
}

class PlacementTest : public testing::Test {
 protected:
  Config config() const {
    Config config = tiny_config();
    config.nvme_paths = {directory_.path()};
    return config;
  }
  const RunOutcome& reference() {
    static const RunOutcome outcome = run_tiny(config(), kSteps);
    return outcome;
  }
  TemporaryDirectory directory_;
};

class EveryPlacement : public PlacementTest,
                       public testing::WithParamInterface<std::tuple<Variant, Variant>> {};

TEST_P(EveryPlacement, LeavesTheSameBits) {
  Config varied = config();
  std::get<0>(GetParam()).edit(varied);
  std::get<1>(GetParam()).edit(varied);
  const RunOutcome outcome = run_tiny(varied, kSteps);
  EXPECT_EQ(outcome.digest, reference().digest);
  EXPECT_EQ(outcome.losses, reference().losses);
}

INSTANTIATE_TEST_SUITE_P(Runs, EveryPlacement,
                         testing::Combine(testing::ValuesIn(placements()),
                                          testing::ValuesIn(ways_to_run())),
                         [](const auto& tested) {
                           return std::get<0>(tested.param).name + "_" +
                                  std::get<1>(tested.param).name;
                         });

class EveryIsa : public PlacementTest, public testing::WithParamInterface<std::string> {};

TEST_P(EveryIsa, LeavesTheSameBits) {
  try {
    ops::force_isa(GetParam());
  } catch (const ConfigError& error) {
    GTEST_SKIP() << error.what();
  }
  EXPECT_EQ(ops::active_isa(), GetParam());
  Config varied = config();
  varied.optimizer_state.fill({0.2, 0.37, 0.43});
  const RunOutcome outcome = run_tiny(varied, kSteps);
  ops::force_isa("");
  EXPECT_EQ(outcome.digest, reference().digest);
}

INSTANTIATE_TEST_SUITE_P(Isas, EveryIsa, testing::Values("scalar", "sse4", "avx2", "avx512"),
                         [](const auto& tested) { return tested.param; });

class EverySeed : public PlacementTest, public testing::WithParamInterface<uint64_t> {};

// Random delays before every task of every queue; short transfers, held-back and shuffled
// completions on the disk.
TEST_P(EverySeed, DisturbanceLeavesTheSameBits) {
  const uint64_t seed = GetParam();
  Config varied = config();
  varied.param = seed % 2 == 0 ? kHost : TierFractions{0.37, 0.63, 0};
  varied.optimizer_state.fill({seed % 2 == 0 ? 0.0 : 0.1, 0.3, seed % 2 == 0 ? 0.7 : 0.6});
  varied.sub_group_numel = static_cast<int64_t>(1 + seed % 4) * kGrainNumel;
  varied.slots = 1 + static_cast<int>(seed % 3 == 0);
  varied.io_engine = seed % 2 == 0 ? IoChoice::threads : IoChoice::automatic;
  if (seed % 4 == 1) spread(varied, {1, 2});
  engine::Disturbance disturbance;
  disturbance.delay_seed = seed;
  disturbance.io = testing_support::rough_disk(seed);
  const RunOutcome outcome = run_tiny(varied, kSteps, disturbance);
  EXPECT_EQ(outcome.digest, reference().digest);
  EXPECT_EQ(outcome.losses, reference().losses);
}

INSTANTIATE_TEST_SUITE_P(Seeds, EverySeed, testing::Range<uint64_t>(1, 33));

TEST_F(PlacementTest, MeasuredPathsLeaveTheSameBits) {
  Config varied = config();
  varied.optimizer_state.fill(kNvme);
  spread(varied, {1, 1, 1});
  varied.nvme_weights.clear();
  EXPECT_EQ(run_tiny(varied, kSteps).digest, reference().digest);
}

// A part of the state in host memory because there is room for it, the rest dealt to several disks,
// and half of each master left in its parameter.
TEST_F(PlacementTest, SplitMastersPinnedInPartOnSeveralPathsLeaveTheSameBits) {
  constexpr int64_t kGrainBytes = (2 + 4 + 4) * kGrainNumel;
  constexpr int64_t kPinnedGrains = 11;
  Config varied = config();
  varied.master_codec = Codec::split16;
  varied.optimizer_state.fill(kNvme);
  varied.sub_group_numel = 3 * kGrainNumel;
  varied.staging_buffers = 2;
  spread(varied, {2, 1, 1});
  const auto plan = [](const Config& c) {
    Engine::Options options;
    options.micro_batch = {c.micro_batch, testing_support::tiny_gpt2().n_positions};
    return EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), c, options, {})
        .plan();
  };
  const auto host = static_cast<size_t>(Tier::host);
  const auto nvme = static_cast<size_t>(Tier::nvme);
  for (const TierFractions& param : {kDevice, kHost, TierFractions{0.37, 0.63, 0}}) {
    varied.param = param;
    varied.host_memory = 0;
    varied.pin_state = PinChoice::never;
    varied.host_memory = plan(varied).needed_bytes[host] + kPinnedGrains * kGrainBytes;
    varied.pin_state = PinChoice::always;
    EXPECT_EQ(plan(varied).optimizer_state_bytes[host], kPinnedGrains * kGrainBytes);
    EXPECT_GT(plan(varied).optimizer_state_bytes[nvme], 0u);
    const RunOutcome outcome = run_tiny(varied, kSteps);
    EXPECT_EQ(outcome.digest, reference().digest);
    EXPECT_EQ(outcome.losses, reference().losses);
  }
}

TEST_F(PlacementTest, StartUpLinesSayWhereTheStateLies) {
  Config varied = config();
  varied.optimizer_state.fill(kNvme);
  const auto line = [](const Config& c) {
    Engine::Options options;
    options.micro_batch = {c.micro_batch, testing_support::tiny_gpt2().n_positions};
    const Engine engine =
        EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), c, options, {});
    for (const std::string& text : engine.description()) {
      if (text.starts_with("nvme: ")) return text;
    }
    return std::string();
  };
  const std::string directory = varied.nvme_paths.front();
  EXPECT_THAT(line(varied), HasSubstr(", " + directory + ")"));
  EXPECT_THAT(line(varied), AnyOf(HasSubstr("registered"), HasSubstr("threads")));
  spread(varied, {3, 1});
  EXPECT_THAT(line(varied), HasSubstr(directory + "/disk0 75 % and " + directory + "/disk1 25 %)"));
  varied.nvme_weights.clear();
  EXPECT_THAT(line(varied), HasSubstr(" by measured bandwidth)"));
}

// The digest itself: it must see each part of the state.
TEST_F(PlacementTest, DigestChangesWithTheState) {
  EXPECT_NE(run_tiny(config(), kSteps + 1).digest, reference().digest);
  Config other = config();
  other.seed += 1;
  EXPECT_NE(run_tiny(other, kSteps).digest, reference().digest);
  other = config();
  other.optimizer.beta2 = 0.99;
  EXPECT_NE(run_tiny(other, kSteps).digest, reference().digest);
}

// fp32 training and a single micro-batch, whose gradient is stored as it is.
TEST_F(PlacementTest, HoldsInFp32AndWithoutAccumulation) {
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    Config base = config();
    base.dtype = dtype;
    base.accumulation_steps = 1;
    const RunOutcome on_device = run_tiny(base, kSteps);
    base.param = kHost;
    base.optimizer_state.fill({0, 0.37, 0.63});
    base.sub_group_numel = 2 * kGrainNumel;
    EXPECT_EQ(run_tiny(base, kSteps).digest, on_device.digest) << name(dtype);
  }
}

}  // namespace
}  // namespace strata
