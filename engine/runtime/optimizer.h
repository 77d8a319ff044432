// What an update means: the arithmetic that engine gives to offload's pipeline.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/plan/planner.h"
#include "engine/runtime/lr_schedule.h"
#include "kernels/ops/state_ops.h"
#include "offload/optimizer_pipeline.h"

namespace strata::engine {

// The configured optimizer over the segments of each sub-group, with one set of scalars a step.
class Optimizer {
 public:
  // All must outlive the optimizer.
  Optimizer(const Plan& plan, const Config& config, ops::StateOps& device_ops,
            ops::StateOps& host_ops);

  // Scalars of the updates to come (of a step counted from 1) that have this purpose; none of them
  // is under way. `grad_scale` unscales, averages and clips. Moments' bias is corrected as if the
  // step's betas had been those of all steps, as in PyTorch and DeepSpeed.
  void prepare(offload::Purpose purpose, int64_t step, const StepRates& rates, double grad_scale);

  // offload's UpdateFn: enqueues the update of one sub-group, or the restoration of its parameters.
  void update(const offload::UpdateSpans& spans, Queue& queue) const;

 private:
  void restore(const offload::UpdateSpans& spans, Queue& queue) const;

  const Plan& plan_;
  const OptimizerConfig config_;
  ops::StateOps& device_ops_;
  ops::StateOps& host_ops_;
  // A segment's part in a sub-group, from its start.
  std::vector<std::vector<Segment>> segments_;    // by sub-group
  std::array<ops::OptimizerScalars, 2> scalars_;  // by purpose: update, speculation
};

}  // namespace strata::engine
