// P5: one byte too little is refused at start, with what is needed, what there is, and which
// setting would free how much; exactly enough trains; and the process stays within its budgets.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::run_tiny;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;

class BudgetTest : public testing::Test {
 protected:
  BudgetTest() {
    config_ = tiny_config();
    config_.nvme_paths = {directory_.path()};
    config_.optimizer_state.fill({0.1, 0.3, 0.6});
    config_.sub_group_numel = 4 * kGrainNumel;
    config_.staging_buffers = 3;
    config_.recompute = RecomputeChoice::always;
  }
  Engine make(const Config& config) const {
    Engine::Options options;
    options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
    return EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, {});
  }
  uint64_t needed(const Config& config, Tier tier) const {
    return make(config).plan().needed_bytes[static_cast<size_t>(tier)];
  }
  TemporaryDirectory directory_;
  Config config_;
};

TEST_F(BudgetTest, ExactlyEnoughTrainsToTheSameBits) {
  const std::string digest = run_tiny(config_, 2).digest;
  config_.device_memory = needed(config_, Tier::device);
  config_.host_memory = needed(config_, Tier::host);
  EXPECT_EQ(run_tiny(config_, 2).digest, digest);
}

TEST_F(BudgetTest, OneByteTooLittleIsRefusedWithWhatWouldFreeIt) {
  for (const auto& [tier, budget, setting] :
       {std::tuple{Tier::device, &Config::device_memory, "offload_optimizer.device = \"cpu\""},
        std::tuple{Tier::host, &Config::host_memory, "offload_optimizer.device = \"nvme\""}}) {
    Config config = config_;
    const uint64_t enough = needed(config, tier);
    config.*budget = enough - 1;
    try {
      make(config);
      FAIL() << "trained in " << enough - 1 << " bytes of " << name(tier);
    } catch (const OutOfBudget& error) {
      EXPECT_EQ(error.tier, tier);
      EXPECT_EQ(error.needed_bytes, enough);
      EXPECT_EQ(error.available_bytes, enough - 1);
      const std::string message = error.what();
      EXPECT_NE(message.find(std::to_string(enough)), std::string::npos) << message;
      EXPECT_NE(message.find("1 more than"), std::string::npos) << message;
      EXPECT_NE(message.find(setting), std::string::npos) << message;
    }
  }
}

// What a suggestion says it frees is what it frees.
TEST_F(BudgetTest, SuggestionsFreeWhatTheySay) {
  const uint64_t before = needed(config_, Tier::device);
  Config tight = config_;
  tight.device_memory = before - 1;
  try {
    make(tight);
    FAIL();
  } catch (const OutOfBudget& error) {
    const std::string message = error.what();
    const std::string setting = "offload_optimizer.device = \"nvme\" would free ";
    const size_t at = message.find(setting);
    ASSERT_NE(at, std::string::npos) << message;
    const uint64_t freed = std::stoull(message.substr(at + setting.size()));
    Config followed = config_;
    followed.optimizer_state.fill({0, 0, 1});
    EXPECT_EQ(needed(followed, Tier::device), before - freed);
  }
}

TEST_F(BudgetTest, ADiskTooSmallIsRefusedBeforeAnythingIsWritten) {
  // A state file beyond any disk: 12 * 2^42 bytes of it.
  auto gpt2 = tiny_gpt2();
  gpt2.vocab_size = int64_t{1} << 30;
  gpt2.n_embd = 4096;
  Engine::Options options;
  options.micro_batch = {config_.micro_batch, 16};
  config_.optimizer_state.fill({0, 0, 1});
  config_.param = {0, 1, 0};
  config_.sub_group_numel = int64_t{1} << 30;
  config_.host_memory = UINT64_MAX;
  config_.device_memory = UINT64_MAX;
  try {
    EngineTestAccess::make(models::gpt2(gpt2), config_, options, {});
    FAIL();
  } catch (const OutOfBudget& error) {
    EXPECT_EQ(error.tier, Tier::nvme) << error.what();
    EXPECT_NE(std::string(error.what()).find(directory_.path()), std::string::npos);
  }
}

// State on nvme is pinned in host memory as far as the budget goes: to the grain, and not a byte
// beyond; with the bits of any other placement.
TEST_F(BudgetTest, PinsTheGrainsThatTheHostBudgetHolds) {
  Config config = config_;
  config.optimizer_state.fill({0, 0, 1});
  config.staging_buffers = 2;
  const std::string digest = run_tiny(config, 2).digest;
  const uint64_t none = needed(config, Tier::host);
  const auto host = static_cast<size_t>(Tier::host);
  const uint64_t grain_bytes = 3 * 4 * kGrainNumel;
  for (const int64_t grains : {0, 1, 7, 20}) {
    for (const uint64_t spare : {uint64_t{0}, grain_bytes - 1}) {
      Config pinned = config;
      pinned.pin_state = PinChoice::always;
      pinned.host_memory = none + static_cast<uint64_t>(grains) * grain_bytes + spare;
      const Engine engine = make(pinned);
      EXPECT_EQ(engine.plan().optimizer_state_bytes[host],
                static_cast<uint64_t>(grains) * grain_bytes);
      EXPECT_LE(engine.plan().needed_bytes[host], pinned.host_memory);
    }
    Config pinned = config;
    pinned.pin_state = PinChoice::always;
    pinned.host_memory = none + static_cast<uint64_t>(grains) * grain_bytes;
    EXPECT_EQ(run_tiny(pinned, 2).digest, digest) << grains;
  }
}

// A setting that is to have its effect always is refused where state lies so that it has none.
TEST_F(BudgetTest, WhatIsWantedAlwaysHasItsEffectOrIsRefused) {
  const auto error_of = [this](const Config& config) -> std::string {
    try {
      make(config);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  Config pinned = config_;
  pinned.pin_state = PinChoice::always;
  pinned.host_memory = uint64_t{1} << 30;
  EXPECT_EQ(error_of(pinned), "no error");
  for (const TierFractions& parts : {TierFractions{0, 1, 0}, TierFractions{0, 0.999, 0.001}}) {
    pinned.optimizer_state.fill(parts);
    EXPECT_EQ(error_of(pinned),
              "strata.pin_state is \"always\", and no grain of optimizer state is placed on nvme "
              "to be pinned: set zero_optimization.offload_optimizer.device to \"nvme\", or "
              "strata.pin_state to \"auto\"");
  }
  pinned.pin_state = PinChoice::automatic;
  EXPECT_EQ(error_of(pinned), "no error");

  Config speculating = config_;
  speculating.speculate = SpeculateChoice::always;
  speculating.slots = 2;
  EXPECT_EQ(error_of(speculating), "no error");
  speculating.pin_state = PinChoice::automatic;
  speculating.host_memory = uint64_t{1} << 30;
  EXPECT_EQ(
      error_of(speculating),
      "strata.speculate is \"always\", and pinning in host memory leaves no sub-group's whole "
      "state on nvme: set strata.pin_state to \"never\", or strata.speculate to \"auto\"");
  // Pinning is not to blame.
  speculating.optimizer_state[1] = {0.1, 0.9, 0};
  for (const PinChoice pin : {PinChoice::automatic, PinChoice::never}) {
    speculating.pin_state = pin;
    EXPECT_EQ(error_of(speculating),
              "strata.speculate is \"always\", and no sub-group has all of its optimizer state on "
              "nvme: set zero_optimization.offload_optimizer.device to \"nvme\", or "
              "strata.speculate to \"auto\"");
  }
}

// With room for everything nothing is staged, and no file is made.
TEST_F(BudgetTest, PinsAllOfTheStateWhereItFits) {
  config_.optimizer_state.fill({0, 0, 1});
  config_.param = {0, 1, 0};
  config_.pin_state = PinChoice::always;
  config_.host_memory = uint64_t{1} << 30;
  const Engine engine = make(config_);
  EXPECT_EQ(engine.plan().optimizer_state_bytes[static_cast<size_t>(Tier::nvme)], 0u);
  EXPECT_EQ(engine.plan().needed_bytes[static_cast<size_t>(Tier::nvme)], 0u);
  EXPECT_EQ(engine.plan().staging_buffers, 0);
}

// As many staging buffers as help, fewer where the budget is short; a number that is asked for is
// had or refused.
TEST_F(BudgetTest, TakesTheStagingBuffersThatFit) {
  config_.optimizer_state.fill({0, 0, 1});
  config_.staging_buffers = Config::kAutoStagingBuffers;
  ASSERT_GT(make(config_).plan().staging_buffers, 3);
  config_.staging_buffers = 3;
  config_.host_memory = needed(config_, Tier::host);
  EXPECT_EQ(make(config_).plan().staging_buffers, 3);
  config_.staging_buffers = Config::kAutoStagingBuffers;
  EXPECT_EQ(make(config_).plan().staging_buffers, 3);
  config_.staging_buffers = 4;
  EXPECT_THROW(make(config_), OutOfBudget);
}

// A buffer that no sub-group would pass through is left to what needs the room, unless it is asked
// for.
TEST_F(BudgetTest, TakesNoMoreStagingBuffersThanSubGroups) {
  constexpr int64_t kGrains = 29;
  config_.optimizer_state.fill({0, 0, 1});
  for (const int sub_groups : {1, 2, 3, 10}) {
    Config config = config_;
    config.sub_group_numel = (kGrains + sub_groups - 1) / sub_groups * kGrainNumel;
    config.staging_buffers = Config::kAutoStagingBuffers;
    EXPECT_EQ(make(config).plan().sub_groups, sub_groups);
    EXPECT_EQ(make(config).plan().staging_buffers, std::min(sub_groups, 8));
    config.staging_buffers = 3;
    EXPECT_EQ(make(config).plan().staging_buffers, 3);
  }
}

// What no parser has looked at is checked by the engine too.
TEST_F(BudgetTest, ImpossibleSettingsAreRefused) {
  const std::vector<std::function<void(Config&)>> edits = {
      [](Config& c) { c.sub_group_numel = 0; },
      [](Config& c) { c.sub_group_numel = kGrainNumel + 1; },
      [](Config& c) { c.staging_buffers = -1; },
      [](Config& c) { c.speculate = SpeculateChoice::always; },
      [](Config& c) { c.pin_state = PinChoice::always; },
      [](Config& c) { c.reduction = ReductionChoice::fast; },
      [](Config& c) { c.slots = 0; },
      [](Config& c) { c.slots = 3; },
      [](Config& c) { c.accumulation_steps = 1 << 30; },
      [](Config& c) { c.accumulation_steps = 0; },
      [](Config& c) {
        c.optimizer_state.fill({1, 0, 0}), c.param = {0, 1, 0};
      },
      [](Config& c) { c.optimizer_state[1].device += 0.1; },
      [](Config& c) {
        c.param = {0.5, 0.6, 0};
      },
      [](Config& c) {
        c.param = {0, 0, 1};
      },
      [](Config& c) { c.dtype = DType::int32; },
      [](Config& c) { c.loss_scale.constant = -1; },
      [](Config& c) { c.loss_scale.constant = 1e39; },
      [](Config& c) { c.loss_scale.initial_power = -1; },
      [](Config& c) { c.loss_scale.initial_power = 127; },
      [](Config& c) { c.loss_scale.window = 0; },
      [](Config& c) { c.loss_scale.hysteresis = 0; },
      [](Config& c) { c.loss_scale.min_scale = 0; },
      [](Config& c) { c.nvme_paths = {"/no/such/directory"}; },
      [](Config& c) { c.nvme_paths.clear(); },
      [](Config& c) {
        c.nvme_weights = {1, 1};
      },
      [](Config& c) { c.nvme_weights = {0}; },
  };
  for (size_t i = 0; i < edits.size(); ++i) {
    Config config = config_;
    edits[i](config);
    EXPECT_THROW(make(config), ConfigError) << "edit " << i;
  }
  Engine::Options options;
  options.micro_batch = {2, 16};
  EXPECT_THROW(Engine(Model{}, config_, World{}, options), ConfigError);
  options.micro_batch = {2, 17};
  EXPECT_THROW(Engine(models::gpt2(tiny_gpt2()), config_, World{}, options), ConfigError);
}

// More budget means fewer units recomputed, never other bits.
TEST_F(BudgetTest, ActivationsAreKeptAsFarAsTheBudgetGoes) {
  config_.optimizer_state.fill({0, 1, 0});
  const std::string digest = run_tiny(config_, 2).digest;
  const uint64_t least = needed(config_, Tier::device);
  config_.recompute = RecomputeChoice::automatic;
  int64_t recomputed = -1;
  for (const uint64_t budget : {uint64_t{0}, least}) {
    config_.device_memory = budget;
    const int64_t now = make(config_).plan().recomputed_units;
    EXPECT_GT(now, recomputed);
    recomputed = now;
    EXPECT_EQ(run_tiny(config_, 2).digest, digest);
  }
}

// "Name:   1234 kB" in /proc/self/status, in bytes.
uint64_t process_status(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    uint64_t kib = 0;
    if (key == name + ":" && status >> kib) return kib * 1024;
    status.ignore(1 << 16, '\n');
  }
  return 0;
}

TEST_F(BudgetTest, ResidentMemoryIsWithinThePlanAndItsOverhead) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep shadow memory of their own";
#endif
  run_tiny(config_, 2);  // libraries loaded, as in a run that has begun
  Engine engine = make(config_);
  const auto batches = testing_support::tiny_batches(config_.accumulation_steps, 1);
  for (int step = 0; step < 3; ++step) engine.train_step(testing_support::views(batches));
  const PlanSummary& plan = engine.plan();
  EXPECT_LE(process_status("VmHWM"),
            plan.needed_bytes[0] + plan.needed_bytes[1] + plan.process_overhead_bytes);
}

}  // namespace
}  // namespace strata
