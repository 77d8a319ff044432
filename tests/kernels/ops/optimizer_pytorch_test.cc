// The fused update against PyTorch's optimizers, and Lion's paper, from the values that
// tests/golden/optimizers.py recorded.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/kernels/ops/optimizer_reference.h"
#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {
namespace {

using nlohmann::json;

json golden_runs() {
  std::ifstream file(STRATA_GOLDEN_DIR "/optimizers.json");
  return json::parse(file).at("runs");
}

// Recorded as bit patterns.
std::vector<float> floats(const json& bits) {
  std::vector<float> values;
  for (const json& b : bits) values.push_back(std::bit_cast<float>(b.get<uint32_t>()));
  return values;
}

struct RecordedState {
  RecordedState(OptimizerKind kind, const json& recorded)
      : master(floats(recorded.at("master"))), exp_avg(master.size()), exp_avg_sq(master.size()) {
    if (moments_of(kind).exp_avg) exp_avg = floats(recorded.at("exp_avg"));
    if (moments_of(kind).exp_avg_sq) exp_avg_sq = floats(recorded.at("exp_avg_sq"));
  }
  std::vector<float> master, exp_avg, exp_avg_sq;
};

OptimizerScalars scalars_of(OptimizerKind kind, const json& run, int step) {
  OptimizerScalars s{.kind = kind,
                     .lr = run.at("lr"),
                     .beta1 = run.value("beta1", 0.0),
                     .beta2 = run.value("beta2", 0.0),
                     .momentum = run.value("momentum", 0.0),
                     .eps = run.value("eps", 0.0),
                     .weight_decay = run.at("weight_decay"),
                     .grad_scale = run.at("grad_scale")};
  s.bias_correction1 = 1 - std::pow(s.beta1, step);
  s.bias_correction2 = 1 - std::pow(s.beta2, step);
  return s;
}

// Our bound for us, and twice it for PyTorch: its arithmetic is fp32 with a few more roundings,
// products and sums apart.
void expect_near(float ours, float recorded, const Bounded& reference) {
  EXPECT_NEAR(ours, recorded, 3 * reference.bound);
}

// One step from `before`; returns the state after it as recorded.
RecordedState check_step(const OptimizerScalars& scalars, const RecordedState& before,
                         const json& recorded) {
  const std::vector<float> grad = floats(recorded.at("grad"));
  const RecordedState expected(scalars.kind, recorded);
  RecordedState ours = before;
  std::vector<float> param(grad.size());
  optimizer_update(scalars, {.master = ours.master.data(),
                             .exp_avg = ours.exp_avg.data(),
                             .exp_avg_sq = ours.exp_avg_sq.data(),
                             .grad = grad.data(),
                             .param = param.data(),
                             .numel = static_cast<int64_t>(grad.size()),
                             .param_dtype = DType::fp32});
  for (size_t i = 0; i < grad.size(); ++i) {
    SCOPED_TRACE("element " + std::to_string(i));
    const ReferenceElement reference = optimizer_reference(
        scalars, {{before.master[i]}, {before.exp_avg[i]}, {before.exp_avg_sq[i]}}, grad[i]);
    expect_near(ours.master[i], expected.master[i], reference.master);
    expect_near(ours.exp_avg[i], expected.exp_avg[i], reference.exp_avg);
    expect_near(ours.exp_avg_sq[i], expected.exp_avg_sq[i], reference.exp_avg_sq);
    EXPECT_EQ(param[i], ours.master[i]);
  }
  return expected;
}

class PyTorch : public ::testing::TestWithParam<OptimizerKind> {};

// Each step starts from PyTorch's state, so that its bound is one step's.
TEST_P(PyTorch, EveryStepAgreesWithinRounding) {
  const OptimizerKind kind = GetParam();
  int runs = 0;
  for (const json& run : golden_runs()) {
    if (run.at("kind") != name(kind)) continue;
    SCOPED_TRACE("run " + std::to_string(++runs) + " of " + std::string(name(kind)));
    RecordedState before(kind, run.at("start"));
    int step = 0;
    for (const json& recorded : run.at("steps")) {
      SCOPED_TRACE("step " + std::to_string(++step));
      before = check_step(scalars_of(kind, run, step), before, recorded);
    }
    EXPECT_GE(step, 5);
  }
  EXPECT_GE(runs, 2);
}

INSTANTIATE_TEST_SUITE_P(Every, PyTorch, ::testing::ValuesIn(kOptimizers),
                         [](const auto& test) { return std::string(name(test.param)); });

}  // namespace
}  // namespace strata::ops
