// Configuration is honoured or refused at start, in one sentence that says what to change.
#include "strata/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>

#include "strata/error.h"
#include "strata/grain.h"

namespace strata {
namespace {

using testing::ElementsAre;
using testing::StartsWith;

// A configuration with `keys` beside a batch size.
std::string with_batch(const std::string& keys) {
  return R"({"train_micro_batch_size_per_gpu": 2)" + (keys.empty() ? "" : ", " + keys) + "}";
}

Config parse(const std::string& text) { return Config::from_json(text, "ds.json", 1); }

std::string error_of(const std::string& text, int world_size = 1) {
  try {
    Config::from_json(text, "ds.json", world_size);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

struct Refusal {
  const char* name;
  std::string text;
  std::string error;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.text; }

class ConfigRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(ConfigRefuses, InOneSentence) { EXPECT_EQ(error_of(GetParam().text), GetParam().error); }

std::string case_name(const testing::TestParamInfo<Refusal>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Json, ConfigRefuses,
    testing::Values(
        Refusal{"DuplicateKey", R"({"seed": 1, "optimizer": {"type": "Adam", "type": "AdamW"}})",
                "ds.json: \"optimizer.type\" appears twice: keep one of them"},
        Refusal{"NotANumber", "{\n  \"optimizer\": {\"params\": {\"lr\": NaN}}}",
                "ds.json: line 2, column 34: NaN and Infinity are not numbers in JSON: write a "
                "finite number"},
        Refusal{"Infinity", "{\"gradient_clipping\": -Infinity}",
                "ds.json: line 1, column 24: NaN and Infinity are not numbers in JSON: write a "
                "finite number"},
        Refusal{"Overflow", R"({"gradient_clipping": 1e999})",
                "ds.json: a number is too large for a double: write a finite number in its place"},
        Refusal{"NotAnObject", "[1, 2]",
                "ds.json: the text must be a JSON object, found [1,2]: put the keys between { and "
                "}"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Keys, ConfigRefuses,
    testing::Values(
        Refusal{"UnknownKey", with_batch(R"("optimzer": {})"),
                "ds.json: \"optimzer\" is not a known key: did you mean \"optimizer\"?"},
        Refusal{"UnknownKeyInside",
                with_batch(R"("zero_optimization": {"offload_param": {"devise": "cpu"}})"),
                "ds.json: \"zero_optimization.offload_param.devise\" is not a known key: did you "
                "mean \"zero_optimization.offload_param.device\"?"},
        Refusal{"KeyOfAnotherSection", with_batch(R"("stage": 3)"),
                "ds.json: \"stage\" is not a known key: did you mean "
                "\"zero_optimization.stage\"?"},
        Refusal{"KeyLikeNoOther", with_batch(R"("zzzzzzzzzz": 3)"),
                "ds.json: \"zzzzzzzzzz\" is not a known key: remove it, or see "
                "docs/configuration.md for all keys"},
        Refusal{"WrongType", R"({"train_batch_size": "eight"})",
                "ds.json: \"train_batch_size\" must be an integer from 1 to 1000000000, found "
                "\"eight\""},
        Refusal{"NotWhole", R"({"train_batch_size": 1.5})",
                "ds.json: \"train_batch_size\" must be an integer from 1 to 1000000000, found 1.5"},
        Refusal{"NotASection", with_batch(R"("zero_optimization": true)"),
                "ds.json: \"zero_optimization\" must be an object, found true"},
        Refusal{"WrongTypeWithoutEffect", with_batch(R"("steps_per_print": "often")"),
                "ds.json: \"steps_per_print\" must be an integer, found \"often\""},
        Refusal{"AutoThatOnlyTheTrainerKnows", with_batch(R"("gradient_clipping": "auto")"),
                "ds.json: \"gradient_clipping\" is \"auto\", which only Hugging Face's Trainer can "
                "fill in: write a number of at least 0 instead (the Trainer's own default is "
                "1.0)"},
        Refusal{"AutoWithADefaultOfTheTrainers", with_batch(R"("fp16": {"enabled": "auto"})"),
                "ds.json: \"fp16.enabled\" is \"auto\", which only Hugging Face's Trainer can fill "
                "in: write true or false instead (the Trainer's own default is false)"},
        Refusal{"AutoOfARefusedKey",
                with_batch(R"("fp16": {"fp16_master_weights_and_grads": "auto"})"),
                "ds.json: \"fp16.fp16_master_weights_and_grads\" is \"auto\", which only Hugging "
                "Face's Trainer can fill in: write false instead"}),
    case_name);

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
        Refusal{"AnotherScheduler", with_batch(R"("scheduler": {"type": "OneCycle"})"),
                "ds.json: \"scheduler.type\" is \"OneCycle\", which is not there yet: use "
                "\"WarmupLR\", or remove \"scheduler\" for a constant learning rate"},
        Refusal{"SchedulerWithoutType", with_batch(R"("scheduler": {})"),
                "ds.json: \"scheduler.type\" is missing: write \"WarmupLR\""},
        Refusal{"AutoLearningRateWithoutOne", with_batch(R"("scheduler": {"type": "WarmupLR",
                                            "params": {"warmup_max_lr": "auto"}})"),
                "ds.json: \"scheduler.params.warmup_max_lr\" is \"auto\", which stands for "
                "\"optimizer.params.lr\": give that as a number"},
        Refusal{"UnknownWarmupType", with_batch(R"("scheduler": {"type": "WarmupLR",
                                            "params": {"warmup_type": "cubic"}})"),
                "ds.json: \"scheduler.params.warmup_type\" must be \"log\" or \"linear\", found "
                "\"cubic\""},
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

std::string zero(const std::string& keys) {
  return with_batch("\"zero_optimization\": {" + keys + "}");
}

std::string own(const std::string& keys) { return with_batch("\"strata\": {" + keys + "}"); }

INSTANTIATE_TEST_SUITE_P(
    Tiers, ConfigRefuses,
    testing::Values(
        Refusal{"Stage2", zero(R"("stage": 2)"),
                "ds.json: \"zero_optimization.stage\" is 2, which is not there yet: use 3, which "
                "gives the same bits"},
        Refusal{"Stage4", zero(R"("stage": 4)"),
                "ds.json: \"zero_optimization.stage\" must be an integer from 0 to 3, found 4"},
        Refusal{
            "ParametersOnNvme", zero(R"("offload_param": {"device": "nvme"})"),
            "ds.json: \"zero_optimization.offload_param.device\" is \"nvme\", and parameters on "
            "nvme are not there yet: use \"cpu\""},
        Refusal{"UnknownDevice", zero(R"("offload_optimizer": {"device": "disk"})"),
                "ds.json: \"zero_optimization.offload_optimizer.device\" must be \"none\" or "
                "\"cpu\" or \"nvme\", found \"disk\""},
        Refusal{"NvmeWithoutPath", zero(R"("offload_optimizer": {"device": "nvme"})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" is missing: optimizer "
                "state is to live on nvme, so name a directory for its files"},
        Refusal{"PlacementOnNvmeWithoutPath",
                own(R"("placement": {"exp_avg": {"device": 1}, "exp_avg_sq": {"device": 1},
                                    "master": {"device": 1}, "param": {"nvme": 1}})"),
                "ds.json: \"strata.placement.param.nvme\" is above 0, and parameters on nvme are "
                "not there yet: put that part into \"host\""},
        Refusal{"OnePathTwice", zero(R"("offload_optimizer": {"nvme_path": ["/a", "/b", "/a"]})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" lists \"/a\" twice: "
                "name each directory once"},
        Refusal{"NoPathInTheList", zero(R"("offload_optimizer": {"nvme_path": []})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" must be a directory's "
                "path or a list of them, found []"},
        Refusal{"WeightOfNothing", own(R"("nvme_weights": [1, 0])"),
                "ds.json: \"strata.nvme_weights\" must be \"auto\" or a list of integers from 1 to "
                "1024, found [1,0]"},
        Refusal{"WeightsWithoutTheirPaths",
                R"({"train_batch_size": 1, "strata": {"nvme_weights": [1, 2, 3]},
                    "zero_optimization": {"offload_optimizer": {"device": "nvme",
                                                                "nvme_path": ["/a", "/b"]}}})",
                "ds.json: \"strata.nvme_weights\" has 3 and "
                "\"zero_optimization.offload_optimizer.nvme_path\" 2 entries: give each directory "
                "one weight"},
        Refusal{"RatioOutOfRange", zero(R"("offload_optimizer": {"ratio": 1.5})"),
                "ds.json: \"zero_optimization.offload_optimizer.ratio\" must be a number of at "
                "least 0 and at most 1, found 1.5"},
        Refusal{"RatioOnNvme",
                zero(R"("offload_optimizer": {"device": "nvme", "nvme_path": "/n", "ratio": 0.5})"),
                "ds.json: \"zero_optimization.offload_optimizer.ratio\" splits the update between "
                "device and host: with \"device\": \"nvme\" leave it out and use "
                "\"strata.placement\""},
        Refusal{"PlacementThatDoesNotAddUp", own(R"("placement": {"master": {"host": 0.5}})"),
                "ds.json: \"strata.placement.master\": device 0 + host 0.5 + nvme 0 = 0.5: the "
                "parts must add up to 1"},
        Refusal{"UnequalDeviceParts", own(R"("placement": {"exp_avg": {"host": 1}})"),
                "ds.json: \"strata.placement\": the device holds 1 of master but 0 of exp_avg, and "
                "an update needs them in one place: make the device parts of master, exp_avg and "
                "exp_avg_sq equal"},
        Refusal{"BadSize", own(R"("device_memory": "64 mebibytes")"),
                "ds.json: \"strata.device_memory\" must be a size in bytes, as an integer or a "
                "string like \"64MiB\" or \"1.5GB\", found \"64 mebibytes\""},
        Refusal{
            "NoStagingBuffer", own(R"("staging_buffers": 0)"),
            "ds.json: \"strata.staging_buffers\" must be \"auto\" or an integer from 1 to 1024, "
            "found 0"},
        Refusal{
            "SpeculationWithOneSlot", own(R"("speculate": "always")"),
            "ds.json: \"strata.speculate\" is \"always\", which takes a second slot to write to "
            "while the first still counts: set \"strata.slots\" to 2 and leave "
            "\"strata.overlap\" on"},
        Refusal{"PinningWithoutABudget", own(R"("pin_state": "always")"),
                "ds.json: \"strata.pin_state\" is \"always\" without a budget to fill: give "
                "\"strata.host_memory\""},
        Refusal{"BlockSizeOffTheGrid", with_batch(R"("aio": {"block_size": 1000})"),
                "ds.json: \"aio.block_size\" must be a multiple of 4096 bytes from 4096 to "
                "\"1GiB\", found 1000"},
        Refusal{
            "ThreadsTwice", with_batch(R"("aio": {"thread_count": 2, "intra_op_parallelism": 4})"),
            "ds.json: \"aio.thread_count\" is 2 but \"aio.intra_op_parallelism\" is 4, and both "
            "mean the same: keep one of them"},
        Refusal{"Pipeline", with_batch(R"("pipeline": {"stages": 2})"),
                "ds.json: \"pipeline\" cannot be honoured: pipeline parallelism is not there; ZeRO "
                "shards the layers instead, so remove it"},
        Refusal{"MixtureOfExperts", with_batch(R"("moe": {"enabled": true})"),
                "ds.json: \"moe\" cannot be honoured: mixture of experts is not there yet; remove "
                "it"},
        Refusal{"EnabledDeepInside", with_batch(R"("compression_training": {"weight_quantization":
                                {"shared_parameters": {"enabled": true}}})"),
                "ds.json: \"compression_training\" cannot be honoured: compression during training "
                "is not there; remove it"}),
    case_name);

TEST(Config, MalformedJsonIsReportedWithLineAndColumn) {
  EXPECT_THAT(error_of("{\n  \"train_batch_size\": 8,\n  \"bf16\": }"),
              StartsWith("ds.json: line 3, column 11: this is not valid JSON ("));
  EXPECT_THAT(error_of(""), StartsWith("ds.json: line 1, column 1: this is not valid JSON ("));
  EXPECT_THAT(error_of("{\"bf16\": {\n"), StartsWith("ds.json: line 2, column 1: "));
}

TEST(Config, AFileThatCannotBeReadIsNamed) {
  EXPECT_THAT([] { Config::from_file("/no/such/ds.json", 1); },
              testing::ThrowsMessage<ConfigError>(
                  "/no/such/ds.json: cannot be read (No such file or directory): name a file that "
                  "can"));
  EXPECT_THAT([] { Config::from_file("/", 1); },
              testing::ThrowsMessage<ConfigError>("/: this is a directory: name a file"));
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
  EXPECT_FALSE(config.warmup.enabled);
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
    "optimizer": {"type": "ADAM", "params": {"weight_decay": 0.1, "lr": 3e-4}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 1}}
  })");
  EXPECT_EQ(config.sub_group_numel, 1'000'000'000 / kGrainNumel * kGrainNumel);
  EXPECT_EQ(config.optimizer.weight_decay, 0.1);
  EXPECT_EQ(config.optimizer.lr, 3e-4);
  EXPECT_TRUE(config.warmup.enabled);
  EXPECT_TRUE(config.warmup.logarithmic);
  EXPECT_EQ(config.warmup.num_steps, 2);
  EXPECT_EQ(config.warmup.min_lr, 0);
  EXPECT_EQ(config.warmup.max_lr, 1e-3);
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

TEST(Config, AutoWarmupTakesTheOptimizersLearningRate) {
  const Config config = parse(with_batch(R"(
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                                                 "warmup_type": "linear", "warmup_num_steps": 50}},
    "optimizer": {"type": "AdamW", "params": {"lr": 0.25}})"));
  EXPECT_EQ(config.warmup.max_lr, 0.25);
  EXPECT_EQ(config.warmup.min_lr, 0);
  EXPECT_EQ(config.warmup.num_steps, 50);
  EXPECT_FALSE(config.warmup.logarithmic);
}

TEST(Config, SubGroupsAreWholeGrains) {
  EXPECT_EQ(parse(zero(R"("sub_group_size": 1)")).sub_group_numel, kGrainNumel);
  EXPECT_EQ(parse(zero(R"("sub_group_size": 12287)")).sub_group_numel, 2 * kGrainNumel);
}

TEST(Config, OffloadKeysDecideThePlacement) {
  const Config split = parse(zero(R"("offload_optimizer": {"device": "cpu", "ratio": 0.3},
                                     "offload_param": {"device": "cpu"})"));
  EXPECT_EQ(split.param.host, 1);
  for (const TierFractions& parts : split.optimizer_state) {
    EXPECT_EQ(parts.host, 0.3);
    EXPECT_EQ(parts.device, 0.7);
  }
  const Config nvme = parse(zero(R"("offload_optimizer": {"device": "nvme", "nvme_path": "/n"})"));
  for (const TierFractions& parts : nvme.optimizer_state) EXPECT_EQ(parts.nvme, 1);
  EXPECT_THAT(nvme.nvme_paths, ElementsAre("/n"));
}

TEST(Config, SeveralNvmePathsHaveWeightsOrAreMeasured) {
  const std::string paths = R"("zero_optimization": {"offload_optimizer": {
      "device": "nvme", "nvme_path": ["/a", "/b"]}})";
  const Config weighed =
      parse(R"({"train_batch_size": 1, "strata": {"nvme_weights": [3, 1]}, )" + paths + "}");
  EXPECT_THAT(weighed.nvme_paths, ElementsAre("/a", "/b"));
  EXPECT_THAT(weighed.nvme_weights, ElementsAre(3, 1));
  for (const std::string more : {"", R"("strata": {"nvme_weights": "auto"}, )"}) {
    const Config measured = parse(R"({"train_batch_size": 1, )" + more + paths + "}");
    EXPECT_THAT(measured.nvme_paths, ElementsAre("/a", "/b"));
    EXPECT_TRUE(measured.nvme_weights.empty());
  }
}

TEST(Config, StratasPlacementOverridesKindByKind) {
  const Config config = parse(R"({"train_batch_size": 1,
    "zero_optimization": {"offload_optimizer": {"device": "cpu", "nvme_path": ["/n"]}},
    "strata": {"placement": {"exp_avg": {"host": 0.63, "nvme": 0.37},
                             "param": {"device": 0.5, "host": 0.5}}}})");
  EXPECT_EQ(config.param.device, 0.5);
  EXPECT_EQ(config.optimizer_state[0].host, 1);
  EXPECT_EQ(config.optimizer_state[1].nvme, 0.37);
  EXPECT_EQ(config.optimizer_state[2].host, 1);
  EXPECT_THAT(config.nvme_paths, ElementsAre("/n"));
}

// A budget given beside device "nvme" is filled with state, unless a person has placed it, or wants
// it all on disk.
TEST(Config, StateIsPinnedWhereABudgetIsGivenForIt) {
  const auto pinning = [](const std::string& more) {
    return parse(R"({"train_batch_size": 1, "zero_optimization": {"offload_optimizer":
                     {"device": "nvme", "nvme_path": "/n"}}, "strata": {)" +
                 more + "}}")
        .pin_state;
  };
  EXPECT_EQ(pinning(""), PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB")"), PinChoice::automatic);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "placement": {"param": {"host": 1}})"),
            PinChoice::automatic);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "placement": {"master": {"nvme": 1}})"),
            PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "slots": 2)"), PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "pin_state": "never")"), PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "slots": 2, "pin_state": "always")"),
            PinChoice::always);
  EXPECT_EQ(parse(own(R"("host_memory": "1GiB")")).pin_state, PinChoice::never)
      << "nothing is on nvme";
}

TEST(Config, SizesAreBytesOrStringsWithAUnit) {
  const Config config = parse(R"({"train_batch_size": 1, "aio": {"block_size": "64KiB"},
      "strata": {"device_memory": "64MiB", "host_memory": "1.5GB"}})");
  EXPECT_EQ(config.device_memory, 64u << 20);
  EXPECT_EQ(config.host_memory, 1'500'000'000u);
  EXPECT_EQ(config.io_block_bytes, 64u << 10);
  EXPECT_EQ(parse(own(R"("host_memory": 1e9)")).host_memory, 1'000'000'000u);
}

TEST(Config, StratasOwnKeysLand) {
  const Config config = parse(R"({"train_batch_size": 1, "bf16": {"enabled": true},
    "gradient_clipping": 1, "aio": {"queue_depth": 64, "intra_op_parallelism": 3},
    "strata": {"device": "host", "compute_threads": 2, "optimizer_threads": 1, "overlap": false,
               "overlap_update": false, "speculate": "never",
               "staging_buffers": 5, "recompute": "always", "io_engine": "threads",
               "io_direct": "required", "slots": 2, "seed": 18446744073709551615}})");
  EXPECT_EQ(config.dtype, DType::bf16);
  EXPECT_EQ(config.gradient_clipping, 1);
  EXPECT_EQ(config.io_queue_depth, 64u);
  EXPECT_EQ(config.io_threads, 3);
  EXPECT_EQ(config.device, DeviceChoice::host);
  EXPECT_EQ(config.compute_threads, 2);
  EXPECT_EQ(config.optimizer_threads, 1);
  EXPECT_FALSE(config.overlap);
  EXPECT_FALSE(config.overlap_update);
  EXPECT_EQ(config.speculate, SpeculateChoice::never);
  EXPECT_EQ(config.staging_buffers, 5);
  EXPECT_EQ(parse(own(R"("staging_buffers": "auto")")).staging_buffers,
            Config::kAutoStagingBuffers);
  EXPECT_EQ(config.recompute, RecomputeChoice::always);
  EXPECT_EQ(config.io_engine, IoChoice::threads);
  EXPECT_EQ(config.io_direct, DirectChoice::required);
  EXPECT_EQ(config.slots, 2);
  EXPECT_EQ(config.seed, ~uint64_t{0});
}

TEST(Config, KeysWithoutEffectAreListedInTheTextsOrder) {
  const Config config = parse(R"({"wall_clock_breakdown": true, "train_batch_size": 1,
    "zero_optimization": {"stage3_prefetch_bucket_size": "auto", "overlap_comm": true},
    "fp16": {"enabled": false, "auto_cast": false}, "tensorboard": {"enabled": true},
    "autotuning": {"enabled": false, "fast": true}})");
  EXPECT_THAT(config.no_effect_keys,
              ElementsAre("wall_clock_breakdown", "zero_optimization.stage3_prefetch_bucket_size",
                          "zero_optimization.overlap_comm", "fp16.auto_cast", "tensorboard"));
}

std::string contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// STRATA_UPDATE_DOCS=1 writes the page instead of comparing it.
TEST(Config, TheReferencePageIsTheOptionTable) {
  const std::string path = STRATA_SOURCE_DIR "/docs/configuration.md";
  if (std::getenv("STRATA_UPDATE_DOCS") != nullptr) {
    std::ofstream(path) << configuration_reference();
  }
  EXPECT_EQ(contents(path), configuration_reference())
      << "run this test with STRATA_UPDATE_DOCS=1 to bring docs/configuration.md up to date";
}

}  // namespace
}  // namespace strata
