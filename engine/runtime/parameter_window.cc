#include "engine/runtime/parameter_window.h"

namespace strata::engine {

ParameterWindow::ParameterWindow(const Plan& plan, const offload::TrainingState& state,
                                 offload::TierManager& tiers, const offload::Arena& frozen,
                                 Queue& copy_in)
    : plan_(plan),
      state_(state),
      frozen_(frozen),
      copy_in_(copy_in),
      element_bytes_(size_bytes(plan.state.param_dtype)),
      memory_(tiers.claim(reserved::kWindow)) {
  std::byte* next = memory_.data();
  for (const int64_t numel : plan.step.window_numel) {
    slots_.emplace_back().data = next;
    next += static_cast<size_t>(numel) * element_bytes_;
  }
  for (const Unit& unit : plan.layout.units()) {
    Place place;
    if (unit.trainable.numel > 0) {
      place.trainable = state.resident(StateKind::param, unit.trainable.first_grain);
    }
    if (unit.frozen.numel > 0) {
      place.frozen = frozen.data() +
                     static_cast<size_t>(unit.frozen.first_grain * kGrainNumel) * element_bytes_;
    }
    places_.push_back(place);
    views_.emplace_back(unit.parameters.size());
  }
}

void ParameterWindow::gather(int unit_index, int slot_index) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  Slot& slot = slots_[static_cast<size_t>(slot_index)];
  copy_in_.wait(slot.last_use, {StateKind::param, unit_index, "gather waits for a slot"});
  copy_trainable(unit, unit_index, slot.data);
  std::byte* frozen_out = slot.data + static_cast<size_t>(unit.trainable.numel) * element_bytes_;
  if (unit.frozen.numel > 0) {
    const std::byte* source =
        frozen_.data() +
        static_cast<size_t>(unit.frozen.first_grain * kGrainNumel) * element_bytes_;
    copy_in_.copy(frozen_out, source, static_cast<size_t>(unit.frozen.numel) * element_bytes_,
                  plan_.frozen_tier == Tier::device ? CopyDirection::device_to_device
                                                    : CopyDirection::host_to_device,
                  {StateKind::param, unit_index, "gather"});
  }
  slot.ready = copy_in_.record();
  places_[static_cast<size_t>(unit_index)] = {slot.data, frozen_out, slot_index};
}

// The unit's shard, of which a part may lie on the device and a part on the host.
void ParameterWindow::copy_trainable(const Unit& unit, int index, std::byte* out) {
  const int64_t begin = unit.trainable.first_grain;
  const GrainRange shard = {begin, begin + unit.trainable.numel / kGrainNumel};
  const int64_t grain_bytes = state_.spec().grain_bytes(StateKind::param);
  for (Tier tier : {Tier::device, Tier::host}) {
    const GrainRange part = intersect(shard, state_.spec().param.range(tier));
    if (part.empty()) continue;
    copy_in_.copy(
        out + (part.begin - shard.begin) * grain_bytes,
        state_.resident(StateKind::param, part.begin),
        static_cast<size_t>(part.grains() * grain_bytes),
        tier == Tier::device ? CopyDirection::device_to_device : CopyDirection::host_to_device,
        {StateKind::param, index, "gather"});
  }
}

std::span<const TensorView> ParameterWindow::use(int unit_index, Queue& compute) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  for (int need : unit.needs) {
    const int slot = places_[static_cast<size_t>(need)].slot;
    if (slot < 0) continue;
    compute.wait(slots_[static_cast<size_t>(slot)].ready, {StateKind::param, need, kWaitLabel});
  }
  auto& views = views_[static_cast<size_t>(unit_index)];
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    const ParameterRef& ref = unit.parameters[i];
    const FlatParameter& parameter = plan_.layout.parameter(ref);
    const Place& place = places_[static_cast<size_t>(ref.unit)];
    std::byte* base = ref.trainable ? place.trainable : place.frozen;
    views[i] = {base + static_cast<size_t>(parameter.offset) * element_bytes_,
                plan_.state.param_dtype, parameter.spec.shape};
  }
  return views;
}

void ParameterWindow::release(int unit_index, const Event& done) {
  for (int need : plan_.layout.units()[static_cast<size_t>(unit_index)].needs) {
    const int slot = places_[static_cast<size_t>(need)].slot;
    if (slot >= 0) slots_[static_cast<size_t>(slot)].last_use = done;
  }
}

}  // namespace strata::engine
