// What to change when a plan does not fit: every suggestion is a plan made with that change, so the
// bytes it frees are exact.
#pragma once

#include "engine/plan/planner.h"
#include "strata/error.h"

namespace strata::engine {

// make_plan without the check of budgets.
Plan make_plan_unchecked(const PlanInput& input);

// The refusal of a plan that needs more of `tier` than its budget: needed, available, and the
// settings that would free the most.
OutOfBudget out_of_budget(const PlanInput& input, const PlanSummary& plan, Tier tier);

}  // namespace strata::engine
