#include "engine/runtime/lr_schedule.h"

#include <algorithm>
#include <cmath>

namespace strata::engine {

double learning_rate(const Config& config, int64_t step) {
  if (!config.warmup.enabled) return config.optimizer.lr;
  const WarmupConfig& warmup = config.warmup;
  if (step < 2) return warmup.min_lr;
  const auto steps = static_cast<double>(std::max<int64_t>(2, warmup.num_steps));
  const auto iteration = static_cast<double>(step - 2);
  double part = 1.0;
  if (iteration < steps) {
    part = warmup.logarithmic ? std::log(iteration + 1) / std::log(steps) : iteration / steps;
  }
  return warmup.min_lr + (warmup.max_lr - warmup.min_lr) * part;
}

}  // namespace strata::engine
