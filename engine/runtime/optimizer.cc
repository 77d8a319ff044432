#include "engine/runtime/optimizer.h"

#include <algorithm>
#include <cmath>

namespace strata::engine {

Optimizer::Optimizer(const Plan& plan, const Config& config, ops::StateOps& device_ops,
                     ops::StateOps& host_ops)
    : plan_(plan), config_(config.optimizer), device_ops_(device_ops), host_ops_(host_ops) {
  for (const offload::SubGroup& group : plan.state.sub_groups) {
    const int64_t begin = group.grains.begin * kGrainNumel;
    const int64_t end = group.grains.end * kGrainNumel;
    auto& own = segments_.emplace_back();
    for (const Segment& segment : plan.segments) {
      const int64_t from = std::max(begin, segment.begin);
      const int64_t to = std::min(end, segment.end);
      if (from >= to) continue;
      own.push_back({from - begin, to - begin, segment.setting,
                     segment.first_index + static_cast<uint64_t>(from - segment.begin)});
    }
  }
}

void Optimizer::prepare(offload::Purpose purpose, int64_t step, const StepRates& rates,
                        double grad_scale) {
  const auto steps = static_cast<double>(step);
  scalars_[static_cast<size_t>(purpose)] = {.kind = config_.kind,
                                            .lr = rates.lr,
                                            .beta1 = rates.beta1,
                                            .beta2 = rates.beta2,
                                            .momentum = config_.momentum,
                                            .eps = config_.eps,
                                            .weight_decay = 0,
                                            .grad_scale = grad_scale,
                                            .bias_correction1 = 1.0 - std::pow(rates.beta1, steps),
                                            .bias_correction2 = 1.0 - std::pow(rates.beta2, steps),
                                            .step = static_cast<uint64_t>(step)};
}

void Optimizer::update(const offload::UpdateSpans& spans, Queue& queue) const {
  if (spans.purpose == offload::Purpose::restoration) {
    restore(spans, queue);
    return;
  }
  ops::StateOps& ops = spans.tier == Tier::device ? device_ops_ : host_ops_;
  const auto& codecs = plan_.state.codecs;
  ops::EncodedSpans encoded{.master = {spans.state[0], codecs[0]},
                            .exp_avg = {spans.state[1], codecs[1]},
                            .exp_avg_sq = {spans.state[2], codecs[2]},
                            .grad = spans.grad,
                            .param = spans.param,
                            .grad_dtype = plan_.state.grad_dtype,
                            .param_dtype = plan_.state.param_dtype};
  for (const Segment& segment : segments_[static_cast<size_t>(spans.sub_group)]) {
    ops::OptimizerScalars scalars = scalars_[static_cast<size_t>(spans.purpose)];
    scalars.lr *= segment.setting.lr_scale;
    scalars.weight_decay = segment.setting.weight_decay;
    encoded.begin = segment.begin;
    encoded.end = segment.end;
    encoded.first_index = segment.first_index;
    ops.optimizer_update(queue, scalars, encoded);
  }
}

// On a host queue: only state on nvme is restored from.
void Optimizer::restore(const offload::UpdateSpans& spans, Queue& queue) const {
  queue.run(
      [param = spans.param, master = spans.state[0], numel = spans.grains.numel(),
       dtype = plan_.state.param_dtype] { ops::cast(param, dtype, master, DType::fp32, numel); });
}

}  // namespace strata::engine
