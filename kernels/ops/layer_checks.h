// Whether the views of an operation fit each other, for every implementation of LayerOps. Throws
// Error in one sentence where they do not, and returns the shape where they do. Workspaces, whose
// sizes differ, are checked apart.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/dropout.h"
#include "kernels/ops/layer_shapes.h"
#include "strata/layer_ops.h"

namespace strata::ops {

// Rows and columns of a view whose last dimension is the columns.
int64_t columns_of(const TensorView& view);
int64_t rows_of(const TensorView& view);

// Refuses views that do not fit each other, for one operation.
class Check {
 public:
  Check(const char* op, DType dtype);

  // `view` has that shape, whatever its dimensions, and the operation's dtype.
  void matrix(const TensorView& view, const char* what, int64_t rows, int64_t columns) const {
    typed(view, dtype_, what, rows * columns);
  }
  void vector(const TensorView& view, const char* what, int64_t numel) const {
    typed(view, dtype_, what, numel);
  }
  void typed(const TensorView& view, DType dtype, const char* what, int64_t numel) const;
  void workspace(const TensorView& view, size_t bytes) const;
  DropoutStream stream(const DropoutSite& site, int64_t first_head = 0) const;
  void expect(bool condition, const char* what, const char* is) const;

 private:
  const char* op_;
  DType dtype_;
};

EmbeddingShape checked(const LayerOps::Embedding& op);
EmbeddingShape checked(const LayerOps::EmbeddingBackward& op);
RowShape checked(const LayerOps::LayerNorm& op);
RowShape checked(const LayerOps::LayerNormBackward& op);
RowShape checked(const LayerOps::RmsNorm& op);
RowShape checked(const LayerOps::RmsNormBackward& op);
void check(const LayerOps::Add& op);
LinearShape checked(const LayerOps::Linear& op);
LinearShape checked(const LayerOps::LinearBackward& op);
void check(const LayerOps::Gelu& op);
void check(const LayerOps::GeluBackward& op);
DropoutStream checked(const LayerOps::Dropout& op);

AttentionShape attention_shape(DType dtype, const Shape& qkv, int64_t heads);
struct AttentionCall {
  AttentionShape shape;
  DropoutStream dropout;  // of the first head
};
AttentionCall checked(const LayerOps::Attention& op);
AttentionCall checked(const LayerOps::AttentionBackward& op);

// Rows and classes of the logits.
RowShape checked(const LayerOps::CrossEntropy& op);
RowShape checked(const LayerOps::CrossEntropyPart& op);
RowShape checked(const LayerOps::CrossEntropyPartBackward& op);
void check(const LayerOps::CrossEntropyFinish& op);

}  // namespace strata::ops
