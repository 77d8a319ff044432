// What a plan's step takes at least, from its bytes and the machine's speeds.
#pragma once

#include "engine/plan/planner.h"

namespace strata::engine {

// Seconds of the slowest of what overlaps: the disk, which reads and writes share, each other link,
// and compute at 2 operations a parameter and token for a pass through a unit, twice that backward.
double step_seconds(const Plan& plan, const MachineSpeeds& speeds);

}  // namespace strata::engine
