// The codecs of optimizer state, a block at a time. Included once for each target.
//
// Stochastic rounding takes 16 bits of noise an element: what is cut off counts as the probability
// of going up. The noise is a hash of the block's key and the element's place in it, so it depends
// neither on how a call is cut nor on the length of a vector.
//
// An int8 block is 256 codes and a scale. Codes are 8-bit floats, with subnormals and without
// infinities, in units of the scale: of exp_avg, which has signs, with 4 bits of exponent and 3 of
// mantissa, of exp_avg_sq with 4 and 4. The scale puts the block's largest magnitude at the largest
// code. A second moment above zero never becomes zero, which would let the step divide by eps
// alone; a block whose largest magnitude is below 2^-100 is zero; one with an infinity or a NaN is
// all NaN. (After Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022, whose
// codes are a table and are rounded to nearest.)
#if defined(STRATA_CODECS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef STRATA_CODECS_INL_H
#undef STRATA_CODECS_INL_H
#else
#define STRATA_CODECS_INL_H
#endif

#include <bit>
#include <cstring>
#include <limits>

#include "kernels/ops/cpu/elements-inl.h"
#include "strata/codec.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using U32Vec = hn::Vec<U32>;

// Calls body(i) for the first element of each vector of a block.
template <class Body>
HWY_INLINE void for_vectors(const Body& body) {
  for (int64_t i = 0; i < kCodecBlockNumel; i += kLanes) body(i);
}

// 32 bits an element. The hash is lowbias32 by Chris Wellons.
HWY_INLINE U32Vec noise(uint32_t key, int64_t i) {
  const U32 d;
  const U32Vec place = hn::Iota(d, static_cast<uint32_t>(i));
  U32Vec x = hn::Xor(hn::Mul(place, hn::Set(d, 0x9e3779b1)), hn::Set(d, key));
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<16>(x)), hn::Set(d, 0x7feb352d));
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<15>(x)), hn::Set(d, 0x846ca68b));
  return hn::Xor(x, hn::ShiftRight<16>(x));
}

// Which half of the noise a moment takes.
struct UpperNoise {
  uint32_t key;
  HWY_INLINE U32Vec operator()(int64_t i) const { return hn::ShiftRight<16>(noise(key, i)); }
};
struct LowerNoise {
  uint32_t key;
  HWY_INLINE U32Vec operator()(int64_t i) const {
    return hn::And(noise(key, i), hn::Set(U32(), 0xffff));
  }
};

// master = parameter + rest, as integers: the bf16 parameter is the master's bits rounded half away
// from zero, the rest its lower half as a signed number.
struct Split16 {
  static HWY_INLINE F32Vec decode(const uint16_t* param, const int16_t* rest) {
    const I32 d;
    const auto upper = hn::PromoteTo(U32(), hn::LoadU(hn::Rebind<uint16_t, F32>(), param));
    const auto lower = hn::PromoteTo(d, hn::LoadU(hn::Rebind<int16_t, F32>(), rest));
    return hn::BitCast(F32(), hn::Add(hn::BitCast(d, hn::ShiftLeft<16>(upper)), lower));
  }
  static HWY_INLINE void encode_rest(F32Vec master, int16_t* rest) {
    const hn::Rebind<uint16_t, F32> d;
    const auto lower = hn::TruncateTo(d, hn::BitCast(U32(), master));
    hn::StoreU(lower, d, reinterpret_cast<uint16_t*>(rest));
  }
};

struct Bf16Moment {
  template <class Noise>
  static HWY_INLINE void encode(F32Vec x, const Noise& noise, int64_t i, uint16_t* to) {
    const hn::Rebind<uint16_t, F32> d;
    const U32Vec bits = hn::Add(hn::BitCast(U32(), x), noise(i));
    hn::StoreU(hn::TruncateTo(d, hn::ShiftRight<16>(bits)), d, to);
  }
};

// kMantissa bits of mantissa, and a sign where kSigned.
template <int kMantissa, bool kSigned>
struct Int8Moment {
  static constexpr uint32_t kMaxCode = kSigned ? 0x7f : 0xff;
  static constexpr uint32_t kMaxExponent = (kMaxCode >> kMantissa) - 1;
  static constexpr float kMaxUnits =
      static_cast<float>(((uint64_t{2} << kMantissa) - 1) << kMaxExponent);

  static HWY_INLINE F32Vec decode(const uint8_t* code, F32Vec scale) {
    const U32 d;
    const U32Vec bits = hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint8_t, F32>(), code));
    const U32Vec magnitude = hn::And(bits, hn::Set(d, kMaxCode));
    const U32Vec one = hn::Set(d, 1);
    const U32Vec exponent = hn::Sub(hn::Max(hn::ShiftRight<kMantissa>(magnitude), one), one);
    const U32Vec mantissa = hn::Sub(magnitude, hn::ShiftLeft<kMantissa>(exponent));
    const U32Vec power = hn::ShiftLeft<23>(hn::Add(exponent, hn::Set(d, 127)));
    F32Vec x = hn::ConvertTo(F32(), hn::BitCast(I32(), mantissa));
    x = hn::Mul(hn::Mul(x, hn::BitCast(F32(), power)), scale);
    if constexpr (!kSigned) return x;
    const U32Vec sign = hn::ShiftLeft<24>(hn::And(bits, hn::Set(d, 0x80)));
    return hn::BitCast(F32(), hn::Or(hn::BitCast(d, x), sign));
  }

  // `inverse`: units in one.
  template <class Noise>
  static HWY_INLINE void encode(F32Vec x, F32Vec inverse, const Noise& noise, int64_t i,
                                uint8_t* to) {
    const U32 d;
    constexpr uint32_t kLeast = 127 + kMantissa;  // a subnormal's biased exponent, in units
    const F32Vec units = hn::Mul(hn::Abs(x), inverse);
    const U32Vec biased = hn::Max(hn::ShiftRight<23>(hn::BitCast(d, units)), hn::Set(d, kLeast));
    const U32Vec down = hn::ShiftLeft<23>(hn::Sub(hn::Set(d, kLeast + 127), biased));
    const F32Vec up_by =
        hn::Mul(hn::ConvertTo(F32(), hn::BitCast(I32(), noise(i))), hn::Set(F32(), 0x1p-16f));
    const F32Vec sum = hn::Add(hn::Mul(units, hn::BitCast(F32(), down)), up_by);
    const U32Vec mantissa = hn::BitCast(d, hn::ConvertTo(I32(), sum));
    const U32Vec exponent = hn::Sub(biased, hn::Set(d, kLeast));
    U32Vec code = hn::Add(hn::ShiftLeft<kMantissa>(exponent), mantissa);
    code = hn::Min(code, hn::Set(d, kMaxCode));
    if constexpr (kSigned) {
      const U32Vec sign = hn::ShiftRight<24>(hn::BitCast(d, x));
      code = hn::Or(code, hn::And(sign, hn::Set(d, 0x80)));
    } else {
      const auto above_zero = hn::RebindMask(d, hn::Gt(x, hn::Zero(F32())));
      code = hn::IfThenElseZero(above_zero, hn::Max(code, hn::Set(d, 1)));
    }
    const hn::Rebind<uint8_t, F32> d8;
    hn::StoreU(hn::TruncateTo(d8, code), d8, to);
  }

  // Of the largest magnitude's bits: the scale to store, and its inverse for encoding.
  struct Scale {
    explicit Scale(uint32_t magnitude) {
      if (magnitude >= 0x7f80'0000) {
        stored = std::numeric_limits<float>::quiet_NaN();
      } else if (magnitude >= std::bit_cast<uint32_t>(0x1p-100f)) {
        stored = std::bit_cast<float>(magnitude) / kMaxUnits;
        inverse = kMaxUnits / std::bit_cast<float>(magnitude);
      }
    }
    float stored = 0;
    float inverse = 0;
  };
};
using Int8ExpAvg = Int8Moment<3, true>;
using Int8ExpAvgSq = Int8Moment<4, false>;

// Integers order magnitudes on every machine alike, infinities and NaN above all numbers.
HWY_INLINE uint32_t largest_magnitude(const float* values) {
  const U32 d;
  U32Vec largest = hn::Zero(d);
  for_vectors([&](int64_t i) {
    const U32Vec bits = hn::BitCast(d, hn::LoadU(F32(), values + i));
    largest = hn::Max(largest, hn::And(bits, hn::Set(d, 0x7fff'ffff)));
  });
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// Where a block of a codec without scales lies, in bytes from the first block of a grain.
constexpr int64_t plain_at(int64_t block, size_t element_bytes) {
  return block * kCodecBlockNumel * static_cast<int64_t>(element_bytes);
}

// A moment's block, not fp32, into `values`. Int8 is one of the two kinds above.
template <class Int8>
HWY_INLINE void decode_moment(Codec codec, const std::byte* stored, int64_t block, float* values) {
  const F32 d;
  if (codec == Codec::bf16) {
    const auto* const from = reinterpret_cast<const uint16_t*>(stored + plain_at(block, 2));
    for_vectors([&](int64_t i) { hn::StoreU(load<Bf16>(d, from + i), d, values + i); });
  } else if (codec == Codec::int8) {
    const auto* const from = reinterpret_cast<const uint8_t*>(stored + int8_codes_at(block));
    float scale;
    std::memcpy(&scale, stored + int8_scale_at(block), sizeof(scale));
    const F32Vec scales = hn::Set(d, scale);
    for_vectors([&](int64_t i) { hn::StoreU(Int8::decode(from + i, scales), d, values + i); });
  }
}

// The way back.
template <class Int8, class Noise>
HWY_INLINE void encode_moment(Codec codec, const float* values, const Noise& noise, int64_t block,
                              std::byte* stored) {
  const F32 d;
  if (codec == Codec::bf16) {
    auto* const to = reinterpret_cast<uint16_t*>(stored + plain_at(block, 2));
    for_vectors([&](int64_t i) { Bf16Moment::encode(hn::LoadU(d, values + i), noise, i, to + i); });
  } else if (codec == Codec::int8) {
    const typename Int8::Scale scale(largest_magnitude(values));
    std::memcpy(stored + int8_scale_at(block), &scale.stored, sizeof(scale.stored));
    auto* const to = reinterpret_cast<uint8_t*>(stored + int8_codes_at(block));
    if (scale.inverse == 0) {
      std::memset(to, 0, kCodecBlockNumel);
      return;
    }
    const F32Vec inverse = hn::Set(d, scale.inverse);
    for_vectors(
        [&](int64_t i) { Int8::encode(hn::LoadU(d, values + i), inverse, noise, i, to + i); });
  }
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
