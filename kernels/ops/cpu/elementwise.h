// GELU and addition, on the calling thread's team. Each output element depends on the input
// elements of its index alone, so outputs may be inputs.
#pragma once

#include <cstddef>
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

// out = x + y.
struct AddArgs {
  const void* x = nullptr;
  const void* y = nullptr;
  void* out = nullptr;
  int64_t numel = 0;
  DType dtype = DType::fp32;
};
void add(const AddArgs& args);
void copy(const void* x, void* out, size_t bytes);

}  // namespace strata::ops::cpu
