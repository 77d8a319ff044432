// P1 over all kinds of state at once: parameters, gradients, optimizer state and activations placed
// anywhere, in either order of units, on one rank or two, leave one training state; and each run
// moves exactly the bytes that its plan says. Combinations are drawn from a seed, which fails by
// name.
//
// STRATA_TIER_SEEDS=N draws N of them in place of the suite's.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <utility>

#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::run_tiny_on_ranks;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;

constexpr int kSteps = 3;

uint64_t seed_count() {
  const char* const asked = std::getenv("STRATA_TIER_SEEDS");
  return asked != nullptr ? std::strtoull(asked, nullptr, 10) : 72;
}

struct Sample {
  int ranks = 1;
  Config config;
  engine::Disturbance disturbance;
  std::string description;
};

class Sampler {
 public:
  explicit Sampler(uint64_t seed) : random_(seed), seed_(seed) {}

  Sample draw(const std::string& directory) {
    Sample sample;
    sample.ranks = 1 + static_cast<int>(seed_ % 2);
    Config& c = sample.config;
    c = base(directory);
    const double on_device = one_of({0.0, 0.0, 0.0, 0.3, 1.0});
    for (TierFractions& kind : c.optimizer_state) kind = fractions(on_device);
    c.stage = one_of({3, 3, 3, 2, 1, 0});
    const bool whole = on_device > 0 || c.stage < 3;
    c.param = whole ? TierFractions{1, 0, 0} : fractions(one_of({0.0, 0.0, 0.4, 1.0}));
    c.grad = fractions(0);
    c.activation = fractions(one_of({0.0, 0.0, 0.5, 1.0}));
    c.order = one_of({OrderChoice::plain, OrderChoice::vertical, OrderChoice::automatic});
    c.overlap = one_of({true, true, true, false});
    c.recompute = one_of({RecomputeChoice::automatic, RecomputeChoice::always});
    c.sub_group_numel = one_of({1, 3, 5, 100}) * kGrainNumel;
    c.staging_buffers = one_of({Config::kAutoStagingBuffers, 1, 2});
    c.slots = one_of({1, 1, 2});
    c.persistent_numel = one_of({0, 0, 100});
    c.prefetch_numel = one_of({int64_t{0}, int64_t{50'000'000}});
    if (one_of({true, false})) c.master_codec = Codec::split16;
    if (one_of({true, false})) sample.disturbance.delay_seed = seed_ + 1;
    if (one_of({true, false, false})) sample.disturbance.io = testing_support::rough_disk(seed_);
    c.tiles = one_of({1, 1, 3});
    sample.disturbance.guard_memory = one_of({true, false});
    describe(sample);
    return sample;
  }

  static Config base(const std::string& directory) {
    Config c = tiny_config();
    c.nvme_paths = {directory};
    c.accumulation_steps = 3;
    c.compute_threads = c.optimizer_threads = 1;
    c.comm_timeout_s = 60;
    return c;
  }

 private:
  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[std::uniform_int_distribution<size_t>(0, values.size() - 1)(random_)];
  }
  // The rest on host and nvme: all of it on one, or divided.
  TierFractions fractions(double on_device) {
    const double rest = 1 - on_device;
    const double on_nvme = rest * one_of({0.0, 1.0, 1.0, 0.37, 0.63});
    return {on_device, rest - on_nvme, on_nvme};
  }
  static std::string text(const TierFractions& f) {
    return fmt::format("{:.2f}/{:.2f}/{:.2f}", f.device, f.host, f.nvme);
  }
  void describe(Sample& sample) const {
    const Config& c = sample.config;
    sample.description = fmt::format(
        "seed {}: {} ranks, stage {}, param {}, grad {}, master {}, exp_avg {}, exp_avg_sq {}, "
        "activation {}, order {}, overlap {}, slots {}, sub-groups of {}, tiles {}",
        seed_, sample.ranks, c.stage, text(c.param), text(c.grad), text(c.optimizer_state[0]),
        text(c.optimizer_state[1]), text(c.optimizer_state[2]), text(c.activation),
        static_cast<int>(c.order), c.overlap, c.slots, c.sub_group_numel, c.tiles);
  }

  std::mt19937_64 random_;
  const uint64_t seed_;
};

class AnyPlacement : public testing::TestWithParam<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Seeds, AnyPlacement, testing::Range<uint64_t>(0, seed_count()));

TEST_P(AnyPlacement, LeavesTheSameBits) {
  static std::map<std::pair<int, int64_t>, RunOutcome> everything_on_the_device;
  const TemporaryDirectory directory;
  const Sample sample = Sampler(GetParam()).draw(directory.path());
  if (sample.ranks > 1 && testing_support::device_under_test() == DeviceChoice::cuda) {
    GTEST_SKIP() << "ranks take a GPU each";
  }
  // Tiles are part of the model's arithmetic.
  const std::pair arithmetic(sample.ranks, sample.config.tiles);
  auto reference = everything_on_the_device.find(arithmetic);
  if (reference == everything_on_the_device.end()) {
    Config config = Sampler::base(directory.path());
    config.tiles = sample.config.tiles;
    const RunOutcome outcome = run_tiny_on_ranks(sample.ranks, config, kSteps);
    reference = everything_on_the_device.emplace(arithmetic, outcome).first;
  }
  SCOPED_TRACE(sample.description);
  const RunOutcome outcome =
      run_tiny_on_ranks(sample.ranks, sample.config, kSteps, sample.disturbance);
  EXPECT_EQ(outcome.digest, reference->second.digest);
  EXPECT_EQ(outcome.losses, reference->second.losses);
}

// Every kind has been where it is said to be: in a file of its own, with bytes that went there.
TEST(EveryKind, GoesThroughItsFiles) {
  const TemporaryDirectory directory;
  Config config = Sampler::base(directory.path());
  config.param = config.grad = config.activation = {0, 0, 1};
  config.optimizer_state.fill({0, 0, 1});
  config.order = OrderChoice::plain;
  Engine::Options options;
  options.micro_batch = {config.micro_batch, testing_support::tiny_gpt2().n_positions};
  Engine engine =
      EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), config, options, {});
  const auto batches = testing_support::tiny_batches(config.accumulation_steps, 1);
  engine.train_step(testing_support::views(batches));
  engine.settle();
  for (StateKind kind : {StateKind::param, StateKind::grad, StateKind::activation}) {
    const LinkBytes moved = EngineTestAccess::recorder(engine).link_bytes(kind);
    EXPECT_GT(moved[static_cast<size_t>(Activity::nvme_read)], 0u) << name(kind);
    EXPECT_GT(moved[static_cast<size_t>(Activity::nvme_write)], 0u) << name(kind);
    uint64_t in_memory = 0;
    for (const Reservation& r : engine.plan().reservations) {
      if (r.name == fmt::format("{} on host", name(kind)) ||
          r.name == fmt::format("{} on device", name(kind))) {
        in_memory += r.bytes;
      }
    }
    EXPECT_EQ(in_memory, 0u) << name(kind);
  }
}

// With 4 micro-batches and parameters on disk, vertical order reads them once a pass instead of
// four times.
TEST(VerticalOrder, MovesAtMostThreeTenthsOfThePlainOrdersParameters) {
  const TemporaryDirectory directory;
  Config config = Sampler::base(directory.path());
  config.accumulation_steps = 4;
  config.param = config.grad = {0, 0, 1};
  config.optimizer_state.fill({0, 0, 1});
  models::Gpt2Config deep = testing_support::tiny_gpt2();
  deep.n_layer = 12;
  const auto param_bytes_read = [&](OrderChoice order) {
    config.order = order;
    Engine::Options options;
    options.micro_batch = {config.micro_batch, deep.n_positions};
    Engine engine = EngineTestAccess::make(models::gpt2(deep), config, options, {});
    const auto batches = testing_support::tiny_batches(config.accumulation_steps, 1);
    engine.train_step(testing_support::views(batches));
    engine.settle();
    return static_cast<double>(EngineTestAccess::recorder(engine).link_bytes(
        StateKind::param)[static_cast<size_t>(Activity::nvme_read)]);
  };
  const double plain = param_bytes_read(OrderChoice::plain);
  EXPECT_GT(plain, 0);
  EXPECT_LE(param_bytes_read(OrderChoice::vertical), 0.3 * plain);
  EXPECT_LE(param_bytes_read(OrderChoice::automatic), 0.3 * plain) << "auto chooses it";
}

}  // namespace
}  // namespace strata
