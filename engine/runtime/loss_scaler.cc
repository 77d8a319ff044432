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
      state_{first_scale(config), config_.hysteresis, 0} {}

void LossScaler::restore(const State& state) {
  if (!dynamic_ || !(state.scale > 0)) return;
  state_ = state;
  state_.scale = std::max(state.scale, static_cast<double>(config_.min_scale));
}

void LossScaler::update(bool overflow) {
  if (!dynamic_) return;
  const auto min_scale = static_cast<double>(config_.min_scale);
  if (overflow) {
    state_.good_steps = 0;
    if (state_.hysteresis > 1) {
      --state_.hysteresis;
      return;
    }
    if (state_.scale == min_scale) {
      throw Error(
          fmt::format("gradients overflow fp16 at the smallest loss scale, {} "
                      "(fp16.min_loss_scale): lower the learning rate, or train in bf16",
                      config_.min_scale));
    }
    state_.scale = std::max(state_.scale / kFactor, min_scale);
    return;
  }
  const bool window_is_full = state_.good_steps > 0 && state_.good_steps % config_.window == 0;
  ++state_.good_steps;
  if (window_is_full) state_.scale *= kFactor;
  if (window_is_full || config_.consecutive_hysteresis) state_.hysteresis = config_.hysteresis;
}

}  // namespace strata::engine
