#include "offload/placement.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace strata::offload {
namespace {

TEST(PlacementTest, FractionsAreRoundedToAGrainAndCoverEverything) {
  const Placement placement({0.1, 0.37, 0.53}, 100);
  EXPECT_EQ(placement.range(Tier::device), (GrainRange{0, 10}));
  EXPECT_EQ(placement.range(Tier::host), (GrainRange{10, 47}));
  EXPECT_EQ(placement.range(Tier::nvme), (GrainRange{47, 100}));
  EXPECT_EQ(placement.tier_of(9), Tier::device);
  EXPECT_EQ(placement.tier_of(10), Tier::host);
  EXPECT_EQ(placement.tier_of(47), Tier::nvme);
}

// 37 % means 37 %, rounded to a grain, not all or nothing.
TEST(PlacementTest, SmallSpacesAreStillSplit) {
  for (int64_t grains = 1; grains < 50; ++grains) {
    const Placement placement({0, 0.37, 0.63}, grains);
    const double host = static_cast<double>(placement.range(Tier::host).grains());
    EXPECT_NEAR(host, 0.37 * static_cast<double>(grains), 0.5) << grains;
    EXPECT_EQ(placement.range(Tier::device).grains(), 0);
    EXPECT_EQ(placement.range(Tier::nvme).end, grains);
  }
}

TEST(PlacementTest, WholeFractionsLeaveNoRemainder) {
  for (int64_t grains : {1, 7, 1000}) {
    EXPECT_EQ(Placement({1, 0, 0}, grains).range(Tier::device).grains(), grains);
    EXPECT_EQ(Placement({0, 1, 0}, grains).range(Tier::host).grains(), grains);
    EXPECT_EQ(Placement({0, 0, 1}, grains).range(Tier::nvme).grains(), grains);
    EXPECT_EQ(Placement({0.5, 0.5, 0}, grains).range(Tier::nvme).grains(), 0);
  }
}

TEST(PlacementTest, PinningMovesTheStartOfNvmesPart) {
  const Placement placement({0.2, 0.3, 0.5}, 100);
  for (int64_t grain : {0, 30, 50, 51, 99, 100, 200}) {
    const Placement pinned = placement.pinned_until(grain);
    const int64_t nvme_begin = std::clamp<int64_t>(grain, 50, 100);
    EXPECT_EQ(pinned.range(Tier::device), (GrainRange{0, 20}));
    EXPECT_EQ(pinned.range(Tier::host), (GrainRange{20, nvme_begin})) << grain;
    EXPECT_EQ(pinned.range(Tier::nvme), (GrainRange{nvme_begin, 100})) << grain;
  }
}

TEST(SubGroupTest, CutsCoverTheSpaceAndLieInOneTierEach) {
  const Placement param({0.3, 0.7, 0}, 101);
  const Placement grad({0, 0.45, 0.55}, 101);
  const std::array<Placement, kOptimizerKindCount> state = {
      Placement({0, 0.4, 0.6}, 101), Placement({0, 1, 0}, 101), Placement({0, 0.9, 0.1}, 101)};
  for (int64_t size : {1, 3, 16, 1000}) {
    int64_t next = 0;
    for (const SubGroup& group : cut_sub_groups(size, {param, grad, state})) {
      EXPECT_EQ(group.grains.begin, next);
      EXPECT_GT(group.grains.grains(), 0);
      EXPECT_LE(group.grains.grains(), size);
      next = group.grains.end;
      for (int64_t grain = group.grains.begin; grain < group.grains.end; ++grain) {
        EXPECT_EQ(param.tier_of(grain), group.param_tier);
        EXPECT_EQ(grad.tier_of(grain), group.grad_tier);
        for (size_t kind = 0; kind < kOptimizerKindCount; ++kind) {
          EXPECT_EQ(state[kind].tier_of(grain), group.state_tier[kind]);
        }
      }
    }
    EXPECT_EQ(next, 101);
  }
}

}  // namespace
}  // namespace strata::offload
