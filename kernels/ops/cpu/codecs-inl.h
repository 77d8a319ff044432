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
#include <type_traits>

#include "kernels/ops/cpu/elements-inl.h"
#include "strata/codec.h"
#include "strata/tier.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using U32Vec = hn::Vec<U32>;

// 32 bits an element, of which exp_avg takes the upper half and exp_avg_sq the lower. `places` are
// the elements' places in a grain of the whole model. The hash is lowbias32 by Chris Wellons.
HWY_INLINE U32Vec noise(uint32_t key, U32Vec places) {
  const U32 d;
  U32Vec x = hn::Xor(hn::Mul(places, hn::Set(d, 0x9e3779b1)), hn::Set(d, key));
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<16>(x)), hn::Set(d, 0x7feb352d));
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<15>(x)), hn::Set(d, 0x846ca68b));
  return hn::Xor(x, hn::ShiftRight<16>(x));
}
template <StateKind kKind>
HWY_INLINE U32Vec noise_of(U32Vec noise) {
  static_assert(kKind == StateKind::exp_avg || kKind == StateKind::exp_avg_sq);
  if constexpr (kKind == StateKind::exp_avg) return hn::ShiftRight<16>(noise);
  return hn::And(noise, hn::Set(U32(), 0xffff));
}

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

// Of an x without a payload in its NaN.
HWY_INLINE void encode_bf16(F32Vec x, U32Vec noise, uint16_t* to) {
  const hn::Rebind<uint16_t, F32> d;
  const U32Vec bits = hn::Add(hn::BitCast(U32(), x), noise);
  hn::StoreU(hn::TruncateTo(d, hn::ShiftRight<16>(bits)), d, to);
}

// kMantissa bits of mantissa, and a sign where kSigned.
template <int kMantissa, bool kSigned>
struct Int8Format {
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
  static HWY_INLINE void encode(F32Vec x, F32Vec inverse, U32Vec noise, uint8_t* to) {
    const U32 d;
    constexpr uint32_t kLeast = 127 + kMantissa;  // a subnormal's biased exponent, in units
    const F32Vec units = hn::Mul(hn::Abs(x), inverse);
    const U32Vec biased = hn::Max(hn::ShiftRight<23>(hn::BitCast(d, units)), hn::Set(d, kLeast));
    const U32Vec down = hn::ShiftLeft<23>(hn::Sub(hn::Set(d, kLeast + 127), biased));
    const F32Vec up_by =
        hn::Mul(hn::ConvertTo(F32(), hn::BitCast(I32(), noise)), hn::Set(F32(), 0x1p-16f));
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
template <StateKind kKind>
using Int8 =
    std::conditional_t<kKind == StateKind::exp_avg, Int8Format<3, true>, Int8Format<4, false>>;

// Where a block of a codec without scales lies, in bytes from the first block of a grain.
constexpr int64_t plain_at(int64_t block, size_t element_bytes) {
  return block * kCodecBlockNumel * static_cast<int64_t>(element_bytes);
}

// Integers order magnitudes on every machine alike, infinities and NaN above all numbers.
HWY_INLINE U32Vec magnitude_bits(F32Vec x) {
  const U32 d;
  return hn::And(hn::BitCast(d, x), hn::Set(d, 0x7fff'ffff));
}

// A block of a moment as the update works on it: load(i), then store(x, noise, i) in order, then
// finish(). `noise` is noise()'s.

template <StateKind kKind>
class Fp32Moment {
 public:
  static constexpr bool kRounds = false;
  Fp32Moment(std::byte* stored, int64_t block)
      : at_(reinterpret_cast<float*>(stored + plain_at(block, sizeof(float)))) {}
  HWY_INLINE F32Vec load(int64_t i) const { return hn::LoadU(F32(), at_ + i); }
  HWY_INLINE void store(F32Vec x, U32Vec, int64_t i) { hn::StoreU(x, F32(), at_ + i); }
  template <class NoiseAt>
  HWY_INLINE void finish(const NoiseAt&) {}

 private:
  float* const at_;
};

template <StateKind kKind>
class Bf16Moment {
 public:
  static constexpr bool kRounds = true;
  Bf16Moment(std::byte* stored, int64_t block)
      : at_(reinterpret_cast<uint16_t*>(stored + plain_at(block, sizeof(uint16_t)))) {}
  HWY_INLINE F32Vec load(int64_t i) const { return ops::HWY_NAMESPACE::load<Bf16>(F32(), at_ + i); }
  HWY_INLINE void store(F32Vec x, U32Vec noise, int64_t i) {
    encode_bf16(x, noise_of<kKind>(noise), at_ + i);
  }
  template <class NoiseAt>
  HWY_INLINE void finish(const NoiseAt&) {}

 private:
  uint16_t* const at_;
};

// Values wait in the cache until the block's largest is known.
template <StateKind kKind>
class Int8Moment {
 public:
  static constexpr bool kRounds = false;  // not before finish()
  Int8Moment(std::byte* stored, int64_t block)
      : codes_(reinterpret_cast<uint8_t*>(stored + int8_codes_at(block))),
        stored_scale_(stored + int8_scale_at(block)),
        largest_(hn::Zero(U32())) {
    float scale;
    std::memcpy(&scale, stored_scale_, sizeof(scale));
    scale_ = hn::Set(F32(), scale);
  }
  HWY_INLINE F32Vec load(int64_t i) const { return Int8<kKind>::decode(codes_ + i, scale_); }
  HWY_INLINE void store(F32Vec x, U32Vec, int64_t i) {
    hn::Store(x, F32(), values_ + i);
    largest_ = hn::Max(largest_, magnitude_bits(x));
  }
  // noise_at(i): noise() of the vector at i.
  template <class NoiseAt>
  HWY_INLINE void finish(const NoiseAt& noise_at) {
    const F32 d;
    const uint32_t largest = hn::GetLane(hn::MaxOfLanes(U32(), largest_));
    const typename Int8<kKind>::Scale scale(largest);
    std::memcpy(stored_scale_, &scale.stored, sizeof(scale.stored));
    if (scale.inverse == 0) {
      std::memset(codes_, 0, kCodecBlockNumel);
      return;
    }
    const F32Vec inverse = hn::Set(d, scale.inverse);
    for (int64_t i = 0; i < kCodecBlockNumel; i += kLanes) {
      Int8<kKind>::encode(hn::Load(d, values_ + i), inverse, noise_of<kKind>(noise_at(i)),
                          codes_ + i);
    }
  }

 private:
  uint8_t* const codes_;
  std::byte* const stored_scale_;
  F32Vec scale_;
  U32Vec largest_;
  HWY_ALIGN float values_[kCodecBlockNumel];
};

// One that the optimizer does not keep.
class NoMoment {
 public:
  static constexpr bool kRounds = false;
  HWY_INLINE F32Vec load(int64_t) const { return hn::Zero(F32()); }
  HWY_INLINE void store(F32Vec, U32Vec, int64_t) {}
  template <class NoiseAt>
  HWY_INLINE void finish(const NoiseAt&) {}
};

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
