// The keys of "scheduler".
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/engine/config_text.h"

namespace strata {
namespace {

using testing::ElementsAre;
using testing_support::case_name;
using testing_support::ConfigRefuses;
using testing_support::error_of;
using testing_support::parse;
using testing_support::Refusal;
using testing_support::with_batch;

std::string scheduler(const std::string& type, const std::string& params,
                      const std::string& optimizer = "{\"type\": \"AdamW\"}") {
  return with_batch("\"optimizer\": " + optimizer + ", \"scheduler\": {\"params\": {" + params +
                    "}, \"type\": \"" + type + "\"}");
}

INSTANTIATE_TEST_SUITE_P(
    Schedule, ConfigRefuses,
    testing::Values(
        Refusal{"AnotherScheduler", with_batch(R"("scheduler": {"type": "LRRangeTest"})"),
                "ds.json: \"scheduler.type\" is \"LRRangeTest\", which is not there: use "
                "\"WarmupLR\", \"WarmupDecayLR\", \"WarmupCosineLR\" or \"OneCycle\", or remove "
                "\"scheduler\" for a constant learning rate"},
        Refusal{"KeyOfAnotherScheduler", scheduler("WarmupLR", R"("lr_range_test_min_lr": 1)"),
                "ds.json: \"scheduler.params.lr_range_test_min_lr\" cannot be honoured: it belongs "
                "to LRRangeTest, which is not there; remove it"},
        Refusal{"SchedulerWithoutType", with_batch(R"("scheduler": {})"),
                "ds.json: \"scheduler.type\" is missing: write \"WarmupLR\""},
        Refusal{"AutoLearningRateWithoutOne", scheduler("WarmupLR", R"("warmup_max_lr": "auto")"),
                "ds.json: \"scheduler.params.warmup_max_lr\" is \"auto\", which stands for "
                "\"optimizer.params.lr\": give that as a number"},
        Refusal{"UnknownWarmupType", scheduler("WarmupLR", R"("warmup_type": "cubic")"),
                "ds.json: \"scheduler.params.warmup_type\" must be \"log\" or \"linear\", found "
                "\"cubic\""},
        Refusal{"TotalOfWarmup", scheduler("WarmupLR", R"("total_num_steps": 5)"),
                "ds.json: \"scheduler.params.total_num_steps\" means nothing to WarmupLR: remove "
                "it (it belongs to WarmupDecayLR, WarmupCosineLR)"},
        Refusal{"RateOfCosine",
                scheduler("WarmupCosineLR", R"("total_num_steps": 5, "warmup_max_lr": 1)"),
                "ds.json: \"scheduler.params.warmup_max_lr\" means nothing to WarmupCosineLR: "
                "remove it (it belongs to WarmupLR, WarmupDecayLR)"},
        Refusal{"RatioOfDecay",
                scheduler("WarmupDecayLR", R"("total_num_steps": 5, "cos_min_ratio": 0.1)"),
                "ds.json: \"scheduler.params.cos_min_ratio\" means nothing to WarmupDecayLR: "
                "remove it (it belongs to WarmupCosineLR)"},
        Refusal{
            "WarmupOfOneCycle",
            scheduler("OneCycle", R"("cycle_min_lr": 0, "cycle_max_lr": 1, "warmup_num_steps": 3)"),
            "ds.json: \"scheduler.params.warmup_num_steps\" means nothing to OneCycle: remove "
            "it (it belongs to WarmupLR, WarmupDecayLR, WarmupCosineLR)"},
        Refusal{"CycleOfWarmup", scheduler("WarmupLR", R"("decay_step_size": 3)"),
                "ds.json: \"scheduler.params.decay_step_size\" means nothing to WarmupLR: remove "
                "it (it belongs to OneCycle)"},
        Refusal{"DecayWithoutEnd", scheduler("WarmupDecayLR", ""),
                "ds.json: \"scheduler.params.total_num_steps\" is missing, and WarmupDecayLR needs "
                "it: write it as a number"},
        Refusal{"AutoEnd", scheduler("WarmupCosineLR", R"("total_num_steps": "auto")"),
                "ds.json: \"scheduler.params.total_num_steps\" is \"auto\", which only Hugging "
                "Face's Trainer can fill in: write the run's number of steps, an integer from 1 to "
                "1000000000000 instead"},
        Refusal{"CycleWithoutHeight", scheduler("OneCycle", R"("cycle_min_lr": 0)"),
                "ds.json: \"scheduler.params.cycle_max_lr\" is missing, and OneCycle needs it: "
                "write it as a number"},
        Refusal{"CycleOfNoSteps", scheduler("OneCycle", R"("cycle_first_step_size": 0)"),
                "ds.json: \"scheduler.params.cycle_first_step_size\" must be an integer from 1 to "
                "1000000000000, found 0"},
        Refusal{"MomentumOfOne", scheduler("OneCycle", R"("cycle_max_mom": 1)"),
                "ds.json: \"scheduler.params.cycle_max_mom\" must be a number of at least 0 and "
                "below 1, found 1"},
        Refusal{
            "MomentumWithoutBetas",
            scheduler("OneCycle", R"("cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_momentum": true)",
                      R"({"type": "SGD"})"),
            "ds.json: \"scheduler.params.cycle_momentum\" is true, and sgd has no betas to "
            "move: write false"}),
    case_name);

TEST(ConfigSchedule, AWarmupOfOneStepTakesTwo) {
  for (const char* steps : {"0", "1"}) {
    const Config config =
        parse(scheduler("WarmupLR", R"("warmup_num_steps": )" + std::string(steps)));
    EXPECT_EQ(config.schedule.kind, ScheduleKind::warmup);
    EXPECT_TRUE(config.schedule.warmup.logarithmic);
    EXPECT_EQ(config.schedule.warmup.num_steps, 2);
    EXPECT_EQ(config.schedule.warmup.min_lr, 0);
  }
}

TEST(ConfigSchedule, WarmupRisesToTheOptimizersRateUnlessToldOtherwise) {
  const std::string optimizer = R"({"type": "AdamW", "params": {"lr": 0.25}})";
  const auto max_lr = [&](const char* type, const char* params) {
    return parse(scheduler(type, params, optimizer)).schedule.warmup.max_lr;
  };
  EXPECT_EQ(max_lr("WarmupLR", ""), 0.25);
  EXPECT_EQ(max_lr("WarmupLR", R"("warmup_min_lr": "auto", "warmup_max_lr": "auto")"), 0.25);
  EXPECT_EQ(max_lr("WarmupLR", R"("warmup_max_lr": 0.5)"), 0.5);
  EXPECT_EQ(max_lr("WarmupDecayLR", R"("total_num_steps": 9)"), 1e-3);
  EXPECT_EQ(max_lr("WarmupDecayLR", R"("total_num_steps": 9, "warmup_max_lr": "auto")"), 0.25);
}

TEST(ConfigSchedule, TheSecondHalfOfACycleIsLikeTheFirstUnlessToldOtherwise) {
  const std::string rates = R"("cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_first_step_size": 7,
                               "cycle_first_stair_count": 3)";
  const OneCycleConfig alike = parse(scheduler("OneCycle", rates)).schedule.one_cycle;
  EXPECT_EQ(alike.second_steps, 7);
  EXPECT_EQ(alike.second_stairs, 3);
  const OneCycleConfig other =
      parse(scheduler("OneCycle",
                      rates + R"(, "cycle_second_step_size": 0, "cycle_second_stair_count": 0)"))
          .schedule.one_cycle;
  EXPECT_EQ(other.second_steps, 0);
  EXPECT_EQ(other.second_stairs, 0);
}

TEST(ConfigSchedule, WhatAMomentumOverridesIsListedAsWithoutEffect) {
  const std::string rates = R"("cycle_min_lr": 0, "cycle_max_lr": 1)";
  const Config moved =
      parse(scheduler("OneCycle", rates, R"({"type": "AdamW", "params": {"betas": [0.5, 0.6]}})"));
  EXPECT_TRUE(moved.schedule.one_cycle.cycles_beta1);
  EXPECT_THAT(moved.no_effect_keys, ElementsAre("optimizer.params.betas"));
  const Config still =
      parse(scheduler("OneCycle", rates + R"(, "cycle_min_mom": 0.5)", R"({"type": "SGD"})"));
  EXPECT_FALSE(still.schedule.one_cycle.cycles_beta1);
  EXPECT_THAT(still.no_effect_keys, ElementsAre("scheduler.params.cycle_min_mom"));
}

}  // namespace
}  // namespace strata
