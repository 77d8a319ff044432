#include "kernels/ops/cpu/attention_rows.h"

#include <cmath>
#include <limits>

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/attention_rows.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/dropout-inl.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

static_assert(kKeysTogether % kLanes == 0);

void scale_rows(const float* from, const float* row_scale, const HeadRows& to) {
  with_element(to.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* out = static_cast<typename Element::Stored*>(to.data);
    for (int64_t row = 0; row < to.rows; ++row, from += to.channels, out += to.stride) {
      const auto scale = hn::Set(F32(), row_scale == nullptr ? 1.0f : row_scale[row]);
      for_vectors(to.channels, [&](int64_t i, auto part) {
        store<Element>(hn::Mul(load<Fp32>(from + i, part), scale), out + i, part);
      });
    }
  });
}

void multiply_rows(const HeadRows& a, const HeadRows& b, float* dot) {
  with_element(a.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* x = static_cast<const typename Element::Stored*>(a.data);
    const auto* y = static_cast<const typename Element::Stored*>(b.data);
    for (int64_t row = 0; row < a.rows; ++row, x += a.stride, y += b.stride) {
      auto sum = hn::Zero(F32());
      for_vectors(a.channels, [&](int64_t i, auto part) {
        sum = hn::MulAdd(load<Element>(x + i, part), load<Element>(y + i, part), sum);
      });
      dot[row] = sum_of(sum);
    }
  });
}

// Calls body(i, visible) for each vector of a row; the first `visible` of its lanes are seen, at
// least one of them. Returns where the row's unseen vectors start.
template <class Body>
HWY_INLINE int64_t for_visible(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Full());
  if (i == count) return i;
  body(i, Tail{count - i});
  return i + kLanes;
}

template <class Element>
HWY_INLINE void zero_from(typename Element::Stored* row, int64_t begin, int64_t end) {
  std::memset(row + begin, 0, static_cast<size_t>(end - begin) * sizeof(*row));
}

// A row that no dropout touches.
struct WholeRow {
  HWY_INLINE Vector of(Vector x, int64_t) const { return x; }
};

// Calls body(row, kept) for each row, `kept` multiplying by what dropout makes of it.
template <class Body>
HWY_INLINE void for_rows(const ScoreBlock& block, const Body& body) {
  if (block.keep == nullptr) {
    for (int64_t row = 0; row < block.rows; ++row) body(row, WholeRow());
    return;
  }
  const int64_t stride = block.keys / kDropoutColumns;
  for (int64_t row = 0; row < block.rows; ++row) {
    body(row, KeptRow(block.keep + row * stride, block.keep_scale));
  }
}

template <class Element, class Kept>
HWY_INLINE void weigh_row(const ScoreBlock& block, int64_t row, const Kept& kept,
                          typename Element::Stored* weights, float* inverse_sum, float* log_sum) {
  const F32 d;
  const float* scores = block.scores + row * block.keys;
  const int64_t visible = block.first_visible + row + 1;
  auto max = hn::Set(d, std::numeric_limits<float>::lowest());
  for_visible(visible, [&](int64_t i, auto part) {
    const auto score = hn::LoadU(d, scores + i);
    max = hn::Max(max, keep(score, std::numeric_limits<float>::lowest(), part));
  });
  const float shift = block.scale * max_of(max);
  const auto scale = hn::Set(d, block.scale);
  const auto minus_shift = hn::Set(d, -shift);
  auto sum = hn::Zero(d);
  const int64_t unseen = for_visible(visible, [&](int64_t i, auto part) {
    const auto exponent = hn::MulAdd(hn::LoadU(d, scores + i), scale, minus_shift);
    const auto weight = keep(exponential(exponent), 0, part);
    sum = hn::Add(sum, weight);
    store<Element>(kept.of(weight, i), weights + i, Full());
  });
  zero_from<Element>(weights, unseen, block.keys);
  const float total = sum_of(sum);
  *inverse_sum = 1 / total;
  *log_sum = shift + std::log(total);
}

void weigh_rows(const ScoreBlock& block, void* weights, float* inverse_sum, float* log_sum) {
  with_element(block.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* out = static_cast<typename Element::Stored*>(weights);
    for_rows(block, [&](int64_t row, const auto& kept) {
      weigh_row<Element>(block, row, kept, out + row * block.keys, inverse_sum + row,
                         log_sum + row);
    });
  });
}

template <class Element, class Kept>
HWY_INLINE void differentiate_row(const ScoreBlock& block, const SoftmaxGrad& grad, int64_t row,
                                  const Kept& kept) {
  const F32 d;
  const int64_t offset = row * block.keys;
  auto* probabilities = static_cast<typename Element::Stored*>(grad.probabilities) + offset;
  auto* score_grads = static_cast<typename Element::Stored*>(grad.score_grads) + offset;
  const auto scale = hn::Set(d, block.scale);
  const auto minus_log_sum = hn::Set(d, -grad.log_sum[row]);
  const auto dot = hn::Set(d, grad.dot[row]);
  const int64_t visible = block.first_visible + row + 1;
  const int64_t unseen = for_visible(visible, [&](int64_t i, auto part) {
    const auto exponent = hn::MulAdd(hn::LoadU(d, block.scores + offset + i), scale, minus_log_sum);
    const auto p = keep(exponential(exponent), 0, part);
    const auto slope = hn::Sub(kept.of(hn::LoadU(d, grad.p_grad + offset + i), i), dot);
    store<Element>(kept.of(p, i), probabilities + i, Full());
    store<Element>(keep(hn::Mul(hn::Mul(p, slope), scale), 0, part), score_grads + i, Full());
  });
  zero_from<Element>(probabilities, unseen, block.keys);
  zero_from<Element>(score_grads, unseen, block.keys);
}

void differentiate_rows(const ScoreBlock& block, const SoftmaxGrad& grad) {
  with_element(block.dtype, [&](auto element) {
    for_rows(block, [&](int64_t row, const auto& kept) {
      differentiate_row<decltype(element)>(block, grad, row, kept);
    });
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace strata::ops::cpu {
namespace {
HWY_EXPORT(scale_rows);
HWY_EXPORT(multiply_rows);
HWY_EXPORT(weigh_rows);
HWY_EXPORT(differentiate_rows);
}  // namespace

void pack_rows(const HeadRows& from, int64_t padded_rows, void* to) {
  const size_t row_bytes = static_cast<size_t>(from.channels) * size_bytes(from.dtype);
  const size_t stride_bytes = static_cast<size_t>(from.stride) * size_bytes(from.dtype);
  const auto* source = static_cast<const std::byte*>(from.data);
  auto* target = static_cast<std::byte*>(to);
  for (int64_t row = 0; row < from.rows; ++row, source += stride_bytes, target += row_bytes) {
    std::memcpy(target, source, row_bytes);
  }
  std::memset(target, 0, static_cast<size_t>(padded_rows - from.rows) * row_bytes);
}

void unpack_rows(const float* from, const float* row_scale, const HeadRows& to) {
  HWY_DYNAMIC_DISPATCH(scale_rows)(from, row_scale, to);
}

void dot_rows(const HeadRows& a, const HeadRows& b, float* dot) {
  HWY_DYNAMIC_DISPATCH(multiply_rows)(a, b, dot);
}

void softmax_weights(const ScoreBlock& block, void* weights, float* inverse_sum, float* log_sum) {
  HWY_DYNAMIC_DISPATCH(weigh_rows)(block, weights, inverse_sum, log_sum);
}

void softmax_gradients(const ScoreBlock& block, const SoftmaxGrad& grad) {
  HWY_DYNAMIC_DISPATCH(differentiate_rows)(block, grad);
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
