#include "kernels/ops/cpu/host_layer_ops.h"

#include <string>

#include "kernels/ops/cpu/cross_entropy.h"
#include "kernels/ops/cpu/dropout.h"
#include "kernels/ops/cpu/elementwise.h"
#include "kernels/ops/cpu/embedding.h"
#include "kernels/ops/cpu/layer_norm.h"
#include "strata/error.h"

namespace strata::ops {
namespace {

// Refuses views that do not fit each other, for one operation.
class Check {
 public:
  Check(const char* op, DType dtype) : op_(op), dtype_(dtype) {
    expect(dtype != DType::int32, "its dtype", "fp32, bf16 or fp16");
  }

  // `view` has that shape, whatever its dimensions, and the operation's dtype.
  void matrix(const TensorView& view, const char* what, int64_t rows, int64_t columns) const {
    view_is(view, dtype_, what, rows * columns);
  }
  void vector(const TensorView& view, const char* what, int64_t numel) const {
    view_is(view, dtype_, what, numel);
  }
  void typed(const TensorView& view, DType dtype, const char* what, int64_t numel) const {
    view_is(view, dtype, what, numel);
  }
  void workspace(const TensorView& view, size_t bytes) const {
    expect(view.bytes() >= bytes, "the workspace", "as large as asked for");
  }
  DropoutStream stream(const DropoutSite& site, int64_t first_head = 0) const {
    expect(site.probability >= 0 && site.probability < 1, "the probability of dropout",
           "in [0, 1)");
    DropoutStream stream = stream_of(site);
    stream.stream += static_cast<uint64_t>(first_head);
    return stream;
  }
  void expect(bool condition, const char* what, const char* is) const {
    if (!condition) throw Error(std::string(op_) + ": " + what + " must be " + is + ".");
  }

 private:
  void view_is(const TensorView& view, DType dtype, const char* what, int64_t numel) const {
    if (view.data != nullptr && view.dtype == dtype && view.shape.numel() == numel) return;
    throw Error(std::string(op_) + ": " + what + " must be " + std::to_string(numel) +
                " elements of " + std::string(name(dtype)) + ".");
  }

  const char* op_;
  DType dtype_;
};

cpu::GradTarget target(const GradOutput& output) { return {output.view.data, output.accumulate}; }

// Rows and columns of a view whose last dimension is the columns.
int64_t columns_of(const TensorView& view) {
  return view.shape.rank == 0 ? 0 : view.shape[view.shape.rank - 1];
}
int64_t rows_of(const TensorView& view) {
  const int64_t columns = columns_of(view);
  return columns == 0 ? 0 : view.shape.numel() / columns;
}

// What an embedding's forward and backward are given alike.
struct EmbeddingViews {
  const TensorView& tokens;
  const TensorView& rows;  // of the output, or its gradient
  const TensorView& token_table;
  const TensorView& position_table;
  int64_t first_token, vocab;
};

cpu::EmbeddingShape embedding_shape(const EmbeddingViews& op) {
  const Check check("embedding", op.rows.dtype);
  check.expect(op.tokens.shape.rank == 2, "the shape of the tokens", "(B, T)");
  const int64_t table_rows = op.token_table.shape[0];
  const cpu::EmbeddingShape shape{.batch = op.tokens.shape[0],
                                  .sequence = op.tokens.shape[1],
                                  .channels = columns_of(op.rows),
                                  .vocab = op.vocab > 0 ? op.vocab : op.first_token + table_rows,
                                  .first_token = op.first_token,
                                  .table_rows = table_rows,
                                  .positions = op.position_table ? op.position_table.shape[0] : 0,
                                  .dtype = op.rows.dtype};
  check.typed(op.tokens, DType::int32, "the tokens", shape.rows());
  check.matrix(op.rows, "the activations", shape.rows(), shape.channels);
  if (op.token_table) {
    check.matrix(op.token_table, "the token table", table_rows, shape.channels);
    check.expect(op.first_token >= 0 && op.first_token + table_rows <= shape.vocab,
                 "the token table", "of tokens in the vocabulary");
  }
  if (op.position_table) {
    check.matrix(op.position_table, "the position table", shape.positions, shape.channels);
    check.expect(shape.positions >= shape.sequence, "the position table",
                 "at least as long as a row of tokens");
  }
  return shape;
}

cpu::AttentionShape attention_shape(DType dtype, const Shape& qkv, int64_t heads) {
  const Check check("attention", dtype);
  check.expect(qkv.rank == 3 && heads > 0 && qkv[2] % (3 * heads) == 0, "the shape of qkv",
               "(B, T, 3C) with C a multiple of the heads");
  return {.batch = qkv[0],
          .sequence = qkv[1],
          .heads = heads,
          .head_channels = qkv[2] / (3 * heads),
          .dtype = dtype};
}

static_assert(sizeof(cpu::RowStatistics) == LayerOps::kRowStatistics * sizeof(float));

cpu::CrossEntropyPartArgs part_args(const TensorView& logits, const TensorView& targets,
                                    const TensorView& statistics, int64_t first_class) {
  const int64_t rows = rows_of(logits);
  const Check check("cross_entropy", logits.dtype);
  check.typed(targets, DType::int32, "the targets", rows);
  check.typed(statistics, DType::fp32, "the statistics", rows * LayerOps::kRowStatistics);
  return {.logits = logits.data,
          .targets = targets.as<int32_t>(),
          .statistics = statistics.as<cpu::RowStatistics>(),
          .rows = rows,
          .classes = columns_of(logits),
          .first_class = first_class,
          .dtype = logits.dtype};
}

}  // namespace

HostLayerOps::HostLayerOps(Queue& queue, int threads) : queue_(queue), prepared_(threads) {}

HostLayerOps::~HostLayerOps() { queue_.finish(); }

void HostLayerOps::embedding_forward(const Embedding& op) {
  const cpu::EmbeddingForwardArgs args{
      .shape = embedding_shape(
          {op.tokens, op.out, op.token_table, op.position_table, op.first_token, op.vocab}),
      .tokens = op.tokens.as<int32_t>(),
      .token_table = op.token_table.data,
      .position_table = op.position_table.data,
      .out = op.out.data,
      .accumulate = op.accumulate};
  queue_.run([args] { cpu::embedding_forward(args); });
}

void HostLayerOps::embedding_backward(const EmbeddingBackward& op) {
  const cpu::EmbeddingBackwardArgs args{
      .shape = embedding_shape({op.tokens, op.out_grad, op.token_table.view, op.position_table.view,
                                op.first_token, op.vocab}),
      .tokens = op.tokens.as<int32_t>(),
      .out_grad = op.out_grad.data,
      .token_table = target(op.token_table),
      .position_table = target(op.position_table)};
  queue_.run([args] { cpu::embedding_backward(args); });
}

void HostLayerOps::layer_norm_forward(const LayerNorm& op) {
  const int64_t rows = rows_of(op.x);
  const int64_t channels = columns_of(op.x);
  const Check check("layer_norm", op.x.dtype);
  check.vector(op.weight, "the weight", channels);
  check.vector(op.bias, "the bias", channels);
  check.matrix(op.out, "the output", rows, channels);
  check.typed(op.mean, DType::fp32, "the mean", rows);
  check.typed(op.rstd, DType::fp32, "the reciprocal deviation", rows);
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
  const int64_t rows = rows_of(op.x);
  const int64_t channels = columns_of(op.x);
  const Check check("layer_norm", op.x.dtype);
  check.vector(op.weight, "the weight", channels);
  check.typed(op.mean, DType::fp32, "the mean", rows);
  check.typed(op.rstd, DType::fp32, "the reciprocal deviation", rows);
  check.matrix(op.out_grad, "the output's gradient", rows, channels);
  check.matrix(op.x_grad, "the input's gradient", rows, channels);
  if (op.residual_grad) check.matrix(op.residual_grad, "the residual's gradient", rows, channels);
  if (op.weight_grad.view) check.vector(op.weight_grad.view, "the weight's gradient", channels);
  if (op.bias_grad.view) check.vector(op.bias_grad.view, "the bias's gradient", channels);
  check.workspace(op.workspace, layer_norm_workspace_bytes(rows, channels));
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

void HostLayerOps::linear_forward(const Linear& op) {
  const cpu::LinearShape shape{.rows = rows_of(op.x),
                               .in = columns_of(op.x),
                               .out = columns_of(op.out),
                               .dtype = op.x.dtype,
                               .weight_transposed = op.weight_transposed};
  const Check check("linear", shape.dtype);
  check.matrix(op.weight, "the weight", shape.in, shape.out);
  check.matrix(op.out, "the output", shape.rows, shape.out);
  if (op.bias) check.vector(op.bias, "the bias", shape.out);
  if (op.residual) check.matrix(op.residual, "the residual", shape.rows, shape.out);
  check.workspace(op.workspace, linear_workspace_bytes(shape.dtype, shape.rows, shape.in, shape.out,
                                                       shape.weight_transposed));
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
  const cpu::LinearShape shape{.rows = rows_of(op.x),
                               .in = columns_of(op.x),
                               .out = columns_of(op.out_grad),
                               .dtype = op.x.dtype,
                               .weight_transposed = op.weight_transposed};
  const Check check("linear", shape.dtype);
  check.matrix(op.weight, "the weight", shape.in, shape.out);
  check.matrix(op.out_grad, "the output's gradient", shape.rows, shape.out);
  if (op.x_grad) check.matrix(op.x_grad, "the input's gradient", shape.rows, shape.in);
  if (op.weight_grad.view) {
    check.matrix(op.weight_grad.view, "the weight's gradient", shape.in, shape.out);
  }
  if (op.bias_grad.view) check.vector(op.bias_grad.view, "the bias's gradient", shape.out);
  check.workspace(op.workspace, linear_workspace_bytes(shape.dtype, shape.rows, shape.in, shape.out,
                                                       shape.weight_transposed));
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

size_t HostLayerOps::linear_workspace_bytes(DType dtype, int64_t rows, int64_t in, int64_t out,
                                            bool weight_transposed) const {
  const cpu::LinearShape shape{rows, in, out, dtype, weight_transposed};
  const auto known = linear_bytes_.find(shape);
  if (known != linear_bytes_.end()) return known->second;
  size_t bytes = 0;
  queue_.run([&] { bytes = cpu::linear_workspace_bytes(prepared_.matmuls, shape); });
  queue_.synchronize();
  return linear_bytes_.emplace(shape, bytes).first->second;
}

void HostLayerOps::gelu_forward(const Gelu& op) {
  const Check check("gelu", op.x.dtype);
  check.vector(op.out, "the output", op.x.numel());
  const cpu::GeluForwardArgs args{op.x.data, op.out.data, op.x.numel(), op.x.dtype};
  queue_.run([args] { cpu::gelu_forward(args); });
}

void HostLayerOps::gelu_backward(const GeluBackward& op) {
  const Check check("gelu", op.x.dtype);
  check.vector(op.out_grad, "the output's gradient", op.x.numel());
  check.vector(op.x_grad, "the input's gradient", op.x.numel());
  const cpu::GeluBackwardArgs args{op.x.data, op.out_grad.data, op.x_grad.data, op.x.numel(),
                                   op.x.dtype};
  queue_.run([args] { cpu::gelu_backward(args); });
}

void HostLayerOps::dropout(const Dropout& op) {
  const Check check("dropout", op.x.dtype);
  check.vector(op.out, "the output", op.x.numel());
  if (op.residual) check.vector(op.residual, "the residual", op.x.numel());
  const cpu::DropoutArgs args{.x = op.x.data,
                              .residual = op.residual.data,
                              .out = op.out.data,
                              .numel = op.x.numel(),
                              .dtype = op.x.dtype,
                              .dropout = check.stream(op.site)};
  queue_.run([args] { cpu::dropout(args); });
}

void HostLayerOps::attention_forward(const Attention& op) {
  const cpu::AttentionShape shape = attention_shape(op.qkv.dtype, op.qkv.shape, op.heads);
  const Check check("attention", shape.dtype);
  check.matrix(op.out, "the output", shape.batch * shape.sequence, shape.channels());
  check.expect(op.saved.bytes() >= cpu::attention_saved_bytes(shape), "what is saved",
               "as large as asked for");
  check.workspace(op.workspace, attention_workspace_bytes(shape.dtype, op.qkv.shape, op.heads));
  const cpu::AttentionForwardArgs args{.shape = shape,
                                       .qkv = op.qkv.data,
                                       .out = op.out.data,
                                       .saved = op.saved.as<float>(),
                                       .workspace = op.workspace.data,
                                       .dropout = check.stream(op.dropout, op.first_head)};
  queue_.run([this, args] { prepared_.attention.forward(args); });
}

void HostLayerOps::attention_backward(const AttentionBackward& op) {
  const cpu::AttentionShape shape = attention_shape(op.qkv.dtype, op.qkv.shape, op.heads);
  const Check check("attention", shape.dtype);
  const int64_t rows = shape.batch * shape.sequence;
  check.matrix(op.out, "the output", rows, shape.channels());
  check.matrix(op.out_grad, "the output's gradient", rows, shape.channels());
  check.matrix(op.qkv_grad, "the gradient of qkv", rows, 3 * shape.channels());
  check.expect(op.saved.bytes() >= cpu::attention_saved_bytes(shape), "what is saved",
               "as large as asked for");
  check.workspace(op.workspace, attention_workspace_bytes(shape.dtype, op.qkv.shape, op.heads));
  const cpu::AttentionBackwardArgs args{.shape = shape,
                                        .qkv = op.qkv.data,
                                        .out = op.out.data,
                                        .out_grad = op.out_grad.data,
                                        .saved = op.saved.as<float>(),
                                        .qkv_grad = op.qkv_grad.data,
                                        .workspace = op.workspace.data,
                                        .dropout = check.stream(op.dropout, op.first_head)};
  queue_.run([this, args] { prepared_.attention.backward(args); });
}

size_t HostLayerOps::attention_saved_bytes(DType dtype, const Shape& qkv, int64_t heads) const {
  return cpu::attention_saved_bytes(attention_shape(dtype, qkv, heads));
}

size_t HostLayerOps::attention_workspace_bytes(DType dtype, const Shape& qkv, int64_t heads) const {
  const cpu::AttentionShape shape = attention_shape(dtype, qkv, heads);
  const HeadShape key{shape.sequence, shape.head_channels, dtype};
  const auto known = attention_bytes_.find(key);
  if (known != attention_bytes_.end()) return known->second;
  size_t bytes = 0;
  queue_.run([&] { bytes = prepared_.attention.workspace_bytes(shape); });
  queue_.synchronize();
  return attention_bytes_.emplace(key, bytes).first->second;
}

void HostLayerOps::cross_entropy(const CrossEntropy& op) {
  const int64_t rows = rows_of(op.logits);
  const Check check("cross_entropy", op.logits.dtype);
  check.typed(op.targets, DType::int32, "the targets", rows);
  if (op.logits_grad) {
    check.matrix(op.logits_grad, "the gradient of the logits", rows, columns_of(op.logits));
  }
  check.expect(op.loss != nullptr, "the place of the loss", "given");
  check.workspace(op.workspace, cross_entropy_workspace_bytes(rows));
  const cpu::CrossEntropyArgs args{.logits = op.logits.data,
                                   .targets = op.targets.as<int32_t>(),
                                   .logits_grad = op.logits_grad.data,
                                   .loss = op.loss,
                                   .row_losses = op.workspace.as<double>(),
                                   .rows = rows,
                                   .vocab = columns_of(op.logits),
                                   .dtype = op.logits.dtype,
                                   .loss_scale = op.loss_scale};
  queue_.run([args] { cpu::cross_entropy(args); });
}

size_t HostLayerOps::cross_entropy_workspace_bytes(int64_t rows) const {
  return static_cast<size_t>(rows) * sizeof(double);
}

void HostLayerOps::cross_entropy_part(const CrossEntropyPart& op) {
  const auto args = part_args(op.logits, op.targets, op.statistics, op.first_class);
  queue_.run([args, accumulate = op.accumulate] { cpu::cross_entropy_part(args, accumulate); });
}

void HostLayerOps::cross_entropy_finish(const CrossEntropyFinish& op) {
  const int64_t rows = op.targets.numel();
  const Check check("cross_entropy", DType::fp32);
  check.typed(op.targets, DType::int32, "the targets", rows);
  check.typed(op.statistics, DType::fp32, "the statistics", rows * kRowStatistics);
  check.expect(op.loss != nullptr, "the place of the loss", "given");
  const cpu::CrossEntropyFinishArgs args{.targets = op.targets.as<int32_t>(),
                                         .statistics = op.statistics.as<cpu::RowStatistics>(),
                                         .loss = op.loss,
                                         .rows = rows,
                                         .classes = op.classes,
                                         .loss_scale = op.loss_scale};
  queue_.run([args] { cpu::cross_entropy_finish(args); });
}

void HostLayerOps::cross_entropy_part_backward(const CrossEntropyPartBackward& op) {
  const auto args = part_args(op.logits, op.targets, op.statistics, op.first_class);
  const Check check("cross_entropy", op.logits.dtype);
  check.matrix(op.logits_grad, "the gradient of the logits", args.rows, args.classes);
  queue_.run([args, grad = op.logits_grad.data] { cpu::cross_entropy_part_backward(args, grad); });
}

DType HostLayerOps::product_dtype(DType dtype) const {
  return prepared_.matmuls.product_dtype(dtype);
}

std::unique_ptr<LayerOps> make_host_layer_ops(Queue& queue, int threads) {
  return std::make_unique<HostLayerOps>(queue, threads);
}

}  // namespace strata::ops
