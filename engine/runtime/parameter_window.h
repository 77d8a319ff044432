// Parameters where layers compute on them: device buffers that units pass through, whole units, and
// the views of both.
//
// A unit that lies on the device and is no other rank's either is used where it lies. A whole unit
// lies on every rank, but after an update each has its own shard of it alone: the ranks complete it
// once. Of the others each rank copies its shard into its place in the slot that the program names,
// and the ranks gather the rest there. A buffer is overwritten only after the compute that used it.
// Driver thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/comm/communicator.h"
#include "engine/plan/planner.h"
#include "kernels/device/device.h"
#include "offload/file_queue.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/tensor.h"

namespace strata::engine {

class ParameterWindow {
 public:
  // Label of the time that compute stood still for parameters (Activity::wait).
  static constexpr const char* kWaitLabel = "compute waits for parameters";

  // Where shards come from and what they travel on: a queue of the device for copies, and the
  // communicator with its queue.
  struct Parts {
    const offload::TrainingState& state;
    Queue& copy_in;
    Communicator& comm;
    Queue& comm_queue;
    offload::FileQueue* reads = nullptr;  // from nvme, where parameters are there
  };
  // All must outlive the window.
  ParameterWindow(const Plan& plan, const Parts& parts, offload::TierManager& tiers);

  // Starts bringing a unit into a slot.
  void gather(int unit, int slot);

  // An update is to change every parameter: of whole units each rank has its own shard alone.
  void outdate();
  // A step is skipped, and may put back what it wrote early of this rank's shards.
  void restore();
  // Starts bringing the other ranks' shards of a whole unit that is outdated, and makes later users
  // wait for this rank's, which is in place where the communicator's queue is now.
  void complete(int unit);
  // Bytes that completing after every outdate() so far sends, done or not; the transfers carry
  // Account::update.
  uint64_t promised_bytes() const { return promised_bytes_; }

  // Makes later work on `compute` wait for everything that `unit` needs, and returns views of its
  // parameters; they hold until the next use() of the same unit.
  std::span<const TensorView> use(int unit, Queue& compute);
  // The work enqueued since use() is the last to touch what `unit` needs.
  void release(int unit, const Event& done);

 private:
  struct Buffer {
    std::byte* data = nullptr;
    Event ready;
    Event last_use;
  };
  // What of a whole unit changed since it was completed.
  enum class Change : uint8_t { none, own_shard, all_shards };
  struct Place {
    std::byte* trainable = nullptr;
    std::byte* frozen = nullptr;
    Buffer* buffer = nullptr;  // null: it needs no bringing
    Change change = Change::none;
  };

  Place whole_place(int unit);
  // This rank's shard of a flat buffer, to its place in the whole of it.
  void copy_shard(StateKind kind, int unit, std::byte* whole);
  // The part of it on nvme.
  void read_shard(StateKind kind, int unit, GrainRange part, std::byte* out);
  size_t shard_bytes(const FlatBuffer& flat) const {
    return static_cast<size_t>(flat.shard_numel) * element_bytes_;
  }

  const Plan& plan_;
  const Parts parts_;
  const size_t element_bytes_;
  offload::Arena memory_;
  std::vector<Buffer> slots_;
  std::vector<Buffer> whole_;                   // by unit
  std::vector<Place> places_;                   // by unit
  std::vector<std::vector<TensorView>> views_;  // by unit
  uint64_t promised_bytes_ = 0;
};

}  // namespace strata::engine
