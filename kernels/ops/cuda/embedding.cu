// Embedding of tokens and positions. Backward adds up each token's rows in their order: no atomic,
// the same bits every time.
#include "kernels/ops/cuda/launch-inl.cuh"
#include "kernels/ops/cuda/layer_kernels.cuh"
#include "kernels/ops/cuda/pack-inl.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <typename Element>
struct Embed {
  using Stored = typename Element::Stored;
  EmbeddingShape shape;
  const int32_t* tokens;
  const Stored *token_table, *position_table;
  Stored* out;
  bool accumulate;
};

// A thread takes a run of a row. Tokens outside the vocabulary have no row; scan_ids() refuses
// them.
template <typename Element, int kRun>
__global__ void __launch_bounds__(kThreads) embed(const Embed<Element> op) {
  const EmbeddingShape& shape = op.shape;
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kRun;
  if (at >= shape.rows() * shape.channels) return;
  const int64_t row = at / shape.channels, channel = at % shape.channels;
  const int64_t token = op.tokens[row];
  float sum[kRun] = {};
  const auto add = [&](const typename Element::Stored* from) {
    float term[kRun];
    load_run<Element>(from, term);
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum[j] += term[j];
  };
  if (op.accumulate) add(op.out + at);
  if (shape.has_row(token)) {
    add(op.token_table + (token - shape.first_token) * shape.channels + channel);
  }
  if (op.position_table != nullptr) {
    add(op.position_table + row % shape.sequence * shape.channels + channel);
  }
  store_run<Element>(sum, op.out + at);
}

template <typename Element>
struct SumTokens {
  using Stored = typename Element::Stored;
  EmbeddingShape shape;
  const int32_t* tokens;
  const Stored* out_grad;
  Stored* table;
  bool accumulate;
};

constexpr int kOwnChannels = 4;  // of a thread

// A block takes a row of tokens, and does nothing where its token was seen before; otherwise it
// adds up the rows of all equal tokens, for some of their channels. Looking for them costs N^2 / 2
// comparisons at most and needs no memory.
template <typename Element>
__global__ void __launch_bounds__(kThreads) sum_tokens(const SumTokens<Element> op) {
  __shared__ uint32_t equal_tokens[kWarps];  // a bit each
  const EmbeddingShape& shape = op.shape;
  const int64_t row = blockIdx.x;
  const int32_t token = op.tokens[row];
  if (!shape.has_row(token)) return;
  const auto is_equal = [&](int64_t other) {
    return other < shape.rows() && op.tokens[other] == token;
  };
  for (int64_t first = 0; first < row; first += kThreads) {
    const int64_t other = first + threadIdx.x;
    if (__syncthreads_or(other < row && is_equal(other)) != 0) return;  // the whole block
  }

  const int64_t first_channel = int64_t{blockIdx.y} * kThreads * kOwnChannels + threadIdx.x;
  float sums[kOwnChannels] = {};
  const auto for_channels = [&](const auto& body) {
#pragma unroll
    for (int j = 0; j < kOwnChannels; ++j) {
      const int64_t channel = first_channel + j * kThreads;
      if (channel < shape.channels) body(channel, sums[j]);
    }
  };
  for (int64_t first = row; first < shape.rows(); first += kThreads) {
    const uint32_t found = __ballot_sync(kWholeWarp, is_equal(first + threadIdx.x));
    if (threadIdx.x % kWarp == 0) equal_tokens[threadIdx.x / kWarp] = found;
    __syncthreads();
    for (int warp = 0; warp < kWarps; ++warp) {
      for (uint32_t left = equal_tokens[warp]; left != 0; left &= left - 1) {
        const int64_t equal = first + warp * kWarp + __ffs(static_cast<int>(left)) - 1;
        for_channels([&](int64_t channel, float& sum) {
          sum += Element::widen(op.out_grad[equal * shape.channels + channel]);
        });
      }
    }
    __syncthreads();
  }
  auto* target = op.table + (token - shape.first_token) * shape.channels;
  for_channels([&](int64_t channel, float sum) {
    if (op.accumulate) sum += Element::widen(target[channel]);
    target[channel] = Element::narrow(sum);
  });
}

// A thread takes an element of the position table: the batch's rows in order.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    sum_positions(EmbeddingShape shape, const typename Element::Stored* out_grad,
                  typename Element::Stored* table, bool accumulate) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= shape.positions * shape.channels) return;
  const int64_t elements = shape.sequence * shape.channels;  // of a row of the batch
  float sum = 0;
  if (at < elements) {
    for (int64_t b = 0; b < shape.batch; ++b) sum += Element::widen(out_grad[b * elements + at]);
  }
  if (accumulate) sum += Element::widen(table[at]);
  table[at] = Element::narrow(sum);
}

}  // namespace

void embedding_forward(const LayerOps::Embedding& op, const EmbeddingShape& shape,
                       cudaStream_t stream) {
  with_runs(op.out.dtype, shape.channels,
            {op.token_table.data, op.position_table.data, op.out.data},
            [&](auto element, auto run) {
              using Element = decltype(element);
              using Stored = typename Element::Stored;
              constexpr int kRun = decltype(run)::value;
              const Embed<Element> args{.shape = shape,
                                        .tokens = op.tokens.template as<int32_t>(),
                                        .token_table = op.token_table.template as<Stored>(),
                                        .position_table = op.position_table.template as<Stored>(),
                                        .out = op.out.template as<Stored>(),
                                        .accumulate = op.accumulate};
              launch(&embed<Element, kRun>,
                     {.blocks = ceil_div(shape.rows() * shape.channels, kThreads * kRun),
                      .threads = kThreads,
                      .stream = stream},
                     args);
            });
}

void embedding_backward(const LayerOps::EmbeddingBackward& op, const EmbeddingShape& shape,
                        cudaStream_t stream) {
  const GradOutput &tokens = op.token_table, &positions = op.position_table;
  if (tokens.view && !tokens.accumulate) {
    check_cuda(cudaMemsetAsync(tokens.view.data, 0, tokens.view.bytes(), stream),
               "clearing a gradient");
  }
  with_element(op.out_grad.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    const auto* out_grad = op.out_grad.template as<Stored>();
    if (tokens.view) {
      const SumTokens<Element> args{.shape = shape,
                                    .tokens = op.tokens.template as<int32_t>(),
                                    .out_grad = out_grad,
                                    .table = tokens.view.template as<Stored>(),
                                    .accumulate = tokens.accumulate};
      launch(&sum_tokens<Element>,
             {.blocks = shape.rows(),
              .blocks_y = ceil_div(shape.channels, kThreads * kOwnChannels),
              .threads = kThreads,
              .stream = stream},
             args);
    }
    if (positions.view) {
      launch(&sum_positions<Element>,
             {.blocks = ceil_div(shape.positions * shape.channels, kThreads),
              .threads = kThreads,
              .stream = stream},
             shape, out_grad, positions.view.template as<Stored>(), positions.accumulate);
    }
  });
}

}  // namespace strata::ops::cuda
