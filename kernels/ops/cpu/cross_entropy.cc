#include "kernels/ops/cpu/cross_entropy.h"

#include <limits>

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/cross_entropy.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

template <class Element>
HWY_INLINE RowStatistics row_statistics(const typename Element::Stored* x, int64_t classes,
                                        int64_t target) {
  const F32 d;
  auto max = hn::Set(d, std::numeric_limits<float>::lowest());
  for_vectors(classes, [&](int64_t i, auto part) {
    const auto logits =
        keep(load<Element>(x + i, part), std::numeric_limits<float>::lowest(), part);
    max = hn::Max(max, logits);
  });
  const float row_max = max_of(max);
  const auto shift = hn::Set(d, row_max);
  auto sum = hn::Zero(d);
  for_vectors(classes, [&](int64_t i, auto part) {
    const auto weight = exponential(hn::Sub(load<Element>(x + i, part), shift));
    sum = hn::Add(sum, keep(weight, 0, part));
  });
  HWY_ALIGN float at_target[kLanes] = {};
  if (target >= 0 && target < classes) {
    hn::Store(load<Element>(x + target, Tail{1}), d, at_target);
  }
  return {.max = row_max, .sum = sum_of(sum), .at_target = at_target[0]};
}

// grad = softmax(x) * scale, less `scale` at the target. In place when grad is x.
template <class Element>
HWY_INLINE void differentiate_row(const typename Element::Stored* x, const RowStatistics& row,
                                  int64_t target, int64_t classes, typename Element::Stored* grad) {
  const F32 d;
  const auto shift = hn::Set(d, row.max);
  const auto factor = hn::Set(d, row.scale / row.sum);
  // At the target, subtract before rounding.
  const auto lane = hn::Iota(d, 0);
  const auto full_scale = hn::Set(d, row.scale);
  for_vectors(classes, [&](int64_t i, auto part) {
    auto y = hn::Mul(exponential(hn::Sub(load<Element>(x + i, part), shift)), factor);
    if (target >= i && target < i + kLanes) {
      const auto hit = hn::Eq(lane, hn::Set(d, static_cast<float>(target - i)));
      y = hn::IfThenElse(hit, hn::Sub(y, full_scale), y);
    }
    store<Element>(y, grad + i, part);
  });
}

template <class Element>
HWY_INLINE void clear_row(typename Element::Stored* grad, int64_t classes) {
  std::memset(grad, 0, static_cast<size_t>(classes) * sizeof(*grad));
}

// `scale` is the gradient of a row's loss.
void cross_entropy_rows(const CrossEntropyArgs& args, float scale, int64_t begin, int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    for (int64_t row = begin; row < end; ++row) {
      const Stored* x = static_cast<const Stored*>(args.logits) + row * args.vocab;
      Stored* grad = static_cast<Stored*>(args.logits_grad);
      if (grad != nullptr) grad += row * args.vocab;
      const int32_t target = args.targets[row];
      args.row_losses[row] = 0;
      if (target < 0) {
        if (grad != nullptr) clear_row<Element>(grad, args.vocab);
        continue;
      }
      RowStatistics statistics = row_statistics<Element>(x, args.vocab, target);
      args.row_losses[row] = statistics.loss();
      statistics.scale = scale;
      if (grad != nullptr) differentiate_row<Element>(x, statistics, target, args.vocab, grad);
    }
  });
}

void cross_entropy_part_rows(const CrossEntropyPartArgs& args, bool accumulate, int64_t begin,
                             int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* logits = static_cast<const typename Element::Stored*>(args.logits);
    for (int64_t row = begin; row < end; ++row) {
      const RowStatistics part = row_statistics<Element>(logits + row * args.classes, args.classes,
                                                         args.targets[row] - args.first_class);
      RowStatistics& statistics = args.statistics[row];
      if (accumulate) {
        statistics.add(part);
      } else {
        statistics = part;
      }
    }
  });
}

void differentiate_part_rows(const CrossEntropyPartArgs& args, void* logits_grad, int64_t begin,
                             int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    for (int64_t row = begin; row < end; ++row) {
      const Stored* x = static_cast<const Stored*>(args.logits) + row * args.classes;
      Stored* grad = static_cast<Stored*>(logits_grad) + row * args.classes;
      const int32_t target = args.targets[row];
      if (target < 0) {
        clear_row<Element>(grad, args.classes);
      } else {
        differentiate_row<Element>(x, args.statistics[row], target - args.first_class, args.classes,
                                   grad);
      }
    }
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <string>

#include "kernels/device/thread_team.h"
#include "strata/error.h"

namespace strata::ops::cpu {
namespace {
HWY_EXPORT(cross_entropy_rows);
HWY_EXPORT(cross_entropy_part_rows);
HWY_EXPORT(differentiate_part_rows);

// How many rows count.
int64_t count_targets(const int32_t* targets, int64_t rows, int64_t classes) {
  int64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t target = targets[row];
    if (target < -1 || target >= classes) {
      throw Error("cross_entropy: target " + std::to_string(target) + " in row " +
                  std::to_string(row) + " is outside a vocabulary of " + std::to_string(classes) +
                  ".");
    }
    count += target >= 0 ? 1 : 0;
  }
  return count;
}

float row_scale(float loss_scale, int64_t count) {
  return count > 0 ? loss_scale / static_cast<float>(count) : 0;
}

double mean(double sum, int64_t count) { return count > 0 ? sum / static_cast<double>(count) : 0; }

}  // namespace

void cross_entropy(const CrossEntropyArgs& args) {
  const int64_t count = count_targets(args.targets, args.rows, args.vocab);
  const float scale = row_scale(args.loss_scale, count);
  const auto kernel = &HWY_DYNAMIC_DISPATCH(cross_entropy_rows);
  parallel_for(args.rows, 1, [&](int64_t begin, int64_t end) { kernel(args, scale, begin, end); });
  double sum = 0;
  for (int64_t row = 0; row < args.rows; ++row) sum += args.row_losses[row];
  *args.loss = mean(sum, count);
}

void cross_entropy_part(const CrossEntropyPartArgs& args, bool accumulate) {
  const auto kernel = &HWY_DYNAMIC_DISPATCH(cross_entropy_part_rows);
  parallel_for(args.rows, 1,
               [&](int64_t begin, int64_t end) { kernel(args, accumulate, begin, end); });
}

void cross_entropy_part_backward(const CrossEntropyPartArgs& args, void* logits_grad) {
  const auto kernel = &HWY_DYNAMIC_DISPATCH(differentiate_part_rows);
  parallel_for(args.rows, 1,
               [&](int64_t begin, int64_t end) { kernel(args, logits_grad, begin, end); });
}

void cross_entropy_finish(const CrossEntropyFinishArgs& args) {
  const int64_t count = count_targets(args.targets, args.rows, args.classes);
  const float scale = row_scale(args.loss_scale, count);
  double sum = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    if (args.targets[row] < 0) continue;
    sum += args.statistics[row].loss();
    args.statistics[row].scale = scale;
  }
  *args.loss = mean(sum, count);
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
