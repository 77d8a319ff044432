// Memory-centric tiling: a block or a vocabulary too wide for the device's budget trains in tiles,
// from the same initial values and with the same losses but for rounding.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "strata/error.h"
#include "tests/engine/gpt2_harness.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing_support::TemporaryDirectory;
using testing_support::tiny_batches;
using testing_support::tiny_config;
using testing_support::views;

// Wide blocks: 0.8 million parameters each, of 30,000 in what else there is.
models::Gpt2Config wide_gpt2() {
  models::Gpt2Config config = testing_support::tiny_gpt2();
  config.n_embd = 256;
  return config;
}

// A vocabulary that is most of the model: 3.2 million parameters of 3.3, for 32 rows of logits.
models::Gpt2Config wide_vocabulary() {
  models::Gpt2Config config = testing_support::tiny_gpt2();
  config.vocab_size = 50'257;
  return config;
}

class Tiles : public testing::Test {
 protected:
  Tiles() {
    config_.nvme_paths = {directory_.path()};
    config_.param = config_.grad = {0, 0, 1};
    config_.optimizer_state.fill({0, 0, 1});
    config_.prefetch_numel = 0;
  }

  Engine engine(int64_t tiles, const models::Gpt2Config& gpt2 = wide_gpt2()) {
    config_.tiles = tiles;
    Engine::Options options;
    options.micro_batch = {config_.micro_batch, gpt2.n_positions};
    return EngineTestAccess::make(models::gpt2(gpt2), config_, options, {});
  }
  StepResult step(Engine& engine, uint64_t seed) const {
    const auto batches = tiny_batches(config_.accumulation_steps, seed);
    return engine.train_step(views(batches));
  }
  static uint64_t device_bytes(const Engine& engine) {
    return engine.plan().needed_bytes[static_cast<size_t>(Tier::device)];
  }

  const TemporaryDirectory directory_;
  Config config_ = tiny_config();
};

TEST_F(Tiles, FitABlockIntoABudgetThatItIsTooWideFor) {
  config_.recompute = RecomputeChoice::always;
  const uint64_t whole = device_bytes(engine(1));
  const uint64_t tiled = device_bytes(engine(4));
  // Two units of parameters and two of gradients in bf16 are most of it: a quarter of a half each.
  EXPECT_LT(tiled, whole / 3);
  config_.device_memory = tiled;
  EXPECT_THAT([&] { engine(1); },
              testing::ThrowsMessage<OutOfBudget>(testing::HasSubstr("strata.tiles = 4")));
  Engine fits = engine(4);
  EXPECT_GT(step(fits, 100).loss, 0);
}

TEST_F(Tiles, FitAVocabularyIntoABudgetThatItIsTooWideFor) {
  config_.recompute = RecomputeChoice::always;
  config_.order = OrderChoice::plain;
  const uint64_t table = sizeof(uint16_t) * 50'257 * 64;
  const uint64_t whole = device_bytes(engine(1, wide_vocabulary()));
  const uint64_t tiled = device_bytes(engine(8, wide_vocabulary()));
  // Of the table and its logits, half as much, three eighths and one eighth stay; and all of the
  // gradient, which waits from head to embedding.
  EXPECT_LT(tiled, whole - table);
  config_.device_memory = tiled;
  EXPECT_THROW(engine(1, wide_vocabulary()), OutOfBudget);
  EXPECT_THAT([&] { engine(1, wide_vocabulary()); },
              testing::ThrowsMessage<OutOfBudget>(testing::HasSubstr("strata.tiles = 4")));
  Engine fits = engine(8, wide_vocabulary());
  EXPECT_GT(step(fits, 100).loss, 0);
}

TEST_F(Tiles, StartWithTheWholesValues) {
  config_.dtype = DType::fp32;
  Engine whole = engine(1);
  Engine tiled = engine(3);
  int slices = 0;
  for (const auto& layer : models::gpt2(wide_gpt2(), 3).layers) {
    for (const Parameter& parameter : layer->parameters()) {
      const auto values = tiled.read_parameter(parameter.name, StateKind::master);
      if (!parameter.slice) {
        EXPECT_EQ(values, whole.read_parameter(parameter.name, StateKind::master))
            << parameter.name;
        continue;
      }
      ++slices;
      EXPECT_EQ(
          values,
          models::slice_of(whole.read_parameter(parameter.slice->of, StateKind::master), parameter))
          << parameter.name;
    }
  }
  EXPECT_EQ(slices, 2 * 2 * 3 * 3 + 3);
}

// fp32: what a step loses to the other order of sums is of the order of 2^-24 of the loss, and
// Adam's steps of 1e-3 make it a little more.
TEST_F(Tiles, TrainAsTheWholeDoesButForRounding) {
  config_.dtype = DType::fp32;
  config_.recompute = RecomputeChoice::always;
  Engine whole = engine(1);
  Engine recomputed = engine(4);
  config_.recompute = RecomputeChoice::automatic;
  Engine kept = engine(4);
  for (uint64_t s = 0; s < 4; ++s) {
    const StepResult expected = step(whole, 100 + s);
    const StepResult result = step(recomputed, 100 + s);
    EXPECT_NEAR(result.loss, expected.loss, 1e-5 * expected.loss) << s;
    EXPECT_NEAR(result.grad_norm, expected.grad_norm, 1e-4 * expected.grad_norm) << s;
    EXPECT_EQ(step(kept, 100 + s).grad_norm, result.grad_norm) << s;
  }
}

// A layer's tiles drop the same elements, however many they are.
TEST_F(Tiles, DropWhatTheirLayerDrops) {
  config_.dtype = DType::fp32;
  models::Gpt2Config gpt2 = wide_gpt2();
  gpt2.embd_pdrop = gpt2.resid_pdrop = gpt2.attn_pdrop = 0.3;
  Engine two = engine(2, gpt2);
  Engine four = engine(4, gpt2);
  for (uint64_t s = 0; s < 2; ++s) {
    const StepResult expected = step(two, 100 + s);
    const StepResult result = step(four, 100 + s);
    EXPECT_NEAR(result.loss, expected.loss, 1e-5 * expected.loss) << s;
    EXPECT_NEAR(result.grad_norm, expected.grad_norm, 1e-4 * expected.grad_norm) << s;
  }
}

TEST_F(Tiles, BelongToTheGroupsOfWhatTheyAreSlicesOf) {
  config_.parameter_groups = {{.match = {"*.c_fc.weight"}, .weight_decay = {}, .lr_scale = 0}};
  Engine frozen_by_rate = engine(2);
  const std::string name = "transformer.h.1.mlp.c_fc.weight.tile1";
  const auto before = frozen_by_rate.read_parameter(name, StateKind::master);
  step(frozen_by_rate, 100);
  EXPECT_EQ(frozen_by_rate.read_parameter(name, StateKind::master), before);
}

TEST_F(Tiles, EvaluateAsTheWholeDoesButForRounding) {
  config_.dtype = DType::fp32;
  const auto batches = tiny_batches(2, 7);
  const double expected = engine(1).evaluate(views(batches));
  EXPECT_NEAR(engine(4).evaluate(views(batches)), expected, 1e-5 * expected);
}

// Each tile's columns, though one takes the place of the other.
TEST_F(Tiles, GiveTheWholesScoresButForRounding) {
  config_.dtype = DType::fp32;
  Engine whole = engine(1), tiled = engine(3);
  const auto batches = tiny_batches(1, 7);
  const Batch batch = views(batches)[0];
  EXPECT_THAT(tiled.scores(batch),
              testing::Pointwise(testing::FloatNear(1e-5f), whole.scores(batch)));
  const std::array tokens = {3, 1, 2};
  EXPECT_THAT(tiled.next_token_scores(tokens),
              testing::Pointwise(testing::FloatNear(1e-5f), whole.next_token_scores(tokens)));
}

TEST_F(Tiles, AreRefusedWhereTheModelHasNone) {
  Model model = models::gpt2(wide_gpt2());
  model.tiled = {};
  config_.tiles = 2;
  Engine::Options options;
  options.micro_batch = {config_.micro_batch, 16};
  EXPECT_THAT([&] { Engine(model, config_, {}, options); },
              testing::ThrowsMessage<ConfigError>(testing::HasSubstr("strata.tiles")));
  config_.tiles = 257;
  model = models::gpt2(wide_gpt2());
  EXPECT_THAT([&] { Engine(model, config_, {}, options); },
              testing::ThrowsMessage<ConfigError>(testing::HasSubstr("tiles is 257")));
}

// A layer that says of itself that it is a further tile, where it cannot be one.
class Misplaced final : public Layer {
 public:
  explicit Misplaced(std::shared_ptr<const Layer> layer, int64_t channels)
      : layer_(std::move(layer)), channels_(channels) {}
  std::string name() const override { return "misplaced"; }
  std::vector<Parameter> parameters() const override { return layer_->parameters(); }
  std::vector<std::string> shared_parameters() const override {
    return layer_->shared_parameters();
  }
  int64_t output_channels() const override { return channels_; }
  bool is_further_tile() const override { return true; }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override {
    return layer_->footprint(ops, batch, dtype);
  }
  void forward(const LayerForward&) const override {}
  void backward(const LayerBackward&) const override {}

 private:
  const std::shared_ptr<const Layer> layer_;
  const int64_t channels_;
};

TEST_F(Tiles, AreRefusedWhereTheyCannotBe) {
  const auto refusal = [&](size_t place, int64_t channels, const std::string& words) {
    Model model = models::gpt2(wide_gpt2());
    auto& layer = model.layers[place];
    layer = std::make_shared<Misplaced>(layer, channels);
    Engine::Options options;
    options.micro_batch = {config_.micro_batch, 16};
    EXPECT_THAT([&] { Engine(model, config_, {}, options); },
                testing::ThrowsMessage<ConfigError>(testing::HasSubstr(words)));
  };
  refusal(0, 256, "the model's first");
  refusal(3, 0, "0 output channels instead of 256");
  refusal(2, 255, "255 output channels instead of 256");
}

}  // namespace
}  // namespace strata
