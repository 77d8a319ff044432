// A model of one's own, for tests: a multi-layer perceptron of public layers, on seeded features.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/random.h"
#include "strata/batch.h"
#include "strata/carver.h"
#include "strata/layer_ops.h"
#include "strata/model.h"

namespace strata::perceptron {

inline constexpr int64_t kFeatures = 5;
inline constexpr int64_t kHidden = 96;  // its square is more than a grain
inline constexpr int64_t kClasses = 7;
inline constexpr BatchShape kShape = {4, 3};
inline constexpr int64_t kRows = kShape.batch * kShape.sequence;

// gelu(x . weight + bias), or the cross-entropy of x . weight + bias.
class Dense final : public Layer {
 public:
  struct Spec {
    std::string name;
    int64_t in = 0, out = 0;
    bool last = false;
    bool gives_scores = true;
  };
  explicit Dense(Spec spec) : spec_(std::move(spec)) {}

  std::string name() const override { return spec_.name; }
  int64_t output_channels() const override { return spec_.last ? 0 : spec_.out; }
  std::vector<Parameter> parameters() const override {
    return {{spec_.name + ".weight", {spec_.in, spec_.out}, {Initializer::Kind::normal, 0.2f}},
            {spec_.name + ".bias", {spec_.out}, {Initializer::Kind::normal, 0.2f}}};
  }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override {
    const int64_t rows = batch.tokens();
    Carver saved(nullptr);
    saved.take(dtype, {rows, spec_.out});
    Carver workspace(nullptr);
    workspace.take_bytes(
        std::max(ops.linear_workspace_bytes(dtype, rows, spec_.in, spec_.out, false),
                 ops.cross_entropy_workspace_bytes(rows)));
    return {saved.used_bytes(), workspace.used_bytes()};
  }
  void forward(const LayerForward& c) const override {
    c.ops.linear_forward({.x = x(c),
                          .weight = c.params[0],
                          .bias = c.params[1],
                          .residual = {},
                          .out = sums(c),
                          .workspace = scratch(c)});
    if (spec_.last) {
      c.ops.cross_entropy({.logits = sums(c),
                           .targets = c.targets,
                           .logits_grad = c.training ? sums(c) : TensorView{},
                           .loss = c.loss,
                           .loss_scale = c.loss_scale,
                           .workspace = scratch(c)});
    } else if (c.output) {
      c.ops.gelu_forward({sums(c), c.output});
    }
  }
  void backward(const LayerBackward& c) const override {
    if (!spec_.last) c.ops.gelu_backward({sums(c), c.output_grad, c.output_grad});
    c.ops.linear_backward({.x = x(c),
                           .weight = c.params[0],
                           .out_grad = spec_.last ? sums(c) : c.output_grad,
                           .x_grad = c.input_grad,
                           .weight_grad = {c.grads[0].view, c.grads[0].accumulate},
                           .bias_grad = {c.grads[1].view, c.grads[1].accumulate},
                           .workspace = scratch(c)});
  }
  TensorView scores(const LayerContext& c) const override {
    return spec_.gives_scores ? sums(c) : TensorView{};
  }

 private:
  static TensorView x(const LayerContext& c) { return c.input ? c.input : c.features; }
  TensorView sums(const LayerContext& c) const {
    return Carver(c.saved).take(x(c).dtype, {c.batch.tokens(), spec_.out});
  }
  TensorView scratch(const LayerContext& c) const {
    return Carver(c.workspace).take_bytes(footprint(c.ops, c.batch, x(c).dtype).workspace_bytes);
  }

  const Spec spec_;
};

inline const std::vector<Dense::Spec> kSpecs = {
    {"first", kFeatures, kHidden}, {"second", kHidden, kHidden}, {"last", kHidden, kClasses, true}};

inline Model model_of(const std::vector<Dense::Spec>& specs) {
  Model model{.description = "perceptron", .features = kFeatures, .classes = kClasses};
  for (const auto& spec : specs) model.layers.push_back(std::make_shared<Dense>(spec));
  return model;
}

struct Sample {
  std::vector<float> features;
  std::vector<int32_t> targets;

  Batch view() const { return {kShape, {}, targets, features}; }
};

// Every fifth target does not count, and more of them in later samples.
inline std::vector<Sample> samples(size_t count, uint64_t seed) {
  std::vector<Sample> samples(count);
  for (size_t s = 0; s < count; ++s) {
    samples[s].features.resize(static_cast<size_t>(kRows * kFeatures));
    ops::fill_normal(samples[s].features.data(), 0, kRows * kFeatures, 1, seed, s);
    for (int64_t row = 0; row < kRows; ++row) {
      const bool counts = row % 5 != 0 && row >= static_cast<int64_t>(s % 4);
      samples[s].targets.push_back(counts ? static_cast<int32_t>(row * row % kClasses) : -1);
    }
  }
  return samples;
}

inline std::vector<Batch> views(const std::vector<Sample>& samples) {
  std::vector<Batch> batches;
  for (const Sample& sample : samples) batches.push_back(sample.view());
  return batches;
}

}  // namespace strata::perceptron
