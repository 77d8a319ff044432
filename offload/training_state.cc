#include "offload/training_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "strata/codec.h"
#include "strata/error.h"

namespace strata::offload {
namespace {

constexpr std::array<StateKind, 5> kShardKinds = {StateKind::param, StateKind::grad,
                                                  StateKind::master, StateKind::exp_avg,
                                                  StateKind::exp_avg_sq};

std::string arena_name(StateKind kind, Tier tier) {
  return fmt::format("{} on {}", name(kind), name(tier));
}

size_t optimizer_index(StateKind kind) {
  return static_cast<size_t>(kind) - static_cast<size_t>(StateKind::master);
}

// Waits for all of them, then throws the first failure: no transfer may outlive the call that
// started it. The pump's pool is finite, so callers do this every so often.
void wait_all(std::vector<Ticket>& tickets) {
  std::exception_ptr failure;
  for (Ticket& ticket : tickets) {
    try {
      ticket.wait();
    } catch (...) {
      if (failure == nullptr) failure = std::current_exception();
    }
  }
  tickets.clear();
  if (failure != nullptr) std::rethrow_exception(failure);
}

constexpr size_t kMaxTicketsHeld = 16;

}  // namespace

const Placement& TrainingStateSpec::placement(StateKind kind) const {
  switch (kind) {
    case StateKind::param:
      return param;
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

int64_t TrainingStateSpec::grain_bytes(StateKind kind) const {
  switch (kind) {
    case StateKind::param:
      return kGrainNumel * static_cast<int64_t>(size_bytes(param_dtype));
    case StateKind::grad:
      return kGrainNumel * static_cast<int64_t>(size_bytes(grad_dtype));
    default:
      return stored_bytes(Codec::fp32, kGrainNumel);
  }
}

bool TrainingStateSpec::uses_nvme() const {
  return std::any_of(sub_groups.begin(), sub_groups.end(),
                     [](const SubGroup& group) { return group.nvme_kinds() > 0; });
}

std::vector<Reservation> reservations_for(const TrainingStateSpec& spec) {
  std::vector<Reservation> reservations;
  for (StateKind kind : kShardKinds) {
    for (Tier tier : {Tier::device, Tier::host}) {
      const int64_t grains = spec.placement(kind).range(tier).grains();
      if (grains == 0) continue;
      reservations.push_back({tier, kind, arena_name(kind, tier),
                              static_cast<uint64_t>(grains * spec.grain_bytes(kind))});
    }
  }
  if (spec.uses_nvme()) {
    const SlotLayout layout(spec.sub_groups, spec.slots);
    reservations.push_back({Tier::nvme, StateKind::master, "state file", layout.file_bytes()});
  }
  return reservations;
}

TrainingState::TrainingState(TrainingStateSpec spec, TierManager& tiers, SlotStore* store,
                             Pump* pump, Queue& transfer)
    : spec_(std::move(spec)), store_(store), pump_(pump), transfer_(transfer) {
  for (StateKind kind : kShardKinds) {
    Array& array = arrays_[static_cast<size_t>(kind)];
    array.device = tiers.claim(arena_name(kind, Tier::device));
    array.host = tiers.claim(arena_name(kind, Tier::host));
  }
}

std::byte* TrainingState::resident(StateKind kind, int64_t grain) const {
  const Placement& placement = spec_.placement(kind);
  const Tier tier = placement.tier_of(grain);
  if (tier == Tier::nvme) return nullptr;
  const Array& array = arrays_[static_cast<size_t>(kind)];
  const Arena& arena = tier == Tier::device ? array.device : array.host;
  return arena.data() + (grain - placement.range(tier).begin) * spec_.grain_bytes(kind);
}

// Calls visit(run, tier, sub_group, buffer_offset) for each part of `grains` that lies in one tier
// and, on nvme, in one sub-group.
template <typename Visit>
void TrainingState::for_each_run(StateKind kind, GrainRange grains, const Visit& visit) {
  for (const SubGroup& group : spec_.sub_groups) {
    const GrainRange run = intersect(group.grains, grains);
    if (run.empty()) continue;
    // The gradient's placement follows the update and so is cut by no sub-group either.
    const Tier tier = spec_.placement(kind).tier_of(run.begin);
    visit(run, tier, group, (run.begin - grains.begin) * spec_.grain_bytes(kind));
  }
}

IoCommand TrainingState::nvme_command(StateKind kind, GrainRange run, const SubGroup& group,
                                      Extent extent, std::byte* data) const {
  // Kinds before this one in the extent.
  const auto kinds_before = std::count(
      group.state_tier.begin(),
      group.state_tier.begin() + static_cast<int64_t>(optimizer_index(kind)), Tier::nvme);
  const int64_t grain_bytes = spec_.grain_bytes(kind);
  const int64_t grain = kinds_before * group.grains.grains() + run.begin - group.grains.begin;
  IoCommand command;
  command.file = &store_->file();
  command.offset = extent.offset + static_cast<uint64_t>(grain * grain_bytes);
  command.data = data;
  command.bytes = static_cast<uint64_t>(run.grains() * grain_bytes);
  command.tag = {kind, group.index, "transfer"};
  return command;
}

void TrainingState::read(StateKind kind, GrainRange grains, std::byte* buffer) {
  std::vector<Ticket> tickets;
  for_each_run(kind, grains, [&](GrainRange run, Tier tier, const SubGroup& group, int64_t offset) {
    std::byte* part = buffer + offset;
    const auto bytes = static_cast<size_t>(run.grains() * spec_.grain_bytes(kind));
    if (tier == Tier::nvme) {
      IoCommand command = nvme_command(kind, run, group, store_->current(group.index), part);
      command.op = io::Op::read;
      tickets.push_back(pump_->submit(command));
      if (tickets.size() >= kMaxTicketsHeld) wait_all(tickets);
    } else {
      const auto direction =
          tier == Tier::device ? CopyDirection::device_to_host : CopyDirection::host_to_host;
      transfer_.copy(part, resident(kind, run.begin), bytes, direction,
                     {kind, group.index, "transfer"});
    }
  });
  wait_all(tickets);
  transfer_.synchronize();
}

void TrainingState::write(StateKind kind, GrainRange grains, const std::byte* buffer) {
  std::vector<Ticket> tickets;
  for_each_run(kind, grains, [&](GrainRange run, Tier tier, const SubGroup& group, int64_t offset) {
    const std::byte* part = buffer + offset;
    const auto bytes = static_cast<size_t>(run.grains() * spec_.grain_bytes(kind));
    if (tier == Tier::nvme) {
      for (int slot = 0; slot < spec_.slots; ++slot) {
        IoCommand command =
            nvme_command(kind, run, group, store_->layout().extent(group.index, slot),
                         const_cast<std::byte*>(part));
        command.op = io::Op::write;
        tickets.push_back(pump_->submit(command));
      }
      if (tickets.size() >= kMaxTicketsHeld) wait_all(tickets);
    } else {
      const auto direction =
          tier == Tier::device ? CopyDirection::host_to_device : CopyDirection::host_to_host;
      transfer_.copy(resident(kind, run.begin), part, bytes, direction,
                     {kind, group.index, "transfer"});
    }
  });
  wait_all(tickets);
  transfer_.synchronize();
}

}  // namespace strata::offload
