#include "engine/model/gpt2_layers.h"
#include "engine/model/views.h"
#include "strata/carver.h"
#include "strata/layer_ops.h"

namespace strata::models {
namespace {

enum Param { kTokens, kPositions };

}  // namespace

std::vector<Parameter> Gpt2Embedding::parameters() const {
  const Initializer normal = {Initializer::Kind::normal, config_.initializer_range};
  return {{"transformer.wte.weight", {config_.vocab_size, config_.n_embd}, normal, true, true},
          {"transformer.wpe.weight", {config_.n_positions, config_.n_embd}, normal, true, true}};
}

// With dropout backward makes the gradient of the sum in the workspace.
LayerFootprint Gpt2Embedding::footprint(const ops::LayerOps&, const BatchShape& batch,
                                        DType dtype) const {
  if (!site({}).drops()) return {};
  Carver carver(nullptr);
  carver.take(dtype, {batch.tokens(), config_.n_embd});
  return {.saved_bytes = 0, .workspace_bytes = carver.used_bytes()};
}

ops::DropoutSite Gpt2Embedding::site(const RandomKey& random) const {
  return {.probability = config_.embd_pdrop, .key = random, .site = 0};
}

void Gpt2Embedding::forward(const LayerForward& context) const {
  if (!context.output) return;
  context.ops.embedding_forward({.tokens = context.tokens,
                                 .token_table = context.params[kTokens],
                                 .position_table = context.params[kPositions],
                                 .out = context.output});
  const ops::DropoutSite dropped = site(context.random);
  if (context.training && dropped.drops()) {
    context.ops.dropout({.x = context.output, .out = context.output, .site = dropped});
  }
}

void Gpt2Embedding::backward(const LayerBackward& context) const {
  TensorView sum_grad = context.output_grad;
  const ops::DropoutSite dropped = site(context.random);
  if (dropped.drops()) {
    sum_grad.data = context.workspace;
    context.ops.dropout({.x = context.output_grad, .out = sum_grad, .site = dropped});
  }
  context.ops.embedding_backward({.tokens = context.tokens,
                                  .out_grad = sum_grad,
                                  .token_table = wanted(context.grads[kTokens]),
                                  .position_table = wanted(context.grads[kPositions])});
}

}  // namespace strata::models
