#include "engine/runtime/parameter_window.h"

#include <utility>

#include "engine/plan/state_placement.h"
#include "engine/plan/traffic.h"
#include "kernels/device/poison.h"

namespace strata::engine {

ParameterWindow::ParameterWindow(const Plan& plan, const Parts& parts, offload::TierManager& tiers)
    : plan_(plan),
      parts_(parts),
      element_bytes_(size_bytes(plan.state.param_dtype)),
      memory_(tiers.claim(reserved::kWindow)),
      whole_(plan.layout.units().size()) {
  std::byte* next = memory_.data();
  for (const int64_t numel : plan.step.window_numel) {
    slots_.emplace_back().data = next;
    next += static_cast<size_t>(numel) * element_bytes_;
  }
  for (size_t u = 0; u < plan.layout.units().size(); ++u) {
    const Unit& unit = plan.layout.units()[u];
    Place place;
    if (unit.whole) {
      place = whole_place(static_cast<int>(u));
    } else {
      const auto at = [&](StateKind kind, const FlatBuffer& flat) {
        return flat.numel > 0 ? parts.state.resident(kind, flat.first_grain) : nullptr;
      };
      place.trainable = at(StateKind::param, unit.trainable);
      place.frozen = at(StateKind::frozen, unit.frozen);
    }
    places_.push_back(place);
    views_.emplace_back(unit.parameters.size());
  }
}

ParameterWindow::Place ParameterWindow::whole_place(int unit_index) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  Place place;
  place.trainable =
      parts_.state.whole() + whole_offset(plan_.layout, unit_index, plan_.state.param_dtype);
  place.frozen = place.trainable + static_cast<size_t>(unit.trainable.numel) * element_bytes_;
  if (unit.trainable.shards > 1) place.buffer = &whole_[static_cast<size_t>(unit_index)];
  return place;
}

void ParameterWindow::gather(int unit_index, int slot_index) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  Buffer& slot = slots_[static_cast<size_t>(slot_index)];
  std::byte* const trainable = slot.data;
  std::byte* const frozen = slot.data + static_cast<size_t>(unit.trainable.numel) * element_bytes_;
  parts_.copy_in.wait(slot.last_use, {StateKind::param, unit_index, "gather waits for a slot"});
  // One that was brought ahead and not used may still be arriving there.
  parts_.copy_in.wait(slot.ready, {StateKind::param, unit_index, "gather waits for a slot"});
  poison(parts_.copy_in, slot.data, static_cast<size_t>(unit.numel()) * element_bytes_);
  copy_shard(StateKind::param, unit_index, trainable);
  copy_shard(StateKind::frozen, unit_index, frozen);
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
  places_[static_cast<size_t>(unit_index)] = {trainable, frozen, &slot, Change::none};
}

void ParameterWindow::outdate() {
  for (size_t u = 0; u < places_.size(); ++u) {
    const uint64_t bytes = completion_bytes(plan_, plan_.layout.units()[u]);
    if (bytes == 0 || places_[u].change == Change::all_shards) continue;
    places_[u].change = Change::all_shards;
    promised_bytes_ += bytes;
  }
}

void ParameterWindow::restore() {
  for (Place& place : places_) {
    if (place.change == Change::none) place.change = Change::own_shard;
  }
}

void ParameterWindow::complete(int unit_index) {
  Place& place = places_[static_cast<size_t>(unit_index)];
  const Change change = std::exchange(place.change, Change::none);
  if (place.buffer == nullptr || change == Change::none) return;
  if (change == Change::all_shards) {
    const FlatBuffer& flat = plan_.layout.units()[static_cast<size_t>(unit_index)].trainable;
    parts_.comm_queue.wait(place.buffer->last_use,
                           {StateKind::param, unit_index, "gather waits for compute"});
    parts_.comm.all_gather(place.trainable, shard_bytes(flat),
                           {StateKind::param, unit_index, "complete", Account::update});
  }
  place.buffer->ready = parts_.comm_queue.record();
}

// Parts of the shard may lie in different tiers.
void ParameterWindow::copy_shard(StateKind kind, int unit_index, std::byte* whole) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  const FlatBuffer& flat = kind == StateKind::param ? unit.trainable : unit.frozen;
  const offload::TrainingStateSpec& spec = parts_.state.spec();
  const int64_t grain_bytes = spec.grain_bytes(kind);
  std::byte* const out = whole + static_cast<size_t>(flat.shard_index) * shard_bytes(flat);
  for (Tier tier : kTiers) {
    const GrainRange part = intersect(flat.shard(), spec.placement(kind).range(tier));
    if (part.empty()) continue;
    std::byte* const to = out + (part.begin - flat.first_grain) * grain_bytes;
    if (tier == Tier::nvme) {
      read_shard(kind, unit_index, part, to);
      continue;
    }
    parts_.copy_in.copy(
        to, parts_.state.resident(kind, part.begin),
        static_cast<size_t>(part.grains() * grain_bytes),
        tier == Tier::device ? CopyDirection::device_to_device : CopyDirection::host_to_device,
        {kind, unit_index, "gather"});
  }
}

// The read runs ahead of the copy, which waits for the slot that it fills.
void ParameterWindow::read_shard(StateKind kind, int unit, GrainRange part, std::byte* out) {
  offload::FileQueue& reads = *parts_.reads;
  const auto bytes = static_cast<uint64_t>(part.grains() * parts_.state.spec().grain_bytes(kind));
  std::byte* const staged = reads.claim(bytes, reads.queue());
  offload::IoCommand command = parts_.state.shard_command(kind, part, staged);
  command.op = io::Op::read;
  command.tag = {kind, unit, "read ahead"};
  reads.transfer(command);
  parts_.copy_in.wait(reads.queue().record(), {kind, unit, "gather waits for nvme"});
  parts_.copy_in.copy(out, staged, bytes, CopyDirection::host_to_device, {kind, unit, "gather"});
  reads.release(parts_.copy_in.record());
}

std::span<const TensorView> ParameterWindow::use(int unit_index, Queue& compute) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  for (int need : unit.needs) {
    const Buffer* const buffer = places_[static_cast<size_t>(need)].buffer;
    if (buffer != nullptr) compute.wait(buffer->ready, {StateKind::param, need, kWaitLabel});
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
    Buffer* const buffer = places_[static_cast<size_t>(need)].buffer;
    if (buffer != nullptr) buffer->last_use = done;
  }
}

}  // namespace strata::engine
