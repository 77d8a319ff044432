// The pipeline with an update that only adds numbers: every grain of every kind is brought, updated
// once and taken back, whatever the placement, the order, the number of buffers and the faults; and
// nobody waits for more than asked.
#include "offload/optimizer_pipeline.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/offload/toy_rig.h"

namespace strata::offload {
namespace {

class OptimizerPipelineTest
    : public testing::TestWithParam<std::tuple<TierSetup, int64_t, int, bool, uint64_t>> {};

TEST_P(OptimizerPipelineTest, UpdatesEveryGrainOnceAStep) {
  const auto& [setup, sub_group_grains, buffers, overlap, seed] = GetParam();
  const io::FaultPlan faults{.seed = seed + 1,
                             .short_transfer_permille = 150,
                             .error_permille = 0,
                             .again_permille = 100,
                             .delay_permille = 200,
                             .max_delay_us = 300,
                             .reorder = true,
                             .fail_at = -1};
  ToyRig rig(setup, {.sub_group_grains = sub_group_grains,
                     .buffers = buffers,
                     .overlap = overlap,
                     .seed = seed,
                     .faults = faults});
  rig.fill();
  rig.start_step();
  rig.await_parameters();
  rig.start_step();
  rig.expect_promises_kept();
  rig.expect_state(2);
}

std::string case_name(const testing::TestParamInfo<OptimizerPipelineTest::ParamType>& tested) {
  const auto& [setup, grains, buffers, overlap, seed] = tested.param;
  return std::string(setup.name) + "_" + std::to_string(grains) + "_" + std::to_string(buffers) +
         (overlap ? "_overlap" : "_serial") + "_seed" + std::to_string(seed);
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerPipelineTest,
                         testing::Combine(testing::ValuesIn(kSetups), testing::Values(1, 4, 64),
                                          testing::Values(1, 3), testing::Bool(),
                                          testing::Values(0, 5)),
                         case_name);

// A skipped step leaves the state as it was; the next one goes on with what was read for it, and
// looking at the state drops that.
TEST(OptimizerPipelineSkipTest, WhatIsReadAndNotSubmittedChangesNothing) {
  for (const bool look : {false, true}) {
    for (const TierSetup& setup : kSetups) {
      ToyRig rig(setup, {.seed = 3});
      rig.fill();
      const auto before = rig.read(StateKind::master);
      rig.pipeline().read_ahead(rig.order());
      if (look) {
        EXPECT_EQ(rig.read(StateKind::master), before) << setup.name;
      }
      rig.start_step();
      EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007) << setup.name;
      rig.expect_promises_kept();
      rig.pipeline().read_ahead(rig.order());  // and goes down with reads under way
    }
  }
}

TEST(OptimizerPipelineOrderTest, StateIsReadInTheOrderAskedFor) {
  for (const bool ahead : {true, false}) {
    ToyRig rig(kSetups[2], {.sub_group_grains = 2, .buffers = 1, .seed = 7});
    rig.fill();
    std::vector<int32_t> reversed(rig.order().rbegin(), rig.order().rend());
    if (ahead) rig.pipeline().read_ahead(reversed);
    for (int32_t sub_group : reversed) rig.pipeline().submit(sub_group);
    rig.expect_promises_kept();
    EXPECT_EQ(rig.reads(), reversed);
  }
}

// The next step's reads wait for the last step's updates, each for its own.
TEST(OptimizerPipelineOrderTest, ReadsAheadFollowWhatIsUnderWay) {
  ToyRig rig(kSetups[3], {.sub_group_grains = 2, .buffers = 1, .seed = 9});
  rig.fill();
  rig.start_step();
  rig.pipeline().read_ahead(rig.order());
  rig.await_parameters();
  rig.start_step();
  rig.expect_promises_kept();
  std::vector<int32_t> twice = rig.order();
  twice.insert(twice.end(), rig.order().begin(), rig.order().end());
  EXPECT_EQ(rig.reads(), twice);
  EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3009);
}

// One update stands still, the last one: with one buffer state arrives in order. The others'
// parameters can be had.
TEST(OptimizerPipelineWaitTest, ASubGroupsParametersWaitForNoOther) {
  for (const TierSetup& setup : kSetups) {
    if (setup.state[0].device > 0) continue;  // updated in the order of the device's queue
    std::promise<void> go;
    const std::shared_future<void> gone = go.get_future().share();
    int32_t held = -1;
    ToyRig rig(setup, {.buffers = 1}, [&](const UpdateSpans& spans, Queue& queue) {
      if (spans.sub_group == held) queue.run([&gone] { gone.wait(); });
      toy_update(spans, queue);
    });
    rig.fill();
    held = rig.order().back();
    for (int32_t sub_group : rig.order()) rig.pipeline().submit(sub_group);
    for (int32_t sub_group : rig.order()) {
      if (sub_group == held) continue;
      rig.pipeline().parameters(sub_group).wait();
      EXPECT_TRUE(rig.pipeline().has_parameters(sub_group));
    }
    EXPECT_FALSE(rig.pipeline().has_parameters(held)) << setup.name;
    go.set_value();
    rig.pipeline().parameters(held).wait();
    EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007) << setup.name;
  }
}

// An update starts where its gradient is complete, not before.
TEST(OptimizerPipelineWaitTest, AnUpdateWaitsForItsGradient) {
  for (const TierSetup& setup : kSetups) {
    ToyRig rig(setup);
    rig.fill();
    std::promise<void> go;
    const std::future<void> gone = go.get_future();
    rig.gradients().run([&gone] { gone.wait(); });
    const Event gradient = rig.gradients().record();
    for (int32_t sub_group : rig.order())
      rig.pipeline().submit(sub_group, Purpose::update, gradient);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_EQ(rig.updates(), 0) << setup.name;
    go.set_value();
    EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007) << setup.name;
  }
}

TEST(OptimizerPipelineEndTest, GoesDownWithWorkUnderWay) {
  for (const TierSetup& setup : kSetups) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      ToyRig rig(setup, {.sub_group_grains = 2, .buffers = 3, .seed = seed});
      rig.fill();
      rig.start_step();
      if (seed % 2 == 1) rig.pipeline().read_ahead(rig.order());
    }
  }
}

}  // namespace
}  // namespace strata::offload
