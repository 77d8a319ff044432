// Attention of fp32 in fp32 arithmetic: a warp takes a row of one head. The lanes compute the
// scores of 32 rows at a time, one each, and then share the channels. For checking and small
// models: no tensor core multiplies fp32 without rounding it.
#include "kernels/ops/cuda/attention-inl.cuh"
#include "kernels/ops/cuda/attention_kernels.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kRowsTogether = 4;  // of a block, a warp each
constexpr int kOwnChannels = kMaxHeadChannels / kWarp;

struct PlainArgs {
  HeadGrid grid;
  const float* qkv;
  float* out;             // forward's
  float* log_sums;        // written by forward
  const float* out_grad;  // these are backward's
  const float* dots;
  float* qkv_grad;
};

// The calling warp's row, and its copies of rows in shared memory.
struct OwnRow {
  HeadPlace head;
  int row;
  int lane;

  __device__ explicit OwnRow(const HeadGrid& grid)
      : head(grid.place(blockIdx.x % grid.head_count)),
        row(static_cast<int>(blockIdx.x / grid.head_count) * kRowsTogether +
            static_cast<int>(threadIdx.x) / kWarp),
        lane(static_cast<int>(threadIdx.x) % kWarp) {}

  __device__ bool exists() const { return row < head.sequence; }
  __device__ int64_t number() const { return head.index() * head.sequence + row; }
};

// The lane's channels of a row: c, c + 32, ...
struct Channels {
  float at[kOwnChannels] = {};

  __device__ __forceinline__ void add(float factor, const HeadRows<const float>& row,
                                      const OwnRow& own) {
#pragma unroll
    for (int i = 0; i < kOwnChannels; ++i) {
      const int channel = own.lane + i * kWarp;
      if (channel < own.head.channels) at[i] = fmaf(factor, row.data[channel], at[i]);
    }
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (float& value : at) value *= factor;
  }
  __device__ __forceinline__ void write(const HeadRows<float>& row, const OwnRow& own) const {
#pragma unroll
    for (int i = 0; i < kOwnChannels; ++i) {
      const int channel = own.lane + i * kWarp;
      if (channel < own.head.channels) row.data[channel] = at[i];
    }
  }
};

__device__ __forceinline__ float product(const HeadRows<const float>& a,
                                         const HeadRows<const float>& b, int channels) {
  float sum = 0;
  for (int i = 0; i < channels; ++i) sum = fmaf(a.data[i], b.data[i], sum);
  return sum;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, offset));
  }
  return x;
}

// What dropout makes of the probability of a query and a key.
__device__ __forceinline__ float factor_of(const HeadGrid& grid, const HeadPlace& head, int query,
                                           int key) {
  if (!grid.dropout.drops()) return 1;
  const uint32_t keeps = attention_keeps(grid.dropout, query / 8, key, grid.stream(head));
  return dropout_factor((keeps >> query % 8 & 1) != 0, grid.dropout.scale);
}

__global__ void __launch_bounds__(kRowsTogether* kWarp) attend_plain(const PlainArgs args) {
  const OwnRow own(args.grid);
  if (!own.exists()) return;  // the whole warp
  const HeadPlace& head = own.head;
  const auto q = head.rows(args.qkv, 3, 0).from(own.row);
  const auto k = head.rows(args.qkv, 3, 1), v = head.rows(args.qkv, 3, 2);
  Channels out;
  float max = -INFINITY, sum = 0;
  for (int first = 0; first <= own.row; first += kWarp) {
    const int key = first + own.lane;
    const bool seen = key <= own.row;
    const float score = seen ? product(q, k.from(key), head.channels) * args.grid.scale : -INFINITY;
    const float top = fmaxf(max, warp_max(score));
    const float shrink = expf(max - top);
    float weight = seen ? expf(score - top) : 0;
    max = top;
    sum = sum * shrink + warp_sum(weight);
    out.scale(shrink);
    if (seen) weight *= factor_of(args.grid, head, own.row, key);
    for (int i = 0; i < kWarp && first + i <= own.row; ++i) {
      out.add(__shfl_sync(kWholeWarp, weight, i), v.from(first + i), own);
    }
  }
  out.scale(1 / sum);
  out.write(head.rows(args.out, 1, 0).from(own.row), own);
  if (own.lane == 0) args.log_sums[own.number()] = max + logf(sum);
}

// A probability as dropout leaves it, and the gradient of its score. Rows of the query and the key.
struct PlainSlope {
  float probability = 0;
  float score_grad = 0;
};
__device__ __forceinline__ PlainSlope slope_of(const PlainArgs& args, const HeadPlace& head,
                                               int query, int key) {
  const int64_t number = head.index() * head.sequence + query;
  const float score = product(head.rows(args.qkv, 3, 0).from(query),
                              head.rows(args.qkv, 3, 1).from(key), head.channels);
  const float grad = product(head.rows(args.out_grad, 1, 0).from(query),
                             head.rows(args.qkv, 3, 2).from(key), head.channels);
  const float p = expf(score * args.grid.scale - args.log_sums[number]);
  const float factor = factor_of(args.grid, head, query, key);
  return {p * factor, p * (grad * factor - args.dots[number]) * args.grid.scale};
}

__global__ void __launch_bounds__(kRowsTogether* kWarp)
    differentiate_queries_plain(const PlainArgs args) {
  const OwnRow own(args.grid);
  if (!own.exists()) return;
  const auto k = own.head.rows(args.qkv, 3, 1);
  Channels q_grad;
  for (int first = 0; first <= own.row; first += kWarp) {
    const int key = first + own.lane;
    const PlainSlope slope = key <= own.row ? slope_of(args, own.head, own.row, key) : PlainSlope();
    for (int i = 0; i < kWarp && first + i <= own.row; ++i) {
      q_grad.add(__shfl_sync(kWholeWarp, slope.score_grad, i), k.from(first + i), own);
    }
  }
  q_grad.write(own.head.rows(args.qkv_grad, 3, 0).from(own.row), own);
}

__global__ void __launch_bounds__(kRowsTogether* kWarp)
    differentiate_keys_plain(const PlainArgs args) {
  const OwnRow own(args.grid);
  if (!own.exists()) return;
  const int sequence = own.head.sequence;
  const auto q = own.head.rows(args.qkv, 3, 0), out_grad = own.head.rows(args.out_grad, 1, 0);
  Channels k_grad, v_grad;
  for (int first = own.row; first < sequence; first += kWarp) {
    const int query = first + own.lane;
    const PlainSlope slope =
        query < sequence ? slope_of(args, own.head, query, own.row) : PlainSlope();
    for (int i = 0; i < kWarp && first + i < sequence; ++i) {
      k_grad.add(__shfl_sync(kWholeWarp, slope.score_grad, i), q.from(first + i), own);
      v_grad.add(__shfl_sync(kWholeWarp, slope.probability, i), out_grad.from(first + i), own);
    }
  }
  k_grad.write(own.head.rows(args.qkv_grad, 3, 1).from(own.row), own);
  v_grad.write(own.head.rows(args.qkv_grad, 3, 2).from(own.row), own);
}

Launch a_warp_each(const AttentionCall& call, cudaStream_t stream) {
  return {
      .blocks = call.shape.batch * call.shape.heads * ceil_div(call.shape.sequence, kRowsTogether),
      .threads = kRowsTogether * kWarp,
      .stream = stream};
}

}  // namespace

void attention_forward_plain(const LayerOps::Attention& op, const AttentionCall& call,
                             cudaStream_t stream) {
  const PlainArgs args{.grid = HeadGrid(call, {}),
                       .qkv = op.qkv.as<float>(),
                       .out = op.out.as<float>(),
                       .log_sums = op.saved.as<float>(),
                       .out_grad = nullptr,
                       .dots = nullptr,
                       .qkv_grad = nullptr};
  launch(&attend_plain, a_warp_each(call, stream), args);
}

void attention_backward_plain(const LayerOps::AttentionBackward& op, const AttentionCall& call,
                              const float* dots, cudaStream_t stream) {
  const PlainArgs args{.grid = HeadGrid(call, {}),
                       .qkv = op.qkv.as<float>(),
                       .out = nullptr,
                       .log_sums = op.saved.as<float>(),
                       .out_grad = op.out_grad.as<float>(),
                       .dots = dots,
                       .qkv_grad = op.qkv_grad.as<float>()};
  launch(&differentiate_keys_plain, a_warp_each(call, stream), args);
  launch(&differentiate_queries_plain, a_warp_each(call, stream), args);
}

}  // namespace strata::ops::cuda
