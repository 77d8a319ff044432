// The linear layer, on the calling thread's team.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/cpu/column_sums.h"
#include "kernels/ops/cpu/matmul.h"
#include "kernels/ops/layer_shapes.h"

namespace strata::ops::cpu {

// Scratch for any forward or backward of that shape.
size_t linear_workspace_bytes(MatmulCache& cache, const LinearShape& shape);

struct LinearForwardArgs {
  LinearShape shape;
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;      // may be null
  const void* residual = nullptr;  // may be null, or `out`
  void* out = nullptr;
  void* workspace = nullptr;
};
void linear_forward(MatmulCache& cache, const LinearForwardArgs& args);

struct LinearBackwardArgs {
  LinearShape shape;
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* out_grad = nullptr;
  void* x_grad = nullptr;  // may be null
  GradTarget weight_grad;
  GradTarget bias_grad;
  void* workspace = nullptr;
};
void linear_backward(MatmulCache& cache, const LinearBackwardArgs& args);

}  // namespace strata::ops::cpu
