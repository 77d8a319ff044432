// What a plan needs of its input, whoever made it: a Config made by hand has passed no parser.
#pragma once

#include "engine/plan/planner.h"

namespace strata::engine {

// Throws ConfigError, in one sentence that says what to change.
void check(const PlanInput& input);

// The same of settings that must have an effect, when it is known where state lies: as placed, and
// after what the host budget holds was pinned.
void check_pinning(const Config& config, const offload::TrainingStateSpec& placed);
void check_speculation(const Config& config, const offload::TrainingStateSpec& placed,
                       const offload::TrainingStateSpec& pinned);

// What would have to change for each step to be recoverable; empty: it is. Throws ConfigError where
// the configuration asks for that and it is not so, or there is no run directory to find it by.
std::string step_recovery_takes(const PlanInput& input, const offload::TrainingStateSpec& placed);

}  // namespace strata::engine
