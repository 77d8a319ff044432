#include "engine/runtime/parameter_window.h"

namespace strata::engine {

ParameterWindow::ParameterWindow(const Plan& plan, const Parts& parts, offload::TierManager& tiers)
    : plan_(plan),
      parts_(parts),
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
      place.trainable = parts.state.resident(StateKind::param, unit.trainable.first_grain);
    }
    if (unit.frozen.numel > 0) place.frozen = frozen_shard(unit.frozen);
    places_.push_back(place);
    views_.emplace_back(unit.parameters.size());
  }
}

std::byte* ParameterWindow::frozen_shard(const FlatBuffer& flat) const {
  return parts_.frozen.data() +
         static_cast<size_t>(flat.first_grain * kGrainNumel) * element_bytes_;
}

void ParameterWindow::gather(int unit_index, int slot_index) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  Slot& slot = slots_[static_cast<size_t>(slot_index)];
  const auto rank = static_cast<size_t>(plan_.layout.rank());
  std::byte* const trainable = slot.data;
  std::byte* const frozen = slot.data + static_cast<size_t>(unit.trainable.numel) * element_bytes_;
  parts_.copy_in.wait(slot.last_use, {StateKind::param, unit_index, "gather waits for a slot"});
  copy_trainable(unit.trainable, unit_index, trainable + rank * shard_bytes(unit.trainable));
  copy_frozen(unit.frozen, unit_index, frozen + rank * shard_bytes(unit.frozen));
  slot.ready = parts_.copy_in.record();
  if (plan_.layout.world_size() > 1) {
    const TrafficTag tag = {StateKind::param, unit_index, "gather"};
    parts_.comm_queue.wait(slot.ready, {StateKind::param, unit_index, "gather waits for a shard"});
    if (unit.trainable.numel > 0) {
      parts_.comm.all_gather(trainable, shard_bytes(unit.trainable), tag);
    }
    if (unit.frozen.numel > 0) parts_.comm.all_gather(frozen, shard_bytes(unit.frozen), tag);
    slot.ready = parts_.comm_queue.record();
  }
  places_[static_cast<size_t>(unit_index)] = {trainable, frozen, slot_index};
}

// A part of the shard may lie on the device and a part on the host.
void ParameterWindow::copy_trainable(const FlatBuffer& flat, int unit, std::byte* out) {
  const GrainRange shard = flat.shard();
  const offload::TrainingStateSpec& spec = parts_.state.spec();
  const int64_t grain_bytes = spec.grain_bytes(StateKind::param);
  for (Tier tier : {Tier::device, Tier::host}) {
    const GrainRange part = intersect(shard, spec.param.range(tier));
    if (part.empty()) continue;
    parts_.copy_in.copy(
        out + (part.begin - shard.begin) * grain_bytes,
        parts_.state.resident(StateKind::param, part.begin),
        static_cast<size_t>(part.grains() * grain_bytes),
        tier == Tier::device ? CopyDirection::device_to_device : CopyDirection::host_to_device,
        {StateKind::param, unit, "gather"});
  }
}

void ParameterWindow::copy_frozen(const FlatBuffer& flat, int unit, std::byte* out) {
  if (flat.numel == 0) return;
  parts_.copy_in.copy(out, frozen_shard(flat), shard_bytes(flat),
                      plan_.frozen_tier == Tier::device ? CopyDirection::device_to_device
                                                        : CopyDirection::host_to_device,
                      {StateKind::param, unit, "gather"});
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
