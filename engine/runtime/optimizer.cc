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
      if (from < to) own.push_back({from - begin, to - begin, segment.weight_decay});
    }
  }
}

void Optimizer::begin_step(int64_t step, double lr, double grad_scale) {
  scalars_.lr = lr;
  scalars_.beta1 = config_.beta1;
  scalars_.beta2 = config_.beta2;
  scalars_.eps = config_.eps;
  scalars_.grad_scale = grad_scale;
  scalars_.bias_correction1 = 1.0 - std::pow(config_.beta1, static_cast<double>(step));
  scalars_.bias_correction2 = 1.0 - std::pow(config_.beta2, static_cast<double>(step));
}

void Optimizer::update(const offload::UpdateSpans& spans, Queue& queue) const {
  ops::StateOps& ops = spans.tier == Tier::device ? device_ops_ : host_ops_;
  const auto param_bytes = static_cast<int64_t>(size_bytes(plan_.state.param_dtype));
  const auto grad_bytes = static_cast<int64_t>(size_bytes(plan_.state.grad_dtype));
  for (const Segment& segment : segments_[static_cast<size_t>(spans.sub_group)]) {
    ops::OptimizerScalars scalars = scalars_;
    scalars.weight_decay = segment.weight_decay ? config_.weight_decay : 0.0;
    ops::OptimizerSpans part;
    part.master = reinterpret_cast<float*>(spans.state[0]) + segment.begin;
    part.exp_avg = reinterpret_cast<float*>(spans.state[1]) + segment.begin;
    part.exp_avg_sq = reinterpret_cast<float*>(spans.state[2]) + segment.begin;
    part.grad = spans.grad + segment.begin * grad_bytes;
    part.param = spans.param + segment.begin * param_bytes;
    part.numel = segment.end - segment.begin;
    part.grad_dtype = plan_.state.grad_dtype;
    part.param_dtype = plan_.state.param_dtype;
    ops.optimizer_update(queue, scalars, part);
  }
}

}  // namespace strata::engine
