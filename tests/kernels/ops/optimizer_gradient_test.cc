// Landing gradients: copy, widen, add; and a sum of squares a grain that does not depend on how.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "strata/error.h"
#include "strata/grain.h"
#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();

struct Landing {
  DType src;
  DType dst;
  bool add;
};
constexpr Landing kLandings[] = {
    {DType::fp32, DType::fp32, false}, {DType::fp32, DType::fp32, true},
    {DType::bf16, DType::bf16, false}, {DType::bf16, DType::fp32, false},
    {DType::bf16, DType::fp32, true},  {DType::fp16, DType::fp16, false},
    {DType::fp16, DType::fp32, false}, {DType::fp16, DType::fp32, true}};

std::vector<double> land(const Elements& src, Elements& dst, bool add) {
  std::vector<double> sums(static_cast<size_t>(grains_for(src.numel())), -1);
  land_gradient({.dst = dst.at(0),
                 .dst_dtype = dst.dtype(),
                 .src = src.at(0),
                 .src_dtype = src.dtype(),
                 .numel = src.numel(),
                 .add = add,
                 .grain_sum_of_squares = sums.data()});
  return sums;
}

// The promised order: 16 lanes by index, then halves.
double sum_of_squares(const Elements& elements, int64_t grain) {
  double lanes[16] = {};
  for (int64_t i = 0; i < kGrainNumel; ++i) {
    const double x = elements.value(grain * kGrainNumel + i);
    lanes[i % 16] += x * x;
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

void fill_normal(Elements& elements, uint64_t seed, int64_t count) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0, 1);
  for (int64_t i = 0; i < count; ++i) elements.set_value(i, normal(rng));
}
void fill_normal(Elements& elements, uint64_t seed) {
  fill_normal(elements, seed, elements.numel());
}

class LandGradient : public ::testing::TestWithParam<Landing> {
 protected:
  const Landing how_ = GetParam();
};

TEST_P(LandGradient, IsaThreadsAndAlignmentDoNotChangeBits) {
  // The first grains are finite, so that their sums say something; the last ones are not.
  Elements src(how_.src, 5 * kGrainNumel);
  Elements start(how_.dst, src.numel());
  fill_with_hard_values(src, 1);
  fill_with_hard_values(start, 2);
  fill_normal(src, 3, 3 * kGrainNumel);
  fill_normal(start, 4, 3 * kGrainNumel);
  Elements expected(start);
  const ForcedIsa scalar("scalar");
  const std::vector<double> expected_sums = land(src, expected, how_.add);
  for (std::string_view isa : available_isas()) {
    force_isa(isa);
    for (int threads = 1; threads <= 3; ++threads) {
      const TeamScope team(threads);
      const Elements moved(src, threads);
      Elements dst(start, 2 * threads - 1);
      const std::vector<double> sums = land(moved, dst, how_.add);
      EXPECT_TRUE(same_bits(dst, expected)) << isa << " " << threads;
      EXPECT_TRUE(dst.guards_intact());
      for (size_t g = 0; g < sums.size(); ++g) {
        EXPECT_EQ(std::bit_cast<uint64_t>(sums[g]), std::bit_cast<uint64_t>(expected_sums[g]))
            << isa << " grain " << g;
      }
    }
  }
}

TEST_P(LandGradient, StreamingStoresDoNotChangeBits) {
  // Long enough for streaming stores, which need an aligned destination.
  Elements src(how_.src, int64_t{1} << 19);
  const Elements start(how_.dst, src.numel());
  fill_normal(src, 8);
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    Elements aligned(start);
    Elements unaligned(start, 1);
    EXPECT_EQ(land(src, aligned, how_.add), land(src, unaligned, how_.add)) << isa;
    EXPECT_TRUE(same_bits(aligned, unaligned)) << isa;
    EXPECT_TRUE(aligned.guards_intact() && unaligned.guards_intact()) << isa;
  }
}

TEST_P(LandGradient, GivesCopyOrSumInFp32) {
  Elements src(how_.src, 2 * kGrainNumel);
  Elements start(how_.dst, src.numel());
  fill_with_hard_values(src, 4);
  fill_normal(start, 5);
  Elements dst(start);
  land(src, dst, how_.add);
  for (int64_t i = 0; i < src.numel(); ++i) {
    if (how_.add) {
      const float sum = start.get<float>(i) + src.value(i);
      ASSERT_EQ(dst.bits(i), std::bit_cast<uint32_t>(std::isnan(sum) ? kNan : sum)) << i;
    } else if (how_.src == how_.dst) {
      ASSERT_EQ(dst.bits(i), src.bits(i)) << i;
    } else {
      ASSERT_EQ(dst.bits(i), std::bit_cast<uint32_t>(src.value(i))) << i;
    }
  }
}

TEST_P(LandGradient, SumOfSquaresHasThePromisedOrder) {
  Elements src(how_.src, 3 * kGrainNumel);
  Elements dst(how_.dst, src.numel());
  fill_normal(src, 6);
  fill_normal(dst, 7);
  const std::vector<double> sums = land(src, dst, how_.add);
  for (int64_t g = 0; g < 3; ++g) EXPECT_EQ(sums[static_cast<size_t>(g)], sum_of_squares(dst, g));
}

TEST_P(LandGradient, SumIsNotFiniteExactlyWhereAnElementIsNot) {
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    for (float bad : {kNan, -kNan, kInf, -kInf}) {
      for (int64_t at = 0; at < kGrainNumel; at += 131) {
        Elements src(how_.src, 3 * kGrainNumel);
        Elements dst(how_.dst, src.numel());
        src.set_value(kGrainNumel + at, bad);
        const std::vector<double> sums = land(src, dst, how_.add);
        ASSERT_TRUE(std::isfinite(sums[0])) << isa << " " << at;
        ASSERT_FALSE(std::isfinite(sums[1])) << isa << " " << at;
        ASSERT_TRUE(std::isfinite(sums[2])) << isa << " " << at;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryWay, LandGradient, ::testing::ValuesIn(kLandings),
                         [](const auto& test) {
                           return std::string(name(test.param.src)) + "_to_" +
                                  std::string(name(test.param.dst)) +
                                  (test.param.add ? "_add" : "");
                         });

TEST(LandGradientLimits, LargestFiniteValuesHaveAFiniteSum) {
  Elements src(DType::fp32, kGrainNumel);
  for (int64_t i = 0; i < kGrainNumel; ++i) src.set(i, i % 2 == 0 ? kMax : -kMax);
  Elements dst(DType::fp32, kGrainNumel);
  EXPECT_TRUE(std::isfinite(land(src, dst, false)[0]));
  // dst now holds what overflows when added once more.
  EXPECT_TRUE(std::isinf(land(src, dst, true)[0]));
}

TEST(LandGradientLimits, SquaresOfDenormalsCount) {
  Elements src(DType::fp32, kGrainNumel);
  src.set(5, 0x1p-149f);
  Elements dst(DType::fp32, kGrainNumel);
  EXPECT_EQ(land(src, dst, false)[0], 0x1p-298);
}

TEST(LandGradientLimits, RefusesWhatItDoesNotCompute) {
  Elements src(DType::bf16, kGrainNumel);
  Elements dst(DType::fp32, kGrainNumel);
  const LandGradientSpans good = {.dst = dst.at(0), .src = src.at(0), .numel = kGrainNumel};
  EXPECT_NO_THROW(land_gradient(good));
  LandGradientSpans bad = good;
  bad.numel = kGrainNumel - 1;
  EXPECT_THROW(land_gradient(bad), Error);
  bad = good;
  bad.src_dtype = DType::int32;
  EXPECT_THROW(land_gradient(bad), Error);
  bad = good;
  bad.dst_dtype = DType::fp16;
  EXPECT_THROW(land_gradient(bad), Error);
  bad.dst_dtype = DType::bf16;
  EXPECT_NO_THROW(land_gradient(bad));
  bad.add = true;
  EXPECT_THROW(land_gradient(bad), Error);
}

}  // namespace
}  // namespace strata::ops
