// The scale of the loss, and so of all gradients, in fp16: DeepSpeed's rules
// (deepspeed/runtime/fp16/loss_scaler.py, DynamicLossScaler).
//
// Steps that overflow lower it: the first hysteresis - 1 of them are let pass, each further one
// halves it. It doubles once more than `window` steps have gone well since the last overflow, or
// since the start, and after every further `window`; then the hysteresis is full again
// (consecutively: after each step that went well). A constant scale never changes. fp32 and bf16,
// whose exponents reach as far as gradients do, have the constant 1.
#pragma once

#include <cstdint>

#include "strata/config.h"

namespace strata::engine {

// Driver thread. Ranks decide on one overflow and so keep one scale.
class LossScaler {
 public:
  explicit LossScaler(const Config& config);

  // Of the next step's gradients.
  double scale() const { return state_.scale; }

  // What it goes on from.
  struct State {
    double scale = 0;        // 0: it is none that follows overflows
    int64_t hysteresis = 0;  // overflows until the scale halves, that one included
    int64_t good_steps = 0;  // since the last overflow
  };
  State state() const { return dynamic_ ? state_ : State(); }
  // A scale that does not follow overflows stays the configuration's.
  void restore(const State& state);

  // After each step; `overflow`: a gradient was not finite, and the step is skipped. Throws Error
  // when the scale would have to go below the smallest.
  void update(bool overflow);

 private:
  const LossScaleConfig config_;
  const bool dynamic_;
  State state_;
};

}  // namespace strata::engine
