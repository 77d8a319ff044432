// What the optimizer does to a parameter alone: Config::parameter_groups, resolved.
#pragma once

#include "strata/config.h"
#include "strata/layer.h"
#include "strata/model.h"

namespace strata::engine {

struct ParameterSetting {
  double weight_decay = 0;
  double lr_scale = 1;

  bool operator==(const ParameterSetting&) const = default;
};

ParameterSetting setting_of(const Parameter& parameter, const Config& config);

// Throws ConfigError for a pattern that no parameter's name is like.
void check_parameter_groups(const Model& model, const Config& config);

}  // namespace strata::engine
