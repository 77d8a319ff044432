// What one call of the layers' mathematics works on, once its views are known to fit each other.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

#include "strata/dtype.h"

namespace strata::ops {

struct RowShape {
  int64_t rows = 0;
  int64_t columns = 0;
};

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

struct LinearShape {
  int64_t rows = 0;
  int64_t in = 0;
  int64_t out = 0;
  DType dtype = DType::fp32;
  bool weight_transposed = false;  // (out, in), otherwise (in, out)

  auto operator<=>(const LinearShape&) const = default;
};

struct AttentionShape {
  int64_t batch = 0;
  int64_t sequence = 0;
  int64_t heads = 0;
  int64_t head_channels = 0;
  DType dtype = DType::fp32;

  constexpr int64_t channels() const { return heads * head_channels; }
};

// The logarithms of attention's denominators: (batch, heads, sequence) fp32.
constexpr size_t attention_saved_bytes(const AttentionShape& shape) {
  return static_cast<size_t>(shape.batch * shape.heads * shape.sequence) * sizeof(float);
}

}  // namespace strata::ops
