#include "kernels/ops/layer_checks.h"

#include <string>

#include "strata/error.h"

namespace strata::ops {
namespace {

// What an embedding's forward and backward are given alike.
struct EmbeddingViews {
  const TensorView& tokens;
  const TensorView& rows;  // of the output, or its gradient
  const TensorView& token_table;
  const TensorView& position_table;
  int64_t first_token, vocab;
};

EmbeddingShape embedding_shape(const EmbeddingViews& op) {
  const Check check("embedding", op.rows.dtype);
  check.expect(op.tokens.shape.rank == 2, "the shape of the tokens", "(B, T)");
  const int64_t table_rows = op.token_table.shape[0];
  const EmbeddingShape shape{.batch = op.tokens.shape[0],
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

RowShape part_shape(const TensorView& logits, const TensorView& targets,
                    const TensorView& statistics) {
  const RowShape shape{rows_of(logits), columns_of(logits)};
  const Check check("cross_entropy", logits.dtype);
  check.typed(targets, DType::int32, "the targets", shape.rows);
  check.typed(statistics, DType::fp32, "the statistics", shape.rows * LayerOps::kRowStatistics);
  return shape;
}

// What the backward of a layer norm and of an RMS norm is given alike.
template <typename NormBackward>
RowShape norm_backward_shape(const Check& check, const NormBackward& op) {
  const RowShape shape{rows_of(op.x), columns_of(op.x)};
  const auto [rows, columns] = shape;
  check.vector(op.weight, "the weight", columns);
  check.typed(op.rstd, DType::fp32, "the reciprocal deviation", rows);
  check.matrix(op.out_grad, "the output's gradient", rows, columns);
  check.matrix(op.x_grad, "the input's gradient", rows, columns);
  if (op.residual_grad) check.matrix(op.residual_grad, "the residual's gradient", rows, columns);
  if (op.weight_grad.view) check.vector(op.weight_grad.view, "the weight's gradient", columns);
  return shape;
}

}  // namespace

int64_t columns_of(const TensorView& view) {
  return view.shape.rank == 0 ? 0 : view.shape[view.shape.rank - 1];
}

int64_t rows_of(const TensorView& view) {
  const int64_t columns = columns_of(view);
  return columns == 0 ? 0 : view.shape.numel() / columns;
}

Check::Check(const char* op, DType dtype) : op_(op), dtype_(dtype) {
  expect(dtype != DType::int32, "its dtype", "fp32, bf16 or fp16");
}

void Check::typed(const TensorView& view, DType dtype, const char* what, int64_t numel) const {
  if (view.data != nullptr && view.dtype == dtype && view.shape.numel() == numel) return;
  throw Error(std::string(op_) + ": " + what + " must be " + std::to_string(numel) +
              " elements of " + std::string(name(dtype)) + ".");
}

void Check::workspace(const TensorView& view, size_t bytes) const {
  expect(view.bytes() >= bytes, "the workspace", "as large as asked for");
}

DropoutStream Check::stream(const DropoutSite& site, int64_t first_head) const {
  expect(site.probability >= 0 && site.probability < 1, "the probability of dropout", "in [0, 1)");
  DropoutStream stream = stream_of(site);
  stream.stream += static_cast<uint64_t>(first_head);
  return stream;
}

void Check::expect(bool condition, const char* what, const char* is) const {
  if (!condition) throw Error(std::string(op_) + ": " + what + " must be " + is + ".");
}

EmbeddingShape checked(const LayerOps::Embedding& op) {
  return embedding_shape(
      {op.tokens, op.out, op.token_table, op.position_table, op.first_token, op.vocab});
}

EmbeddingShape checked(const LayerOps::EmbeddingBackward& op) {
  return embedding_shape({op.tokens, op.out_grad, op.token_table.view, op.position_table.view,
                          op.first_token, op.vocab});
}

RowShape checked(const LayerOps::LayerNorm& op) {
  const RowShape shape{rows_of(op.x), columns_of(op.x)};
  const Check check("layer_norm", op.x.dtype);
  check.vector(op.weight, "the weight", shape.columns);
  check.vector(op.bias, "the bias", shape.columns);
  check.matrix(op.out, "the output", shape.rows, shape.columns);
  check.typed(op.mean, DType::fp32, "the mean", shape.rows);
  check.typed(op.rstd, DType::fp32, "the reciprocal deviation", shape.rows);
  return shape;
}

RowShape checked(const LayerOps::LayerNormBackward& op) {
  const Check check("layer_norm", op.x.dtype);
  const RowShape shape = norm_backward_shape(check, op);
  check.typed(op.mean, DType::fp32, "the mean", shape.rows);
  if (op.bias_grad.view) check.vector(op.bias_grad.view, "the bias's gradient", shape.columns);
  return shape;
}

RowShape checked(const LayerOps::RmsNorm& op) {
  const RowShape shape{rows_of(op.x), columns_of(op.x)};
  const Check check("rms_norm", op.x.dtype);
  check.vector(op.weight, "the weight", shape.columns);
  check.matrix(op.out, "the output", shape.rows, shape.columns);
  check.typed(op.rstd, DType::fp32, "the reciprocal deviation", shape.rows);
  return shape;
}

RowShape checked(const LayerOps::RmsNormBackward& op) {
  return norm_backward_shape(Check("rms_norm", op.x.dtype), op);
}

void check(const LayerOps::Add& op) {
  const Check check("add", op.x.dtype);
  check.vector(op.out, "the output", op.x.numel());
  if (op.y) check.vector(op.y, "the second addend", op.x.numel());
}

LinearShape checked(const LayerOps::Linear& op) {
  const LinearShape shape{.rows = rows_of(op.x),
                          .in = columns_of(op.x),
                          .out = columns_of(op.out),
                          .dtype = op.x.dtype,
                          .weight_transposed = op.weight_transposed};
  const Check check("linear", shape.dtype);
  check.matrix(op.weight, "the weight", shape.in, shape.out);
  check.matrix(op.out, "the output", shape.rows, shape.out);
  if (op.bias) check.vector(op.bias, "the bias", shape.out);
  if (op.residual) check.matrix(op.residual, "the residual", shape.rows, shape.out);
  return shape;
}

LinearShape checked(const LayerOps::LinearBackward& op) {
  const LinearShape shape{.rows = rows_of(op.x),
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
  return shape;
}

void check(const LayerOps::Gelu& op) {
  Check("gelu", op.x.dtype).vector(op.out, "the output", op.x.numel());
}

void check(const LayerOps::GeluBackward& op) {
  const Check check("gelu", op.x.dtype);
  check.vector(op.out_grad, "the output's gradient", op.x.numel());
  check.vector(op.x_grad, "the input's gradient", op.x.numel());
}

DropoutStream checked(const LayerOps::Dropout& op) {
  const Check check("dropout", op.x.dtype);
  check.vector(op.out, "the output", op.x.numel());
  if (op.residual) check.vector(op.residual, "the residual", op.x.numel());
  return check.stream(op.site);
}

AttentionShape attention_shape(DType dtype, const Shape& qkv, int64_t heads) {
  const Check check("attention", dtype);
  check.expect(qkv.rank == 3 && heads > 0 && qkv[2] % (3 * heads) == 0, "the shape of qkv",
               "(B, T, 3C) with C a multiple of the heads");
  return {.batch = qkv[0],
          .sequence = qkv[1],
          .heads = heads,
          .head_channels = qkv[2] / (3 * heads),
          .dtype = dtype};
}

AttentionCall checked(const LayerOps::Attention& op) {
  const AttentionShape shape = attention_shape(op.qkv.dtype, op.qkv.shape, op.heads);
  const Check check("attention", shape.dtype);
  check.matrix(op.out, "the output", shape.batch * shape.sequence, shape.channels());
  check.expect(op.saved.bytes() >= attention_saved_bytes(shape), "what is saved",
               "as large as asked for");
  return {shape, check.stream(op.dropout, op.first_head)};
}

AttentionCall checked(const LayerOps::AttentionBackward& op) {
  const AttentionShape shape = attention_shape(op.qkv.dtype, op.qkv.shape, op.heads);
  const Check check("attention", shape.dtype);
  const int64_t rows = shape.batch * shape.sequence;
  check.matrix(op.out, "the output", rows, shape.channels());
  check.matrix(op.out_grad, "the output's gradient", rows, shape.channels());
  check.matrix(op.qkv_grad, "the gradient of qkv", rows, 3 * shape.channels());
  check.expect(op.saved.bytes() >= attention_saved_bytes(shape), "what is saved",
               "as large as asked for");
  return {shape, check.stream(op.dropout, op.first_head)};
}

RowShape checked(const LayerOps::CrossEntropy& op) {
  const RowShape shape{rows_of(op.logits), columns_of(op.logits)};
  const Check check("cross_entropy", op.logits.dtype);
  check.typed(op.targets, DType::int32, "the targets", shape.rows);
  if (op.logits_grad) {
    check.matrix(op.logits_grad, "the gradient of the logits", shape.rows, shape.columns);
  }
  check.expect(op.loss != nullptr, "the place of the loss", "given");
  return shape;
}

RowShape checked(const LayerOps::CrossEntropyPart& op) {
  return part_shape(op.logits, op.targets, op.statistics);
}

RowShape checked(const LayerOps::CrossEntropyPartBackward& op) {
  const RowShape shape = part_shape(op.logits, op.targets, op.statistics);
  const Check check("cross_entropy", op.logits.dtype);
  check.matrix(op.logits_grad, "the gradient of the logits", shape.rows, shape.columns);
  return shape;
}

void check(const LayerOps::CrossEntropyFinish& op) {
  const int64_t rows = op.targets.numel();
  const Check check("cross_entropy", DType::fp32);
  check.typed(op.targets, DType::int32, "the targets", rows);
  check.typed(op.statistics, DType::fp32, "the statistics", rows * LayerOps::kRowStatistics);
  check.expect(op.loss != nullptr, "the place of the loss", "given");
}

}  // namespace strata::ops
