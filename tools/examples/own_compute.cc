// Compute written by hand around Strata's verbs: a network of two dense layers learns a function of
// random points. Strata shards and offloads the parameters and their optimizer state; the loop says
// when it needs a layer, and fills in the layer's gradients.
//
// Alone, or on several ranks: mpirun -n 2 example_own_compute
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "strata/engine.h"

namespace {

constexpr int kInputs = 4, kHidden = 64, kRows = 128, kSteps = 600;

constexpr const char* kConfig = R"({
  "train_micro_batch_size_per_gpu": 128,
  "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
  "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0,
                        "offload_optimizer": {"device": "cpu"},
                        "offload_param": {"device": "cpu"}}})";

using Matrix = std::vector<float>;  // row-major

struct Points {
  Matrix x, y;  // (kRows, kInputs) and (kRows, 1)
};

Points draw(std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  Points points;
  for (int row = 0; row < kRows; ++row) {
    float x[kInputs];
    for (float& value : x) points.x.push_back(value = uniform(random));
    points.y.push_back(std::sin(3 * x[0]) + x[1] * x[2] - x[3]);
  }
  return points;
}

// x (kRows, in) . weight (in, out) + bias (out)
Matrix dense(const Matrix& x, int in, int out, const strata::UnitLease& layer) {
  const auto* weight = layer[0].as<float>();
  const auto* bias = layer[1].as<float>();
  Matrix y(static_cast<size_t>(kRows) * out);
  for (int row = 0; row < kRows; ++row) {
    for (int o = 0; o < out; ++o) {
      float sum = bias[o];
      for (int i = 0; i < in; ++i) sum += x[row * in + i] * weight[i * out + o];
      y[row * out + o] = sum;
    }
  }
  return y;
}

// Every element of the layer's gradients.
void dense_gradients(const Matrix& x, int in, const Matrix& y_grad, int out,
                     std::span<const strata::TensorView> gradients) {
  auto* weight = gradients[0].as<float>();
  auto* bias = gradients[1].as<float>();
  for (int o = 0; o < out; ++o) {
    bias[o] = 0;
    for (int row = 0; row < kRows; ++row) bias[o] += y_grad[row * out + o];
    for (int i = 0; i < in; ++i) {
      float sum = 0;
      for (int row = 0; row < kRows; ++row) sum += x[row * in + i] * y_grad[row * out + o];
      weight[i * out + o] = sum;
    }
  }
}

std::shared_ptr<const strata::Layer> layer(const std::string& name, int in, int out) {
  using Kind = strata::Initializer::Kind;
  const float stddev = 1 / std::sqrt(static_cast<float>(in));
  return strata::parameter_unit(name, {{name + ".weight", {in, out}, {Kind::normal, stddev}},
                                       {name + ".bias", {out}, {Kind::constant, 0}}});
}

}  // namespace

int main() {
  const auto world = strata::World::from_environment();
  const auto config = strata::Config::from_json(kConfig, "example", world.size);
  strata::Model model;
  model.layers = {layer("hidden", kInputs, kHidden), layer("output", kHidden, 1)};
  strata::Engine::Options options;
  options.own_compute = true;
  strata::Engine engine(model, config, world, options);

  std::mt19937 random(static_cast<unsigned>(world.rank));
  double loss = 0;
  for (int step = 1; step <= kSteps; ++step) {
    const Points points = draw(random);
    Matrix hidden = dense(points.x, kInputs, kHidden, engine.gather(0));
    for (float& value : hidden) value = std::tanh(value);
    Matrix hidden_grad(hidden.size());
    double mean_loss = 0;
    {
      const strata::UnitLease output = engine.gather(1);  // held to the end of the block
      Matrix error = dense(hidden, kHidden, 1, output);
      for (int row = 0; row < kRows; ++row) {
        error[row] -= points.y[row];
        mean_loss += error[row] * error[row] / kRows;
        error[row] *= 2.0f / kRows;  // the mean's gradient
      }
      for (size_t i = 0; i < hidden.size(); ++i) {
        hidden_grad[i] =
            error[i / kHidden] * output[0].as<float>()[i % kHidden] * (1 - hidden[i] * hidden[i]);
      }
      dense_gradients(hidden, kHidden, error, 1, engine.gradients(1));
      engine.reduce(1);
    }
    dense_gradients(points.x, kInputs, hidden_grad, kHidden, engine.gradients(0));
    engine.reduce(0);
    loss = engine.step(mean_loss).loss;
    if (world.rank == 0 && step % 100 == 0) std::printf("step %d  loss %.4f\n", step, loss);
  }
  return loss < 0.05 ? 0 : 1;
}
