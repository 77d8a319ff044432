// What the tests of the optimizer arithmetic share: hard inputs, stored forms, every way to run.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/thread_team.h"
#include "kernels/ops/numeric.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/dtype.h"

namespace strata::ops {

inline constexpr DType kFloatDTypes[] = {DType::fp32, DType::bf16, DType::fp16};

// Forces an instruction set until destroyed.
class ForcedIsa {
 public:
  explicit ForcedIsa(std::string_view isa) { force_isa(isa); }
  ~ForcedIsa() { force_isa({}); }
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;
};

// Elements of one dtype as bytes, starting `offset` elements past 64-byte alignment, with a guard
// on either side that nothing may write to.
class Elements {
 public:
  Elements(DType dtype, int64_t numel, int64_t offset = 0)
      : dtype_(dtype),
        numel_(numel),
        begin_bytes_(static_cast<size_t>(kGuardNumel + offset) * size_bytes(dtype)),
        bytes_(begin_bytes_ + static_cast<size_t>(numel + kGuardNumel) * size_bytes(dtype) + 64,
               kGuardByte) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    begin_bytes_ += (64 - address % 64) % 64;
    std::memset(at(0), 0, size());
  }
  Elements(const Elements& other, int64_t offset) : Elements(other.dtype_, other.numel_, offset) {
    std::memcpy(at(0), other.at(0), size());
  }
  Elements(const Elements& other) : Elements(other, 0) {}
  Elements& operator=(const Elements&) = delete;

  DType dtype() const { return dtype_; }
  int64_t numel() const { return numel_; }
  size_t size() const { return static_cast<size_t>(numel_) * size_bytes(dtype_); }
  uint8_t* at(int64_t i) {
    return bytes_.data() + begin_bytes_ + static_cast<size_t>(i) * size_bytes(dtype_);
  }
  const uint8_t* at(int64_t i) const { return const_cast<Elements*>(this)->at(i); }

  template <typename T>
  T get(int64_t i) const {
    T value;
    std::memcpy(&value, at(i), sizeof(T));
    return value;
  }
  template <typename T>
  void set(int64_t i, T value) {
    std::memcpy(at(i), &value, sizeof(T));
  }
  uint32_t bits(int64_t i) const {
    return dtype_ == DType::fp32 ? get<uint32_t>(i) : get<uint16_t>(i);
  }
  // The value, whatever the dtype.
  float value(int64_t i) const {
    if (dtype_ == DType::fp32) return get<float>(i);
    return dtype_ == DType::bf16 ? bf16_to_float(get<uint16_t>(i))
                                 : fp16_to_float(get<uint16_t>(i));
  }
  void set_value(int64_t i, float x) {
    if (dtype_ == DType::fp32) return set(i, x);
    set(i, dtype_ == DType::bf16 ? float_to_bf16_half_away(x) : float_to_fp16(x));
  }

  bool guards_intact() const {
    const auto is_intact = [](uint8_t byte) { return byte == kGuardByte; };
    const auto begin = bytes_.begin() + static_cast<ptrdiff_t>(begin_bytes_);
    return std::all_of(bytes_.begin(), begin, is_intact) &&
           std::all_of(begin + static_cast<ptrdiff_t>(size()), bytes_.end(), is_intact);
  }

 private:
  static constexpr int64_t kGuardNumel = 64;
  static constexpr uint8_t kGuardByte = 0xa5;

  DType dtype_;
  int64_t numel_;
  size_t begin_bytes_;
  std::vector<uint8_t> bytes_;
};

inline ::testing::AssertionResult same_bits(const Elements& a, const Elements& b) {
  if (a.numel() != b.numel() || a.dtype() != b.dtype()) {
    return ::testing::AssertionFailure() << "different shapes";
  }
  if (std::memcmp(a.at(0), b.at(0), a.size()) == 0) return ::testing::AssertionSuccess();
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (a.bits(i) != b.bits(i)) {
      return ::testing::AssertionFailure()
             << "element " << i << ": " << a.value(i) << " and " << b.value(i) << ", bits "
             << a.bits(i) << " and " << b.bits(i);
    }
  }
  return ::testing::AssertionFailure() << "different bytes";
}

// A third ordinary, a third any bit pattern, a third where rounding, flushing and NaN are decided.
inline void fill_with_hard_values(Elements& elements, uint64_t seed) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kMin = std::numeric_limits<float>::min();
  constexpr float kMax = std::numeric_limits<float>::max();
  static const float hard[] = {0.0f,
                               -0.0f,
                               kInf,
                               -kInf,
                               kMin,
                               -kMin,
                               kMax,
                               -kMax,
                               kMin / 2,
                               -kMin / 3,
                               kMin * 1.1f,
                               0x1p-149f,
                               1.0f,
                               -1.0f,
                               65504.0f,
                               65520.0f,
                               65519.996f,
                               0x1p-24f,
                               0x1p-25f,
                               0x1p-14f,
                               0x1.fp-15f,
                               1.0039062f,
                               1.0117188f,
                               1e-20f,
                               3e19f,
                               -1e-38f,
                               std::bit_cast<float>(0x7fc0'0000u),
                               std::bit_cast<float>(0x7f80'0001u),
                               std::bit_cast<float>(0xffff'ffffu),
                               std::bit_cast<float>(0xffc1'2345u)};
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0, 1);
  for (int64_t i = 0; i < elements.numel(); ++i) {
    const uint64_t pick = rng();
    switch (pick % 3) {
      case 0:
        elements.set_value(i, normal(rng) * std::ldexp(1.0f, static_cast<int>(i % 28) - 27));
        break;
      case 1:
        if (elements.dtype() == DType::fp32) {
          elements.set(i, static_cast<uint32_t>(pick >> 32));
        } else {
          elements.set(i, static_cast<uint16_t>(pick >> 32));
        }
        break;
      default:
        elements.set_value(i, hard[(pick >> 8) % std::size(hard)]);
    }
  }
}

}  // namespace strata::ops
