// The fused update against PyTorch's AdamW, from the values that tests/golden/adamw.py recorded.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tests/kernels/ops/adamw_reference.h"
#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {
namespace {

using nlohmann::json;

json golden() {
  std::ifstream file(STRATA_GOLDEN_DIR "/adamw.json");
  return json::parse(file);
}

// Recorded as bit patterns.
std::vector<float> floats(const json& bits) {
  std::vector<float> values;
  for (const json& b : bits) values.push_back(std::bit_cast<float>(b.get<uint32_t>()));
  return values;
}

struct State {
  explicit State(const json& recorded)
      : master(floats(recorded.at("master"))),
        exp_avg(floats(recorded.at("exp_avg"))),
        exp_avg_sq(floats(recorded.at("exp_avg_sq"))) {}
  std::vector<float> master, exp_avg, exp_avg_sq;
};

AdamWScalars scalars_of(const json& run, int step) {
  AdamWScalars s{.lr = run.at("lr"),
                 .beta1 = run.at("beta1"),
                 .beta2 = run.at("beta2"),
                 .eps = run.at("eps"),
                 .weight_decay = run.at("weight_decay"),
                 .grad_scale = run.at("grad_scale")};
  s.bias_correction1 = 1 - std::pow(s.beta1, step);
  s.bias_correction2 = 1 - std::pow(s.beta2, step);
  return s;
}

// Each step starts from PyTorch's state, so that its bound is one step's. PyTorch's own arithmetic
// is fp32 with a few more roundings (products and sums apart): twice our bound for it.
TEST(PyTorchAdamW, EveryStepAgreesWithinRounding) {
  const json runs = golden().at("runs");
  ASSERT_GE(runs.size(), 3u);
  for (size_t r = 0; r < runs.size(); ++r) {
    State before(runs[r].at("start"));
    int step = 0;
    for (const json& recorded : runs[r].at("steps")) {
      const AdamWScalars scalars = scalars_of(runs[r], ++step);
      const std::vector<float> grad = floats(recorded.at("grad"));
      const State expected(recorded);
      State ours = before;
      std::vector<float> param(grad.size());
      adamw_update(scalars, {.master = ours.master.data(),
                             .exp_avg = ours.exp_avg.data(),
                             .exp_avg_sq = ours.exp_avg_sq.data(),
                             .grad = grad.data(),
                             .param = param.data(),
                             .numel = static_cast<int64_t>(grad.size()),
                             .param_dtype = DType::fp32});
      for (size_t i = 0; i < grad.size(); ++i) {
        const AdamWElement bound =
            adamw_reference(scalars, {before.master[i], before.exp_avg[i], before.exp_avg_sq[i]},
                            grad[i])
                .bound;
        const std::string where = "run " + std::to_string(r) + ", step " + std::to_string(step) +
                                  ", element " + std::to_string(i);
        EXPECT_NEAR(ours.exp_avg[i], expected.exp_avg[i], 3 * bound.exp_avg) << where;
        EXPECT_NEAR(ours.exp_avg_sq[i], expected.exp_avg_sq[i], 3 * bound.exp_avg_sq) << where;
        EXPECT_NEAR(ours.master[i], expected.master[i], 3 * bound.master) << where;
        EXPECT_EQ(param[i], ours.master[i]) << where;
      }
      before = expected;
    }
    EXPECT_GE(step, 5);
  }
}

}  // namespace
}  // namespace strata::ops
