#include <cmath>

#include "engine/model/gpt2_branches.h"
#include "engine/model/gpt2_layers.h"

namespace strata::models {
namespace {

constexpr BranchParams kAttention = {kNorm1Weight, kNorm1Bias,        kQkvWeight,
                                     kQkvBias,     kProjectionWeight, kProjectionBias};
constexpr BranchParams kMlp = {kNorm2Weight, kNorm2Bias,  kUpWeight,
                               kUpBias,      kDownWeight, kDownBias};

struct Saved {
  Carver carver;
  AttentionSaved attention;
  TensorView hidden;  // (N, C) h, between the two branches
  MlpSaved mlp;

  Saved(std::byte* base, const ops::LayerOps& ops, const BranchSizes& sizes)
      : carver(base),
        attention(carver, ops, sizes),
        hidden(carver.take(sizes.dtype, {sizes.rows, sizes.channels})),
        mlp(carver, sizes) {}
};

}  // namespace

std::string block_name(int64_t index) { return "transformer.h." + std::to_string(index); }

std::vector<Parameter> block_parameters(const Gpt2Config& config, int64_t index) {
  const int64_t channels = config.n_embd;
  const int64_t inner = BranchShare::of_block(config).inner;
  const std::string prefix = block_name(index) + ".";
  const auto constant = [&](const char* suffix, int64_t numel, float value) {
    return Parameter{prefix + suffix, {numel}, {Initializer::Kind::constant, value}, true, false};
  };
  const auto normal = [&](const char* suffix, const Shape& shape, float stddev) {
    return Parameter{prefix + suffix, shape, {Initializer::Kind::normal, stddev}, true, true};
  };
  const float stddev = config.initializer_range;
  // So that the sum of 2 * n_layer residual branches keeps the scale of one.
  const float residual_stddev = stddev / std::sqrt(2.0f * static_cast<float>(config.n_layer));
  return {constant("ln_1.weight", channels, 1),
          constant("ln_1.bias", channels, 0),
          normal("attn.c_attn.weight", {channels, 3 * channels}, stddev),
          constant("attn.c_attn.bias", 3 * channels, 0),
          normal("attn.c_proj.weight", {channels, channels}, residual_stddev),
          constant("attn.c_proj.bias", channels, 0),
          constant("ln_2.weight", channels, 1),
          constant("ln_2.bias", channels, 0),
          normal("mlp.c_fc.weight", {channels, inner}, stddev),
          constant("mlp.c_fc.bias", inner, 0),
          normal("mlp.c_proj.weight", {inner, channels}, residual_stddev),
          constant("mlp.c_proj.bias", channels, 0)};
}

std::string Gpt2Block::name() const { return block_name(index_); }

std::vector<Parameter> Gpt2Block::parameters() const { return block_parameters(config_, index_); }

LayerFootprint Gpt2Block::footprint(const ops::LayerOps& ops, const BatchShape& batch,
                                    DType dtype) const {
  const BranchSizes sizes(config_, BranchShare::of_block(config_), batch, dtype);
  return {Saved(nullptr, ops, sizes).carver.used_bytes(),
          BranchWorkspace(nullptr, ops, sizes).bytes};
}

void Gpt2Block::forward(const LayerForward& context) const {
  const BranchPass pass(context, config_, BranchShare::of_block(config_), context.training);
  const Saved saved(context.saved, context.ops, pass.sizes);
  const TensorView& x = context.input;
  const TensorView& h = saved.hidden;
  attention_forward(pass, {.params = kAttention, .x = x, .residual = x, .out = h}, saved.attention);
  mlp_forward(pass, {.params = kMlp, .x = h, .residual = h, .out = context.output}, saved.mlp);
}

void Gpt2Block::backward(const LayerBackward& context) const {
  const BranchPass pass(context, config_, BranchShare::of_block(config_), /*training=*/true);
  const Saved saved(context.saved, context.ops, pass.sizes);
  const TensorView& hidden_grad = pass.workspace.narrow_a;
  mlp_backward(pass,
               {.params = kMlp,
                .grads = context.grads,
                .x = saved.hidden,
                .out_grad = context.output_grad,
                .residual_grad = context.output_grad,
                .x_grad = hidden_grad},
               saved.mlp);
  attention_backward(pass,
                     {.params = kAttention,
                      .grads = context.grads,
                      .x = context.input,
                      .out_grad = hidden_grad,
                      .residual_grad = hidden_grad,
                      .x_grad = context.input_grad},
                     saved.attention);
}

}  // namespace strata::models
