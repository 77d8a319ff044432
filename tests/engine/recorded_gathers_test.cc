#include "engine/runtime/recorded_gathers.h"

#include <gmock/gmock.h>

#include <vector>

#include "strata/error.h"

namespace strata::engine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class RecordedGathersTest : public testing::Test {
 protected:
  // Units that using this one brings, and lets go of it.
  std::vector<int> use(int unit) {
    std::vector<int> units;
    for (const RecordedGathers::Bring& bring : gathers_.hold(unit)) units.push_back(bring.unit);
    gathers_.let_go(unit);
    return units;
  }
  void use_all(const std::vector<int>& units) {
    for (int unit : units) use(unit);
    gathers_.start_again();
  }
  RecordedGathers gathers_{5, 3, true};
};

TEST_F(RecordedGathersTest, TheFirstStepBringsWhatIsAskedFor) {
  EXPECT_THAT(use(0), ElementsAre(0));
  EXPECT_THAT(use(1), ElementsAre(1));
  EXPECT_THAT(use(0), IsEmpty()) << "it is still there";
}

TEST_F(RecordedGathersTest, TheNextStepsBringTheNextUnitAhead) {
  use_all({0, 1, 2, 3});
  for (int step = 0; step < 2; ++step) {
    EXPECT_THAT(use(0), ElementsAre(0, 1));
    EXPECT_THAT(use(1), ElementsAre(2));
    EXPECT_THAT(use(2), ElementsAre(3));
    EXPECT_THAT(use(3), IsEmpty());
    gathers_.start_again();
  }
}

TEST_F(RecordedGathersTest, ADeviationIsRecordedFromThere) {
  use_all({0, 1, 2, 3});
  EXPECT_THAT(use(0), ElementsAre(0, 1));
  EXPECT_THAT(use(4), ElementsAre(4)) << "nothing is known to follow";
  EXPECT_THAT(use(2), ElementsAre(2));
  gathers_.start_again();
  EXPECT_THAT(use(0), ElementsAre(0, 4));
  EXPECT_THAT(use(4), ElementsAre(2));
}

TEST_F(RecordedGathersTest, AShorterStepForgetsTheRest) {
  use_all({0, 1, 2});
  use_all({0});
  EXPECT_THAT(use(0), ElementsAre(0));
}

TEST_F(RecordedGathersTest, WhatIsUsedLastMakesRoom) {
  use_all({0, 1, 2, 3, 0});
  use(0);
  use(1);  // brought ahead; brings 2: all slots are taken
  EXPECT_THAT(use(2), ElementsAre(3)) << "in place of 1: 0 is used again";
  EXPECT_THAT(use(3), IsEmpty());
  EXPECT_THAT(use(0), IsEmpty());
}

TEST_F(RecordedGathersTest, WhatIsHeldStays) {
  gathers_.hold(0);
  gathers_.hold(1);
  gathers_.hold(2);
  EXPECT_THROW(gathers_.hold(3), ConfigError);
  gathers_.let_go(1);
  EXPECT_THAT(use(3), ElementsAre(3));
  EXPECT_THAT(use(0), IsEmpty());
  EXPECT_THAT(use(2), IsEmpty());
}

}  // namespace
}  // namespace strata::engine
