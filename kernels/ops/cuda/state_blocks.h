// The update of a codec block and the landing of a grain by a team of threads, with the bits of the
// vector kernels (kernels/ops/cpu/codecs-inl.h, optimizer_encoded.cc, optimizer_gradient.cc).
//
// A team is a CUDA thread block, or a loop on the host that takes its place in tests:
//
//     kSlots                what a thread keeps from one phase to the next: as many of each
//     each(n, body)         body(i, slot) for i in [0, n), divided among threads; the same thread
//                           gets the same i and slot in each phase of one n. Then all wait.
//     largest(values)       the largest of all threads' slots, at all threads
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/ops/cuda/optimizer_rules.h"
#include "kernels/ops/random.h"
#include "strata/codec.h"
#include "strata/grain.h"

namespace strata::ops::exact {

// 32 bits for element `place` of a grain of the whole model, whose key is drawn for each step: the
// upper half rounds exp_avg, the lower exp_avg_sq.
STRATA_HD inline uint32_t noise_bits(uint32_t grain_key, uint32_t place) {
  const uint32_t x = place / 2 * 0x9e37'79b1u + grain_key;
  return (x ^ x >> 16) * (place % 2 == 0 ? 0x7feb'352du : 0x846c'a68bu);
}

// 8-bit floats in units of a block's scale: kMantissa bits of mantissa, and a sign where kSigned.
template <int kMantissa, bool kSigned>
struct Int8Format {
  static constexpr uint32_t kMaxCode = kSigned ? 0x7f : 0xff;
  static constexpr uint32_t kMaxExponent = (kMaxCode >> kMantissa) - 1;
  static constexpr float kMaxUnits =
      static_cast<float>(((uint64_t{2} << kMantissa) - 1) << kMaxExponent);

  STRATA_HD static float decode(uint32_t code, float scale) {
    const uint32_t magnitude = code & kMaxCode;
    const uint32_t upper = magnitude >> kMantissa;
    const uint32_t exponent = (upper > 1 ? upper : 1) - 1;
    const uint32_t mantissa = magnitude - (exponent << kMantissa);
    const float power = from_bits((exponent + 127) << 23);
    const float x = mul(mul(static_cast<float>(mantissa), power), scale);
    return kSigned ? from_bits(bits(x) | (code & 0x80) << 24) : x;
  }

  // `inverse`: units in one. `noise`: 16 bits.
  STRATA_HD static uint32_t encode(float x, float inverse, uint32_t noise) {
    constexpr uint32_t kLeast = 127 + kMantissa;  // a subnormal's biased exponent, in units
    const float units = mul(from_bits(magnitude_bits(x)), inverse);
    const uint32_t upper = bits(units) >> 23;
    const uint32_t biased = upper > kLeast ? upper : kLeast;
    const float down = from_bits((kLeast + 127 - biased) << 23);
    const float up_by = mul(static_cast<float>(noise), 0x1p-16f);
    const auto mantissa = static_cast<uint32_t>(add(mul(units, down), up_by));
    uint32_t code = ((biased - kLeast) << kMantissa) + mantissa;
    if (code > kMaxCode) code = kMaxCode;
    if (kSigned) return code | (bits(x) >> 24 & 0x80);
    if (!(x > 0)) return 0;
    return code > 1 ? code : 1;
  }
};
using ExpAvgInt8 = Int8Format<3, true>;
using ExpAvgSqInt8 = Int8Format<4, false>;

// What a block's largest magnitude makes of it.
struct Int8Scale {
  float stored = 0;
  float inverse = 0;  // 0: all codes are zero

  STRATA_HD Int8Scale(uint32_t largest_bits, float max_units) {
    constexpr uint32_t kLeast = 27u << 23;  // 2^-100
    if (largest_bits >= 0x7f80'0000) {
      stored = from_bits(0x7fc0'0000);
    } else if (largest_bits >= kLeast) {
      stored = div(from_bits(largest_bits), max_units);
      inverse = div(max_units, from_bits(largest_bits));
    }
  }
};

STRATA_HD inline float load_scale(const std::byte* stored, int64_t block) {
  return *reinterpret_cast<const float*>(stored + int8_scale_at(block));
}

// One moment of a block. `Format` is its int8 format, `kShift` where its noise begins.
template <class Format, int kShift>
struct MomentCodec {
  StateSpan span;

  STRATA_HD float load(int64_t at) const {
    switch (span.codec) {
      case Codec::fp32:
        return exact::load(span.data, DType::fp32, at);
      case Codec::bf16:
        return exact::load(span.data, DType::bf16, at);
      case Codec::int8: {
        const int64_t block = at / kCodecBlockNumel;
        const auto code =
            static_cast<uint32_t>(span.data[int8_codes_at(block) + at % kCodecBlockNumel]);
        return Format::decode(code, load_scale(span.data, block));
      }
      default:
        return 0;
    }
  }
  // All but int8, which waits for the block's largest.
  STRATA_HD void store(float x, int64_t at, uint32_t noise) const {
    if (span.codec == Codec::fp32) {
      reinterpret_cast<float*>(span.data)[at] = x;
    } else if (span.codec == Codec::bf16) {
      reinterpret_cast<uint16_t*>(span.data)[at] =
          static_cast<uint16_t>((bits(x) + (noise >> kShift & 0xffff)) >> 16);
    }
  }
  STRATA_HD void store_int8(float x, int64_t at, uint32_t noise, const Int8Scale& scale) const {
    const int64_t block = at / kCodecBlockNumel;
    const int64_t place = at % kCodecBlockNumel;
    span.data[int8_codes_at(block) + place] = static_cast<std::byte>(
        scale.inverse == 0 ? 0 : Format::encode(x, scale.inverse, noise >> kShift & 0xffff));
    if (place == 0) *reinterpret_cast<float*>(span.data + int8_scale_at(block)) = scale.stored;
  }
  STRATA_HD static float max_units() { return Format::kMaxUnits; }
  STRATA_HD bool is_int8() const { return span.codec == Codec::int8; }
};
using ExpAvgCodec = MomentCodec<ExpAvgInt8, 16>;
using ExpAvgSqCodec = MomentCodec<ExpAvgSqInt8, 0>;

STRATA_HD inline float load_master(const EncodedSpans& spans, int64_t at) {
  if (spans.master.codec == Codec::fp32) return load(spans.master.data, DType::fp32, at);
  const uint32_t upper = static_cast<uint32_t>(static_cast<const uint16_t*>(spans.param)[at]) << 16;
  const auto rest = reinterpret_cast<const int16_t*>(spans.master.data)[at];
  return from_bits(upper + static_cast<uint32_t>(static_cast<int32_t>(rest)));
}
STRATA_HD inline void store_master(float x, const EncodedSpans& spans, int64_t at) {
  store_param(x, spans.param, spans.param_dtype, at);
  if (spans.master.codec == Codec::fp32) {
    reinterpret_cast<float*>(spans.master.data)[at] = x;
  } else {
    reinterpret_cast<uint16_t*>(spans.master.data)[at] = static_cast<uint16_t>(bits(x));
  }
}

// Elements [begin, min(begin + kCodecBlockNumel, spans.end)).
template <class Team, class Rule>
STRATA_HD void update_block(Team& team, const Rule& rule, float grad_scale, uint64_t step,
                            const EncodedSpans& spans, int64_t begin) {
  const ExpAvgCodec exp_avg{spans.exp_avg};
  const ExpAvgSqCodec exp_avg_sq{spans.exp_avg_sq};
  const uint64_t index = spans.first_index + static_cast<uint64_t>(begin - spans.begin);
  const uint64_t grain = index / kGrainNumel;
  const uint32_t key = Philox{step}(grain, 0)[0];
  const auto first_place = static_cast<uint32_t>(index % kGrainNumel);
  const int64_t left = spans.end - begin;
  const int64_t numel = left < kCodecBlockNumel ? left : kCodecBlockNumel;
  StateElement x[Team::kSlots];
  uint32_t noise[Team::kSlots];
  uint32_t first[Team::kSlots] = {};
  uint32_t second[Team::kSlots] = {};
  team.each(numel, [&](int64_t i, int slot) {
    const int64_t at = begin + i;
    StateElement& e = x[slot];
    e = {load_master(spans, at), 0, 0};
    if constexpr (Rule::kMoments.exp_avg) e.exp_avg = exp_avg.load(at);
    if constexpr (Rule::kMoments.exp_avg_sq) e.exp_avg_sq = exp_avg_sq.load(at);
    rule(mul(load(spans.grad, spans.grad_dtype, at), grad_scale), e);
    e = {one_nan(e.master), one_nan(e.exp_avg), one_nan(e.exp_avg_sq)};
    noise[slot] = noise_bits(key, first_place + static_cast<uint32_t>(i));
    if constexpr (Rule::kMoments.exp_avg) exp_avg.store(e.exp_avg, at, noise[slot]);
    if constexpr (Rule::kMoments.exp_avg_sq) exp_avg_sq.store(e.exp_avg_sq, at, noise[slot]);
    store_master(e.master, spans, at);
    first[slot] = magnitude_bits(e.exp_avg);
    second[slot] = magnitude_bits(e.exp_avg_sq);
  });
  if (Rule::kMoments.exp_avg && exp_avg.is_int8()) {
    const Int8Scale scale(team.largest(first), exp_avg.max_units());
    team.each(numel, [&](int64_t i, int slot) {
      exp_avg.store_int8(x[slot].exp_avg, begin + i, noise[slot], scale);
    });
  }
  if (Rule::kMoments.exp_avg_sq && exp_avg_sq.is_int8()) {
    const Int8Scale scale(team.largest(second), exp_avg_sq.max_units());
    team.each(numel, [&](int64_t i, int slot) {
      exp_avg_sq.store_int8(x[slot].exp_avg_sq, begin + i, noise[slot], scale);
    });
  }
}

// The sum of squares has 16 lanes: lane j adds elements j, j + 16, ... in that order, and a tree of
// halves adds the lanes.
inline constexpr int64_t kSumLanes = 16;

// Lands grain `grain` of the spans. `landed` (kGrainNumel) and `lanes` (kSumLanes) are the team's.
template <class Team>
STRATA_HD void land_grain(Team& team, const LandGradientSpans& spans, int64_t grain, float* landed,
                          double* lanes) {
  const int64_t begin = grain * kGrainNumel;
  const bool copies = spans.dst_dtype == spans.src_dtype && !spans.add;
  team.each(kGrainNumel, [&](int64_t i, int) {
    const int64_t at = begin + i;
    float x = load(spans.src, spans.src_dtype, at);
    landed[i] = x;
    if (copies && spans.dst_dtype != DType::fp32) {
      static_cast<uint16_t*>(spans.dst)[at] = static_cast<const uint16_t*>(spans.src)[at];
      return;
    }
    float* const to = static_cast<float*>(spans.dst) + at;
    if (spans.add) x = one_nan(add(*to, x));
    landed[i] = *to = x;
  });
  if (spans.grain_sum_of_squares == nullptr) return;
  team.each(kSumLanes, [&](int64_t lane, int) {
    double sum = 0;
    for (int64_t i = lane; i < kGrainNumel; i += kSumLanes) {
      sum = fma(static_cast<double>(landed[i]), static_cast<double>(landed[i]), sum);
    }
    lanes[lane] = sum;
  });
  for (int64_t half = kSumLanes / 2; half > 0; half /= 2) {
    team.each(half, [&](int64_t lane, int) { lanes[lane] += lanes[lane + half]; });
  }
  team.each(1, [&](int64_t, int) {
    const double sum = lanes[0];
    spans.grain_sum_of_squares[grain] = sum == sum ? sum : std::numeric_limits<double>::quiet_NaN();
  });
}

}  // namespace strata::ops::exact
