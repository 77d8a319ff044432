#include <fmt/format.h>

#include <string>

#include "engine/model/gpt2_options.h"
#include "strata/error.h"
#include "strata/model.h"

namespace strata::models {

Gpt2Config Gpt2Config::from_json(const std::string& text, const std::string& source) {
  Gpt2Draft draft;
  const Json root = parse_json_object(text, source);
  options::take_all(root, gpt2_table(draft), source);
  Gpt2Config& config = draft.config;
  config.layer_norm_epsilon = static_cast<float>(draft.layer_norm_epsilon);
  config.initializer_range = static_cast<float>(draft.initializer_range);
  if (config.n_embd % config.n_head != 0) {
    throw ConfigError(fmt::format(
        "{}: \"n_embd\" {} is not a multiple of \"n_head\" {}: heads need equal numbers of "
        "channels, so change one of them",
        source, config.n_embd, config.n_head));
  }
  if (draft.n_ctx && *draft.n_ctx != config.n_positions) {
    throw ConfigError(fmt::format(
        "{}: \"n_ctx\" is {} but \"n_positions\" is {}, and both mean the longest sequence: remove "
        "\"n_ctx\"",
        source, *draft.n_ctx, config.n_positions));
  }
  return config;
}

std::string Gpt2Config::to_json() const {
  // Numbers of 32 bits are written as short as they are.
  const auto decimal = [](float value) { return std::stod(fmt::format("{}", value)); };
  Json json;
  json["model_type"] = "gpt2";
  json["vocab_size"] = vocab_size;
  json["n_positions"] = n_positions;
  json["n_embd"] = n_embd;
  json["n_layer"] = n_layer;
  json["n_head"] = n_head;
  json["n_inner"] = n_inner > 0 ? Json(n_inner) : Json(nullptr);
  json["activation_function"] = "gelu_new";
  json["layer_norm_epsilon"] = decimal(layer_norm_epsilon);
  json["initializer_range"] = decimal(initializer_range);
  json["embd_pdrop"] = embd_pdrop;
  json["resid_pdrop"] = resid_pdrop;
  json["attn_pdrop"] = attn_pdrop;
  return json.dump();
}

Gpt2Config Gpt2Config::from_file(const std::string& path) {
  return from_json(read_text_file(path), path);
}

}  // namespace strata::models
