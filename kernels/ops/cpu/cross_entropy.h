// Mean cross-entropy and its gradient, on the calling thread's team.
#pragma once

#include <cstdint>

#include "strata/dtype.h"

namespace strata::ops::cpu {

// Rows with target -1 do not count; with no row that counts, the loss and the gradient are zero.
// The same bits for any number of threads. Throws Error when a target is outside the vocabulary.
struct CrossEntropyArgs {
  const void* logits = nullptr;      // (rows, vocab)
  const int32_t* targets = nullptr;  // (rows)
  void* logits_grad = nullptr;       // (rows, vocab), null, or `logits`
  double* loss = nullptr;
  double* row_losses = nullptr;  // (rows) of scratch
  int64_t rows = 0;
  int64_t vocab = 0;
  DType dtype = DType::fp32;
  float loss_scale = 1;
};
void cross_entropy(const CrossEntropyArgs& args);

}  // namespace strata::ops::cpu
