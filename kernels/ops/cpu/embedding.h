// Embedding of tokens and positions, on the calling thread's team.
#pragma once

#include <cstdint>

#include "kernels/ops/cpu/column_sums.h"
#include "kernels/ops/layer_shapes.h"

namespace strata::ops::cpu {

// Throws Error when a token is outside the vocabulary.
struct EmbeddingForwardArgs {
  EmbeddingShape shape;
  const int32_t* tokens = nullptr;       // (batch, sequence)
  const void* token_table = nullptr;     // (table_rows, channels)
  const void* position_table = nullptr;  // (positions, channels), or null
  void* out = nullptr;                   // (rows, channels)
  bool accumulate = false;               // add to `out`
};
void embedding_forward(const EmbeddingForwardArgs& args);

// The same bits for any number of threads. Throws likewise.
struct EmbeddingBackwardArgs {
  EmbeddingShape shape;
  const int32_t* tokens = nullptr;
  const void* out_grad = nullptr;
  GradTarget token_table;
  GradTarget position_table;
};
void embedding_backward(const EmbeddingBackwardArgs& args);

}  // namespace strata::ops::cpu
