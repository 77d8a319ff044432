// Configuration is honoured or refused at start, in one sentence that says what to change.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/engine/config_text.h"

namespace strata {
namespace {

using testing::ElementsAre;
using testing::StartsWith;
using testing_support::case_name;
using testing_support::ConfigRefuses;
using testing_support::error_of;
using testing_support::own;
using testing_support::parse;
using testing_support::Refusal;
using testing_support::with_batch;

TEST_P(ConfigRefuses, InOneSentence) { EXPECT_EQ(error_of(GetParam().text), GetParam().error); }

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

TEST(ConfigText, NestsNoDeeperThanRecursionMayGo) {
  const auto nested = [](size_t levels) {
    return "{\"gradient_clipping\": " + std::string(levels, '[') + std::string(levels, ']') + "}";
  };
  const std::string refusal = "ds.json: values nest in more than 100 levels: write them flatter";
  EXPECT_NE(error_of(nested(99)), refusal);
  EXPECT_EQ(error_of(nested(101)), refusal);
  EXPECT_EQ(error_of(nested(3'000'000)), refusal);
}

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
        Refusal{"KeyWithItsSections", with_batch(R"("strata.seed": 3)"),
                "ds.json: \"strata.seed\" has a dot in its name: write the sections before it as "
                "objects"},
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
               "io_direct": "required", "slots": 2, "watchdog": 0, "seed": 18446744073709551615}})");
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
  EXPECT_EQ(config.watchdog_s, 0);
  EXPECT_EQ(config.seed, ~uint64_t{0});
}

TEST(Config, KeysWithoutEffectAreListedInTheTextsOrder) {
  const Config config = parse(R"({"wall_clock_breakdown": true, "train_batch_size": 1,
    "zero_optimization": {"stage3_max_reuse_distance": "auto", "overlap_comm": true},
    "fp16": {"enabled": false, "auto_cast": false}, "tensorboard": {"enabled": true},
    "autotuning": {"enabled": false, "fast": true}})");
  EXPECT_THAT(config.no_effect_keys,
              ElementsAre("wall_clock_breakdown", "zero_optimization.stage3_max_reuse_distance",
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
