// `strata train` as a command, for tests of what a person meets.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tests/temporary_directory.h"

namespace strata::testing_support {

// Path of the command under test.
std::string strata_binary();

struct Result {
  int exit_code = 0;
  std::string out;
  std::string err;
};

// A tiny model, a configuration with its state on disk and a text, in a directory of their own.
class TrainCommandTest : public ::testing::Test {
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

  Result run(const std::string& command) const {
    const int status = std::system((command + " >" + path("out") + " 2>" + path("err")).c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(path("out")), read(path("err"))};
  }
  Result strata(const std::string& arguments) const {
    return run(strata_binary() + " " + arguments);
  }
  // Arguments that train; writes the files they name.
  std::string training(const std::string& more) const {
    write("model.json", model_.dump());
    write("ds_config.json", config_.dump());
    return "train --model " + path("model.json") + " --config " + path("ds_config.json") +
           " --data " + path("data.txt") + " " + more;
  }
  Result train(const std::string& more = "--steps 3") const { return strata(training(more)); }
  // Refused before any work: the exit code, one line, nothing on standard output.
  void expect_refused(const Result& result, int exit_code, const std::string& saying) const {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_THAT(result.err, ::testing::HasSubstr(saying));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.out, "");
  }

  const TemporaryDirectory temporary_;
  const std::string& directory_ = temporary_.path();
  nlohmann::json model_;
  nlohmann::json config_;
};

}  // namespace strata::testing_support
