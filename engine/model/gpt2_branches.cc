#include "engine/model/gpt2_branches.h"

#include <algorithm>

#include "engine/model/tile_slices.h"
#include "engine/model/views.h"

namespace strata::models {
namespace {

int64_t inner_channels(const Gpt2Config& config) {
  return config.n_inner > 0 ? config.n_inner : 4 * config.n_embd;
}

// One of a pass's branches: the operations of forward and backward, with its parameters.
class Branch {
 public:
  Branch(const BranchPass& pass, const BranchParams& params, DropoutPlace place,
         std::span<const ParameterGrad> grads = {})
      : pass_(pass), params_(params), place_(place), grads_(grads) {}

  // out = layer norm of x; its statistics stay in the workspace until the next one.
  void normalize(const TensorView& x, const TensorView& out) const {
    ops().layer_norm_forward({.x = x,
                              .weight = param(params_.norm_weight),
                              .bias = param(params_.norm_bias),
                              .out = out,
                              .mean = pass_.workspace.mean,
                              .rstd = pass_.workspace.rstd,
                              .eps = pass_.eps});
  }
  // Uses the statistics that normalize() of the same x has just written.
  void normalize_backward(const TensorView& x, const TensorView& out_grad,
                          const TensorView& residual_grad, const TensorView& x_grad) const {
    ops().layer_norm_backward({.x = x,
                               .weight = param(params_.norm_weight),
                               .mean = pass_.workspace.mean,
                               .rstd = pass_.workspace.rstd,
                               .out_grad = out_grad,
                               .x_grad = x_grad,
                               .residual_grad = residual_grad,
                               .weight_grad = grad(params_.norm_weight),
                               .bias_grad = grad(params_.norm_bias),
                               .workspace = pass_.workspace.scratch});
  }

  void enter(const TensorView& x, const TensorView& out) const {
    project(x, params_.in_weight, params_.in_bias, {}, out);
  }
  void enter_backward(const TensorView& x, const TensorView& out_grad,
                      const TensorView& x_grad) const {
    project_backward(x, params_.in_weight, params_.in_bias, out_grad, x_grad);
  }

  // out = residual + dropout(projection of x). Without dropout the product adds the residual.
  // `spare` (N, C) is overwritten.
  void join(const TensorView& x, const TensorView& residual, const TensorView& spare,
            const TensorView& out) const {
    const ops::DropoutSite dropped = site();
    const TensorView product = dropped.drops() ? spare : out;
    project(x, params_.out_weight, params_.out_bias, dropped.drops() ? TensorView{} : residual,
            product);
    if (!dropped.drops()) return;
    ops().dropout({.x = product, .residual = residual, .out = out, .site = dropped});
  }
  void join_backward(const TensorView& x, const TensorView& out_grad, const TensorView& spare,
                     const TensorView& x_grad) const {
    const ops::DropoutSite dropped = site();
    if (dropped.drops()) ops().dropout({.x = out_grad, .out = spare, .site = dropped});
    project_backward(x, params_.out_weight, params_.out_bias, dropped.drops() ? spare : out_grad,
                     x_grad);
  }

 private:
  ops::LayerOps& ops() const { return pass_.context.ops; }
  ops::DropoutSite site() const {
    return {pass_.resid_pdrop, pass_.context.random, static_cast<uint8_t>(place_)};
  }
  TensorView param(int index) const {
    return index < 0 ? TensorView{} : pass_.context.params[static_cast<size_t>(index)];
  }
  ops::GradOutput grad(int index) const {
    return index < 0 ? ops::GradOutput{} : wanted(grads_[static_cast<size_t>(index)]);
  }

  void project(const TensorView& x, int weight, int bias, const TensorView& residual,
               const TensorView& out) const {
    ops().linear_forward({.x = x,
                          .weight = reshaped(param(weight), {x.shape[1], out.shape[1]}),
                          .bias = param(bias),
                          .residual = residual,
                          .out = out,
                          .weight_transposed = false,
                          .workspace = pass_.workspace.scratch});
  }
  void project_backward(const TensorView& x, int weight, int bias, const TensorView& out_grad,
                        const TensorView& x_grad) const {
    ops().linear_backward({.x = x,
                           .weight = reshaped(param(weight), {x.shape[1], out_grad.shape[1]}),
                           .out_grad = out_grad,
                           .x_grad = x_grad,
                           .weight_grad = grad(weight),
                           .bias_grad = grad(bias),
                           .weight_transposed = false,
                           .workspace = pass_.workspace.scratch});
  }

  const BranchPass& pass_;
  const BranchParams& params_;
  const DropoutPlace place_;
  const std::span<const ParameterGrad> grads_;
};

TensorView cut(const BranchPass& pass, const TensorView& buffer, int64_t columns) {
  return reshaped(buffer, {pass.sizes.rows, columns});
}

ops::DropoutSite probabilities_site(const BranchPass& pass) {
  return {pass.attn_pdrop, pass.context.random, static_cast<uint8_t>(DropoutPlace::probabilities)};
}

size_t scratch_bytes(const ops::LayerOps& ops, const BranchSizes& s) {
  const auto linear = [&](int64_t in, int64_t out) {
    return ops.linear_workspace_bytes(s.dtype, s.rows, in, out, false);
  };
  size_t bytes = ops.layer_norm_workspace_bytes(s.rows, s.channels);
  if (s.attended > 0) {
    bytes = std::max({bytes, linear(s.channels, 3 * s.attended), linear(s.attended, s.channels),
                      ops.attention_workspace_bytes(s.dtype, s.qkv(), s.share.heads)});
  }
  if (s.share.inner > 0) {
    bytes = std::max({bytes, linear(s.channels, s.share.inner), linear(s.share.inner, s.channels)});
  }
  return bytes;
}

}  // namespace

BranchShare BranchShare::of_block(const Gpt2Config& config) { return of_tile(config, 0, 1); }

BranchShare BranchShare::of_tile(const Gpt2Config& config, int64_t tile, int64_t tiles) {
  const TileRange heads = tile_range(config.n_head, tile, tiles);
  const TileRange inner = tile_range(inner_channels(config), tile, tiles);
  return {heads.begin, heads.count, inner.begin, inner.count};
}

BranchSizes::BranchSizes(const Gpt2Config& config, const BranchShare& of, const BatchShape& shape,
                         DType type)
    : batch(shape),
      dtype(type),
      rows(shape.tokens()),
      channels(config.n_embd),
      attended(of.heads * (config.n_embd / config.n_head)),
      share(of) {}

AttentionSaved::AttentionSaved(Carver& carver, const ops::LayerOps& ops, const BranchSizes& sizes)
    : qkv(carver.take(sizes.dtype, {sizes.rows, 3 * sizes.attended})),
      attention(carver.take_bytes(
          ops.attention_saved_bytes(sizes.dtype, sizes.qkv(), sizes.share.heads))),
      attended(carver.take(sizes.dtype, {sizes.rows, sizes.attended})) {}

MlpSaved::MlpSaved(Carver& carver, const BranchSizes& sizes)
    : up(carver.take(sizes.dtype, {sizes.rows, sizes.share.inner})) {}

BranchWorkspace::BranchWorkspace(std::byte* base, const ops::LayerOps& ops,
                                 const BranchSizes& sizes) {
  Carver carver(base);
  const Shape narrow = {sizes.rows, sizes.channels};
  const Shape wide = {sizes.rows,
                      std::max({sizes.share.inner, 3 * sizes.attended, sizes.channels})};
  narrow_a = carver.take(sizes.dtype, narrow);
  narrow_b = carver.take(sizes.dtype, narrow);
  wide_a = carver.take(sizes.dtype, wide);
  wide_b = carver.take(sizes.dtype, wide);
  mean = carver.take(DType::fp32, {sizes.rows});
  rstd = carver.take(DType::fp32, {sizes.rows});
  scratch = carver.take_bytes(scratch_bytes(ops, sizes));
  bytes = carver.used_bytes();
}

BranchPass::BranchPass(const LayerContext& c, const Gpt2Config& config, const BranchShare& share,
                       bool training)
    : context(c),
      sizes(config, share, c.batch, c.input.dtype),
      workspace(c.workspace, c.ops, sizes),
      eps(config.layer_norm_epsilon),
      resid_pdrop(training ? config.resid_pdrop : 0),
      attn_pdrop(training ? config.attn_pdrop : 0) {}

void attention_forward(const BranchPass& pass, const BranchForward& branch,
                       const AttentionSaved& saved) {
  const BranchWorkspace& ws = pass.workspace;
  const Branch ops(pass, branch.params, DropoutPlace::attention);
  ops.normalize(branch.x, ws.narrow_a);
  ops.enter(ws.narrow_a, saved.qkv);
  pass.context.ops.attention_forward({.qkv = reshaped(saved.qkv, pass.sizes.qkv()),
                                      .out = reshaped(saved.attended, pass.sizes.attention()),
                                      .saved = saved.attention,
                                      .workspace = ws.scratch,
                                      .heads = pass.sizes.share.heads,
                                      .first_head = pass.sizes.share.first_head,
                                      .dropout = probabilities_site(pass)});
  if (branch.out) ops.join(saved.attended, branch.residual, ws.narrow_b, branch.out);
}

void mlp_forward(const BranchPass& pass, const BranchForward& branch, const MlpSaved& saved) {
  const BranchWorkspace& ws = pass.workspace;
  const Branch ops(pass, branch.params, DropoutPlace::mlp);
  ops.normalize(branch.x, ws.narrow_a);
  ops.enter(ws.narrow_a, saved.up);
  if (!branch.out) return;
  const TensorView activated = cut(pass, ws.wide_a, pass.sizes.share.inner);
  pass.context.ops.gelu_forward({.x = saved.up, .out = activated});
  ops.join(activated, branch.residual, ws.narrow_b, branch.out);
}

void attention_backward(const BranchPass& pass, const BranchBackward& branch,
                        const AttentionSaved& saved) {
  const BranchWorkspace& ws = pass.workspace;
  const BranchSizes& sizes = pass.sizes;
  const Branch ops(pass, branch.params, DropoutPlace::attention, branch.grads);
  const TensorView attended_grad = cut(pass, ws.narrow_b, sizes.attended);
  const TensorView qkv_grad = cut(pass, ws.wide_a, 3 * sizes.attended);
  const TensorView normalized_grad = cut(pass, ws.wide_b, sizes.channels);
  ops.join_backward(saved.attended, branch.out_grad, normalized_grad, attended_grad);
  pass.context.ops.attention_backward({.qkv = reshaped(saved.qkv, sizes.qkv()),
                                       .out = reshaped(saved.attended, sizes.attention()),
                                       .out_grad = reshaped(attended_grad, sizes.attention()),
                                       .saved = saved.attention,
                                       .qkv_grad = reshaped(qkv_grad, sizes.qkv()),
                                       .workspace = ws.scratch,
                                       .heads = sizes.share.heads,
                                       .first_head = sizes.share.first_head,
                                       .dropout = probabilities_site(pass)});
  ops.normalize(branch.x, ws.narrow_b);
  ops.enter_backward(ws.narrow_b, qkv_grad, normalized_grad);
  ops.normalize_backward(branch.x, normalized_grad, branch.residual_grad, branch.x_grad);
}

void mlp_backward(const BranchPass& pass, const BranchBackward& branch, const MlpSaved& saved) {
  const BranchWorkspace& ws = pass.workspace;
  const Branch ops(pass, branch.params, DropoutPlace::mlp, branch.grads);
  const TensorView activated = cut(pass, ws.wide_a, pass.sizes.share.inner);
  const TensorView up_grad = cut(pass, ws.wide_b, pass.sizes.share.inner);
  pass.context.ops.gelu_forward({.x = saved.up, .out = activated});
  ops.join_backward(activated, branch.out_grad, ws.narrow_a, up_grad);
  pass.context.ops.gelu_backward({.x = saved.up, .out_grad = up_grad, .x_grad = up_grad});
  ops.normalize(branch.x, ws.narrow_a);
  ops.enter_backward(ws.narrow_a, up_grad, ws.narrow_b);
  ops.normalize_backward(branch.x, ws.narrow_b, branch.residual_grad, branch.x_grad);
}

}  // namespace strata::models
