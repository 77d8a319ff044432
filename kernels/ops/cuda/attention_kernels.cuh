// The kernels behind attention_forward and attention_backward: tensor cores for 16-bit dtypes, and
// plain arithmetic for fp32. Only for files compiled with the toolkit.
//
// No score leaves the chip: forward goes over blocks of keys with a running maximum and sum, and
// keeps the logarithm of each row's sum, from which backward computes the probabilities again
// (FlashAttention, Dao et al. 2022). Backward is two passes without an atomic: one over queries for
// each block of keys, for the gradients of k and v, and one over keys for each block of queries,
// for q's.
#pragma once

#include "kernels/ops/cuda/layer_kernels.cuh"

namespace strata::ops::cuda {

inline constexpr int kMaxHeadChannels = 256;

void attention_forward_tensor(const LayerOps::Attention& op, const AttentionCall& call,
                              cudaStream_t stream);
void attention_forward_plain(const LayerOps::Attention& op, const AttentionCall& call,
                             cudaStream_t stream);

// `dots` (batch, heads, sequence) fp32: the rows' products out . out_grad.
void attention_backward_tensor(const LayerOps::AttentionBackward& op, const AttentionCall& call,
                               const float* dots, cudaStream_t stream);
void attention_backward_plain(const LayerOps::AttentionBackward& op, const AttentionCall& call,
                              const float* dots, cudaStream_t stream);

}  // namespace strata::ops::cuda
