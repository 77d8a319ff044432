// The loss scale against what DeepSpeed's own class did (tests/golden/loss_scales.py).
#include "engine/runtime/loss_scaler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "strata/error.h"

namespace strata::engine {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

nlohmann::json deepspeed_runs() {
  std::ifstream file(STRATA_GOLDEN_DIR "/loss_scales.json");
  return nlohmann::json::parse(file).at("runs");
}

Config config_of(const nlohmann::json& run) {
  Config config;
  config.dtype = DType::fp16;
  config.loss_scale.initial_power = run.at("initial_scale_power");
  config.loss_scale.window = run.at("loss_scale_window");
  config.loss_scale.hysteresis = run.at("hysteresis");
  config.loss_scale.consecutive_hysteresis = run.at("consecutive_hysteresis");
  config.loss_scale.min_scale = run.at("min_loss_scale");
  return config;
}

TEST(LossScaler, FollowsOverflowsAsDeepSpeeds) {
  const nlohmann::json runs = deepspeed_runs();
  std::set<bool> endings;
  for (const nlohmann::json& run : runs) {
    const std::string overflows = run.at("overflows");
    const std::vector<double> scales = run.at("scales");
    const bool raises = run.at("raises");
    endings.insert(raises);
    LossScaler scaler(config_of(run));
    EXPECT_EQ(scaler.scale(), scales[0]);
    for (size_t step = 0; step < overflows.size(); ++step) {
      const bool overflow = overflows[step] == '1';
      if (raises && step + 1 == overflows.size()) {
        EXPECT_THROW(scaler.update(overflow), Error) << run;
        break;
      }
      scaler.update(overflow);
      ASSERT_EQ(scaler.scale(), scales[step + 1]) << "step " << step << " of " << run;
    }
  }
  EXPECT_EQ(endings.size(), 2u)
      << "the fixture has runs that end at the smallest scale, and others";
}

TEST(LossScaler, SaysWhatToChangeAtTheSmallestScale) {
  Config config;
  config.dtype = DType::fp16;
  config.loss_scale = {.initial_power = 3, .hysteresis = 1, .min_scale = 8};
  LossScaler scaler(config);
  EXPECT_THAT([&] { scaler.update(true); },
              ThrowsMessage<Error>(HasSubstr("at the smallest loss scale, 8 (fp16.min_loss_scale): "
                                             "lower the learning rate")));
}

TEST(LossScaler, AConstantScaleStays) {
  Config config;
  config.dtype = DType::fp16;
  config.loss_scale.constant = 0.5;
  config.loss_scale.window = 1;
  LossScaler scaler(config);
  for (const bool overflow : {true, true, true, false, false, false}) {
    scaler.update(overflow);
    EXPECT_EQ(scaler.scale(), 0.5);
  }
}

TEST(LossScaler, OtherDTypesHaveNone) {
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    Config config;
    config.dtype = dtype;
    config.loss_scale = {.constant = 8, .window = 1, .hysteresis = 1};
    LossScaler scaler(config);
    for (const bool overflow : {false, false, false, true, true}) {
      EXPECT_EQ(scaler.scale(), 1);
      scaler.update(overflow);
    }
  }
}

}  // namespace
}  // namespace strata::engine
