#include "offload/placement.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace strata::offload {

Placement::Placement(const TierFractions& fractions, int64_t grains) {
  const auto grains_of = [grains](double fraction) {
    return std::clamp<int64_t>(std::llround(fraction * static_cast<double>(grains)), 0, grains);
  };
  end_[0] = grains_of(fractions.device);
  end_[1] =
      std::max(end_[0], fractions.nvme > 0 ? grains_of(fractions.device + fractions.host) : grains);
  end_[2] = grains;
  if (fractions.host == 0 && fractions.nvme == 0) end_[0] = end_[1] = grains;
}

Placement Placement::pinned_until(int64_t grain) const {
  Placement pinned = *this;
  pinned.end_[1] = std::clamp(grain, end_[1], end_[2]);
  return pinned;
}

Placement Placement::with_whole(std::vector<WholeRun> runs) const {
  Placement placement = *this;
  placement.whole_ = std::move(runs);
  return placement;
}

GrainRange Placement::range(Tier tier) const {
  const auto i = static_cast<size_t>(tier);
  return {i == 0 ? 0 : end_[i - 1], end_[i]};
}

Tier Placement::fraction_of(int64_t grain) const {
  if (grain < end_[0]) return Tier::device;
  return grain < end_[1] ? Tier::host : Tier::nvme;
}

Tier Placement::tier_of(int64_t grain) const {
  return whole_at(grain) != nullptr ? Tier::device : fraction_of(grain);
}

std::vector<int64_t> Placement::cuts() const {
  std::vector<int64_t> cuts = {end_[0], end_[1]};
  for (const WholeRun& run : whole_) {
    cuts.push_back(run.grains.begin);
    cuts.push_back(run.grains.end);
  }
  return cuts;
}

const WholeRun* Placement::whole_at(int64_t grain) const {
  const auto after =
      std::upper_bound(whole_.begin(), whole_.end(), grain,
                       [](int64_t g, const WholeRun& run) { return g < run.grains.end; });
  return after != whole_.end() && after->grains.begin <= grain ? &*after : nullptr;
}

int64_t Placement::outside_whole(GrainRange grains) const {
  int64_t count = grains.grains();
  for (const WholeRun& run : whole_) count -= intersect(run.grains, grains).grains();
  return count;
}

int64_t Placement::array_grains(Tier tier) const { return outside_whole(range(tier)); }

int64_t Placement::array_index(int64_t grain) const {
  return outside_whole({range(fraction_of(grain)).begin, grain});
}

std::vector<SubGroup> cut_sub_groups(int64_t sub_group_grains, const Placements& placements) {
  const auto& [param, grad, optimizer_state] = placements;
  const int64_t grains = param.grains();
  std::vector<int64_t> cuts = {0, grains};
  const auto cut_at = [&cuts](const Placement& placement) {
    for (int64_t cut : placement.cuts()) cuts.push_back(cut);
  };
  cut_at(param);
  cut_at(grad);
  for (const Placement& placement : optimizer_state) cut_at(placement);
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());

  std::vector<SubGroup> groups;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    for (int64_t begin = cuts[i]; begin < cuts[i + 1]; begin += sub_group_grains) {
      SubGroup group;
      group.index = static_cast<int32_t>(groups.size());
      group.grains = {begin, std::min(begin + sub_group_grains, cuts[i + 1])};
      group.param_tier = param.tier_of(begin);
      group.grad_tier = grad.tier_of(begin);
      for (size_t kind = 0; kind < kOptimizerKindCount; ++kind) {
        group.state_tier[kind] = optimizer_state[kind].tier_of(begin);
      }
      groups.push_back(group);
    }
  }
  return groups;
}

}  // namespace strata::offload
