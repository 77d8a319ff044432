// Takes units' local gradients from the device to where their grains are updated.
//
// Layers write a unit's gradients into a device slot in the model's dtype. Once complete they are
// summed over the ranks, each rank keeping its shard in fp32 (a single rank keeps them as they
// are), and land: grains updated on the device are added into the device's accumulator, the others
// are copied to a pinned landing buffer and added into the host's, in fp32, in micro-batch order.
// With the last micro-batch each grain's sum of squares is counted as it lands.
//
// Where the plan has gradients added up on the device (GradientSums), a unit's land once a step:
// its shard is added up over micro-batches behind each reduction, with the bits of adding at the
// landing; or the local gradients are, before the one reduction. With stage 0 the ranks gather the
// shards of the sum before all of it lands everywhere. Driver thread.
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
#include "offload/file_queue.h"
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
    Queue& compute;                       // of the device
    Queue& comm_queue;                    // the communicator's
    Queue& copy_out;                      // of the device: to the host
    Queue& host;                          // of host threads
    offload::FileQueue* files = nullptr;  // of gradients that wait for their update on nvme
    TrafficSink& traffic;
  };
  // All must outlive the lander.
  GradientLander(const Plan& plan, const Parts& parts, offload::TierManager& tiers);

  // Before a unit's backward: waits, on the compute queue, for the slots it writes to be free, and
  // returns where its gradients go, as its parameters are declared; they hold until the next call
  // for the same unit.
  std::span<const ParameterGrad> prepare(int unit, int micro_batch);

  // Whether prepare() was called for the unit itself, and land() not since.
  bool is_prepared(int unit, int micro_batch) const {
    const int slot = plan_.step.grad_slot_of(unit, micro_batch);
    return slot >= 0 && slots_[static_cast<size_t>(slot)].prepared_for == unit;
  }

  // All of a unit's gradients of this micro-batch are enqueued on the compute queue: add them up or
  // land them.
  void land(int unit, int micro_batch);

  // Where everything handed to land() so far has landed on the host.
  Event landed() const { return parts_.host.record(); }

  // Waits for everything landed and returns the sum of squares over this rank's 1/world of the
  // grains, in grain order, of the accumulated gradients before scaling. Not finite exactly when
  // one of them is not.
  double finish();

 private:
  static constexpr int kNobody = -1;
  struct Slot {
    std::byte* data = nullptr;
    Event free;                  // everything that read it has
    int prepared_for = kNobody;  // whose gradients are to land from it next
  };
  struct Buffer {
    std::byte* data = nullptr;
    Event free;
  };
  // Two buffers taken in turn.
  struct Buffers {
    std::array<Buffer, 2> two;
    size_t turn = 0;
    Buffer& next() { return two[turn ^= 1]; }
  };
  // A unit's shard of this micro-batch's gradients on the device, on their way to land.
  struct Arriving {
    int unit = 0;
    const std::byte* shard = nullptr;  // plan.landed_dtype()
    bool add = false;                  // to earlier micro-batches
    bool count = false;                // the sum of squares
  };

  // Gradients of a unit, and who is to know when they have been read.
  struct Source {
    int unit = 0;
    std::byte* data = nullptr;
    Event* free = nullptr;
  };

  Slot& slot_of(int unit, int micro_batch) {
    return slots_[static_cast<size_t>(plan_.step.grad_slot_of(unit, micro_batch))];
  }
  const FlatBuffer& trainable(int unit) const {
    return plan_.layout.units()[static_cast<size_t>(unit)].trainable;
  }
  void zero_padding(const Unit& unit, std::byte* slot);
  // Enqueues the sum over ranks of a unit's gradients; returns where this rank's part of it lies.
  Source reduce(const Source& local);
  // Adds gradients to those of the micro-batches before, on `queue`; returns the sum so far.
  struct Addend {
    const Source& source;
    Queue& queue;
    DType dtype;
    int64_t numel;
  };
  Source add_up(const Addend& addend, int micro_batch);
  void sum_into(std::byte* sum, const Addend& addend, bool add);
  // The whole sum, of which each rank has its part.
  Source gather_sum(const Source& part);
  void land_on_device(const Arriving& arriving);
  // On host and nvme.
  void land_on_host(const Arriving& arriving);
  void land_in_memory(GrainRange part, const std::byte* source, const Arriving& arriving);
  void land_on_nvme(GrainRange part, const std::byte* source, const Arriving& arriving);
  // Of grains whose accumulator is at `to`.
  struct Landing {
    GrainRange grains;
    void* to = nullptr;
    const void* from = nullptr;
    double* sums = nullptr;
  };
  void land_by_host(const Landing& landing, const Arriving& arriving);
  ops::LandGradientSpans spans(const Landing& landing, const Arriving& arriving) const;
  GrainRange part_of(int unit, Tier tier) const;
  size_t bytes_before(int unit, GrainRange part) const;
  bool single() const { return plan_.layout.world_size() == 1; }
  // Whether this rank lands every rank's part of a sum.
  bool lands_all() const { return !single() && plan_.layout.state_shards() == 1; }
  // The queue on which gradients become this rank's shard, and land on the device.
  Queue& shard_queue() const { return single() ? parts_.compute : parts_.comm_queue; }

  const Plan& plan_;
  const Parts parts_;
  ComputeSpans host_landings_;
  const size_t element_bytes_;  // of local gradients
  const size_t landed_bytes_;   // an element of plan.landed_dtype()
  offload::Arena slot_memory_;
  offload::Arena sum_memory_;
  offload::Arena reduced_memory_;
  offload::Arena reduce_scratch_;
  offload::Arena landing_memory_;
  offload::Arena host_sums_;    // by grain
  offload::Arena device_sums_;  // by grain of the device's part
  std::vector<Slot> slots_;
  std::vector<Buffer> sums_;
  Buffers reduced_;
  Buffers landings_;
  std::vector<std::vector<ParameterGrad>> grads_;  // by unit
};

}  // namespace strata::engine
