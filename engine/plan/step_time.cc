#include "engine/plan/step_time.h"

#include <algorithm>

namespace strata::engine {

double step_seconds(const Plan& plan, const MachineSpeeds& speeds) {
  double operations = 0;
  const auto tokens = static_cast<double>(plan.micro_batch.tokens());
  for (const Action& action : plan.step.actions) {
    const bool forward = action.op == Action::Op::forward;
    if (!forward && action.op != Action::Op::backward) continue;
    const Unit& unit = plan.layout.units()[static_cast<size_t>(action.unit)];
    const double passes = forward ? 1 : action.recompute ? 3 : 2;
    operations += passes * 2 * static_cast<double>(unit.numel()) * tokens;
  }
  const auto bytes = [&](Activity link) {
    return static_cast<double>(plan.summary.step_traffic[static_cast<size_t>(link)]);
  };
  return std::max({operations / speeds.operations,
                   (bytes(Activity::nvme_read) + bytes(Activity::nvme_write)) / speeds.nvme_bytes,
                   bytes(Activity::h2d) / speeds.device_bytes,
                   bytes(Activity::d2h) / speeds.device_bytes,
                   bytes(Activity::comm) / speeds.comm_bytes});
}

}  // namespace strata::engine
