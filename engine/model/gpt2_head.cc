#include <algorithm>

#include "engine/model/gpt2_layers.h"
#include "engine/model/views.h"
#include "strata/carver.h"
#include "strata/layer_ops.h"

namespace strata::models {
namespace {

enum Param { kNormWeight, kNormBias, kTokens };  // own parameters, then shared ones

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

  Views(const LayerContext& context, int64_t channels, int64_t vocab)
      : saved(context.saved, context.batch.tokens(), vocab, context.input.dtype),
        workspace(context.workspace, context.ops, context.batch.tokens(), channels, vocab,
                  context.input.dtype) {}
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

TensorView row_targets(const LayerContext& context) {
  return reshaped(context.targets, {context.batch.tokens()});
}

// What the head's tiles have for an output, in any dtype.
TensorView row_statistics(const LayerContext& context, const TensorView& output) {
  return {output.data, DType::fp32, {context.batch.tokens(), ops::LayerOps::kRowStatistics}};
}

constexpr const char* kNorm[] = {"transformer.ln_f.weight", "transformer.ln_f.bias"};

}  // namespace

std::vector<Parameter> Gpt2Head::parameters() const {
  if (is_further_tile()) return {};
  const Shape channels = {config_.n_embd};
  return {{kNorm[kNormWeight], channels, {Initializer::Kind::constant, 1}, true, false},
          {kNorm[kNormBias], channels, {Initializer::Kind::constant, 0}, true, false}};
}

std::vector<std::string> Gpt2Head::shared_parameters() const {
  std::vector<std::string> names;
  if (is_further_tile()) names = {kNorm[kNormWeight], kNorm[kNormBias]};
  names.push_back(token_table(config_, share_).name);
  return names;
}

// Elements of 16 bits at least.
int64_t Gpt2Head::output_channels() const {
  constexpr int64_t kFp32Channels = 2;
  return share_.is_whole() ? 0 : kFp32Channels * ops::LayerOps::kRowStatistics;
}

LayerFootprint Gpt2Head::footprint(const ops::LayerOps& ops, const BatchShape& batch,
                                   DType dtype) const {
  const Saved saved(nullptr, batch.tokens(), share_.tokens, dtype);
  const Workspace workspace(nullptr, ops, batch.tokens(), config_.n_embd, share_.tokens, dtype);
  return {saved.bytes, workspace.bytes};
}

void Gpt2Head::forward(const LayerForward& context) const {
  const auto& [saved, workspace] = Views(context, config_.n_embd, share_.tokens);
  normalize(context, workspace, config_.layer_norm_epsilon);
  context.ops.linear_forward({.x = workspace.normalized,
                              .weight = context.params[kTokens],
                              .bias = {},
                              .residual = {},
                              .out = saved.logits,
                              .weight_transposed = true,
                              .workspace = workspace.scratch});
  if (!share_.is_whole()) return add_to_loss(context, saved.logits);
  context.ops.cross_entropy({.logits = saved.logits,
                             .targets = row_targets(context),
                             .logits_grad = context.training ? saved.logits : TensorView{},
                             .loss = context.loss,
                             .loss_scale = context.loss_scale,
                             .workspace = workspace.scratch});
}

// A recomputation is after the logits alone.
void Gpt2Head::add_to_loss(const LayerForward& context, const TensorView& logits) const {
  if (!context.output) return;
  const TensorView statistics = row_statistics(context, context.output);
  context.ops.cross_entropy_part({.logits = logits,
                                  .targets = row_targets(context),
                                  .statistics = statistics,
                                  .first_class = share_.first_token,
                                  .accumulate = context.accumulate});
  if (!share_.is_last()) return;
  context.ops.cross_entropy_finish({.targets = row_targets(context),
                                    .statistics = statistics,
                                    .classes = config_.vocab_size,
                                    .loss = context.loss,
                                    .loss_scale = context.loss_scale});
}

TensorView Gpt2Head::scores(const LayerContext& context) const {
  return Views(context, config_.n_embd, share_.tokens).saved.logits;
}

void Gpt2Head::backward(const LayerBackward& context) const {
  const auto& [saved, workspace] = Views(context, config_.n_embd, share_.tokens);
  if (!share_.is_whole()) {
    context.ops.cross_entropy_part_backward({.logits = saved.logits,
                                             .targets = row_targets(context),
                                             .statistics = row_statistics(context, context.output),
                                             .logits_grad = saved.logits,
                                             .first_class = share_.first_token});
  }
  normalize(context, workspace, config_.layer_norm_epsilon);
  context.ops.linear_backward({.x = workspace.normalized,
                               .weight = context.params[kTokens],
                               .out_grad = saved.logits,
                               .x_grad = workspace.normalized_grad,
                               .weight_grad = wanted(context.grads[kTokens]),
                               .bias_grad = {},
                               .weight_transposed = true,
                               .workspace = workspace.scratch});
  context.ops.layer_norm_backward(
      {.x = context.input,
       .weight = context.params[kNormWeight],
       .mean = workspace.mean,
       .rstd = workspace.rstd,
       .out_grad = workspace.normalized_grad,
       .x_grad = context.input_grad,
       .residual_grad = context.accumulate ? context.input_grad : TensorView{},
       .weight_grad = wanted(context.grads[kNormWeight]),
       .bias_grad = wanted(context.grads[kNormBias]),
       .workspace = workspace.scratch});
}

}  // namespace strata::models
