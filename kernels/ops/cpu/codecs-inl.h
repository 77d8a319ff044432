// The codecs of optimizer state, a block at a time. Included once for each target.
//
// Stochastic rounding takes 16 bits of noise an element: what is cut off counts as the probability
// of going up. The noise is made of the grain's key and the element's place in it, so it depends
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

#include "hwy/cache_control.h"
#include "kernels/ops/cpu/pairs-inl.h"
#include "strata/codec.h"
#include "strata/tier.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

// 32 bits an element, of which exp_avg takes the upper half and exp_avg_sq the lower, for the
// elements from `first` of a grain of the whole model. Two neighbours share a member of a Weyl
// sequence that starts at the grain's key, and multiply it by a constant each. With a key drawn
// anew for each step an element's 32 bits are uniform, and independent of those of other steps;
// rounding asks no more.
class Noise {
 public:
  HWY_INLINE Noise(uint32_t key, uint32_t first) {
    const U32 d;
    const U32Vec spread = hn::Mul(hn::Iota(d, 0), hn::Set(d, kSpread));
    sequence_ = hn::Add(spread, hn::Set(d, first / 2 * kSpread + key));
  }
  // Of the pair of vectors after the last.
  HWY_INLINE U32Pair next() {
    const U32 d;
    const U32Vec x = hn::Xor(sequence_, hn::ShiftRight<16>(sequence_));
    sequence_ = hn::Add(sequence_, hn::Set(d, static_cast<uint32_t>(kLanes) * kSpread));
    return {hn::Mul(x, hn::Set(d, kEven)), hn::Mul(x, hn::Set(d, kOdd))};
  }

 private:
  static constexpr uint32_t kSpread = 0x9e3779b1;  // 2^32 over the golden ratio, odd
  static constexpr uint32_t kEven = 0x7feb352d;    // both odd: one to one, as is all above
  static constexpr uint32_t kOdd = 0x846ca68b;

  U32Vec sequence_;
};

template <StateKind kKind>
HWY_INLINE U32Pair noise_of(U32Pair noise) {
  static_assert(kKind == StateKind::exp_avg || kKind == StateKind::exp_avg_sq);
  if constexpr (kKind == StateKind::exp_avg) {
    return {hn::ShiftRight<16>(noise.even), hn::ShiftRight<16>(noise.odd)};
  } else {
    return {hn::And(noise.even, lower_mask()), hn::And(noise.odd, lower_mask())};
  }
}

// master = parameter + rest, as integers: the bf16 parameter is the master's bits rounded half away
// from zero, the rest its lower half as a signed number.
struct Split16 {
  static HWY_INLINE F32Pair decode(const uint16_t* param, const uint16_t* rest) {
    const U32Pair upper = upper_of_words(load_words(param));
    const auto lower = hn::BitCast(I32(), load_words(rest));
    const auto lower_even = hn::ShiftRight<16>(hn::ShiftLeft<16>(lower));
    const auto lower_odd = hn::ShiftRight<16>(lower);
    return values({hn::Add(upper.even, hn::BitCast(U32(), lower_even)),
                   hn::Add(upper.odd, hn::BitCast(U32(), lower_odd))});
  }
  static HWY_INLINE void encode_rest(F32Pair master, uint16_t* rest) {
    store_words(words_of_lower(bits(master)), rest);
  }
};

HWY_INLINE F32Pair decode_bf16(const uint16_t* from) {
  return values(upper_of_words(load_words(from)));
}

// bf16 of an x without a payload in its NaN, rounded half away from zero, and by noise.
HWY_INLINE void encode_bf16(F32Pair x, uint16_t* to) {
  const U32Vec half = hn::Set(U32(), 0x8000);
  const U32Pair b = bits(x);
  store_words(words_of_upper({hn::Add(b.even, half), hn::Add(b.odd, half)}), to);
}
HWY_INLINE void encode_bf16(F32Pair x, U32Pair noise, uint16_t* to) {
  const U32Pair b = bits(x);
  store_words(words_of_upper({hn::Add(b.even, noise.even), hn::Add(b.odd, noise.odd)}), to);
}

// kMantissa bits of mantissa, and a sign where kSigned.
template <int kMantissa, bool kSigned>
struct Int8Format {
  static constexpr uint32_t kMaxCode = kSigned ? 0x7f : 0xff;
  static constexpr uint32_t kMaxExponent = (kMaxCode >> kMantissa) - 1;
  static constexpr float kMaxUnits =
      static_cast<float>(((uint64_t{2} << kMantissa) - 1) << kMaxExponent);

  static HWY_INLINE F32Pair decode(const uint8_t* codes, F32Vec scale) {
    const U32Pair code = lower_of_words(load_words(codes));
    return {decode(code.even, scale), decode(code.odd, scale)};
  }

  // `inverse`: units in one.
  static HWY_INLINE void encode(F32Pair x, F32Vec inverse, U32Pair noise, uint8_t* to) {
    store_words(
        words_of_lower({encode(x.even, inverse, noise.even), encode(x.odd, inverse, noise.odd)}),
        to);
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

 private:
  static HWY_INLINE F32Vec decode(U32Vec code, F32Vec scale) {
    const U32 d;
    const U32Vec magnitude = hn::And(code, hn::Set(d, kMaxCode));
    const U32Vec one = hn::Set(d, 1);
    const U32Vec exponent = hn::Sub(hn::Max(hn::ShiftRight<kMantissa>(magnitude), one), one);
    const U32Vec mantissa = hn::Sub(magnitude, hn::ShiftLeft<kMantissa>(exponent));
    const U32Vec power = hn::ShiftLeft<23>(hn::Add(exponent, hn::Set(d, 127)));
    F32Vec x = hn::ConvertTo(F32(), hn::BitCast(I32(), mantissa));
    x = hn::Mul(hn::Mul(x, hn::BitCast(F32(), power)), scale);
    if constexpr (!kSigned) return x;
    const U32Vec sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(d, 0x80)));
    return hn::BitCast(F32(), hn::Or(hn::BitCast(d, x), sign));
  }

  static HWY_INLINE U32Vec encode(F32Vec x, F32Vec inverse, U32Vec noise) {
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
      return hn::Or(code, hn::And(sign, hn::Set(d, 0x80)));
    } else {
      const auto above_zero = hn::RebindMask(d, hn::Gt(x, hn::Zero(F32())));
      return hn::IfThenElseZero(above_zero, hn::Max(code, hn::Set(d, 1)));
    }
  }
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

HWY_INLINE void prefetch_fp32(const float* from) {
  for (int64_t i = 0; i < kPairNumel; i += 16) hwy::Prefetch(from + i);
}

// A block of a moment as the update works on it: load(i), then store(x, noise, i) in order, then
// finish(). A Noise at the block's first element and what it gives for i are the arguments.

template <StateKind kKind>
class Fp32Moment {
 public:
  static constexpr bool kRounds = false;
  Fp32Moment(std::byte* stored, int64_t block)
      : at_(reinterpret_cast<float*>(stored + plain_at(block, sizeof(float)))) {}
  HWY_INLINE void prefetch(int64_t i) const { prefetch_fp32(at_ + i); }
  HWY_INLINE F32Pair load(int64_t i) const { return load_pair(at_ + i); }
  HWY_INLINE void store(F32Pair x, U32Pair, int64_t i) { store_pair(x, at_ + i); }
  HWY_INLINE void finish(Noise) {}

 private:
  float* const at_;
};

template <StateKind kKind>
class Bf16Moment {
 public:
  static constexpr bool kRounds = true;
  Bf16Moment(std::byte* stored, int64_t block)
      : at_(reinterpret_cast<uint16_t*>(stored + plain_at(block, sizeof(uint16_t)))) {}
  HWY_INLINE void prefetch(int64_t i) const { hwy::Prefetch(at_ + i); }
  HWY_INLINE F32Pair load(int64_t i) const { return decode_bf16(at_ + i); }
  HWY_INLINE void store(F32Pair x, U32Pair noise, int64_t i) {
    encode_bf16(x, noise_of<kKind>(noise), at_ + i);
  }
  HWY_INLINE void finish(Noise) {}

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
  HWY_INLINE void prefetch(int64_t i) const { hwy::Prefetch(codes_ + i); }
  HWY_INLINE F32Pair load(int64_t i) const { return Int8<kKind>::decode(codes_ + i, scale_); }
  HWY_INLINE void store(F32Pair x, U32Pair, int64_t i) {
    hn::Store(x.even, F32(), pairs_ + i);
    hn::Store(x.odd, F32(), pairs_ + i + kLanes);
    largest_ = hn::Max(largest_, hn::Max(magnitude_bits(x.even), magnitude_bits(x.odd)));
  }
  HWY_INLINE void finish(Noise noise) {
    const F32 d;
    const uint32_t largest = hn::GetLane(hn::MaxOfLanes(U32(), largest_));
    const typename Int8<kKind>::Scale scale(largest);
    std::memcpy(stored_scale_, &scale.stored, sizeof(scale.stored));
    if (scale.inverse == 0) {
      std::memset(codes_, 0, kCodecBlockNumel);
      return;
    }
    const F32Vec inverse = hn::Set(d, scale.inverse);
    for (int64_t i = 0; i < kCodecBlockNumel; i += kPairNumel) {
      const F32Pair x = {hn::Load(d, pairs_ + i), hn::Load(d, pairs_ + i + kLanes)};
      Int8<kKind>::encode(x, inverse, noise_of<kKind>(noise.next()), codes_ + i);
    }
  }

 private:
  uint8_t* const codes_;
  std::byte* const stored_scale_;
  F32Vec scale_;
  U32Vec largest_;
  HWY_ALIGN float pairs_[kCodecBlockNumel];
};

// One that the optimizer does not keep.
class NoMoment {
 public:
  static constexpr bool kRounds = false;
  HWY_INLINE void prefetch(int64_t) const {}
  HWY_INLINE F32Pair load(int64_t) const { return {hn::Zero(F32()), hn::Zero(F32())}; }
  HWY_INLINE void store(F32Pair, U32Pair, int64_t) {}
  HWY_INLINE void finish(Noise) {}
};

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
