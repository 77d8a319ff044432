#include "kernels/ops/cpu/layer_norm.h"

#include <cmath>

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/layer_norm.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

template <class Element>
HWY_INLINE float row_mean(const typename Element::Stored* x, int64_t channels) {
  auto sum = hn::Zero(F32());
  for_vectors(channels,
              [&](int64_t i, auto part) { sum = hn::Add(sum, load<Element>(x + i, part)); });
  return sum_of(sum) / static_cast<float>(channels);
}

// About the mean, not as a difference of squares: that loses what a large mean leaves.
template <class Element>
HWY_INLINE float row_variance(const typename Element::Stored* x, int64_t channels, float mean) {
  const auto center = hn::Set(F32(), mean);
  auto sum = hn::Zero(F32());
  for_vectors(channels, [&](int64_t i, auto part) {
    const auto centered = keep(hn::Sub(load<Element>(x + i, part), center), 0, part);
    sum = hn::MulAdd(centered, centered, sum);
  });
  return sum_of(sum) / static_cast<float>(channels);
}

// Not centered: an RMS norm.
template <class Element, bool kCentered>
void normalize_row(const LayerNormForwardArgs& args, int64_t row) {
  using Stored = typename Element::Stored;
  const Stored* x = static_cast<const Stored*>(args.x) + row * args.channels;
  const Stored* weight = static_cast<const Stored*>(args.weight);
  const Stored* bias = static_cast<const Stored*>(args.bias);
  Stored* out = static_cast<Stored*>(args.out) + row * args.channels;

  const float mean = kCentered ? row_mean<Element>(x, args.channels) : 0;
  const float rstd = 1 / std::sqrt(row_variance<Element>(x, args.channels, mean) + args.eps);
  if constexpr (kCentered) args.mean[row] = mean;
  args.rstd[row] = rstd;
  const auto center = hn::Set(F32(), mean);
  const auto scale = hn::Set(F32(), rstd);
  for_vectors(args.channels, [&](int64_t i, auto part) {
    const auto normal = hn::Mul(hn::Sub(load<Element>(x + i, part), center), scale);
    const auto scaled_by = load<Element>(weight + i, part);
    if constexpr (kCentered) {
      const auto y = hn::MulAdd(normal, scaled_by, load<Element>(bias + i, part));
      store<Element>(y, out + i, part);
    } else {
      store<Element>(hn::Mul(normal, scaled_by), out + i, part);
    }
  });
}

void normalize_rows(const LayerNormForwardArgs& args, int64_t begin, int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto normalize =
        args.mean == nullptr ? &normalize_row<Element, false> : &normalize_row<Element, true>;
    for (int64_t row = begin; row < end; ++row) normalize(args, row);
  });
}

// With n the normalized x and g = out_grad * weight:
//   x_grad = rstd * (g - mean(g) - n * mean(g * n)),  weight_grad = sum over rows of out_grad * n.
// An RMS norm's has no mean(g).
template <class Element, bool kCentered>
void differentiate_row(const LayerNormBackwardArgs& args, int64_t row, float* weight_sums,
                       float* bias_sums) {
  using Stored = typename Element::Stored;
  const int64_t offset = row * args.channels;
  const Stored* x = static_cast<const Stored*>(args.x) + offset;
  const Stored* out_grad = static_cast<const Stored*>(args.out_grad) + offset;
  const Stored* residual = static_cast<const Stored*>(args.residual_grad);
  const Stored* weight = static_cast<const Stored*>(args.weight);
  Stored* x_grad = static_cast<Stored*>(args.x_grad) + offset;

  const auto center = hn::Set(F32(), kCentered ? args.mean[row] : 0);
  const auto rstd = hn::Set(F32(), args.rstd[row]);
  auto sum_g = hn::Zero(F32());
  auto sum_gn = hn::Zero(F32());
  for_vectors(args.channels, [&](int64_t i, auto part) {
    // Behind the row's end out_grad, and with it every sum, is zero.
    const auto dy = load<Element>(out_grad + i, part);
    const auto normal = hn::Mul(hn::Sub(load<Element>(x + i, part), center), rstd);
    const auto g = hn::Mul(dy, load<Element>(weight + i, part));
    if constexpr (kCentered) sum_g = hn::Add(sum_g, g);
    sum_gn = hn::MulAdd(g, normal, sum_gn);
    store<Fp32>(hn::MulAdd(dy, normal, load<Fp32>(weight_sums + i, part)), weight_sums + i, part);
    if constexpr (kCentered) {
      store<Fp32>(hn::Add(dy, load<Fp32>(bias_sums + i, part)), bias_sums + i, part);
    }
  });

  const float channels = static_cast<float>(args.channels);
  const auto mean_g = hn::Set(F32(), sum_of(sum_g) / channels);
  const auto mean_gn = hn::Set(F32(), sum_of(sum_gn) / channels);
  for_vectors(args.channels, [&](int64_t i, auto part) {
    const auto normal = hn::Mul(hn::Sub(load<Element>(x + i, part), center), rstd);
    const auto g = hn::Mul(load<Element>(out_grad + i, part), load<Element>(weight + i, part));
    const auto inner = hn::NegMulAdd(normal, mean_gn, hn::Sub(g, mean_g));
    const auto add =
        residual == nullptr ? hn::Zero(F32()) : load<Element>(residual + offset + i, part);
    store<Element>(hn::MulAdd(rstd, inner, add), x_grad + i, part);
  });
}

void differentiate_chunks(const LayerNormBackwardArgs& args, int64_t begin, int64_t end) {
  const RowChunks chunks(args.rows);
  const int64_t sums = args.sums_numel();
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto differentiate = args.mean == nullptr ? &differentiate_row<Element, false>
                                                    : &differentiate_row<Element, true>;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      float* weight_sums = args.partials + chunk * sums;
      float* bias_sums = weight_sums + args.channels;  // an RMS norm has none
      std::memset(weight_sums, 0, static_cast<size_t>(sums) * sizeof(float));
      for (int64_t row = chunks.begin(chunk); row < chunks.begin(chunk + 1); ++row) {
        differentiate(args, row, weight_sums, bias_sums);
      }
    }
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/device/thread_team.h"

namespace strata::ops::cpu {
namespace {
HWY_EXPORT(normalize_rows);
HWY_EXPORT(differentiate_chunks);
}  // namespace

void layer_norm_forward(const LayerNormForwardArgs& args) {
  const auto kernel = &HWY_DYNAMIC_DISPATCH(normalize_rows);
  parallel_for(args.rows, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void layer_norm_backward(const LayerNormBackwardArgs& args) {
  const auto kernel = &HWY_DYNAMIC_DISPATCH(differentiate_chunks);
  const RowChunks chunks(args.rows);
  parallel_for(chunks.count, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  ChunkSum sum{.partials = args.partials,
               .chunks = chunks.count,
               .stride = args.sums_numel(),
               .columns = args.channels,
               .dtype = args.dtype,
               .target = args.weight_grad};
  sum_chunks(sum);
  if (args.mean == nullptr) return;
  sum.partials += args.channels;
  sum.target = args.bias_grad;
  sum_chunks(sum);
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
