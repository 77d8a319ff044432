#include "engine/runtime/gradient_lander.h"

#include <algorithm>

#include "strata/wait_scope.h"

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

GradientLander::GradientLander(const Plan& plan, const Parts& parts, offload::TierManager& tiers)
    : plan_(plan),
      parts_(parts),
      host_landings_(parts.host, parts.traffic),
      element_bytes_(size_bytes(plan.state.param_dtype)),
      landed_bytes_(size_bytes(plan.landed_dtype())),
      slot_memory_(tiers.claim(reserved::kLocalGrads)),
      reduced_memory_(tiers.claim(reserved::kReducedGrads)),
      reduce_scratch_(tiers.claim(reserved::kReduceScratch)),
      landing_memory_(tiers.claim(reserved::kLanding)),
      host_sums_(tiers.claim(reserved::kGrainSums)),
      device_sums_(tiers.claim(reserved::kDeviceGrainSums)) {
  std::byte* next = slot_memory_.data();
  for (const int64_t numel : plan.step.grad_slot_numel) {
    slots_.emplace_back().data = next;
    next += static_cast<size_t>(numel) * element_bytes_;
  }
  for (size_t i = 0; i < 2; ++i) {
    reduced_[i].data = reduced_memory_.data() + i * plan.reduced_bytes;
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
    parts_.compute.wait(slot.free, {StateKind::grad, ref.unit, kSlotWaitLabel});
    zero_padding(plan_.layout.units()[static_cast<size_t>(ref.unit)], slot.data);
  }
  return grads_[static_cast<size_t>(unit_index)];
}

// Layers write every parameter's gradient whole; what lies between and after them must be zero.
void GradientLander::zero_padding(const Unit& unit, std::byte* slot) {
  const auto zero = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    parts_.compute.fill_zero(slot + static_cast<size_t>(begin) * element_bytes_,
                             static_cast<size_t>(end - begin) * element_bytes_);
  };
  int64_t end = 0;
  for (const FlatParameter& parameter : unit.trainable.parameters) {
    zero(end, parameter.offset);
    end = parameter.offset + parameter.numel();
  }
  zero(end, unit.trainable.numel);
}

void GradientLander::land(int unit, bool first_micro_batch, bool last_micro_batch) {
  Slot& slot = slots_[static_cast<size_t>(plan_.step.grad_slot[static_cast<size_t>(unit)])];
  slot.prepared = false;
  Arriving arriving{unit, slot.data, !first_micro_batch, last_micro_batch};
  if (!single()) arriving.shard = reduce(unit, slot);
  // Landing on the device is on the shard's queue, so that its buffer is free once the copy to the
  // host, which waits for that queue, is through.
  land_on_device(arriving);
  parts_.copy_out.wait(shard_queue().record(),
                       {StateKind::grad, unit, "landing waits for gradients"});
  land_on_host(arriving);
  (single() ? slot.free : reduced_[turn_].free) = parts_.copy_out.record();
  turn_ = 1 - turn_;
}

const std::byte* GradientLander::reduce(int unit, Slot& slot) {
  Buffer& reduced = reduced_[turn_];
  parts_.comm_queue.wait(parts_.compute.record(),
                         {StateKind::grad, unit, "reduction waits for compute"});
  parts_.comm_queue.wait(reduced.free, {StateKind::grad, unit, "reduction waits for landing"});
  ReduceScatterSpans spans;
  spans.flat = slot.data;
  spans.dtype = plan_.state.param_dtype;
  spans.out = reinterpret_cast<float*>(reduced.data);
  spans.shard_numel = plan_.layout.units()[static_cast<size_t>(unit)].trainable.shard_numel;
  spans.scratch = {reduce_scratch_.data(), reduce_scratch_.bytes()};
  parts_.comm.reduce_scatter(spans, {StateKind::grad, unit, "reduce"});
  slot.free = parts_.comm_queue.record();
  return reduced.data;
}

GrainRange GradientLander::part_of(int unit, Tier tier) const {
  return intersect(plan_.layout.units()[static_cast<size_t>(unit)].trainable.shard(),
                   parts_.state.spec().grad.range(tier));
}

// From the start of the unit's shard to a part of it.
size_t GradientLander::bytes_before(int unit, GrainRange part) const {
  const int64_t first = plan_.layout.units()[static_cast<size_t>(unit)].trainable.first_grain;
  return static_cast<size_t>((part.begin - first) * kGrainNumel) * landed_bytes_;
}

ops::LandGradientSpans GradientLander::spans(GrainRange grains, const void* source,
                                             const Arriving& arriving, double* sums) const {
  ops::LandGradientSpans spans;
  spans.dst = parts_.state.resident(StateKind::grad, grains.begin);
  spans.dst_dtype = plan_.state.grad_dtype;
  spans.src = source;
  spans.src_dtype = plan_.landed_dtype();
  spans.numel = grains.numel();
  spans.add = arriving.add;
  spans.grain_sum_of_squares = arriving.count ? sums + grains.begin : nullptr;
  return spans;
}

void GradientLander::land_on_device(const Arriving& arriving) {
  const GrainRange part = part_of(arriving.unit, Tier::device);
  if (part.empty()) return;
  parts_.device_ops.land_gradient(
      shard_queue(), spans(part, arriving.shard + bytes_before(arriving.unit, part), arriving,
                           device_sums_.as<double>()));
}

void GradientLander::land_on_host(const Arriving& arriving) {
  const int unit = arriving.unit;
  const GrainRange part = part_of(unit, Tier::host);
  if (part.empty()) return;
  Buffer& landing = landings_[turn_];
  parts_.copy_out.wait(landing.free, {StateKind::grad, unit, "landing waits for the host"});
  parts_.copy_out.copy(landing.data, arriving.shard + bytes_before(unit, part),
                       static_cast<size_t>(part.numel()) * landed_bytes_,
                       CopyDirection::device_to_host, {StateKind::grad, unit, "gradients"});
  parts_.host.wait(parts_.copy_out.record(), {StateKind::grad, unit, "host waits for gradients"});
  host_landings_.begin();
  parts_.host_ops.land_gradient(parts_.host,
                                spans(part, landing.data, arriving, host_sums_.as<double>()));
  host_landings_.end({StateKind::grad, unit, "land gradients"});
  landing.free = parts_.host.record();
}

double GradientLander::finish() {
  const auto device_grains =
      static_cast<size_t>(parts_.state.spec().grad.range(Tier::device).grains());
  parts_.compute.synchronize();
  {
    const WaitScope wait(parts_.traffic, {StateKind::grad, -1, kLandingWaitLabel}, "driver");
    parts_.comm_queue.synchronize();
    if (device_grains > 0) {
      parts_.copy_out.copy(host_sums_.data(), device_sums_.data(), device_grains * sizeof(double),
                           CopyDirection::device_to_host, {StateKind::other, -1, "gradient norms"});
    }
    parts_.copy_out.synchronize();
    parts_.host.synchronize();
  }
  const double* sums = host_sums_.as<double>();
  double total = 0;
  for (int64_t grain = 0; grain < plan_.layout.trainable_grains(); ++grain) total += sums[grain];
  return total;
}

}  // namespace strata::engine
