// Frozen parameters: gathered and computed on like the others, without gradient, state or update,
// wherever they lie.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/local_ranks.h"
#include "tests/engine/partly_frozen.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::failures_of_ranks;
using testing_support::for_world;
using testing_support::IsFrozen;
using testing_support::of_rank;
using testing_support::partly_frozen;
using testing_support::TemporaryDirectory;
using testing_support::tiny_batches;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;
using testing_support::views;

bool is_none(const std::string&) { return false; }
// The tied embedding, a matrix and a bias in the middle of their units, and a whole unit.
bool is_some(const std::string& name) {
  return name == "transformer.wte.weight" || name == "transformer.h.0.mlp.c_fc.weight" ||
         name == "transformer.h.0.attn.c_proj.bias" || name.starts_with("transformer.h.1.");
}
bool is_all_but_the_final_norm(const std::string& name) {
  return !name.starts_with("transformer.ln_f");
}

std::vector<std::string> names_of(const Model& model) {
  std::vector<std::string> names;
  for (const auto& layer : model.layers) {
    for (const Parameter& parameter : layer->parameters()) names.push_back(parameter.name);
  }
  return names;
}

struct Place {
  TierFractions param, state;
  int stage = 3;
};
constexpr Place kPlaces[] = {
    {{1, 0, 0}, {1, 0, 0}},           {{1, 0, 0}, {0, 0, 1}},    {{0, 1, 0}, {0, 1, 0}},
    {{0.4, 0.6, 0}, {0.2, 0.3, 0.5}}, {{0, 0, 1}, {0, 0, 1}},    {{0.2, 0.3, 0.5}, {0, 1, 0}},
    {{1, 0, 0}, {0, 0, 1}, 0},        {{1, 0, 0}, {1, 0, 0}, 1}, {{1, 0, 0}, {0, 1, 0}, 2}};

class FrozenParametersTest : public testing::Test {
 protected:
  FrozenParametersTest() {
    config_ = tiny_config();
    config_.nvme_paths = {directory_.path()};
    config_.sub_group_numel = 3 * kGrainNumel;
  }
  Engine make(const IsFrozen& is_frozen, const World& world = {}) const {
    Engine::Options options;
    options.micro_batch = {config_.micro_batch, tiny_gpt2().n_positions};
    return Engine(partly_frozen(models::gpt2(tiny_gpt2()), is_frozen), for_world(config_, world),
                  world, options);
  }
  void train(Engine& engine, int steps, const World& world = {}) const {
    for (int step = 0; step < steps; ++step) {
      const auto batches =
          tiny_batches(config_.accumulation_steps * world.size, static_cast<uint64_t>(step) + 100);
      const auto own = of_rank(views(batches), world);
      EXPECT_EQ(engine.train_step(own).moved, engine.plan().step_traffic);
    }
  }

  TemporaryDirectory directory_;
  Config config_;
  const std::vector<std::string> names_ = names_of(models::gpt2(tiny_gpt2()));
};

TEST_F(FrozenParametersTest, LeaveTheOthersTheGradientsThatTheyHaveAmongTrainableOnes) {
  Engine whole = make(is_none);
  Engine partly = make(is_some);
  train(whole, 1);
  train(partly, 1);
  for (const std::string& name : names_) {
    if (is_some(name)) continue;
    EXPECT_EQ(partly.read_parameter(name, StateKind::grad),
              whole.read_parameter(name, StateKind::grad))
        << name;
  }
}

TEST_F(FrozenParametersTest, KeepTheirValuesWhileTheOthersMove) {
  for (const IsFrozen& is_frozen : {IsFrozen(is_some), IsFrozen(is_all_but_the_final_norm)}) {
    Engine engine = make(is_frozen);
    std::vector<std::vector<float>> before;
    for (const std::string& name : names_) {
      before.push_back(engine.read_parameter(name, StateKind::param));
    }
    train(engine, 3);
    for (size_t i = 0; i < names_.size(); ++i) {
      const auto now = engine.read_parameter(names_[i], StateKind::param);
      EXPECT_EQ(now == before[i], is_frozen(names_[i])) << names_[i];
    }
  }
}

TEST_F(FrozenParametersTest, HaveNoStateToReadOrWrite) {
  Engine engine = make(is_some);
  const std::string name = "transformer.wte.weight";
  for (StateKind kind : {StateKind::grad, StateKind::master, StateKind::exp_avg}) {
    EXPECT_THROW(engine.read_parameter(name, kind), ConfigError);
  }
  const auto values = engine.read_parameter(name, StateKind::param);
  EXPECT_THROW(engine.write_parameter(name, values), ConfigError);
}

TEST_F(FrozenParametersTest, TakeNoStateBytes) {
  const PlanSummary whole = make(is_none).plan();
  const PlanSummary none = make(is_all_but_the_final_norm).plan();
  EXPECT_EQ(none.parameters, whole.parameters);
  // Their own 2 bytes apart, with what pads four units.
  const auto own = 2 * static_cast<uint64_t>(none.parameters + 4 * kGrainNumel);
  EXPECT_LT(none.training_state_bytes, own + whole.training_state_bytes / 10);
}

TEST_F(FrozenParametersTest, TrainToTheSameBitsWhereverTheyLie) {
  std::string digest;
  std::vector<float> frozen;
  for (const Place& place : kPlaces) {
    config_.param = place.param;
    config_.optimizer_state.fill(place.state);
    config_.stage = place.stage;
    Engine engine = make(is_some);
    train(engine, 3);
    const auto now = engine.read_parameter("transformer.wte.weight", StateKind::param);
    if (digest.empty()) {
      digest = engine.digest();
      frozen = now;
    }
    EXPECT_EQ(engine.digest(), digest);
    EXPECT_EQ(now, frozen);
  }
}

// Sharded, gathered, and read by name like the others; one state at each world size.
TEST_F(FrozenParametersTest, AreDividedAmongRanks) {
  config_.compute_threads = config_.optimizer_threads = 1;
  Engine alone = make(is_some);
  std::map<std::string, std::vector<float>> initial;
  for (const std::string& name : names_) {
    initial[name] = alone.read_parameter(name, StateKind::param);
  }
  for (const int ranks : {2, 3}) {
    std::string first_digest;
    for (const Place& place : kPlaces) {
      config_.param = place.param;
      config_.optimizer_state.fill(place.state);
      config_.stage = place.stage;
      std::vector<std::string> digests(static_cast<size_t>(ranks));
      const auto failures = failures_of_ranks(ranks, [&](const World& world) {
        Engine engine = make(is_some, world);
        train(engine, 3, world);
        for (const std::string& name : names_) {
          if (!is_some(name)) continue;
          EXPECT_EQ(engine.read_parameter(name, StateKind::param), initial.at(name)) << name;
        }
        digests[static_cast<size_t>(world.rank)] = engine.digest();
      });
      for (const std::string& failure : failures) EXPECT_EQ(failure, "");
      if (first_digest.empty()) first_digest = digests[0];
      for (const std::string& digest : digests) EXPECT_EQ(digest, first_digest);
    }
  }
}

}  // namespace
}  // namespace strata
