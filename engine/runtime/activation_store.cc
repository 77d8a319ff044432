#include "engine/runtime/activation_store.h"
#include "kernels/device/poison.h"

namespace strata::engine {

ActivationStore::ActivationStore(const Plan& plan, const Parts& parts, offload::TierManager& tiers)
    : plan_(plan),
      parts_(parts),
      memory_(tiers.claim(reserved::kBoundary)),
      host_(tiers.claim(reserved::kHostActivations)),
      places_(plan.activations.place_offset.size()),
      stored_(plan.activations.units.size() * static_cast<size_t>(plan.micro_batches)) {}

void ActivationStore::enter(const Action& compute) {
  const auto wait = [&](const Event& event) {
    parts_.compute.wait(event, {StateKind::activation, compute.unit, kWaitLabel});
  };
  if (compute.input >= 0) wait(places_[static_cast<size_t>(compute.input)].ready);
  if (compute.output < 0) return;
  wait(places_[static_cast<size_t>(compute.output)].saved);
  // Tiles add to what the first one writes, and the last layer's read it in backward.
  const bool writes =
      plan_.layout.units()[static_cast<size_t>(compute.unit)].first_tile == compute.unit;
  if (!writes || compute.op != Action::Op::forward) return;
  poison(parts_.compute, place(compute.output), unit(compute).output_bytes);
}

void ActivationStore::leave(const Action& compute, const Event& done) {
  if (compute.input >= 0) places_[static_cast<size_t>(compute.input)].read = done;
  if (compute.output >= 0) places_[static_cast<size_t>(compute.output)].read = done;
}

// Micro-batches that do not wait at a time take the same room.
uint64_t ActivationStore::stored_at(const Action& action) const {
  const auto& u = unit(action);
  return u.stored_offset + static_cast<uint64_t>(action.micro_batch) * u.stored_stride;
}

ActivationStore::Stored& ActivationStore::stored(const Action& action) {
  const bool shared = unit(action).stored_stride == 0;
  const auto micro_batch = static_cast<size_t>(shared ? 0 : action.micro_batch);
  return stored_[micro_batch * plan_.activations.units.size() + static_cast<size_t>(action.unit)];
}

offload::IoCommand ActivationStore::command(const Action& action, io::Op op,
                                            std::byte* data) const {
  offload::IoCommand command;
  command.op = op;
  command.file = parts_.file;
  command.offset = stored_at(action);
  command.data = data;
  command.bytes = unit(action).output_bytes;
  command.tag = {StateKind::activation, action.unit, op == io::Op::read ? "restore" : "save"};
  return command;
}

void ActivationStore::save(const Action& action) {
  const TrafficTag tag = {StateKind::activation, action.unit, "save"};
  const uint64_t bytes = unit(action).output_bytes;
  Place& from = places_[static_cast<size_t>(action.output)];
  Stored& to = stored(action);
  const bool on_nvme = unit(action).checkpoint_tier == Tier::nvme;
  std::byte* const data =
      on_nvme ? parts_.files->claim(bytes, parts_.out) : host_.data() + stored_at(action);
  parts_.out.wait(from.read, tag);
  if (!on_nvme) parts_.out.wait(to.read, tag);
  parts_.out.copy(data, place(action.output), bytes, CopyDirection::device_to_host, tag);
  from.saved = to.written = parts_.out.record();
  if (!on_nvme) return;
  Queue& files = parts_.files->queue();
  files.wait(to.written, tag);
  files.wait(to.read, tag);
  parts_.files->transfer(command(action, io::Op::write, data));
  to.written = files.record();
  parts_.files->release(to.written);
}

void ActivationStore::restore(const Action& action) {
  const TrafficTag tag = {StateKind::activation, action.unit, "restore"};
  const uint64_t bytes = unit(action).output_bytes;
  Place& to = places_[static_cast<size_t>(action.output)];
  Stored& from = stored(action);
  const bool on_nvme = unit(action).checkpoint_tier == Tier::nvme;
  std::byte* data = host_.data() + stored_at(action);
  Event there = from.written;
  if (on_nvme) {
    Queue& files = parts_.files->queue();
    data = parts_.files->claim(bytes, files);
    files.wait(from.written, tag);
    parts_.files->transfer(command(action, io::Op::read, data));
    there = files.record();
  }
  parts_.in.wait(there, tag);
  parts_.in.wait(to.read, tag);
  parts_.in.wait(to.saved, tag);
  poison(parts_.in, place(action.output), bytes);
  parts_.in.copy(place(action.output), data, bytes, CopyDirection::host_to_device, tag);
  to.ready = from.read = parts_.in.record();
  if (on_nvme) parts_.files->release(to.ready);
}

}  // namespace strata::engine
