// Chooses among the kernels of attention, and what backward needs before them.
#include "kernels/ops/cuda/attention_kernels.cuh"
#include "kernels/ops/cuda/element.h"
#include "kernels/ops/cuda/launch-inl.cuh"
#include "kernels/ops/cuda/pack-inl.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kRowsTogether = 4;  // of a block, a warp each

// dots (batch, heads, sequence) = out . out_grad of each row and head: the sum over keys of a
// probability times its gradient, with dropout's factors in it.
template <typename Element>
__global__ void __launch_bounds__(kRowsTogether* kWarp)
    dot_rows(const typename Element::Stored* out, const typename Element::Stored* out_grad,
             AttentionShape shape, float* dots) {
  const int64_t number = int64_t{blockIdx.x} * kRowsTogether + threadIdx.x / kWarp;
  if (number >= shape.batch * shape.sequence * shape.heads) return;
  float sum = 0;  // the rows of heads lie in the order (batch, sequence, heads)
  for (int64_t i = threadIdx.x % kWarp; i < shape.head_channels; i += kWarp) {
    const int64_t at = number * shape.head_channels + i;
    sum = fmaf(Element::widen(out[at]), Element::widen(out_grad[at]), sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp != 0) return;
  const int64_t head = number % shape.heads, row = number / shape.heads;
  const int64_t batch = row / shape.sequence;
  dots[(batch * shape.heads + head) * shape.sequence + row % shape.sequence] = sum;
}

}  // namespace

bool attention_takes(int64_t head_channels) { return head_channels <= kMaxHeadChannels; }

void attention_forward(const LayerOps::Attention& op, const AttentionCall& call,
                       cudaStream_t stream) {
  if (call.shape.dtype == DType::fp32) return attention_forward_plain(op, call, stream);
  attention_forward_tensor(op, call, stream);
}

void attention_backward(const LayerOps::AttentionBackward& op, const AttentionCall& call,
                        cudaStream_t stream) {
  auto* dots = op.workspace.as<float>();
  with_element(call.shape.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    const int64_t rows = call.shape.batch * call.shape.sequence * call.shape.heads;
    launch(&dot_rows<Element>,
           {.blocks = ceil_div(rows, kRowsTogether),
            .threads = kRowsTogether * kWarp,
            .stream = stream},
           op.out.template as<Stored>(), op.out_grad.template as<Stored>(), call.shape, dots);
  });
  if (call.shape.dtype == DType::fp32) return attention_backward_plain(op, call, dots, stream);
  attention_backward_tensor(op, call, dots, stream);
}

size_t attention_workspace_bytes(const AttentionShape& shape) {
  return attention_saved_bytes(shape);  // a number a row and head, as many as are saved
}

}  // namespace strata::ops::cuda
