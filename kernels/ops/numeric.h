// The roundings of the house, one element at a time: what vector kernels must match bit for bit.
//
// Integer arithmetic only, so that neither the instruction set nor the floating-point mode has a
// say. Narrowing a NaN keeps its sign and the payload's leading bits and makes it quiet: the carry
// of a rounding must not turn it into a number, nor dropping bits into an infinity. Widening keeps
// every bit.
#pragma once

#include <bit>
#include <cstdint>

namespace strata::ops {

namespace internal {
inline constexpr uint32_t kMagnitude = 0x7fff'ffff;
inline constexpr uint32_t kInfinity = 0x7f80'0000;
constexpr bool is_nan_bits(uint32_t bits) { return (bits & kMagnitude) > kInfinity; }
}  // namespace internal

constexpr float bf16_to_float(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// Half away from zero: for parameters, so that a master less its bf16 parameter fits a signed
// 16-bit rest.
constexpr uint16_t float_to_bf16_half_away(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (internal::is_nan_bits(bits)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x8000) >> 16);
}

// Half to even: for activations and local gradients.
constexpr uint16_t float_to_bf16_half_even(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (internal::is_nan_bits(bits)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr float fp16_to_float(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t exponent = value >> 10 & 0x1f;
  uint32_t mantissa = value & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | internal::kInfinity | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  if (mantissa == 0) return std::bit_cast<float>(sign);
  const uint32_t shift = static_cast<uint32_t>(std::countl_zero(mantissa)) - 21;  // to bit 10
  mantissa = mantissa << shift & 0x3ff;
  return std::bit_cast<float>(sign | (113 - shift) << 23 | mantissa << 13);
}

// Half to even.
constexpr uint16_t float_to_fp16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & internal::kMagnitude;
  const uint32_t sign = bits >> 16 & 0x8000;
  if (internal::is_nan_bits(bits)) {
    return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  }
  if (magnitude >= 0x4780'0000) return static_cast<uint16_t>(sign | 0x7c00);  // 2^16 and up
  if (magnitude >= 0x3880'0000) {                                             // 2^-14: normal
    const uint32_t rebiased = magnitude - (112u << 23);
    return static_cast<uint16_t>(sign | (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13);
  }
  if (magnitude < 0x3300'0000) return static_cast<uint16_t>(sign);  // below 2^-25: zero
  // Subnormal: in units of 2^-24, what is shifted out decides the rounding.
  const uint32_t mantissa = (magnitude & 0x007f'ffff) | 0x0080'0000;
  const uint32_t shift = 126 - (magnitude >> 23);  // 14 to 24
  const uint32_t kept = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1);
  const uint32_t half = 1u << (shift - 1);
  const bool up = rest > half || (rest == half && (kept & 1) != 0);
  return static_cast<uint16_t>(sign | (kept + (up ? 1 : 0)));
}

}  // namespace strata::ops
