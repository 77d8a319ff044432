// A model and data of one's own: a multi-layer perceptron, written as layers, learns which of three
// interleaved spirals a point of the plane lies on. A layer says what it computes; Strata brings
// its parameters, keeps the optimizer's state in host memory, and sums gradients over ranks.
// Alone, or on several ranks: mpirun -n 2 example_mlp_classifier
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "strata/carver.h"
#include "strata/engine.h"
#include "strata/layer_ops.h"
#include "strata/sampler.h"

namespace {

using namespace strata;

constexpr int kSpirals = 3, kHidden = 64, kPoints = 3000, kSteps = 600;

constexpr const char* kConfig = R"({
  "train_micro_batch_size_per_gpu": 64, "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
  "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})";

// y = x . weight + bias is saved for backward; the output is gelu(y), in the last layer y's loss.
class Dense final : public Layer {
 public:
  Dense(std::string name, int64_t in, int64_t out, bool last)
      : name_(std::move(name)), in_(in), out_(out), last_(last) {}

  std::string name() const override { return name_; }
  int64_t output_channels() const override { return last_ ? 0 : out_; }
  std::vector<Parameter> parameters() const override {
    const Initializer normal = {Initializer::Kind::normal, std::sqrt(2 / static_cast<float>(in_))};
    return {{name_ + ".weight", {in_, out_}, normal}, {name_ + ".bias", {out_}, {}}};
  }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override {
    const int64_t rows = batch.tokens();
    return {.saved_bytes = static_cast<size_t>(rows * out_) * size_bytes(dtype),
            .workspace_bytes = std::max(ops.linear_workspace_bytes(dtype, rows, in_, out_, false),
                                        ops.cross_entropy_workspace_bytes(rows))};
  }

  void forward(const LayerForward& c) const override {
    c.ops.linear_forward({x(c), c.params[0], c.params[1], {}, y(c), false, scratch(c)});
    if (last_) {
      const TensorView grad = c.training ? y(c) : TensorView{};  // takes y's place
      c.ops.cross_entropy({y(c), c.targets, grad, c.loss, c.loss_scale, scratch(c)});
    } else if (c.output) {  // not where this runs again before backward, for y alone
      c.ops.gelu_forward({y(c), c.output});
    }
  }
  void backward(const LayerBackward& c) const override {
    if (!last_) c.ops.gelu_backward({y(c), c.output_grad, c.output_grad});
    const ops::GradOutput weight = {c.grads[0].view, c.grads[0].accumulate};
    const ops::GradOutput bias = {c.grads[1].view, c.grads[1].accumulate};
    c.ops.linear_backward({x(c), c.params[0], last_ ? y(c) : c.output_grad, c.input_grad, weight,
                           bias, false, scratch(c)});
  }
  TensorView scores(const LayerContext& c) const override { return y(c); }

 private:
  // Its rows; the first layer has none before it, and takes the batch's features.
  static TensorView x(const LayerContext& c) { return c.input ? c.input : c.features; }
  TensorView y(const LayerContext& c) const { return {c.saved, x(c).dtype, {x(c).shape[0], out_}}; }
  TensorView scratch(const LayerContext& c) const {
    return Carver(c.workspace).take_bytes(footprint(c.ops, c.batch, x(c).dtype).workspace_bytes);
  }

  const std::string name_;
  const int64_t in_, out_;
  const bool last_;
};

}  // namespace

int main() {
  const auto world = World::from_environment();
  const auto config = Config::from_json(kConfig, "example", world.size);
  Model model{.description = "perceptron", .features = 2, .classes = kSpirals};
  model.layers = {std::make_shared<Dense>("first", 2, kHidden, false),
                  std::make_shared<Dense>("second", kHidden, kHidden, false),
                  std::make_shared<Dense>("last", kHidden, kSpirals, true)};
  Engine engine(model, config, world, {.micro_batch = {config.micro_batch, 1}});
  const auto count = static_cast<size_t>(config.micro_batch);
  std::vector<float> points(2 * count);
  std::vector<int32_t> spirals(count);
  const Batch batch{{config.micro_batch, 1}, {}, spirals, points};
  // Row i of what the batch views becomes a point, the same one each time for its number.
  const auto draw = [&](size_t i, int64_t number) {
    std::mt19937 random(static_cast<unsigned>(number));
    const float radius = std::uniform_real_distribution<float>(0.05f, 1)(random);
    spirals[i] = static_cast<int32_t>(number % kSpirals);
    const float angle = 6.28f * (radius + static_cast<float>(spirals[i]) / kSpirals);
    points[2 * i] = radius * std::cos(angle);
    points[2 * i + 1] = radius * std::sin(angle);
  };
  Sampler sampler(kPoints, config.seed, world);
  std::vector<Sampler::Row> rows(count);
  for (int step = 1; step <= kSteps; ++step) {
    sampler.next(rows);
    for (size_t i = 0; i < count; ++i) draw(i, rows[i].index);
    const double loss = engine.train_step({&batch, 1}).loss;
    if (world.rank == 0 && step % 100 == 0) std::printf("step %d  loss %.4f\n", step, loss);
  }

  for (size_t i = 0; i < count; ++i) draw(i, kPoints + static_cast<int64_t>(i));  // unseen so far
  const double loss = engine.evaluate({&batch, 1});
  const auto scores = engine.scores(batch);
  int right = 0;
  for (size_t i = 0; i < count; ++i) {
    const float* row = &scores[i * kSpirals];
    if (std::max_element(row, row + kSpirals) - row == spirals[i]) ++right;
  }
  const double accuracy = right / static_cast<double>(count);
  if (world.rank == 0) std::printf("unseen: loss %.4f, accuracy %.3f\n", loss, accuracy);
  return accuracy > 0.95 ? 0 : 1;
}
