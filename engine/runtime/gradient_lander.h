// Takes units' local gradients from the device to where their grains are updated.
//
// Layers write a unit's gradients into a device slot in the model's dtype. Once complete they land:
// grains updated on the device are added into the device's accumulator, the others are copied to a
// pinned landing buffer and added into the host's, in fp32, in micro-batch order. With the last
// micro-batch each grain's sum of squares is counted as it lands. Driver thread.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "engine/plan/planner.h"
#include "kernels/device/device.h"
#include "kernels/ops/state_ops.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/layer.h"

namespace strata::engine {

class GradientLander {
 public:
  // Labels of waits (Activity::wait): compute for a free slot; the step for the last landings.
  static constexpr const char* kSlotWaitLabel = "compute waits for a gradient slot";
  static constexpr const char* kLandingWaitLabel = "step waits for landing gradients";

  struct Queues {
    Queue& compute;   // of the device
    Queue& copy_out;  // of the device: to the host
    Queue& host;      // of host threads
  };
  // All must outlive the lander.
  GradientLander(const Plan& plan, const offload::TrainingState& state, offload::TierManager& tiers,
                 const Queues& queues, ops::StateOps& device_ops, ops::StateOps& host_ops);

  // Before a unit's backward: waits, on the compute queue, for the slots it writes to be free, and
  // returns where its gradients go, as its parameters are declared.
  std::span<const ParameterGrad> prepare(int unit);

  // All of a unit's gradients of this micro-batch are enqueued on the compute queue: land them.
  void land(int unit, bool first_micro_batch, bool last_micro_batch);

  // Waits for everything landed and returns the sum of squares over all grains, in grain order, of
  // the accumulated gradients before scaling. Not finite exactly when a gradient is not.
  double finish(TrafficSink& traffic);

 private:
  struct Slot {
    std::byte* data = nullptr;
    Event free;             // everything that read it has
    bool prepared = false;  // since it was last landed
  };
  struct Landing {
    std::byte* data = nullptr;
    Event free;
  };

  void zero_padding(const Unit& unit, std::byte* slot);
  void land_on_device(const Unit& unit, const std::byte* slot, bool add, bool count);
  void land_on_host(int unit, const std::byte* slot, bool add, bool count);
  ops::LandGradientSpans spans(GrainRange grains, const void* source, bool add, double* sums) const;
  GrainRange part_of(const Unit& unit, Tier tier) const;

  const Plan& plan_;
  const offload::TrainingState& state_;
  const Queues queues_;
  ops::StateOps& device_ops_;
  ops::StateOps& host_ops_;
  const size_t element_bytes_;
  offload::Arena slot_memory_;
  offload::Arena landing_memory_;
  offload::Arena host_sums_;    // by grain
  offload::Arena device_sums_;  // by grain of the device's part
  std::vector<Slot> slots_;
  std::array<Landing, 2> landings_;
  size_t next_landing_ = 0;
  std::vector<std::vector<ParameterGrad>> grads_;  // by unit
};

}  // namespace strata::engine
