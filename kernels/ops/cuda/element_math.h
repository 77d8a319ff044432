// The mathematics of layers for one element or one row, in fp32, for CUDA kernels and for the
// host's compiler. The formulas are those of kernels/ops/cpu.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/ops/cuda/element.h"
#include "kernels/ops/dropout.h"
#include "kernels/ops/random.h"

namespace strata::ops::cuda {

// GELU with the tanh approximation (Hendrycks & Gimpel 2016, "Gaussian error linear units"):
// x (1 + tanh u) / 2 = x s with s = 1 / (1 + e^(-2u)) and u = sqrt(2 / pi) (x + 0.044715 x^3).
inline constexpr float kGeluTwoK0 = 1.5957691216057308f;  // 2 sqrt(2 / pi)
inline constexpr float kGeluK1 = 0.044715f;

STRATA_HD inline float gelu_gate(float x) {
  const float minus_two_u = x * std::fma(x * x, -kGeluTwoK0 * kGeluK1, -kGeluTwoK0);
  // Below e^88 the sum stays finite; 1 / e^88 is as good as zero for any x that reaches it. The
  // comparison keeps NaN.
  return 1 / (1 + std::exp(minus_two_u > 88 ? 88.0f : minus_two_u));
}

STRATA_HD inline float gelu(float x) { return x * gelu_gate(x); }

// d gelu / dx = s + x s (1 - s) 2u', with 2u' = 2 k0 (1 + 3 k1 x^2).
STRATA_HD inline float gelu_slope(float x) {
  const float s = gelu_gate(x);
  const float two_u_slope = std::fma(x * x, 3 * kGeluTwoK0 * kGeluK1, kGeluTwoK0);
  return std::fma(s, x * (1 - s) * two_u_slope, s);
}

// Layer norm (Ba, Kiros & Hinton 2016), with n = (x - mean) * rstd.
STRATA_HD inline float norm_normal(float x, float mean, float rstd) { return (x - mean) * rstd; }
STRATA_HD inline float norm_out(float normal, float weight, float bias) {
  return std::fma(normal, weight, bias);
}
// With g = out_grad * weight, and means over the row:
// x_grad = rstd * (g - mean(g) - n * mean(g * n)).
struct NormRowMeans {
  float g = 0;
  float gn = 0;
};
STRATA_HD inline float norm_x_grad(float normal, float g, float rstd, const NormRowMeans& mean,
                                   float residual_grad) {
  return std::fma(rstd, std::fma(-normal, mean.gn, g - mean.g), residual_grad);
}

// What is known of a row from its logits so far, in one pass over them (Milakov & Gimelshein 2018,
// "Online normalizer calculation for softmax").
struct RowStatistics {
  float max = -3.402823466e38f;  // the lowest finite number, so that exp(-inf - max) is zero
  float sum = 0;                 // of exp(x - max)
  float at_target = 0;           // 0 where the target is not among them
  float scale = 0;               // the gradient of the row's loss, when all are known

  // A NaN leaves the maximum as it is and shows in the sum.
  STRATA_HD void add(float x) {
    if (x > max) {
      sum = std::fma(sum, std::exp(max - x), 1.0f);
      max = x;
    } else {
      sum += std::exp(x - max);
    }
  }
  // The same row's other logits.
  STRATA_HD void add(const RowStatistics& part) {
    const float both = part.max > max ? part.max : max;
    sum = sum * std::exp(max - both) + part.sum * std::exp(part.max - both);
    max = both;
    at_target += part.at_target;
  }
  // The two logits first: next to large ones the logarithm would be lost.
  STRATA_HD double loss() const {
    const double below_max = static_cast<double>(max) - at_target;
    return below_max + std::log(static_cast<double>(sum));
  }
  // The gradient of the logit x: softmax times the scale. At the target, the scale is subtracted
  // before the result is rounded.
  STRATA_HD float grad(float x, bool is_target) const {
    const float softmax = std::exp(x - max) * (scale / sum);
    return is_target ? softmax - scale : softmax;
  }
};

// Dropout's masks, as kernels/ops/dropout.h defines them: 8 elements share a call.
inline constexpr int64_t kDropoutCallElements = 8;

// Bit i says whether the element of the call's i-th 16 random bits is kept.
STRATA_HD inline uint32_t dropout_keeps(const DropoutStream& dropout, uint64_t counter,
                                        uint64_t stream) {
  const auto words = Philox{dropout.key}(counter, stream);
  uint32_t keeps = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    keeps |= uint32_t{(words[i] & 0xffff) >= dropout.threshold} << (2 * i);
    keeps |= uint32_t{(words[i] >> 16) >= dropout.threshold} << (2 * i + 1);
  }
  return keeps;
}

// Attention: the keeps of 8 queries, 8 * `query_block` and those behind it, for a key.
STRATA_HD inline uint32_t attention_keeps(const DropoutStream& dropout, int64_t query_block,
                                          int64_t key, uint64_t head_stream) {
  const uint64_t counter = static_cast<uint64_t>(query_block) << 32 | static_cast<uint64_t>(key);
  return dropout_keeps(dropout, counter, head_stream);
}
// The stream of a head, counted from the first of the call, in a row of the batch.
STRATA_HD inline uint64_t attention_stream(const DropoutStream& dropout, int64_t batch,
                                           int64_t head) {
  return dropout.stream + (static_cast<uint64_t>(batch) << 32 | static_cast<uint64_t>(head));
}

// Elements in a line: element i of call `call` lies at dropout_line_index(call, i).
STRATA_HD inline int64_t dropout_line_index(int64_t call, int64_t i) {
  return call / 16 * 128 + i * 16 + call % 16;
}

// What is dropped is multiplied by zero, so that what is not a number stays so.
STRATA_HD inline float dropout_factor(bool keep, float scale) { return keep ? scale : 0.0f; }

}  // namespace strata::ops::cuda
