// A model, some of whose parameters are frozen.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "strata/model.h"

namespace strata::testing_support {

using IsFrozen = std::function<bool(const std::string& name)>;

// Another layer, some of its parameters frozen.
class PartlyFrozen final : public Layer {
 public:
  PartlyFrozen(std::shared_ptr<const Layer> layer, IsFrozen is_frozen)
      : layer_(std::move(layer)), is_frozen_(std::move(is_frozen)) {}

  std::string name() const override { return layer_->name(); }
  std::vector<Parameter> parameters() const override {
    std::vector<Parameter> parameters = layer_->parameters();
    for (Parameter& parameter : parameters) parameter.trainable = !is_frozen_(parameter.name);
    return parameters;
  }
  std::vector<std::string> shared_parameters() const override {
    return layer_->shared_parameters();
  }
  int64_t output_channels() const override { return layer_->output_channels(); }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override {
    return layer_->footprint(ops, batch, dtype);
  }
  void forward(const LayerForward& context) const override { layer_->forward(context); }
  void backward(const LayerBackward& context) const override { layer_->backward(context); }

 private:
  const std::shared_ptr<const Layer> layer_;
  const IsFrozen is_frozen_;
};

inline Model partly_frozen(Model model, const IsFrozen& is_frozen) {
  for (auto& layer : model.layers) layer = std::make_shared<PartlyFrozen>(layer, is_frozen);
  return model;
}

}  // namespace strata::testing_support
