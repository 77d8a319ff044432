#include <fmt/format.h>

#include <memory>
#include <utility>

#include "strata/error.h"
#include "strata/model.h"

namespace strata {
namespace {

class ParameterUnit final : public Layer {
 public:
  ParameterUnit(std::string name, std::vector<Parameter> parameters)
      : name_(std::move(name)), parameters_(std::move(parameters)) {}

  std::string name() const override { return name_; }
  std::vector<Parameter> parameters() const override { return parameters_; }
  int64_t output_channels() const override { return 0; }
  LayerFootprint footprint(const ops::LayerOps&, const BatchShape&, DType) const override {
    return {};
  }
  void forward(const LayerForward&) const override { refuse(); }
  void backward(const LayerBackward&) const override { refuse(); }

 private:
  [[noreturn]] void refuse() const {
    throw ConfigError(fmt::format(
        "unit '{}' has parameters alone: set Engine::Options::own_compute and compute yourself",
        name_));
  }

  const std::string name_;
  const std::vector<Parameter> parameters_;
};

}  // namespace

std::shared_ptr<const Layer> parameter_unit(std::string name, std::vector<Parameter> parameters) {
  return std::make_shared<ParameterUnit>(std::move(name), std::move(parameters));
}

}  // namespace strata
