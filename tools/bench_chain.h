// What the fused step is measured against: the same step as a chain of passes, each with one
// purpose and each as fast as we can make it.
//
// AdamW with fp32 state. Passes run on the calling thread's team and on the instruction set in
// force. Spans are whole grains and start on a cache line.
#pragma once

#include <cstdint>

#include "kernels/ops/optimizer_ops.h"
#include "strata/dtype.h"

namespace strata::tools {

enum class Stores { plain, streaming };  // streaming: around the cache

// wide = grad, a 16-bit float. 6 bytes an element.
struct WidenSpans {
  float* wide = nullptr;
  const void* grad = nullptr;
  DType dtype = DType::bf16;
  int64_t numel = 0;
};
void widen_gradient(const WidenSpans& spans, Stores stores);

// Sum of squares, in fp32 within a grain and in double over the grains, whose sums go to
// `grain_sums`. 4 bytes an element.
double sum_of_squares(const float* wide, int64_t numel, double* grain_sums);

// wide *= factor. 8 bytes an element.
void scale_gradient(float* wide, int64_t numel, float factor);

// AdamW's update of master and moments by an fp32 gradient, whose spans' parameter is not written
// and whose scalars' grad_scale is not applied. 28 bytes an element.
void update_state(const ops::OptimizerScalars& scalars, const ops::OptimizerSpans& spans);

// param = master in 16 bits, rounded as the fused update does. 6 bytes an element.
struct NarrowSpans {
  void* param = nullptr;
  const float* master = nullptr;
  DType dtype = DType::bf16;
  int64_t numel = 0;
};
void narrow_parameter(const NarrowSpans& spans, Stores stores);

}  // namespace strata::tools
