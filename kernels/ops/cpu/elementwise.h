// GELU and addition, on the calling thread's team. Each output element depends on the input
// elements of its index alone, so outputs may be inputs.
#pragma once

#include <cstdint>

#include "strata/dtype.h"

namespace strata::ops::cpu {

struct GeluForwardArgs {
  const void* x = nullptr;
  void* out = nullptr;
  int64_t numel = 0;
  DType dtype = DType::fp32;
};
void gelu_forward(const GeluForwardArgs& args);

struct GeluBackwardArgs {
  const void* x = nullptr;
  const void* out_grad = nullptr;
  void* x_grad = nullptr;
  int64_t numel = 0;
  DType dtype = DType::fp32;
};
void gelu_backward(const GeluBackwardArgs& args);

}  // namespace strata::ops::cpu
