// Layer norm over the last dimension, on the calling thread's team; and RMS norm, which is layer
// norm about zero instead of the mean, without a bias.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/cpu/column_sums.h"
#include "strata/dtype.h"

namespace strata::ops::cpu {

// x and out are (rows, channels) of `dtype`, weight and bias (channels), mean and rstd (rows). For
// an RMS norm, mean and bias are null.
struct LayerNormForwardArgs {
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  void* out = nullptr;
  float* mean = nullptr;
  float* rstd = nullptr;
  int64_t rows = 0;
  int64_t channels = 0;
  DType dtype = DType::fp32;
  float eps = 0;
};
void layer_norm_forward(const LayerNormForwardArgs& args);

// x_grad may be residual_grad, which may be null. For an RMS norm, mean is null and no bias's
// gradient wanted. The same bits for any number of threads.
struct LayerNormBackwardArgs {
  const void* x = nullptr;
  const void* weight = nullptr;
  const float* mean = nullptr;
  const float* rstd = nullptr;
  const void* out_grad = nullptr;
  const void* residual_grad = nullptr;
  void* x_grad = nullptr;
  GradTarget weight_grad = {};
  GradTarget bias_grad = {};
  float* partials = nullptr;  // layer_norm_partial_bytes of scratch
  int64_t rows = 0;
  int64_t channels = 0;
  DType dtype = DType::fp32;

  // Of a chunk's partial sums: the weight's, and the bias's behind them.
  int64_t sums_numel() const { return (mean == nullptr ? 1 : 2) * channels; }
};
void layer_norm_backward(const LayerNormBackwardArgs& args);

// A row of each chunk for the weight's gradient, and with a layer norm one for the bias's.
constexpr size_t layer_norm_partial_bytes(int64_t rows, int64_t channels) {
  return RowChunks(rows).partial_bytes(2 * channels);
}
constexpr size_t rms_norm_partial_bytes(int64_t rows, int64_t channels) {
  return RowChunks(rows).partial_bytes(channels);
}

}  // namespace strata::ops::cpu
