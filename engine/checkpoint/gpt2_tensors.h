// What a GPT-2's files in Hugging Face's layout hold. Parameters have Hugging Face's names here,
// and linear weights lie (in, out) as in its Conv1D, so a tensor is a parameter as it is.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "strata/model.h"

namespace strata::models {

inline constexpr std::string_view kWeightsFile = "model.safetensors";
inline constexpr std::string_view kIndexFile = "model.safetensors.index.json";
inline constexpr std::string_view kConfigFile = "config.json";

// Of the model without tiles, in order.
inline std::vector<Parameter> gpt2_parameters(const Gpt2Config& config) {
  std::vector<Parameter> parameters;
  for (const auto& layer : gpt2(config).layers) {
    for (Parameter& parameter : layer->parameters()) parameters.push_back(std::move(parameter));
  }
  return parameters;
}

}  // namespace strata::models
