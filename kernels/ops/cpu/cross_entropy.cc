#include "kernels/ops/cpu/cross_entropy.h"

#include <cmath>
#include <limits>

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/cross_entropy.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

// The sum of exp(x - max) over a row of logits.
struct RowSum {
  float max = 0;
  float sum = 0;
};

template <class Element>
HWY_INLINE RowSum sum_row(const typename Element::Stored* x, int64_t vocab) {
  const F32 d;
  auto max = hn::Set(d, std::numeric_limits<float>::lowest());
  for_vectors(vocab, [&](int64_t i, auto part) {
    const auto logits =
        keep(load<Element>(x + i, part), std::numeric_limits<float>::lowest(), part);
    max = hn::Max(max, logits);
  });
  const float row_max = max_of(max);
  const auto shift = hn::Set(d, row_max);
  auto sum = hn::Zero(d);
  for_vectors(vocab, [&](int64_t i, auto part) {
    const auto weight = exponential(hn::Sub(load<Element>(x + i, part), shift));
    sum = hn::Add(sum, keep(weight, 0, part));
  });
  return {row_max, sum_of(sum)};
}

// grad = softmax(x) * scale, less `scale` at the target. In place when grad is x.
template <class Element>
HWY_INLINE void differentiate_row(const typename Element::Stored* x, const RowSum& row,
                                  int32_t target, float scale, int64_t vocab,
                                  typename Element::Stored* grad) {
  const F32 d;
  const auto shift = hn::Set(d, row.max);
  const auto factor = hn::Set(d, scale / row.sum);
  // At the target, subtract before rounding.
  const auto lane = hn::Iota(d, 0);
  const auto full_scale = hn::Set(d, scale);
  for_vectors(vocab, [&](int64_t i, auto part) {
    auto y = hn::Mul(exponential(hn::Sub(load<Element>(x + i, part), shift)), factor);
    if (target >= i && target < i + kLanes) {
      const auto hit = hn::Eq(lane, hn::Set(d, static_cast<float>(target - i)));
      y = hn::IfThenElse(hit, hn::Sub(y, full_scale), y);
    }
    store<Element>(y, grad + i, part);
  });
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
        if (grad != nullptr) std::memset(grad, 0, static_cast<size_t>(args.vocab) * sizeof(Stored));
        continue;
      }
      const RowSum sum = sum_row<Element>(x, args.vocab);
      HWY_ALIGN float at_target[kLanes];
      hn::Store(load<Element>(x + target, Tail{1}), F32(), at_target);
      // The two logits first: next to large ones the logarithm would be lost.
      const double below_max = static_cast<double>(sum.max) - at_target[0];
      args.row_losses[row] = below_max + std::log(static_cast<double>(sum.sum));
      if (grad != nullptr) differentiate_row<Element>(x, sum, target, scale, args.vocab, grad);
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

int64_t count_targets(const CrossEntropyArgs& args) {
  int64_t count = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const int32_t target = args.targets[row];
    if (target < -1 || target >= args.vocab) {
      throw Error("cross_entropy: target " + std::to_string(target) + " in row " +
                  std::to_string(row) + " is outside a vocabulary of " +
                  std::to_string(args.vocab) + ".");
    }
    count += target >= 0 ? 1 : 0;
  }
  return count;
}
}  // namespace

void cross_entropy(const CrossEntropyArgs& args) {
  const int64_t count = count_targets(args);
  const float scale = count > 0 ? args.loss_scale / static_cast<float>(count) : 0;
  const auto kernel = &HWY_DYNAMIC_DISPATCH(cross_entropy_rows);
  parallel_for(args.rows, 1, [&](int64_t begin, int64_t end) { kernel(args, scale, begin, end); });
  double sum = 0;
  for (int64_t row = 0; row < args.rows; ++row) sum += args.row_losses[row];
  *args.loss = count > 0 ? sum / static_cast<double>(count) : 0;
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
