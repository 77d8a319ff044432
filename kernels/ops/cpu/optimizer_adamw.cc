// The fused AdamW update.
//
// Decay is p - (lr * weight_decay) * p in one rounding, as in PyTorch's fused kernel. Its unfused
// AdamW multiplies by fp32(1 - lr * weight_decay), within one unit in the last place of it; that
// factor is too coarse a grid for small decays (1e-6 becomes 1.013e-6, every step).
#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/optimizer_adamw.cc"
#include <cstdint>
#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/ops/cpu/elements-inl.h"
#include "kernels/ops/cpu/optimizer_factors.h"
#include "kernels/ops/optimizer_ops.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

using F32 = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32>;
constexpr int64_t kLanes = hn::MaxLanes(F32());
constexpr int64_t kBlock = 32;  // two lines of fp32, one of 16 bits

// Highway's Stream of a vector below 16 bytes writes 16.
template <class Element>
constexpr bool can_stream() {
  return sizeof(typename Element::Stored) * kLanes >= 16;
}

template <class Element>
HWY_INLINE void write_param(F32Vec x, bool stream, typename Element::Stored* to) {
  const hn::Rebind<typename Element::Stored, F32> d;
  const auto encoded = Element::encode(F32(), x);
  if constexpr (can_stream<Element>()) {
    if (stream) return hn::Stream(encoded, d, to);
  }
  hn::StoreU(encoded, d, to);
}

// Where the next element of each span is.
template <class Grad, class Param>
struct Cursor {
  Cursor(const AdamWSpans& spans, int64_t at)
      : master(spans.master + at),
        exp_avg(spans.exp_avg + at),
        exp_avg_sq(spans.exp_avg_sq + at),
        grad(static_cast<const typename Grad::Stored*>(spans.grad) + at),
        param(static_cast<typename Param::Stored*>(spans.param) + at) {}

  float* HWY_RESTRICT master;
  float* HWY_RESTRICT exp_avg;
  float* HWY_RESTRICT exp_avg_sq;
  const typename Grad::Stored* HWY_RESTRICT grad;
  typename Param::Stored* HWY_RESTRICT param;
};

template <class Grad, class Param>
HWY_INLINE void update_vector(const AdamWFactors& s, const Cursor<Grad, Param>& at, int64_t i,
                              bool stream) {
  const F32 d;
  const F32Vec grad = hn::Mul(load<Grad>(d, at.grad + i), hn::Set(d, s.grad_scale));
  const F32Vec new_m = fused_multiply_add(d, hn::Set(d, s.beta1), hn::LoadU(d, at.exp_avg + i),
                                          hn::Mul(hn::Set(d, s.one_minus_beta1), grad));
  const F32Vec new_v =
      fused_multiply_add(d, hn::Set(d, s.beta2), hn::LoadU(d, at.exp_avg_sq + i),
                         hn::Mul(hn::Mul(hn::Set(d, s.one_minus_beta2), grad), grad));
  const F32Vec m = flush_denormal(d, one_nan(d, new_m));
  const F32Vec v = flush_denormal(d, one_nan(d, new_v));

  const F32Vec old = hn::LoadU(d, at.master + i);
  const F32Vec decayed = fused_multiply_add(d, hn::Set(d, s.minus_decay), old, old);
  const F32Vec denominator =
      fused_multiply_add(d, hn::Sqrt(v), hn::Set(d, s.v_scale), hn::Set(d, s.eps));
  const F32Vec step = hn::Div(m, denominator);
  const F32Vec master =
      one_nan(d, fused_multiply_add(d, hn::Set(d, s.minus_step_size), step, decayed));

  hn::StoreU(m, d, at.exp_avg + i);
  hn::StoreU(v, d, at.exp_avg_sq + i);
  hn::StoreU(master, d, at.master + i);
  write_param<Param>(master, stream, at.param + i);
}

// Asks for the block that is kAhead elements on; past the end that does no harm. Worth 2 to 5 % on
// spans in memory; a distance of 1024 costs more than it gives.
template <class Grad, class Param>
HWY_INLINE void prefetch_block(const Cursor<Grad, Param>& at, int64_t i) {
  constexpr int64_t kAhead = 256;
  constexpr int64_t kLine = 64;
  for (int64_t byte = 0; byte < kBlock * 4; byte += kLine) {
    const int64_t j = i + kAhead + byte / 4;
    hwy::Prefetch(at.master + j);
    hwy::Prefetch(at.exp_avg + j);
    hwy::Prefetch(at.exp_avg_sq + j);
  }
  constexpr int64_t kGradBytes = sizeof(typename Grad::Stored);
  for (int64_t byte = 0; byte < kBlock * kGradBytes; byte += kLine) {
    hwy::Prefetch(at.grad + i + kAhead + byte / kGradBytes);
  }
}

// Streaming stores spare reading the parameters' lines before they are overwritten; they need
// vector alignment, and pay once the output would not have stayed in the cache anyway.
template <class Param>
bool should_stream(const AdamWSpans& spans, int64_t begin) {
  using Stored = typename Param::Stored;
  constexpr int64_t kStreamFromNumel = int64_t{1} << 19;
  const auto address = reinterpret_cast<uintptr_t>(static_cast<Stored*>(spans.param) + begin);
  return can_stream<Param>() && spans.numel >= kStreamFromNumel &&
         address % (sizeof(Stored) * kLanes) == 0;
}

// Whole blocks.
template <class Grad, class Param>
void update_blocks(const AdamWFactors& s, const AdamWSpans& spans, int64_t begin, int64_t end) {
  const AdamWFactors factors = s;  // a local copy: stores to the spans cannot change it
  const Cursor<Grad, Param> at(spans, begin);
  const bool stream = should_stream<Param>(spans, begin);
  for (int64_t i = 0; i < end - begin; i += kBlock) {
    prefetch_block(at, i);
    for (int64_t j = i; j < i + kBlock; j += kLanes) update_vector(factors, at, j, stream);
  }
  if (stream) hwy::FlushStream();
}

// The last elements, fewer than a block, through the same code on padded copies.
template <class Grad, class Param>
void update_rest(const AdamWFactors& s, const AdamWSpans& spans, int64_t begin, int64_t end) {
  const Cursor<Grad, Param> at(spans, begin);
  const size_t count = static_cast<size_t>(end - begin);
  float master[kBlock] = {};
  float exp_avg[kBlock] = {};
  float exp_avg_sq[kBlock] = {};
  typename Grad::Stored grad[kBlock] = {};
  typename Param::Stored param[kBlock];
  std::memcpy(master, at.master, count * sizeof(float));
  std::memcpy(exp_avg, at.exp_avg, count * sizeof(float));
  std::memcpy(exp_avg_sq, at.exp_avg_sq, count * sizeof(float));
  std::memcpy(grad, at.grad, count * sizeof(*grad));
  const AdamWSpans padded = {.master = master,
                             .exp_avg = exp_avg,
                             .exp_avg_sq = exp_avg_sq,
                             .grad = grad,
                             .param = param,
                             .numel = kBlock};
  update_blocks<Grad, Param>(s, padded, 0, kBlock);
  std::memcpy(at.master, master, count * sizeof(float));
  std::memcpy(at.exp_avg, exp_avg, count * sizeof(float));
  std::memcpy(at.exp_avg_sq, exp_avg_sq, count * sizeof(float));
  std::memcpy(at.param, param, count * sizeof(*param));
}

template <class Grad, class Param>
void update_range(const AdamWFactors& s, const AdamWSpans& spans, int64_t begin, int64_t end) {
  const int64_t last = begin + (end - begin) / kBlock * kBlock;
  update_blocks<Grad, Param>(s, spans, begin, last);
  if (last < end) update_rest<Grad, Param>(s, spans, last, end);
}

void adamw(const AdamWFactors& s, const AdamWSpans& spans, int64_t begin, int64_t end) {
  with_element(spans.grad_dtype, [&](auto grad) {
    with_element(spans.param_dtype, [&](auto param) {
      update_range<decltype(grad), decltype(param)>(s, spans, begin, end);
    });
  });
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/ops/cpu/optimizer_range.h"

namespace strata::ops {
namespace {
HWY_EXPORT(adamw);
}  // namespace

void adamw_update(const AdamWScalars& scalars, const AdamWSpans& spans) {
  require(is_float(spans.grad_dtype) && is_float(spans.param_dtype) && spans.numel >= 0,
          "adamw_update: gradient and parameter are fp32, bf16 or fp16, and numel is not negative");
  const DefaultFloatMode mode;  // the factors are rounded here
  const AdamWFactors factors = derive_factors(scalars);
  const auto kernel = in_force(HWY_DISPATCH_TABLE(adamw));
  for_grains(spans.numel, [&](int64_t begin, int64_t end) { kernel(factors, spans, begin, end); });
}

}  // namespace strata::ops
#endif  // HWY_ONCE
