#include "tools/bench_chain.h"

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/bench_chain.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/ops/cpu/optimizer_rules-inl.h"
#include "strata/grain.h"

HWY_BEFORE_NAMESPACE();
namespace strata::tools::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace elements = ops::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32>;
constexpr int64_t kLanes = hn::MaxLanes(F32());
constexpr int64_t kBlock = 64;  // what loops are unrolled to
static_assert(kGrainNumel % kBlock == 0 && kBlock % (2 * kLanes) == 0);

// Highway's Stream of a vector below 16 bytes writes 16.
template <class D>
HWY_INLINE void write(hn::Vec<D> x, D d, Stores stores, hn::TFromD<D>* to) {
  if constexpr (sizeof(hn::TFromD<D>) * hn::MaxLanes(d) >= 16) {
    if (stores == Stores::streaming) return hn::Stream(x, d, to);
  }
  hn::StoreU(x, d, to);
}

// Only 16-bit dtypes get here.
template <class Body>
void with_element(DType dtype, const Body& body) {
  dtype == DType::bf16 ? body(elements::Bf16()) : body(elements::Fp16());
}

template <class Element>
void widen_elements(const WidenSpans& spans, Stores stores, int64_t begin, int64_t end) {
  const auto* grad = static_cast<const uint16_t*>(spans.grad);
  for (int64_t i = begin; i < end; i += kBlock) {
    for (int64_t j = i; j < i + kBlock; j += kLanes) {
      write(elements::load<Element>(F32(), grad + j), F32(), stores, spans.wide + j);
    }
  }
  if (stores == Stores::streaming) hwy::FlushStream();
}

void widen(const WidenSpans& spans, Stores stores, int64_t begin, int64_t end) {
  with_element(spans.dtype,
               [&](auto element) { widen_elements<decltype(element)>(spans, stores, begin, end); });
}

double grain_sum(const float* from) {
  const F32 d;
  constexpr int64_t kSums = kBlock / kLanes;
  F32Vec sums[kSums];
  for (F32Vec& sum : sums) sum = hn::Zero(d);
  for (int64_t i = 0; i < kGrainNumel; i += kBlock) {
    for (int64_t k = 0; k < kSums; ++k) {
      const F32Vec x = hn::LoadU(d, from + i + k * kLanes);
      sums[k] = hn::MulAdd(x, x, sums[k]);
    }
  }
  double total = 0;
  for (const F32Vec& sum : sums) total += hn::GetLane(hn::SumOfLanes(d, sum));
  return total;
}

void sum_squares(const float* wide, double* grain_sums, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kGrainNumel) {
    grain_sums[i / kGrainNumel] = grain_sum(wide + i);
  }
}

void scale(float* wide, float factor, int64_t begin, int64_t end) {
  const F32 d;
  const F32Vec factors = hn::Set(d, factor);
  for (int64_t i = begin; i < end; i += kBlock) {
    for (int64_t j = i; j < i + kBlock; j += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, wide + j), factors), d, wide + j);
    }
  }
}

// As far ahead as the fused update asks for its spans.
HWY_INLINE void prefetch(const float* from) {
  constexpr int64_t kAhead = 96;
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < kBlock; i += kLine) hwy::Prefetch(from + kAhead + i);
}

void update(const ops::OptimizerScalars& scalars, const ops::OptimizerSpans& spans, int64_t begin,
            int64_t end) {
  const F32 d;
  const elements::AdamW rule(scalars);
  float* HWY_RESTRICT master = spans.master;
  float* HWY_RESTRICT exp_avg = spans.exp_avg;
  float* HWY_RESTRICT exp_avg_sq = spans.exp_avg_sq;
  const auto* HWY_RESTRICT grad = static_cast<const float*>(spans.grad);
  for (int64_t i = begin; i < end; i += kBlock) {
    for (const float* from : {master + i, exp_avg + i, exp_avg_sq + i}) prefetch(from);
    prefetch(grad + i);
    for (int64_t j = i; j < i + kBlock; j += kLanes) {
      elements::StateVector x = {hn::LoadU(d, master + j), hn::LoadU(d, exp_avg + j),
                                 hn::LoadU(d, exp_avg_sq + j)};
      rule(hn::LoadU(d, grad + j), x);
      hn::StoreU(x.exp_avg, d, exp_avg + j);
      hn::StoreU(x.exp_avg_sq, d, exp_avg_sq + j);
      hn::StoreU(x.master, d, master + j);
    }
  }
}

template <class Element>
void narrow_elements(const NarrowSpans& spans, Stores stores, int64_t begin, int64_t end) {
  const hn::Rebind<uint16_t, F32> d_stored;
  auto* param = static_cast<uint16_t*>(spans.param);
  for (int64_t i = begin; i < end; i += kBlock) {
    for (int64_t j = i; j < i + kBlock; j += kLanes) {
      const F32Vec x = hn::LoadU(F32(), spans.master + j);
      write(Element::encode(F32(), x), d_stored, stores, param + j);
    }
  }
  if (stores == Stores::streaming) hwy::FlushStream();
}

void narrow(const NarrowSpans& spans, Stores stores, int64_t begin, int64_t end) {
  with_element(spans.dtype, [&](auto element) {
    narrow_elements<decltype(element)>(spans, stores, begin, end);
  });
}

}  // namespace strata::tools::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <numeric>

#include "kernels/device/thread_team.h"

namespace strata::tools {
namespace {

HWY_EXPORT(widen);
HWY_EXPORT(sum_squares);
HWY_EXPORT(scale);
HWY_EXPORT(update);
HWY_EXPORT(narrow);

}  // namespace

void widen_gradient(const WidenSpans& spans, Stores stores) {
  const auto kernel = ops::in_force(HWY_DISPATCH_TABLE(widen));
  parallel_for(spans.numel, kGrainNumel,
               [&](int64_t begin, int64_t end) { kernel(spans, stores, begin, end); });
}

double sum_of_squares(const float* wide, int64_t numel, double* grain_sums) {
  const auto kernel = ops::in_force(HWY_DISPATCH_TABLE(sum_squares));
  parallel_for(numel, kGrainNumel,
               [&](int64_t begin, int64_t end) { kernel(wide, grain_sums, begin, end); });
  return std::accumulate(grain_sums, grain_sums + numel / kGrainNumel, 0.0);
}

void scale_gradient(float* wide, int64_t numel, float factor) {
  const auto kernel = ops::in_force(HWY_DISPATCH_TABLE(scale));
  parallel_for(numel, kGrainNumel,
               [&](int64_t begin, int64_t end) { kernel(wide, factor, begin, end); });
}

void update_state(const ops::OptimizerScalars& scalars, const ops::OptimizerSpans& spans) {
  const auto kernel = ops::in_force(HWY_DISPATCH_TABLE(update));
  parallel_for(spans.numel, kGrainNumel,
               [&](int64_t begin, int64_t end) { kernel(scalars, spans, begin, end); });
}

void narrow_parameter(const NarrowSpans& spans, Stores stores) {
  const auto kernel = ops::in_force(HWY_DISPATCH_TABLE(narrow));
  parallel_for(spans.numel, kGrainNumel,
               [&](int64_t begin, int64_t end) { kernel(spans, stores, begin, end); });
}

}  // namespace strata::tools
#endif  // HWY_ONCE
