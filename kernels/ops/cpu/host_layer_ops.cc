#include "kernels/ops/cpu/host_layer_ops.h"

#include "kernels/ops/cpu/cross_entropy.h"
#include "kernels/ops/cpu/dropout.h"
#include "kernels/ops/cpu/elementwise.h"
#include "kernels/ops/cpu/embedding.h"
#include "kernels/ops/cpu/layer_norm.h"
#include "kernels/ops/layer_checks.h"

namespace strata::ops {
namespace {

cpu::GradTarget target(const GradOutput& output) { return {output.view.data, output.accumulate}; }

static_assert(sizeof(cpu::RowStatistics) == LayerOps::kRowStatistics * sizeof(float));

template <typename Part>
cpu::CrossEntropyPartArgs part_args(const Part& op) {
  const RowShape shape = checked(op);
  return {.logits = op.logits.data,
          .targets = op.targets.template as<int32_t>(),
          .statistics = op.statistics.template as<cpu::RowStatistics>(),
          .rows = shape.rows,
          .classes = shape.columns,
          .first_class = op.first_class,
          .dtype = op.logits.dtype};
}

}  // namespace

HostLayerOps::HostLayerOps(Queue& queue, int threads) : queue_(queue), prepared_(threads) {}

HostLayerOps::~HostLayerOps() { queue_.finish(); }

void HostLayerOps::embedding_forward(const Embedding& op) {
  const cpu::EmbeddingForwardArgs args{.shape = checked(op),
                                       .tokens = op.tokens.as<int32_t>(),
                                       .token_table = op.token_table.data,
                                       .position_table = op.position_table.data,
                                       .out = op.out.data,
                                       .accumulate = op.accumulate};
  queue_.run([args] { cpu::embedding_forward(args); });
}

void HostLayerOps::embedding_backward(const EmbeddingBackward& op) {
  const cpu::EmbeddingBackwardArgs args{.shape = checked(op),
                                        .tokens = op.tokens.as<int32_t>(),
                                        .out_grad = op.out_grad.data,
                                        .token_table = target(op.token_table),
                                        .position_table = target(op.position_table)};
  queue_.run([args] { cpu::embedding_backward(args); });
}

void HostLayerOps::layer_norm_forward(const LayerNorm& op) {
  const auto [rows, channels] = checked(op);
  const cpu::LayerNormForwardArgs args{.x = op.x.data,
                                       .weight = op.weight.data,
                                       .bias = op.bias.data,
                                       .out = op.out.data,
                                       .mean = op.mean.as<float>(),
                                       .rstd = op.rstd.as<float>(),
                                       .rows = rows,
                                       .channels = channels,
                                       .dtype = op.x.dtype,
                                       .eps = op.eps};
  queue_.run([args] { cpu::layer_norm_forward(args); });
}

void HostLayerOps::layer_norm_backward(const LayerNormBackward& op) {
  const auto [rows, channels] = checked(op);
  Check("layer_norm", op.x.dtype)
      .workspace(op.workspace, layer_norm_workspace_bytes(rows, channels));
  const cpu::LayerNormBackwardArgs args{.x = op.x.data,
                                        .weight = op.weight.data,
                                        .mean = op.mean.as<float>(),
                                        .rstd = op.rstd.as<float>(),
                                        .out_grad = op.out_grad.data,
                                        .residual_grad = op.residual_grad.data,
                                        .x_grad = op.x_grad.data,
                                        .weight_grad = target(op.weight_grad),
                                        .bias_grad = target(op.bias_grad),
                                        .partials = op.workspace.as<float>(),
                                        .rows = rows,
                                        .channels = channels,
                                        .dtype = op.x.dtype};
  queue_.run([args] { cpu::layer_norm_backward(args); });
}

size_t HostLayerOps::layer_norm_workspace_bytes(int64_t rows, int64_t channels) const {
  return cpu::layer_norm_partial_bytes(rows, channels);
}

void HostLayerOps::rms_norm_forward(const RmsNorm& op) {
  const auto [rows, channels] = checked(op);
  const cpu::LayerNormForwardArgs args{.x = op.x.data,
                                       .weight = op.weight.data,
                                       .out = op.out.data,
                                       .rstd = op.rstd.as<float>(),
                                       .rows = rows,
                                       .channels = channels,
                                       .dtype = op.x.dtype,
                                       .eps = op.eps};
  queue_.run([args] { cpu::layer_norm_forward(args); });
}

void HostLayerOps::rms_norm_backward(const RmsNormBackward& op) {
  const auto [rows, channels] = checked(op);
  Check("rms_norm", op.x.dtype).workspace(op.workspace, rms_norm_workspace_bytes(rows, channels));
  const cpu::LayerNormBackwardArgs args{.x = op.x.data,
                                        .weight = op.weight.data,
                                        .rstd = op.rstd.as<float>(),
                                        .out_grad = op.out_grad.data,
                                        .residual_grad = op.residual_grad.data,
                                        .x_grad = op.x_grad.data,
                                        .weight_grad = target(op.weight_grad),
                                        .partials = op.workspace.as<float>(),
                                        .rows = rows,
                                        .channels = channels,
                                        .dtype = op.x.dtype};
  queue_.run([args] { cpu::layer_norm_backward(args); });
}

size_t HostLayerOps::rms_norm_workspace_bytes(int64_t rows, int64_t channels) const {
  return cpu::rms_norm_partial_bytes(rows, channels);
}

void HostLayerOps::add(const Add& op) {
  check(op);
  if (!op.y) {
    queue_.run([x = op.x, out = op.out.data] { cpu::copy(x.data, out, x.bytes()); });
    return;
  }
  const cpu::AddArgs args{op.x.data, op.y.data, op.out.data, op.x.numel(), op.x.dtype};
  queue_.run([args] { cpu::add(args); });
}

void HostLayerOps::linear_forward(const Linear& op) {
  const LinearShape shape = checked(op);
  check_workspace(op.workspace, shape);
  const cpu::LinearForwardArgs args{.shape = shape,
                                    .x = op.x.data,
                                    .weight = op.weight.data,
                                    .bias = op.bias.data,
                                    .residual = op.residual.data,
                                    .out = op.out.data,
                                    .workspace = op.workspace.data};
  queue_.run([this, args] { cpu::linear_forward(prepared_.matmuls, args); });
}

void HostLayerOps::linear_backward(const LinearBackward& op) {
  const LinearShape shape = checked(op);
  check_workspace(op.workspace, shape);
  const cpu::LinearBackwardArgs args{.shape = shape,
                                     .x = op.x.data,
                                     .weight = op.weight.data,
                                     .out_grad = op.out_grad.data,
                                     .x_grad = op.x_grad.data,
                                     .weight_grad = target(op.weight_grad),
                                     .bias_grad = target(op.bias_grad),
                                     .workspace = op.workspace.data};
  queue_.run([this, args] { cpu::linear_backward(prepared_.matmuls, args); });
}

void HostLayerOps::check_workspace(const TensorView& workspace, const LinearShape& shape) const {
  Check("linear", shape.dtype)
      .workspace(workspace, linear_workspace_bytes(shape.dtype, shape.rows, shape.in, shape.out,
                                                   shape.weight_transposed));
}

size_t HostLayerOps::linear_workspace_bytes(DType dtype, int64_t rows, int64_t in, int64_t out,
                                            bool weight_transposed) const {
  const LinearShape shape{rows, in, out, dtype, weight_transposed};
  const auto known = linear_bytes_.find(shape);
  if (known != linear_bytes_.end()) return known->second;
  queue_.run([this, shape] { answer_ = cpu::linear_workspace_bytes(prepared_.matmuls, shape); });
  queue_.synchronize();
  return linear_bytes_.emplace(shape, answer_).first->second;
}

void HostLayerOps::gelu_forward(const Gelu& op) {
  check(op);
  const cpu::GeluForwardArgs args{op.x.data, op.out.data, op.x.numel(), op.x.dtype};
  queue_.run([args] { cpu::gelu_forward(args); });
}

void HostLayerOps::gelu_backward(const GeluBackward& op) {
  check(op);
  const cpu::GeluBackwardArgs args{op.x.data, op.out_grad.data, op.x_grad.data, op.x.numel(),
                                   op.x.dtype};
  queue_.run([args] { cpu::gelu_backward(args); });
}

void HostLayerOps::dropout(const Dropout& op) {
  const DropoutStream stream = checked(op);
  const cpu::DropoutArgs args{.x = op.x.data,
                              .residual = op.residual.data,
                              .out = op.out.data,
                              .numel = op.x.numel(),
                              .dtype = op.x.dtype,
                              .dropout = stream};
  queue_.run([args] { cpu::dropout(args); });
}

void HostLayerOps::attention_forward(const Attention& op) {
  const auto [shape, dropout] = checked(op);
  Check("attention", shape.dtype)
      .workspace(op.workspace, attention_workspace_bytes(shape.dtype, op.qkv.shape, op.heads));
  const cpu::AttentionForwardArgs args{.shape = shape,
                                       .qkv = op.qkv.data,
                                       .out = op.out.data,
                                       .saved = op.saved.as<float>(),
                                       .workspace = op.workspace.data,
                                       .dropout = dropout};
  queue_.run([this, args] { prepared_.attention.forward(args); });
}

void HostLayerOps::attention_backward(const AttentionBackward& op) {
  const auto [shape, dropout] = checked(op);
  Check("attention", shape.dtype)
      .workspace(op.workspace, attention_workspace_bytes(shape.dtype, op.qkv.shape, op.heads));
  const cpu::AttentionBackwardArgs args{.shape = shape,
                                        .qkv = op.qkv.data,
                                        .out = op.out.data,
                                        .out_grad = op.out_grad.data,
                                        .saved = op.saved.as<float>(),
                                        .qkv_grad = op.qkv_grad.data,
                                        .workspace = op.workspace.data,
                                        .dropout = dropout};
  queue_.run([this, args] { prepared_.attention.backward(args); });
}

size_t HostLayerOps::attention_saved_bytes(DType dtype, const Shape& qkv, int64_t heads) const {
  return ops::attention_saved_bytes(attention_shape(dtype, qkv, heads));
}

size_t HostLayerOps::attention_workspace_bytes(DType dtype, const Shape& qkv, int64_t heads) const {
  const AttentionShape shape = attention_shape(dtype, qkv, heads);
  const HeadShape key{shape.sequence, shape.head_channels, dtype};
  const auto known = attention_bytes_.find(key);
  if (known != attention_bytes_.end()) return known->second;
  queue_.run([this, shape] { answer_ = prepared_.attention.workspace_bytes(shape); });
  queue_.synchronize();
  return attention_bytes_.emplace(key, answer_).first->second;
}

void HostLayerOps::cross_entropy(const CrossEntropy& op) {
  const auto [rows, classes] = checked(op);
  Check("cross_entropy", op.logits.dtype)
      .workspace(op.workspace, cross_entropy_workspace_bytes(rows));
  const cpu::CrossEntropyArgs args{.logits = op.logits.data,
                                   .targets = op.targets.as<int32_t>(),
                                   .logits_grad = op.logits_grad.data,
                                   .loss = op.loss,
                                   .row_losses = op.workspace.as<double>(),
                                   .rows = rows,
                                   .vocab = classes,
                                   .dtype = op.logits.dtype,
                                   .loss_scale = op.loss_scale};
  queue_.run([args] { cpu::cross_entropy(args); });
}

size_t HostLayerOps::cross_entropy_workspace_bytes(int64_t rows) const {
  return static_cast<size_t>(rows) * sizeof(double);
}

void HostLayerOps::cross_entropy_part(const CrossEntropyPart& op) {
  const auto args = part_args(op);
  queue_.run([args, accumulate = op.accumulate] { cpu::cross_entropy_part(args, accumulate); });
}

void HostLayerOps::cross_entropy_finish(const CrossEntropyFinish& op) {
  check(op);
  const cpu::CrossEntropyFinishArgs args{.targets = op.targets.as<int32_t>(),
                                         .statistics = op.statistics.as<cpu::RowStatistics>(),
                                         .loss = op.loss,
                                         .rows = op.targets.numel(),
                                         .classes = op.classes,
                                         .loss_scale = op.loss_scale};
  queue_.run([args] { cpu::cross_entropy_finish(args); });
}

void HostLayerOps::cross_entropy_part_backward(const CrossEntropyPartBackward& op) {
  const auto args = part_args(op);
  queue_.run([args, grad = op.logits_grad.data] { cpu::cross_entropy_part_backward(args, grad); });
}

DType HostLayerOps::product_dtype(DType dtype) const {
  return prepared_.matmuls.product_dtype(dtype);
}

std::unique_ptr<LayerOps> make_host_layer_ops(Queue& queue, int threads) {
  return std::make_unique<HostLayerOps>(queue, threads);
}

}  // namespace strata::ops
