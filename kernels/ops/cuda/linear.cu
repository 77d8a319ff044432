#include "kernels/ops/cuda/linear.cuh"

#include <algorithm>

#include "kernels/ops/cuda/layer_kernels.cuh"

namespace strata::ops::cuda {
namespace {

// cuBLASLt's workspace begins where it likes it to, whatever the caller's alignment.
constexpr size_t kAlignmentBytes = 256;

void* aligned(const TensorView& workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace.data);
  return reinterpret_cast<void*>((address + kAlignmentBytes - 1) & ~(kAlignmentBytes - 1));
}

const void* added(const GradOutput& output) {
  return output.accumulate ? output.view.data : nullptr;
}

}  // namespace

size_t linear_workspace_bytes(const MatmulCache& matmuls, const LinearShape& shape) {
  return kAlignmentBytes +
         std::max(matmuls.workspace_bytes(), column_sum_bytes({shape.rows, shape.out}));
}

void linear_forward(MatmulCache& matmuls, const LayerOps::Linear& op, const LinearShape& shape,
                    cudaStream_t stream) {
  matmuls.run({.m = shape.rows,
               .k = shape.in,
               .n = shape.out,
               .dtype = shape.dtype,
               .transpose_b = shape.weight_transposed},
              {.a = op.x.data,
               .b = op.weight.data,
               .bias = op.bias.data,
               .add = op.residual.data,
               .out = op.out.data,
               .workspace = aligned(op.workspace)},
              stream);
}

void linear_backward(MatmulCache& matmuls, const LayerOps::LinearBackward& op,
                     const LinearShape& shape, cudaStream_t stream) {
  void* workspace = aligned(op.workspace);
  if (op.x_grad) {  // out_grad . weight^T
    matmuls.run(
        {.m = shape.rows,
         .k = shape.out,
         .n = shape.in,
         .dtype = shape.dtype,
         .transpose_b = !shape.weight_transposed},
        {.a = op.out_grad.data, .b = op.weight.data, .out = op.x_grad.data, .workspace = workspace},
        stream);
  }
  if (op.weight_grad.view) {  // x^T . out_grad, or out_grad^T . x for a transposed weight
    const bool transposed = shape.weight_transposed;
    matmuls.run({.m = transposed ? shape.out : shape.in,
                 .k = shape.rows,
                 .n = transposed ? shape.in : shape.out,
                 .dtype = shape.dtype,
                 .transpose_a = true},
                {.a = transposed ? op.out_grad.data : op.x.data,
                 .b = transposed ? op.x.data : op.out_grad.data,
                 .add = added(op.weight_grad),
                 .out = op.weight_grad.view.data,
                 .workspace = workspace},
                stream);
  }
  sum_columns({.x = op.out_grad.data,
               .shape = {shape.rows, shape.out},
               .dtype = shape.dtype,
               .target = op.bias_grad,
               .partials = workspace},
              stream);
}

}  // namespace strata::ops::cuda
