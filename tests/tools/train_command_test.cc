// `strata train` as a person meets it: what it prints, writes and refuses, and its exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tests/temporary_directory.h"

namespace {

using nlohmann::json;
using testing::HasSubstr;

struct Result {
  int exit_code = 0;
  std::string out;
  std::string err;
};

class TrainCommandTest : public testing::Test {
 protected:
  TrainCommandTest() {
    model_ = {{"model_type", "gpt2"}, {"vocab_size", 256}, {"n_positions", 32},
              {"n_embd", 64},         {"n_layer", 2},      {"n_head", 4}};
    config_ = {{"train_micro_batch_size_per_gpu", 2},
               {"gradient_accumulation_steps", 2},
               {"bf16", {{"enabled", true}}},
               {"gradient_clipping", 1.0},
               {"optimizer", {{"type", "AdamW"}, {"params", {{"lr", 1e-3}}}}},
               {"zero_optimization",
                {{"stage", 3},
                 {"sub_group_size", 20000},
                 {"offload_optimizer", {{"device", "nvme"}, {"nvme_path", directory_}}}}}};
    std::string text;
    for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * i % 97) + " of the text\n";
    write("data.txt", text);
  }

  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
  }
  static std::string read(const std::string& file) {
    std::stringstream text;
    text << std::ifstream(file).rdbuf();
    return text.str();
  }

  Result strata(const std::string& arguments) const {
    const std::string command =
        std::string(STRATA_BINARY) + " " + arguments + " >" + path("out") + " 2>" + path("err");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(path("out")), read(path("err"))};
  }
  Result train(const std::string& more = "--steps 3") const {
    write("model.json", model_.dump());
    write("ds_config.json", config_.dump());
    return strata("train --model " + path("model.json") + " --config " + path("ds_config.json") +
                  " --data " + path("data.txt") + " " + more);
  }
  // Refused before any work: the exit code, one line, nothing on standard output.
  void expect_refused(const Result& result, int exit_code, const std::string& saying) const {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_THAT(result.err, HasSubstr(saying));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.out, "");
  }

  const strata::testing_support::TemporaryDirectory temporary_;
  const std::string& directory_ = temporary_.path();
  json model_;
  json config_;
};

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

// The README's second command, for one step.
TEST_F(TrainCommandTest, TheExamplesTrain) {
  const std::string examples = std::string(STRATA_SOURCE_DIR) + "/docs/examples/";
  const Result result = strata("train --model " + examples + "gpt2-10m.json --config " + examples +
                               "nvme.json --data " + path("data.txt") + " --steps 1");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("step 1/1"));
}

TEST_F(TrainCommandTest, TheSameSeedGivesTheSameDigest) {
  const auto digest = [](const Result& result) {
    return result.out.substr(result.out.find("digest "));
  };
  const Result first = train("--steps 2 --digest --seed 5");
  EXPECT_EQ(digest(first), digest(train("--steps 2 --digest --seed 5")));
  EXPECT_NE(digest(first), digest(train("--steps 2 --digest --seed 6")));
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
  config_["zero_optimization"]["stage"] = 2;
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
