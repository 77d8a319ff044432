// The linear layer on the GPU. Only for files compiled with the toolkit.
#pragma once

#include <cstddef>

#include "kernels/ops/cuda/matmul.cuh"
#include "kernels/ops/layer_shapes.h"
#include "strata/layer_ops.h"

namespace strata::ops::cuda {

// Scratch for any forward or backward of that shape.
size_t linear_workspace_bytes(const MatmulCache& matmuls, const LinearShape& shape);
void linear_forward(MatmulCache& matmuls, const LayerOps::Linear& op, const LinearShape& shape,
                    cudaStream_t stream);
void linear_backward(MatmulCache& matmuls, const LayerOps::LinearBackward& op,
                     const LinearShape& shape, cudaStream_t stream);

}  // namespace strata::ops::cuda
