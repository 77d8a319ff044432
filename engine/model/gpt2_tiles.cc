#include <utility>

#include "engine/model/gpt2_layers.h"
#include "engine/model/tile_slices.h"
#include "strata/carver.h"
#include "strata/layer_ops.h"

namespace strata::models {
namespace {

std::string branch_name(int64_t block, Gpt2Branch branch) {
  return block_name(block) + (branch == Gpt2Branch::attention ? ".attn" : ".mlp");
}

std::vector<Parameter> norm_parameters(const Gpt2Config& config, int64_t block, Gpt2Branch branch) {
  const std::vector<Parameter> whole = block_parameters(config, block);
  const bool is_attention = branch == Gpt2Branch::attention;
  return {whole[is_attention ? kNorm1Weight : kNorm2Weight],
          whole[is_attention ? kNorm1Bias : kNorm2Bias]};
}

BranchShare share_of(const Gpt2Config& config, Gpt2Branch branch, int64_t tile, int64_t tiles) {
  BranchShare share = BranchShare::of_tile(config, tile, tiles);
  (branch == Gpt2Branch::attention ? share.inner : share.heads) = 0;
  return share;
}

// Tiles of a block's parameters.
class Slices {
 public:
  Slices(const Gpt2Config& config, int64_t block, int64_t tile)
      : whole_(block_parameters(config, block)), tile_(tile) {}

  Parameter cut(BlockParam which, const Shape& shape, size_t dim, const TileRange& range) const {
    return tile_slice(whole(which), shape, dim, range, tile_);
  }
  const Parameter& whole(BlockParam which) const { return whole_[which]; }

 private:
  const std::vector<Parameter> whole_;
  const int64_t tile_;
};

}  // namespace

std::string Gpt2Residual::name() const { return branch_name(block_, branch_); }

std::vector<Parameter> Gpt2Residual::parameters() const {
  return norm_parameters(config_, block_, branch_);
}

void Gpt2Residual::forward(const LayerForward& context) const {
  if (context.output) context.ops.add({.x = context.input, .out = context.output});
}

// The tiles before it have added their parts of the layer norm's gradients.
void Gpt2Residual::backward(const LayerBackward& context) const {
  context.ops.add({.x = context.output_grad,
                   .y = context.accumulate ? context.input_grad : TensorView{},
                   .out = context.input_grad});
}

Gpt2Tile::Gpt2Tile(const Gpt2Config& config, int64_t block, Gpt2Branch branch, int64_t tile,
                   int64_t tiles)
    : config_(config),
      block_(block),
      branch_(branch),
      tile_(tile),
      share_(share_of(config, branch, tile, tiles)) {}

std::string Gpt2Tile::name() const { return tile_name(branch_name(block_, branch_), tile_); }

std::vector<Parameter> Gpt2Tile::parameters() const {
  const Slices slices(config_, block_, tile_);
  const int64_t channels = config_.n_embd;
  const int64_t head = channels / config_.n_head;
  const TileRange range = is_attention() ? TileRange{share_.first_head * head, share_.heads * head}
                                         : TileRange{share_.first_inner, share_.inner};
  const int64_t inner = BranchShare::of_block(config_).inner;
  std::vector<Parameter> parameters;
  if (is_attention()) {
    parameters = {slices.cut(kQkvWeight, {channels, 3, channels}, 2, range),
                  slices.cut(kQkvBias, {3, channels}, 1, range),
                  slices.cut(kProjectionWeight, {channels, channels}, 0, range)};
  } else {
    parameters = {slices.cut(kUpWeight, {channels, inner}, 1, range),
                  slices.cut(kUpBias, {inner}, 0, range),
                  slices.cut(kDownWeight, {inner, channels}, 0, range)};
  }
  if (tile_ == 0) parameters.push_back(slices.whole(is_attention() ? kProjectionBias : kDownBias));
  return parameters;
}

std::vector<std::string> Gpt2Tile::shared_parameters() const {
  std::vector<std::string> names;
  for (Parameter& norm : norm_parameters(config_, block_, branch_)) {
    names.push_back(std::move(norm.name));
  }
  return names;
}

// Its own parameters, then the shared ones.
BranchParams Gpt2Tile::params() const {
  const int own = tile_ == 0 ? 4 : 3;
  return {.norm_weight = own,
          .norm_bias = own + 1,
          .in_weight = 0,
          .in_bias = 1,
          .out_weight = 2,
          .out_bias = tile_ == 0 ? 3 : -1};
}

LayerFootprint Gpt2Tile::footprint(const ops::LayerOps& ops, const BatchShape& batch,
                                   DType dtype) const {
  const BranchSizes sizes(config_, share_, batch, dtype);
  Carver carver(nullptr);
  if (is_attention()) {
    const AttentionSaved saved(carver, ops, sizes);
  } else {
    const MlpSaved saved(carver, sizes);
  }
  return {carver.used_bytes(), BranchWorkspace(nullptr, ops, sizes).bytes};
}

void Gpt2Tile::forward(const LayerForward& context) const {
  const BranchPass pass(context, config_, share_, context.training);
  const BranchForward branch{.params = params(),
                             .x = context.input,
                             .residual = context.accumulate ? context.output : TensorView{},
                             .out = context.output};
  Carver carver(context.saved);
  if (is_attention()) {
    attention_forward(pass, branch, AttentionSaved(carver, context.ops, pass.sizes));
  } else {
    mlp_forward(pass, branch, MlpSaved(carver, pass.sizes));
  }
}

void Gpt2Tile::backward(const LayerBackward& context) const {
  const BranchPass pass(context, config_, share_, /*training=*/true);
  const BranchBackward branch{
      .params = params(),
      .grads = context.grads,
      .x = context.input,
      .out_grad = context.output_grad,
      .residual_grad = context.accumulate ? context.input_grad : TensorView{},
      .x_grad = context.input_grad};
  Carver carver(context.saved);
  if (is_attention()) {
    attention_backward(pass, branch, AttentionSaved(carver, context.ops, pass.sizes));
  } else {
    mlp_backward(pass, branch, MlpSaved(carver, pass.sizes));
  }
}

}  // namespace strata::models
