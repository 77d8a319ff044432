#include "offload/training_state.h"

#include <fmt/format.h>

#include <algorithm>

#include "strata/error.h"

namespace strata::offload {
namespace {

constexpr std::array<StateKind, 6> kShardKinds = {StateKind::param,   StateKind::frozen,
                                                  StateKind::grad,    StateKind::master,
                                                  StateKind::exp_avg, StateKind::exp_avg_sq};
constexpr const char* kWholeUnits = "whole units";

std::string arena_name(StateKind kind, Tier tier) {
  return fmt::format("{} on {}", name(kind), name(tier));
}

size_t optimizer_index(StateKind kind) {
  return static_cast<size_t>(kind) - static_cast<size_t>(StateKind::master);
}

constexpr int64_t kDiskBlockBytes = 4096;

uint64_t bytes_of(const TrainingStateSpec& spec, const SubGroup& group, StateKind kind) {
  return static_cast<uint64_t>(group.grains.grains() * spec.grain_bytes(kind));
}

// Of a slot, what the first `kinds` kinds take.
uint64_t bytes_before(const TrainingStateSpec& spec, const SubGroup& group, size_t kinds) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < kinds; ++i) {
    if (group.state_tier[i] != Tier::nvme) continue;
    bytes += spec.padded_bytes(kOptimizerKinds[i], group.grains.grains());
  }
  return bytes;
}

// From the update to where they live.
LinkBytes param_traffic(const TrainingStateSpec& spec, const SubGroup& group) {
  LinkBytes traffic = {};
  if (group.param_tier == group.update_tier()) return traffic;
  const Activity link = group.param_tier == Tier::nvme ? Activity::nvme_write : Activity::h2d;
  traffic[static_cast<size_t>(link)] = bytes_of(spec, group, StateKind::param);
  return traffic;
}

bool has_file(StateKind kind) {
  return std::find(kFileKinds.begin(), kFileKinds.end(), kind) != kFileKinds.end();
}

}  // namespace

const Placement& TrainingStateSpec::placement(StateKind kind) const {
  switch (kind) {
    case StateKind::param:
      return param;
    case StateKind::frozen:
      return frozen;
    case StateKind::grad:
      return grad;
    case StateKind::master:
    case StateKind::exp_avg:
    case StateKind::exp_avg_sq:
      return optimizer_state[optimizer_index(kind)];
    default:
      throw Error(fmt::format("{} is not part of the shard space", name(kind)));
  }
}

Codec TrainingStateSpec::codec(StateKind optimizer_kind) const {
  return codecs[optimizer_index(optimizer_kind)];
}

int64_t TrainingStateSpec::grain_bytes(StateKind kind) const {
  switch (kind) {
    case StateKind::param:
    case StateKind::frozen:
      return kGrainNumel * static_cast<int64_t>(size_bytes(param_dtype));
    case StateKind::grad:
      return kGrainNumel * static_cast<int64_t>(size_bytes(grad_dtype));
    default:
      return stored_bytes(codec(kind), kGrainNumel);
  }
}

bool TrainingStateSpec::uses_nvme() const {
  return std::any_of(sub_groups.begin(), sub_groups.end(),
                     [this](const SubGroup& group) { return on_disk(group); });
}

uint64_t TrainingStateSpec::padded_bytes(StateKind kind, int64_t grains) const {
  return static_cast<uint64_t>(round_up(grains * grain_bytes(kind), kDiskBlockBytes));
}

uint64_t TrainingStateSpec::extent_bytes(const SubGroup& group) const {
  return bytes_before(*this, group, kOptimizerKindCount);
}

uint64_t TrainingStateSpec::extent_offset(const SubGroup& group, StateKind kind) const {
  return bytes_before(*this, group, optimizer_index(kind));
}

bool TrainingStateSpec::loads_param(const SubGroup& group) const {
  return codec(StateKind::master) == Codec::split16 && group.param_tier != group.update_tier();
}

SlotLayout TrainingStateSpec::slot_layout() const {
  std::vector<std::vector<SlotLayout::Run>> runs;
  for (const SubGroup& group : sub_groups) {
    std::vector<SlotLayout::Run>& of_group = runs.emplace_back();
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      const StateKind kind = kOptimizerKinds[i];
      if (group.state_tier[i] != Tier::nvme || grain_bytes(kind) == 0) continue;
      of_group.push_back(
          {padded_bytes(kind, group.grains.grains()), padded_bytes(kind, kTransferAlignGrains)});
    }
  }
  return SlotLayout(runs, slots);
}

LinkBytes read_traffic(const TrainingStateSpec& spec, const SubGroup& group) {
  LinkBytes traffic = {};
  traffic[static_cast<size_t>(Activity::nvme_read)] = spec.extent_bytes(group);
  if (group.grad_tier == Tier::nvme) {
    traffic[static_cast<size_t>(Activity::nvme_read)] += bytes_of(spec, group, StateKind::grad);
  }
  if (spec.loads_param(group)) {
    const Activity link = group.param_tier == Tier::nvme ? Activity::nvme_read : Activity::d2h;
    traffic[static_cast<size_t>(link)] += bytes_of(spec, group, StateKind::param);
  }
  return traffic;
}

LinkBytes update_traffic(const TrainingStateSpec& spec, const SubGroup& group) {
  LinkBytes traffic = read_traffic(spec, group) + param_traffic(spec, group);
  traffic[static_cast<size_t>(Activity::nvme_write)] += spec.extent_bytes(group);
  return traffic;
}

LinkBytes restoration_traffic(const TrainingStateSpec& spec, const SubGroup& group) {
  LinkBytes traffic = param_traffic(spec, group);
  traffic[static_cast<size_t>(Activity::nvme_read)] +=
      spec.padded_bytes(StateKind::master, group.grains.grains());
  return traffic;
}

std::vector<Reservation> reservations_for(const TrainingStateSpec& spec) {
  std::vector<Reservation> reservations;
  for (StateKind kind : kShardKinds) {
    for (Tier tier : {Tier::device, Tier::host}) {
      const auto bytes =
          static_cast<uint64_t>(spec.placement(kind).array_grains(tier) * spec.grain_bytes(kind));
      if (bytes > 0) reservations.push_back({tier, kind, arena_name(kind, tier), bytes});
    }
  }
  if (spec.whole_bytes > 0) {
    reservations.push_back({Tier::device, StateKind::param, kWholeUnits, spec.whole_bytes});
  }
  if (spec.uses_nvme()) {
    reservations.push_back(
        {Tier::nvme, StateKind::master, "state file", spec.slot_layout().file_bytes()});
  }
  for (StateKind kind : kFileKinds) {
    const uint64_t bytes = shard_file_bytes(spec, kind);
    if (bytes > 0) reservations.push_back({Tier::nvme, kind, shard_file_name(kind), bytes});
  }
  return reservations;
}

std::string shard_file_name(StateKind kind) { return fmt::format("{} file", name(kind)); }

uint64_t shard_file_bytes(const TrainingStateSpec& spec, StateKind kind) {
  return static_cast<uint64_t>(spec.placement(kind).array_grains(Tier::nvme) *
                               spec.grain_bytes(kind));
}

TrainingState::TrainingState(TrainingStateSpec spec, TierManager& tiers, SlotStore* store,
                             Pump* pump, Queue& transfer, ShardFiles files)
    : spec_(std::move(spec)),
      store_(store),
      pump_(pump),
      transfer_(transfer),
      files_(std::move(files)) {
  for (StateKind kind : kShardKinds) {
    Array& array = arrays_[static_cast<size_t>(kind)];
    array.device = tiers.claim(arena_name(kind, Tier::device));
    array.host = tiers.claim(arena_name(kind, Tier::host));
  }
  whole_ = tiers.claim(kWholeUnits);
}

std::byte* TrainingState::resident(StateKind kind, int64_t grain) const {
  const Placement& placement = spec_.placement(kind);
  const int64_t grain_bytes = spec_.grain_bytes(kind);
  if (const WholeRun* run = placement.whole_at(grain)) {
    return whole_.data() + run->offset_bytes + (grain - run->grains.begin) * grain_bytes;
  }
  const Tier tier = placement.tier_of(grain);
  if (tier == Tier::nvme) return nullptr;
  const Array& array = arrays_[static_cast<size_t>(kind)];
  const Arena& arena = tier == Tier::device ? array.device : array.host;
  return arena.data() + placement.array_index(grain) * grain_bytes;
}

const SubGroup& TrainingState::sub_group_of(GrainRange grains) const {
  const auto after = std::upper_bound(
      spec_.sub_groups.begin(), spec_.sub_groups.end(), grains.begin,
      [](int64_t begin, const SubGroup& group) { return begin < group.grains.end; });
  require(after != spec_.sub_groups.end() && grains.end <= after->grains.end,
          "a transfer of training state lies in one sub-group");
  return *after;
}

int32_t TrainingState::index_of(StateKind kind, GrainRange grains) const {
  return kind == StateKind::frozen ? -1 : sub_group_of(grains).index;
}

IoCommand TrainingState::shard_command(StateKind kind, GrainRange grains, std::byte* data) const {
  const int64_t grain_bytes = spec_.grain_bytes(kind);
  IoCommand command;
  command.file = &*files_[static_cast<size_t>(kind)];
  command.offset =
      static_cast<uint64_t>(spec_.placement(kind).array_index(grains.begin) * grain_bytes);
  command.data = data;
  command.bytes = static_cast<uint64_t>(grains.grains() * grain_bytes);
  command.tag = {kind, -1, "transfer"};
  return command;
}

IoCommand TrainingState::slot_command(StateKind kind, GrainRange grains, Extent extent,
                                      std::byte* data) const {
  const SubGroup& group = sub_group_of(grains);
  IoCommand command;
  command.file = &store_->file();
  command.offset =
      extent.offset + spec_.extent_offset(group, kind) +
      static_cast<uint64_t>((grains.begin - group.grains.begin) * spec_.grain_bytes(kind));
  command.data = data;
  command.bytes = spec_.padded_bytes(kind, grains.grains());
  command.tag = {kind, group.index, "transfer"};
  return command;
}

void TrainingState::copy(const Copy& copy, Queue& queue, Account account) const {
  const auto& [kind, grains, to, from, on_device] = copy;
  const bool is_on_device = spec_.placement(kind).tier_of(grains.begin) == Tier::device;
  queue.copy(to, from, static_cast<size_t>(grains.grains() * spec_.grain_bytes(kind)),
             is_on_device ? on_device : CopyDirection::host_to_host,
             {kind, index_of(kind, grains), "transfer", account});
  queue.synchronize();
}

void TrainingState::transfer(io::Op op, IoCommand command, Account account) const {
  require(command.offset % kDiskBlockBytes == 0,
          "a transfer of training state starts at a disk block");
  command.op = op;
  command.tag.account = account;
  pump_->submit(command).wait();
}

void TrainingState::read(StateKind kind, GrainRange grains, std::byte* buffer,
                         const Source& source) {
  const int32_t group = index_of(kind, grains);
  if (spec_.grain_bytes(kind) == 0) return;
  if (const std::byte* const here = resident(kind, grains.begin)) {
    copy({kind, grains, buffer, here, CopyDirection::device_to_host}, source.queue, source.account);
  } else if (has_file(kind)) {
    transfer(io::Op::read, shard_command(kind, grains, buffer), source.account);
  } else {
    const Extent extent = store_->layout().extent(group, source.slot);
    const IoCommand command = slot_command(kind, grains, extent, buffer);
    transfer(io::Op::read, command, source.account);
    store_->check(group, source.slot, command.offset - extent.offset, {buffer, command.bytes});
  }
}

void TrainingState::write(StateKind kind, GrainRange grains, const std::byte* buffer) {
  const int32_t group = index_of(kind, grains);
  if (spec_.grain_bytes(kind) == 0) return;
  if (std::byte* const here = resident(kind, grains.begin)) {
    return copy({kind, grains, here, buffer, CopyDirection::host_to_device}, transfer_,
                Account::step);
  }
  auto* const data = const_cast<std::byte*>(buffer);  // not written to
  if (has_file(kind)) {
    transfer(io::Op::write, shard_command(kind, grains, data), Account::step);
    return;
  }
  for (int slot = 0; slot < spec_.slots; ++slot) {
    const Extent extent = store_->layout().extent(group, slot);
    const IoCommand command = slot_command(kind, grains, extent, data);
    store_->seal(group, slot, command.offset - extent.offset, {buffer, command.bytes});
    transfer(io::Op::write, command, Account::step);
  }
}

}  // namespace strata::offload
