// What the layers' kernels share: rows of any float dtype as vectors of fp32, whole or cut off at
// the row's end, and an exponential that keeps NaN. Included once for each target.
#if defined(STRATA_LAYER_MATH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef STRATA_LAYER_MATH_INL_H
#undef STRATA_LAYER_MATH_INL_H
#else
#define STRATA_LAYER_MATH_INL_H
#endif

#include <cstdint>
#include <cstring>

#include "kernels/ops/cpu/elements-inl.h"
// The line above fixes the targets for these two.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "strata/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using Vector = hn::Vec<F32>;
constexpr int64_t kLanes = hn::MaxLanes(F32());

using ops::HWY_NAMESPACE::Fp16;
using ops::HWY_NAMESPACE::Fp32;

// Activations and local gradients round half to even (kernels/ops/numeric.h).
struct Bf16Even : ops::HWY_NAMESPACE::Bf16 {
  template <class D>
  static HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> encode(D, hn::Vec<D> x) {
    const hn::RebindToUnsigned<D> du;
    const auto bits = hn::BitCast(du, x);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto even = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(x));
    const auto rounded = hn::IfThenElse(is_nan, hn::Or(bits, hn::Set(du, 0x0040'0000)), even);
    return hn::TruncateTo(hn::Rebind<uint16_t, D>(), hn::ShiftRight<16>(rounded));
  }
};

// Calls body(Element()) for the element type of a float `dtype`.
template <class Body>
void with_element(DType dtype, const Body& body) {
  if (dtype == DType::bf16) return body(Bf16Even());
  if (dtype == DType::fp16) return body(Fp16());
  body(Fp32());
}

// A vector's place in a row: all of it, or the row's last `count` elements.
struct Full {};
struct Tail {
  int64_t count;
};

template <class Element>
HWY_INLINE Vector load(const typename Element::Stored* from, Full) {
  return ops::HWY_NAMESPACE::load<Element>(F32(), from);
}

// Lanes behind the row's end are zero.
template <class Element>
HWY_INLINE Vector load(const typename Element::Stored* from, Tail tail) {
  HWY_ALIGN typename Element::Stored lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<size_t>(tail.count) * sizeof(*from));
  return ops::HWY_NAMESPACE::load<Element>(F32(), lanes);
}

template <class Element>
HWY_INLINE void store(Vector x, typename Element::Stored* to, Full) {
  ops::HWY_NAMESPACE::store<Element>(F32(), x, to);
}

template <class Element>
HWY_INLINE void store(Vector x, typename Element::Stored* to, Tail tail) {
  HWY_ALIGN typename Element::Stored lanes[kLanes];
  ops::HWY_NAMESPACE::store<Element>(F32(), x, lanes);
  std::memcpy(to, lanes, static_cast<size_t>(tail.count) * sizeof(*to));
}

// `x` with `fill` in the lanes behind the row's end.
HWY_INLINE Vector keep(Vector x, float, Full) { return x; }
HWY_INLINE Vector keep(Vector x, float fill, Tail tail) {
  const F32 d;
  return hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(tail.count)), x, hn::Set(d, fill));
}

// Calls body(i, part) for each vector that starts at element i of a row of `numel`.
template <class Body>
HWY_INLINE void for_vectors(int64_t numel, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= numel; i += kLanes) body(i, Full());
  if (i < numel) body(i, Tail{numel - i});
}

HWY_INLINE float sum_of(Vector x) { return hn::GetLane(hn::SumOfLanes(F32(), x)); }
HWY_INLINE float max_of(Vector x) { return hn::GetLane(hn::MaxOfLanes(F32(), x)); }

// Highway's exponential makes NaN zero, which would hide a diverged run.
HWY_INLINE Vector exponential(Vector x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(F32(), x));
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
