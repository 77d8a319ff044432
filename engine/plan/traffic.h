// The bytes that a plan's programs move, by link: what a run is held to.
#pragma once

#include <cstdint>

#include "engine/plan/planner.h"

namespace strata::engine {

// A unit's gradient that leaves the device for this rank's host memory or nvme, in bytes, each time
// it lands.
uint64_t host_grad_bytes(const Plan& plan, const Unit& unit);

// Of this rank's shard of a unit's parameters and gradients, what lives on nvme.
uint64_t nvme_param_bytes(const Plan& plan, const Unit& unit);
uint64_t nvme_grad_bytes(const Plan& plan, const Unit& unit);

// What a rank sends so that all have what each updated of a whole unit, or of all of them.
uint64_t completion_bytes(const Plan& plan, const Unit& unit);
uint64_t completion_bytes(const Plan& plan);

// Of one train_step, and of one evaluated micro-batch. The plan's programs, layout and state are
// final.
LinkBytes step_traffic(const Plan& plan);
// The part of it that a skipped step does not move: all updates, what the ranks then gather of
// whole units, and the commit.
LinkBytes update_traffic(const Plan& plan);
LinkBytes evaluate_traffic(const Plan& plan);

}  // namespace strata::engine
