// The two branches off a GPT-2 block's residual stream,
//
//     out = residual + dropout(projection(attention(qkv(layer norm(x)))))
//     out = residual + dropout(down(gelu(up(layer norm(x)))))
//
// for some of the block's heads and some of the channels inside its MLP: all of them in a block, a
// tile's share in a tile, whose products with one share after the other add up to the whole.
//
// What a branch saves for backward is what is dear to compute: results of matrix products and of
// attention. Layer norms and GELU are computed a second time into the workspace: their inputs are
// saved anyway, they take no matrix product, and their outputs would be two thirds as much again.
// What dropout dropped is not saved: it is drawn again.
#pragma once

#include <cstdint>

#include "strata/carver.h"
#include "strata/layer.h"
#include "strata/layer_ops.h"
#include "strata/model.h"

namespace strata::models {

// Heads of attention and channels inside the MLP that a layer computes with.
struct BranchShare {
  int64_t first_head = 0, heads = 0;
  int64_t first_inner = 0, inner = 0;

  static BranchShare of_block(const Gpt2Config& config);
  // Of `tiles` nearly equal shares.
  static BranchShare of_tile(const Gpt2Config& config, int64_t tile, int64_t tiles);
};

// N = B*T rows, C channels, A channels of the share's heads, F of its inner ones.
struct BranchSizes {
  BatchShape batch;
  DType dtype;
  int64_t rows, channels, attended;
  BranchShare share;

  BranchSizes(const Gpt2Config& config, const BranchShare& of, const BatchShape& shape, DType type);
  Shape qkv() const { return {batch.batch, batch.sequence, 3 * attended}; }
  Shape attention() const { return {batch.batch, batch.sequence, attended}; }
};

struct AttentionSaved {
  TensorView qkv;        // (N, 3A)
  TensorView attention;  // what attention keeps
  TensorView attended;   // (N, A)

  AttentionSaved(Carver& carver, const ops::LayerOps& ops, const BranchSizes& sizes);
};

struct MlpSaved {
  TensorView up;  // (N, F) before GELU

  MlpSaved(Carver& carver, const BranchSizes& sizes);
};

// Buffers that the steps of a pass take in turn; the names say only how wide they are.
struct BranchWorkspace {
  TensorView narrow_a, narrow_b;  // (N, C)
  TensorView wide_a, wide_b;      // (N, max(F, 3A, C))
  TensorView mean, rstd;          // (N)
  TensorView scratch;             // of one operation at a time
  size_t bytes = 0;

  BranchWorkspace(std::byte* base, const ops::LayerOps& ops, const BranchSizes& sizes);
};

// Where a branch's parameters are among those of a layer's context.
struct BranchParams {
  int norm_weight, norm_bias;
  int in_weight, in_bias;    // qkv, or up
  int out_weight, out_bias;  // projection, or down; bias -1: another tile adds it
};

// Places of dropout, in order of use: their numbers are part of what a seed means.
enum class DropoutPlace : uint8_t { probabilities, attention, mlp };

// What forward and backward share: a context's views, cut once.
struct BranchPass {
  const LayerContext& context;
  const BranchSizes sizes;
  const BranchWorkspace workspace;
  const float eps;
  const double resid_pdrop, attn_pdrop;  // 0 in evaluation

  BranchPass(const LayerContext& c, const Gpt2Config& config, const BranchShare& share,
             bool training);
};

// What a branch reads and what it adds to; null `out`: only what is saved is wanted. `residual` may
// be `out`, and `x` not.
struct BranchForward {
  BranchParams params;
  TensorView x;         // (N, C)
  TensorView residual;  // (N, C)
  TensorView out;       // (N, C)
};
void attention_forward(const BranchPass& pass, const BranchForward& branch,
                       const AttentionSaved& saved);
void mlp_forward(const BranchPass& pass, const BranchForward& branch, const MlpSaved& saved);

// x_grad = residual_grad + the branch's part of it. `residual_grad` may be null, out_grad or
// x_grad; x_grad may be the workspace's narrow_a, and out_grad for attention too.
struct BranchBackward {
  BranchParams params;
  std::span<const ParameterGrad> grads;  // as the context's parameters
  TensorView x;                          // (N, C)
  TensorView out_grad;                   // (N, C)
  TensorView residual_grad;              // (N, C)
  TensorView x_grad;                     // (N, C)
};
void attention_backward(const BranchPass& pass, const BranchBackward& branch,
                        const AttentionSaved& saved);
void mlp_backward(const BranchPass& pass, const BranchBackward& branch, const MlpSaved& saved);

}  // namespace strata::models
