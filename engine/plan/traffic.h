// The bytes that a plan's programs move, by link: what a run is held to.
#pragma once

#include <cstdint>

#include "engine/plan/planner.h"

namespace strata::engine {

// A unit's gradient that lands in this rank's host memory, in bytes a micro-batch.
uint64_t host_grad_bytes(const Plan& plan, const Unit& unit);

// Of one train_step, and of one evaluated micro-batch. The plan's programs, layout, state and
// frozen tier are final.
LinkBytes step_traffic(const Plan& plan, int64_t accumulation_steps);
// The part of it that a skipped step does not move: all updates, and the commit.
LinkBytes update_traffic(const Plan& plan);
LinkBytes evaluate_traffic(const Plan& plan);

}  // namespace strata::engine
