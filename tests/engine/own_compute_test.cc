// The verbs around compute of the caller's: parameters come as they are, gradients go where they
// belong, in any order of units, from any placement; calls out of turn are refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "strata/error.h"
#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing::HasSubstr;
using testing_support::failures_of_ranks;
using testing_support::for_world;
using testing_support::TemporaryDirectory;

constexpr int kUnits = 5;
constexpr int kSteps = 3;
constexpr int kMicroBatches = 2;

// Units of 1 to 5 parts of 5000 elements, one of them frozen in every unit but the first.
Model model() {
  Model model;
  for (int u = 0; u < kUnits; ++u) {
    std::vector<Parameter> parameters;
    for (int p = 0; p <= u; ++p) {
      const std::string name = "unit" + std::to_string(u) + ".p" + std::to_string(p);
      parameters.push_back({name, {5, 1000}, {Initializer::Kind::normal, 1}, p != 1, true});
    }
    model.layers.push_back(parameter_unit("unit" + std::to_string(u), parameters));
  }
  return model;
}

Config base(const std::string& directory) {
  Config config = testing_support::tiny_config();
  config.dtype = DType::fp32;
  config.accumulation_steps = kMicroBatches;
  config.sub_group_numel = 2 * kGrainNumel;
  config.nvme_paths = {directory};
  config.compute_threads = config.optimizer_threads = 1;
  config.comm_timeout_s = 60;
  return config;
}

// The gradient of half the squared distance to a target that depends on step and micro-batch.
void pull(const TensorView& parameter, const TensorView& gradient, int seed) {
  const auto* p = parameter.as<float>();
  auto* g = gradient.as<float>();
  for (int64_t i = 0; i < parameter.numel(); ++i) {
    g[i] = p[i] - 0.01f * static_cast<float>((i * 7 + seed * 13) % 101);
  }
}

using Order = std::vector<int>;
Order forward_order() {
  Order order(kUnits);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

class OwnComputeTest : public testing::Test {
 protected:
  Engine make(const Config& config, const World& world = {}, int held_units = 2) const {
    Engine::Options options;
    options.own_compute = true;
    options.held_units = held_units;
    return Engine(model(), for_world(config, world), world, options);
  }

  static void use(Engine& engine, int unit, int seed) {
    const UnitLease lease = engine.gather(unit);
    const auto gradients = engine.gradients(unit);
    ASSERT_EQ(gradients.size(), lease.parameters().size());
    for (size_t p = 0; p < gradients.size(); ++p) {
      EXPECT_EQ(gradients[p].data == nullptr, p == 1) << "a frozen parameter has no gradient";
      if (gradients[p]) pull(lease[p], gradients[p], seed);
    }
    engine.reduce(unit);
  }

  // One digest of all ranks, each delayed in its own way.
  std::string train(
      const Config& config, int ranks = 1,
      const std::function<Order(int step)>& order = [](int) { return forward_order(); }) const {
    std::string digest;
    const auto failures = failures_of_ranks(ranks, [&](const World& world) {
      Engine::Options options;
      options.own_compute = true;
      engine::Disturbance disturbance;
      disturbance.delay_seed = static_cast<uint64_t>(world.rank) + 1;
      Engine engine =
          EngineTestAccess::make(model(), for_world(config, world), options, disturbance, world);
      for (int step = 0; step < kSteps; ++step) {
        for (int m = 0; m < kMicroBatches; ++m) {
          for (int unit : order(step)) use(engine, unit, step * kMicroBatches + m);
        }
        const StepResult result = engine.step(1.5);
        EXPECT_EQ(result.loss, 1.5);
        EXPECT_EQ(result.step, step + 1);
        EXPECT_GT(result.grad_norm, 0);
      }
      const std::string own = engine.digest();
      if (world.rank == 0) digest = own;
    });
    for (const std::string& failure : failures) EXPECT_EQ(failure, "");
    return digest;
  }

  const TemporaryDirectory directory_;
  const Config base_ = base(directory_.path());
};

TEST_F(OwnComputeTest, MovesParametersTowardsTheirTargets) {
  Config config = base_;
  config.gradient_clipping = 0;
  config.optimizer.lr = 0.05;
  Engine engine = make(config);
  double first = 0;
  double last = 0;
  for (int step = 0; step < 60; ++step) {
    for (int m = 0; m < kMicroBatches; ++m) {
      for (int unit = 0; unit < kUnits; ++unit) use(engine, unit, 1);
    }
    last = engine.step(0).grad_norm;
    if (step == 0) first = last;
  }
  EXPECT_LT(last, 0.2 * first);
}

TEST_F(OwnComputeTest, LeavesTheSameBitsFromAnyPlacementAndStage) {
  const std::string reference = train(base_);
  const std::vector<std::pair<const char*, std::function<void(Config&)>>> ways = {
      {"host",
       [](Config& c) {
         c.param = {0, 1, 0}, c.optimizer_state.fill({0, 1, 0});
       }},
      {"nvme",
       [](Config& c) {
         c.param = c.grad = {0, 0, 1};
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"split",
       [](Config& c) {
         c.param = {0.2, 0.4, 0.4};
         c.optimizer_state.fill({0, 0.5, 0.5});
       }},
      {"no_overlap",
       [](Config& c) {
         c.overlap = false;
         c.param = {0, 0, 1};
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"stage_0", [](Config& c) { c.stage = 0; }},
      {"stage_2", [](Config& c) { c.stage = 2; }}};
  for (const auto& [name, edit] : ways) {
    Config config = base_;
    edit(config);
    EXPECT_EQ(train(config), reference) << name;
  }
  // Ranks that have the same gradients have one rank's mean; the norm is summed in another order.
  Config unclipped = base_;
  unclipped.gradient_clipping = 0;
  const std::string alone = train(unclipped);
  for (int stage : {0, 1, 2, 3}) {
    Config config = unclipped;
    config.stage = stage;
    if (stage == 3) {
      config.param = {0, 0.5, 0.5};
      config.optimizer_state.fill({0, 0.5, 0.5});
    }
    EXPECT_EQ(train(config, 2), alone) << "stage " << stage;
  }
}

TEST_F(OwnComputeTest, LeavesTheSameBitsInAnyOrderOfUnits) {
  Config config = base_;
  config.param = {0, 0.3, 0.7};
  config.optimizer_state.fill({0, 0, 1});
  const std::vector<Order> orders = {{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 0, 4, 1, 3}};
  for (int ranks : {1, 2, 3}) {
    EXPECT_EQ(train(config, ranks, [&](int step) { return orders[static_cast<size_t>(step) % 3]; }),
              train(config, ranks))
        << ranks << " ranks";
  }
}

// A unit may be reduced without having been gathered, behind an update that is still under way; and
// a step that ends early writes nothing that is held.
TEST_F(OwnComputeTest, AUnitThatIsOnlyReducedIsUpdatedInTurn) {
  const auto train_blindly = [&](bool gathers, bool overlaps) {
    Config config = base_;
    config.optimizer_state.fill({0, 0, 1});
    config.slots = 2;
    config.overlap_update = overlaps;
    Engine::Options options;
    options.own_compute = true;
    engine::Disturbance disturbance;
    disturbance.delay_seed = 5;
    Engine engine = EngineTestAccess::make(model(), config, options, disturbance, {});
    for (int step = 0; step < 6; ++step) {
      for (int m = 0; m < kMicroBatches; ++m) {
        for (int unit = 0; unit < kUnits; ++unit) {
          if (gathers) engine.gather(unit);
          for (const TensorView& gradient : engine.gradients(unit)) {
            for (int64_t i = 0; i < gradient.numel(); ++i) {
              gradient.as<float>()[i] = static_cast<float>(i % 7 + step + unit);
            }
          }
          engine.reduce(unit);
        }
      }
      engine.step(0);
    }
    return engine.digest();
  };
  const std::string reference = train_blindly(true, false);
  EXPECT_EQ(train_blindly(false, false), reference);
  EXPECT_EQ(train_blindly(false, true), reference);
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

class OutOfTurn : public OwnComputeTest {
 protected:
  OutOfTurn() : engine_(make(on_host(base_))) {}
  static Config on_host(Config config) {
    config.param = {0, 1, 0};
    config.optimizer_state.fill({0, 1, 0});
    return config;
  }
  Engine engine_;
};

TEST_F(OutOfTurn, AStepNeedsEveryUnit) {
  use(engine_, 0, 0);
  EXPECT_THAT(error_of([&] { engine_.step(0); }), HasSubstr("unit 0 was reduced 1 times"));
}

TEST_F(OutOfTurn, AStepNeedsItsParametersBack) {
  const UnitLease lease = engine_.gather(2);
  for (int m = 0; m < kMicroBatches; ++m) {
    for (int unit = 0; unit < kUnits; ++unit) use(engine_, unit, 0);
  }
  EXPECT_THAT(error_of([&] { engine_.step(0); }), HasSubstr("let go"));
}

TEST_F(OutOfTurn, AReductionNeedsGradients) {
  EXPECT_THAT(error_of([&] { engine_.reduce(1); }), HasSubstr("unit 1 is reduced without"));
}

TEST_F(OutOfTurn, AUnitIsReducedOnceAMicroBatch) {
  for (int m = 0; m < kMicroBatches; ++m) use(engine_, 3, m);
  EXPECT_THAT(error_of([&] { engine_.reduce(3); }), HasSubstr("call step"));
  EXPECT_THAT(error_of([&] { engine_.gradients(3); }), HasSubstr("call step"));
}

TEST_F(OutOfTurn, NoMoreUnitsAreHeldThanThereIsRoomFor) {
  std::vector<UnitLease> held;
  EXPECT_THAT(error_of([&] {
                for (int unit = 0; unit < kUnits; ++unit) held.push_back(engine_.gather(unit));
              }),
              HasSubstr("Options::held_units"));
  EXPECT_EQ(held.size(), 3u);
}

TEST_F(OutOfTurn, ParametersAreWrittenBetweenSteps) {
  engine_.gather(0);
  const std::vector<float> values(5000, 1);
  EXPECT_THAT(error_of([&] { engine_.write_parameter("unit0.p0", values); }),
              HasSubstr("middle of a step"));
}

TEST_F(OutOfTurn, OptionsThatCannotBeAreRefused) {
  EXPECT_THAT(error_of([&] { make(base_, {}, 0); }), HasSubstr("held_units is below 1"));
  Config config = base_;
  config.optimizer_state.fill({0, 0, 1});
  config.slots = 2;
  config.speculate = SpeculateChoice::always;
  EXPECT_THAT(error_of([&] { make(config); }), HasSubstr("strata.speculate cannot be"));
}

TEST_F(OutOfTurn, OtherVerbsAreOfOtherModels) {
  EXPECT_THAT(error_of([&] { engine_.train_step({}); }), HasSubstr("use gather, reduce and step"));
  EXPECT_THAT(error_of([&] { engine_.evaluate({}); }), HasSubstr("losses too"));
  EXPECT_THAT(error_of([&] { engine_.gather(kUnits); }), HasSubstr("the model has 5"));
  Engine::Options options;
  options.micro_batch = {2, 16};
  Engine layers(models::gpt2(testing_support::tiny_gpt2()), base_, {}, options);
  EXPECT_THAT(error_of([&] { layers.gather(0); }), HasSubstr("Options::own_compute"));
}

}  // namespace
}  // namespace strata
