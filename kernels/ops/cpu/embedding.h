// Embedding of tokens and positions, on the calling thread's team.
#pragma once

#include <cstdint>

#include "kernels/ops/cpu/column_sums.h"
#include "strata/dtype.h"

namespace strata::ops::cpu {

struct EmbeddingShape {
  int64_t batch = 0;
  int64_t sequence = 0;
  int64_t channels = 0;
  int64_t vocab = 0;        // tokens are below this
  int64_t first_token = 0;  // whose row the token table begins with
  int64_t table_rows = 0;   // of the token table; other tokens add nothing and get nothing
  int64_t positions = 0;    // rows of the position table
  DType dtype = DType::fp32;

  constexpr int64_t rows() const { return batch * sequence; }
  constexpr bool has_row(int64_t token) const {
    return token >= first_token && token < first_token + table_rows;
  }
};

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
