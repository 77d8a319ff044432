// The tiny GPT-2 that PyTorch computed (tests/golden/README.md), trained by an engine.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "strata/engine.h"
#include "strata/text_corpus.h"
#include "tests/engine/planted_ops.h"
#include "tests/engine/safetensors_fixture.h"

namespace strata::testing_support {

// Tensors by name: "loss", "logits", "grad.NAME" for each parameter.
using Quantities = std::map<std::string, std::vector<double>>;

// What every run starts from. Read once, immutable.
struct GoldenInputs {
  GoldenInputs();

  SafetensorsFixture file;
  models::Gpt2Config model;
  OptimizerConfig optimizer;
  double max_grad_norm = 0;
  std::vector<OwnedBatch> batches;      // one a step
  std::vector<std::string> parameters;  // names
};
const GoldenInputs& golden_inputs();

// gpt2_fp32, gpt2_bf16 or gpt2_fp16.
SafetensorsFixture golden_results(DType dtype);
SafetensorsFixture golden_file(const std::string& name);
// A fixture's (steps, B, T) tokens and targets.
std::vector<OwnedBatch> read_batches(const SafetensorsFixture& file);
// Gives an engine PyTorch's weights, rounded as parameters of that dtype are.
void write_golden_weights(Engine& engine, DType round_to = DType::fp32, int64_t tiles = 1);
// The results of batch 0 by fp64 arithmetic.
Quantities golden_truth(const SafetensorsFixture& results);

// gpt2_dropout, and what its run has that the others do not.
struct GoldenDropout {
  GoldenDropout();

  SafetensorsFixture file;
  models::Gpt2Config model;
  uint64_t seed = 0;
};

// In fp16: every gradient of these batches fits, and the smallest that matter are normal numbers.
inline constexpr double kGoldenLossScale = 1024;

// One engine that holds PyTorch's weights.
class GoldenRun {
 public:
  struct Options {
    DType dtype = DType::fp32;
    DType round_weights_to = DType::fp32;
    // What the optimizer does; by default the weights stay as they are.
    OptimizerConfig optimizer = {.lr = 0};
    // The masks of dropout are those of the steps that the engine has taken.
    models::Gpt2Config model = golden_inputs().model;
    uint64_t seed = 1;
    int64_t tiles = 1;
  };
  explicit GoldenRun(const Options& options);

  // One step on a batch, with that error in the layers' mathematics.
  StepResult step(size_t batch, const std::optional<Plant>& plant = {});
  // Its loss, its logits and its gradients before clipping.
  Quantities measure(size_t batch, const std::optional<Plant>& plant = {});
  // What the last step computed.
  const OpProbe& probe() const { return *probe_; }

 private:
  Engine make_engine(const Options& options);

  const int64_t tiles_;
  const std::unique_ptr<OpProbe> probe_ = std::make_unique<OpProbe>();  // before what uses it
  Engine engine_;
};

}  // namespace strata::testing_support
