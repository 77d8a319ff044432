// DeepSpeed's WarmupLR, values worked out from its definition.
#include "engine/runtime/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace strata::engine {
namespace {

Config warmup(bool logarithmic) {
  Config config;
  config.warmup = {true, 1e-4, 1e-3, 10, logarithmic};
  return config;
}

TEST(LrScheduleTest, WithoutASchedulerTheRateIsTheOptimizers) {
  Config config;
  config.optimizer.lr = 0.25;
  EXPECT_EQ(learning_rate(config, 1), 0.25);
  EXPECT_EQ(learning_rate(config, 1000), 0.25);
}

TEST(LrScheduleTest, LogarithmicWarmup) {
  const Config config = warmup(true);
  EXPECT_DOUBLE_EQ(learning_rate(config, 1), 1e-4);
  EXPECT_DOUBLE_EQ(learning_rate(config, 2), 1e-4);  // log(1) = 0
  EXPECT_DOUBLE_EQ(learning_rate(config, 3), 1e-4 + 9e-4 * std::log(2.0) / std::log(10.0));
  EXPECT_DOUBLE_EQ(learning_rate(config, 11), 1e-3);
  EXPECT_DOUBLE_EQ(learning_rate(config, 12), 1e-3);
  EXPECT_DOUBLE_EQ(learning_rate(config, 500), 1e-3);
}

TEST(LrScheduleTest, LinearWarmup) {
  const Config config = warmup(false);
  EXPECT_DOUBLE_EQ(learning_rate(config, 2), 1e-4);
  EXPECT_DOUBLE_EQ(learning_rate(config, 7), 1e-4 + 9e-4 * 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(config, 12), 1e-3);
}

}  // namespace
}  // namespace strata::engine
