// The mathematics of layers on tensor views, as an interface every device implements.
//
// A call enqueues work on the queue given at construction and returns. Views lie in that device's
// memory and stay valid until the work is done. dtype is fp32, bf16 or fp16 for activations,
// weights and local gradients alike; sums and non-linear functions are computed in fp32, and each
// output is rounded once (to nearest even; what fp16 cannot hold becomes infinite). "accumulate"
// adds to what the output holds, in fp32, with one rounding; otherwise the output is overwritten.
//
// The same bits come out for the same inputs and number of threads.
//
// Enqueueing is for one thread at a time, as on the queue. Calls throw Error when views do not fit
// each other. Workspaces are aligned to 64 bytes and hold nothing between calls. The first
// *_workspace_bytes of a shape may wait for the queue, where what that shape needs is prepared.
// Tokens or targets outside the vocabulary fail the work, and so poison the queue.
//
// Shapes: B batch, T sequence, N = B*T rows, C channels, H heads, D = C/H, V vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>

#include "strata/dropout.h"
#include "strata/dtype.h"
#include "strata/tensor.h"

namespace strata {
class Queue;
}

namespace strata::ops {

struct GradOutput {
  TensorView view;  // null view: this gradient is not wanted
  bool accumulate = false;
};

class LayerOps {
 public:
  virtual ~LayerOps() = default;

  virtual Queue& queue() = 0;

  // out (N, C) = token_table[tokens[n]] + position_table[n % T]. The table may hold the rows of a
  // range of tokens alone: the others add nothing, and get nothing in backward.
  struct Embedding {
    TensorView tokens;               // (B, T) int32, each in [0, V)
    TensorView token_table;          // (V, C), or rows of tokens from first_token on
    TensorView position_table = {};  // (>= T, C); null view: none
    TensorView out;                  // (N, C)
    bool accumulate = false;
    int64_t first_token = 0;
    int64_t vocab = 0;  // V; 0: up to the table's last row
  };
  virtual void embedding_forward(const Embedding& op) = 0;
  struct EmbeddingBackward {
    TensorView tokens;    // (B, T) int32
    TensorView out_grad;  // (N, C)
    // Unless accumulating, rows of tokens and positions that do not occur become zero.
    GradOutput token_table = {};     // as in forward
    GradOutput position_table = {};  // (>= T, C)
    int64_t first_token = 0;
    int64_t vocab = 0;
  };
  virtual void embedding_backward(const EmbeddingBackward& op) = 0;

  // out = (x - mean) * rstd * weight + bias over the last dimension.
  struct LayerNorm {
    TensorView x, weight, bias;  // (N, C), (C), (C)
    TensorView out;              // (N, C)
    TensorView mean, rstd;       // (N) fp32, written for backward
    float eps = 1e-5f;
  };
  virtual void layer_norm_forward(const LayerNorm& op) = 0;
  struct LayerNormBackward {
    TensorView x, weight, mean, rstd, out_grad;
    TensorView x_grad;              // (N, C)
    TensorView residual_grad = {};  // (N, C), added into x_grad; null view: none. May be x_grad
    GradOutput weight_grad = {}, bias_grad = {};
    TensorView workspace;  // layer_norm_workspace_bytes
  };
  virtual void layer_norm_backward(const LayerNormBackward& op) = 0;
  virtual size_t layer_norm_workspace_bytes(int64_t rows, int64_t channels) const = 0;

  // out = x * rstd * weight, with rstd = 1 / sqrt(mean(x^2) + eps), over the last dimension (Zhang
  // & Sennrich 2019).
  struct RmsNorm {
    TensorView x, weight;  // (N, C), (C)
    TensorView out;        // (N, C)
    TensorView rstd;       // (N) fp32, written for backward
    float eps = 1e-5f;
  };
  virtual void rms_norm_forward(const RmsNorm& op) = 0;
  struct RmsNormBackward {
    TensorView x, weight, rstd, out_grad;
    TensorView x_grad;              // (N, C)
    TensorView residual_grad = {};  // (N, C), added into x_grad; null view: none. May be x_grad
    GradOutput weight_grad = {};
    TensorView workspace;  // rms_norm_workspace_bytes
  };
  virtual void rms_norm_backward(const RmsNormBackward& op) = 0;
  virtual size_t rms_norm_workspace_bytes(int64_t rows, int64_t channels) const = 0;

  // out = x + y, or a copy of x where y is a null view.
  struct Add {
    TensorView x;
    TensorView y = {};
    TensorView out;  // may be x or y
  };
  virtual void add(const Add& op) = 0;

  // out (N, O) = x (N, I) . weight + bias (+ residual). Weight is (I, O) as in GPT-2's Conv1D, or
  // (O, I) when `weight_transposed`.
  struct Linear {
    TensorView x, weight;
    TensorView bias = {};      // (O); null view: none
    TensorView residual = {};  // (N, O); null view: none. May be `out`
    TensorView out;
    bool weight_transposed = false;
    TensorView workspace;  // linear_workspace_bytes
  };
  virtual void linear_forward(const Linear& op) = 0;
  struct LinearBackward {
    TensorView x, weight, out_grad;
    TensorView x_grad = {};  // null view: not wanted
    GradOutput weight_grad = {}, bias_grad = {};
    bool weight_transposed = false;
    TensorView workspace;
  };
  virtual void linear_backward(const LinearBackward& op) = 0;
  // Enough for forward and backward of that shape.
  virtual size_t linear_workspace_bytes(DType dtype, int64_t rows, int64_t in, int64_t out,
                                        bool weight_transposed) const = 0;

  // GELU with the tanh approximation (Hendrycks & Gimpel 2016), HF's "gelu_new".
  struct Gelu {
    TensorView x, out;
  };
  virtual void gelu_forward(const Gelu& op) = 0;
  struct GeluBackward {
    TensorView x, out_grad, x_grad;  // x_grad may be out_grad
  };
  virtual void gelu_backward(const GeluBackward& op) = 0;

  // out = residual + x * m, m being 0 where the site drops an element and 1 / (1 - p) elsewhere; x
  // is multiplied, so that what is not a number stays so. Backward of x is the same, of gradients
  // and without residual. Its bits do not depend on threads or instruction set. Where the site
  // drops nothing it copies, or adds.
  struct Dropout {
    TensorView x;
    TensorView residual = {};  // null view: none
    TensorView out;            // may be x or residual
    DropoutSite site = {};
  };
  virtual void dropout(const Dropout& op) = 0;

  // Causal multi-head attention with scale 1/sqrt(D) over packed q, k, v. Dropout is of the
  // probabilities, and counts heads from `first_head`; backward is given the same.
  struct Attention {
    TensorView qkv;        // (B, T, 3C): q, k, v, each H heads of D
    TensorView out;        // (B, T, C)
    TensorView saved;      // attention_saved_bytes, kept for backward
    TensorView workspace;  // attention_workspace_bytes
    int64_t heads = 1;
    int64_t first_head = 0;
    DropoutSite dropout = {};
  };
  virtual void attention_forward(const Attention& op) = 0;
  struct AttentionBackward {
    TensorView qkv, out, out_grad, saved;
    TensorView qkv_grad;  // (B, T, 3C)
    TensorView workspace;
    int64_t heads = 1;
    int64_t first_head = 0;
    DropoutSite dropout = {};
  };
  virtual void attention_backward(const AttentionBackward& op) = 0;
  virtual size_t attention_saved_bytes(DType dtype, const Shape& qkv, int64_t heads) const = 0;
  virtual size_t attention_workspace_bytes(DType dtype, const Shape& qkv, int64_t heads) const = 0;

  // Mean cross-entropy of logits against targets over N rows; rows with target -1 do not count, and
  // where no row counts the loss and its gradient are zero.
  // Writes *loss (a double in device memory) and, when wanted, logits_grad = d(loss * loss_scale) /
  // d(logits).
  struct CrossEntropy {
    TensorView logits;            // (N, V)
    TensorView targets;           // (N) int32
    TensorView logits_grad = {};  // (N, V); null view: not wanted. May be `logits`
    double* loss = nullptr;
    float loss_scale = 1;
    TensorView workspace;  // cross_entropy_workspace_bytes
  };
  virtual void cross_entropy(const CrossEntropy& op) = 0;
  virtual size_t cross_entropy_workspace_bytes(int64_t rows) const = 0;

  // Cross-entropy of logits that are never all there: in parts, a range of classes each. Every part
  // adds to a row's statistics, finish makes the loss of them, as cross_entropy does, and each
  // part's backward then takes its logits again.
  static constexpr int64_t kRowStatistics = 4;
  struct CrossEntropyPart {
    TensorView logits;      // (N, classes of the part)
    TensorView targets;     // (N) int32, among all classes
    TensorView statistics;  // (N, kRowStatistics) fp32
    int64_t first_class = 0;
    bool accumulate = false;  // false: begin the statistics
  };
  virtual void cross_entropy_part(const CrossEntropyPart& op) = 0;
  struct CrossEntropyFinish {
    TensorView targets;     // (N) int32
    TensorView statistics;  // of all parts; completed for backward
    int64_t classes = 0;    // of all parts
    double* loss = nullptr;
    float loss_scale = 1;
  };
  virtual void cross_entropy_finish(const CrossEntropyFinish& op) = 0;
  struct CrossEntropyPartBackward {
    TensorView logits, targets, statistics;
    TensorView logits_grad;  // may be `logits`
    int64_t first_class = 0;
  };
  virtual void cross_entropy_part_backward(const CrossEntropyPartBackward& op) = 0;

  // What matrices of `dtype` are multiplied in: another one where the device has no such products.
  virtual DType product_dtype(DType dtype) const = 0;
};

}  // namespace strata::ops
