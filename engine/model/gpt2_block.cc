#include <algorithm>
#include <cmath>

#include "engine/model/gpt2_layers.h"
#include "engine/model/views.h"
#include "strata/carver.h"
#include "strata/layer_ops.h"

namespace strata::models {
namespace {

// In the order of Gpt2Block::parameters().
enum Param {
  kNorm1Weight,
  kNorm1Bias,
  kQkvWeight,
  kQkvBias,
  kProjectionWeight,
  kProjectionBias,
  kNorm2Weight,
  kNorm2Bias,
  kUpWeight,
  kUpBias,
  kDownWeight,
  kDownBias,
};

// Places of dropout, in order of use: their numbers are part of what a seed means.
enum Site : uint8_t { kProbabilitiesSite, kAttentionSite, kMlpSite };

// A branch off the residual: the projection it ends with, behind which elements are dropped.
struct Branch {
  Param weight, bias;
  Site site;
};
constexpr Branch kAttention = {kProjectionWeight, kProjectionBias, kAttentionSite};
constexpr Branch kMlp = {kDownWeight, kDownBias, kMlpSite};

// N = B*T rows, C channels, F channels inside the MLP.
struct Sizes {
  BatchShape batch;
  int64_t rows, channels, inner, heads;
  DType dtype;

  Sizes(const Gpt2Config& config, const BatchShape& shape, DType type)
      : batch(shape),
        rows(shape.tokens()),
        channels(config.n_embd),
        inner(config.n_inner > 0 ? config.n_inner : 4 * config.n_embd),
        heads(config.n_head),
        dtype(type) {}

  Shape qkv() const { return {batch.batch, batch.sequence, 3 * channels}; }
  Shape attended() const { return {batch.batch, batch.sequence, channels}; }
};

struct Saved {
  TensorView qkv;        // (N, 3C)
  TensorView attention;  // what attention keeps
  TensorView attended;   // (N, C)
  TensorView hidden;     // (N, C) h, between the two halves
  TensorView up;         // (N, F) before GELU
  size_t bytes = 0;

  Saved(std::byte* base, const ops::LayerOps& ops, const Sizes& sizes) {
    Carver carver(base);
    qkv = carver.take(sizes.dtype, {sizes.rows, 3 * sizes.channels});
    attention = carver.take_bytes(ops.attention_saved_bytes(sizes.dtype, sizes.qkv(), sizes.heads));
    attended = carver.take(sizes.dtype, {sizes.rows, sizes.channels});
    hidden = carver.take(sizes.dtype, {sizes.rows, sizes.channels});
    up = carver.take(sizes.dtype, {sizes.rows, sizes.inner});
    bytes = carver.used_bytes();
  }
};

// Buffers that the steps of a pass take in turn; the names say only how wide they are.
struct Workspace {
  TensorView narrow_a, narrow_b;  // (N, C)
  TensorView wide_a, wide_b;      // (N, max(F, 3C))
  TensorView mean, rstd;          // (N)
  TensorView scratch;             // of one operation at a time
  size_t bytes = 0;

  Workspace(std::byte* base, const ops::LayerOps& ops, const Sizes& sizes) {
    Carver carver(base);
    const Shape narrow = {sizes.rows, sizes.channels};
    const Shape wide = {sizes.rows, std::max(sizes.inner, 3 * sizes.channels)};
    narrow_a = carver.take(sizes.dtype, narrow);
    narrow_b = carver.take(sizes.dtype, narrow);
    wide_a = carver.take(sizes.dtype, wide);
    wide_b = carver.take(sizes.dtype, wide);
    mean = carver.take(DType::fp32, {sizes.rows});
    rstd = carver.take(DType::fp32, {sizes.rows});
    scratch = carver.take_bytes(scratch_bytes(ops, sizes));
    bytes = carver.used_bytes();
  }

  static size_t scratch_bytes(const ops::LayerOps& ops, const Sizes& s) {
    const auto linear = [&](int64_t in, int64_t out) {
      return ops.linear_workspace_bytes(s.dtype, s.rows, in, out, false);
    };
    return std::max({linear(s.channels, 3 * s.channels), linear(s.channels, s.channels),
                     linear(s.channels, s.inner), linear(s.inner, s.channels),
                     ops.layer_norm_workspace_bytes(s.rows, s.channels),
                     ops.attention_workspace_bytes(s.dtype, s.qkv(), s.heads)});
  }
};

// What forward and backward share: a context's views, cut once.
struct Pass {
  const LayerContext& context;
  const Sizes sizes;
  const Saved saved;
  const Workspace workspace;
  const float eps;
  const double resid_pdrop, attn_pdrop;  // 0 in evaluation

  Pass(const LayerContext& c, const Gpt2Config& config, bool training)
      : context(c),
        sizes(config, c.batch, c.input.dtype),
        saved(c.saved, c.ops, sizes),
        workspace(c.workspace, c.ops, sizes),
        eps(config.layer_norm_epsilon),
        resid_pdrop(training ? config.resid_pdrop : 0),
        attn_pdrop(training ? config.attn_pdrop : 0) {}

  ops::DropoutSite probabilities_site() const {
    return {attn_pdrop, context.random, kProbabilitiesSite};
  }
  ops::DropoutSite site(const Branch& branch) const {
    return {resid_pdrop, context.random, branch.site};
  }

  TensorView cut(const TensorView& buffer, int64_t columns) const {
    return reshaped(buffer, {sizes.rows, columns});
  }

  // out = layer norm of x; its statistics stay in the workspace until the next one.
  void normalize(const TensorView& x, Param weight, Param bias, const TensorView& out) const {
    context.ops.layer_norm_forward({.x = x,
                                    .weight = context.params[weight],
                                    .bias = context.params[bias],
                                    .out = out,
                                    .mean = workspace.mean,
                                    .rstd = workspace.rstd,
                                    .eps = eps});
  }

  void project(const TensorView& x, Param weight, Param bias, const TensorView& residual,
               const TensorView& out) const {
    context.ops.linear_forward({.x = x,
                                .weight = context.params[weight],
                                .bias = context.params[bias],
                                .residual = residual,
                                .out = out,
                                .weight_transposed = false,
                                .workspace = workspace.scratch});
  }

  // out = residual + dropout(projection of x). Without dropout the product adds the residual.
  void join(const Branch& branch, const TensorView& x, const TensorView& residual,
            const TensorView& out) const {
    const ops::DropoutSite dropped = site(branch);
    if (!dropped.drops()) return project(x, branch.weight, branch.bias, residual, out);
    project(x, branch.weight, branch.bias, {}, out);
    context.ops.dropout({.x = out, .residual = residual, .out = out, .site = dropped});
  }
};

struct BackwardPass : Pass {
  std::span<const ParameterGrad> grads;

  BackwardPass(const LayerBackward& c, const Gpt2Config& config)
      : Pass(c, config, /*training=*/true), grads(c.grads) {}

  void project_backward(const TensorView& x, Param weight, Param bias, const TensorView& out_grad,
                        const TensorView& x_grad) const {
    context.ops.linear_backward({.x = x,
                                 .weight = context.params[weight],
                                 .out_grad = out_grad,
                                 .x_grad = x_grad,
                                 .weight_grad = wanted(grads[weight]),
                                 .bias_grad = wanted(grads[bias]),
                                 .weight_transposed = false,
                                 .workspace = workspace.scratch});
  }

  // `spare` (N, C) is overwritten.
  void join_backward(const Branch& branch, const TensorView& x, const TensorView& out_grad,
                     const TensorView& spare, const TensorView& x_grad) const {
    const ops::DropoutSite dropped = site(branch);
    if (dropped.drops()) context.ops.dropout({.x = out_grad, .out = spare, .site = dropped});
    project_backward(x, branch.weight, branch.bias, dropped.drops() ? spare : out_grad, x_grad);
  }

  // Uses the statistics that normalize() of the same x has just written.
  void normalize_backward(const TensorView& x, Param weight, Param bias, const TensorView& out_grad,
                          const TensorView& residual_grad, const TensorView& x_grad) const {
    context.ops.layer_norm_backward({.x = x,
                                     .weight = context.params[weight],
                                     .mean = workspace.mean,
                                     .rstd = workspace.rstd,
                                     .out_grad = out_grad,
                                     .x_grad = x_grad,
                                     .residual_grad = residual_grad,
                                     .weight_grad = wanted(grads[weight]),
                                     .bias_grad = wanted(grads[bias]),
                                     .workspace = workspace.scratch});
  }
};

// y = h + dropout(down(gelu(up(ln_2(h))))). Leaves dh, both ways together, in narrow_a.
void mlp_backward(const BackwardPass& pass, const TensorView& output_grad) {
  const Workspace& ws = pass.workspace;
  const TensorView activated = pass.cut(ws.wide_a, pass.sizes.inner);
  const TensorView up_grad = pass.cut(ws.wide_b, pass.sizes.inner);
  pass.context.ops.gelu_forward({.x = pass.saved.up, .out = activated});
  pass.join_backward(kMlp, activated, output_grad, ws.narrow_a, up_grad);
  pass.context.ops.gelu_backward({.x = pass.saved.up, .out_grad = up_grad, .x_grad = up_grad});
  pass.normalize(pass.saved.hidden, kNorm2Weight, kNorm2Bias, ws.narrow_a);
  pass.project_backward(ws.narrow_a, kUpWeight, kUpBias, up_grad, ws.narrow_b);
  pass.normalize_backward(pass.saved.hidden, kNorm2Weight, kNorm2Bias, ws.narrow_b, output_grad,
                          ws.narrow_a);
}

// h = x + dropout(projection(attention(qkv(ln_1(x))))), with dh in narrow_a.
void attention_backward(const BackwardPass& pass, const TensorView& input_grad) {
  const Workspace& ws = pass.workspace;
  const Sizes& sizes = pass.sizes;
  const TensorView hidden_grad = ws.narrow_a;
  const TensorView qkv_grad = pass.cut(ws.wide_a, 3 * sizes.channels);
  const TensorView normalized_grad = pass.cut(ws.wide_b, sizes.channels);
  pass.join_backward(kAttention, pass.saved.attended, hidden_grad, normalized_grad, ws.narrow_b);
  pass.context.ops.attention_backward({.qkv = reshaped(pass.saved.qkv, sizes.qkv()),
                                       .out = reshaped(pass.saved.attended, sizes.attended()),
                                       .out_grad = reshaped(ws.narrow_b, sizes.attended()),
                                       .saved = pass.saved.attention,
                                       .qkv_grad = reshaped(qkv_grad, sizes.qkv()),
                                       .workspace = ws.scratch,
                                       .heads = sizes.heads,
                                       .dropout = pass.probabilities_site()});
  pass.normalize(pass.context.input, kNorm1Weight, kNorm1Bias, ws.narrow_b);
  pass.project_backward(ws.narrow_b, kQkvWeight, kQkvBias, qkv_grad, normalized_grad);
  pass.normalize_backward(pass.context.input, kNorm1Weight, kNorm1Bias, normalized_grad,
                          hidden_grad, input_grad);
}

}  // namespace

std::vector<Parameter> Gpt2Block::parameters() const {
  const int64_t channels = config_.n_embd;
  const int64_t inner = Sizes(config_, {}, DType::fp32).inner;
  const std::string prefix = name() + ".";
  const auto constant = [&](const char* suffix, int64_t numel, float value) {
    return Parameter{prefix + suffix, {numel}, {Initializer::Kind::constant, value}, true, false};
  };
  const auto normal = [&](const char* suffix, const Shape& shape, float stddev) {
    return Parameter{prefix + suffix, shape, {Initializer::Kind::normal, stddev}, true, true};
  };
  const float stddev = config_.initializer_range;
  // So that the sum of 2 * n_layer residual branches keeps the scale of one.
  const float residual_stddev = stddev / std::sqrt(2.0f * static_cast<float>(config_.n_layer));
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

LayerFootprint Gpt2Block::footprint(const ops::LayerOps& ops, const BatchShape& batch,
                                    DType dtype) const {
  const Sizes sizes(config_, batch, dtype);
  return {Saved(nullptr, ops, sizes).bytes, Workspace(nullptr, ops, sizes).bytes};
}

void Gpt2Block::forward(const LayerForward& context) const {
  const Pass pass(context, config_, context.training);
  const Saved& saved = pass.saved;
  const Workspace& ws = pass.workspace;
  pass.normalize(context.input, kNorm1Weight, kNorm1Bias, ws.narrow_a);
  pass.project(ws.narrow_a, kQkvWeight, kQkvBias, {}, saved.qkv);
  context.ops.attention_forward({.qkv = reshaped(saved.qkv, pass.sizes.qkv()),
                                 .out = reshaped(saved.attended, pass.sizes.attended()),
                                 .saved = saved.attention,
                                 .workspace = ws.scratch,
                                 .heads = pass.sizes.heads,
                                 .dropout = pass.probabilities_site()});
  pass.join(kAttention, saved.attended, context.input, saved.hidden);
  pass.normalize(saved.hidden, kNorm2Weight, kNorm2Bias, ws.narrow_a);
  pass.project(ws.narrow_a, kUpWeight, kUpBias, {}, saved.up);
  if (!context.output) return;
  const TensorView activated = pass.cut(ws.wide_a, pass.sizes.inner);
  context.ops.gelu_forward({.x = saved.up, .out = activated});
  pass.join(kMlp, activated, saved.hidden, context.output);
}

void Gpt2Block::backward(const LayerBackward& context) const {
  const BackwardPass pass(context, config_);
  mlp_backward(pass, context.output_grad);
  attention_backward(pass, context.input_grad);
}

}  // namespace strata::models
