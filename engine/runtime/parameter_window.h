// Gathered parameters: device buffers that units' flat buffers pass through, and the views that
// layers compute on.
//
// A unit that lies wholly on the device is used where it lies; of the others each rank copies its
// shard into its place in the slot that the program names, and the ranks gather the rest there. A
// slot is overwritten only after the compute that used it. Driver thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/comm/communicator.h"
#include "engine/plan/planner.h"
#include "kernels/device/device.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/tensor.h"

namespace strata::engine {

class ParameterWindow {
 public:
  // Label of the time that compute stood still for parameters (Activity::wait).
  static constexpr const char* kWaitLabel = "compute waits for parameters";

  // Where shards come from and what they travel on: a queue of the device for copies, and the
  // communicator with its queue. `frozen` holds the shards of the frozen flat buffers in
  // plan.frozen_tier.
  struct Parts {
    const offload::TrainingState& state;
    const offload::Arena& frozen;
    Queue& copy_in;
    Communicator& comm;
    Queue& comm_queue;
  };
  // All must outlive the window.
  ParameterWindow(const Plan& plan, const Parts& parts, offload::TierManager& tiers);

  // Starts bringing a unit into a slot.
  void gather(int unit, int slot);
  // Makes later work on `compute` wait for everything that `unit` needs, and returns views of its
  // parameters; they hold until the next use() of the same unit.
  std::span<const TensorView> use(int unit, Queue& compute);
  // The work enqueued since use() is the last to touch what `unit` needs.
  void release(int unit, const Event& done);

 private:
  struct Slot {
    std::byte* data = nullptr;
    Event ready;
    Event last_use;
  };
  struct Place {
    std::byte* trainable = nullptr;
    std::byte* frozen = nullptr;
    int slot = -1;  // -1: where it lives on the device
  };

  // This rank's shard of a flat buffer, to `out`.
  void copy_trainable(const FlatBuffer& flat, int unit, std::byte* out);
  void copy_frozen(const FlatBuffer& flat, int unit, std::byte* out);
  std::byte* frozen_shard(const FlatBuffer& flat) const;
  size_t shard_bytes(const FlatBuffer& flat) const {
    return static_cast<size_t>(flat.shard_numel) * element_bytes_;
  }

  const Plan& plan_;
  const Parts parts_;
  const size_t element_bytes_;
  offload::Arena memory_;
  std::vector<Slot> slots_;
  std::vector<Place> places_;                   // by unit
  std::vector<std::vector<TensorView>> views_;  // by unit
};

}  // namespace strata::engine
