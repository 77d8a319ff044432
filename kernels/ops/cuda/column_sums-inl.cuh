// Sums over the rows of a matrix, of terms that a kernel's user defines. Device code: only nvcc
// reads it.
//
// The rows are cut into chunks by their number alone. A block adds up the rows of a chunk in a
// fixed order, then the chunks are added in order: no atomic, the same bits every time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/ops/cuda/launch-inl.cuh"
#include "kernels/ops/cuda/pack-inl.cuh"
#include "kernels/ops/layer_shapes.h"
#include "strata/layer_ops.h"

namespace strata::ops::cuda {

struct RowChunks {
  static constexpr int64_t kMaxChunks = 128;
  static constexpr int64_t kMinRows = 64;

  explicit RowChunks(int64_t row_count)
      : rows(row_count), count(std::clamp<int64_t>(row_count / kMinRows, 1, kMaxChunks)) {}

  // One fp32 a chunk, sum and column.
  size_t partial_bytes(int64_t columns, int sums) const {
    return static_cast<size_t>(count * sums * columns) * sizeof(float);
  }

  int64_t rows;
  int64_t count;
};

inline constexpr int kSumColumns = kWarp;  // of a block
inline constexpr int kSumRows = 8;

// partials (chunks, Terms::kSums, columns): what terms.add(row, column, sums) adds to sums over the
// rows of each chunk.
template <typename Terms>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    sum_chunk_rows(const Terms terms, RowShape shape, float* partials) {
  __shared__ float of_thread[Terms::kSums][kSumRows][kSumColumns];
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  const int64_t chunk = blockIdx.y;
  const int64_t begin = shape.rows * chunk / gridDim.y;
  const int64_t end = shape.rows * (chunk + 1) / gridDim.y;
  float sums[Terms::kSums] = {};
  if (column < shape.columns) {
    for (int64_t row = begin + threadIdx.y; row < end; row += kSumRows) {
      terms.add(row, column, sums);
    }
  }
#pragma unroll
  for (int s = 0; s < Terms::kSums; ++s) of_thread[s][threadIdx.y][threadIdx.x] = sums[s];
  __syncthreads();
  if (threadIdx.y >= Terms::kSums || column >= shape.columns) return;
  float total = 0;
#pragma unroll
  for (int i = 0; i < kSumRows; ++i) total += of_thread[threadIdx.y][i][threadIdx.x];
  partials[(chunk * Terms::kSums + threadIdx.y) * shape.columns + column] = total;
}

// target = the sum over chunks of their partials, which lie `stride` elements apart.
template <typename Element>
__global__ void sum_chunks(const float* partials, int64_t chunks, int64_t stride, int64_t columns,
                           typename Element::Stored* target, bool accumulate) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partials[chunk * stride + column];
  if (accumulate) total += Element::widen(target[column]);
  target[column] = Element::narrow(total);
}

// Where sums come from and where they go: sum s is added up in `targets[s]`, null views being not
// wanted.
template <typename Element, typename Terms>
void sum_over_rows(const Terms& terms, const RowShape& shape,
                   const GradOutput (&targets)[Terms::kSums], float* partials,
                   cudaStream_t stream) {
  static_assert(Terms::kSums <= kSumRows);
  const RowChunks chunks(shape.rows);
  launch(&sum_chunk_rows<Terms>,
         {.blocks = ceil_div(shape.columns, kSumColumns),
          .blocks_y = chunks.count,
          .threads = dim3(kSumColumns, kSumRows),
          .stream = stream},
         terms, shape, partials);
  for (int s = 0; s < Terms::kSums; ++s) {
    if (!targets[s].view) continue;
    constexpr int kThreads = 128;
    launch(&sum_chunks<Element>,
           {.blocks = ceil_div(shape.columns, kThreads), .threads = kThreads, .stream = stream},
           partials + s * shape.columns, chunks.count, Terms::kSums * shape.columns, shape.columns,
           targets[s].view.template as<typename Element::Stored>(), targets[s].accumulate);
  }
}

}  // namespace strata::ops::cuda
