// Keys of the batch, the optimizer, its schedule and the number formats.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "strata/grain.h"
#include "tests/engine/config_text.h"

namespace strata {
namespace {

using testing_support::case_name;
using testing_support::ConfigRefuses;
using testing_support::error_of;
using testing_support::own;
using testing_support::parse;
using testing_support::Refusal;
using testing_support::with_batch;

INSTANTIATE_TEST_SUITE_P(
    Training, ConfigRefuses,
    testing::Values(
        Refusal{"NoBatch", R"({"gradient_accumulation_steps": 2})",
                "ds.json: the batch size is missing: give \"train_micro_batch_size_per_gpu\" or "
                "\"train_batch_size\" as an integer"},
        Refusal{"BatchThatDoesNotMultiplyOut",
                R"({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4,
                    "gradient_accumulation_steps": 2})",
                "ds.json: \"train_batch_size\" is 32, but \"train_micro_batch_size_per_gpu\" 4 x "
                "\"gradient_accumulation_steps\" 2 x world size 1 = 8: change one of them"},
        Refusal{"BatchThatDoesNotDivide",
                R"({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4})",
                "ds.json: \"train_batch_size\" is 10, but \"train_micro_batch_size_per_gpu\" 4 x "
                "\"gradient_accumulation_steps\" 2 x world size 1 = 8: change one of them"},
        Refusal{"NegativeLearningRate",
                with_batch(R"("optimizer": {"type": "AdamW", "params": {"lr": -0.1}})"),
                "ds.json: \"optimizer.params.lr\" must be a number of at least 0, found -0.1"},
        Refusal{"BetaOfOne",
                with_batch(R"("optimizer": {"type": "AdamW", "params": {"betas": [0.9, 1.0]}})"),
                "ds.json: \"optimizer.params.betas\" must be a list of two numbers of at least 0 "
                "and below 1, found [0.9,1.0]"},
        Refusal{"EpsOfZero", with_batch(R"("optimizer": {"type": "AdamW", "params": {"eps": 0}})"),
                "ds.json: \"optimizer.params.eps\" must be a number above 0, found 0"},
        Refusal{"AnotherOptimizer", with_batch(R"("optimizer": {"type": "Lamb"})"),
                "ds.json: \"optimizer.type\" is \"Lamb\", which is not there yet: use \"Adam\", "
                "\"AdamW\", \"Adagrad\", \"Lion\" or \"SGD\""},
        Refusal{"OptimizerWithoutType", with_batch(R"("optimizer": {"params": {"lr": 1}})"),
                "ds.json: \"optimizer.type\" is missing: write \"AdamW\""},
        Refusal{"BetasOfSgd",
                with_batch(R"("optimizer": {"type": "SGD", "params": {"betas": [0.9, 0.99]}})"),
                "ds.json: \"optimizer.params.betas\" means nothing to sgd: remove it"},
        Refusal{"EpsOfLion",
                with_batch(R"("optimizer": {"type": "Lion", "params": {"eps": 1e-8}})"),
                "ds.json: \"optimizer.params.eps\" means nothing to lion: remove it"},
        Refusal{"MomentumOfAdam",
                with_batch(R"("optimizer": {"type": "Adam", "params": {"momentum": 0.9}})"),
                "ds.json: \"optimizer.params.momentum\" means nothing to adamw: remove it"},
        Refusal{"PlacementOfWhatIsNotKept", with_batch(R"("optimizer": {"type": "Adagrad"},
                              "strata": {"placement": {"exp_avg": {"host": 1}}})"),
                "ds.json: \"strata.placement.exp_avg\": adagrad keeps no exp_avg: remove it"},
        Refusal{"SplitMasterWithoutBf16", with_batch(R"("strata": {"master_codec": "split16"})"),
                "ds.json: \"strata.master_codec\" is \"split16\", which keeps the rest that bf16 "
                "parameters leave, and parameters are fp32: train in bf16, or write \"fp32\""},
        Refusal{"MaxGradNorm",
                with_batch(R"("optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}})"),
                "ds.json: \"optimizer.params.max_grad_norm\" cannot be honoured: as in DeepSpeed; "
                "use \"gradient_clipping\" in its place"},
        Refusal{"Fp16AndBf16",
                with_batch(R"("fp16": {"enabled": true}, "bf16": {"enabled": true})"),
                "ds.json: \"fp16.enabled\" and \"bf16.enabled\" are both true: switch one of them "
                "off"},
        Refusal{
            "Fp16Masters", with_batch(R"("fp16": {"fp16_master_weights_and_grads": true})"),
            "ds.json: \"fp16.fp16_master_weights_and_grads\" cannot be honoured: master weights "
            "are fp32; write false or remove it"},
        Refusal{"NegativeLossScale", with_batch(R"("fp16": {"loss_scale": -1})"),
                "ds.json: \"fp16.loss_scale\" must be a number of at least 0 and at most "
                "1e+38, found -1"},
        Refusal{
            "WindowOfZero", with_batch(R"("fp16": {"loss_scale_window": 0})"),
            "ds.json: \"fp16.loss_scale_window\" must be an integer from 1 to 1000000000, found "
            "0"},
        Refusal{"HysteresisOfZero", with_batch(R"("fp16": {"hysteresis": 0})"),
                "ds.json: \"fp16.hysteresis\" must be an integer from 1 to 1000000000, found 0"},
        Refusal{"MinLossScaleOfZero", with_batch(R"("fp16": {"min_loss_scale": 0})"),
                "ds.json: \"fp16.min_loss_scale\" must be an integer from 1 to 1000000000, found "
                "0"},
        Refusal{"Accumulation", with_batch(R"("data_types": {"grad_accum_dtype": "bf16"})"),
                "ds.json: \"data_types.grad_accum_dtype\" cannot be honoured: gradients are always "
                "accumulated in fp32; write \"fp32\""}),
    case_name);

std::string groups(const std::string& list) { return own("\"parameter_groups\": " + list); }

INSTANTIATE_TEST_SUITE_P(
    ParameterGroups, ConfigRefuses,
    testing::Values(
        Refusal{"NotAList", groups("{}"),
                "ds.json: \"strata.parameter_groups\" must be a list of objects, found an object"},
        Refusal{"NotOfObjects", groups(R"([{"match": ["*"]}, 3])"),
                "ds.json: \"strata.parameter_groups[1]\" must be an object, found 3"},
        Refusal{"WithoutPatterns", groups(R"([{"match": ["*"]}, {"lr_scale": 2}])"),
                "ds.json: \"strata.parameter_groups[1].match\" is missing: list patterns of its "
                "parameters' names, like \"*.bias\""},
        Refusal{"NoPatterns", groups(R"([{"match": []}])"),
                "ds.json: \"strata.parameter_groups[0].match\" must be a list of patterns like "
                "\"*.bias\", found []"},
        Refusal{"UnknownKeyOfAGroup", groups(R"([{"match": ["*"]}, {"weight_decy": 0}])"),
                "ds.json: \"strata.parameter_groups[1].weight_decy\" is not a known key: did you "
                "mean \"strata.parameter_groups[].weight_decay\"?"},
        Refusal{"NegativeScale", groups(R"([{"match": ["*"], "lr_scale": -1}])"),
                "ds.json: \"strata.parameter_groups[0].lr_scale\" must be a number of at least 0, "
                "found -1"},
        Refusal{"RateOfAGroup", groups(R"([{"match": ["*"], "lr": 1e-4}])"),
                "ds.json: \"strata.parameter_groups[0].lr\" cannot be honoured: the schedule moves "
                "the learning rate of all; give \"lr_scale\", their part of it"},
        Refusal{"AutoDecayOfAGroup", groups(R"([{"match": ["*"], "weight_decay": "auto"}])"),
                "ds.json: \"strata.parameter_groups[0].weight_decay\" is \"auto\", which only "
                "Hugging Face's Trainer can fill in: write a number of at least 0 instead"}),
    case_name);

TEST(Config, ParameterGroupsLandInTheirOrder) {
  const Config config = parse(groups(
      R"([{"match": ["*.bias", "*ln_*"], "weight_decay": 0}, {"lr_scale": 0.5, "match": ["*"]}])"));
  ASSERT_EQ(config.parameter_groups.size(), 2u);
  EXPECT_EQ(config.parameter_groups[0].match, (std::vector<std::string>{"*.bias", "*ln_*"}));
  EXPECT_EQ(config.parameter_groups[0].weight_decay, 0);
  EXPECT_EQ(config.parameter_groups[0].lr_scale, 1);
  EXPECT_EQ(config.parameter_groups[1].match, std::vector<std::string>{"*"});
  EXPECT_EQ(config.parameter_groups[1].weight_decay, std::nullopt);
  EXPECT_EQ(config.parameter_groups[1].lr_scale, 0.5);
}

TEST(Config, ABatchIsDividedAmongRanks) {
  const Config config = Config::from_json(R"({"train_batch_size": 12})", "ds.json", 3);
  EXPECT_EQ(config.micro_batch, 4);
  EXPECT_EQ(config.accumulation_steps, 1);
  EXPECT_EQ(config.world_size, 3);
  EXPECT_EQ(error_of(R"({"train_batch_size": 7})", 2),
            "ds.json: \"train_batch_size\" is 7, but \"train_micro_batch_size_per_gpu\" 3 x "
            "\"gradient_accumulation_steps\" 1 x world size 2 = 6: change one of them");
}

TEST(Config, DefaultsAreDeepSpeedsWhereItHasThem) {
  const Config config = parse(with_batch(""));
  EXPECT_EQ(config.micro_batch, 2);
  EXPECT_EQ(config.accumulation_steps, 1);
  EXPECT_EQ(config.dtype, DType::fp32);
  EXPECT_EQ(config.gradient_clipping, 0);
  EXPECT_EQ(config.optimizer.lr, 1e-3);
  EXPECT_EQ(config.optimizer.beta1, 0.9);
  EXPECT_EQ(config.optimizer.beta2, 0.999);
  EXPECT_EQ(config.optimizer.eps, 1e-8);
  EXPECT_EQ(config.optimizer.weight_decay, 0);
  EXPECT_EQ(config.schedule.kind, ScheduleKind::constant);
  EXPECT_EQ(config.stage, 3);
  EXPECT_EQ(config.sub_group_numel, 8 << 20);
  EXPECT_EQ(config.param.device, 1);
  for (const TierFractions& parts : config.optimizer_state) EXPECT_EQ(parts.device, 1);
  EXPECT_TRUE(config.nvme_paths.empty());
  EXPECT_TRUE(config.no_effect_keys.empty());
}

struct BatchCase {
  const char* keys;
  int64_t train, micro, steps;
};
class ConfigBatch : public testing::TestWithParam<BatchCase> {};

TEST_P(ConfigBatch, AnyTwoGiveTheThird) {
  const Config config = parse(GetParam().keys);
  EXPECT_EQ(config.micro_batch * config.accumulation_steps, GetParam().train);
  EXPECT_EQ(config.micro_batch, GetParam().micro);
  EXPECT_EQ(config.accumulation_steps, GetParam().steps);
}

INSTANTIATE_TEST_SUITE_P(
    All, ConfigBatch,
    testing::Values(
        BatchCase{R"({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4})", 24, 4, 6},
        BatchCase{R"({"train_batch_size": 24, "gradient_accumulation_steps": 3})", 24, 8, 3},
        BatchCase{R"({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3})", 12,
                  4, 3},
        BatchCase{R"({"train_batch_size": 24})", 24, 24, 1},
        BatchCase{R"({"train_micro_batch_size_per_gpu": 4})", 4, 4, 1},
        BatchCase{R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 4,
                      "gradient_accumulation_steps": "auto"})",
                  4, 4, 1},
        BatchCase{R"({"train_batch_size": null, "train_micro_batch_size_per_gpu": 4})", 4, 4, 1}));

TEST(Config, DeepSpeedsOdditiesAreFollowed) {
  const Config config = parse(R"({
    // A comment, and
    "train_batch_size": 8, /* another. */
    "zero_optimization": {"stage": 3, "sub_group_size": 1e9, "reduce_bucket_size": "auto"},
    "optimizer": {"type": "ADAM", "params": {"weight_decay": 0.1, "lr": 3e-4}}
  })");
  EXPECT_EQ(config.sub_group_numel, 1'000'000'000 / kGrainNumel * kGrainNumel);
  EXPECT_EQ(config.optimizer.weight_decay, 0.1);
  EXPECT_EQ(config.optimizer.lr, 3e-4);
}

TEST(Config, Fp16IsTakenWithItsLossScale) {
  const LossScaleConfig by_default = parse(with_batch(R"("fp16": {"enabled": true})")).loss_scale;
  EXPECT_TRUE(by_default.dynamic());
  EXPECT_EQ(by_default.initial_power, 16);
  EXPECT_EQ(by_default.window, 1000);
  EXPECT_EQ(by_default.hysteresis, 2);
  EXPECT_FALSE(by_default.consecutive_hysteresis);
  EXPECT_EQ(by_default.min_scale, 1);

  const Config config = parse(with_batch(R"("bf16": {"enabled": false}, "fp16": {
      "enabled": true, "loss_scale": 0.5, "initial_scale_power": 7, "loss_scale_window": 50,
      "hysteresis": 3, "consecutive_hysteresis": true, "min_loss_scale": 4})"));
  EXPECT_EQ(config.dtype, DType::fp16);
  EXPECT_FALSE(config.loss_scale.dynamic());
  EXPECT_EQ(config.loss_scale.constant, 0.5);
  EXPECT_EQ(config.loss_scale.initial_power, 7);
  EXPECT_EQ(config.loss_scale.window, 50);
  EXPECT_EQ(config.loss_scale.hysteresis, 3);
  EXPECT_TRUE(config.loss_scale.consecutive_hysteresis);
  EXPECT_EQ(config.loss_scale.min_scale, 4);
}

}  // namespace
}  // namespace strata
