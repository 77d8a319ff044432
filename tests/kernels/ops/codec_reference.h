// The codecs of optimizer state an element at a time: what the kernels must match bit for bit.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/ops/numeric.h"
#include "kernels/ops/random.h"
#include "strata/codec.h"
#include "strata/tier.h"

namespace strata::ops::reference {

// The 16 bits of noise of element `index` in `step`: the upper half for exp_avg, else the lower.
inline uint32_t noise(StateKind kind, uint64_t index, uint64_t step) {
  const uint32_t key = Philox{step}(index / kGrainNumel, 0)[0];
  const auto place = static_cast<uint32_t>(index % kGrainNumel);
  uint32_t x = place / 2 * 0x9e3779b1u + key;
  x = (x ^ x >> 16) * (place % 2 == 0 ? 0x7feb352du : 0x846ca68bu);
  return kind == StateKind::exp_avg ? x >> 16 : x & 0xffff;
}

// An 8-bit float in units of its scale.
struct Int8Format {
  explicit Int8Format(StateKind kind)
      : is_signed(kind == StateKind::exp_avg), mantissa_bits(is_signed ? 3 : 4) {}

  int max_code() const { return is_signed ? 127 : 255; }
  float units(int code) const {
    const int exponent = std::max(code >> mantissa_bits, 1) - 1;
    const int mantissa = code - (exponent << mantissa_bits);
    return std::ldexp(static_cast<float>(mantissa), exponent);
  }
  float decode(uint8_t code, float scale) const {
    const float magnitude = units(code & max_code()) * scale;
    return is_signed && code > 127 ? -magnitude : magnitude;
  }
  // The neighbours of `x` units are a step apart; noise decides between them.
  uint8_t encode(float x, float inverse, uint32_t noise) const {
    const float in_units = std::abs(x) * inverse;
    int exponent = 0;
    while (std::ldexp(in_units, -exponent) >= static_cast<float>(2 << mantissa_bits)) ++exponent;
    const float up_by = static_cast<float>(noise) * 0x1p-16f;
    const int mantissa = static_cast<int>(std::ldexp(in_units, -exponent) + up_by);
    int code = std::min((exponent << mantissa_bits) + mantissa, max_code());
    if (!is_signed && x > 0) code = std::max(code, 1);
    if (!is_signed && !(x > 0)) code = 0;
    return static_cast<uint8_t>(code | (is_signed && std::signbit(x) ? 0x80 : 0));
  }

  bool is_signed;
  int mantissa_bits;
};

// A block of a moment, elements [index, index + 256) of the model.
inline void encode_block(StateKind kind, Codec codec, const float* values, uint64_t index,
                         uint64_t step, int64_t block, std::byte* stored) {
  if (codec == Codec::bf16) {
    auto* const to = reinterpret_cast<uint16_t*>(stored) + block * kCodecBlockNumel;
    for (int64_t i = 0; i < kCodecBlockNumel; ++i) {
      const uint32_t noise_bits = noise(kind, index + static_cast<uint64_t>(i), step);
      to[i] = static_cast<uint16_t>((std::bit_cast<uint32_t>(values[i]) + noise_bits) >> 16);
    }
    return;
  }
  const Int8Format format(kind);
  float largest = 0;
  bool is_finite = true;
  for (int64_t i = 0; i < kCodecBlockNumel; ++i) {
    is_finite &= std::isfinite(values[i]);
    largest = std::max(largest, std::abs(values[i]));
  }
  const float max_units = format.units(format.max_code());
  const bool is_zero = !is_finite || largest < 0x1p-100f;
  const float scale = !is_finite ? std::numeric_limits<float>::quiet_NaN()
                      : is_zero  ? 0.0f
                                 : largest / max_units;
  std::memcpy(stored + int8_scale_at(block), &scale, sizeof(scale));
  for (int64_t i = 0; i < kCodecBlockNumel; ++i) {
    const uint32_t noise_bits = noise(kind, index + static_cast<uint64_t>(i), step);
    const uint8_t code =
        is_zero ? uint8_t{0} : format.encode(values[i], max_units / largest, noise_bits);
    std::memcpy(stored + int8_codes_at(block) + i, &code, 1);
  }
}

}  // namespace strata::ops::reference
