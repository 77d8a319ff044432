#include "kernels/ops/cuda/cuda_layer_ops.cuh"

#include <string>

#include "kernels/device/cuda_error.cuh"
#include "kernels/ops/cuda/layer_kernels.cuh"
#include "kernels/ops/layer_checks.h"
#include "strata/error.h"

namespace strata::ops {
namespace {

cudaStream_t stream_of(const Queue& queue) {
  if (queue.native_handle() != nullptr) return static_cast<cudaStream_t>(queue.native_handle());
  throw DeviceError(std::string("queue '") + queue.name() + "' is not of a CUDA device.");
}

// Makes it the calling thread's too.
int select_device_of(cudaStream_t stream) {
  int device = 0;
  check_cuda(cudaStreamGetDevice(stream, &device), "asking a stream for its device");
  check_cuda(cudaSetDevice(device), "selecting a CUDA device");
  return device;
}

void check_heads(const Check& check, const AttentionShape& shape) {
  check.expect(cuda::attention_takes(shape.head_channels), "the channels of a head",
               "256 at most on a CUDA device");
}

std::string outside(const cuda::Verdict& verdict, const char* what, int64_t vocab) {
  return std::string(what) + " " + std::to_string(verdict.id) + " in row " +
         std::to_string(verdict.row) + " is outside a vocabulary of " + std::to_string(vocab) + ".";
}

}  // namespace

CudaLayerOps::CudaLayerOps(Queue& queue)
    : queue_(queue), stream_(stream_of(queue)), device_(select_device_of(stream_)) {}

CudaLayerOps::~CudaLayerOps() { queue_.finish(); }

template <typename Work>
void CudaLayerOps::launch(const Work& work) {
  if (queue_.failed()) return;
  check_cuda(cudaSetDevice(device_), "selecting a CUDA device");
  work(stream_);
}

void CudaLayerOps::scan_tokens(const TensorView& tokens, const EmbeddingShape& shape) {
  launch([&](cudaStream_t stream) {
    cuda::scan_ids({.ids = tokens.as<int32_t>(),
                    .rows = shape.rows(),
                    .end = shape.vocab,
                    .verdict = verdict_.get()},
                   stream);
  });
}

void CudaLayerOps::refuse_tokens(int64_t vocab) {
  queue_.run([verdict = verdict_.get(), vocab] {
    if (verdict->row >= 0) throw Error("embedding: " + outside(*verdict, "token", vocab));
  });
}

void CudaLayerOps::refuse_targets(int64_t classes) {
  queue_.run([verdict = verdict_.get(), classes] {
    if (verdict->row >= 0) throw Error("cross_entropy: " + outside(*verdict, "target", classes));
  });
}

void CudaLayerOps::embedding_forward(const Embedding& op) {
  const EmbeddingShape shape = checked(op);
  scan_tokens(op.tokens, shape);
  launch([&](cudaStream_t stream) { cuda::embedding_forward(op, shape, stream); });
  refuse_tokens(shape.vocab);
}

void CudaLayerOps::embedding_backward(const EmbeddingBackward& op) {
  const EmbeddingShape shape = checked(op);
  if (op.token_table.view) scan_tokens(op.tokens, shape);
  launch([&](cudaStream_t stream) { cuda::embedding_backward(op, shape, stream); });
  if (op.token_table.view) refuse_tokens(shape.vocab);
}

void CudaLayerOps::layer_norm_forward(const LayerNorm& op) {
  launch([&](cudaStream_t stream) { cuda::layer_norm_forward(op, checked(op), stream); });
}

void CudaLayerOps::layer_norm_backward(const LayerNormBackward& op) {
  const RowShape shape = checked(op);
  Check("layer_norm", op.x.dtype)
      .workspace(op.workspace, layer_norm_workspace_bytes(shape.rows, shape.columns));
  launch([&](cudaStream_t stream) { cuda::layer_norm_backward(op, shape, stream); });
}

size_t CudaLayerOps::layer_norm_workspace_bytes(int64_t rows, int64_t channels) const {
  return cuda::layer_norm_workspace_bytes({rows, channels});
}

void CudaLayerOps::rms_norm_forward(const RmsNorm& op) {
  const RowShape shape = checked(op);
  launch([&](cudaStream_t stream) { cuda::rms_norm_forward(op, shape, stream); });
}

void CudaLayerOps::rms_norm_backward(const RmsNormBackward& op) {
  const RowShape shape = checked(op);
  Check("rms_norm", op.x.dtype)
      .workspace(op.workspace, rms_norm_workspace_bytes(shape.rows, shape.columns));
  launch([&](cudaStream_t stream) { cuda::rms_norm_backward(op, shape, stream); });
}

size_t CudaLayerOps::rms_norm_workspace_bytes(int64_t rows, int64_t channels) const {
  return cuda::rms_norm_workspace_bytes({rows, channels});
}

void CudaLayerOps::add(const Add& op) {
  check(op);
  launch([&](cudaStream_t stream) { cuda::add(op.x, op.y, op.out, stream); });
}

void CudaLayerOps::linear_forward(const Linear& op) {
  const LinearShape shape = checked(op);
  Check("linear", shape.dtype)
      .workspace(op.workspace, cuda::linear_workspace_bytes(matmuls_, shape));
  launch([&](cudaStream_t stream) { cuda::linear_forward(matmuls_, op, shape, stream); });
}

void CudaLayerOps::linear_backward(const LinearBackward& op) {
  const LinearShape shape = checked(op);
  Check("linear", shape.dtype)
      .workspace(op.workspace, cuda::linear_workspace_bytes(matmuls_, shape));
  launch([&](cudaStream_t stream) { cuda::linear_backward(matmuls_, op, shape, stream); });
}

size_t CudaLayerOps::linear_workspace_bytes(DType dtype, int64_t rows, int64_t in, int64_t out,
                                            bool weight_transposed) const {
  return cuda::linear_workspace_bytes(matmuls_, {rows, in, out, dtype, weight_transposed});
}

void CudaLayerOps::gelu_forward(const Gelu& op) {
  check(op);
  launch([&](cudaStream_t stream) { cuda::gelu_forward(op, stream); });
}

void CudaLayerOps::gelu_backward(const GeluBackward& op) {
  check(op);
  launch([&](cudaStream_t stream) { cuda::gelu_backward(op, stream); });
}

void CudaLayerOps::dropout(const Dropout& op) {
  launch([&](cudaStream_t stream) { cuda::dropout(op, checked(op), stream); });
}

void CudaLayerOps::attention_forward(const Attention& op) {
  const AttentionCall call = checked(op);
  check_heads(Check("attention", call.shape.dtype), call.shape);
  launch([&](cudaStream_t stream) { cuda::attention_forward(op, call, stream); });
}

void CudaLayerOps::attention_backward(const AttentionBackward& op) {
  const AttentionCall call = checked(op);
  const Check check("attention", call.shape.dtype);
  check_heads(check, call.shape);
  check.workspace(op.workspace, cuda::attention_workspace_bytes(call.shape));
  launch([&](cudaStream_t stream) { cuda::attention_backward(op, call, stream); });
}

size_t CudaLayerOps::attention_saved_bytes(DType dtype, const Shape& qkv, int64_t heads) const {
  return ops::attention_saved_bytes(attention_shape(dtype, qkv, heads));
}

size_t CudaLayerOps::attention_workspace_bytes(DType dtype, const Shape& qkv, int64_t heads) const {
  const AttentionShape shape = attention_shape(dtype, qkv, heads);
  check_heads(Check("attention", dtype), shape);
  return cuda::attention_workspace_bytes(shape);
}

void CudaLayerOps::cross_entropy(const CrossEntropy& op) {
  const RowShape shape = checked(op);
  Check("cross_entropy", op.logits.dtype)
      .workspace(op.workspace, cross_entropy_workspace_bytes(shape.rows));
  launch([&](cudaStream_t stream) { cuda::cross_entropy(op, shape, verdict_.get(), stream); });
  refuse_targets(shape.columns);
}

size_t CudaLayerOps::cross_entropy_workspace_bytes(int64_t rows) const {
  return cuda::cross_entropy_workspace_bytes(rows);
}

void CudaLayerOps::cross_entropy_part(const CrossEntropyPart& op) {
  launch([&](cudaStream_t stream) { cuda::cross_entropy_part(op, checked(op), stream); });
}

void CudaLayerOps::cross_entropy_finish(const CrossEntropyFinish& op) {
  check(op);
  launch([&](cudaStream_t stream) { cuda::cross_entropy_finish(op, verdict_.get(), stream); });
  refuse_targets(op.classes);
}

void CudaLayerOps::cross_entropy_part_backward(const CrossEntropyPartBackward& op) {
  launch([&](cudaStream_t stream) { cuda::cross_entropy_part_backward(op, checked(op), stream); });
}

std::unique_ptr<LayerOps> make_cuda_layer_ops(Queue& queue) {
  return std::make_unique<CudaLayerOps>(queue);
}

}  // namespace strata::ops
