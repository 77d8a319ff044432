// Outputs of units that wait for backward in host memory or on nvme, and the events that keep their
// places on the device in order.
//
// An output leaves its place when the forward that wrote it is done, and comes back under the
// compute before the one that reads it. A place is written again only after what read it. On nvme
// an output has room of its own in one file, and passes through pinned memory. Driver thread.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/plan/planner.h"
#include "kernels/device/device.h"
#include "offload/file_queue.h"
#include "offload/tier_manager.h"

namespace strata::engine {

class ActivationStore {
 public:
  // Label of the time that compute stood still for an output to come back (Activity::wait).
  static constexpr const char* kWaitLabel = "compute waits for activations";

  struct Parts {
    Queue& compute;
    Queue& out;                           // of the device: to the host
    Queue& in;                            // of the device: from the host
    offload::FileQueue* files = nullptr;  // where outputs wait on nvme,
    const io::FileSpace* file = nullptr;  // in this
  };
  // All must outlive the store.
  ActivationStore(const Plan& plan, const Parts& parts, offload::TierManager& tiers);

  // A place on the device.
  std::byte* place(int index) const {
    return memory_.data() + plan_.activations.place_offset[static_cast<size_t>(index)];
  }

  // Before compute is enqueued: makes it wait until its input is there and its output's place free.
  void enter(const Action& compute);
  // Compute was enqueued, and is done at the event.
  void leave(const Action& compute, const Event& done);
  // Action::Op::save and restore.
  void save(const Action& action);
  void restore(const Action& action);

 private:
  struct Place {
    Event ready;  // restored
    Event read;   // by compute, and by what took it away
    Event saved;
  };
  // Where an output waits.
  struct Stored {
    Event written;
    Event read;
  };
  Stored& stored(const Action& action);
  uint64_t stored_at(const Action& action) const;
  const ActivationLayout::PerUnit& unit(const Action& action) const {
    return plan_.activations.units[static_cast<size_t>(action.unit)];
  }
  offload::IoCommand command(const Action& action, io::Op op, std::byte* data) const;

  const Plan& plan_;
  const Parts parts_;
  const offload::Arena memory_;
  const offload::Arena host_;
  std::vector<Place> places_;
  std::vector<Stored> stored_;  // by micro-batch, then unit
};

}  // namespace strata::engine
