// Landing gradients, with the sum of squares of each grain.
//
// The sum has 16 lanes: lane j adds the squares of elements j, j + 16, j + 32, ... of the grain in
// that order, and a tree of halves adds the lanes. Sixteen is what every vector length here
// divides. A square of an fp32 is exact in double, so fused and separate additions agree.
#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/optimizer_gradient.cc"
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/ops/cpu/elements-inl.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/grain.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

using F64 = hn::ScalableTag<double>;
using F32Half = hn::Rebind<float, F64>;  // as many fp32 lanes as a vector has doubles
constexpr int64_t kSumLanes = 16;
constexpr int64_t kStep = hn::MaxLanes(F64());
constexpr int64_t kSums = kSumLanes / kStep;
constexpr int64_t kBlock = 32;  // a cache line of 16-bit elements
static_assert(kSumLanes % kStep == 0 && kBlock % kSumLanes == 0 && kGrainNumel % kBlock == 0);

double fold(double (&lanes)[kSumLanes]) {
  for (int64_t half = kSumLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return std::isnan(lanes[0]) ? std::numeric_limits<double>::quiet_NaN() : lanes[0];
}

// Streaming stores spare reading the lines of dst before they are overwritten, and pay once dst
// would not have stayed in the cache until the update.
bool should_stream(const void* dst, int64_t numel) {
  constexpr int64_t kStreamFromNumel = int64_t{1} << 19;
  constexpr uintptr_t kLine = 64;
  return numel >= kStreamFromNumel && reinterpret_cast<uintptr_t>(dst) % kLine == 0;
}

enum class Landing { copy, widen, add };

// A line at a time: with streaming stores of half a line, each followed by its arithmetic, landing
// takes 1.4 times as long on Zen 4, with quarters of one 2.3 times.
template <class T>
HWY_INLINE void copy_block(const T* src, T* dst, bool stream) {
  const hn::CappedTag<T, kBlock> d;
  for (int64_t i = 0; i < kBlock; i += hn::MaxLanes(d)) {
    const auto bits = hn::LoadU(d, src + i);
    stream ? hn::Stream(bits, d, dst + i) : hn::StoreU(bits, d, dst + i);
  }
}

// Lands one vector, unless it is copied, and returns what dst holds.
template <class Src, Landing kLanding>
HWY_INLINE hn::Vec<F32Half> land_vector(const typename Src::Stored* src, void* dst, int64_t i) {
  const F32Half d;
  auto x = load<Src>(d, src + i);
  if constexpr (kLanding != Landing::copy) {
    float* to = static_cast<float*>(dst) + i;
    if constexpr (kLanding == Landing::add) x = one_nan(d, hn::Add(hn::LoadU(d, to), x));
    hn::StoreU(x, d, to);
  }
  return x;
}

template <class Src, Landing kLanding>
double land_grain(const typename Src::Stored* src, void* dst, bool stream) {
  const F64 d;
  hn::Vec<F64> sums[kSums];
  for (auto& sum : sums) sum = hn::Zero(d);
  for (int64_t block = 0; block < kGrainNumel; block += kBlock) {
    if constexpr (kLanding == Landing::copy) {
      copy_block(src + block, static_cast<typename Src::Stored*>(dst) + block, stream);
    }
    for (int64_t i = block; i < block + kBlock; i += kSumLanes) {
      for (int64_t k = 0; k < kSums; ++k) {
        const auto x = hn::PromoteTo(d, land_vector<Src, kLanding>(src, dst, i + k * kStep));
        sums[k] = hn::MulAdd(x, x, sums[k]);
      }
    }
  }
  HWY_ALIGN double lanes[kSumLanes];
  for (int64_t k = 0; k < kSums; ++k) hn::Store(sums[k], d, lanes + k * kStep);
  return fold(lanes);
}

template <class Src, Landing kLanding>
void land_range(const LandGradientSpans& spans, int64_t begin, int64_t end) {
  using Dst = std::conditional_t<kLanding == Landing::copy, typename Src::Stored, float>;
  const auto* src = static_cast<const typename Src::Stored*>(spans.src);
  auto* dst = static_cast<Dst*>(spans.dst);
  const bool stream = kLanding == Landing::copy && should_stream(dst, spans.numel);
  for (int64_t at = begin; at < end; at += kGrainNumel) {
    const double sum = land_grain<Src, kLanding>(src + at, dst + at, stream);
    if (spans.grain_sum_of_squares != nullptr) spans.grain_sum_of_squares[at / kGrainNumel] = sum;
  }
  if (stream) hwy::FlushStream();
}

template <class Src>
void land_from(const LandGradientSpans& spans, int64_t begin, int64_t end) {
  if (spans.add) return land_range<Src, Landing::add>(spans, begin, end);
  if (spans.src_dtype == spans.dst_dtype) return land_range<Src, Landing::copy>(spans, begin, end);
  land_range<Src, Landing::widen>(spans, begin, end);
}

void land(const LandGradientSpans& spans, int64_t begin, int64_t end) {
  with_element(spans.src_dtype, [&](auto src) { land_from<decltype(src)>(spans, begin, end); });
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/ops/cpu/optimizer_range.h"
#include "kernels/ops/optimizer_checks.h"

namespace strata::ops {
namespace {
HWY_EXPORT(land);
}  // namespace

void land_gradient(const LandGradientSpans& spans) {
  check_landing(spans);
  const auto kernel = in_force(HWY_DISPATCH_TABLE(land));
  for_grains(spans.numel, [&](int64_t begin, int64_t end) { kernel(spans, begin, end); });
}

}  // namespace strata::ops
#endif  // HWY_ONCE
