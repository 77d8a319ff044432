#include "engine/zero/parameter_setting.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <string>
#include <vector>

#include "strata/error.h"

namespace strata::engine {
namespace {

bool is_like(const std::string& name, const std::string& pattern) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

// Tiles belong to groups as what they are slices of does.
const std::string& name_in_model(const Parameter& parameter) {
  return parameter.slice ? parameter.slice->of : parameter.name;
}

}  // namespace

ParameterSetting setting_of(const Parameter& parameter, const Config& config) {
  ParameterSetting setting;
  if (parameter.weight_decay) setting.weight_decay = config.optimizer.weight_decay;
  for (const ParameterGroup& group : config.parameter_groups) {
    const std::string& name = name_in_model(parameter);
    const bool belongs =
        std::any_of(group.match.begin(), group.match.end(),
                    [&](const std::string& pattern) { return is_like(name, pattern); });
    if (!belongs) continue;
    return {group.weight_decay.value_or(setting.weight_decay), group.lr_scale};
  }
  return setting;
}

void check_parameter_groups(const Model& model, const Config& config) {
  std::vector<std::string> names;
  for (const auto& layer : model.layers) {
    for (const Parameter& parameter : layer->parameters()) {
      names.push_back(name_in_model(parameter));
    }
  }
  for (size_t g = 0; g < config.parameter_groups.size(); ++g) {
    for (const std::string& pattern : config.parameter_groups[g].match) {
      const bool found = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
        return is_like(name, pattern);
      });
      if (found) continue;
      throw ConfigError(
          fmt::format("\"strata.parameter_groups[{}].match\" has the pattern \"{}\", which is like "
                      "no parameter's name: correct or remove it (there is \"{}\")",
                      g, pattern, names.empty() ? "" : names.front()));
    }
  }
}

}  // namespace strata::engine
