// Vectors of fp32 from and to what is stored, and the few operations whose bits Highway leaves to
// the target. Included once for each target; see Highway's manual on -inl.h files.
#if defined(STRATA_ELEMENTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef STRATA_ELEMENTS_INL_H
#undef STRATA_ELEMENTS_INL_H
#else
#define STRATA_ELEMENTS_INL_H
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/ops/cpu/isa.h"
// The line above fixes the targets for this one.
#include "hwy/highway.h"
#include "strata/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32>;
constexpr int64_t kLanes = hn::MaxLanes(F32());

// a * b + c, rounded once.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V fused_multiply_add(D d, V a, V b, V c) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::MulAdd(a, b, c);
#else
  HWY_ALIGN float lanes_a[hn::MaxLanes(d)];
  HWY_ALIGN float lanes_b[hn::MaxLanes(d)];
  HWY_ALIGN float lanes_c[hn::MaxLanes(d)];
  hn::Store(a, d, lanes_a);
  hn::Store(b, d, lanes_b);
  hn::Store(c, d, lanes_c);
  for (size_t i = 0; i < hn::MaxLanes(d); ++i) {
    lanes_c[i] = std::fma(lanes_a[i], lanes_b[i], lanes_c[i]);
  }
  return hn::Load(d, lanes_c);
#endif
}

// Which of two NaNs survives, and the sign of a new one, depend on operand order and machine.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V one_nan(D d, V x) {
  return hn::IfThenElse(hn::IsNaN(x), hn::Set(d, std::numeric_limits<float>::quiet_NaN()), x);
}

// By the exponent's bits. AVX-512 tests them in one instruction, which GCC does not make of two.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V flush_denormal(D d, V x) {
  constexpr uint32_t kExponent = 0x7f80'0000;
#if HWY_TARGET <= HWY_AVX3
  static_assert(sizeof(x) == sizeof(__m512));
  const __mmask16 is_normal =
      _mm512_test_epi32_mask(_mm512_castps_si512(x.raw), _mm512_set1_epi32(kExponent));
  (void)d;
  return V{_mm512_maskz_mov_ps(is_normal, x.raw)};
#else
  const hn::RebindToUnsigned<D> du;
  const auto exponent = hn::And(hn::BitCast(du, x), hn::Set(du, kExponent));
  return hn::IfThenZeroElse(hn::RebindMask(d, hn::Eq(exponent, hn::Zero(du))), x);
#endif
}

// An element type E: E::Stored in memory; decode to fp32 and encode from it, as in numeric.h.
// encode_one_nan: of an x that went through one_nan().

struct Fp32 {
  using Stored = float;

  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V decode(D, V x) {
    return x;
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V encode(D, V x) {
    return x;
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V encode_one_nan(D, V x) {
    return x;
  }
};

struct Bf16 {
  using Stored = uint16_t;

  template <class D>
  static HWY_INLINE hn::Vec<D> decode(D d, hn::Vec<hn::Rebind<uint16_t, D>> bits) {
    const hn::RebindToUnsigned<D> du;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
  }

  template <class D>
  static HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> encode(D, hn::Vec<D> x) {
    const hn::RebindToUnsigned<D> du;
    const auto bits = hn::BitCast(du, x);
    const auto half = hn::Set(du, 0x8000);
    const auto quiet = hn::Set(du, 0x0040'0000);
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(x));
    const auto rounded = hn::IfThenElse(is_nan, hn::Or(bits, quiet), hn::Add(bits, half));
    return hn::TruncateTo(hn::Rebind<uint16_t, D>(), hn::ShiftRight<16>(rounded));
  }

  // Without a payload the carry of rounding stops short of the exponent.
  template <class D>
  static HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> encode_one_nan(D, hn::Vec<D> x) {
    const hn::RebindToUnsigned<D> du;
    const auto rounded = hn::Add(hn::BitCast(du, x), hn::Set(du, 0x8000));
    return hn::TruncateTo(hn::Rebind<uint16_t, D>(), hn::ShiftRight<16>(rounded));
  }
};

struct Fp16 {
  using Stored = uint16_t;

  template <class D>
  static HWY_INLINE hn::Vec<D> decode(D d, hn::Vec<hn::Rebind<uint16_t, D>> bits) {
    return decode_lower(d, hn::PromoteTo(hn::RebindToUnsigned<D>(), bits));
  }

  // Of bits in the lower halves, zeros above. A subnormal x * 2^-24 is (2^-14 + x * 2^-24) - 2^-14,
  // exactly.
  template <class D>
  static HWY_INLINE hn::Vec<D> decode_lower(D d, hn::Vec<hn::RebindToUnsigned<D>> wide) {
    const hn::RebindToUnsigned<D> du;
    const auto sign = hn::ShiftLeft<16>(hn::And(wide, hn::Set(du, 0x8000)));
    const auto magnitude = hn::ShiftLeft<13>(hn::And(wide, hn::Set(du, 0x7fff)));
    const auto top = hn::Set(du, 0x1fu << 23);
    const auto exponent = hn::And(magnitude, top);

    const auto normal = hn::Add(magnitude, hn::Set(du, 112u << 23));
    const auto special = hn::Add(magnitude, hn::Set(du, 224u << 23));
    const auto smallest_normal = hn::BitCast(d, hn::Set(du, 113u << 23));
    const auto shifted = hn::BitCast(d, hn::Add(magnitude, hn::Set(du, 113u << 23)));
    const auto subnormal = hn::BitCast(du, hn::Sub(shifted, smallest_normal));

    const auto finite = hn::IfThenElse(hn::Eq(exponent, hn::Zero(du)), subnormal, normal);
    const auto result = hn::IfThenElse(hn::Eq(exponent, top), special, finite);
    return hn::BitCast(d, hn::Or(result, sign));
  }

  // Adding 0.5, whose unit in the last place is 2^-24, rounds a subnormal result to even.
  template <class D>
  static HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> encode(D d, hn::Vec<D> x) {
    const hn::RebindToUnsigned<D> du;
    const auto bits = hn::BitCast(du, x);
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7fff'ffff));
    const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000));

    const auto rebiased = hn::Sub(magnitude, hn::Set(du, 112u << 23));
    const auto odd = hn::And(hn::ShiftRight<13>(rebiased), hn::Set(du, 1));
    const auto normal = hn::ShiftRight<13>(hn::Add(hn::Add(rebiased, hn::Set(du, 0xfff)), odd));
    const auto half = hn::Set(d, 0.5f);
    const auto subnormal =
        hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), half)), hn::BitCast(du, half));
    const auto payload = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3ff));
    const auto nan = hn::Or(hn::Set(du, 0x7e00), payload);

    const auto absolute = hn::BitCast(d, magnitude);
    const auto is_small = hn::RebindMask(du, hn::Lt(absolute, hn::Set(d, 0x1p-14f)));
    const auto is_large = hn::RebindMask(du, hn::Ge(absolute, hn::Set(d, 0x1p16f)));
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(x));
    auto result = hn::IfThenElse(is_small, subnormal, normal);
    result = hn::IfThenElse(is_large, hn::Set(du, 0x7c00), result);
    result = hn::IfThenElse(is_nan, nan, result);
    return hn::TruncateTo(hn::Rebind<uint16_t, D>(), hn::Or(result, sign));
  }

  template <class D>
  static HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> encode_one_nan(D d, hn::Vec<D> x) {
    return encode(d, x);
  }
};

// Calls body(Element()) for the element type of a float `dtype`.
template <class Body>
void with_element(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::fp32:
      return body(Fp32());
    case DType::bf16:
      return body(Bf16());
    case DType::fp16:
      return body(Fp16());
    case DType::int32:
      break;
  }
}

template <class Element, class D>
HWY_INLINE hn::Vec<D> load(D d, const typename Element::Stored* from) {
  return Element::decode(d, hn::LoadU(hn::Rebind<typename Element::Stored, D>(), from));
}

template <class Element, class D>
HWY_INLINE void store(D d, hn::Vec<D> x, typename Element::Stored* to) {
  hn::StoreU(Element::encode(d, x), hn::Rebind<typename Element::Stored, D>(), to);
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
