// What attention does between its matrix products, on the calling thread alone.
#pragma once

#include <cstdint>

#include "strata/dtype.h"

namespace strata::ops::cpu {

// Widths of score matrices are multiples of this, which every vector length divides.
inline constexpr int64_t kKeysTogether = 16;

// Rows of a head, (rows, channels), that lie `stride` elements apart.
struct HeadRows {
  void* data = nullptr;
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t channels = 0;
  DType dtype = DType::fp32;
};

// to (padded_rows, channels), dense and of the same dtype; rows behind from's are zero.
void pack_rows(const HeadRows& from, int64_t padded_rows, void* to);
// Rows of `to` = dense fp32 rows, each times its scale where `row_scale` is not null.
void unpack_rows(const float* from, const float* row_scale, const HeadRows& to);
// dot[r] = sum over channels of a[r] * b[r].
void dot_rows(const HeadRows& a, const HeadRows& b, float* dot);

// A block of scores (rows, keys), fp32. Row r sees keys [0, first_visible + r].
struct ScoreBlock {
  const float* scores = nullptr;
  int64_t rows = 0;
  int64_t keys = 0;  // a multiple of kKeysTogether
  int64_t first_visible = 0;
  float scale = 1;
  const uint16_t* keep = nullptr;  // what dropout keeps, as keep_bits() has it; null: all
  float keep_scale = 1;            // what it is multiplied by
  DType dtype = DType::fp32;       // of what is written
};

// weights (rows, keys) = exp(scale * (score - row's maximum)) * m, zero where unseen. m is
// dropout's: keep_scale where kept and 0 elsewhere, or 1 everywhere without it. inverse_sum[r]
// makes a row's weights probabilities, log_sum[r] is the logarithm of their denominator:
// probability = exp(scale * score - log_sum).
void softmax_weights(const ScoreBlock& block, void* weights, float* inverse_sum, float* log_sum);

// With p = exp(scale * score - log_sum): probabilities p * m and score_grads = scale * p *
// (p_grad * m - dot[r]), (rows, keys) each, zero where unseen. p_grad is the gradient of p * m.
struct SoftmaxGrad {
  const float* p_grad = nullptr;  // (rows, keys)
  const float* log_sum = nullptr;
  const float* dot = nullptr;
  void* probabilities = nullptr;
  void* score_grads = nullptr;
};
void softmax_gradients(const ScoreBlock& block, const SoftmaxGrad& grad);

}  // namespace strata::ops::cpu
