#include "kernels/ops/cuda/attention-inl.cuh"
#include "kernels/ops/cuda/attention_kernels.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kQueries = 16 * kWarps;  // of a block, 16 a warp

template <int kChannels>
struct ForwardTiles {
  static constexpr int kKeys = kChannels <= 128 ? 64 : 32;  // what the registers hold
  using Queries = Tile<kQueries, kChannels>;
  using Keys = Tile<kKeys, kChannels>;
  static constexpr size_t kBytes = Queries::kBytes + 2 * Keys::kBytes;

  Queries q;
  Keys k, v;

  __device__ explicit ForwardTiles(void* memory) {
    q.data = static_cast<uint16_t*>(memory);
    k.data = q.data + Queries::kBytes / 2;
    v.data = k.data + Keys::kBytes / 2;
  }
};

struct ForwardArgs {
  HeadGrid grid;
  const uint16_t* qkv;
  uint16_t* out;
  float* log_sums;
};

// The largest of a row's scores, for the four lanes that share the row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

// A warp's 16 rows on their way over the keys. Index 0 is a lane's row g, 1 its row g + 8.
template <typename Element, int kChannels>
struct RunningRows {
  static constexpr int kKeys = ForwardTiles<kChannels>::kKeys;
  using Scores = FragmentC[kKeys / 8];

  FragmentC out[kChannels / 8] = {};
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of the lane's own columns

  // scores become exp(scale * (score - maximum)), where each query sees keys up to itself.
  __device__ __forceinline__ void weigh(Scores& scores, float scale, int query, int key) {
    const float scale_log2 = scale * kLog2E;
    const bool all_seen = key + kKeys - 1 <= query;  // by the warp's first query
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int last_seen = query + fragment_row() + 8 * half - key;
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[n][2 * half + i];
          if (!all_seen && n * 8 + fragment_column() + i > last_seen) score = -INFINITY;
          top = fmaxf(top, score);
        }
      }
      // The first block of keys has one that every query sees, so the maximum is a number from then
      // on, unless the scores are none.
      top = fmaxf(max[half], row_max(top));
      const float shrink = exp2_fast((max[half] - top) * scale_log2);
      max[half] = top;
      sum[half] *= shrink;
#pragma unroll
      for (auto& fragment : out) {
        fragment[2 * half] *= shrink;
        fragment[2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[n][2 * half + i];
          score = exp2_fast(fmaf(score, scale_log2, -top * scale_log2));
          sum[half] += score;
        }
      }
    }
  }

  // Dropout's zeros; its scale waits for the end.
  __device__ __forceinline__ void drop(Scores& scores, const DropoutStream& dropout,
                                       uint64_t stream, int query, int key) const {
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
      const Keeps keeps = keeps_of_queries(dropout, stream, query, key + n * 8);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        scores[n + i / 4][i % 4] *= dropout_factor(keeps.at(i / 4, i % 4), 1);
      }
    }
  }

  // `rows` of the warp's exist.
  __device__ __forceinline__ void write(const ForwardArgs& args, const HeadPlace& head, int query,
                                        int rows) const {
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = row_sum(sum[half]);
      const int row = fragment_row() + 8 * half;
      scale[half] = args.grid.dropout.scale / total;
      if (fragment_column() == 0 && row < rows) {
        args.log_sums[head.index() * head.sequence + query + row] =
            fmaf(max[half], args.grid.scale, logf(total));
      }
    }
    write_rows<Element, kChannels>(out, scale, head.rows(args.out, 1, 0).from(query), rows, 0,
                                   head);
  }
};

// A block takes 64 queries of a head. While a product runs, the next product's rows are copied.
template <typename Element, int kChannels>
__global__ void __launch_bounds__(kThreads) attend(const ForwardArgs args) {
  using Rows = RunningRows<Element, kChannels>;
  constexpr int kKeys = Rows::kKeys;
  const ForwardTiles<kChannels> tiles(block_memory());
  const HeadPlace head = args.grid.place(blockIdx.x % args.grid.head_count);
  // The last queries see the most keys: they go first.
  const int tile = static_cast<int>((gridDim.x - 1 - blockIdx.x) / args.grid.head_count);
  const int block_query = tile * kQueries;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int query = block_query + warp_row;
  const int seen = min(block_query + kQueries, head.sequence);
  const auto q = head.rows(args.qkv, 3, 0), k = head.rows(args.qkv, 3, 1),
             v = head.rows(args.qkv, 3, 2);
  const uint64_t stream = args.grid.stream(head);

  tiles.q.load(q.from(block_query), head.sequence - block_query, head);
  tiles.k.load(k, head.sequence, head);
  Rows rows;
  for (int key = 0; key < seen; key += kKeys) {
    wait_for_copies();
    __syncthreads();  // k is here, and nobody reads the last v any more
    tiles.v.load(v.from(key), head.sequence - key, head);
    typename Rows::Scores scores;
    multiply_transposed<Element, kKeys>(scores, tiles.q, warp_row, tiles.k);
    wait_for_copies();
    __syncthreads();  // v is here, and nobody reads this k any more
    if (key + kKeys < seen) tiles.k.load(k.from(key + kKeys), head.sequence - key - kKeys, head);
    rows.weigh(scores, args.grid.scale, query, key);
    if (args.grid.dropout.drops()) rows.drop(scores, args.grid.dropout, stream, query, key);
    multiply_accumulate<Element, kChannels, kKeys>(rows.out, scores, tiles.v, 0);
  }
  rows.write(args, head, query, head.sequence - query);
}

}  // namespace

void attention_forward_tensor(const LayerOps::Attention& op, const AttentionCall& call,
                              cudaStream_t stream) {
  const ForwardArgs args{.grid = HeadGrid(call, {op.qkv.data, op.out.data}),
                         .qkv = op.qkv.as<uint16_t>(),
                         .out = op.out.as<uint16_t>(),
                         .log_sums = op.saved.as<float>()};
  with_head_size(call.shape.head_channels, [&](auto size) {
    constexpr int kChannels = decltype(size)::value;
    const Launch where{.blocks = args.grid.head_count * ceil_div(call.shape.sequence, kQueries),
                       .threads = kThreads,
                       .shared_bytes = ForwardTiles<kChannels>::kBytes,
                       .stream = stream};
    if (call.shape.dtype == DType::bf16) return launch(&attend<Bf16, kChannels>, where, args);
    launch(&attend<Fp16, kChannels>, where, args);
  });
}

}  // namespace strata::ops::cuda
