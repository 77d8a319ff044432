// Casts: every 16-bit value, every boundary between two of them, on every instruction set; and the
// scalar conversions of numeric.h by the same measure.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "strata/error.h"
#include "strata/grain.h"
#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {
namespace {

constexpr int64_t kValues = 65536;

Elements every_value(DType dtype) {
  Elements all(dtype, kValues);
  for (int64_t i = 0; i < kValues; ++i) all.set(i, static_cast<uint16_t>(i));
  return all;
}

Elements cast_to(DType dtype, const Elements& from) {
  Elements to(dtype, from.numel());
  cast(to.at(0), dtype, from.at(0), from.dtype(), from.numel());
  return to;
}

// The value of a 16-bit float by its definition; not for NaN and infinity.
double definition(uint32_t bits, int mantissa_bits, int bias) {
  const int exponent = static_cast<int>((bits & 0x7fff) >> mantissa_bits);
  const int mantissa = static_cast<int>(bits & ((1u << mantissa_bits) - 1));
  const int implied = exponent == 0 ? 0 : 1 << mantissa_bits;
  const double magnitude =
      std::ldexp(implied + mantissa, std::max(exponent, 1) - bias - mantissa_bits);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

struct Format {
  DType dtype;
  int mantissa_bits;
  int bias;
  uint32_t infinity;
  bool half_away;  // else half to even
};
constexpr Format kFormats[] = {{DType::bf16, 7, 127, 0x7f80, true},
                               {DType::fp16, 10, 15, 0x7c00, false}};

class CastFormat : public ::testing::TestWithParam<std::tuple<Format, std::string_view>> {
 protected:
  const Format format_ = std::get<0>(GetParam());
  const ForcedIsa forced_{std::get<1>(GetParam())};
};

TEST_P(CastFormat, WideningGivesEveryValue) {
  const Elements wide = cast_to(DType::fp32, every_value(format_.dtype));
  for (uint32_t bits = 0; bits < kValues; ++bits) {
    const float value = wide.get<float>(bits);
    const uint32_t magnitude = bits & 0x7fff;
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
    if (magnitude < format_.infinity) {
      ASSERT_EQ(value, definition(bits, format_.mantissa_bits, format_.bias)) << bits;
    } else if (magnitude == format_.infinity) {
      ASSERT_TRUE(std::isinf(value)) << bits;
    } else {
      ASSERT_TRUE(std::isnan(value)) << bits;
    }
  }
}

TEST_P(CastFormat, NarrowingRestoresEveryValueAndKeepsNan) {
  const Elements all = every_value(format_.dtype);
  const Elements back = cast_to(format_.dtype, cast_to(DType::fp32, all));
  const uint32_t quiet = 1u << (format_.mantissa_bits - 1);
  for (uint32_t bits = 0; bits < kValues; ++bits) {
    const bool is_nan = (bits & 0x7fff) > format_.infinity;
    ASSERT_EQ(back.bits(bits), is_nan ? bits | quiet : bits);
  }
}

TEST_P(CastFormat, EveryBoundaryRoundsTheRightWay) {
  // Between each value and the next away from zero (past the largest: what would follow it).
  Elements wide(DType::fp32, int64_t{6} * format_.infinity);
  for (uint32_t low = 0; low < format_.infinity; ++low) {
    const double low_value = definition(low, format_.mantissa_bits, format_.bias);
    const double high_value = definition(low + 1, format_.mantissa_bits, format_.bias);
    const float middle = static_cast<float>((low_value + high_value) / 2);
    const float inf = std::numeric_limits<float>::infinity();
    const float around[] = {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, inf)};
    for (int k = 0; k < 3; ++k) {
      wide.set(int64_t{6} * low + k, around[k]);
      wide.set(int64_t{6} * low + 3 + k, -around[k]);
    }
  }
  const Elements narrow = cast_to(format_.dtype, wide);
  for (uint32_t low = 0; low < format_.infinity; ++low) {
    const uint32_t tie = format_.half_away ? low + 1 : low + (low & 1);
    const uint32_t expected[] = {low, tie, low + 1};
    for (int k = 0; k < 3; ++k) {
      ASSERT_EQ(narrow.bits(int64_t{6} * low + k), expected[k]) << low << " " << k;
      ASSERT_EQ(narrow.bits(int64_t{6} * low + 3 + k), expected[k] | 0x8000) << low << " " << k;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, CastFormat,
                         ::testing::Combine(::testing::ValuesIn(kFormats),
                                            ::testing::ValuesIn(available_isas())),
                         [](const auto& test) {
                           return std::string(name(std::get<0>(test.param).dtype)) + "_" +
                                  std::string(std::get<1>(test.param));
                         });

TEST(Cast, VectorsAgreeWithNumericOnHardValues) {
  Elements wide(DType::fp32, 40000);
  fill_with_hard_values(wide, 7);
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    const Elements bf16 = cast_to(DType::bf16, wide);
    const Elements fp16 = cast_to(DType::fp16, wide);
    for (int64_t i = 0; i < wide.numel(); ++i) {
      ASSERT_EQ(bf16.bits(i), float_to_bf16_half_away(wide.get<float>(i))) << isa << " " << i;
      ASSERT_EQ(fp16.bits(i), float_to_fp16(wide.get<float>(i))) << isa << " " << i;
    }
  }
}

TEST(Cast, BetweenSixteenBitTypesRoundsOnce) {
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    const Elements to_fp16 = cast_to(DType::fp16, every_value(DType::bf16));
    const Elements to_bf16 = cast_to(DType::bf16, every_value(DType::fp16));
    for (uint32_t bits = 0; bits < kValues; ++bits) {
      const auto value = static_cast<uint16_t>(bits);
      ASSERT_EQ(to_fp16.bits(bits), float_to_fp16(bf16_to_float(value))) << isa << " " << bits;
      ASSERT_EQ(to_bf16.bits(bits), float_to_bf16_half_away(fp16_to_float(value)))
          << isa << " " << bits;
    }
  }
}

TEST(Cast, SameTypeCopiesEveryBit) {
  for (DType dtype : {DType::bf16, DType::fp16}) {
    const Elements all = every_value(dtype);
    EXPECT_TRUE(same_bits(cast_to(dtype, all), all));
  }
}

TEST(Cast, SliceAndThreadsDoNotChangeBits) {
  for (DType from : kFloatDTypes) {
    Elements src(from, 2 * kGrainNumel + 77);
    fill_with_hard_values(src, 11);
    for (DType to : kFloatDTypes) {
      const Elements whole = cast_to(to, src);
      for (std::string_view isa : available_isas()) {
        const ForcedIsa forced(isa);
        for (int threads = 1; threads <= 3; ++threads) {
          const TeamScope team(threads);
          const Elements moved(src, threads);
          Elements dst(to, src.numel(), 1);
          const int64_t cut = 2 * threads + 1;
          cast(dst.at(0), to, moved.at(0), from, cut);
          cast(dst.at(cut), to, moved.at(cut), from, src.numel() - cut);
          EXPECT_TRUE(same_bits(dst, whole)) << isa << " " << threads;
          EXPECT_TRUE(dst.guards_intact());
        }
      }
    }
  }
}

TEST(Cast, RefusesIntegers) {
  Elements a(DType::fp32, 8);
  Elements b(DType::fp32, 8);
  EXPECT_THROW(cast(a.at(0), DType::int32, b.at(0), DType::fp32, 8), Error);
  EXPECT_THROW(cast(a.at(0), DType::fp32, b.at(0), DType::int32, 8), Error);
}

TEST(Numeric, HalfEvenIsHalfAwayButForTies) {
  for (uint32_t high = 0; high < 0x7f80; ++high) {
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float value = std::bit_cast<float>(high << 16 | low);
      const bool to_even = low == 0x8000 && (high & 1) == 0;
      const uint32_t expected = to_even ? high : float_to_bf16_half_away(value);
      ASSERT_EQ(float_to_bf16_half_even(value), expected) << high << " " << low;
      ASSERT_EQ(float_to_bf16_half_even(-value), expected | 0x8000) << high << " " << low;
    }
  }
  for (uint32_t bits : {0x7f80'0001u, 0xff80'0001u, 0x7fff'ffffu, 0xffff'ffffu}) {
    const uint16_t narrow = float_to_bf16_half_even(std::bit_cast<float>(bits));
    EXPECT_TRUE(std::isnan(bf16_to_float(narrow))) << bits;
    EXPECT_EQ(narrow >> 15, bits >> 31) << bits;
  }
}

}  // namespace
}  // namespace strata::ops
