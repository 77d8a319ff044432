// The keys of a GPT-2's config.json.
#pragma once

#include "engine/config/option.h"
#include "strata/model.h"

namespace strata::models {

struct Gpt2Draft {
  Gpt2Config config;
  double layer_norm_epsilon = 1e-5;
  double initializer_range = 0.02;
  std::optional<int64_t> n_ctx;  // an old second name of n_positions
};

// The table, filling `draft`, which must outlive it.
options::Table gpt2_table(Gpt2Draft& draft);

}  // namespace strata::models
