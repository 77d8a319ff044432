// What a plan needs of its input, whoever made it: a Config made by hand has passed no parser.
#pragma once

#include "engine/plan/planner.h"

namespace strata::engine {

// Throws ConfigError, in one sentence that says what to change.
void check(const PlanInput& input);

}  // namespace strata::engine
