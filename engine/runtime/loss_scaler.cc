#include "engine/runtime/loss_scaler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr double kFactor = 2;

double first_scale(const Config& config) {
  if (config.dtype != DType::fp16) return 1;
  const LossScaleConfig& scale = config.loss_scale;
  return scale.dynamic() ? std::ldexp(1.0, scale.initial_power) : scale.constant;
}

}  // namespace

LossScaler::LossScaler(const Config& config)
    : config_(config.loss_scale),
      dynamic_(config.dtype == DType::fp16 && config_.dynamic()),
      scale_(first_scale(config)),
      hysteresis_(config_.hysteresis) {}

void LossScaler::update(bool overflow) {
  if (!dynamic_) return;
  const auto min_scale = static_cast<double>(config_.min_scale);
  if (overflow) {
    good_steps_ = 0;
    if (hysteresis_ > 1) {
      --hysteresis_;
      return;
    }
    if (scale_ == min_scale) {
      throw Error(
          fmt::format("gradients overflow fp16 at the smallest loss scale, {} "
                      "(fp16.min_loss_scale): lower the learning rate, or train in bf16",
                      config_.min_scale));
    }
    scale_ = std::max(scale_ / kFactor, min_scale);
    return;
  }
  const bool window_is_full = good_steps_ > 0 && good_steps_ % config_.window == 0;
  ++good_steps_;
  if (window_is_full) scale_ *= kFactor;
  if (window_is_full || config_.consecutive_hysteresis) hysteresis_ = config_.hysteresis;
}

}  // namespace strata::engine
