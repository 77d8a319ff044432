#include "engine/model/gpt2_layers.h"
#include "engine/model/tile_slices.h"
#include "engine/model/views.h"
#include "strata/carver.h"
#include "strata/layer_ops.h"

namespace strata::models {
namespace {

enum Param { kTokens, kPositions };  // the positions in the first tile alone

Parameter table(const char* name, int64_t rows, const Gpt2Config& config) {
  const Initializer normal = {Initializer::Kind::normal, config.initializer_range};
  return {name, {rows, config.n_embd}, normal, true, true};
}

}  // namespace

VocabShare VocabShare::of_tile(const Gpt2Config& config, int64_t tile, int64_t tiles) {
  const TileRange range = tile_range(config.vocab_size, tile, tiles);
  return {tile, tiles, range.begin, range.count};
}

std::string VocabShare::named(const std::string& whole) const {
  return is_whole() ? whole : tile_name(whole, tile);
}

Parameter token_table(const Gpt2Config& config, const VocabShare& share) {
  const Parameter whole = table("transformer.wte.weight", config.vocab_size, config);
  if (share.is_whole()) return whole;
  return tile_slice(whole, whole.shape, 0, {share.first_token, share.tokens}, share.tile);
}

std::vector<Parameter> Gpt2Embedding::parameters() const {
  std::vector<Parameter> parameters = {token_table(config_, share_)};
  if (adds_positions()) {
    parameters.push_back(table("transformer.wpe.weight", config_.n_positions, config_));
  }
  return parameters;
}

// With dropout backward makes the gradient of the sum in the workspace, and a further tile its part
// of the sum.
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
  const ops::DropoutSite dropped = site(context.random);
  const bool drops = context.training && dropped.drops();
  TensorView sum = context.output;
  if (drops && context.accumulate) sum.data = context.workspace;
  context.ops.embedding_forward(
      {.tokens = context.tokens,
       .token_table = context.params[kTokens],
       .position_table = adds_positions() ? context.params[kPositions] : TensorView{},
       .out = sum,
       .accumulate = context.accumulate && !drops,
       .first_token = share_.first_token,
       .vocab = config_.vocab_size});
  if (!drops) return;
  context.ops.dropout({.x = sum,
                       .residual = context.accumulate ? context.output : TensorView{},
                       .out = context.output,
                       .site = dropped});
}

void Gpt2Embedding::backward(const LayerBackward& context) const {
  TensorView sum_grad = context.output_grad;
  const ops::DropoutSite dropped = site(context.random);
  if (dropped.drops()) {
    sum_grad.data = context.workspace;
    context.ops.dropout({.x = context.output_grad, .out = sum_grad, .site = dropped});
  }
  context.ops.embedding_backward(
      {.tokens = context.tokens,
       .out_grad = sum_grad,
       .token_table = wanted(context.grads[kTokens]),
       .position_table = adds_positions() ? wanted(context.grads[kPositions]) : ops::GradOutput{},
       .first_token = share_.first_token,
       .vocab = config_.vocab_size});
}

}  // namespace strata::models
