// `strata train` as a person meets it: what it prints, writes and refuses, and its exit codes.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "strata/gpt2_files.h"
#include "tests/tools/train_command.h"

namespace strata::testing_support {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST_F(TrainCommandTest, TrainsAndSaysWhatItDid) {
  const Result result = train("--steps 4 --digest --metrics " + path("metrics.jsonl") +
                              " --trace " + path("trace.json"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("trigram"));
  EXPECT_THAT(result.out, HasSubstr("step 4/4"));
  EXPECT_THAT(result.out, HasSubstr("validation loss"));
  EXPECT_THAT(result.out, HasSubstr("nvme_write"));
  EXPECT_THAT(result.out, testing::ContainsRegex("digest [0-9a-f]{32}"));

  std::ifstream metrics(path("metrics.jsonl"));
  std::string line;
  int64_t steps = 0;
  while (std::getline(metrics, line)) {
    const json step = json::parse(line);
    if (step.contains("validation_loss")) continue;
    EXPECT_EQ(step.at("step"), ++steps);
    EXPECT_GT(step.at("loss"), 0.0);
    EXPECT_EQ(step.at("tokens"), 2 * 2 * 32);
    EXPECT_GT(step.at("moved").at("nvme_read"), 0);
    EXPECT_EQ(step.at("moved").at("nvme_read"), step.at("moved").at("nvme_write"));
    for (const char* key : {"forward", "backward", "step"})
      EXPECT_GT(step.at("phases").at(key), 0.0);
  }
  EXPECT_EQ(steps, 4);

  const json trace = json::parse(read(path("trace.json")));
  int reads = 0;
  for (const json& event : trace.at("traceEvents")) reads += event.value("cat", "") == "nvme_read";
  EXPECT_GT(reads, 0);
}

// A loss scale that starts too high, and comes down by more steps than another run may skip.
TEST_F(TrainCommandTest, SaysWhichStepsAnOverflowSkipped) {
  config_.erase("bf16");
  config_["fp16"] = {{"enabled", true}, {"initial_scale_power", 40}, {"hysteresis", 1}};
  const Result result = train("--steps 3 --metrics " + path("metrics.jsonl"));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("fp16 products are computed in fp32"));
  EXPECT_THAT(result.out, HasSubstr("step 1/3  skipped: a gradient is not finite at loss scale "
                                    "1099511627776\n"));
  EXPECT_THAT(result.out, testing::ContainsRegex("step 3/3  loss .* loss scale [0-9]+ "));

  std::ifstream metrics(path("metrics.jsonl"));
  std::string line;
  double scale = 0x1p40;
  int64_t done = 0, skipped = 0;
  while (std::getline(metrics, line)) {
    const json step = json::parse(line);
    if (step.contains("validation_loss")) continue;
    EXPECT_EQ(step.at("step"), done + 1);
    EXPECT_EQ(step.at("loss_scale"), scale);
    (step.at("skipped") ? skipped : done) += 1;
    if (step.at("skipped")) scale /= 2;
  }
  EXPECT_EQ(done, 3);
  EXPECT_GT(skipped, 20);
  EXPECT_THAT(result.out, HasSubstr(std::to_string(skipped) + " skipped"));
}

// What --device says counts, whatever the configuration says.
TEST_F(TrainCommandTest, TrainsOnTheDeviceThatIsAskedFor) {
  config_["strata"]["device"] = "cuda";
  const Result host = train("--steps 1 --device host");
  EXPECT_EQ(host.exit_code, 0) << host.err;
  EXPECT_THAT(host.out, testing::ContainsRegex("^device: host, [0-9]+ cores, "));
  const Result automatic = train("--steps 1 --device auto");
  EXPECT_EQ(automatic.exit_code, 0) << automatic.err;
  // And why no other.
  EXPECT_THAT(automatic.out, testing::ContainsRegex("^device: host, [0-9]+ cores \\([^)]+\\), "));
  const Result unknown = train("--steps 1 --device gpu");
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("--device: gpu not in {auto,cuda,host}"));
}

TEST_F(TrainCommandTest, AGpuThatIsNotThereIsRefused) {
  const Result result = train("--steps 1 --device cuda");
  if (result.exit_code == 0) GTEST_SKIP() << "there is one";
  expect_refused(result, 2, "strata.device is \"cuda\", but ");
  EXPECT_THAT(result.err, HasSubstr(": use \"host\" or \"auto\""));
}

TEST_F(TrainCommandTest, ANetworkThatAddsIsForGpus) {
  config_["strata"]["reduction"] = "fast";
  expect_refused(train("--steps 1 --device host"), 2,
                 "strata.reduction is \"fast\", which is for ranks on GPUs: use \"exact\", or set "
                 "strata.device to \"cuda\"");
}

TEST_F(TrainCommandTest, GivesUpOnAConstantLossScaleThatOverflows) {
  config_.erase("bf16");
  config_["fp16"] = {{"enabled", true}, {"loss_scale", 1e9}};
  const Result result = train("--steps 3");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("lower the learning rate or fp16.loss_scale"));
}

// The README's second command, for one step.
TEST_F(TrainCommandTest, TheExamplesTrain) {
  const std::string examples = std::string(STRATA_SOURCE_DIR) + "/docs/examples/";
  const Result result = strata("train --model " + examples + "gpt2-10m.json --config " + examples +
                               "nvme.json --data " + path("data.txt") + " --steps 1");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("step 1/1"));
}

// What the README shows is what the build compiles.
TEST_F(TrainCommandTest, TheReadmeShowsTheExample) {
  const std::string source = STRATA_SOURCE_DIR;
  EXPECT_THAT(read(source + "/README.md"),
              HasSubstr("```cpp\n" + read(source + "/docs/examples/train_gpt2.cc") + "```"));
}

TEST_F(TrainCommandTest, ASampleIsAsLongAsAsked) {
  const Result result = train("--steps 1 --sample 40");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("sample: 40 bytes after the first 16 of the held-out text"));
  const size_t begin = result.out.find("---\n") + 4;
  EXPECT_EQ(result.out.find("\n---\n", begin) - begin, 16u + 40u);
  const auto sample = [](const Result& run) { return run.out.substr(run.out.find("sample: ")); };
  EXPECT_EQ(sample(train("--steps 1 --sample 40")), sample(result));
  // Of scores that no place holds all of.
  config_["strata"]["tiles"] = 3;
  const Result tiled = train("--steps 1 --sample 40");
  EXPECT_EQ(tiled.exit_code, 0) << tiled.err;
  EXPECT_THAT(tiled.out, HasSubstr("sample: 40 bytes after"));
}

TEST_F(TrainCommandTest, TheSameSeedGivesTheSameDigest) {
  const auto digest = [](const Result& result) {
    return result.out.substr(result.out.find("digest "));
  };
  const Result first = train("--steps 2 --digest --seed 5");
  EXPECT_EQ(digest(first), digest(train("--steps 2 --digest --seed 5")));
  EXPECT_NE(digest(first), digest(train("--steps 2 --digest --seed 6")));
}

// Weights of zeros give every byte the same score.
TEST_F(TrainCommandTest, StartsWithTheWeightsOfADirectory) {
  models::Gpt2Config gpt2 = models::Gpt2Config::from_json(model_.dump(), "model.json");
  const auto zeros = [](std::string_view, int64_t, std::span<float> out) {
    std::fill(out.begin(), out.end(), 0.0f);
  };
  models::write_gpt2(path("zeros"), gpt2, zeros);
  ASSERT_EQ(train("--steps 1 --init-from " + path("zeros") + " --metrics " + path("m")).exit_code,
            0);
  const std::string metrics = read(path("m"));
  const auto first = nlohmann::json::parse(metrics.substr(0, metrics.find('\n')));
  EXPECT_NEAR(first.at("loss"), std::log(256.0), 1e-6);

  expect_refused(train("--steps 1 --init-from " + path("none")), 2, path("none"));
  gpt2.n_layer = 1;
  models::write_gpt2(path("shallow"), gpt2, zeros);
  expect_refused(train("--steps 1 --init-from " + path("shallow")), 2,
                 "'transformer.h.1.ln_1.weight' is missing");
}

TEST_F(TrainCommandTest, LeavesNothingOnTheDisk) {
  ASSERT_EQ(train().exit_code, 0);
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    EXPECT_THAT(
        (std::vector<std::string>{"data.txt", "model.json", "ds_config.json", "out", "err"}),
        testing::Contains(name));
  }
}

TEST_F(TrainCommandTest, HelpAndVersion) {
  EXPECT_EQ(strata("--help").exit_code, 0);
  EXPECT_THAT(strata("--help").out, HasSubstr("Exit codes"));
  EXPECT_THAT(strata("train --help").out, HasSubstr("--config"));
  EXPECT_THAT(strata("--version").out, HasSubstr("parallel_for"));
  EXPECT_EQ(strata("train").exit_code, 2);
  EXPECT_EQ(strata("fly").exit_code, 2);
}

TEST_F(TrainCommandTest, RefusesMissingFiles) {
  std::filesystem::remove(path("data.txt"));
  expect_refused(train(), 2, path("data.txt"));
  write("data.txt", "too short");
  expect_refused(train(), 2, path("data.txt"));
  expect_refused(strata("train --model " + path("none.json") + " --config " +
                        path("ds_config.json") + " --data " + path("data.txt") + " --steps 1"),
                 2, path("none.json"));
}

TEST_F(TrainCommandTest, RefusesPathsThatCannotBeWritten) {
  expect_refused(train("--steps 1 --metrics " + path("no/such/metrics")), 2, "--metrics");
  expect_refused(train("--steps 1 --trace " + path("no/such/trace")), 2, "--trace");
  config_["zero_optimization"]["offload_optimizer"]["nvme_path"] = path("no/such/nvme");
  expect_refused(train(), 2, "nvme_path");
}

TEST_F(TrainCommandTest, RefusesWhatDoesNotFit) {
  config_["strata"]["device_memory"] = 100000;
  expect_refused(train(), 3, "the device tier needs");
}

TEST_F(TrainCommandTest, RefusesBadConfiguration) {
  const json good = config_;
  config_["zero_optimization"]["stage"] = 4;
  expect_refused(train(), 2, "stage");
  config_ = good;
  config_["train_batch_size"] = 7;
  expect_refused(train(), 2, "train_batch_size");
  config_ = good;
  config_["gradient_cliping"] = 1.0;
  expect_refused(train(), 2, "gradient_clipping");
  config_ = good;
  model_["vocab_size"] = 100;
  expect_refused(train(), 2, "vocab_size");
}

}  // namespace
}  // namespace strata::testing_support
