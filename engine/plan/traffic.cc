#include "engine/plan/traffic.h"

#include "offload/slot_store.h"

namespace strata::engine {
namespace {

uint64_t element_bytes(const Plan& plan) { return size_bytes(plan.state.param_dtype); }

uint64_t shard_bytes(const Plan& plan, const FlatBuffer& flat, const offload::Placement& placement,
                     Tier tier) {
  const int64_t numel = intersect(flat.shard(), placement.range(tier)).numel();
  return static_cast<uint64_t>(numel) * element_bytes(plan);
}

// Of a gathered unit's shard.
uint64_t param_bytes(const Plan& plan, const Unit& unit, Tier tier) {
  return shard_bytes(plan, unit.trainable, plan.state.param, tier) +
         shard_bytes(plan, unit.frozen, plan.state.frozen, tier);
}

// What a rank sends so that all have each other's part of `numel` elements, or their sum of it.
uint64_t sent_bytes(const Plan& plan, int64_t numel, DType dtype) {
  const int64_t world = plan.layout.world_size();
  return static_cast<uint64_t>((world - 1) * (numel / world)) * size_bytes(dtype);
}

uint64_t& bytes_over(Activity link, LinkBytes& traffic) {
  return traffic[static_cast<size_t>(link)];
}

void add_gather(const Plan& plan, const Unit& unit, LinkBytes& traffic) {
  const uint64_t on_nvme = param_bytes(plan, unit, Tier::nvme);
  bytes_over(Activity::nvme_read, traffic) += on_nvme;
  bytes_over(Activity::h2d, traffic) += param_bytes(plan, unit, Tier::host) + on_nvme;
  bytes_over(Activity::comm, traffic) += sent_bytes(plan, unit.numel(), plan.state.param_dtype);
}

// Gradients on nvme are written each time they land, and read where they are added to.
void add_landing(const Plan& plan, const Unit& unit, int micro_batch, LinkBytes& traffic) {
  bytes_over(Activity::d2h, traffic) += host_grad_bytes(plan, unit);
  const uint64_t bytes = nvme_grad_bytes(plan, unit);
  bytes_over(Activity::nvme_write, traffic) += bytes;
  if (plan.adds_at_landing(micro_batch)) bytes_over(Activity::nvme_read, traffic) += bytes;
}

void add_checkpoint(const Plan& plan, const Action& action, LinkBytes& traffic) {
  const auto& unit = plan.activations.units[static_cast<size_t>(action.unit)];
  const bool saves = action.op == Action::Op::save;
  bytes_over(saves ? Activity::d2h : Activity::h2d, traffic) += unit.output_bytes;
  if (unit.checkpoint_tier != Tier::nvme) return;
  bytes_over(saves ? Activity::nvme_write : Activity::nvme_read, traffic) += unit.output_bytes;
}

void add_reduce(const Plan& plan, const Unit& unit, int micro_batch, LinkBytes& traffic) {
  const int64_t numel = unit.trainable.numel;
  uint64_t& comm = bytes_over(Activity::comm, traffic);
  if (plan.reduces(micro_batch)) comm += sent_bytes(plan, numel, plan.reduced_dtype());
  if (!plan.lands(micro_batch)) return;
  // With stage 0 every rank lands all of the sum.
  if (plan.layout.state_shards() == 1) comm += sent_bytes(plan, numel, DType::fp32);
  add_landing(plan, unit, micro_batch, traffic);
}

LinkBytes program_traffic(const Plan& plan, const Program& program, int64_t micro_batches) {
  LinkBytes traffic = {};
  bytes_over(Activity::h2d, traffic) += static_cast<uint64_t>(micro_batches) * plan.batch_bytes;
  bytes_over(Activity::d2h, traffic) += static_cast<uint64_t>(micro_batches) * sizeof(double);
  for (const Action& action : program.actions) {
    const Unit& unit = plan.layout.units()[static_cast<size_t>(action.unit)];
    switch (action.op) {
      case Action::Op::gather:
        if (action.slot >= 0) add_gather(plan, unit, traffic);
        break;
      case Action::Op::reduce:
        add_reduce(plan, unit, action.micro_batch, traffic);
        break;
      case Action::Op::save:
      case Action::Op::restore:
        add_checkpoint(plan, action, traffic);
        break;
      case Action::Op::forward:
      case Action::Op::backward:
        break;
    }
  }
  return traffic;
}

}  // namespace

uint64_t host_grad_bytes(const Plan& plan, const Unit& unit) {
  const GrainRange shard = unit.trainable.shard();
  const int64_t numel = intersect(shard, plan.state.grad.range(Tier::host)).numel() +
                        intersect(shard, plan.state.grad.range(Tier::nvme)).numel();
  return static_cast<uint64_t>(numel) * size_bytes(plan.landed_dtype());
}

uint64_t nvme_param_bytes(const Plan& plan, const Unit& unit) {
  return param_bytes(plan, unit, Tier::nvme);
}

uint64_t nvme_grad_bytes(const Plan& plan, const Unit& unit) {
  const GrainRange part = intersect(unit.trainable.shard(), plan.state.grad.range(Tier::nvme));
  return static_cast<uint64_t>(part.grains() * plan.state.grain_bytes(StateKind::grad));
}

uint64_t completion_bytes(const Plan& plan) {
  uint64_t bytes = 0;
  for (const Unit& unit : plan.layout.units()) bytes += completion_bytes(plan, unit);
  return bytes;
}

uint64_t completion_bytes(const Plan& plan, const Unit& unit) {
  if (!unit.whole || unit.trainable.shards == 1) return 0;
  return sent_bytes(plan, unit.trainable.numel, plan.state.param_dtype);
}

LinkBytes step_traffic(const Plan& plan) {
  LinkBytes traffic = program_traffic(plan, plan.step, plan.micro_batches);
  bytes_over(Activity::d2h, traffic) +=
      static_cast<uint64_t>(plan.state.grad.range(Tier::device).grains()) * sizeof(double);
  bytes_over(Activity::comm, traffic) +=
      static_cast<uint64_t>(plan.layout.world_size() - 1) * kStepDoubles * sizeof(double);
  if (plan.commits()) {
    bytes_over(Activity::comm, traffic) +=
        static_cast<uint64_t>(plan.layout.world_size() - 1) * kCommitDoubles * sizeof(double);
  }
  return traffic + update_traffic(plan);
}

LinkBytes update_traffic(const Plan& plan) {
  LinkBytes traffic = {};
  for (const offload::SubGroup& group : plan.state.sub_groups) {
    traffic = traffic + offload::update_traffic(plan.state, group);
  }
  bytes_over(Activity::comm, traffic) += completion_bytes(plan);
  if (plan.commits()) {
    const offload::SlotLayout slots = plan.state.slot_layout();
    bytes_over(Activity::nvme_write, traffic) += offload::SlotStore::journal_bytes(slots) / 2;
  }
  return traffic;
}

LinkBytes evaluate_traffic(const Plan& plan) { return program_traffic(plan, plan.evaluate, 1); }

}  // namespace strata::engine
