// Layer norm over the last dimension: a warp takes a row, which stays in the caches between the
// passes over it. The gradients of weight and bias read the activations once more, by columns. An
// RMS norm is a layer norm about zero instead of the mean, without a bias: not centered.
#include "kernels/ops/cuda/column_sums-inl.cuh"
#include "kernels/ops/cuda/element_math.h"
#include "kernels/ops/cuda/layer_kernels.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kRowsTogether = 4;  // of a block, a warp each

template <typename Element>
struct Forward {
  using Stored = typename Element::Stored;
  const Stored *x, *weight;
  const Stored* bias;  // where it is centered, like mean
  Stored* out;
  float *mean, *rstd;
  RowShape shape;
  float eps;
};

template <typename Element>
struct Backward {
  using Stored = typename Element::Stored;
  const Stored *x, *weight, *out_grad;
  const Stored* residual_grad;  // null, or x_grad
  Stored* x_grad;
  const float* mean;  // where it is centered
  const float* rstd;
  RowShape shape;
};

// The row of the calling warp.
__device__ __forceinline__ int64_t own_row() {
  return int64_t{blockIdx.x} * kRowsTogether + threadIdx.x / kWarp;
}

// Calls body(i) for the first element of each run of a row that the calling lane takes.
template <int kRun, typename Body>
__device__ __forceinline__ void for_runs(int64_t columns, const Body& body) {
  for (int64_t i = threadIdx.x % kWarp * kRun; i < columns; i += kWarp * kRun) body(i);
}

// About the mean, not as a difference of squares: that loses what a large mean leaves.
template <typename Element, int kRun>
__device__ __forceinline__ float row_variance(const typename Element::Stored* x, int64_t columns,
                                              float mean) {
  float sum = 0;
  for_runs<kRun>(columns, [&](int64_t i) {
    float values[kRun];
    load_run<Element>(x + i, values);
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum = fmaf(values[j] - mean, values[j] - mean, sum);
  });
  return warp_sum(sum) / static_cast<float>(columns);
}

template <typename Element, int kRun>
__device__ __forceinline__ float row_mean(const typename Element::Stored* x, int64_t columns) {
  float sum = 0;
  for_runs<kRun>(columns, [&](int64_t i) {
    float values[kRun];
    load_run<Element>(x + i, values);
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum += values[j];
  });
  return warp_sum(sum) / static_cast<float>(columns);
}

template <typename Element, int kRun, bool kCentered>
__global__ void __launch_bounds__(kRowsTogether* kWarp) normalize_rows(Forward<Element> op) {
  const int64_t row = own_row();
  if (row >= op.shape.rows) return;  // the whole warp
  const int64_t columns = op.shape.columns;
  const auto* x = op.x + row * columns;
  auto* out = op.out + row * columns;
  const float mean = kCentered ? row_mean<Element, kRun>(x, columns) : 0;
  const float rstd = 1 / sqrtf(row_variance<Element, kRun>(x, columns, mean) + op.eps);
  if (threadIdx.x % kWarp == 0) {
    if (kCentered) op.mean[row] = mean;
    op.rstd[row] = rstd;
  }
  for_runs<kRun>(columns, [&](int64_t i) {
    float values[kRun], weight[kRun], bias[kRun] = {};
    load_run<Element>(x + i, values);
    load_run<Element>(op.weight + i, weight);
    if (kCentered) load_run<Element>(op.bias + i, bias);
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      values[j] = norm_out(norm_normal(values[j], mean, rstd), weight[j], bias[j]);
    }
    store_run<Element>(values, out + i);
  });
}

template <typename Element, int kRun, bool kCentered>
__device__ __forceinline__ NormRowMeans row_means(const Backward<Element>& op, int64_t row) {
  const int64_t columns = op.shape.columns;
  const float mean = kCentered ? op.mean[row] : 0;
  NormRowMeans sum;
  for_runs<kRun>(columns, [&](int64_t i) {
    float x[kRun], dy[kRun], weight[kRun];
    load_run<Element>(op.x + row * columns + i, x);
    load_run<Element>(op.out_grad + row * columns + i, dy);
    load_run<Element>(op.weight + i, weight);
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const float g = dy[j] * weight[j];
      sum.g += g;
      sum.gn = fmaf(g, norm_normal(x[j], mean, op.rstd[row]), sum.gn);
    }
  });
  const auto count = static_cast<float>(columns);
  return {kCentered ? warp_sum(sum.g) / count : 0, warp_sum(sum.gn) / count};
}

template <typename Element, int kRun, bool kCentered>
__global__ void __launch_bounds__(kRowsTogether* kWarp) differentiate_rows(Backward<Element> op) {
  const int64_t row = own_row();
  if (row >= op.shape.rows) return;
  const int64_t columns = op.shape.columns;
  const NormRowMeans means = row_means<Element, kRun, kCentered>(op, row);
  const float mean = kCentered ? op.mean[row] : 0, rstd = op.rstd[row];
  for_runs<kRun>(columns, [&](int64_t i) {
    const int64_t at = row * columns + i;
    float x[kRun], dy[kRun], weight[kRun], add[kRun] = {};
    load_run<Element>(op.x + at, x);
    load_run<Element>(op.out_grad + at, dy);
    load_run<Element>(op.weight + i, weight);
    if (op.residual_grad != nullptr) load_run<Element>(op.residual_grad + at, add);
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const float normal = norm_normal(x[j], mean, rstd);
      x[j] = norm_x_grad(normal, dy[j] * weight[j], rstd, means, add[j]);
    }
    store_run<Element>(x, op.x_grad + at);
  });
}

// The gradients of weight and bias: out_grad * n, and out_grad.
template <typename Element, bool kCentered>
struct NormTerms {
  static constexpr int kSums = kCentered ? 2 : 1;

  __device__ void add(int64_t row, int64_t column, float (&sums)[kSums]) const {
    const int64_t at = row * columns + column;
    const float dy = Element::widen(out_grad[at]);
    const float center = kCentered ? mean[row] : 0;
    sums[0] = fmaf(dy, norm_normal(Element::widen(x[at]), center, rstd[row]), sums[0]);
    if constexpr (kCentered) sums[1] += dy;
  }

  const typename Element::Stored *x, *out_grad;
  const float *mean, *rstd;
  int64_t columns;
};

// The views of an operation; an RMS norm leaves mean and bias empty.
struct ForwardViews {
  TensorView x, weight, bias, out, mean, rstd;
  float eps;
};
struct BackwardViews {
  TensorView x, weight, mean, rstd, out_grad, x_grad, residual_grad, workspace;
};

Launch rows_launch(const RowShape& shape, cudaStream_t stream) {
  return {.blocks = ceil_div(shape.rows, kRowsTogether),
          .threads = kRowsTogether * kWarp,
          .stream = stream};
}

template <bool kCentered>
void forward(const ForwardViews& op, const RowShape& shape, cudaStream_t stream) {
  with_runs(op.x.dtype, shape.columns, {op.x.data, op.weight.data, op.bias.data, op.out.data},
            [&](auto element, auto run) {
              using Element = decltype(element);
              using Stored = typename Element::Stored;
              const Forward<Element> args{.x = op.x.template as<Stored>(),
                                          .weight = op.weight.template as<Stored>(),
                                          .bias = op.bias.template as<Stored>(),
                                          .out = op.out.template as<Stored>(),
                                          .mean = op.mean.template as<float>(),
                                          .rstd = op.rstd.template as<float>(),
                                          .shape = shape,
                                          .eps = op.eps};
              launch(&normalize_rows<Element, decltype(run)::value, kCentered>,
                     rows_launch(shape, stream), args);
            });
}

template <bool kCentered>
void sum_parameter_grads(const BackwardViews& op, const GradOutput (&targets)[kCentered ? 2 : 1],
                         const RowShape& shape, cudaStream_t stream) {
  with_element(op.x.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    const NormTerms<Element, kCentered> terms{.x = op.x.template as<Stored>(),
                                              .out_grad = op.out_grad.template as<Stored>(),
                                              .mean = op.mean.template as<float>(),
                                              .rstd = op.rstd.template as<float>(),
                                              .columns = shape.columns};
    sum_over_rows<Element>(terms, shape, targets, op.workspace.template as<float>(), stream);
  });
}

template <bool kCentered>
void differentiate(const BackwardViews& op, const RowShape& shape, cudaStream_t stream) {
  with_runs(op.x.dtype, shape.columns,
            {op.x.data, op.weight.data, op.out_grad.data, op.residual_grad.data, op.x_grad.data},
            [&](auto element, auto run) {
              using Element = decltype(element);
              using Stored = typename Element::Stored;
              const Backward<Element> args{.x = op.x.template as<Stored>(),
                                           .weight = op.weight.template as<Stored>(),
                                           .out_grad = op.out_grad.template as<Stored>(),
                                           .residual_grad = op.residual_grad.template as<Stored>(),
                                           .x_grad = op.x_grad.template as<Stored>(),
                                           .mean = op.mean.template as<float>(),
                                           .rstd = op.rstd.template as<float>(),
                                           .shape = shape};
              launch(&differentiate_rows<Element, decltype(run)::value, kCentered>,
                     rows_launch(shape, stream), args);
            });
}

}  // namespace

void layer_norm_forward(const LayerOps::LayerNorm& op, const RowShape& shape, cudaStream_t stream) {
  forward<true>({op.x, op.weight, op.bias, op.out, op.mean, op.rstd, op.eps}, shape, stream);
}

void layer_norm_backward(const LayerOps::LayerNormBackward& op, const RowShape& shape,
                         cudaStream_t stream) {
  const BackwardViews views{op.x,        op.weight, op.mean,          op.rstd,
                            op.out_grad, op.x_grad, op.residual_grad, op.workspace};
  if (op.weight_grad.view || op.bias_grad.view) {
    sum_parameter_grads<true>(views, {op.weight_grad, op.bias_grad}, shape, stream);
  }
  differentiate<true>(views, shape, stream);
}

size_t layer_norm_workspace_bytes(const RowShape& shape) {
  return RowChunks(shape.rows).partial_bytes(shape.columns, 2);
}

void rms_norm_forward(const LayerOps::RmsNorm& op, const RowShape& shape, cudaStream_t stream) {
  forward<false>({op.x, op.weight, {}, op.out, {}, op.rstd, op.eps}, shape, stream);
}

void rms_norm_backward(const LayerOps::RmsNormBackward& op, const RowShape& shape,
                       cudaStream_t stream) {
  const BackwardViews views{op.x,      op.weight,        {},          op.rstd, op.out_grad,
                            op.x_grad, op.residual_grad, op.workspace};
  if (op.weight_grad.view) sum_parameter_grads<false>(views, {op.weight_grad}, shape, stream);
  differentiate<false>(views, shape, stream);
}

size_t rms_norm_workspace_bytes(const RowShape& shape) {
  return RowChunks(shape.rows).partial_bytes(shape.columns, 1);
}

}  // namespace strata::ops::cuda
