// LayerOps on a queue of a CUDA device: checks shapes and launches the kernels beside it on the
// queue's stream. Only for files compiled with the toolkit.
//
// Called by one thread, as its queue is. Kernels are no points of the queue of their own: an event
// recorded behind them is reached when they are done. A task of the queue behind embedding and
// cross-entropy throws what the kernels found wrong with tokens and targets.
#pragma once

#include "kernels/ops/cuda/linear.cuh"
#include "kernels/ops/cuda/scan_ids.cuh"
#include "kernels/ops/layer_ops.h"
#include "kernels/ops/layer_shapes.h"

namespace strata::ops {

class CudaLayerOps final : public LayerOps {
 public:
  // `queue` must outlive this.
  explicit CudaLayerOps(Queue& queue);
  // Waits for the work enqueued here; drops its failure.
  ~CudaLayerOps() override;

  Queue& queue() override { return queue_; }

  void embedding_forward(const Embedding& op) override;
  void embedding_backward(const EmbeddingBackward& op) override;
  void layer_norm_forward(const LayerNorm& op) override;
  void layer_norm_backward(const LayerNormBackward& op) override;
  size_t layer_norm_workspace_bytes(int64_t rows, int64_t channels) const override;
  void rms_norm_forward(const RmsNorm& op) override;
  void rms_norm_backward(const RmsNormBackward& op) override;
  size_t rms_norm_workspace_bytes(int64_t rows, int64_t channels) const override;
  void add(const Add& op) override;
  void linear_forward(const Linear& op) override;
  void linear_backward(const LinearBackward& op) override;
  size_t linear_workspace_bytes(DType dtype, int64_t rows, int64_t in, int64_t out,
                                bool weight_transposed) const override;
  void gelu_forward(const Gelu& op) override;
  void gelu_backward(const GeluBackward& op) override;
  void dropout(const Dropout& op) override;
  void attention_forward(const Attention& op) override;
  void attention_backward(const AttentionBackward& op) override;
  size_t attention_saved_bytes(DType dtype, const Shape& qkv, int64_t heads) const override;
  size_t attention_workspace_bytes(DType dtype, const Shape& qkv, int64_t heads) const override;
  void cross_entropy(const CrossEntropy& op) override;
  size_t cross_entropy_workspace_bytes(int64_t rows) const override;
  void cross_entropy_part(const CrossEntropyPart& op) override;
  void cross_entropy_finish(const CrossEntropyFinish& op) override;
  void cross_entropy_part_backward(const CrossEntropyPartBackward& op) override;
  DType product_dtype(DType dtype) const override { return dtype; }

 private:
  // work(stream), with the stream's device the calling thread's. Nothing where the queue is known
  // to be poisoned, as its tasks are skipped: what they would have made is not there.
  template <typename Work>
  void launch(const Work& work);
  void scan_tokens(const TensorView& tokens, const EmbeddingShape& shape);
  // Behind the kernels that found a verdict: a task that throws it.
  void refuse_tokens(int64_t vocab);
  void refuse_targets(int64_t classes);

  Queue& queue_;
  const cudaStream_t stream_;
  const int device_;
  const cuda::PinnedVerdict verdict_;
  cuda::MatmulCache matmuls_;
};

}  // namespace strata::ops
