// The end of a step, and what is left of it under the next one: which sub-group is updated when,
// and who waits for the parameters that come of it.
//
// A step is over for its caller when its updates are on their way. The next forward pass gathers a
// unit only when the unit's own sub-groups have their new parameters. Driver thread.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/plan/planner.h"
#include "engine/plan/sub_group_order.h"
#include "engine/runtime/optimizer.h"
#include "kernels/device/device.h"
#include "kernels/ops/state_ops.h"
#include "offload/optimizer_pipeline.h"
#include "offload/tier_manager.h"

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

  // Starts reading what the step's updates will need.
  void begin_step();

  // Whether await_parameters() would return at once.
  bool has_parameters(int unit) const;
  // Blocks until the last update of the unit's parameters is through, or on its way to the device:
  // later work on `queue`, always the same one for a unit, finds them in place. Returns whether it
  // had to wait. Throws what failed in the update.
  bool await_parameters(int unit, Queue& queue);

  // Updates everything; all gradients have landed. Returns when that is on its way, or without
  // strata.overlap_update when the parameters are in place. `lr` and `grad_scale` are the step's
  // (counted from 1).
  void update(int64_t step, double lr, double grad_scale);

  // Waits for everything under way, writes to nvme too. Throws what failed.
  void settle() { pipeline_.settle(); }
  // Bytes that all updates so far move, done or not.
  LinkBytes promised() const { return pipeline_.promised(); }

 private:
  const Plan& plan_;
  const bool runs_on_;  // under the next forward pass
  Optimizer optimizer_;
  offload::OptimizerPipeline pipeline_;
  std::vector<SubGroupRange> sub_groups_;  // by unit
  std::vector<bool> awaited_;              // by unit: since the last update
};

}  // namespace strata::engine
