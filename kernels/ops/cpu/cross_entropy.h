// Mean cross-entropy and its gradient, on the calling thread's team: of whole rows of logits, or of
// parts of them, a range of classes each.
//
// Rows with target -1 do not count; with no row that counts, the loss and the gradient are zero.
// The same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "strata/dtype.h"

namespace strata::ops::cpu {

// Throws Error when a target is outside the vocabulary.
struct CrossEntropyArgs {
  const void* logits = nullptr;      // (rows, vocab)
  const int32_t* targets = nullptr;  // (rows)
  void* logits_grad = nullptr;       // (rows, vocab), null, or `logits`
  double* loss = nullptr;
  double* row_losses = nullptr;  // (rows) of scratch
  int64_t rows = 0;
  int64_t vocab = 0;
  DType dtype = DType::fp32;
  float loss_scale = 1;
};
void cross_entropy(const CrossEntropyArgs& args);

// What is known of a row from its logits so far.
struct RowStatistics {
  float max = 0;
  float sum = 0;        // of exp(x - max)
  float at_target = 0;  // 0 where the target is not among them
  float scale = 0;      // the gradient of the row's loss, when all are known

  // The same row's other logits.
  void add(const RowStatistics& part) {
    const float both = std::max(max, part.max);
    sum = sum * std::exp(max - both) + part.sum * std::exp(part.max - both);
    max = both;
    at_target += part.at_target;
  }
  // The two logits first: next to large ones the logarithm would be lost.
  double loss() const {
    const double below_max = static_cast<double>(max) - at_target;
    return below_max + std::log(static_cast<double>(sum));
  }
};

// A part of the rows' logits: of `classes` classes from `first_class` on.
struct CrossEntropyPartArgs {
  const void* logits = nullptr;         // (rows, classes)
  const int32_t* targets = nullptr;     // (rows), among all classes
  RowStatistics* statistics = nullptr;  // (rows)
  int64_t rows = 0;
  int64_t classes = 0;
  int64_t first_class = 0;
  DType dtype = DType::fp32;
};
// Begins the statistics, or adds to them.
void cross_entropy_part(const CrossEntropyPartArgs& args, bool accumulate);
// logits_grad (rows, classes) may be the logits; after cross_entropy_finish.
void cross_entropy_part_backward(const CrossEntropyPartArgs& args, void* logits_grad);

// The loss of rows whose parts are all in the statistics. Throws Error when a target is outside the
// `classes`.
struct CrossEntropyFinishArgs {
  const int32_t* targets = nullptr;
  RowStatistics* statistics = nullptr;
  double* loss = nullptr;
  int64_t rows = 0;
  int64_t classes = 0;  // of all parts
  float loss_scale = 1;
};
void cross_entropy_finish(const CrossEntropyFinishArgs& args);

}  // namespace strata::ops::cpu
