#include "engine/runtime/updater.h"

namespace strata::engine {

Updater::Updater(const Plan& plan, const Config& config, const Parts& parts,
                 offload::TierManager& tiers)
    : plan_(plan),
      runs_on_(config.overlap && config.overlap_update),
      optimizer_(plan, config, parts.device_ops, parts.host_ops),
      pipeline_(
          parts.pipeline, plan.staging, tiers,
          [this](const offload::UpdateSpans& spans, Queue& queue) {
            optimizer_.update(spans, queue);
          },
          config.overlap),
      awaited_(plan.layout.units().size(), true) {
  for (const Unit& unit : plan.layout.units()) {
    sub_groups_.push_back(sub_groups_of(plan.state.sub_groups, unit.trainable.shard()));
  }
}

void Updater::begin_step() { pipeline_.read_ahead(plan_.order_of_use); }

bool Updater::has_parameters(int unit) const {
  if (awaited_[static_cast<size_t>(unit)]) return true;
  const auto [begin, end] = sub_groups_[static_cast<size_t>(unit)];
  for (int32_t s = begin; s < end; ++s) {
    if (!pipeline_.has_parameters(s)) return false;
  }
  return true;
}

bool Updater::await_parameters(int unit, Queue& queue) {
  if (awaited_[static_cast<size_t>(unit)]) return false;
  const bool waits = !has_parameters(unit);
  const auto [begin, end] = sub_groups_[static_cast<size_t>(unit)];
  for (int32_t s = begin; s < end; ++s) {
    queue.wait(pipeline_.parameters(s),
               {StateKind::param, unit, "parameters wait for their update"});
  }
  awaited_[static_cast<size_t>(unit)] = true;
  return waits;
}

void Updater::update(int64_t step, double lr, double grad_scale) {
  optimizer_.begin_step(step, lr, grad_scale);
  for (const int32_t sub_group : plan_.order_of_use) pipeline_.submit(sub_group);
  awaited_.assign(awaited_.size(), false);
  if (!runs_on_) pipeline_.drain();
}

}  // namespace strata::engine
