#include <fmt/format.h>

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

Gpt2Config Gpt2Config::from_file(const std::string& path) {
  return from_json(read_text_file(path), path);
}

}  // namespace strata::models
