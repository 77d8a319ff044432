// When each unit's parameters are gathered: in the program's order, none before its update has
// landed, and none so early that compute would stand still for it.
//
// A gather ahead of its use waits for no update while there is something to compute: it is put off
// until that is enqueued. The order of gathers stays the program's, and with it that of all
// collectives: updates are behind it before the first reduction. Driver thread.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/runtime/parameter_window.h"
#include "engine/runtime/program.h"
#include "engine/runtime/updater.h"
#include "kernels/device/compute_spans.h"
#include "kernels/device/device.h"
#include "strata/traffic.h"

namespace strata::engine {

class GatherOrder {
 public:
  // Label of the time that compute stood still for the last step's update (Activity::wait).
  static constexpr const char* kWaitLabel = "compute waits for the last update";

  struct Parts {
    const Plan& plan;
    ParameterWindow& window;
    Updater& updater;
    Queue& copy_in;
    Queue& comm;
    Queue& compute;
    const ComputeSpans& passes;  // on `compute`
    TrafficSink& traffic;
  };
  // All must outlive it.
  explicit GatherOrder(const Parts& parts) : parts_(parts) {}

  // Starts a gather of the program, now or later.
  void gather(const Action& action);
  // Compute comes next that needs these units: what was put off of them is started, and what was
  // not gathered is used where it lies, behind its update.
  void need(const std::vector<int>& units);
  // The last step's update of the unit is through, or on its way on the queue that uses or gathers
  // its parameters; a whole unit's are being completed.
  void await_update(int unit);
  // Compute was enqueued, under which the rest may be waited for.
  void start_all() { start(postponed_.size()); }

 private:
  void start(size_t count);
  void start(const Action& action);
  void await_parameters(int unit, Queue& queue);

  const Parts parts_;
  std::vector<Action> postponed_;  // their parameters are not updated yet, or they come after such
};

}  // namespace strata::engine
