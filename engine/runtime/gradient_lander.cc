#include "engine/runtime/gradient_lander.h"

#include <algorithm>

#include "strata/clock.h"

namespace strata::engine {
namespace {

bool uses(const Unit& unit, const ParameterRef& wanted) {
  return std::any_of(unit.parameters.begin(), unit.parameters.end(), [&](const ParameterRef& ref) {
    return ref.unit == wanted.unit && ref.trainable == wanted.trainable &&
           ref.index == wanted.index;
  });
}

// Backward runs from the last unit to the first: the last user of a parameter writes its gradient
// first, the others add.
bool adds_to_later_units(const std::vector<Unit>& units, size_t unit, const ParameterRef& ref) {
  return std::any_of(units.begin() + static_cast<int64_t>(unit) + 1, units.end(),
                     [&](const Unit& later) { return uses(later, ref); });
}

}  // namespace

GradientLander::GradientLander(const Plan& plan, const offload::TrainingState& state,
                               offload::TierManager& tiers, const Queues& queues,
                               ops::StateOps& device_ops, ops::StateOps& host_ops)
    : plan_(plan),
      state_(state),
      queues_(queues),
      device_ops_(device_ops),
      host_ops_(host_ops),
      element_bytes_(size_bytes(plan.state.param_dtype)),
      slot_memory_(tiers.claim(reserved::kLocalGrads)),
      landing_memory_(tiers.claim(reserved::kLanding)),
      host_sums_(tiers.claim(reserved::kGrainSums)),
      device_sums_(tiers.claim(reserved::kDeviceGrainSums)) {
  std::byte* next = slot_memory_.data();
  for (const int64_t numel : plan.step.grad_slot_numel) {
    slots_.emplace_back().data = next;
    next += static_cast<size_t>(numel) * element_bytes_;
  }
  for (size_t i = 0; i < landings_.size(); ++i) {
    landings_[i].data = landing_memory_.data() + i * plan.landing_bytes;
  }
  const auto& units = plan.layout.units();
  for (size_t u = 0; u < units.size(); ++u) {
    auto& grads = grads_.emplace_back();
    for (const ParameterRef& ref : units[u].parameters) {
      ParameterGrad grad;
      if (ref.trainable) {
        const FlatParameter& parameter = plan.layout.parameter(ref);
        const int slot = plan.step.grad_slot[static_cast<size_t>(ref.unit)];
        grad.view = {slots_[static_cast<size_t>(slot)].data +
                         static_cast<size_t>(parameter.offset) * element_bytes_,
                     plan.state.param_dtype, parameter.spec.shape};
        grad.accumulate = adds_to_later_units(units, u, ref);
      }
      grads.push_back(grad);
    }
  }
}

std::span<const ParameterGrad> GradientLander::prepare(int unit_index) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  for (const ParameterRef& ref : unit.parameters) {
    const int slot_index = plan_.step.grad_slot[static_cast<size_t>(ref.unit)];
    if (!ref.trainable) continue;
    Slot& slot = slots_[static_cast<size_t>(slot_index)];
    if (slot.prepared) continue;
    slot.prepared = true;
    queues_.compute.wait(slot.free, {StateKind::grad, ref.unit, kSlotWaitLabel});
    zero_padding(plan_.layout.units()[static_cast<size_t>(ref.unit)], slot.data);
  }
  return grads_[static_cast<size_t>(unit_index)];
}

// Layers write every parameter's gradient whole; what lies between and after them must be zero.
void GradientLander::zero_padding(const Unit& unit, std::byte* slot) {
  const auto zero = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    queues_.compute.fill_zero(slot + static_cast<size_t>(begin) * element_bytes_,
                              static_cast<size_t>(end - begin) * element_bytes_);
  };
  int64_t end = 0;
  for (const FlatParameter& parameter : unit.trainable.parameters) {
    zero(end, parameter.offset);
    end = parameter.offset + parameter.numel();
  }
  zero(end, unit.trainable.numel);
}

void GradientLander::land(int unit_index, bool first_micro_batch, bool last_micro_batch) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  Slot& slot = slots_[static_cast<size_t>(plan_.step.grad_slot[static_cast<size_t>(unit_index)])];
  slot.prepared = false;
  // Landing on the device runs on the compute queue, so that the slot is free once both that and
  // the copy to the host are through.
  land_on_device(unit, slot.data, !first_micro_batch, last_micro_batch);
  queues_.copy_out.wait(queues_.compute.record(),
                        {StateKind::grad, unit_index, "landing waits for compute"});
  land_on_host(unit_index, slot.data, !first_micro_batch, last_micro_batch);
  slot.free = queues_.copy_out.record();
}

GrainRange GradientLander::part_of(const Unit& unit, Tier tier) const {
  const int64_t begin = unit.trainable.first_grain;
  return intersect({begin, begin + unit.trainable.numel / kGrainNumel},
                   state_.spec().grad.range(tier));
}

ops::LandGradientSpans GradientLander::spans(GrainRange grains, const void* source, bool add,
                                             double* sums) const {
  ops::LandGradientSpans spans;
  spans.dst = state_.resident(StateKind::grad, grains.begin);
  spans.dst_dtype = plan_.state.grad_dtype;
  spans.src = source;
  spans.src_dtype = plan_.state.param_dtype;
  spans.numel = grains.numel();
  spans.add = add;
  spans.grain_sum_of_squares = sums;
  return spans;
}

void GradientLander::land_on_device(const Unit& unit, const std::byte* slot, bool add, bool count) {
  const GrainRange part = part_of(unit, Tier::device);
  if (part.empty()) return;
  const int64_t skipped = (part.begin - unit.trainable.first_grain) * kGrainNumel;
  double* sums = count ? device_sums_.as<double>() + part.begin : nullptr;
  device_ops_.land_gradient(
      queues_.compute,
      spans(part, slot + static_cast<size_t>(skipped) * element_bytes_, add, sums));
}

void GradientLander::land_on_host(int unit_index, const std::byte* slot, bool add, bool count) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  const GrainRange part = part_of(unit, Tier::host);
  if (part.empty()) return;
  Landing& landing = landings_[next_landing_];
  next_landing_ = (next_landing_ + 1) % landings_.size();
  const int64_t skipped = (part.begin - unit.trainable.first_grain) * kGrainNumel;
  queues_.copy_out.wait(landing.free, {StateKind::grad, unit_index, "landing waits for the host"});
  queues_.copy_out.copy(landing.data, slot + static_cast<size_t>(skipped) * element_bytes_,
                        static_cast<size_t>(part.numel()) * element_bytes_,
                        CopyDirection::device_to_host, {StateKind::grad, unit_index, "gradients"});
  queues_.host.wait(queues_.copy_out.record(),
                    {StateKind::grad, unit_index, "host waits for gradients"});
  double* sums = count ? host_sums_.as<double>() + part.begin : nullptr;
  host_ops_.land_gradient(queues_.host, spans(part, landing.data, add, sums));
  landing.free = queues_.host.record();
}

double GradientLander::finish(TrafficSink& traffic) {
  const auto device_grains = static_cast<size_t>(state_.spec().grad.range(Tier::device).grains());
  queues_.compute.synchronize();
  TrafficRecord wait;
  wait.activity = Activity::wait;
  wait.tag = {StateKind::grad, -1, kLandingWaitLabel};
  wait.lane = "driver";
  wait.begin_ns = now_ns();
  if (device_grains > 0) {
    queues_.copy_out.copy(host_sums_.data(), device_sums_.data(), device_grains * sizeof(double),
                          CopyDirection::device_to_host, {StateKind::other, -1, "gradient norms"});
  }
  queues_.copy_out.synchronize();
  queues_.host.synchronize();
  wait.end_ns = now_ns();
  traffic.record(wait);

  const double* sums = host_sums_.as<double>();
  double total = 0;
  for (int64_t grain = 0; grain < plan_.layout.trainable_grains(); ++grain) total += sums[grain];
  return total;
}

}  // namespace strata::engine
