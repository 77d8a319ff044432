#include "kernels/ops/cpu/linear.h"

#include <algorithm>

namespace strata::ops::cpu {
namespace {

struct ForwardTerms {
  bool bias = false;
  bool residual = false;
  bool accumulate = false;  // the residual is the output
};

MatmulSpec forward_spec(const LinearShape& shape, const ForwardTerms& terms) {
  return {.m = shape.rows,
          .k = shape.in,
          .n = shape.out,
          .dtype = shape.dtype,
          .out_dtype = shape.dtype,
          .transpose_b = shape.weight_transposed,
          .add_bias = terms.bias,
          .add_residual = terms.residual,
          .accumulate = terms.accumulate};
}

// out_grad . weight^T
MatmulSpec x_grad_spec(const LinearShape& shape) {
  return {.m = shape.rows,
          .k = shape.out,
          .n = shape.in,
          .dtype = shape.dtype,
          .out_dtype = shape.dtype,
          .transpose_b = !shape.weight_transposed};
}

// x^T . out_grad, or out_grad^T . x for a transposed weight.
MatmulSpec weight_grad_spec(const LinearShape& shape, bool accumulate) {
  return {.m = shape.weight_transposed ? shape.out : shape.in,
          .k = shape.rows,
          .n = shape.weight_transposed ? shape.in : shape.out,
          .dtype = shape.dtype,
          .out_dtype = shape.dtype,
          .transpose_a = true,
          .accumulate = accumulate};
}

}  // namespace

size_t linear_workspace_bytes(MatmulCache& cache, const LinearShape& shape) {
  size_t bytes = RowChunks(shape.rows).partial_bytes(shape.out);
  const auto include = [&](const MatmulSpec& spec) {
    bytes = std::max(bytes, cache.scratch_bytes(spec));
  };
  for (const bool bias : {false, true}) {
    include(forward_spec(shape, {.bias = bias}));
    include(forward_spec(shape, {.bias = bias, .residual = true}));
    include(forward_spec(shape, {.bias = bias, .accumulate = true}));
  }
  include(x_grad_spec(shape));
  include(weight_grad_spec(shape, false));
  include(weight_grad_spec(shape, true));
  return bytes;
}

void linear_forward(MatmulCache& cache, const LinearForwardArgs& args) {
  const bool in_place = args.residual == args.out;
  const ForwardTerms terms{.bias = args.bias != nullptr,
                           .residual = args.residual != nullptr && !in_place,
                           .accumulate = in_place};
  cache.get(forward_spec(args.shape, terms))
      .run({.a = args.x,
            .b = args.weight,
            .out = args.out,
            .scratch = args.workspace,
            .bias = args.bias,
            .residual = args.residual},
           0);
}

void linear_backward(MatmulCache& cache, const LinearBackwardArgs& args) {
  const LinearShape& shape = args.shape;
  if (args.x_grad != nullptr) {
    cache.get(x_grad_spec(shape))
        .run({.a = args.out_grad, .b = args.weight, .out = args.x_grad, .scratch = args.workspace},
             0);
  }
  if (args.weight_grad.data != nullptr) {
    const void* left = shape.weight_transposed ? args.out_grad : args.x;
    const void* right = shape.weight_transposed ? args.x : args.out_grad;
    cache.get(weight_grad_spec(shape, args.weight_grad.accumulate))
        .run({.a = left, .b = right, .out = args.weight_grad.data, .scratch = args.workspace}, 0);
  }
  sum_columns({.x = args.out_grad,
               .rows = shape.rows,
               .columns = shape.out,
               .dtype = shape.dtype,
               .target = args.bias_grad,
               .partials = static_cast<float*>(args.workspace)});
}

}  // namespace strata::ops::cpu
