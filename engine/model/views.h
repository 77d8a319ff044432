// Small conversions between a layer's views and those of operations.
#pragma once

#include "strata/layer.h"
#include "strata/layer_ops.h"

namespace strata::models {

// A parameter's gradient as operations take it.
inline ops::GradOutput wanted(const ParameterGrad& grad) { return {grad.view, grad.accumulate}; }

// The same bytes with other dimensions.
inline TensorView reshaped(TensorView view, const Shape& shape) {
  view.shape = shape;
  return view;
}

}  // namespace strata::models
