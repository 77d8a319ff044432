#include "engine/runtime/gradient_lander.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/device/poison.h"
#include "strata/error.h"
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
      sum_memory_(tiers.claim(reserved::kGradSums)),
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
  next = sum_memory_.data();
  for (const int64_t numel : plan.step.sum_slot_numel) {
    sums_.push_back({next, {}});
    next += static_cast<size_t>(numel) * sizeof(float);
  }
  for (size_t i = 0; i < 2; ++i) {
    reduced_.two[i].data = reduced_memory_.data() + i * plan.reduced_bytes;
    landings_.two[i].data = landing_memory_.data() + i * plan.landing_bytes;
  }
  const auto& units = plan.layout.units();
  for (size_t u = 0; u < units.size(); ++u) {
    auto& grads = grads_.emplace_back();
    for (const ParameterRef& ref : units[u].parameters) {
      ParameterGrad grad;
      if (ref.trainable) {
        grad.view = {nullptr, plan.state.param_dtype, plan.layout.parameter(ref).spec.shape};
        grad.accumulate = adds_to_later_units(units, u, ref);
      }
      grads.push_back(grad);
    }
  }
}

std::span<const ParameterGrad> GradientLander::prepare(int unit_index, int micro_batch) {
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(unit_index)];
  auto& grads = grads_[static_cast<size_t>(unit_index)];
  for (size_t i = 0; i < grads.size(); ++i) {
    const ParameterRef& ref = unit.parameters[i];
    if (!ref.trainable) continue;
    Slot& slot = slot_of(ref.unit, micro_batch);
    grads[i].view.data =
        slot.data + static_cast<size_t>(plan_.layout.parameter(ref).offset) * element_bytes_;
    if (slot.prepared_for == ref.unit) continue;
    if (slot.prepared_for != kNobody) {
      throw ConfigError(
          fmt::format("gradients of unit {} have the memory of unit {}'s, which wait to be "
                      "reduced: reduce unit "
                      "{} first",
                      ref.unit, slot.prepared_for, slot.prepared_for));
    }
    slot.prepared_for = ref.unit;
    parts_.compute.wait(slot.free, {StateKind::grad, ref.unit, kSlotWaitLabel});
    poison(parts_.compute, slot.data,
           static_cast<size_t>(trainable(ref.unit).numel) * element_bytes_);
    zero_padding(plan_.layout.units()[static_cast<size_t>(ref.unit)], slot.data);
  }
  return grads;
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

void GradientLander::land(int unit, int micro_batch) {
  Slot& slot = slot_of(unit, micro_batch);
  slot.prepared_for = kNobody;
  Source source{unit, slot.data, &slot.free};
  const bool sums_shards = plan_.sums == GradientSums::shards;
  if (plan_.sums == GradientSums::whole || (sums_shards && single())) {
    source = add_up({source, parts_.compute, plan_.state.param_dtype, trainable(unit).numel},
                    micro_batch);
  }
  if (!plan_.reduces(micro_batch)) return;
  if (!single()) source = reduce(source);
  if (sums_shards && !single()) {
    source = add_up({source, parts_.comm_queue, DType::fp32, trainable(unit).counted.numel()},
                    micro_batch);
  }
  if (!plan_.lands(micro_batch)) return;
  if (lands_all()) source = gather_sum(source);
  const Arriving arriving{unit, source.data, plan_.adds_at_landing(micro_batch),
                          plan_.is_last(micro_batch)};
  // Landing on the device is on the shard's queue, so that its buffer is free once the copy to the
  // host, which waits for that queue, is through.
  land_on_device(arriving);
  parts_.copy_out.wait(shard_queue().record(),
                       {StateKind::grad, unit, "landing waits for gradients"});
  land_on_host(arriving);
  *source.free = parts_.copy_out.record();
}

GradientLander::Source GradientLander::reduce(const Source& local) {
  const int unit = local.unit;
  Buffer& reduced = reduced_.next();
  parts_.comm_queue.wait(parts_.compute.record(),
                         {StateKind::grad, unit, "reduction waits for compute"});
  parts_.comm_queue.wait(reduced.free, {StateKind::grad, unit, "reduction waits for landing"});
  ReduceScatterSpans spans;
  spans.flat = local.data;
  spans.dtype = plan_.reduced_dtype();
  spans.out = reinterpret_cast<float*>(reduced.data);
  spans.shard_numel = trainable(unit).counted.numel();
  spans.scratch = {reduce_scratch_.data(), reduce_scratch_.bytes()};
  parts_.comm.reduce_scatter(spans, {StateKind::grad, unit, "reduce"});
  *local.free = parts_.comm_queue.record();
  return {unit, reduced.data, &reduced.free};
}

void GradientLander::sum_into(std::byte* sum, const Addend& addend, bool add) {
  ops::LandGradientSpans spans;
  spans.dst = sum;
  spans.src = addend.source.data;
  spans.src_dtype = addend.dtype;
  spans.numel = addend.numel;
  spans.add = add;
  parts_.device_ops.land_gradient(addend.queue, spans);
}

GradientLander::Source GradientLander::add_up(const Addend& addend, int micro_batch) {
  const Source& source = addend.source;
  Queue& queue = addend.queue;
  Buffer& sum = sums_[static_cast<size_t>(plan_.step.sum_slot[static_cast<size_t>(source.unit)])];
  if (micro_batch == 0) {
    queue.wait(sum.free, {StateKind::grad, source.unit, "gradient sum waits for landing"});
  }
  sum_into(sum.data, addend, micro_batch > 0);
  *source.free = queue.record();
  return {source.unit, sum.data, &sum.free};
}

GradientLander::Source GradientLander::gather_sum(const Source& part) {
  const int64_t numel = trainable(part.unit).counted.numel();
  const size_t bytes = static_cast<size_t>(numel) * sizeof(float);
  Buffer& all = reduced_.next();
  parts_.comm_queue.wait(all.free, {StateKind::grad, part.unit, "reduction waits for landing"});
  sum_into(all.data + static_cast<size_t>(plan_.layout.rank()) * bytes,
           {part, parts_.comm_queue, DType::fp32, numel}, /*add=*/false);
  *part.free = parts_.comm_queue.record();
  parts_.comm.all_gather(all.data, bytes, {StateKind::grad, part.unit, "gather sums"});
  return {part.unit, all.data, &all.free};
}

GrainRange GradientLander::part_of(int unit, Tier tier) const {
  return intersect(trainable(unit).shard(), parts_.state.spec().grad.range(tier));
}

// From the start of the unit's shard to a part of it.
size_t GradientLander::bytes_before(int unit, GrainRange part) const {
  return static_cast<size_t>((part.begin - trainable(unit).first_grain) * kGrainNumel) *
         landed_bytes_;
}

ops::LandGradientSpans GradientLander::spans(const Landing& landing,
                                             const Arriving& arriving) const {
  ops::LandGradientSpans spans;
  spans.dst = landing.to;
  spans.dst_dtype = plan_.state.grad_dtype;
  spans.src = landing.from;
  spans.src_dtype = plan_.landed_dtype();
  spans.numel = landing.grains.numel();
  spans.add = arriving.add;
  spans.grain_sum_of_squares = arriving.count ? landing.sums + landing.grains.begin : nullptr;
  return spans;
}

void GradientLander::land_on_device(const Arriving& arriving) {
  const GrainRange part = part_of(arriving.unit, Tier::device);
  if (part.empty()) return;
  const Landing landing = {part, parts_.state.resident(StateKind::grad, part.begin),
                           arriving.shard + bytes_before(arriving.unit, part),
                           device_sums_.as<double>()};
  parts_.device_ops.land_gradient(shard_queue(), spans(landing, arriving));
}

void GradientLander::land_on_host(const Arriving& arriving) {
  const int unit = arriving.unit;
  const GrainRange in_memory = part_of(unit, Tier::host);
  const GrainRange on_nvme = part_of(unit, Tier::nvme);
  if (in_memory.empty() && on_nvme.empty()) return;
  // One copy: nvme's part follows the host's.
  const GrainRange all = {in_memory.empty() ? on_nvme.begin : in_memory.begin,
                          on_nvme.empty() ? in_memory.end : on_nvme.end};
  Buffer& landing = landings_.next();
  parts_.copy_out.wait(landing.free, {StateKind::grad, unit, "landing waits for the host"});
  parts_.copy_out.copy(landing.data, arriving.shard + bytes_before(unit, all),
                       static_cast<size_t>(all.numel()) * landed_bytes_,
                       CopyDirection::device_to_host, {StateKind::grad, unit, "gradients"});
  parts_.host.wait(parts_.copy_out.record(), {StateKind::grad, unit, "host waits for gradients"});
  if (!in_memory.empty()) land_in_memory(in_memory, landing.data, arriving);
  if (!on_nvme.empty()) {
    const auto before = static_cast<size_t>(in_memory.numel()) * landed_bytes_;
    land_on_nvme(on_nvme, landing.data + before, arriving);
  }
  landing.free = parts_.host.record();
}

void GradientLander::land_by_host(const Landing& landing, const Arriving& arriving) {
  host_landings_.begin({StateKind::grad, arriving.unit, "land gradients"});
  parts_.host_ops.land_gradient(parts_.host, spans(landing, arriving));
  host_landings_.end();
}

void GradientLander::land_in_memory(GrainRange part, const std::byte* source,
                                    const Arriving& arriving) {
  const Landing landing = {part, parts_.state.resident(StateKind::grad, part.begin), source,
                           host_sums_.as<double>()};
  land_by_host(landing, arriving);
}

// Through the ring: what is there already is read, added to and written back.
void GradientLander::land_on_nvme(GrainRange part, const std::byte* source,
                                  const Arriving& arriving) {
  const TrafficTag tag = {StateKind::grad, arriving.unit, "landing on nvme"};
  const auto bytes =
      static_cast<uint64_t>(part.grains() * plan_.state.grain_bytes(StateKind::grad));
  offload::FileQueue& files = *parts_.files;
  std::byte* const staged = files.claim(bytes, arriving.add ? files.queue() : parts_.host);
  offload::IoCommand command = parts_.state.shard_command(StateKind::grad, part, staged);
  command.tag = tag;
  if (arriving.add) {
    command.op = io::Op::read;
    files.transfer(command);
    parts_.host.wait(files.queue().record(), tag);
  }
  const Landing landing = {part, staged, source, host_sums_.as<double>()};
  land_by_host(landing, arriving);
  files.queue().wait(parts_.host.record(), tag);
  command.op = io::Op::write;
  files.transfer(command);
  files.release(files.queue().record());
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
    if (parts_.files != nullptr) parts_.files->queue().synchronize();
  }
  const double* sums = host_sums_.as<double>();
  double total = 0;
  for (const Unit& unit : plan_.layout.units()) {
    const GrainRange counted = unit.trainable.counted;
    for (int64_t grain = counted.begin; grain < counted.end; ++grain) total += sums[grain];
  }
  return total;
}

}  // namespace strata::engine
