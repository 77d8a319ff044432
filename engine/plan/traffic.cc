#include "engine/plan/traffic.h"

#include "offload/slot_store.h"

namespace strata::engine {
namespace {

uint64_t element_bytes(const Plan& plan) { return size_bytes(plan.state.param_dtype); }

uint64_t host_param_bytes(const Plan& plan, const Unit& unit) {
  int64_t numel = intersect(unit.trainable.shard(), plan.state.param.range(Tier::host)).numel();
  if (plan.frozen_tier == Tier::host) numel += unit.frozen.shard_numel;
  return static_cast<uint64_t>(numel) * element_bytes(plan);
}

// What a rank sends to gather a unit's parameters, or to reduce its gradients.
uint64_t sent_bytes(const Plan& plan, int64_t shard_numel) {
  return static_cast<uint64_t>((plan.layout.world_size() - 1) * shard_numel) * element_bytes(plan);
}

uint64_t& bytes_over(Activity link, LinkBytes& traffic) {
  return traffic[static_cast<size_t>(link)];
}

LinkBytes program_traffic(const Plan& plan, const Program& program, int64_t micro_batches) {
  LinkBytes traffic = {};
  uint64_t& h2d = bytes_over(Activity::h2d, traffic);
  uint64_t& d2h = bytes_over(Activity::d2h, traffic);
  uint64_t& comm = bytes_over(Activity::comm, traffic);
  h2d += static_cast<uint64_t>(micro_batches * plan.micro_batch.tokens()) * 2 * sizeof(int32_t);
  d2h += static_cast<uint64_t>(micro_batches) * sizeof(double);
  for (const Action& action : program.actions) {
    const Unit& unit = plan.layout.units()[static_cast<size_t>(action.unit)];
    if (action.op == Action::Op::gather) {
      h2d += host_param_bytes(plan, unit);
      comm += sent_bytes(plan, unit.trainable.shard_numel + unit.frozen.shard_numel);
    }
    if (action.op == Action::Op::reduce) {
      d2h += host_grad_bytes(plan, unit);
      comm += sent_bytes(plan, unit.trainable.shard_numel);
    }
  }
  return traffic;
}

}  // namespace

uint64_t host_grad_bytes(const Plan& plan, const Unit& unit) {
  const int64_t numel =
      intersect(unit.trainable.shard(), plan.state.grad.range(Tier::host)).numel();
  return static_cast<uint64_t>(numel) * size_bytes(plan.landed_dtype());
}

LinkBytes step_traffic(const Plan& plan, int64_t accumulation_steps) {
  LinkBytes traffic = program_traffic(plan, plan.step, accumulation_steps);
  bytes_over(Activity::d2h, traffic) +=
      static_cast<uint64_t>(plan.state.grad.range(Tier::device).grains()) * sizeof(double);
  bytes_over(Activity::comm, traffic) +=
      static_cast<uint64_t>(plan.layout.world_size() - 1) * kStepDoubles * sizeof(double);
  return traffic + update_traffic(plan);
}

LinkBytes update_traffic(const Plan& plan) {
  LinkBytes traffic = {};
  for (const offload::SubGroup& group : plan.state.sub_groups) {
    traffic = traffic + offload::update_traffic(plan.state, group);
  }
  if (plan.commits()) {
    const offload::SlotLayout slots = plan.state.slot_layout();
    bytes_over(Activity::nvme_write, traffic) += offload::SlotStore::journal_bytes(slots) / 2;
    bytes_over(Activity::comm, traffic) +=
        static_cast<uint64_t>(plan.layout.world_size() - 1) * kCommitDoubles * sizeof(double);
  }
  return traffic;
}

LinkBytes evaluate_traffic(const Plan& plan) { return program_traffic(plan, plan.evaluate, 1); }

}  // namespace strata::engine
