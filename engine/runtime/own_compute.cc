// The verbs around compute of the caller's: units are gathered and reduced in the order it asks
// for.
#include <fmt/format.h>

#include <algorithm>

#include "engine/runtime/runtime.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {

void Runtime::require_own_compute(const char* verb, int unit) const {
  if (own_ == nullptr) {
    throw ConfigError(fmt::format(
        "{} is for compute of one's own: set Options::own_compute, or call train_step", verb));
  }
  if (unit < 0 || unit >= static_cast<int>(model_.layers.size())) {
    throw ConfigError(fmt::format("{} is asked for unit {}, and the model has {}", verb, unit,
                                  model_.layers.size()));
  }
}

void Runtime::begin_own_step() {
  if (own_->begun) return;
  own_->begun = true;
  own_->account = begin_step();
}

// The caller computes where it is, unless the device has streams that it enqueues on.
void Runtime::hand_over() {
  if (compute_->native_handle() == nullptr) compute_->synchronize();
}

std::span<const TensorView> Runtime::gather(int unit) {
  require_own_compute("gather", unit);
  begin_own_step();
  gathers_->await_update(unit);
  if (plan_->access[static_cast<size_t>(unit)] == ParameterAccess::gathered) {
    for (const RecordedGathers::Bring& bring : own_->gathers.hold(unit)) {
      gathers_->await_update(bring.unit);
      window_->gather(bring.unit, bring.slot);
    }
  }
  const auto parameters = window_->use(unit, *compute_);
  ++own_->held;
  hand_over();
  return parameters;
}

void Runtime::let_go(int unit) {
  window_->release(unit, compute_->record());
  if (plan_->access[static_cast<size_t>(unit)] == ParameterAccess::gathered) {
    own_->gathers.let_go(unit);
  }
  --own_->held;
}

// The micro-batch whose gradients of the unit come next.
int Runtime::next_micro_batch(int unit) const {
  const int micro_batch = own_->reduced[static_cast<size_t>(unit)];
  if (micro_batch < plan_->micro_batches) return micro_batch;
  throw ConfigError(
      fmt::format("unit {} has been reduced {} times in this step, once a micro-batch: call step",
                  unit, micro_batch));
}

std::span<const TensorView> Runtime::gradients(int unit) {
  require_own_compute("gradients", unit);
  begin_own_step();
  gathers_->await_update(unit);
  auto& views = own_->gradients[static_cast<size_t>(unit)];
  views.clear();
  for (const ParameterGrad& gradient : lander_->prepare(unit, next_micro_batch(unit))) {
    views.push_back(gradient.view);
  }
  hand_over();
  return views;
}

void Runtime::reduce(int unit) {
  require_own_compute("reduce", unit);
  if (plan_->layout.units()[static_cast<size_t>(unit)].trainable.numel == 0) return;
  const int micro_batch = next_micro_batch(unit);
  if (!own_->begun || !lander_->is_prepared(unit, micro_batch)) {
    throw ConfigError(
        fmt::format("unit {} is reduced without gradients: ask for them and fill them in", unit));
  }
  lander_->land(unit, micro_batch);
  ++own_->reduced[static_cast<size_t>(unit)];
}

StepResult Runtime::step(double loss) {
  require_own_compute("step", 0);
  for (size_t unit = 0; unit < own_->reduced.size(); ++unit) {
    if (plan_->layout.units()[unit].trainable.numel == 0) continue;
    if (own_->reduced[unit] == plan_->micro_batches) continue;
    throw ConfigError(
        fmt::format("unit {} was reduced {} times in this step, and every unit has to "
                    "be once a micro-batch, {} times",
                    unit, own_->reduced[unit], plan_->micro_batches));
  }
  if (own_->held > 0) {
    throw ConfigError("a step changes the parameters, and some are held: let go of them first");
  }
  own_->begun = false;
  std::fill(own_->reduced.begin(), own_->reduced.end(), 0);
  own_->gathers.start_again();
  return finish_step(own_->account, loss * static_cast<double>(plan_->micro_batches));
}

}  // namespace strata::engine
