#include "engine/runtime/gather_order.h"

#include <algorithm>

#include "strata/clock.h"
#include "strata/wait_scope.h"

namespace strata::engine {

void GatherOrder::gather(const Action& action) {
  if (postponed_.empty() && parts_.updater.has_parameters(action.unit)) {
    start(action);
  } else {
    postponed_.push_back(action);
  }
}

void GatherOrder::need(const std::vector<int>& units) {
  // Up to the last one of them.
  for (size_t i = postponed_.size(); i-- > 0;) {
    if (std::find(units.begin(), units.end(), postponed_[i].unit) == units.end()) continue;
    start(i + 1);
    break;
  }
  for (const int unit : units) await_update(unit);
}

void GatherOrder::start(size_t count) {
  const auto end = postponed_.begin() + static_cast<int64_t>(count);
  for (auto action = postponed_.begin(); action != end; ++action) start(*action);
  postponed_.erase(postponed_.begin(), end);
}

void GatherOrder::start(const Action& action) {
  await_update(action.unit);
  if (action.slot >= 0) parts_.window.gather(action.unit, action.slot);
}

void GatherOrder::await_update(int unit) {
  switch (parts_.plan.access[static_cast<size_t>(unit)]) {
    case ParameterAccess::in_place:
      await_parameters(unit, parts_.compute);
      break;
    case ParameterAccess::completed:
      await_parameters(unit, parts_.comm);
      parts_.window.complete(unit);
      break;
    case ParameterAccess::gathered:
      await_parameters(unit, parts_.copy_in);
      break;
  }
}

// Makes later work on `queue` find the unit's parameters as the last step left them. Compute stands
// still from when it had nothing left to do while the driver waited here.
void GatherOrder::await_parameters(int unit, Queue& queue) {
  const int64_t begin = now_ns();
  if (!parts_.updater.await_parameters(unit, queue)) return;
  parts_.compute.run([this, unit, begin, end = now_ns()] {
    const int64_t since = std::max(begin, parts_.passes.last_end_ns());
    if (since >= end) return;
    record_wait(parts_.traffic, {StateKind::param, unit, kWaitLabel}, parts_.compute.name(), since,
                end);
  });
}

}  // namespace strata::engine
