// The end of a step, and what is left of it under the next one: which sub-group is updated when,
// and who waits for the parameters that come of it.
//
// A step is over for its caller when its updates are on their way. The next forward pass gathers a
// unit only when the unit's own sub-groups have their new parameters.
//
// With two slots, sub-groups on nvme may be updated inside backward, each when its last gradient
// has landed, as if the norm will not ask for clipping. What has begun by then and was wrong is
// done again from the slot that still counts, or, where the step is skipped, its parameters are
// restored. Driver thread.
#pragma once

#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include "engine/plan/planner.h"
#include "engine/plan/sub_group_order.h"
#include "engine/runtime/optimizer.h"
#include "engine/runtime/speculation_policy.h"
#include "kernels/device/device.h"
#include "kernels/ops/state_ops.h"
#include "offload/optimizer_pipeline.h"
#include "offload/tier_manager.h"
#include "strata/engine.h"

namespace strata::engine {

class Updater {
 public:
  struct Parts {
    offload::OptimizerPipeline::Parts pipeline;
    ops::StateOps& device_ops;
    ops::StateOps& host_ops;
  };
  // All must outlive the updater.
  Updater(const Plan& plan, const Config& config, const Parts& parts, offload::TierManager& tiers);

  // What a step's update is, apart from clipping. Steps count from 1; `grad_scale` unscales and
  // averages.
  struct Step {
    int64_t number = 1;
    StepRates rates;
    double grad_scale = 1;
  };
  // Starts reading what the step's updates will need.
  void begin(const Step& step);

  // Whether await_parameters() would return at once.
  bool has_parameters(int unit) const;
  // Blocks until the last update of the unit's parameters is through, or on its way to the device:
  // later work on `queue`, always the same one for a unit, finds them in place. Returns whether it
  // had to wait. Throws what failed in the update.
  bool await_parameters(int unit, Queue& queue);

  // The last of a unit's gradients lands at `event`: its sub-groups may be updated. Where the step
  // speculates, nothing of the step before is under way by then.
  void landed(int unit, const Event& event);

  // Updates everything; all gradients have landed. Returns when that is on its way, or without
  // strata.overlap_update when the parameters are in place.
  void update(double clip_factor);
  // Updates nothing: a gradient was not finite.
  void skip();
  // What the step begun last updated early, and what of that was in vain.
  const StepResult::Speculation& speculation() const { return speculation_; }

  // Waits for everything under way, writes to nvme too. Throws what failed.
  void settle() { pipeline_.settle(); }
  // Whether sub-groups of the step begun last are updated inside backward. The same on all ranks.
  bool speculates() const { return speculates_; }
  // As OptimizerPipeline's.
  void await_writes() { pipeline_.await_writes(); }
  void finish() noexcept { pipeline_.finish(); }
  void abandon(std::exception_ptr failure) { pipeline_.abandon(std::move(failure)); }
  // Bytes that all updates so far move, done or not.
  LinkBytes promised() const { return pipeline_.promised(); }

 private:
  bool may_speculate(int32_t sub_group) const;

  const Plan& plan_;
  const SpeculateChoice choice_;
  const bool runs_on_;  // under the next forward pass
  Optimizer optimizer_;
  offload::OptimizerPipeline pipeline_;
  std::vector<SubGroupRange> sub_groups_;   // by unit
  std::vector<int> units_;                  // by sub-group: how many it has parts of
  std::vector<int32_t> speculative_order_;  // sub-groups, as backward completes them

  Step step_;
  std::vector<bool> awaited_;  // by unit: since the last update
  SpeculationPolicy policy_;
  bool speculates_ = false;       // in this step
  bool prepared_ = false;         // for that
  std::vector<int> to_land_;      // by sub-group: units whose gradients have not landed
  std::vector<bool> speculated_;  // by sub-group: in this step
  std::vector<int32_t> begun_;    // skip()'s own
  StepResult::Speculation speculation_;
  LinkBytes promised_before_ = {};  // this step
};

}  // namespace strata::engine
