// The mathematics of layers with an error planted in it, to prove that a test would notice.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "strata/layer_ops.h"

namespace strata::testing_support {

inline constexpr double kPlantedError = 0.01;

// Everything that GPT-2 has a LayerOps compute for others, as method.member. It has no RMS norm.
inline constexpr std::array kOpOutputs = std::to_array<std::string_view>({
    "embedding_forward.out",
    "embedding_backward.token_table",
    "embedding_backward.position_table",
    "layer_norm_forward.out",
    "layer_norm_forward.mean",
    "layer_norm_forward.rstd",
    "layer_norm_backward.x_grad",
    "layer_norm_backward.weight_grad",
    "layer_norm_backward.bias_grad",
    "linear_forward.out",
    "linear_backward.x_grad",
    "linear_backward.weight_grad",
    "linear_backward.bias_grad",
    "gelu_forward.out",
    "gelu_backward.x_grad",
    "dropout.out",
    "add.out",
    "attention_forward.out",
    "attention_forward.saved",
    "attention_backward.qkv_grad",
    "cross_entropy.loss",
    "cross_entropy.logits_grad",
    "cross_entropy_part.statistics",
    "cross_entropy_finish.loss",
    "cross_entropy_finish.statistics",
    "cross_entropy_part_backward.logits_grad",
});

// One error: the output's own part (without what it is added to) times 1 + kPlantedError, or
// without the bias, or its first element infinite.
struct Plant {
  enum class Kind : uint8_t { scaled, bias_dropped, infinite };
  static constexpr int kEveryCall = -1;

  std::string_view output;  // of kOpOutputs
  int call = kEveryCall;    // which one since begin(), from 0
  Kind kind = Kind::scaled;
};

// What the ops' queue does before it computes an output.
struct Interlude {
  std::string_view output;  // of kOpOutputs
  int call = 0;             // which one since begin(), from 0
  std::function<void()> action;
};

// "linear_forward.out, call 3"
std::string name(const Plant& plant);

// What a test tells the ops and learns from them. begin(), and reading, while no work is under way.
class OpProbe {
 public:
  // Forgets what was seen. From now on there is this error, and this interlude, or none.
  void begin(const std::optional<Plant>& plant = {},
             const std::optional<Interlude>& interlude = {});

  // How often each output was computed, and how often with a bias.
  const std::map<std::string_view, int>& calls() const { return calls_; }
  const std::map<std::string_view, int>& biased_calls() const { return biased_calls_; }
  // What the last cross-entropy was given: (N, V), or its parts, (N, Vp) each.
  const std::vector<std::vector<float>>& logits() const { return logits_; }

 private:
  friend class PlantedOps;

  std::optional<Plant> plant_;
  std::optional<Interlude> interlude_;
  std::map<std::string_view, int> calls_, biased_calls_;
  std::vector<std::vector<float>> logits_;
};

// `inner` with the errors that `probe` asks for. `probe` must outlive the result.
std::unique_ptr<ops::LayerOps> plant_errors(std::unique_ptr<ops::LayerOps> inner, OpProbe& probe);

}  // namespace strata::testing_support
