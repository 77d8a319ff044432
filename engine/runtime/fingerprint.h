// What all ranks of a run must have in common.
#pragma once

#include <cstdint>

#include "engine/plan/planner.h"
#include "strata/config.h"
#include "strata/model.h"

namespace strata::engine {

// A hash of what decides the numbers and the order of collectives: the model's description and
// parameters, the batch, the optimizer and its schedule, the gathers, reductions and commits of a
// step, and the data. Budgets and threads may differ from rank to rank, and placement as far as it
// does not decide whether steps are committed.
uint64_t fingerprint(const Model& model, const Config& config, const Plan& plan,
                     uint64_t data_hash);

// Of all that gives the bytes of a rank's state files their meaning.
uint64_t state_hash(const Model& model, const Config& config, const Plan& plan);

}  // namespace strata::engine
