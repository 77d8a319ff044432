// A micro-batch as it lies on the device, and before that in its staging on the host: what of
// tokens, targets and features the model takes, one after the other.
#pragma once

#include <cstddef>

#include "strata/batch.h"
#include "strata/carver.h"
#include "strata/model.h"

namespace strata::engine {

struct BatchViews {
  TensorView tokens;    // (B, T) int32
  TensorView targets;   // (B, T) int32
  TensorView features;  // (B*T, F)
  size_t bytes = 0;

  // With a null base it only measures.
  BatchViews(std::byte* base, const Model& model, const BatchShape& shape, DType dtype) {
    Carver carver(base);
    const Shape ids = {shape.batch, shape.sequence};
    if (model.vocab_size > 0) tokens = carver.take(DType::int32, ids);
    if (model.target_classes() > 0) targets = carver.take(DType::int32, ids);
    if (model.features > 0) features = carver.take(dtype, {shape.tokens(), model.features});
    bytes = carver.used_bytes();
  }
};

}  // namespace strata::engine
