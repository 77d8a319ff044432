// The plan: every byte a run will hold and move, known before any of it is allocated.
//
// Computed from configuration, model and world; consumed by allocation (a TierManager hands out
// exactly the plan's reservations) and printed by the tools, so plan and run cannot disagree.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "strata/codec.h"
#include "strata/tier.h"
#include "strata/traffic.h"

namespace strata {

// A block of memory or disk that the run claims at start, once, under this name.
struct Reservation {
  Tier tier = Tier::host;
  StateKind kind = StateKind::other;
  std::string name;
  uint64_t bytes = 0;
};

using LinkBytes = std::array<uint64_t, kLinkCount>;  // by Activity: nvme_read .. comm

inline LinkBytes operator+(LinkBytes a, const LinkBytes& b) {
  for (size_t link = 0; link < kLinkCount; ++link) a[link] += b[link];
  return a;
}
// What was moved after `b`, a part of `a`.
inline LinkBytes operator-(LinkBytes a, const LinkBytes& b) {
  for (size_t link = 0; link < kLinkCount; ++link) a[link] -= b[link];
  return a;
}

struct PlanSummary {
  int rank = 0;  // whose plan it is, of how many
  int ranks = 1;
  int64_t parameters = 0;             // trainable and frozen, without padding
  uint64_t training_state_bytes = 0;  // parameters, gradients, master and moments of this rank
  std::array<Codec, kOptimizerKindCount> codecs = {};  // in kOptimizerKinds' order
  std::vector<Reservation> reservations;
  std::array<uint64_t, kTierCount> needed_bytes = {};  // sums of reservations
  std::array<uint64_t, kTierCount> budget_bytes = {};  // what the tier may hold
  // Resident memory of the process beyond the reservations: code, libraries, stacks.
  uint64_t process_overhead_bytes = 0;

  LinkBytes step_traffic = {};      // bytes one train_step moves
  LinkBytes evaluate_traffic = {};  // bytes one evaluated micro-batch moves

  std::array<uint64_t, kTierCount> optimizer_state_bytes = {};  // one slot of it, by Tier
  int staging_buffers = 0;  // that sub-groups pass through; 0: all are updated in place
  int64_t sub_groups = 0;
  int64_t gather_window_units = 0;  // unit buffers for gathered parameters; 0: all stay on device
  int64_t recomputed_units = 0;     // units whose forward runs again in backward
  // What a killed run goes on from: its last "checkpoint", the "step" it was in, or "none" of it;
  // and what a configuration would have to change for a step to be there, if anything.
  std::string recovery = "none";
  std::string step_recovery_takes;

  // The first tier that needs more than its budget.
  std::optional<Tier> over_budget() const;
};

// "master split16, exp_avg bf16, exp_avg_sq bf16, 6.00 bytes a parameter".
std::string optimizer_state_text(const PlanSummary& plan);

// A table for people.
std::string to_string(const PlanSummary& plan);

}  // namespace strata
