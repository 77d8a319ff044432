// Brings each sub-group's state to where the update runs, lets engine update it, and takes it back:
//
//     read(s+1)  ||  update(s)  ||  write(s-1)
//
// A sub-group that has state on nvme, or parameters on another tier than its update, passes through
// one of a fixed number of staging buffers (offload/staging.h); the others are updated in place.
// The stages are a oneTBB flow graph whose nodes only start work and are told when it is done: the
// pump moves bytes, queues compute. A node waits for no work, only for room in the pump's pool or
// in a queue.
//
// Nobody has to wait for the end of a step's updates: parameters() waits for one sub-group's, so
// that the others run on under the next forward pass. Sub-groups are read in the order in which
// they are submitted, or read ahead; updates follow arrival. Neither matters for their bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>

#include "kernels/device/device.h"
#include "offload/staging.h"
#include "offload/training_state.h"

namespace strata::offload {

// What engine is to make of a sub-group.
enum class Purpose : uint8_t {
  update,       // a step's update
  speculation,  // the same before the step's scale is known; it may turn out not to count
  restoration,  // parameters from the master weights, where a speculation wrote others
};

// One sub-group, ready to be updated, all of it in memory of `tier`.
struct UpdateSpans {
  int32_t sub_group = 0;
  Purpose purpose = Purpose::update;
  GrainRange grains;
  Tier tier = Tier::host;
  // master, exp_avg, exp_avg_sq, as they are kept (TrainingStateSpec::codecs); to restore from, the
  // master weights alone.
  std::array<std::byte*, kOptimizerKindCount> state = {};
  const std::byte* grad = nullptr;
  std::byte* param = nullptr;  // to be written; where masters are split16 it has the old ones
};

// Whether a sub-group's update can be taken back: its state is on nvme alone, so that nothing but a
// slot that does not count is written, and parameters that can be restored from whole masters. Its
// gradients are in memory, so that they can be read as soon as they have landed.
bool can_speculate(const TrainingStateSpec& spec, const SubGroup& group);

// Enqueues the update of `spans` on `queue`, a host queue or a queue of the device, and returns.
// Called from the graph's thread, and for grains updated on the device from the driver's.
using UpdateFn = std::function<void(const UpdateSpans& spans, Queue& queue)>;

// Driven by one thread.
class OptimizerPipeline {
 public:
  struct Parts {
    TrainingState& state;
    Pump* pump = nullptr;  // null when nothing lives on nvme
    Queue& host_update;    // the pipeline's own: updates of grains whose state is on host and nvme
    Queue& device_update;  // the driver's: updates of grains whose state is on the device
    Queue& param_in;       // the pipeline's own, of the device: parameters host -> device
    Queue& param_out;      // likewise: parameters device -> host
    TrafficSink& traffic;
  };
  // Label of the time that updates stood still for state to come (Activity::wait).
  static constexpr const char* kWaitLabel = "optimizer waits for nvme";

  // `layout` as in the plan. With `overlap` false one sub-group goes all the way before the next
  // one starts.
  OptimizerPipeline(const Parts& parts, const StagingLayout& layout, TierManager& tiers,
                    UpdateFn update, bool overlap);
  // As finish().
  ~OptimizerPipeline();

  // Starts bringing state on nvme into free staging buffers, in this order of sub-groups, before
  // any gradient is there: a step begins with it, so that reads hide under forward and backward.
  // Sub-groups under way from the step before go first. What was read ahead and is not submitted
  // stays for the next step. `order` must hold until the next call, or settle(). Does nothing
  // without overlap.
  void read_ahead(std::span<const int32_t> order);
  // Takes a sub-group whose gradient is complete at `gradient`; it stays untouched until the
  // parameters are in place. Speculation and restoration are for those that can_speculate() with
  // two slots: the current one stays as it is.
  void submit(int32_t sub_group, Purpose purpose = Purpose::update, const Event& gradient = {});
  // Takes a submission back, unless its update has begun: then returns false. What was read for it
  // stays for the next one.
  bool recall(int32_t sub_group);
  // Whether parameters() would return at once.
  bool has_parameters(int32_t sub_group) const;
  // Blocks until a submitted sub-group's update has written its parameters, or they are on their
  // way to the device: they are in place at the event. Throws the first failure.
  Event parameters(int32_t sub_group);
  // Waits until every sub-group taken is updated and its parameters are in place. Its state is on
  // the way to the slot that does not count yet; writes go on under what comes next, and a
  // sub-group is read again only after its own. Throws the first failure, of an earlier step's
  // writes too; the pipeline is then unusable.
  void drain();
  // Drops what was read ahead and waits for the writes as well, before anybody else looks at the
  // state. Throws likewise.
  void settle();
  // Waits until the state of everything taken so far is on nvme: before SlotStore::make_durable().
  // Any thread, while nothing is submitted. Throws the first failure.
  void await_writes();

  // Waits for all work under way, and drops its failure. Nothing is asked for afterwards.
  void finish() noexcept;
  // Fails with `failure` whoever waits here, now or later; what is under way goes on to its end.
  // Any thread.
  void abandon(std::exception_ptr failure);

  // Bytes that everything taken so far moves, done or not. Its transfers carry
  // Account::update; settled, this is what the traffic sink was told of them.
  LinkBytes promised() const;

 private:
  class Graph;
  const std::unique_ptr<Graph> graph_;
};

}  // namespace strata::offload
