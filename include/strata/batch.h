// What a training step is fed: token ids or rows of values, and what they should predict.
#pragma once

#include <cstdint>
#include <span>

namespace strata {

struct BatchShape {
  int64_t batch = 0;     // rows B
  int64_t sequence = 0;  // tokens a row T; 1 where a row is one item

  int64_t tokens() const { return batch * sequence; }
  bool operator==(const BatchShape&) const = default;
};

// One micro-batch; a view, which must stay valid until the step returns. It has what its Model
// takes, and empty spans for what it does not.
struct Batch {
  BatchShape shape;
  std::span<const int32_t> tokens;       // (B, T)
  std::span<const int32_t> targets;      // (B, T); -1: not counted in the loss
  std::span<const float> features = {};  // (B*T, F), row-major; F is Model::features
};

}  // namespace strata
