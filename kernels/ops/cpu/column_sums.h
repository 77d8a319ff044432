// Sums over the rows of a matrix, for the gradients of biases and of layer norms' weights.
//
// The rows are cut into chunks by their number alone. Each chunk adds up its rows in order, then
// the chunks are added in order: the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "strata/dtype.h"

namespace strata::ops::cpu {

// Where a parameter's gradient goes; null data: it is not wanted.
struct GradTarget {
  void* data = nullptr;
  bool accumulate = false;
};

struct RowChunks {
  static constexpr int64_t kMaxChunks = 64;
  static constexpr int64_t kMinRows = 16;

  explicit constexpr RowChunks(int64_t row_count)
      : rows(row_count), count(std::clamp<int64_t>(row_count / kMinRows, 1, kMaxChunks)) {}

  // First row of a chunk; begin(count) is the number of rows.
  constexpr int64_t begin(int64_t chunk) const { return rows * chunk / count; }

  // Bytes that one fp32 row of `columns` a chunk takes.
  constexpr size_t partial_bytes(int64_t columns) const {
    return static_cast<size_t>(count * columns) * sizeof(float);
  }

  int64_t rows;
  int64_t count;
};

// target (columns, of `dtype`) = the sum over chunks of row `chunk` of `partials`, whose rows lie
// `stride` elements apart. Does nothing when the target is not wanted.
struct ChunkSum {
  const float* partials = nullptr;
  int64_t chunks = 0;
  int64_t stride = 0;
  int64_t columns = 0;
  DType dtype = DType::fp32;
  GradTarget target;
};
void sum_chunks(const ChunkSum& args);

// target (columns) = the sum of the rows of x (rows, columns). `partials` is RowChunks(rows)
// .partial_bytes(columns) of scratch.
struct ColumnSum {
  const void* x = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  DType dtype = DType::fp32;
  GradTarget target;
  float* partials = nullptr;
};
void sum_columns(const ColumnSum& args);

}  // namespace strata::ops::cpu
