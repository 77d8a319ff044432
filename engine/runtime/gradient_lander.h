// Takes units' local gradients from the device to where their grains are updated.
//
// Layers write a unit's gradients into a device slot in the model's dtype. Once complete they are
// summed over the ranks, each rank keeping its shard in fp32 (a single rank keeps them as they
// are), and land: grains updated on the device are added into the device's accumulator, the others
// are copied to a pinned landing buffer and added into the host's, in fp32, in micro-batch order.
// With the last micro-batch each grain's sum of squares is counted as it lands. Driver thread.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "engine/comm/communicator.h"
#include "engine/plan/planner.h"
#include "kernels/device/compute_spans.h"
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

  struct Parts {
    const offload::TrainingState& state;
    Communicator& comm;
    ops::StateOps& device_ops;
    ops::StateOps& host_ops;
    Queue& compute;     // of the device
    Queue& comm_queue;  // the communicator's
    Queue& copy_out;    // of the device: to the host
    Queue& host;        // of host threads
    TrafficSink& traffic;
  };
  // All must outlive the lander.
  GradientLander(const Plan& plan, const Parts& parts, offload::TierManager& tiers);

  // Before a unit's backward: waits, on the compute queue, for the slots it writes to be free, and
  // returns where its gradients go, as its parameters are declared.
  std::span<const ParameterGrad> prepare(int unit);

  // All of a unit's gradients of this micro-batch are enqueued on the compute queue: land them.
  void land(int unit, bool first_micro_batch, bool last_micro_batch);

  // Where everything handed to land() so far has landed on the host.
  Event landed() const { return parts_.host.record(); }

  // Waits for everything landed and returns the sum of squares over this rank's grains, in grain
  // order, of the accumulated gradients before scaling. Not finite exactly when one of them is not.
  double finish();

 private:
  struct Slot {
    std::byte* data = nullptr;
    Event free;             // everything that read it has
    bool prepared = false;  // since it was last landed
  };
  // One of two buffers taken in turn.
  struct Buffer {
    std::byte* data = nullptr;
    Event free;
  };
  using Buffers = std::array<Buffer, 2>;
  // A unit's shard of this micro-batch's gradients on the device, on their way to land.
  struct Arriving {
    int unit = 0;
    const std::byte* shard = nullptr;  // plan.landed_dtype()
    bool add = false;                  // to earlier micro-batches
    bool count = false;                // the sum of squares
  };

  void zero_padding(const Unit& unit, std::byte* slot);
  // Enqueues the sum over ranks of a slot's gradients; returns where this rank's shard will lie.
  const std::byte* reduce(int unit, Slot& slot);
  void land_on_device(const Arriving& arriving);
  void land_on_host(const Arriving& arriving);
  ops::LandGradientSpans spans(GrainRange grains, const void* source, const Arriving& arriving,
                               double* sums) const;
  GrainRange part_of(int unit, Tier tier) const;
  size_t bytes_before(int unit, GrainRange part) const;
  bool single() const { return plan_.layout.world_size() == 1; }
  // The queue on which gradients become this rank's shard, and land on the device.
  Queue& shard_queue() const { return single() ? parts_.compute : parts_.comm_queue; }

  const Plan& plan_;
  const Parts parts_;
  ComputeSpans host_landings_;
  const size_t element_bytes_;  // of local gradients
  const size_t landed_bytes_;   // an element of plan.landed_dtype()
  offload::Arena slot_memory_;
  offload::Arena reduced_memory_;
  offload::Arena reduce_scratch_;
  offload::Arena landing_memory_;
  offload::Arena host_sums_;    // by grain
  offload::Arena device_sums_;  // by grain of the device's part
  std::vector<Slot> slots_;
  Buffers reduced_;
  Buffers landings_;
  size_t turn_ = 0;
  std::vector<std::vector<ParameterGrad>> grads_;  // by unit
};

}  // namespace strata::engine
