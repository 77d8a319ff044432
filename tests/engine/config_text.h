// Texts of configurations, and what becomes of them, for the tests of Config.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "strata/config.h"
#include "strata/error.h"

namespace strata::testing_support {

// A configuration with `keys` beside a batch size, or inside one section of it.
inline std::string with_batch(const std::string& keys) {
  return R"({"train_micro_batch_size_per_gpu": 2)" + (keys.empty() ? "" : ", " + keys) + "}";
}
inline std::string zero(const std::string& keys) {
  return with_batch("\"zero_optimization\": {" + keys + "}");
}
inline std::string own(const std::string& keys) { return with_batch("\"strata\": {" + keys + "}"); }

inline Config parse(const std::string& text) { return Config::from_json(text, "ds.json", 1); }

inline std::string error_of(const std::string& text, int world_size = 1) {
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

inline void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.text; }
inline std::string case_name(const testing::TestParamInfo<Refusal>& tested) {
  return tested.param.name;
}

// Its one test is in config_test.cc.
class ConfigRefuses : public testing::TestWithParam<Refusal> {};

}  // namespace strata::testing_support
