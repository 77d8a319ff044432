// Cross-entropy of whole rows of logits, or of parts of them. A block takes a row: one pass for its
// statistics, one for its gradient, and no fp32 logit is written. Losses are added in a fixed
// order.
#include "kernels/ops/cuda/block-inl.cuh"
#include "kernels/ops/cuda/element_math.h"
#include "kernels/ops/cuda/launch-inl.cuh"
#include "kernels/ops/cuda/layer_kernels.cuh"
#include "kernels/ops/cuda/scan_ids.cuh"

namespace strata::ops::cuda {
namespace {

static_assert(sizeof(RowStatistics) == LayerOps::kRowStatistics * sizeof(float));

constexpr int kThreads = 256;     // of a row
constexpr int kSumThreads = 512;  // of all rows

// Rows of logits of a range of classes.
template <typename Element>
struct Rows {
  using Stored = typename Element::Stored;
  const Stored* logits;
  const int32_t* targets;  // among all classes
  Stored* logits_grad;     // null: not wanted. May be the logits
  int64_t classes;         // of the rows
  int64_t first_class;

  // Beyond the classes where the target is not among them.
  __device__ int64_t target(int64_t row) const {
    const int64_t local = targets[row] - first_class;
    return local >= 0 ? local : classes;
  }
};

// Of the block's row. In every thread.
template <typename Element, int kRun>
__device__ RowStatistics statistics_of(const Rows<Element>& rows, int64_t row) {
  const auto* x = rows.logits + row * rows.classes;
  RowStatistics own;
  for (int64_t i = threadIdx.x * kRun; i < rows.classes; i += kThreads * kRun) {
    float values[kRun];
    load_run<Element>(x + i, values);
#pragma unroll
    for (int j = 0; j < kRun; ++j) own.add(values[j]);
  }
  if (threadIdx.x == 0) {
    const int64_t target = rows.target(row);
    if (target < rows.classes) own.at_target = Element::widen(x[target]);
  }
  return block_reduce<kThreads>(own, [](RowStatistics a, const RowStatistics& b) {
    a.add(b);
    return a;
  });
}

// Behind statistics_of(), or a kernel of its own: the logits may be overwritten. Zero where the row
// does not count.
template <typename Element, int kRun>
__device__ void differentiate(const Rows<Element>& rows, int64_t row, bool counts,
                              const RowStatistics& statistics) {
  const int64_t target = rows.target(row);
  for (int64_t i = threadIdx.x * kRun; i < rows.classes; i += kThreads * kRun) {
    const int64_t at = row * rows.classes + i;
    float values[kRun];
    load_run<Element>(rows.logits + at, values);
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      values[j] = counts ? statistics.grad(values[j], i + j == target) : 0.0f;
    }
    store_run<Element>(values, rows.logits_grad + at);
  }
}

// What the mean is taken of: how many rows count.
struct Mean {
  int64_t count;
  float loss_scale;

  __device__ float row_scale() const {
    return count > 0 ? loss_scale / static_cast<float>(count) : 0;
  }
  __device__ double of(double sum) const {
    return count > 0 ? sum / static_cast<double>(count) : 0;
  }
};

template <typename Element, int kRun>
__global__ void __launch_bounds__(kThreads)
    whole_rows(const Rows<Element> rows, const int64_t* count, float loss_scale,
               double* row_losses) {
  const int64_t row = blockIdx.x;
  // A target that scan_ids() refuses does not count either: it must not be looked up.
  const bool counts = rows.targets[row] >= 0 && rows.targets[row] < rows.classes;
  RowStatistics statistics;
  if (counts) {
    statistics = statistics_of<Element, kRun>(rows, row);
    statistics.scale = Mean{*count, loss_scale}.row_scale();
  }
  if (threadIdx.x == 0) row_losses[row] = counts ? statistics.loss() : 0;
  if (rows.logits_grad != nullptr) differentiate<Element, kRun>(rows, row, counts, statistics);
}

template <typename Element, int kRun>
__global__ void __launch_bounds__(kThreads)
    part_rows(const Rows<Element> rows, RowStatistics* statistics, bool accumulate) {
  const int64_t row = blockIdx.x;
  const RowStatistics part = statistics_of<Element, kRun>(rows, row);
  if (threadIdx.x != 0) return;
  RowStatistics all = part;
  if (accumulate) {
    all = statistics[row];
    all.add(part);
  }
  statistics[row] = all;
}

template <typename Element, int kRun>
__global__ void __launch_bounds__(kThreads)
    differentiate_part_rows(const Rows<Element> rows, const RowStatistics* statistics) {
  const int64_t row = blockIdx.x;
  differentiate<Element, kRun>(rows, row, rows.targets[row] >= 0, statistics[row]);
}

// One block adds up losses: of rows, each thread's in order, and then of threads.
__device__ double sum_of_block(double own) {
  return block_reduce<kSumThreads>(own, [](double a, double b) { return a + b; });
}

__global__ void __launch_bounds__(kSumThreads)
    sum_losses(const double* row_losses, int64_t rows, const int64_t* count, double* loss) {
  double own = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kSumThreads) own += row_losses[row];
  const double sum = sum_of_block(own);
  if (threadIdx.x == 0) *loss = Mean{*count, 1}.of(sum);
}

// The same of rows whose parts are all in the statistics.
struct Finish {
  const int32_t* targets;
  RowStatistics* statistics;
  int64_t rows;
  float loss_scale;
  double* loss;
};
__global__ void __launch_bounds__(kSumThreads) finish_rows(const Finish op) {
  int64_t own_count = 0;
  double own = 0;
  for (int64_t row = threadIdx.x; row < op.rows; row += kSumThreads) {
    if (op.targets[row] < 0) continue;
    ++own_count;
    own += op.statistics[row].loss();
  }
  const int64_t count =
      block_reduce<kSumThreads>(own_count, [](int64_t a, int64_t b) { return a + b; });
  const Mean mean{count, op.loss_scale};
  const double sum = sum_of_block(own);
  if (threadIdx.x == 0) *op.loss = mean.of(sum);
  for (int64_t row = threadIdx.x; row < op.rows; row += kSumThreads) {
    if (op.targets[row] >= 0) op.statistics[row].scale = mean.row_scale();
  }
}

// Calls body(rows, Width) for a part's rows; `grad` may be a null view.
template <typename Op, typename Body>
void with_rows(const Op& op, const RowShape& shape, const TensorView& grad, int64_t first_class,
               const Body& body) {
  with_runs(op.logits.dtype, shape.columns, {op.logits.data, grad.data},
            [&](auto element, auto run) {
              using Element = decltype(element);
              using Stored = typename Element::Stored;
              const Rows<Element> rows{.logits = op.logits.template as<Stored>(),
                                       .targets = op.targets.template as<int32_t>(),
                                       .logits_grad = grad.template as<Stored>(),
                                       .classes = shape.columns,
                                       .first_class = first_class};
              body(element, run, rows);
            });
}

Launch a_block_each(int64_t rows, cudaStream_t stream) {
  return {.blocks = rows, .threads = kThreads, .stream = stream};
}

}  // namespace

void cross_entropy(const LayerOps::CrossEntropy& op, const RowShape& shape, Verdict* verdict,
                   cudaStream_t stream) {
  auto* row_losses = op.workspace.as<double>();
  auto* count = reinterpret_cast<int64_t*>(row_losses + shape.rows);
  scan_ids({.ids = op.targets.as<int32_t>(),
            .rows = shape.rows,
            .lowest = -1,
            .end = shape.columns,
            .verdict = verdict,
            .count = count},
           stream);
  with_rows(op, shape, op.logits_grad, 0, [&](auto element, auto run, const auto& rows) {
    launch(&whole_rows<decltype(element), decltype(run)::value>, a_block_each(shape.rows, stream),
           rows, count, op.loss_scale, row_losses);
  });
  launch(&sum_losses, {.blocks = 1, .threads = kSumThreads, .stream = stream}, row_losses,
         shape.rows, count, op.loss);
}

size_t cross_entropy_workspace_bytes(int64_t rows) {
  return static_cast<size_t>(rows) * sizeof(double) + sizeof(int64_t);
}

void cross_entropy_part(const LayerOps::CrossEntropyPart& op, const RowShape& shape,
                        cudaStream_t stream) {
  with_rows(op, shape, {}, op.first_class, [&](auto element, auto run, const auto& rows) {
    launch(&part_rows<decltype(element), decltype(run)::value>, a_block_each(shape.rows, stream),
           rows, op.statistics.template as<RowStatistics>(), op.accumulate);
  });
}

void cross_entropy_finish(const LayerOps::CrossEntropyFinish& op, Verdict* verdict,
                          cudaStream_t stream) {
  const int64_t rows = op.targets.numel();
  scan_ids({.ids = op.targets.as<int32_t>(),
            .rows = rows,
            .lowest = -1,
            .end = op.classes,
            .verdict = verdict},
           stream);
  launch(&finish_rows, {.blocks = 1, .threads = kSumThreads, .stream = stream},
         Finish{.targets = op.targets.as<int32_t>(),
                .statistics = op.statistics.as<RowStatistics>(),
                .rows = rows,
                .loss_scale = op.loss_scale,
                .loss = op.loss});
}

void cross_entropy_part_backward(const LayerOps::CrossEntropyPartBackward& op,
                                 const RowShape& shape, cudaStream_t stream) {
  with_rows(
      op, shape, op.logits_grad, op.first_class, [&](auto element, auto run, const auto& rows) {
        launch(&differentiate_part_rows<decltype(element), decltype(run)::value>,
               a_block_each(shape.rows, stream), rows, op.statistics.template as<RowStatistics>());
      });
}

}  // namespace strata::ops::cuda
