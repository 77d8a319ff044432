#include "engine/model/gpt2_layers.h"
#include "engine/model/views.h"
#include "kernels/ops/layer_ops.h"

namespace strata::models {
namespace {

enum Param { kTokens, kPositions };

}  // namespace

std::vector<Parameter> Gpt2Embedding::parameters() const {
  const Initializer normal = {Initializer::Kind::normal, config_.initializer_range};
  return {{"transformer.wte.weight", {config_.vocab_size, config_.n_embd}, normal, true, true},
          {"transformer.wpe.weight", {config_.n_positions, config_.n_embd}, normal, true, true}};
}

LayerFootprint Gpt2Embedding::footprint(const ops::LayerOps&, const BatchShape&, DType) const {
  return {};
}

void Gpt2Embedding::forward(const LayerForward& context) const {
  if (!context.output) return;
  context.ops.embedding_forward({.tokens = context.tokens,
                                 .token_table = context.params[kTokens],
                                 .position_table = context.params[kPositions],
                                 .out = context.output});
}

void Gpt2Embedding::backward(const LayerBackward& context) const {
  context.ops.embedding_backward({.tokens = context.tokens,
                                  .out_grad = context.output_grad,
                                  .token_table = wanted(context.grads[kTokens]),
                                  .position_table = wanted(context.grads[kPositions])});
}

}  // namespace strata::models
