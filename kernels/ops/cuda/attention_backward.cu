#include "kernels/ops/cuda/attention-inl.cuh"
#include "kernels/ops/cuda/attention_kernels.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kTogether = 64;  // keys of a block, or queries of a block: 16 a warp

struct BackwardArgs {
  HeadGrid grid;
  const uint16_t *qkv, *out_grad;
  const float *log_sums, *dots;
  uint16_t* qkv_grad;
};

// Rows of the two tensors that stay in shared memory, and of the two that come by: those in hand,
// and the next ones on their way, in turns.
template <int kChannels, int kPassing>
struct BackwardTiles {
  using Staying = Tile<kTogether, kChannels>;
  using Passing = Tile<kPassing, kChannels>;
  static constexpr size_t kBytes = 2 * (Staying::kBytes + 2 * Passing::kBytes);

  uint16_t* memory;

  __device__ Staying staying(int tensor) const { return {memory + tensor * (Staying::kBytes / 2)}; }
  __device__ Passing passing(int tensor, int turn) const {
    return {memory + Staying::kBytes + (2 * tensor + turn) * (Passing::kBytes / 2)};
  }
};

// One probability and what goes through it. In: score, and the gradient of what the probability
// became; out: that (dropped) probability, and the gradient of the score.
struct Slope {
  float scale, scale_log2;

  __device__ explicit Slope(float scale_of_scores)
      : scale(scale_of_scores), scale_log2(scale_of_scores * kLog2E) {}

  // `log2_sum` and `dot` are the query's, `factor` is dropout's.
  __device__ __forceinline__ void apply(float& score, float& grad, bool seen, float log2_sum,
                                        float dot, float factor) const {
    const float p = seen ? exp2_fast(fmaf(score, scale_log2, -log2_sum)) : 0.0f;
    score = p * factor;
    grad = seen ? p * (grad * factor - dot) * scale : 0.0f;
  }
};

// The gradients of k and v. A block takes 64 keys of a head, a warp 16 of them, and the queries
// that see them come by: scores are (keys, queries) here, so that the products with out_grad and q
// take them from registers. Wide heads' channels are shared between two warps, which both compute
// the scores: one warp's registers would not hold two sums of 256 channels.
template <int kChannels>
struct KeyPass {
  static constexpr int kQueries = kChannels <= 64 ? 64 : 32;
  static constexpr int kParts = kChannels <= 128 ? 1 : 2;
  static constexpr int kOwnChannels = kChannels / kParts;
  static constexpr int kThreads = kTogether / 16 * kParts * kWarp;
  using Tiles = BackwardTiles<kChannels, kQueries>;
  using Scores = FragmentC[kQueries / 8];
  using Sums = FragmentC[kOwnChannels / 8];
};

// `query` and `key` are the first of the scores'; the queries' numbers lie in shared memory.
template <int kChannels>
__device__ __forceinline__ void differentiate_scores(typename KeyPass<kChannels>::Scores& scores,
                                                     typename KeyPass<kChannels>::Scores& grads,
                                                     const BackwardArgs& args,
                                                     const HeadPlace& head, const float2* numbers,
                                                     int query, int key) {
  const DropoutStream& dropout = args.grid.dropout;
  const Slope slope(args.grid.scale);
#pragma unroll
  for (int n = 0; n < KeyPass<kChannels>::kQueries / 8; n += 2) {
    Keeps keeps = {};
    if (dropout.drops()) {
      keeps = keeps_of_keys(dropout, args.grid.stream(head), query + n * 8, key);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int fragment = n + i / 4, row = fragment_row() + i % 4 / 2 * 8;
      const int column = fragment * 8 + fragment_column() + i % 2;
      const bool seen = key + row <= query + column && query + column < head.sequence;
      const float factor =
          dropout.drops() ? dropout_factor(keeps.at(i / 4, i % 4), dropout.scale) : 1.0f;
      slope.apply(scores[fragment][i % 4], grads[fragment][i % 4], seen, numbers[column].x,
                  numbers[column].y, factor);
    }
  }
}

template <typename Element, int kChannels>
__global__ void __launch_bounds__(KeyPass<kChannels>::kThreads)
    differentiate_keys(const BackwardArgs args) {
  using Pass = KeyPass<kChannels>;
  constexpr int kQueries = Pass::kQueries;
  __shared__ float2 numbers[2][kQueries];  // log2 of the sum, and out . out_grad, of each query
  const typename Pass::Tiles tiles{static_cast<uint16_t*>(block_memory())};
  const auto k_tile = tiles.staying(0), v_tile = tiles.staying(1);
  const HeadPlace head = args.grid.place(blockIdx.x % args.grid.head_count);
  // The first keys are seen by the most queries: they go first.
  const int block_key = static_cast<int>(blockIdx.x / args.grid.head_count) * kTogether;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_row = warp % (kTogether / 16) * 16;
  const int first_channel = warp / (kTogether / 16) * Pass::kOwnChannels;
  const auto q = head.rows(args.qkv, 3, 0), out_grad = head.rows(args.out_grad, 1, 0);
  const auto load = [&](int query, int turn) {
    tiles.passing(0, turn).load(q.from(query), head.sequence - query, head);
    tiles.passing(1, turn).load(out_grad.from(query), head.sequence - query, head);
    for (int i = threadIdx.x; i < kQueries; i += Pass::kThreads) {
      const int64_t at = head.index() * head.sequence + query + i;
      numbers[turn][i] = query + i < head.sequence
                             ? make_float2(args.log_sums[at] * kLog2E, args.dots[at])
                             : make_float2(0, 0);
    }
  };

  k_tile.load(head.rows(args.qkv, 3, 1).from(block_key), head.sequence - block_key, head);
  v_tile.load(head.rows(args.qkv, 3, 2).from(block_key), head.sequence - block_key, head);
  load(block_key, 0);
  typename Pass::Sums k_grad = {}, v_grad = {};
  int turn = 0;
  // Blocks of keys begin where blocks of queries do.
  for (int query = block_key; query < head.sequence; query += kQueries, turn ^= 1) {
    wait_for_copies();
    __syncthreads();  // these queries are here, and nobody reads the ones before any more
    if (query + kQueries < head.sequence) load(query + kQueries, turn ^ 1);
    const auto q_tile = tiles.passing(0, turn), out_grad_tile = tiles.passing(1, turn);
    typename Pass::Scores scores, grads;
    multiply_transposed<Element, kQueries>(scores, k_tile, warp_row, q_tile);
    multiply_transposed<Element, kQueries>(grads, v_tile, warp_row, out_grad_tile);
    differentiate_scores<kChannels>(scores, grads, args, head, numbers[turn], query,
                                    block_key + warp_row);
    multiply_accumulate<Element, Pass::kOwnChannels, kQueries>(v_grad, scores, out_grad_tile,
                                                               first_channel);
    multiply_accumulate<Element, Pass::kOwnChannels, kQueries>(k_grad, grads, q_tile,
                                                               first_channel);
  }
  const int key = block_key + warp_row;
  const float one[2] = {1, 1};
  write_rows<Element, Pass::kOwnChannels>(k_grad, one, head.rows(args.qkv_grad, 3, 1).from(key),
                                          head.sequence - key, first_channel, head);
  write_rows<Element, Pass::kOwnChannels>(v_grad, one, head.rows(args.qkv_grad, 3, 2).from(key),
                                          head.sequence - key, first_channel, head);
}

// The gradient of q. A block takes 64 queries of a head, a warp 16 of them, and the keys that they
// see come by.
template <int kChannels>
struct QueryPass {
  static constexpr int kKeys = kChannels <= 64 ? 64 : 32;
  static constexpr int kThreads = kTogether / 16 * kWarp;
  using Tiles = BackwardTiles<kChannels, kKeys>;
  using Scores = FragmentC[kKeys / 8];
};

// What a lane knows of its two queries: rows g and g + 8 of its warp's, which begin at `query`.
struct QueryNumbers {
  float log2_sum[2], dot[2];

  __device__ QueryNumbers(const BackwardArgs& args, const HeadPlace& head, int query) {
    for (int half = 0; half < 2; ++half) {
      const int row = query + fragment_row() + 8 * half;
      const bool exists = row < head.sequence;
      const int64_t at = head.index() * head.sequence + row;
      log2_sum[half] = exists ? args.log_sums[at] * kLog2E : 0;
      dot[half] = exists ? args.dots[at] : 0;
    }
  }
};

template <int kChannels>
__device__ __forceinline__ void differentiate_scores(typename QueryPass<kChannels>::Scores& scores,
                                                     typename QueryPass<kChannels>::Scores& grads,
                                                     const BackwardArgs& args,
                                                     const HeadPlace& head,
                                                     const QueryNumbers& numbers, int query,
                                                     int key) {
  const DropoutStream& dropout = args.grid.dropout;
  const Slope slope(args.grid.scale);
#pragma unroll
  for (int n = 0; n < QueryPass<kChannels>::kKeys / 8; n += 2) {
    Keeps keeps = {};
    if (dropout.drops()) {
      keeps = keeps_of_queries(dropout, args.grid.stream(head), query, key + n * 8);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int fragment = n + i / 4, half = i % 4 / 2;
      const int column = fragment * 8 + fragment_column() + i % 2;
      const bool seen = key + column <= query + fragment_row() + 8 * half;
      const float factor =
          dropout.drops() ? dropout_factor(keeps.at(i / 4, i % 4), dropout.scale) : 1.0f;
      slope.apply(scores[fragment][i % 4], grads[fragment][i % 4], seen, numbers.log2_sum[half],
                  numbers.dot[half], factor);
    }
  }
}

template <typename Element, int kChannels>
__global__ void __launch_bounds__(QueryPass<kChannels>::kThreads)
    differentiate_queries(const BackwardArgs args) {
  using Pass = QueryPass<kChannels>;
  constexpr int kKeys = Pass::kKeys;
  const typename Pass::Tiles tiles{static_cast<uint16_t*>(block_memory())};
  const auto q_tile = tiles.staying(0), out_grad_tile = tiles.staying(1);
  const HeadPlace head = args.grid.place(blockIdx.x % args.grid.head_count);
  // The last queries see the most keys: they go first.
  const int tile = static_cast<int>((gridDim.x - 1 - blockIdx.x) / args.grid.head_count);
  const int block_query = tile * kTogether;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int query = block_query + warp_row;
  const int seen = min(block_query + kTogether, head.sequence);
  const auto k = head.rows(args.qkv, 3, 1), v = head.rows(args.qkv, 3, 2);
  const QueryNumbers numbers(args, head, query);

  q_tile.load(head.rows(args.qkv, 3, 0).from(block_query), head.sequence - block_query, head);
  out_grad_tile.load(head.rows(args.out_grad, 1, 0).from(block_query), head.sequence - block_query,
                     head);
  const auto load = [&](int key, int turn) {
    tiles.passing(0, turn).load(k.from(key), head.sequence - key, head);
    tiles.passing(1, turn).load(v.from(key), head.sequence - key, head);
  };
  load(0, 0);
  FragmentC q_grad[kChannels / 8] = {};
  int turn = 0;
  for (int key = 0; key < seen; key += kKeys, turn ^= 1) {
    wait_for_copies();
    __syncthreads();  // these keys are here, and nobody reads the ones before any more
    if (key + kKeys < seen) load(key + kKeys, turn ^ 1);
    const auto k_tile = tiles.passing(0, turn), v_tile = tiles.passing(1, turn);
    typename Pass::Scores scores, grads;
    multiply_transposed<Element, kKeys>(scores, q_tile, warp_row, k_tile);
    multiply_transposed<Element, kKeys>(grads, out_grad_tile, warp_row, v_tile);
    differentiate_scores<kChannels>(scores, grads, args, head, numbers, query, key);
    multiply_accumulate<Element, kChannels, kKeys>(q_grad, grads, k_tile, 0);
  }
  const float one[2] = {1, 1};
  write_rows<Element, kChannels>(q_grad, one, head.rows(args.qkv_grad, 3, 0).from(query),
                                 head.sequence - query, 0, head);
}

template <typename Element, int kChannels>
void differentiate(const BackwardArgs& args, int64_t blocks, cudaStream_t stream) {
  launch(&differentiate_keys<Element, kChannels>,
         {.blocks = blocks,
          .threads = KeyPass<kChannels>::kThreads,
          .shared_bytes = KeyPass<kChannels>::Tiles::kBytes,
          .stream = stream},
         args);
  launch(&differentiate_queries<Element, kChannels>,
         {.blocks = blocks,
          .threads = QueryPass<kChannels>::kThreads,
          .shared_bytes = QueryPass<kChannels>::Tiles::kBytes,
          .stream = stream},
         args);
}

}  // namespace

void attention_backward_tensor(const LayerOps::AttentionBackward& op, const AttentionCall& call,
                               const float* dots, cudaStream_t stream) {
  const BackwardArgs args{.grid = HeadGrid(call, {op.qkv.data, op.out_grad.data, op.qkv_grad.data}),
                          .qkv = op.qkv.as<uint16_t>(),
                          .out_grad = op.out_grad.as<uint16_t>(),
                          .log_sums = op.saved.as<float>(),
                          .dots = dots,
                          .qkv_grad = op.qkv_grad.as<uint16_t>()};
  const int64_t blocks = args.grid.head_count * ceil_div(call.shape.sequence, kTogether);
  with_head_size(call.shape.head_channels, [&](auto size) {
    constexpr int kChannels = decltype(size)::value;
    if (call.shape.dtype == DType::bf16) {
      return differentiate<Bf16, kChannels>(args, blocks, stream);
    }
    differentiate<Fp16, kChannels>(args, blocks, stream);
  });
}

}  // namespace strata::ops::cuda
