// Parameters with weight decay and learning rate of their own: against PyTorch's AdamW with groups
// under DeepSpeed's OneCycle (tests/golden/parameter_groups.py), and against themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/runtime/lr_schedule.h"
#include "kernels/device/device.h"
#include "strata/layer_ops.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::ThrowsMessage;
using testing_support::run_tiny;
using testing_support::run_tiny_on_ranks;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;

// Recorded as bit patterns.
std::vector<float> floats(const json& bits) {
  std::vector<float> values;
  for (const json& b : bits) values.push_back(std::bit_cast<float>(b.get<uint32_t>()));
  return values;
}

// Its gradients are those recorded for a step, whose number is the batch's token.
class RecordedLayer final : public Layer {
 public:
  RecordedLayer(std::string name, std::vector<Parameter> parameters, const json& steps)
      : name_(std::move(name)), parameters_(std::move(parameters)) {
    for (const json& step : steps) {
      auto& grads = grads_.emplace_back();
      for (const Parameter& p : parameters_) grads.push_back(floats(step.at("grad").at(p.name)));
    }
  }

  std::string name() const override { return name_; }
  std::vector<Parameter> parameters() const override { return parameters_; }
  int64_t output_channels() const override { return 0; }
  LayerFootprint footprint(const ops::LayerOps&, const BatchShape&, DType) const override {
    return {};
  }
  void forward(const LayerForward& context) const override {
    context.ops.queue().run([loss = context.loss] {
      if (loss != nullptr) *loss = 0;
    });
  }
  void backward(const LayerBackward& context) const override {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      context.ops.queue().run([this, p, grad = context.grads[p].view, tokens = context.tokens] {
        const auto step = static_cast<size_t>(*tokens.as<int32_t>());
        std::memcpy(grad.data, grads_[step][p].data(), grad.bytes());
      });
    }
  }

 private:
  const std::string name_;
  const std::vector<Parameter> parameters_;
  std::vector<std::vector<std::vector<float>>> grads_;  // by step, by parameter
};

class Recorded : public testing::Test {
 protected:
  static json load() {
    std::ifstream file(STRATA_GOLDEN_DIR "/parameter_groups.json");
    return json::parse(file);
  }

  // One unit, in which weights alone decay.
  Model model() const {
    std::vector<Parameter> parameters;
    for (const auto& [name, bits] : golden_.at("start").items()) {
      Parameter& p = parameters.emplace_back();
      p.name = name;
      p.shape = {static_cast<int64_t>(bits.size())};
      p.weight_decay = name.ends_with(".weight");
    }
    Model model{.description = "recorded", .vocab_size = 100, .max_sequence = 1, .layers = {}};
    model.layers.push_back(
        std::make_shared<RecordedLayer>("layer", parameters, golden_.at("steps")));
    return model;
  }

  Config config() const {
    const json text = {
        {"train_batch_size", 1},
        {"optimizer", {{"type", "AdamW"}, {"params", golden_.at("optimizer")}}},
        {"scheduler", {{"type", "OneCycle"}, {"params", golden_.at("scheduler")}}},
        {"strata", {{"device", "host"}, {"parameter_groups", golden_.at("parameter_groups")}}}};
    Config config = Config::from_json(text.dump(), "ds.json", 1);
    config.compute_threads = config.optimizer_threads = 1;
    return config;
  }

  Engine start(const Config& config) const {
    Engine::Options options;
    options.micro_batch = {1, 1};
    Engine engine(model(), config, {}, options);
    for (const auto& [name, bits] : golden_.at("start").items()) {
      engine.write_parameter(name, floats(bits));
    }
    return engine;
  }

  static StepResult train(Engine& engine, size_t step) {
    const std::vector<int32_t> token = {static_cast<int32_t>(step)};
    const Batch batch{{1, 1}, token, token};
    return engine.train_step(std::span(&batch, 1));
  }

  // How many masters are further from PyTorch's than rounding explains, over all steps.
  //
  // With u for fp32's half ulp, an update's moments are off by no more than 4 u of their largest
  // gradient a step, ours and PyTorch's alike, and the elements' gradients are alike in all steps:
  // the root of exp_avg_sq is at least a fourth of the largest. So an update is off by less than
  // 64 u of its learning rate for each step that led to it, and a weight by another u a step.
  int64_t strays(Engine& engine) const {
    constexpr double kUnit = 0x1p-24;
    int64_t count = 0;
    double lr_sum = 0;
    const json& steps = golden_.at("steps");
    for (size_t s = 0; s < steps.size(); ++s) {
      lr_sum += kLargestScale * train(engine, s).lr;
      const double share = 2 * 64 * kUnit * static_cast<double>(s + 1);
      for (const auto& [name, bits] : steps[s].at("master").items()) {
        const std::vector<float> expected = floats(bits);
        const std::vector<float> ours = engine.read_parameter(name, StateKind::master);
        for (size_t i = 0; i < ours.size(); ++i) {
          const double bound = share * (lr_sum + std::abs(expected[i]));
          count += std::abs(ours[i] - expected[i]) <= bound ? 0 : 1;
        }
      }
    }
    return count;
  }

  static constexpr double kLargestScale = 2;
  const json golden_ = load();
};

TEST_F(Recorded, EveryElementIsPyTorchs) {
  Engine engine = start(config());
  EXPECT_EQ(strays(engine), 0);
  // Moments are sums of what has the size of the largest gradient.
  for (const auto& [name, moments] : golden_.at("moments").items()) {
    for (const StateKind kind : {StateKind::exp_avg, StateKind::exp_avg_sq}) {
      const std::vector<float> expected = floats(moments.at(std::string(strata::name(kind))));
      const std::vector<float> ours = engine.read_parameter(name, kind);
      for (size_t i = 0; i < ours.size(); ++i) {
        double largest = 0;
        for (const json& step : golden_.at("steps")) {
          const double grad = floats(step.at("grad").at(name))[i];
          largest = std::max(largest, kind == StateKind::exp_avg ? std::abs(grad) : grad * grad);
        }
        EXPECT_NEAR(ours[i], expected[i], 8 * 12 * 0x1p-24 * largest) << name << " " << i;
      }
    }
  }
}

// Each part of the setting shows, were it wrong: what an error of 1 % in it leaves is no rounding.
TEST_F(Recorded, AnErrorOfOnePercentShows) {
  const std::vector<std::pair<const char*, std::function<void(Config&)>>> errors = {
      {"no groups", [](Config& c) { c.parameter_groups.clear(); }},
      {"order", [](Config& c) { std::swap(c.parameter_groups[0], c.parameter_groups[1]); }},
      {"lr_scale", [](Config& c) { c.parameter_groups[1].lr_scale *= 1.01; }},
      {"weight_decay", [](Config& c) { c.parameter_groups[1].weight_decay = 0.3 * 1.01; }},
      {"default decay", [](Config& c) { c.optimizer.weight_decay *= 1.01; }},
      {"rate", [](Config& c) { c.schedule.one_cycle.max_lr *= 1.01; }},
      {"momentum", [](Config& c) { c.schedule.one_cycle.max_beta1 *= 0.99; }},
      {"no momentum", [](Config& c) { c.schedule.one_cycle.cycles_beta1 = false; }},
  };
  for (const auto& [name, plant] : errors) {
    Config wrong = config();
    plant(wrong);
    Engine engine = start(wrong);
    EXPECT_GT(strays(engine), 0) << name;
  }
}

const std::vector<ParameterGroup> kMixed = {
    {{"*.h.0.*.bias", "*ln_?.*"}, 0.0, 0.5}, {{"*.h.1.*"}, {}, 0.25}, {{"*wpe*"}, 0.3, 1.0}};

class ParameterGroups : public testing::Test {
 protected:
  static std::string digest(const std::vector<ParameterGroup>& groups) {
    Config config = tiny_config();
    config.parameter_groups = groups;
    return run_tiny(config, 3).digest;
  }
  TemporaryDirectory directory_;
};

// What a tiny GPT-2 has without groups, said in other ways.
TEST_F(ParameterGroups, EqualSettingsGiveEqualBits) {
  const std::string by_default = digest({});
  EXPECT_EQ(digest({{{"*.bias", "*ln_*"}, 0.0, 1.0}, {{"*"}, 0.1, 1.0}}), by_default);
  EXPECT_EQ(digest({{{"*ln_*.weight"}, {}, 1.0}, {{"*.weight"}, 0.1, 1.0}}), by_default);
  EXPECT_NE(digest({{{"*.bias", "*ln_*"}, 0.1, 1.0}}), by_default);
  EXPECT_NE(digest({{{"*.h.1.ln_2.bias"}, {}, 0.5}}), by_default);
}

TEST_F(ParameterGroups, AFactorOfZeroHoldsItsParametersStill) {
  Config config = tiny_config();
  config.parameter_groups = {{{"*.h.0.*"}, {}, 0.0}};
  Engine::Options options;
  options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
  Engine engine(models::gpt2(tiny_gpt2()), config, {}, options);
  const auto masters = [&] {
    std::map<std::string, std::vector<float>> result;
    for (const auto& layer : models::gpt2(tiny_gpt2()).layers) {
      for (const Parameter& p : layer->parameters()) {
        result[p.name] = engine.read_parameter(p.name, StateKind::master);
      }
    }
    return result;
  };
  const auto before = masters();
  for (uint64_t step = 0; step < 2; ++step) {
    const auto batches = testing_support::tiny_batches(config.accumulation_steps, step);
    engine.train_step(testing_support::views(batches));
  }
  for (const auto& [name, values] : masters()) {
    const bool held = name.find(".h.0.") != std::string::npos;
    EXPECT_EQ(values == before.at(name), held) << name;
  }
}

// P1, with settings that change within units, grains and sub-groups; OneCycle moves beta1.
TEST_F(ParameterGroups, PlacementAndSpeculationDoNotChangeBits) {
  Config config = tiny_config();
  config.compute_threads = config.optimizer_threads = 1;
  config.parameter_groups = kMixed;
  config.nvme_paths = {directory_.path()};
  config.schedule.kind = ScheduleKind::one_cycle;
  config.schedule.one_cycle = {.min_lr = 1e-4, .max_lr = 1e-3, .first_steps = 2, .second_steps = 2};
  for (const int ranks : {1, 2}) {
    std::vector<RunOutcome> outcomes;
    outcomes.push_back(run_tiny_on_ranks(ranks, config, 4));
    Config split = config;
    split.optimizer_state.fill({0.2, 0.37, 0.43});
    split.sub_group_numel = kGrainNumel;
    outcomes.push_back(run_tiny_on_ranks(ranks, split, 4));
    Config speculating = config;
    speculating.optimizer_state.fill({0, 0, 1});
    speculating.slots = 2;
    speculating.speculate = SpeculateChoice::always;
    outcomes.push_back(run_tiny_on_ranks(ranks, speculating, 4));
    for (const RunOutcome& outcome : outcomes) EXPECT_EQ(outcome.digest, outcomes[0].digest);
  }
}

TEST_F(ParameterGroups, APatternLikeNoNameIsRefusedAtStart) {
  EXPECT_THAT(
      [] {
        digest({{{"*"}, {}, 1.0}, {{"*.bias", "*.bais"}, 0.0, 1.0}});
      },
      ThrowsMessage<ConfigError>(HasSubstr(
          "\"strata.parameter_groups[1].match\" has the pattern \"*.bais\", which is like no "
          "parameter's name: correct or remove it (there is \"transformer.wte.weight\")")));
}

}  // namespace
}  // namespace strata
