// What the tensor-core kernels of attention share: a head's rows, tiles of them in shared memory,
// products of tiles, and dropout's bits. Device code: only nvcc reads it.
//
// Scores and probabilities live in the registers of a warp: a product's result (fragment C) is the
// next product's left operand (fragment A) once pairs are rounded, which is what FlashAttention-2
// does (Dao 2023).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/ops/cuda/element_math.h"
#include "kernels/ops/cuda/launch-inl.cuh"
#include "kernels/ops/cuda/layer_kernels.cuh"
#include "kernels/ops/cuda/mma-inl.cuh"
#include "kernels/ops/cuda/pack-inl.cuh"

namespace strata::ops::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// Head sizes that there are kernels for; others are padded with zeros.
template <int kChannels>
struct HeadSize {
  static constexpr int value = kChannels;
};
template <typename Body>
void with_head_size(int64_t channels, const Body& body) {
  if (channels <= 32) return body(HeadSize<32>());
  if (channels <= 64) return body(HeadSize<64>());
  if (channels <= 128) return body(HeadSize<128>());
  body(HeadSize<256>());
}

// Rows of one head in a tensor (batch, sequence, ...), row `stride` elements apart.
template <typename Stored>
struct HeadRows {
  Stored* data;
  int64_t stride;

  __device__ HeadRows from(int64_t row) const { return {data + row * stride, stride}; }
};

// The call's shape, and which head of it a block works on.
struct HeadPlace {
  int sequence, heads, channels;  // channels of a head
  int batch, head;
  bool aligned;  // rows begin at 16 bytes and are whole runs of them

  __device__ int64_t index() const { return int64_t{batch} * heads + head; }
  // (batch, sequence, parts, heads, channels)
  template <typename Stored>
  __device__ HeadRows<Stored> rows(Stored* tensor, int parts, int part) const {
    const int64_t stride = int64_t{parts} * heads * channels;
    return {tensor + batch * sequence * stride + (int64_t{part} * heads + head) * channels, stride};
  }
};

// Host side of it, with batch and head still open.
struct HeadGrid {
  int sequence, heads, channels;
  int64_t head_count;  // of the whole batch
  bool aligned;
  float scale;
  DropoutStream dropout;

  HeadGrid(const AttentionCall& call, std::initializer_list<const void*> tensors)
      : sequence(static_cast<int>(call.shape.sequence)),
        heads(static_cast<int>(call.shape.heads)),
        channels(static_cast<int>(call.shape.head_channels)),
        head_count(call.shape.batch * call.shape.heads),
        aligned(runs_fit<Bf16>(call.shape.head_channels, tensors)),
        scale(1 / std::sqrt(static_cast<float>(call.shape.head_channels))),
        dropout(call.dropout) {}

  __device__ HeadPlace place(int64_t index) const {
    return {
        sequence, heads, channels, static_cast<int>(index / heads), static_cast<int>(index % heads),
        aligned};
  }
  __device__ uint64_t stream(const HeadPlace& place) const {
    return attention_stream(dropout, place.batch, place.head);
  }
};

// Rows of 16-bit elements in shared memory. The rows' distance is an odd multiple of 16 bytes, so
// that the eight rows of a matrix lie in different banks.
template <int kRows, int kChannels>
struct Tile {
  static constexpr int kStride = kChannels + 8;
  static constexpr int kBytes = kRows * kStride * 2;

  uint16_t* data;

  // The block's threads copy rows [0, rows) of `from`, and zeros behind them and behind the head's
  // channels. Done behind wait_for_copies() and a __syncthreads().
  __device__ __forceinline__ void load(const HeadRows<const uint16_t>& from, int rows,
                                       const HeadPlace& head) const {
    constexpr int kRuns = kChannels / 8;
    for (int i = threadIdx.x; i < kRows * kRuns; i += blockDim.x) {
      const int row = i / kRuns, channel = i % kRuns * 8;
      uint16_t* to = data + row * kStride + channel;
      const uint16_t* source = from.data + row * from.stride + channel;
      const int valid = row < rows ? head.channels - channel : 0;
      if (head.aligned) {
        copy_async(to, valid > 0 ? source : from.data, valid > 0);
        continue;
      }
      Run<uint16_t, 8> run;
#pragma unroll
      for (int j = 0; j < 8; ++j) run.at[j] = j < valid ? source[j] : uint16_t{0};
      *reinterpret_cast<Run<uint16_t, 8>*>(to) = run;
    }
  }

  // As left operand: rows [row, row + 16), columns [column, column + 16).
  __device__ __forceinline__ void left(FragmentA& a, int row, int column) const {
    const int lane = threadIdx.x % kWarp;
    load_matrices(a, data + (row + lane % 16) * kStride + column + lane / 16 * 8);
  }
  // Its transpose as right operands: rows [row, row + 16) are the columns of b[0] and b[1], columns
  // [column, column + 16) their rows.
  __device__ __forceinline__ void right_transposed(FragmentB (&b)[2], int row, int column) const {
    const int lane = threadIdx.x % kWarp;
    uint32_t all[4];
    load_matrices(all,
                  data + (row + lane / 16 * 8 + lane % 8) * kStride + column + lane / 8 % 2 * 8);
    split(b, all);
  }
  // As right operands: columns [column, column + 8) and the 8 behind them.
  __device__ __forceinline__ void right(FragmentB (&b)[2], int row, int column) const {
    const int lane = threadIdx.x % kWarp;
    uint32_t all[4];
    load_matrices_transposed(all, data + (row + lane % 16) * kStride + column + lane / 16 * 8);
    split(b, all);
  }

 private:
  static __device__ __forceinline__ void split(FragmentB (&b)[2], const uint32_t (&all)[4]) {
    b[0][0] = all[0];
    b[0][1] = all[1];
    b[1][0] = all[2];
    b[1][1] = all[3];
  }
};

// c (16, kColumns) = rows [row, row + 16) of x . transpose of y.
template <typename Element, int kColumns, int kRows, int kChannels>
__device__ __forceinline__ void multiply_transposed(FragmentC (&c)[kColumns / 8],
                                                    const Tile<kRows, kChannels>& x, int row,
                                                    const Tile<kColumns, kChannels>& y) {
#pragma unroll
  for (auto& fragment : c) {
#pragma unroll
    for (float& value : fragment) value = 0;
  }
#pragma unroll
  for (int k = 0; k < kChannels; k += 16) {
    FragmentA a;
    x.left(a, row, k);
#pragma unroll
    for (int n = 0; n < kColumns; n += 16) {
      FragmentB b[2];
      y.right_transposed(b, n, k);
      multiply_add<Element>(c[n / 8], a, b[0]);
      multiply_add<Element>(c[n / 8 + 1], a, b[1]);
    }
  }
}

// c (16, kColumns) += x (16, kInner), rounded to Element, . columns [first, first + kColumns) of y.
template <typename Element, int kColumns, int kInner, int kChannels>
__device__ __forceinline__ void multiply_accumulate(FragmentC (&c)[kColumns / 8],
                                                    const FragmentC (&x)[kInner / 8],
                                                    const Tile<kInner, kChannels>& y, int first) {
#pragma unroll
  for (int k = 0; k < kInner; k += 16) {
    const FragmentC &left = x[k / 8], &right = x[k / 8 + 1];
    const FragmentA a = {pack_pair<Element>(left[0], left[1]), pack_pair<Element>(left[2], left[3]),
                         pack_pair<Element>(right[0], right[1]),
                         pack_pair<Element>(right[2], right[3])};
#pragma unroll
    for (int n = 0; n < kColumns; n += 16) {
      FragmentB b[2];
      y.right(b, k, first + n);
      multiply_add<Element>(c[n / 8], a, b[0]);
      multiply_add<Element>(c[n / 8 + 1], a, b[1]);
    }
  }
}

// Where a lane's four numbers of a fragment C lie: rows row() and row() + 8, columns column() and
// column() + 1 of the fragment.
__device__ __forceinline__ int fragment_row() { return threadIdx.x % kWarp / 4; }
__device__ __forceinline__ int fragment_column() { return threadIdx.x % 4 * 2; }

// Writes c (16, kColumns), row r times scale[r], to rows of a head that begin with its channel
// `first`; `rows` of them exist.
template <typename Element, int kColumns>
__device__ __forceinline__ void write_rows(const FragmentC (&c)[kColumns / 8],
                                           const float (&scale)[2], const HeadRows<uint16_t>& to,
                                           int rows, int first, const HeadPlace& head) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = fragment_row() + 8 * half;
    if (row >= rows) continue;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const int channel = first + n * 8 + fragment_column();
      if (channel >= head.channels) continue;
      uint16_t* target = to.data + row * to.stride + channel;
      const uint32_t pair =
          pack_pair<Element>(c[n][2 * half] * scale[half], c[n][2 * half + 1] * scale[half]);
      if (head.aligned) {
        *reinterpret_cast<uint32_t*>(target) = pair;
        continue;
      }
      target[0] = static_cast<uint16_t>(pair);
      if (channel + 1 < head.channels) target[1] = static_cast<uint16_t>(pair >> 16);
    }
  }
}

// What dropout keeps of scores (16 queries, 16 keys), which begin at a multiple of 8 queries: bit i
// of keeps[j] for the i-th number of a lane's j-th fragment. A lane draws one call in 32 that the
// warp needs, and the lanes exchange them.
struct Keeps {
  uint32_t of[2];
  __device__ bool at(int fragment, int i) const { return (of[fragment] >> i & 1) != 0; }
};
__device__ __forceinline__ Keeps keeps_of_queries(const DropoutStream& dropout, uint64_t stream,
                                                  int query, int key) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t drawn =
      attention_keeps(dropout, query / 8 + lane / 8 % 2, key + lane / 16 * 8 + lane % 8, stream);
  Keeps keeps = {};
#pragma unroll
  for (int fragment = 0; fragment < 2; ++fragment) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int source = fragment * 16 + i / 2 * 8 + fragment_column() + i % 2;
      const uint32_t column = __shfl_sync(kWholeWarp, drawn, source);
      keeps.of[fragment] |= (column >> fragment_row() & 1) << i;
    }
  }
  return keeps;
}
// The same of scores (16 keys, 16 queries).
__device__ __forceinline__ Keeps keeps_of_keys(const DropoutStream& dropout, uint64_t stream,
                                               int query, int key) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t drawn = attention_keeps(dropout, query / 8 + lane / 16, key + lane % 16, stream);
  Keeps keeps = {};
#pragma unroll
  for (int fragment = 0; fragment < 2; ++fragment) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int source = fragment * 16 + fragment_row() + 8 * half;
      const uint32_t row = __shfl_sync(kWholeWarp, drawn, source);
      keeps.of[fragment] |= (row >> fragment_column() & 3) << (2 * half);
    }
  }
  return keeps;
}

}  // namespace strata::ops::cuda
