// Learning rates by DeepSpeed's definitions.
#pragma once

#include <cstdint>

#include "strata/config.h"

namespace strata::engine {

// The learning rate of optimizer step `step`, counted from 1. WarmupLR (deepspeed/runtime/
// lr_schedules.py): the scheduler moves after the optimizer, so step 1 runs at min_lr and step k
// at the rate of iteration k - 2.
double learning_rate(const Config& config, int64_t step);

}  // namespace strata::engine
