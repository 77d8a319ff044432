// Updates made before it is known whether they count: they are committed, done again, restored or
// recalled, and leave no trace where they did not count.
#include <gtest/gtest.h>

#include <future>
#include <vector>

#include "tests/offload/toy_rig.h"

namespace strata::offload {
namespace {

class Speculation : public testing::TestWithParam<TierSetup> {
 protected:
  Speculation() : rig_(GetParam(), {.slots = 2, .seed = 11}) { rig_.fill(); }

  void speculate() {
    rig_.pipeline().read_ahead(rig_.order());
    for (int32_t sub_group : rig_.order()) {
      rig_.pipeline().submit(sub_group, Purpose::speculation);
    }
    rig_.await_parameters();
  }
  // As after that many steps.
  void expect_state(int steps) {
    rig_.expect_state(steps);
    rig_.expect_promises_kept();
  }
  ToyRig rig_;
};

INSTANTIATE_TEST_SUITE_P(OnNvme, Speculation, testing::Values(kSetups[2], kSetups[3]),
                         [](const auto& tested) { return tested.param.name; });

TEST_P(Speculation, CountsWhenItIsCommitted) {
  speculate();
  rig_.commit();
  expect_state(1);
}

// All of it from the slot that still counts: once, not twice.
TEST_P(Speculation, IsDoneAgainFromTheCurrentSlot) {
  speculate();
  for (int32_t sub_group : rig_.order()) {
    EXPECT_FALSE(rig_.pipeline().recall(sub_group));
    rig_.pipeline().submit(sub_group);
  }
  rig_.await_parameters();
  rig_.commit();
  expect_state(1);
}

TEST_P(Speculation, LeavesNoTraceWhenItIsRestored) {
  for (const bool committed : {false, true}) {
    speculate();
    rig_.pipeline().settle();
    for (int32_t sub_group : rig_.order()) {
      rig_.pipeline().submit(sub_group, Purpose::restoration);
    }
    rig_.await_parameters();
    rig_.expect_promises_kept();
    EXPECT_EQ(rig_.read(StateKind::param), rig_.read(StateKind::master));
    if (!committed) {
      speculate();
      rig_.commit();
    }
  }
  expect_state(1);
}

// One buffer is held by an update that has begun: what comes after it can be recalled, and counts
// only when it is submitted again.
TEST_P(Speculation, IsRecalledWhereItHasNotBegun) {
  std::promise<void> go;
  const std::shared_future<void> gone = go.get_future().share();
  ToyRig rig(GetParam(), {.buffers = 1, .slots = 2}, [&](const UpdateSpans& spans, Queue& queue) {
    queue.run([&gone] { gone.wait(); });
    toy_update(spans, queue);
  });
  rig.fill();
  const LinkBytes before = rig.pipeline().promised();
  for (int32_t sub_group : rig.order()) rig.pipeline().submit(sub_group, Purpose::speculation);
  size_t recalled = 0;
  for (size_t i = 1; i < rig.order().size(); ++i)
    if (rig.pipeline().recall(rig.order()[i])) ++recalled;
  EXPECT_EQ(recalled, rig.order().size() - 1);
  go.set_value();
  rig.expect_promises_kept();
  EXPECT_EQ(rig.reads(), std::vector<int32_t>{rig.order().front()});
  EXPECT_NE(rig.pipeline().promised(), before);
  for (size_t i = 1; i < rig.order().size(); ++i) rig.pipeline().submit(rig.order()[i]);
  rig.commit();
  rig.expect_promises_kept();
  EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007);
}

}  // namespace
}  // namespace strata::offload
