// LayerOps on a host queue: checks shapes, packs pointers, and enqueues the functions beside it.
//
// Called by one thread, as its queue is. What is prepared once a shape (oneDNN's products) belongs
// to the queue's tasks; the sizes it asked for are remembered on the caller's side.
#pragma once

#include <map>

#include "kernels/ops/cpu/attention.h"
#include "kernels/ops/cpu/linear.h"
#include "kernels/ops/cpu/matmul.h"
#include "kernels/ops/layer_ops.h"

namespace strata::ops {

class HostLayerOps final : public LayerOps {
 public:
  // `queue` must outlive this and have a team of `threads`.
  HostLayerOps(Queue& queue, int threads);
  // Waits for the work enqueued here; drops its failure.
  ~HostLayerOps() override;

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
  DType product_dtype(DType dtype) const override;

 private:
  // What attention's workspace depends on.
  struct HeadShape {
    int64_t sequence;
    int64_t channels;
    DType dtype;
    auto operator<=>(const HeadShape&) const = default;
  };

  // Touched by the queue's tasks alone, but for what never changes.
  struct Prepared {
    explicit Prepared(int threads) : matmuls(threads), attention(matmuls, threads) {}

    cpu::MatmulCache matmuls;
    cpu::Attention attention;
  };

  void check_workspace(const TensorView& workspace, const LinearShape& shape) const;

  Queue& queue_;
  mutable Prepared prepared_;
  mutable std::map<LinearShape, size_t> linear_bytes_;
  mutable std::map<HeadShape, size_t> attention_bytes_;
  mutable size_t answer_ = 0;  // to what the queue was asked last: not on the stack of who waits
};

}  // namespace strata::ops
