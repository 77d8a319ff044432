// What CudaLayerOps enqueues, once the views of an operation are known to fit each other. Only for
// files compiled with the toolkit.
//
// All on the current CUDA device, which is the stream's. Each throws DeviceError where CUDA refuses
// the launch. The same bits come out for the same inputs at the same alignment to 16 bytes: no
// kernel adds floating-point numbers in an order that depends on timing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/ops/cuda/scan_ids.cuh"
#include "kernels/ops/dropout.h"
#include "kernels/ops/layer_checks.h"
#include "kernels/ops/layer_shapes.h"
#include "strata/layer_ops.h"

namespace strata::ops::cuda {

// Tokens outside the vocabulary have no row; scan_ids() finds them.
void embedding_forward(const LayerOps::Embedding& op, const EmbeddingShape& shape,
                       cudaStream_t stream);
void embedding_backward(const LayerOps::EmbeddingBackward& op, const EmbeddingShape& shape,
                        cudaStream_t stream);

void layer_norm_forward(const LayerOps::LayerNorm& op, const RowShape& shape, cudaStream_t stream);
void layer_norm_backward(const LayerOps::LayerNormBackward& op, const RowShape& shape,
                         cudaStream_t stream);
size_t layer_norm_workspace_bytes(const RowShape& shape);
void rms_norm_forward(const LayerOps::RmsNorm& op, const RowShape& shape, cudaStream_t stream);
void rms_norm_backward(const LayerOps::RmsNormBackward& op, const RowShape& shape,
                       cudaStream_t stream);
size_t rms_norm_workspace_bytes(const RowShape& shape);

// target (columns) = the sum of the rows of x. `partials` is column_sum_bytes of scratch. Does
// nothing when the target is not wanted.
struct ColumnSum {
  const void* x = nullptr;
  RowShape shape;
  DType dtype = DType::fp32;
  GradOutput target;
  void* partials = nullptr;
};
void sum_columns(const ColumnSum& sum, cudaStream_t stream);
size_t column_sum_bytes(const RowShape& shape);

void gelu_forward(const LayerOps::Gelu& op, cudaStream_t stream);
void gelu_backward(const LayerOps::GeluBackward& op, cudaStream_t stream);
// out = x + y; a null y is zero.
void add(const TensorView& x, const TensorView& y, const TensorView& out, cudaStream_t stream);
void dropout(const LayerOps::Dropout& op, const DropoutStream& dropout, cudaStream_t stream);

// Whether there is a kernel for heads of that size.
bool attention_takes(int64_t head_channels);
void attention_forward(const LayerOps::Attention& op, const AttentionCall& call,
                       cudaStream_t stream);
void attention_backward(const LayerOps::AttentionBackward& op, const AttentionCall& call,
                        cudaStream_t stream);
size_t attention_workspace_bytes(const AttentionShape& shape);

// `verdict` is pinned, and says which target is outside the vocabulary.
void cross_entropy(const LayerOps::CrossEntropy& op, const RowShape& shape, Verdict* verdict,
                   cudaStream_t stream);
size_t cross_entropy_workspace_bytes(int64_t rows);
void cross_entropy_part(const LayerOps::CrossEntropyPart& op, const RowShape& shape,
                        cudaStream_t stream);
void cross_entropy_finish(const LayerOps::CrossEntropyFinish& op, Verdict* verdict,
                          cudaStream_t stream);
void cross_entropy_part_backward(const LayerOps::CrossEntropyPartBackward& op,
                                 const RowShape& shape, cudaStream_t stream);

}  // namespace strata::ops::cuda
