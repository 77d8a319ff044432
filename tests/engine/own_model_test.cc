// A model of one's own, of public layers, on features instead of tokens: gradients are the
// mathematics', placement and world size change nothing, scores are all rows', and data that do not
// fit the model are refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device/device.h"
#include "strata/error.h"
#include "tests/engine/local_ranks.h"
#include "tests/engine/perceptron.h"
#include "tests/engine/perceptron_reference.h"
#include "tests/engine/tiny_run.h"

namespace strata::perceptron {
namespace {

using testing::HasSubstr;
using testing_support::failures_of_ranks;
using testing_support::for_world;
using testing_support::of_rank;
using testing_support::TemporaryDirectory;

constexpr int kMicroBatches = 2;
constexpr int kSteps = 3;

Config base(const std::string& directory) {
  Config config = testing_support::tiny_config();
  config.micro_batch = kShape.batch;
  config.accumulation_steps = kMicroBatches;
  config.dtype = DType::fp32;
  config.gradient_clipping = 0;  // ranks add up the norm in another order
  config.sub_group_numel = kGrainNumel;
  config.nvme_paths = {directory};
  config.compute_threads = config.optimizer_threads = 1;
  config.comm_timeout_s = 60;
  return config;
}

Engine make(const Config& config, const World& world = {}, const Model& model = model_of(kSpecs)) {
  Engine::Options options;
  options.micro_batch = kShape;
  return Engine(model, for_world(config, world), world, options);
}

class OwnModelTest : public testing::Test {
 protected:
  const TemporaryDirectory directory_;
  const Config base_ = base(directory_.path());
};

TEST_F(OwnModelTest, HasTheGradientsOfItsMathematics) {
  Engine engine = make(base_);
  Reference reference(engine);
  const auto data = samples(kMicroBatches, 1);
  double loss = 0;
  for (const Sample& sample : data) loss += reference.backward(sample) / kMicroBatches;
  EXPECT_NEAR(engine.train_step(views(data)).loss, loss, 1e-6);
  for (size_t layer = 0; layer < kSpecs.size(); ++layer) {
    const std::string name = kSpecs[layer].name;
    expect_close(engine.read_parameter(name + ".weight", StateKind::grad),
                 reference.weight_grads[layer], name.c_str());
    expect_close(engine.read_parameter(name + ".bias", StateKind::grad),
                 reference.bias_grads[layer], name.c_str());
  }
}

TEST_F(OwnModelTest, GivesTheScoresOfAllRows) {
  Engine engine = make(base_);
  Reference reference(engine);
  const auto data = samples(2, 5);
  for (const Sample& sample : data) {
    expect_close(engine.scores(sample.view()), reference.forward(sample), "scores");
  }
}

// Of all ranks, each with its part of the same data.
std::string digest_of(const Config& config, int ranks = 1) {
  std::string digest;
  const auto failures = failures_of_ranks(ranks, [&](const World& world) {
    Config own = config;
    own.accumulation_steps = kMicroBatches / ranks;
    Engine engine = make(own, world);
    for (int step = 0; step < kSteps; ++step) {
      const auto data = samples(kMicroBatches, static_cast<uint64_t>(step));
      const StepResult result = engine.train_step(of_rank(views(data), world));
      EXPECT_EQ(result.moved, engine.plan().step_traffic);
    }
    const std::string rank_digest = engine.digest();
    if (world.rank == 0) digest = rank_digest;
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  return digest;
}

TEST_F(OwnModelTest, LeavesTheSameBitsFromAnyPlacementAndWorld) {
  const std::vector<std::pair<const char*, std::function<void(Config&)>>> ways = {
      {"host",
       [](Config& c) {
         c.param = {0, 1, 0}, c.optimizer_state.fill({0, 1, 0});
       }},
      {"nvme",
       [](Config& c) {
         c.param = c.grad = c.activation = {0, 0, 1};
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"split",
       [](Config& c) {
         c.param = {0.2, 0.4, 0.4};
         c.optimizer_state.fill({0, 0.5, 0.5});
       }},
      {"vertical", [](Config& c) { c.order = OrderChoice::vertical; }},
      {"recomputed", [](Config& c) { c.recompute = RecomputeChoice::always; }}};
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    Config config = base_;
    config.dtype = dtype;
    const std::string reference = digest_of(config);
    for (const auto& [name, edit] : ways) {
      Config other = config;
      edit(other);
      EXPECT_EQ(digest_of(other), reference) << name;
      EXPECT_EQ(digest_of(other, 2), reference) << name << " on two ranks";
    }
  }
}

TEST_F(OwnModelTest, MovesItsFeaturesInTheModelsDtype) {
  const auto h2d = [&](DType dtype) {
    Config config = base_;
    config.dtype = dtype;
    return make(config).plan().step_traffic[static_cast<size_t>(Activity::h2d)];
  };
  const auto aligned = [](int64_t bytes) { return static_cast<uint64_t>((bytes + 63) / 64 * 64); };
  EXPECT_EQ(h2d(DType::fp32),
            kMicroBatches * (aligned(kRows * 4) + aligned(kRows * kFeatures * 4)));
  EXPECT_EQ(h2d(DType::bf16),
            kMicroBatches * (aligned(kRows * 4) + aligned(kRows * kFeatures * 2)));
}

TEST_F(OwnModelTest, HasOneLossInAnyWorld) {
  const auto data = samples(6, 11);
  std::vector<double> losses;
  for (int ranks : {1, 2, 3}) {
    const auto failures = failures_of_ranks(ranks, [&](const World& world) {
      Engine engine = make(base_, world);
      const double loss = engine.evaluate(of_rank(views(data), world));
      if (world.rank == 0) losses.push_back(loss);
    });
    for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  }
  ASSERT_EQ(losses.size(), 3u);
  EXPECT_NEAR(losses[1], losses[0], 1e-12);
  EXPECT_NEAR(losses[2], losses[0], 1e-12);
  Engine engine = make(base_);
  Reference reference(engine);
  double sum = 0, counted = 0;
  for (const Sample& sample : data) {
    const auto weight =
        static_cast<double>(kRows - std::count(sample.targets.begin(), sample.targets.end(), -1));
    sum += reference.backward(sample) * weight;
    counted += weight;
  }
  EXPECT_NEAR(losses[0], sum / counted, 1e-6);
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(OwnModelTest, RefusesDataThatDoNotFit) {
  Config config = base_;
  config.dtype = DType::fp16;
  Engine engine = make(config);
  const auto error_with = [&](const std::function<void(Sample&)>& edit) {
    Sample sample = samples(1, 1)[0];
    edit(sample);
    const Batch batch = sample.view();
    const std::string error = error_of([&] { engine.evaluate({&batch, 1}); });
    EXPECT_EQ(error_of([&] { engine.scores(batch); }), error);
    return error;
  };
  EXPECT_EQ(error_with([](Sample& s) { s.features.pop_back(); }),
            "a micro-batch of this model has 60 features and was given 59");
  EXPECT_EQ(error_with([](Sample& s) { s.targets.clear(); }),
            "a micro-batch of this model has 12 targets and was given 0");
  EXPECT_EQ(error_with([](Sample& s) { s.features[7] = std::nanf(""); }),
            "features[7] is nan: features must be finite in fp16");
  EXPECT_EQ(error_with([](Sample& s) { s.features[0] = -std::numeric_limits<float>::infinity(); }),
            "features[0] is -inf: features must be finite in fp16");
  EXPECT_EQ(error_with([](Sample& s) { s.features[59] = 65505; }),
            "features[59] is 65505: features must be finite in fp16");
  EXPECT_EQ(error_with([](Sample& s) { s.targets[2] = kClasses; }),
            "target 7 is out of range: use -1 to 6");
  EXPECT_EQ(error_with([](Sample& s) { s.features[0] = 65504; }), "no error");

  const Sample sample = samples(1, 1)[0];
  const Batch with_tokens{kShape, sample.targets, sample.targets, sample.features};
  EXPECT_EQ(error_of([&] { engine.scores(with_tokens); }),
            "a micro-batch of this model has 0 tokens and was given 12");
  const Batch turned{{3, 4}, {}, sample.targets, sample.features};
  EXPECT_EQ(error_of([&] { engine.scores(turned); }),
            "a micro-batch is 4 rows of 3, and one of 3 rows of 4 was given");
  EXPECT_THAT(error_of([&] { engine.next_token_scores(sample.targets); }),
              HasSubstr("ask for the scores of a batch"));
}

// The last layer of a model without targets: the mean square of the distance between its input and
// the first feature's square.
class MeanSquare final : public Layer {
 public:
  std::string name() const override { return "mean square"; }
  int64_t output_channels() const override { return 0; }
  std::vector<Parameter> parameters() const override { return {}; }
  LayerFootprint footprint(const ops::LayerOps&, const BatchShape&, DType) const override {
    return {};
  }
  void forward(const LayerForward& c) const override {
    c.ops.queue().run([c] {
      EXPECT_FALSE(c.tokens || c.targets);
      *c.loss = 0;
      for (int64_t row = 0; row < kRows; ++row) {
        *c.loss += distance(c, row) * distance(c, row) / static_cast<double>(kRows);
      }
    });
  }
  void backward(const LayerBackward& c) const override {
    c.ops.queue().run([c = LayerContext(c), input_grad = c.input_grad.as<float>()] {
      for (int64_t row = 0; row < kRows; ++row) {
        input_grad[row] = static_cast<float>(2 * distance(c, row) / static_cast<double>(kRows));
      }
    });
  }

 private:
  static double distance(const LayerContext& c, int64_t row) {
    const double feature = c.features.as<float>()[row * kFeatures];
    return c.input.as<float>()[row] - feature * feature;
  }
};

TEST_F(OwnModelTest, LearnsWithoutTargets) {
  Model model = model_of({{"first", kFeatures, kHidden}, {"second", kHidden, 1}});
  model.classes = 0;
  model.layers.push_back(std::make_shared<MeanSquare>());
  Config config = base_;
  config.optimizer.lr = 0.01;
  Engine engine = make(config, {}, model);
  auto data = samples(kMicroBatches, 1);
  for (Sample& sample : data) sample.targets.clear();
  const double before = engine.evaluate(views(data));
  for (int step = 0; step < 100; ++step) engine.train_step(views(data));
  EXPECT_LT(engine.evaluate(views(data)), 0.1 * before);
  EXPECT_THAT(error_of([&] { engine.scores(data[0].view()); }), HasSubstr("gives no scores"));
}

TEST_F(OwnModelTest, RefusesModelsThatLackSomething) {
  Model without_data = model_of(kSpecs);
  without_data.features = 0;
  EXPECT_THAT(error_of([&] { make(base_, {}, without_data); }),
              HasSubstr("takes neither tokens nor features"));
  Model negative = model_of(kSpecs);
  negative.classes = -1;
  EXPECT_THAT(error_of([&] { make(base_, {}, negative); }), HasSubstr("are 0 or more"));

  const Sample sample = samples(1, 1)[0];
  auto specs = kSpecs;
  specs.back().gives_scores = false;
  EXPECT_THAT(error_of([&] { make(base_, {}, model_of(specs)).scores(sample.view()); }),
              HasSubstr("last layer gives no scores"));
  specs = kSpecs;
  specs.back().out = kClasses + 1;
  EXPECT_THAT(error_of([&] { make(base_, {}, model_of(specs)).scores(sample.view()); }),
              HasSubstr("'last' should give a matrix of 12 by 7 in fp32"));
}

// What follows some tokens is what a batch that begins with them scores in that row.
TEST(Scores, OfABatchHoldThoseOfItsBeginnings) {
  Engine::Options options;
  options.micro_batch = {2, 16};
  Engine engine(models::gpt2(testing_support::tiny_gpt2()), testing_support::tiny_config(), {},
                options);
  const auto batch = testing_support::tiny_batches(1, 3)[0];
  const std::vector<float> all = engine.scores(batch.view());
  const size_t vocab = 65;
  ASSERT_EQ(all.size(), 2 * 16 * vocab);
  for (const size_t length : {1, 5, 16}) {
    const auto row = all.begin() + static_cast<std::ptrdiff_t>((length - 1) * vocab);
    EXPECT_EQ(engine.next_token_scores(std::span(batch.tokens).first(length)),
              std::vector<float>(row, row + vocab));
  }
}

}  // namespace
}  // namespace strata::perceptron
