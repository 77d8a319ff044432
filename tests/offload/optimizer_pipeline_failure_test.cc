// A failure of the disk or of an update ends in the exception that caused it, and nothing hangs.
#include <gtest/gtest.h>

#include <memory>

#include "strata/error.h"
#include "tests/offload/toy_rig.h"

namespace strata::offload {
namespace {

TEST(OptimizerPipelineFailureTest, ADiskErrorEndsTheStepAsIoError) {
  // Filling takes 3 kinds * 23 grains * 16 KiB / 64 KiB transfers; the failure is behind those.
  const io::FaultPlan faults{.fail_at = 30};
  ToyRig rig(kSetups[2], {.buffers = 3, .faults = faults});
  rig.fill();
  rig.start_step();
  EXPECT_THROW(rig.await_parameters(), IoError);
  EXPECT_THROW(rig.await_parameters(), IoError) << "a failed pipeline stays failed";
  EXPECT_THROW(rig.pipeline().settle(), IoError);
}

// Wherever a transfer fails, it is told at the latest when the pipeline is settled; and a pipeline
// that is left alone goes down with its failure.
TEST(OptimizerPipelineFailureTest, NoFailureIsSilentAndNoneHangs) {
  bool failed = true;
  for (int64_t fail_at = 20; failed; fail_at += 5) {
    ASSERT_LT(fail_at, 200);
    const io::FaultPlan faults{.fail_at = fail_at};
    const auto make = [&] {
      return std::make_unique<ToyRig>(kSetups[3], ToyOptions{.faults = faults});
    };
    auto rig = make();
    failed = false;
    try {
      rig->fill();
      rig->start_step();
      rig->await_parameters();
      rig->start_step();
      rig->pipeline().settle();
    } catch (const IoError&) {
      failed = true;
    }
    if (!failed) continue;
    try {
      auto left = make();
      left->fill();
      left->start_step();
    } catch (const IoError&) {
    }
  }
}

TEST(OptimizerPipelineFailureTest, AnUpdateThatThrowsEndsTheStepWithItsException) {
  const auto failing = [](const UpdateSpans& spans, Queue& queue) {
    if (spans.sub_group == 3) {
      queue.run([] { throw CorruptionError("sub-group 3 is bad"); });
    } else {
      toy_update(spans, queue);
    }
  };
  for (const TierSetup& setup : kSetups) {
    ToyRig rig(setup, {}, failing);
    rig.fill();
    rig.start_step();
    EXPECT_THROW(rig.pipeline().drain(), CorruptionError) << setup.name;
  }
}

TEST(OptimizerPipelineFailureTest, AnUpdateThatCannotBeEnqueuedEndsTheStep) {
  const auto failing = [](const UpdateSpans&, Queue&) { throw DeviceError("no such kernel"); };
  ToyRig rig(kSetups[3], {}, failing);
  rig.fill();
  rig.start_step();
  EXPECT_THROW(rig.pipeline().drain(), DeviceError);
}

}  // namespace
}  // namespace strata::offload
