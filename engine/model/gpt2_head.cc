#include <algorithm>

#include "engine/model/gpt2_layers.h"
#include "engine/model/views.h"
#include "strata/carver.h"
#include "strata/layer_ops.h"

namespace strata::models {
namespace {

enum Param { kNormWeight, kNormBias, kTokens };  // own parameters, then the shared one

struct Saved {
  TensorView logits;  // (N, V); their gradient after a training forward
  size_t bytes = 0;

  Saved(std::byte* base, int64_t rows, int64_t vocab, DType dtype) {
    Carver carver(base);
    logits = carver.take(dtype, {rows, vocab});
    bytes = carver.used_bytes();
  }
};

struct Workspace {
  TensorView normalized;       // (N, C)
  TensorView normalized_grad;  // (N, C)
  TensorView mean, rstd;       // (N)
  TensorView scratch;          // of one operation at a time
  size_t bytes = 0;

  Workspace(std::byte* base, const ops::LayerOps& ops, int64_t rows, int64_t channels,
            int64_t vocab, DType dtype) {
    Carver carver(base);
    normalized = carver.take(dtype, {rows, channels});
    normalized_grad = carver.take(dtype, {rows, channels});
    mean = carver.take(DType::fp32, {rows});
    rstd = carver.take(DType::fp32, {rows});
    scratch = carver.take_bytes(std::max(
        {ops.linear_workspace_bytes(dtype, rows, channels, vocab, true),
         ops.layer_norm_workspace_bytes(rows, channels), ops.cross_entropy_workspace_bytes(rows)}));
    bytes = carver.used_bytes();
  }
};

// Where one call's tensors lie.
struct Views {
  Saved saved;
  Workspace workspace;

  Views(const LayerContext& context, const Gpt2Config& config)
      : saved(context.saved, context.batch.tokens(), config.vocab_size, context.input.dtype),
        workspace(context.workspace, context.ops, context.batch.tokens(), config.n_embd,
                  config.vocab_size, context.input.dtype) {}
};

void normalize(const LayerContext& context, const Workspace& workspace, float eps) {
  context.ops.layer_norm_forward({.x = context.input,
                                  .weight = context.params[kNormWeight],
                                  .bias = context.params[kNormBias],
                                  .out = workspace.normalized,
                                  .mean = workspace.mean,
                                  .rstd = workspace.rstd,
                                  .eps = eps});
}

}  // namespace

std::vector<Parameter> Gpt2Head::parameters() const {
  const Shape channels = {config_.n_embd};
  return {{"transformer.ln_f.weight", channels, {Initializer::Kind::constant, 1}, true, false},
          {"transformer.ln_f.bias", channels, {Initializer::Kind::constant, 0}, true, false}};
}

std::vector<std::string> Gpt2Head::shared_parameters() const { return {"transformer.wte.weight"}; }

LayerFootprint Gpt2Head::footprint(const ops::LayerOps& ops, const BatchShape& batch,
                                   DType dtype) const {
  const Saved saved(nullptr, batch.tokens(), config_.vocab_size, dtype);
  const Workspace workspace(nullptr, ops, batch.tokens(), config_.n_embd, config_.vocab_size,
                            dtype);
  return {saved.bytes, workspace.bytes};
}

void Gpt2Head::forward(const LayerForward& context) const {
  const auto& [saved, workspace] = Views(context, config_);
  normalize(context, workspace, config_.layer_norm_epsilon);
  context.ops.linear_forward({.x = workspace.normalized,
                              .weight = context.params[kTokens],
                              .bias = {},
                              .residual = {},
                              .out = saved.logits,
                              .weight_transposed = true,
                              .workspace = workspace.scratch});
  context.ops.cross_entropy({.logits = saved.logits,
                             .targets = reshaped(context.targets, {context.batch.tokens()}),
                             .logits_grad = context.training ? saved.logits : TensorView{},
                             .loss = context.loss,
                             .loss_scale = context.loss_scale,
                             .workspace = workspace.scratch});
}

TensorView Gpt2Head::scores(const LayerContext& context) const {
  return Views(context, config_).saved.logits;
}

void Gpt2Head::backward(const LayerBackward& context) const {
  const auto& [saved, workspace] = Views(context, config_);
  normalize(context, workspace, config_.layer_norm_epsilon);
  context.ops.linear_backward({.x = workspace.normalized,
                               .weight = context.params[kTokens],
                               .out_grad = saved.logits,
                               .x_grad = workspace.normalized_grad,
                               .weight_grad = wanted(context.grads[kTokens]),
                               .bias_grad = {},
                               .weight_transposed = true,
                               .workspace = workspace.scratch});
  context.ops.layer_norm_backward({.x = context.input,
                                   .weight = context.params[kNormWeight],
                                   .mean = workspace.mean,
                                   .rstd = workspace.rstd,
                                   .out_grad = workspace.normalized_grad,
                                   .x_grad = context.input_grad,
                                   .residual_grad = {},
                                   .weight_grad = wanted(context.grads[kNormWeight]),
                                   .bias_grad = wanted(context.grads[kNormBias]),
                                   .workspace = workspace.scratch});
}

}  // namespace strata::models
