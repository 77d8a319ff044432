// Brings each sub-group's state to where the update runs, lets engine update it, and takes it back:
//
//     read(s+1)  ||  update(s)  ||  write(s-1)
//
// A sub-group that has state on nvme, or parameters on another tier than its update, passes through
// one of a fixed number of staging buffers; the others are updated in place. The stages are a
// oneTBB flow graph whose nodes only start work and are told when it is done: the pump moves bytes,
// queues compute. A node waits for no work, only for room in the pump's pool or in a queue.
//
// The order in which sub-groups are updated follows arrival and does not matter for their bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/device/device.h"
#include "offload/training_state.h"

namespace strata::offload {

// One sub-group, ready to be updated, all of it in memory of `tier`.
struct UpdateSpans {
  int32_t sub_group = 0;
  GrainRange grains;
  Tier tier = Tier::host;
  // master, exp_avg, exp_avg_sq, as they are kept (TrainingStateSpec::codecs)
  std::array<std::byte*, kOptimizerKindCount> state = {};
  const std::byte* grad = nullptr;
  std::byte* param = nullptr;  // to be written; where masters are split16 it has the old ones
};

// Enqueues the update of `spans` on `queue`, a host queue or a queue of the device, and returns.
// Called from the graph's threads, one call at a time a queue.
using UpdateFn = std::function<void(const UpdateSpans& spans, Queue& queue)>;

// The reservations that a pipeline claims: staging buffers, by the tier of the update.
struct StagingLayout {
  int buffers = 0;           // 0: nothing needs staging
  uint64_t state_bytes = 0;  // a buffer's room for the nvme kinds of the largest sub-group
  uint64_t param_bytes = 0;  // and for its parameters on their way from and to the device
  uint64_t buffer_bytes() const { return state_bytes + param_bytes; }
};
StagingLayout staging_layout(const TrainingStateSpec& spec, int buffers);
std::vector<Reservation> reservations_for(const StagingLayout& layout);

// Driven by one thread.
class OptimizerPipeline {
 public:
  struct Parts {
    TrainingState& state;
    Pump* pump = nullptr;  // null when nothing lives on nvme
    Queue& host_update;    // updates of grains whose state lives on host and nvme
    Queue& device_update;  // updates of grains whose state lives on the device
    Queue& copy_in;        // parameters host -> device
    Queue& copy_out;       // parameters device -> host; nobody else's
    TrafficSink& traffic;
  };
  // Label of the time that updates stood still for state to come and go (Activity::wait).
  static constexpr const char* kWaitLabel = "optimizer waits for nvme";

  // `layout` as in the plan. With `overlap` false one sub-group goes all the way before the next
  // one starts.
  OptimizerPipeline(const Parts& parts, const StagingLayout& layout, TierManager& tiers,
                    UpdateFn update, bool overlap);
  ~OptimizerPipeline();

  // Starts bringing state into free staging buffers, in sub-group order, before any gradient is
  // there: a step begins with it, so that reads hide under forward and backward. Does nothing
  // without overlap.
  void read_ahead();
  // Takes a sub-group whose gradient is complete; its gradient stays untouched until drain().
  void submit(int32_t sub_group);
  // Drops what was read ahead: the step is skipped and the state stays as it is.
  void discard();
  // Waits until every sub-group taken is updated, its parameters are in place, and its state is on
  // the way to the slot that does not count yet. Writes go on under what comes next; a sub-group is
  // read again only after its own. Throws the first failure, of an earlier step's writes too; the
  // pipeline is then unusable.
  void drain();
  // Waits for the writes as well: before SlotStore::commit(), and before anybody else looks at the
  // state. Throws likewise.
  void settle();

 private:
  class Graph;
  const std::unique_ptr<Graph> graph_;
};

}  // namespace strata::offload
