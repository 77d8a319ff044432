// Which grains of a state kind live in which tier, and how the shard space is cut into sub-groups.
// Pure arithmetic on grain indices.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "strata/config.h"
#include "strata/grain.h"
#include "strata/tier.h"

namespace strata::offload {

// Grains that lie in the device's buffer of whole units, where their unit's parameters are.
struct WholeRun {
  GrainRange grains;
  uint64_t offset_bytes = 0;  // of the first of them, from the start of that buffer
};

// Three runs of grains, in shard order: the device's, the host's, nvme's. Any may be empty. Each
// tier has an array of the grains of its run, but for those that lie in whole units.
class Placement {
 public:
  Placement() = default;
  // Fractions rounded to the nearest grain.
  Placement(const TierFractions& fractions, int64_t grains);

  // The same with nvme's part starting no earlier than at `grain`: the host takes what lies before.
  Placement pinned_until(int64_t grain) const;
  // The same but for these runs, in shard order.
  Placement with_whole(std::vector<WholeRun> runs) const;

  int64_t grains() const { return end_[2]; }
  GrainRange range(Tier tier) const;
  Tier tier_of(int64_t grain) const;
  // Inner boundaries, for cutting sub-groups.
  std::vector<int64_t> cuts() const;

  // Null for a grain in its tier's array.
  const WholeRun* whole_at(int64_t grain) const;
  // Grains in a tier's array; and the place there of one that is not in a whole unit.
  int64_t array_grains(Tier tier) const;
  int64_t array_index(int64_t grain) const;

 private:
  Tier fraction_of(int64_t grain) const;
  int64_t outside_whole(GrainRange grains) const;

  std::array<int64_t, kTierCount> end_ = {};  // end of each tier's run
  std::vector<WholeRun> whole_;
};

// A contiguous run of grains that the optimizer updates at a time, in which every state kind lies
// in one tier.
struct SubGroup {
  int32_t index = 0;
  GrainRange grains;
  std::array<Tier, kOptimizerKindCount> state_tier = {};  // in kOptimizerKinds' order
  Tier param_tier = Tier::device;
  Tier grad_tier = Tier::host;

  // The update runs where the state lives: on the device, or on the host for host and nvme.
  Tier update_tier() const { return state_tier[0] == Tier::device ? Tier::device : Tier::host; }
};

// Of one rank's shard space.
struct Placements {
  Placement param;
  Placement grad;
  std::array<Placement, kOptimizerKindCount> optimizer_state;  // in kOptimizerKinds' order
};

// Cuts [0, grains) at every boundary of a placement and at most every `sub_group_grains` grains.
std::vector<SubGroup> cut_sub_groups(int64_t sub_group_grains, const Placements& placements);

}  // namespace strata::offload
