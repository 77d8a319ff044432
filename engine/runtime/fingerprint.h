// What all ranks of a run must have in common.
#pragma once

#include <cstdint>

#include "engine/plan/planner.h"
#include "strata/config.h"
#include "strata/model.h"

namespace strata::engine {

// A hash of what decides the numbers and the order of collectives: the model's parameters, the
// batch, the optimizer and its schedule, the gathers and reductions of a step. Placement, budgets
// and threads may differ from rank to rank.
uint64_t fingerprint(const Model& model, const Config& config, const Plan& plan);

}  // namespace strata::engine
