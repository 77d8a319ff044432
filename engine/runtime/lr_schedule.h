// Learning rates and momenta by DeepSpeed's definitions.
#pragma once

#include <cstdint>

#include "strata/config.h"

namespace strata::engine {

struct StepRates {
  double lr = 0;  // of parameters whose group has no factor of its own
  double beta1 = 0;
  double beta2 = 0;
};

// What optimizer step `step`, counted from 1, runs at. DeepSpeed's schedulers (deepspeed/runtime/
// lr_schedules.py) move after the optimizer: step 1 runs at what the scheduler sets when it is
// made, and step k at the rates of its iteration k - 2. Throws ConfigError where a momentum that
// grows has reached 1.
StepRates step_rates(const Config& config, int64_t step);

}  // namespace strata::engine
