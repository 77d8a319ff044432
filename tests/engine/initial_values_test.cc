// Parameters start with values from elsewhere: each element where it belongs, whatever divides the
// model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "strata/error.h"
#include "tests/engine/gpt2_harness.h"
#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing_support::failures_of_ranks;
using testing_support::for_world;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;

// Another number for every element, which 24 bits hold.
float value_of(std::string_view name, int64_t element) {
  const size_t hash = std::hash<std::string_view>()(name) % 128;
  return static_cast<float>(static_cast<int64_t>(hash) * (1 << 16) + element % (1 << 16));
}

void read(std::string_view name, int64_t first, std::span<float> out) {
  for (float& value : out) value = value_of(name, first++);
}

std::vector<float> whole(std::string_view name, const Shape& shape) {
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  read(name, 0, values);
  return values;
}

void expect_read(Engine& engine, const Model& model) {
  for (const auto& layer : model.layers) {
    for (const Parameter& parameter : layer->parameters()) {
      const StateKind kind = parameter.trainable ? StateKind::master : StateKind::param;
      const auto expected =
          parameter.slice
              ? models::slice_of(whole(parameter.slice->of, parameter.slice->shape), parameter)
              : whole(parameter.name, parameter.shape);
      EXPECT_EQ(engine.read_parameter(parameter.name, kind), expected) << parameter.name;
    }
  }
}

class InitialValues : public testing::Test {
 protected:
  InitialValues() {
    config_.dtype = DType::fp32;
    config_.nvme_paths = {directory_.path()};
    config_.param = {0.2, 0.3, 0.5};
    config_.optimizer_state.fill({0.2, 0.3, 0.5});
    config_.sub_group_numel = 3 * kGrainNumel;
  }

  Engine make(const ParameterReader& reader, const World& world = {}) const {
    Engine::Options options;
    options.micro_batch = {config_.micro_batch, tiny_gpt2().n_positions};
    options.initial_values = reader;
    return Engine(models::gpt2(tiny_gpt2()), for_world(config_, world), world, options);
  }

  const TemporaryDirectory directory_;
  Config config_ = tiny_config();
};

TEST_F(InitialValues, AreWhatParametersStartWith) {
  Engine engine = make(read);
  expect_read(engine, models::gpt2(tiny_gpt2()));
  EXPECT_THAT(engine.read_parameter("transformer.wte.weight", StateKind::exp_avg), Each(0));
}

TEST_F(InitialValues, ReachTilesByTheNameAndPlaceOfTheWhole) {
  config_.tiles = 3;
  Engine engine = make(read);
  expect_read(engine, models::gpt2(tiny_gpt2(), 3));
}

TEST_F(InitialValues, AreReadByEachRankForItsPart) {
  config_.param = {1, 0, 0};
  config_.optimizer_state.fill({1, 0, 0});
  constexpr int kRanks = 3;
  std::array<int64_t, kRanks> read_numel = {};
  const auto failures = failures_of_ranks(kRanks, [&](const World& world) {
    Engine engine = make(
        [&](std::string_view name, int64_t first, std::span<float> out) {
          read_numel[static_cast<size_t>(world.rank)] += static_cast<int64_t>(out.size());
          read(name, first, out);
        },
        world);
    expect_read(engine, models::gpt2(tiny_gpt2()));
  });
  EXPECT_THAT(failures, Each(""));
  int64_t all = 0;
  for (const int64_t numel : read_numel) all += numel;
  EXPECT_EQ(all, models::gpt2(tiny_gpt2()).num_parameters());
  EXPECT_THAT(read_numel, Each(testing::Lt(all / 2)));
}

TEST_F(InitialValues, AreFrozenParametersToo) {
  config_.accumulation_steps = 1;
  Model model;
  model.description = "two units";
  model.layers = {
      parameter_unit("mixed", {{"a", {5000}, {}}, {"fixed", {3, 4001}, {}, /*trainable=*/false}}),
      parameter_unit("frozen", {{"constant", {7}, {}, /*trainable=*/false}})};
  Engine::Options options;
  options.own_compute = true;
  options.initial_values = read;
  Engine engine(model, config_, {}, options);
  expect_read(engine, model);
}

TEST_F(InitialValues, ThatAreNotThereEndTheRunOnEveryRank) {
  const auto failures = failures_of_ranks(2, [&](const World& world) {
    Engine engine = make(
        [&](std::string_view name, int64_t first, std::span<float> out) {
          if (world.rank == 1) throw ConfigError("there is no such parameter");
          read(name, first, out);
        },
        world);
    engine.digest();
  });
  EXPECT_THAT(failures, Each(HasSubstr("there is no such parameter")));
}

}  // namespace
}  // namespace strata
