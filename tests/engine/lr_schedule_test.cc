// Rates and momenta against those of DeepSpeed's own classes (tests/golden/schedules.py), from the
// same settings.
#include "engine/runtime/lr_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "strata/error.h"

namespace strata::engine {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::ThrowsMessage;

json deepspeed() {
  std::ifstream file(STRATA_GOLDEN_DIR "/schedules.json");
  return json::parse(file);
}

Config config_of(const json& run, double lr) {
  const json text = {{"train_batch_size", 1},
                     {"optimizer", {{"type", "AdamW"}, {"params", {{"lr", lr}}}}},
                     {"scheduler", {{"type", run.at("type")}, {"params", run.at("params")}}}};
  return Config::from_json(text.dump(), "ds.json", 1);
}

// Sums, products and quotients in the same order have the same bits. log and cos are the C
// library's, good to an ulp in each; nothing that follows makes more than 4 of it, of the highest
// rate.
double bound_of(const json& run, const std::vector<double>& rates) {
  const json& params = run.at("params");
  const bool exact =
      run.at("type") == "OneCycle" ||
      (run.at("type") != "WarmupCosineLR" && params.value("warmup_type", "log") == "linear");
  const double highest = *std::max_element(rates.begin(), rates.end());
  return exact ? 0 : 4 * std::numeric_limits<double>::epsilon() * highest;
}

TEST(LrSchedule, EveryStepHasDeepSpeedsRates) {
  const json golden = deepspeed();
  std::map<std::string, int> runs;
  for (const json& run : golden.at("runs")) {
    SCOPED_TRACE(run.at("type").dump() + " " + run.at("params").dump());
    const Config config = config_of(run, golden.at("lr"));
    const std::vector<double> lr = run.at("lr"), beta1 = run.at("beta1"), beta2 = run.at("beta2");
    const double bound = bound_of(run, lr);
    for (size_t i = 0; i < lr.size(); ++i) {
      const StepRates rates = step_rates(config, static_cast<int64_t>(i) + 1);
      EXPECT_NEAR(rates.lr, lr[i], bound) << "step " << i + 1;
      EXPECT_EQ(rates.beta1, beta1[i]) << "step " << i + 1;
      EXPECT_EQ(rates.beta2, beta2[i]) << "step " << i + 1;
    }
    ++runs[run.at("type")];
  }
  EXPECT_EQ(runs.size(), 4u);
  for (const auto& [type, count] : runs) EXPECT_GE(count, 3) << type;
}

TEST(LrSchedule, WithoutASchedulerTheRatesAreTheOptimizers) {
  Config config;
  config.optimizer = {.lr = 0.25, .beta1 = 0.5, .beta2 = 0.75};
  for (const int64_t step : {1, 2, 1000}) {
    const StepRates rates = step_rates(config, step);
    EXPECT_EQ(rates.lr, 0.25);
    EXPECT_EQ(rates.beta1, 0.5);
    EXPECT_EQ(rates.beta2, 0.75);
  }
}

TEST(LrSchedule, AMomentumThatGrowsToOneEndsTheRun) {
  Config config;
  config.schedule.kind = ScheduleKind::one_cycle;
  config.schedule.one_cycle = {
      .first_steps = 2, .second_steps = 2, .decay_steps = 1, .beta1_decay_rate = 0.05};
  // 0.9 * (1 + 0.05 * 2) at iteration 5 of a cycle of 4.
  EXPECT_NEAR(step_rates(config, 7).beta1, 0.99, 1e-12);
  EXPECT_THAT([&] { step_rates(config, 8); },
              ThrowsMessage<ConfigError>(
                  HasSubstr("OneCycle's momentum has grown to 1.03 at step 8 and has to stay below "
                            "1: lower \"scheduler.params.decay_mom_rate\"")));
}

}  // namespace
}  // namespace strata::engine
