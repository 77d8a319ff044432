// What a training step is fed: token ids and the ids they should predict.
#pragma once

#include <cstdint>
#include <span>

namespace strata {

struct BatchShape {
  int64_t batch = 0;     // rows B
  int64_t sequence = 0;  // tokens a row T

  int64_t tokens() const { return batch * sequence; }
  bool operator==(const BatchShape&) const = default;
};

// One micro-batch; a view, which must stay valid until the step returns.
struct Batch {
  BatchShape shape;
  std::span<const int32_t> tokens;   // (B, T)
  std::span<const int32_t> targets;  // (B, T); -1: not counted in the loss
};

}  // namespace strata
